//! The byte stream: once, in order, complete; with one reader, two readers, and a reader that peeks.

use std::io::IoSlice;

use loom::thread;
use sgm_ring::bytes::Turns;
use sgm_ring::sync::Ordering::{AcqRel, Acquire, Relaxed};

use crate::explore;
use crate::wire::{Line, touch};

/// Writes `bytes` piece by piece, waiting for room.
fn write_all(line: &Line, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let n = line.write(bytes);
        bytes = &bytes[n..];
        if n == 0 {
            thread::yield_now();
        }
    }
}

fn read_exactly(line: &Line, count: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < count {
        let piece = line.read(count - got.len());
        if piece.is_empty() {
            thread::yield_now();
        }
        got.extend(piece);
    }
    got
}

#[test]
fn stream_wraps_in_order() {
    explore(3, || {
        let line = Line::new(2);
        let writer = line.clone();
        let writer = thread::spawn(move || {
            write_all(&writer, &[1, 2, 3]);
            write_all(&writer, &[4, 5]);
        });
        assert_eq!(read_exactly(&line, 5), [1, 2, 3, 4, 5]);
        writer.join().unwrap();
    });
}

#[test]
fn gathered_write_is_visible_at_once() {
    explore(3, || {
        let line = Line::new(4);
        let writer = line.clone();
        let writer = thread::spawn(move || {
            let bufs = [
                IoSlice::new(&[9, 1]),
                IoSlice::new(&[]),
                IoSlice::new(&[2, 3]),
            ];
            touch(&writer.direction.writer.tail);
            assert_eq!(writer.tx().write(&writer.write_cache, &bufs, 1), Ok(3));
        });
        let got = line.read(4);
        // INV-3: all of a write or nothing of it.
        assert!(got.is_empty() || got == [1, 2, 3], "{got:?}");
        writer.join().unwrap();
    });
}

/// Two readers and a writer that wraps; what they took, in order of position, is what was written.
fn two_readers(read: fn(&Line) -> Vec<u8>) {
    let line = Line::new(2);
    let threads = [line.clone(), line.clone()].map(|line| thread::spawn(move || read(&line)));
    let mut written = line.write(&[1, 2]);
    written += line.write(&[3, 4][..]);
    let mut all = Vec::new();
    for t in threads {
        let part = t.join().unwrap();
        assert!(
            part.is_sorted(),
            "one reader's bytes out of order: {part:?}"
        );
        all.extend(part);
    }
    all.extend(line.read(2));
    all.sort_unstable();
    let expected: Vec<u8> = (1..=written as u8).collect();
    assert_eq!(all, expected);
}

#[test]
fn two_readers_take_each_byte_once() {
    explore(3, || {
        two_readers(|line| {
            let mut got = line.read(1);
            got.extend(line.read(2));
            got
        });
    });
}

#[test]
fn two_readers_discard_and_read() {
    explore(3, || {
        let line = Line::new(2);
        let other = line.clone();
        let discards = thread::spawn(move || other.rx().discard(1).unwrap());
        let written = line.write(&[1, 2]) + line.write(&[3]);
        let got = line.read(2);
        let discarded = discards.join().unwrap();
        let rest = line.read(2);
        assert_eq!(got.len() + discarded + rest.len(), written);
        assert!(
            got.iter().chain(&rest).is_sorted_by(|a, b| a < b),
            "{got:?} {rest:?}"
        );
    });
}

#[test]
fn peek_takes_nothing() {
    explore(3, || {
        let line = Line::new(2);
        let writer = line.clone();
        let writer = thread::spawn(move || write_all(&writer, &[1, 2, 3]));
        let peeked = line.peek(2);
        assert!([1, 2].starts_with(&peeked), "{peeked:?}");
        assert_eq!(read_exactly(&line, 3), [1, 2, 3]);
        assert!(line.peek(1).is_empty());
        writer.join().unwrap();
    });
}

/// Bytes that one reader peeks while another takes them and the writer writes over them: still neighbours.
#[test]
fn peek_is_not_torn_by_another_reader() {
    explore(3, || {
        let line = Line::new(2);
        assert_eq!(line.write(&[1, 2]), 2);
        let peeker = line.clone();
        let peeker = thread::spawn(move || peeker.peek(2));
        let taker = line.clone();
        let taker = thread::spawn(move || assert_eq!(taker.read(2), [1, 2]));
        line.write(&[3, 4]);
        let peeked = peeker.join().unwrap();
        taker.join().unwrap();
        assert!(
            peeked.is_empty() || peeked == [1, 2] || peeked == [3, 4],
            "peeked {peeked:?}: the halves of two different messages"
        );
    });
}

/// The read cache is shared by the threads of a process: who learns of bytes from it must see the bytes.
#[test]
fn cached_tail_comes_with_its_bytes() {
    explore(3, || {
        let line = Line::new(2);
        let threads = [line.clone(), line.clone()].map(|line| {
            thread::spawn(move || {
                let peeked = line.peek(1);
                assert!(
                    peeked.is_empty() || peeked == [1],
                    "stale bytes: {peeked:?}"
                );
            })
        });
        line.write(&[1]);
        for t in threads {
            t.join().unwrap();
        }
    });
}

/// Two threads of the writing end: one asks for room without the lock, while the other writes and the peer reads.
#[test]
fn room_beside_another_writer_is_not_corrupt() {
    explore(3, || {
        let line = Line::new(2);
        assert_eq!(line.write(&[1, 2]), 2);
        let asker = line.clone();
        let asker = thread::spawn(move || {
            assert!(
                asker.tx().room(&asker.write_cache, 2).is_ok(),
                "a sound ring called corrupt"
            );
            assert!(asker.tx().unread().is_ok(), "a sound ring called corrupt");
        });
        let reader = line.clone();
        let reader = thread::spawn(move || {
            reader.read(2);
            reader.read(2);
        });
        line.write(&[3, 4]);
        asker.join().unwrap();
        reader.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "not what was written")]
fn broken_publish_before_copy_is_caught() {
    explore(3, || {
        let line = Line::new(2);
        let writer = line.clone();
        let writer = thread::spawn(move || {
            let tx = writer.tx();
            tx.publish(2);
            tx.bytes.put(Turns::default(), 0, &[1, 2]);
        });
        let got = line.read(2);
        assert!(
            got.is_empty() || got == [1, 2],
            "not what was written: {got:?}"
        );
        writer.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "not what was written")]
fn broken_relaxed_publish_is_caught() {
    explore(3, || {
        let line = Line::new(2);
        let writer = line.clone();
        let writer = thread::spawn(move || {
            let tx = writer.tx();
            tx.bytes.put(Turns::default(), 0, &[1, 2]);
            tx.direction.writer.tail.store(2, Relaxed);
        });
        let got = line.read(2);
        assert!(
            got.is_empty() || got == [1, 2],
            "not what was written: {got:?}"
        );
        writer.join().unwrap();
    });
}

/// A reader that takes by adding instead of by comparing: two of them take a byte twice.
#[test]
#[should_panic(expected = "Corrupt")]
fn broken_take_without_compare_is_caught() {
    explore(3, || {
        two_readers(|line| {
            let rx = line.rx();
            let head = rx.direction.reader.head.load(Acquire);
            let n = rx.published().wrapping_sub(head).min(2) as usize;
            let mut out = vec![0; n];
            rx.bytes.get(Turns::default(), head, &mut out);
            rx.direction.reader.head.fetch_add(n as u64, AcqRel);
            out
        });
    });
}
