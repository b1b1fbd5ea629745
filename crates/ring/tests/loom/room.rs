//! A writer that waits for room: on the futex word, or (polling) for a doorbell on its own receiving direction.

use std::io::IoSlice;
use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
use loom::thread;
use sgm_ring::layout::{READ_CLOSED, WANT_BELL, WANT_FUTEX};
use sgm_ring::sync::AtomicU32;
use sgm_ring::sync::Ordering::{AcqRel, Acquire, Relaxed};

use crate::end::{End, RIGHT, Sender};
use crate::explore;
use crate::wire::{Line, touch, touch32};

/// The kernel's futex: compares under its own lock, then sleeps until woken (no time-out: nothing covers up a lost
/// wake-up).
#[derive(Default)]
struct Futex {
    lock: Mutex<()>,
    woken: Condvar,
}

impl Futex {
    fn sleep(&self, word: &AtomicU32, seq: u32) {
        let guard = self.lock.lock().unwrap();
        if word.load(Relaxed) == seq {
            drop(self.woken.wait(guard).unwrap());
        }
    }

    fn wake(&self) {
        let _guard = self.lock.lock().unwrap();
        self.woken.notify_all();
    }
}

struct Room {
    line: Arc<Line>,
    futex: Futex,
}

impl Room {
    /// A ring of `capacity` bytes, full.
    fn full(capacity: usize) -> Arc<Self> {
        let line = Line::new(capacity);
        let bytes: Vec<u8> = (1..=capacity as u8).collect();
        assert_eq!(line.write(&bytes), capacity);
        Arc::new(Self {
            line,
            futex: Futex::default(),
        })
    }

    fn has_room(&self) -> bool {
        self.line.tx().room(&self.line.write_cache, 1).unwrap() > 0
    }

    /// The engine's blocking wait. False: the reading end is closed.
    fn wait(&self) -> bool {
        let tx = self.line.tx();
        loop {
            let seq = tx.want_space(WANT_FUTEX);
            if tx.asks() & READ_CLOSED != 0 {
                return false;
            }
            if self.has_room() {
                return true;
            }
            self.futex.sleep(&tx.direction.wait.space_seq, seq);
        }
    }

    fn take(&self) {
        assert_eq!(self.line.read(1).len(), 1);
        touch32(&self.line.direction.wait.space_wanted);
        if self.line.rx().space_due() & WANT_FUTEX != 0 {
            self.futex.wake();
        }
    }

    fn close(&self) {
        let rx = self.line.rx();
        rx.ask(READ_CLOSED);
        if rx.release_writer() & WANT_FUTEX != 0 {
            self.futex.wake();
        }
    }
}

/// A writer that finds the ring full, while `takes` bytes are taken.
fn blocked_writer(capacity: usize, takes: usize, wait: fn(&Room) -> bool, take: fn(&Room)) {
    let room = Room::full(capacity);
    let writer = room.clone();
    let writer = thread::spawn(move || {
        assert!(wait(&writer));
        assert_eq!(writer.line.write(&[99]), 1);
    });
    (0..takes).for_each(|_| take(&room));
    writer.join().unwrap();
    assert_eq!(room.line.read(capacity).last(), Some(&99));
}

#[test]
fn writer_is_woken_for_room() {
    explore(3, || blocked_writer(4, 1, Room::wait, Room::take));
}

/// A large ring wakes its writer for a quarter of it, not for a byte.
#[test]
fn writer_is_woken_for_a_quarter() {
    explore(3, || blocked_writer(8, 2, Room::wait, Room::take));
}

#[test]
fn writer_waits_twice() {
    explore(3, || {
        let room = Room::full(4);
        let writer = room.clone();
        let writer = thread::spawn(move || {
            for byte in [98, 99] {
                assert!(writer.wait());
                assert_eq!(writer.line.write(&[byte]), 1);
            }
        });
        room.take();
        room.take();
        writer.join().unwrap();
        assert_eq!(room.line.read(4), [3, 4, 98, 99]);
    });
}

#[test]
fn two_readers_make_room() {
    explore(3, || {
        let room = Room::full(8);
        let readers = [room.clone(), room.clone()].map(|room| thread::spawn(move || room.take()));
        assert!(room.wait());
        readers.into_iter().for_each(|r| r.join().unwrap());
    });
}

#[test]
fn writer_is_released_by_close() {
    explore(3, || {
        let room = Room::full(4);
        let writer = room.clone();
        let writer = thread::spawn(move || assert!(!writer.wait()));
        room.close();
        writer.join().unwrap();
    });
}

/// A writer that polls: it sleeps on its own receiving direction, where a bell of an earlier message lies already.
fn polling_writer(poll: fn(&Line, &End)) {
    let out = Line::new(4);
    assert_eq!(out.write(&[1, 2, 3, 4]), 4);
    let back = Line::new(2);
    let mut peer = Sender::new(&back);
    peer.ring_bell();
    let reader = out.clone();
    let reader = thread::spawn(move || {
        assert_eq!(reader.read(1), [1]);
        touch32(&reader.direction.wait.space_wanted);
        if reader.rx().space_due() & WANT_BELL != 0 {
            peer.ring_bell();
        }
    });
    let end = End::on_ring(&back, RIGHT);
    poll(&out, &end);
    assert_eq!(out.write(&[5]), 1);
    reader.join().unwrap();
}

fn has_room(out: &Line) -> bool {
    out.tx().room(&out.write_cache, 1).unwrap() > 0
}

#[test]
fn polling_writer_gets_a_bell() {
    explore(3, || {
        polling_writer(|out, end| {
            while !has_room(out) {
                out.tx().want_space(WANT_BELL);
                if end.prepare_sleep(|| !has_room(out)) {
                    end.line.stream.sleep_readable();
                    end.line.rx().disarm();
                }
            }
        });
    });
}

/// Does not look for room once more between arming and sleeping.
#[test]
#[should_panic(expected = "deadlock")]
fn broken_polling_without_a_second_look_is_caught() {
    explore(3, || {
        polling_writer(|out, end| {
            while !has_room(out) {
                out.tx().want_space(WANT_BELL);
                if end.prepare_sleep(|| true) {
                    end.line.stream.sleep_readable();
                    end.line.rx().disarm();
                }
            }
        });
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_asking_after_looking_is_caught() {
    explore(3, || {
        blocked_writer(
            4,
            1,
            |room| {
                if !room.has_room() {
                    let tx = room.line.tx();
                    let seq = tx.want_space(WANT_FUTEX);
                    room.futex.sleep(&tx.direction.wait.space_seq, seq);
                }
                true
            },
            Room::take,
        );
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_asking_without_barrier_is_caught() {
    explore(3, || {
        blocked_writer(
            4,
            1,
            |room| {
                let wait = &room.line.direction.wait;
                let seq = wait.space_seq.load(Acquire);
                wait.space_wanted.fetch_or(WANT_FUTEX, AcqRel);
                if !room.has_room() {
                    room.futex.sleep(&wait.space_seq, seq);
                }
                true
            },
            Room::take,
        );
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_waking_without_a_new_number_is_caught() {
    explore(3, || {
        blocked_writer(4, 1, Room::wait, |room| {
            assert_eq!(room.line.read(1).len(), 1);
            if room.line.direction.wait.space_wanted.swap(0, AcqRel) != 0 {
                room.futex.wake();
            }
        });
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_looking_for_waiters_before_taking_is_caught() {
    explore(3, || {
        blocked_writer(4, 1, Room::wait, |room| {
            let wanted = room.line.rx().release_writer();
            touch(&room.line.direction.reader.head);
            assert_eq!(room.line.read(1).len(), 1);
            if wanted != 0 {
                room.futex.wake();
            }
        });
    });
}

/// A gathered write into what room there is takes a part of it, in order.
#[test]
fn partial_write_takes_what_fits() {
    explore(3, || {
        let room = Room::full(4);
        let reader = room.clone();
        let reader = thread::spawn(move || (0..3).for_each(|_| reader.take()));
        let bufs = [IoSlice::new(&[5, 6]), IoSlice::new(&[7])];
        let line = &room.line;
        touch(&line.direction.writer.tail);
        let n = line.tx().write(&line.write_cache, &bufs, 0).unwrap();
        reader.join().unwrap();
        assert_eq!(line.read(4), [4, 5, 6, 7][..=n]);
    });
}
