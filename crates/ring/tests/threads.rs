//! Real threads on a small ring: what the models prove for a few bytes, at length.

#![cfg(not(loom))]
#![allow(unsafe_code)] // `heap` lays a ring over ordinary memory.

mod heap;

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use heap::{Heap, PAGE};
use sgm_ring::sync::Ordering::Relaxed;
use sgm_ring::{ReadCache, WriteCache};

/// A seeded sequence (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Mostly small, sometimes more than a ring.
    fn len(&mut self) -> usize {
        let x = self.next();
        let max = if x & 7 == 0 { 6000 } else { 300 };
        1 + (x >> 8) as usize % max
    }

    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The stream's bytes, made in blocks so that both ends can make them alike.
struct Blocks {
    random: Random,
    block: [u8; 1024],
    used: usize,
}

impl Blocks {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            block: [0; 1024],
            used: 1024,
        }
    }

    fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            if self.used == self.block.len() {
                self.random.fill(&mut self.block);
                self.used = 0;
            }
            let n = out.len().min(self.block.len() - self.used);
            out[..n].copy_from_slice(&self.block[self.used..self.used + n]);
            self.used += n;
            out = &mut out[n..];
        }
    }
}

#[test]
fn stream_arrives_as_it_was_sent() {
    const TOTAL: usize = 64 << 20;
    let heap = Heap::new(PAGE);
    thread::scope(|s| {
        s.spawn(|| {
            let (cache, mut blocks, mut sizes) = (WriteCache::default(), Blocks::new(1), Random(2));
            let mut left = TOTAL;
            while left > 0 {
                let mut message = vec![0; sizes.len().min(left)];
                blocks.fill(&mut message);
                let (a, b) = message.split_at(sizes.len() % message.len());
                let mut done = 0;
                while done < message.len() {
                    let bufs = [IoSlice::new(a), IoSlice::new(b)];
                    let n = heap.tx().write(&cache, &bufs, done).unwrap();
                    if n == 0 {
                        thread::yield_now();
                    }
                    done += n;
                }
                left -= message.len();
            }
        });
        let (cache, mut blocks, mut sizes) = (ReadCache::default(), Blocks::new(1), Random(3));
        let (mut got, mut expected) = (vec![0; 8192], vec![0; 8192]);
        let mut left = TOTAL;
        while left > 0 {
            let (a, b) = got.split_at_mut(sizes.len());
            let second = sizes.len() % 2000;
            let bufs = &mut [IoSliceMut::new(a), IoSliceMut::new(&mut b[..second])];
            let n = heap.rx().read(&cache, bufs, 0, false).unwrap();
            if n == 0 {
                thread::yield_now();
                continue;
            }
            blocks.fill(&mut expected[..n]);
            assert!(got[..n] == expected[..n], "{left} bytes before the end");
            left -= n;
        }
    });
}

/// Streams the numbers `0..count`, eight bytes each, whole numbers at a time.
fn write_numbers(heap: &Heap, count: u64) {
    let (cache, mut sizes) = (WriteCache::default(), Random(4));
    let mut next = 0;
    while next < count {
        let end = count.min(next + 1 + sizes.next() % 64);
        let bytes: Vec<u8> = (next..end).flat_map(u64::to_le_bytes).collect();
        let n = heap.tx().write(&cache, &[IoSlice::new(&bytes)], 0).unwrap();
        if n == 0 {
            thread::yield_now();
        }
        next += n as u64 / 8;
    }
}

/// Reads what is there, at most `max` numbers; every one must follow the one before.
fn read_numbers(heap: &Heap, cache: &ReadCache, max: usize, peek: bool) -> std::ops::Range<u64> {
    let mut buf = [0; PAGE];
    // In small pieces, so that others get between them.
    let mut bufs: Vec<_> = buf[..max * 8].chunks_mut(8).map(IoSliceMut::new).collect();
    let n = heap.rx().read(cache, &mut bufs, 0, peek).unwrap();
    if n == 0 {
        thread::yield_now();
        return 0..0;
    }
    let mut numbers = buf[..n]
        .chunks(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()));
    let first = numbers.next().unwrap();
    let end = numbers.fold(first + 1, |next, number| {
        assert_eq!(number, next, "not one piece of the stream");
        next + 1
    });
    first..end
}

/// Two readers share the stream, a third peeks; the writing end has a second thread that only asks for room.
#[test]
fn readers_share_a_stream() {
    const COUNT: u64 = 1 << 20;
    let heap = Heap::new(PAGE);
    let cache = ReadCache::default();
    let seen: Vec<AtomicU64> = (0..COUNT / 64).map(|_| AtomicU64::new(0)).collect();
    let taken = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        let reader = |seed| {
            let mut sizes = Random(seed);
            let mut last = 0;
            while taken.load(Relaxed) < COUNT {
                let numbers = read_numbers(&heap, &cache, 1 + sizes.next() as usize % 100, false);
                taken.fetch_add(numbers.end - numbers.start, Relaxed);
                for number in numbers {
                    assert!(number >= last, "one reader's numbers go back");
                    last = number;
                    let bit = 1 << (number % 64);
                    let before = seen[number as usize / 64].fetch_or(bit, Relaxed);
                    assert_eq!(before & bit, 0, "{number} came twice");
                }
            }
        };
        let readers = [s.spawn(move || reader(5)), s.spawn(move || reader(6))];
        s.spawn(|| {
            let mut last = 0;
            while !done.load(Relaxed) {
                let peeked = read_numbers(&heap, &cache, PAGE / 8, true);
                assert!(peeked.is_empty() || peeked.start >= last, "peeked back");
                last = last.max(peeked.start);
            }
        });
        s.spawn(|| {
            let cache = WriteCache::default();
            while !done.load(Relaxed) {
                assert!(
                    heap.tx().room(&cache, PAGE).is_ok(),
                    "a sound ring called corrupt"
                );
                assert!(heap.tx().unread().is_ok(), "a sound ring called corrupt");
            }
        });
        write_numbers(&heap, COUNT);
        for reader in readers {
            reader.join().unwrap();
        }
        done.store(true, Relaxed);
    });
    assert!(seen.iter().all(|word| word.load(Relaxed) == u64::MAX));
}
