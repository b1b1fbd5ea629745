//! A renewal: the peer is gone, its bytes lie in the ring, and of those who hold the socket one takes what is left, gives the
//! kernel's socket another peer that sends it, and says so. The steps are those of `sockets::renewal`; the renewer may die
//! after any of them.
//!
//! What must hold: each byte reaches somebody once, in order, and nobody is told of a clean end before all are out.

use std::sync::Arc;

use loom::sync::atomic::AtomicBool;
use loom::sync::{Condvar, Mutex};
use loom::thread;
use sgm_ring::layout::FIN;
use sgm_ring::sync::AtomicU32;
use sgm_ring::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::explore;
use crate::wire::Line;

const BYTES: [u8; 2] = [1, 2];
/// Steps after which a renewer may die; it lives on after all of them.
const STEPS: u32 = BYTES.len() as u32 + 6;
const NEVER: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Rules {
    /// Has the ring frozen before anything is taken.
    freeze: bool,
    /// Takes the ring's end for the stream's only when nobody is at a renewal.
    await_renewer: bool,
    /// Says that the kernel's socket has the rest after it has.
    say_last: bool,
}

const RIGHT: Rules = Rules {
    freeze: true,
    await_renewer: true,
    say_last: true,
};

/// What the kernel's socket is.
enum Socket {
    Old,
    Dissolved,
    /// Connected to a helper that has sent this, and has ended.
    Renewed(std::collections::VecDeque<u8>),
}

/// The receiving end, as several processes hold it.
struct Held {
    line: Arc<Line>,
    rules: Rules,
    renewer: AtomicU32,
    /// A renewal has begun.
    renewed: AtomicBool,
    back: AtomicBool,
    corrupt: AtomicBool,
    socket: Mutex<Socket>,
    /// Threads that died.
    dead: Mutex<Vec<u32>>,
    changed: Condvar,
}

#[derive(Debug, PartialEq)]
enum Said {
    Byte(u8),
    End,
    Reset,
}

impl Held {
    fn new(rules: Rules) -> Arc<Self> {
        let line = Line::new(BYTES.len());
        line.tx().switch_up(0);
        line.rx().pass(1, 0);
        assert_eq!(line.write(&BYTES), BYTES.len());
        line.tx().finish(false);
        Arc::new(Held {
            line,
            rules,
            renewer: AtomicU32::new(0),
            renewed: AtomicBool::new(false),
            back: AtomicBool::new(false),
            corrupt: AtomicBool::new(false),
            socket: Mutex::new(Socket::Old),
            dead: Mutex::new(Vec::new()),
            changed: Condvar::new(),
        })
    }

    fn is_back(&self) -> bool {
        self.back.load(Acquire)
    }

    /// Whoever sleeps on the word looks again.
    fn tell(&self) {
        drop(self.dead.lock().unwrap());
        self.changed.notify_all();
    }

    fn recv(&self, me: u32) -> Said {
        loop {
            if self.is_back() {
                return self.recv_from_kernel();
            }
            if let [byte] = self.line.read(1)[..] {
                return Said::Byte(byte);
            }
            if self.is_back() {
                continue;
            }
            let rx = self.line.rx();
            if self.rules.freeze && self.renewed.load(Acquire) {
                if self.renewer.load(Relaxed) != me {
                    return self.after_renewal();
                }
                let mut byte = [0];
                let bufs = &mut [std::io::IoSliceMut::new(&mut byte)];
                if rx.read_frozen(bufs, 0, false) == Ok(1) {
                    return Said::Byte(byte[0]);
                }
            } else if rx.is_moved() {
                // The renewer is about to say that it is one. The engine comes by again, for the kernel's socket has ended.
                self.await_renewal();
                continue;
            } else if rx.readable() != Ok(0) {
                continue;
            }
            assert!(rx.flags() & FIN != 0 && rx.readable() == Ok(0));
            if self.rules.await_renewer && ![0, me].contains(&self.renewer.load(Acquire)) {
                self.await_renewal();
            }
            match (self.is_back(), self.corrupt.load(Relaxed)) {
                (true, _) => {}
                (false, true) => return Said::Reset,
                (false, false) => return Said::End,
            }
        }
    }

    fn after_renewal(&self) -> Said {
        self.await_renewal();
        match self.is_back() {
            true => self.recv_from_kernel(),
            false => Said::Reset,
        }
    }

    fn recv_from_kernel(&self) -> Said {
        match &mut *self.socket.lock().unwrap() {
            Socket::Renewed(bytes) => bytes.pop_front().map_or(Said::End, Said::Byte),
            _ => panic!("a socket without a peer is given out"),
        }
    }

    fn await_renewal(&self) -> bool {
        loop {
            let mut dead = self.dead.lock().unwrap();
            let renewer = self.renewer.load(Acquire);
            if renewer == 0 {
                return true;
            }
            if !dead.contains(&renewer) {
                dead = self.changed.wait(dead).unwrap();
            }
            let lost = dead.contains(&renewer);
            drop(dead);
            let word = &self.renewer;
            if lost && word.compare_exchange(renewer, 0, AcqRel, Relaxed).is_ok() {
                self.tell();
                if !self.renewed.load(Acquire) {
                    return true;
                }
                self.corrupt.store(true, Relaxed);
                return false;
            }
        }
    }

    /// Makes the kernel's socket whole. False: it died after `steps` steps.
    fn renew(&self, me: u32, steps: u32) -> bool {
        let mut left = steps;
        let mut dies = || {
            left -= 1;
            left == 0
        };
        loop {
            if self.is_back() {
                return true;
            }
            let word = &self.renewer;
            if word.compare_exchange(0, me, AcqRel, Relaxed).is_ok() {
                break;
            }
            if !self.await_renewal() {
                return true;
            }
        }
        if dies() {
            return self.die(me);
        }
        if self.renewed.load(Relaxed) {
            // It was not done, and what it took nobody has.
            self.renewer.store(0, Release);
            self.tell();
            return true;
        }
        if self.rules.freeze {
            self.renewed.store(true, Release);
            assert!(self.line.rx().freeze());
            if dies() {
                return self.die(me);
            }
        }
        let mut taken = std::collections::VecDeque::new();
        let whole = loop {
            match self.recv(me) {
                Said::Byte(byte) => taken.push_back(byte),
                said => break said == Said::End,
            }
            if dies() {
                return self.die(me);
            }
        };
        if !self.rules.say_last {
            self.back.store(true, Release);
        }
        *self.socket.lock().unwrap() = Socket::Dissolved;
        if dies() {
            return self.die(me);
        }
        if whole {
            *self.socket.lock().unwrap() = Socket::Renewed(taken);
            if dies() {
                return self.die(me);
            }
            self.back.store(true, Release);
        } else {
            self.corrupt.store(true, Relaxed);
        }
        if dies() {
            return self.die(me);
        }
        self.renewer.store(0, Release);
        self.tell();
        true
    }

    fn die(&self, me: u32) -> bool {
        self.dead.lock().unwrap().push(me);
        self.changed.notify_all();
        false
    }

    /// All that one reader gets, and how it ends.
    fn read_on(&self, me: u32) -> (Vec<u8>, Said) {
        let mut bytes = Vec::new();
        loop {
            match self.recv(me) {
                Said::Byte(byte) => bytes.push(byte),
                end => return (bytes, end),
            }
        }
    }
}

/// A reader beside a renewer that dies after so many steps.
fn reader_beside(rules: Rules, steps: u32) {
    let held = Held::new(rules);
    let other = held.clone();
    let renewer = thread::spawn(move || other.renew(2, steps));
    let (bytes, end) = held.read_on(1);
    let lived = renewer.join().unwrap();
    if end == Said::End {
        assert_eq!(bytes.len(), BYTES.len(), "a clean end, and bytes were lost");
    }
    assert!(BYTES.starts_with(&bytes), "not in order: {bytes:?}");
    assert!(end == Said::End || !lived, "a reset, and nobody died");
}

#[test]
fn renewer_beside_a_reader() {
    explore(4, || reader_beside(RIGHT, NEVER));
}

#[test]
fn renewer_that_dies_at_any_step() {
    for steps in 1..=STEPS {
        explore(3, move || reader_beside(RIGHT, steps));
    }
}

/// Two want to give the socket away at once, and then each reads it; the first may die after so many steps.
fn two_renewers(rules: Rules, steps: u32) {
    let held = Held::new(rules);
    let other = held.clone();
    let first = thread::spawn(move || other.renew(2, steps).then(|| other.read_on(2)));
    let lives = held.renew(1, NEVER);
    assert!(lives);
    let (mut bytes, end) = held.read_on(1);
    let first = first.join().unwrap();
    let both_end = first.as_ref().is_none_or(|f| f.1 == Said::End) && end == Said::End;
    bytes.extend(first.iter().flat_map(|f| f.0.iter().copied()));
    bytes.sort_unstable();
    match both_end {
        true => assert_eq!(bytes, BYTES, "a clean end, and bytes were lost"),
        false => assert!(first.is_none(), "a reset, and nobody died"),
    }
    assert!(BYTES.starts_with(&bytes), "{bytes:?}");
}

#[test]
fn two_renewers_at_once() {
    explore(3, || two_renewers(RIGHT, NEVER));
}

#[test]
fn two_renewers_and_one_dies() {
    for steps in 1..=STEPS {
        explore(2, move || two_renewers(RIGHT, steps));
    }
}

/// Two readers beside a renewer that dies: the first that finds it says what was lost, and the second must not find less.
fn two_readers_beside(rules: Rules, steps: u32) {
    let held = Held::new(rules);
    assert!(!held.renew(3, steps), "it dies before they look");
    let other = held.clone();
    let reader = thread::spawn(move || other.read_on(2));
    let mine = held.read_on(1);
    let theirs = reader.join().unwrap();
    let all: Vec<_> = [&mine.0[..], &theirs.0[..]].concat();
    for end in [mine.1, theirs.1] {
        assert!(
            end == Said::Reset || all.len() == BYTES.len(),
            "a clean end, and bytes were lost"
        );
    }
}

#[test]
fn two_readers_after_a_dead_renewer() {
    for steps in 1..STEPS {
        explore(3, move || two_readers_beside(RIGHT, steps));
    }
}

#[test]
#[should_panic(expected = "not in order")]
fn broken_leaving_the_ring_to_others_is_caught() {
    let rules = Rules {
        freeze: false,
        ..RIGHT
    };
    explore(3, move || reader_beside(rules, NEVER));
}

#[test]
#[should_panic(expected = "a clean end, and bytes were lost")]
fn broken_believing_a_ring_that_a_renewer_emptied_is_caught() {
    let rules = Rules {
        freeze: false,
        await_renewer: false,
        ..RIGHT
    };
    explore(3, move || reader_beside(rules, NEVER));
}

#[test]
#[should_panic(expected = "a socket without a peer is given out")]
fn broken_giving_the_socket_out_before_it_has_the_rest_is_caught() {
    let rules = Rules {
        say_last: false,
        ..RIGHT
    };
    explore(3, move || reader_beside(rules, NEVER));
}
