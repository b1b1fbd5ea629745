//! Turns between the ring and the overflow area: each byte once, in order, from where it was written.

use std::ops::RangeInclusive;

use loom::thread;
use sgm_ring::sync::Ordering::Release;

use crate::explore;
use crate::wire::Line;

/// How the writer turns.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    Right,
    /// Back to the ring while bytes are unread there.
    Early,
}

/// Writes these bytes, and turns wherever it can, back with `most` bytes unread. Returns how many found room.
fn write_turning(line: &Line, bytes: RangeInclusive<u8>, most: u64, turn: Turn) -> usize {
    let tx = line.tx();
    let mut written = 0;
    for byte in bytes {
        tx.stop_overflow(most);
        let mut n = line.write(&[byte]);
        if n == 0 {
            if !tx.overflow() && turn == Turn::Early {
                let ring_from = &line.direction.writer.ring_from;
                ring_from.store(tx.position(), Release);
            }
            n = line.write(&[byte]);
        }
        if n == 0 {
            break;
        }
        written += n;
    }
    written
}

/// Two readers beside a writer; what they took is what was written.
fn readers_and_writer(last: u8, most: u64, turn: Turn) {
    let line = Line::with_overflow(1, 1);
    // Two bytes wait, one in each area.
    assert_eq!(write_turning(&line, 1..=2, most, turn), 2);
    let other = line.clone();
    let reader = thread::spawn(move || other.read(2));
    let other = line.clone();
    let writer = thread::spawn(move || write_turning(&other, 3..=last, most, turn));
    let mut parts = vec![line.read(1)];
    let written = 2 + writer.join().unwrap();
    parts.push(reader.join().unwrap());
    // The rest, over a border too.
    parts.push(line.read(4));
    let mut all = parts.concat();
    all.sort_unstable();
    let expected: Vec<u8> = (1..=written as u8).collect();
    assert_eq!(all, expected, "not what was written: {parts:?}");
    assert!(
        parts.iter().all(|p| p.is_sorted()),
        "out of order: {parts:?}"
    );
}

#[test]
fn each_byte_once() {
    explore(3, || readers_and_writer(4, 0, Turn::Right));
}

/// The writer goes back to the ring while a byte is unread in the overflow area.
#[test]
fn each_byte_once_with_a_rest() {
    explore(2, || readers_and_writer(5, 1, Turn::Right));
}

#[test]
#[should_panic(expected = "not what was written")]
fn broken_turn_over_unread_bytes_is_caught() {
    explore(3, || readers_and_writer(4, 0, Turn::Early));
}

/// A peek over the border gives neighbours, or nothing.
#[test]
fn peek_over_the_border_is_not_torn() {
    explore(2, || {
        let line = Line::with_overflow(2, 2);
        assert_eq!(write_turning(&line, 1..=4, 0, Turn::Right), 4);
        let other = line.clone();
        let peeker = thread::spawn(move || other.peek(4));
        let other = line.clone();
        let writer = thread::spawn(move || {
            other.tx().stop_overflow(0);
            other.write(&[5])
        });
        let mut got = line.read(3);
        let peeked = peeker.join().unwrap();
        let all = [1, 2, 3, 4, 5];
        let neighbours = |from: usize| all[from..].starts_with(&peeked);
        assert!(neighbours(0) || neighbours(3), "peeked {peeked:?}");
        let written = 4 + writer.join().unwrap();
        got.extend(line.read(4));
        assert_eq!(got, all[..written]);
    });
}
