//! Random sequences of operations on a ring, against a queue that cannot be wrong.

#![cfg(not(loom))]
#![allow(unsafe_code)] // `heap` lays a ring over ordinary memory.

mod heap;

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};

use heap::{Heap, PAGE};
use proptest::prelude::*;
use sgm_ring::layout::{WANT_BELL, WANT_FUTEX};
use sgm_ring::sync::Ordering::Relaxed;
use sgm_ring::{ReadCache, WriteCache};

const UNTOUCHED: u8 = 0xEE;

#[derive(Clone, Debug)]
enum Op {
    /// Buffers of these lengths, from byte `skip` on.
    Write {
        lens: Vec<usize>,
        skip: usize,
    },
    Read {
        lens: Vec<usize>,
        skip: usize,
        peek: bool,
    },
    Discard(usize),
    Room(usize),
    WantSpace(u32),
    SpaceDue,
}

fn lens() -> impl Strategy<Value = Vec<usize>> {
    let len = prop_oneof![Just(0), 1..16_usize, 1..2 * PAGE];
    prop::collection::vec(len, 0..5)
}

fn op() -> impl Strategy<Value = Op> {
    let skip = prop_oneof![Just(0), 0..32_usize, 0..PAGE];
    let read = (lens(), skip.clone(), any::<bool>());
    prop_oneof![
        4 => (lens(), skip).prop_map(|(lens, skip)| Op::Write { lens, skip }),
        4 => read.prop_map(|(lens, skip, peek)| Op::Read { lens, skip, peek }),
        1 => (0..2 * PAGE).prop_map(Op::Discard),
        1 => (0..2 * PAGE).prop_map(Op::Room),
        1 => prop::sample::select(vec![WANT_FUTEX, WANT_BELL]).prop_map(Op::WantSpace),
        1 => Just(Op::SpaceDue),
    ]
}

/// Where a ring's positions start: at zero, close to where the offset wraps, and far out.
fn start() -> impl Strategy<Value = u64> {
    let turn = prop_oneof![Just(0_u64), 1..4_u64, Just(1 << 20), Just(1 << 50)];
    let before = prop_oneof![Just(0_u64), 1..16_u64, 0..PAGE as u64];
    (turn, before).prop_map(|(turn, before)| (turn * PAGE as u64).saturating_sub(before))
}

/// A ring and the queue that says what it must do.
struct Pair {
    heap: Heap,
    write_cache: WriteCache,
    read_cache: ReadCache,
    queue: VecDeque<u8>,
    written: u64,
    wanted: u32,
}

impl Pair {
    fn new(start: u64) -> Self {
        let heap = Heap::new(PAGE);
        heap.direction.writer.tail.store(start, Relaxed);
        heap.direction.reader.head.store(start, Relaxed);
        Self {
            heap,
            write_cache: WriteCache::default(),
            read_cache: ReadCache::default(),
            queue: VecDeque::new(),
            written: start,
            wanted: 0,
        }
    }

    fn free(&self) -> usize {
        PAGE - self.queue.len()
    }

    fn write(&mut self, lens: &[usize], skip: usize) {
        // The byte at a position says which position it is, so that a byte out of place is noticed.
        let first = self.written.wrapping_sub(skip as u64);
        let mark = |i: usize| {
            let position = first.wrapping_add(i as u64);
            (position ^ position >> 8 ^ position >> 12) as u8
        };
        let total: usize = lens.iter().sum();
        let bytes: Vec<u8> = (0..total).map(mark).collect();
        let mut rest = &bytes[..];
        let bufs: Vec<IoSlice<'_>> = lens
            .iter()
            .map(|&n| {
                let (buf, tail) = rest.split_at(n);
                rest = tail;
                IoSlice::new(buf)
            })
            .collect();
        let want = total.saturating_sub(skip);
        // A small message goes in whole or not at all.
        let n = match want {
            _ if want <= self.free() => want,
            _ if want <= PAGE / 4 => 0,
            _ => self.free(),
        };
        assert_eq!(self.heap.tx().write(&self.write_cache, &bufs, skip), Ok(n));
        self.queue.extend(bytes.iter().skip(skip).take(n));
        self.written += n as u64;
    }

    fn read(&mut self, lens: &[usize], skip: usize, peek: bool) {
        let mut bufs: Vec<Vec<u8>> = lens.iter().map(|&n| vec![UNTOUCHED; n]).collect();
        let mut slices: Vec<IoSliceMut<'_>> = bufs.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let total: usize = lens.iter().sum();
        let n = total.saturating_sub(skip).min(self.queue.len());
        let read = self
            .heap
            .rx()
            .read(&self.read_cache, &mut slices, skip, peek);
        assert_eq!(read, Ok(n));
        let mut expected = vec![UNTOUCHED; total];
        for (slot, &byte) in expected
            .iter_mut()
            .skip(skip)
            .zip(self.queue.iter().take(n))
        {
            *slot = byte;
        }
        assert_eq!(bufs.concat(), expected);
        if !peek {
            self.queue.drain(..n);
        }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Write { lens, skip } => self.write(lens, *skip),
            Op::Read { lens, skip, peek } => self.read(lens, *skip, *peek),
            Op::Discard(max) => {
                let n = self.queue.len().min(*max);
                assert_eq!(self.heap.rx().discard(*max), Ok(n));
                self.queue.drain(..n);
            }
            Op::Room(want) => {
                // The cache may underestimate, but not below what was asked for.
                let room = self.heap.tx().room(&self.write_cache, *want).unwrap();
                assert!(room <= self.free());
                assert!(room == self.free() || room >= *want, "{room}, asked {want}");
            }
            Op::WantSpace(kind) => {
                let seq = self.heap.tx().want_space(*kind);
                assert_eq!(seq, self.heap.direction.wait.space_seq.load(Relaxed));
                self.wanted |= kind;
            }
            Op::SpaceDue => {
                let seq = self.heap.direction.wait.space_seq.load(Relaxed);
                let due = self.wanted != 0 && self.free() >= PAGE / 4;
                let expected = if due {
                    std::mem::take(&mut self.wanted)
                } else {
                    0
                };
                assert_eq!(self.heap.rx().space_due(), expected);
                let after = self.heap.direction.wait.space_seq.load(Relaxed);
                assert_eq!(after, seq + u32::from(due));
            }
        }
        assert_eq!(self.heap.rx().readable(), Ok(self.queue.len()));
        assert_eq!(self.heap.tx().unread(), Ok(self.queue.len() as u64));
        assert_eq!(self.heap.tx().position(), self.written);
        assert_eq!(self.heap.rx().published(), self.written);
    }
}

/// Writes and reads of random lengths, with turns wherever they are due: still a queue, of so many bytes as both areas have.
fn overflows_as_a_queue(start: u64, most: u64, steps: &[(usize, usize, bool)]) {
    const OVERFLOW: usize = 4 * PAGE;
    let heap = Heap::with_overflow(PAGE, OVERFLOW);
    heap.direction.writer.tail.store(start, Relaxed);
    heap.direction.reader.head.store(start, Relaxed);
    let (tx, rx) = (heap.tx(), heap.rx());
    let (writes, reads) = (WriteCache::default(), ReadCache::default());
    let (mut written, mut queue) = (0_usize, VecDeque::new());
    for (write, read, peek) in steps {
        tx.stop_overflow(most);
        let bytes: Vec<u8> = (written..written + write)
            .map(|i| (i ^ i >> 8 ^ i >> 12) as u8)
            .collect();
        let put = |skip| tx.write(&writes, &[IoSlice::new(&bytes)], skip).unwrap();
        let mut n = put(0);
        if n < *write && tx.overflow() {
            n += put(n);
            let few = n < *write;
            assert!(
                !few || queue.len() + n > OVERFLOW - PAGE / 4,
                "refused early"
            );
        }
        written += n;
        queue.extend(&bytes[..n]);
        assert!(queue.len() <= PAGE + OVERFLOW);
        assert_eq!(rx.readable(), Ok(queue.len()));
        let room = tx.room(&writes, usize::MAX).unwrap();
        assert!(room + queue.len() <= PAGE + OVERFLOW);

        let n = queue.len().min(*read);
        let mut got = vec![UNTOUCHED; *read];
        let bufs = &mut [IoSliceMut::new(&mut got)];
        assert_eq!(rx.read(&reads, bufs, 0, *peek), Ok(n));
        assert!(got[..n].iter().eq(queue.iter().take(n)));
        // Who moves what is unread finds the same bytes.
        let mut moved = vec![UNTOUCHED; n];
        let head = tx.position() - queue.len() as u64;
        tx.copy(head, &mut moved);
        assert_eq!(moved, got[..n]);
        if !peek {
            queue.drain(..n);
        }
    }
}

proptest! {
    #[test]
    fn overflow_is_a_queue(
        start in start(),
        most in 0..2 * PAGE as u64,
        steps in prop::collection::vec((0..2 * PAGE, 0..2 * PAGE, any::<bool>()), 1..100),
    ) {
        overflows_as_a_queue(start, most, &steps);
    }

    #[test]
    fn ring_is_a_queue(start in start(), ops in prop::collection::vec(op(), 1..60)) {
        let mut pair = Pair::new(start);
        for op in &ops {
            pair.run(op);
        }
    }

    /// The same with small pieces, which pass the wrap at every offset.
    #[test]
    fn small_pieces_pass_the_wrap(
        start in start(),
        lens in prop::collection::vec((1..300_usize, 1..300_usize), 100),
    ) {
        let mut pair = Pair::new(start);
        for (w, r) in lens {
            pair.run(&Op::Write { lens: vec![w / 2, w - w / 2], skip: 0 });
            pair.run(&Op::Read { lens: vec![r], skip: 0, peek: true });
            pair.run(&Op::Read { lens: vec![r / 3, r - r / 3], skip: 0, peek: false });
        }
    }
}

#[test]
fn full_and_empty_at_every_offset() {
    for start in 0..PAGE as u64 {
        let mut pair = Pair::new(start);
        pair.run(&Op::Write {
            lens: vec![1, PAGE - 1, 1],
            skip: 0,
        });
        assert_eq!(pair.free(), 0);
        pair.run(&Op::Write {
            lens: vec![1],
            skip: 0,
        });
        pair.run(&Op::Read {
            lens: vec![PAGE + 1],
            skip: 0,
            peek: false,
        });
        pair.run(&Op::Read {
            lens: vec![1],
            skip: 0,
            peek: false,
        });
    }
}

/// A long message comes out in parts, in order; a part that another reader would have to follow on gives nothing.
#[test]
fn parts_follow_each_other() {
    const RING: usize = 16 * PAGE;
    let part = sgm_ring::part_bytes(RING as u64);
    let heap = Heap::new(RING);
    let (tx, rx) = (heap.tx(), heap.rx());
    let (writes, reads) = (WriteCache::default(), ReadCache::default());
    let sent: Vec<u8> = (0..RING - 100).map(|i| (i * 7) as u8).collect();
    assert_eq!(tx.write(&writes, &[IoSlice::new(&sent)], 0), Ok(sent.len()));
    let mut got = vec![UNTOUCHED; RING];
    let (mut done, mut at) = (0, None);
    while done < sent.len() {
        let mut bufs = [IoSliceMut::new(&mut got)];
        let read = rx
            .read_part(&reads, &mut bufs, done, false, at, part as u64)
            .unwrap();
        assert_eq!(read.bytes, part.min(sent.len() - done));
        done += read.bytes;
        at = Some(read.next);
    }
    assert_eq!(got[..done], sent);
    assert!(got[done..].iter().all(|b| *b == UNTOUCHED));
    // Somebody else took what comes next.
    assert_eq!(tx.write(&writes, &[IoSlice::new(b"next")], 0), Ok(4));
    assert_eq!(rx.discard(2), Ok(2));
    let mut bufs = [IoSliceMut::new(&mut got)];
    let late = rx.read_part(&reads, &mut bufs, 0, false, at, part as u64);
    assert_eq!(late.unwrap().bytes, 0);
    assert_eq!(rx.readable(), Ok(2));
}
