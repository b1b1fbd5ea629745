//! A peer that writes nonsense into the shared words (INV-4): every answer stays in bounds or is [`Corrupt`], nothing
//! panics, and nothing outside the ring is touched.

#![cfg(not(loom))]
#![allow(unsafe_code)] // `heap` lays a ring over ordinary memory.

mod heap;

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use heap::{Heap, PAGE};
use proptest::prelude::*;
use sgm_ring::layout::{self, Areas, MAGIC, MOVED, RING_BYTES_MAX, RING_BYTES_MIN};
use sgm_ring::sync::Ordering::Relaxed;
use sgm_ring::{Corrupt, Decision, Direction, Key, ReadCache, SegmentHeader, VERSION, WriteCache};

#[derive(Clone, Debug)]
enum Op {
    Write(usize),
    Read(usize, bool),
    Discard(usize),
    /// Every call that takes no bytes.
    Ask,
    Poke(usize, u64),
    /// Sets a word to another one's value and a bit more: nonsense that is nearly sound.
    Near(usize, usize, i64),
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![Just(0), 1..64_usize, 0..3 * PAGE];
    let value = prop_oneof![
        any::<u64>(),
        Just(u64::MAX),
        (0..64_u32).prop_map(|shift| 1 << shift),
        0..2 * PAGE as u64,
        u64::MAX - 2 * PAGE as u64..=u64::MAX,
    ];
    let word = prop_oneof![0..2_usize, 0..WORDS];
    let off = prop_oneof![-2..3_i64, -(PAGE as i64) - 1..PAGE as i64 + 2];
    prop_oneof![
        3 => len.clone().prop_map(Op::Write),
        3 => (len.clone(), any::<bool>()).prop_map(|(len, peek)| Op::Read(len, peek)),
        1 => len.prop_map(Op::Discard),
        1 => Just(Op::Ask),
        2 => (word.clone(), value).prop_map(|(word, value)| Op::Poke(word, value)),
        4 => (word, 0..6_usize, off).prop_map(|(to, from, off)| Op::Near(to, from, off)),
    ]
}

/// The overflow area, and both areas.
const OVERFLOW: usize = 4 * PAGE;
const ALL: usize = PAGE + OVERFLOW;

/// Shared words of a direction; the first six are positions.
const WORDS: usize = 22;

fn poke(d: &Direction, word: usize, value: u64) {
    let narrow = value as u32;
    match word {
        0 => d.writer.tail.store(value, Relaxed),
        1 => d.reader.head.store(value, Relaxed),
        2 => d.writer.up.store(value, Relaxed),
        3 => d.writer.down.store(value, Relaxed),
        4 => d.writer.ring_from.store(value, Relaxed),
        5 => d.writer.overflow_from.store(value, Relaxed),
        6 => d.writer.bells_sent.store(narrow, Relaxed),
        7 => d.wait.bells_taken.store(narrow, Relaxed),
        8 => d.wait.sleepers.store(narrow, Relaxed),
        9 => d.wait.asks.store(narrow, Relaxed),
        10 => d.wait.space_wanted.store(narrow, Relaxed),
        11 => d.writer.switches.store(narrow, Relaxed),
        12 => d.writer.moved.store(narrow, Relaxed),
        13 => d.wait.passed.store(narrow, Relaxed),
        14 => d.wait.at.store(value, Relaxed),
        15 => d.wait.edge.store(narrow, Relaxed),
        16 => d.writer.send_buffer.store(narrow, Relaxed),
        17 => d.wait.receive_buffer.store(narrow, Relaxed),
        18 => d.writer.down_tcp.store(value, Relaxed),
        19 => d.writer.flags.store(narrow, Relaxed),
        20 => d.writer.turned.store(narrow, Relaxed),
        _ => d.wait.space_seq.store(narrow, Relaxed),
    }
}

fn position(d: &Direction, word: usize) -> u64 {
    match word {
        0 => d.writer.tail.load(Relaxed),
        1 => d.reader.head.load(Relaxed),
        2 => d.writer.up.load(Relaxed),
        4 => d.writer.ring_from.load(Relaxed),
        5 => d.writer.overflow_from.load(Relaxed),
        _ => d.writer.down.load(Relaxed),
    }
}

struct Ends<'a> {
    heap: &'a Heap,
    write_cache: WriteCache,
    read_cache: ReadCache,
    buf: Vec<u8>,
}

impl<'a> Ends<'a> {
    fn new(heap: &'a Heap) -> Self {
        let (write_cache, read_cache) = Default::default();
        Self {
            heap,
            write_cache,
            read_cache,
            buf: vec![7; 3 * PAGE],
        }
    }

    fn run(&mut self, op: &Op) {
        let (tx, rx) = (self.heap.tx(), self.heap.rx());
        match *op {
            Op::Write(len) => {
                let (a, b) = self.buf[..len].split_at(len / 3);
                let bufs = [IoSlice::new(a), IoSlice::new(b)];
                bounded(tx.write(&self.write_cache, &bufs, 0), len);
            }
            Op::Read(len, peek) => {
                let (a, b) = self.buf[..len].split_at_mut(len / 3);
                let bufs = &mut [IoSliceMut::new(a), IoSliceMut::new(b)];
                bounded(rx.read(&self.read_cache, bufs, 0, peek), len);
            }
            Op::Discard(max) => bounded(rx.discard(max), max),
            Op::Ask => self.ask(),
            Op::Poke(word, value) => poke(&self.heap.direction, word, value),
            Op::Near(to, from, off) => {
                let d = &self.heap.direction;
                poke(d, to, position(d, from).wrapping_add_signed(off));
            }
        }
    }

    fn ask(&self) {
        let (tx, rx) = (self.heap.tx(), self.heap.rx());
        bounded(rx.readable(), ALL);
        bounded(tx.room(&self.write_cache, PAGE), ALL);
        bounded(tx.room(&self.write_cache, 1), ALL);
        bounded(tx.unread().map(|n| n as usize), ALL);
        assert!(rx.bells_untaken() <= i32::MAX as usize);
        if tx.bell_due() || tx.bell_under_way() {
            tx.count_bell();
            tx.uncount_bell();
        }
        tx.want_space(tx.asks());
        rx.arm(tx.position());
        let _ = rx.arm_edge(tx.position(), tx.position());
        rx.listen(tx.position(), tx.asks(), tx.position());
        if tx.is_awaited() && tx.listener().is_some() {
            tx.ring_instead();
        }
        rx.leave_queue(tx.position());
        rx.disarm();
        rx.space_due();
        rx.release_writer();
        rx.ask(rx.flags());
        for passed in 0..3 {
            let (_, _) = (rx.up_at(passed), rx.down_at(passed));
        }
        tx.finish(tx.finished());
        tx.stop_overflow(0);
        if tx.overflow() {
            let mut piece = [0; 100];
            tx.copy(tx.peer_head(), &mut piece);
        }
        if tx.all_passed() && !tx.is_moved() {
            let moved = tx.switch_down(tx.position());
            bounded(moved.map(|(from, to)| to.wrapping_sub(from) as usize), ALL);
            tx.all_moved();
        } else if tx.all_passed() {
            tx.switch_up(tx.direction.last_down().0);
        }
    }
}

/// An answer never promises more than the areas hold, nor more than was asked for.
fn bounded(answer: Result<usize, Corrupt>, asked: usize) {
    if let Ok(n) = answer {
        assert!(n <= ALL && n <= asked, "{n} of {asked}");
    }
}

proptest! {
    #[test]
    fn nonsense_is_corrupt_or_harmless(ops in prop::collection::vec(op(), 1..200)) {
        let heap = Heap::with_overflow(PAGE, OVERFLOW);
        let mut ends = Ends::new(&heap);
        for op in &ops {
            ends.run(op);
        }
    }

    /// A distance beyond the ring's size is always noticed.
    #[test]
    fn impossible_distance_is_corrupt(head in 0..MOVED, excess in PAGE as u64 + 1..MOVED) {
        let heap = Heap::new(PAGE);
        poke(&heap.direction, 0, head.wrapping_add(excess));
        poke(&heap.direction, 1, head);
        let (write_cache, read_cache) = (WriteCache::default(), ReadCache::default());
        let mut buf = [0; 8];
        let mut bufs = [IoSliceMut::new(&mut buf)];
        prop_assert_eq!(heap.rx().readable(), Err(Corrupt));
        prop_assert_eq!(heap.rx().read(&read_cache, &mut bufs, 0, false), Err(Corrupt));
        prop_assert_eq!(heap.rx().discard(1), Err(Corrupt));
        prop_assert_eq!(heap.tx().unread(), Err(Corrupt));
        // The cached head (zero) may be believed, if it is possible.
        if head.wrapping_add(excess) > PAGE as u64 {
            let bufs = [IoSlice::new(&[1])];
            prop_assert_eq!(heap.tx().room(&write_cache, 1), Err(Corrupt));
            prop_assert_eq!(heap.tx().write(&write_cache, &bufs, 0), Err(Corrupt));
        }
        prop_assert_eq!(position(&heap.direction, 1), head);
    }
}

/// Positions never get this far by themselves; a peer can put them there.
#[test]
fn end_of_the_number_range() {
    for before in 0..20 {
        let heap = Heap::new(PAGE);
        poke(&heap.direction, 0, u64::MAX - before);
        poke(&heap.direction, 1, u64::MAX - before);
        let mut ends = Ends::new(&heap);
        for len in [3, 5, 1, PAGE] {
            ends.run(&Op::Write(len));
            ends.run(&Op::Read(len, true));
            ends.run(&Op::Read(len / 2, false));
            ends.run(&Op::Discard(len));
            ends.run(&Op::Ask);
        }
    }
}

/// Ends the scribbling, also when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Scribbles over the words from another thread, as a live peer would, in the middle of operations.
#[test]
fn scribbling_peer() {
    let heap = Heap::with_overflow(PAGE, OVERFLOW);
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            let mut x = 0x9E37_79B9_7F4A_7C15_u64;
            while !done.load(Relaxed) {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let word = (x >> 33) as usize % WORDS;
                let near = position(&heap.direction, (x >> 40) as usize % 6);
                let value = if x >> 63 == 0 {
                    near.wrapping_add(x >> 51)
                } else {
                    x.rotate_left(17)
                };
                poke(&heap.direction, word, value);
            }
        });
        let _done = Done(&done);
        let mut ends = Ends::new(&heap);
        for i in 0..20_000_usize {
            let len = i.wrapping_mul(2_654_435_761) % (3 * PAGE);
            ends.run(&Op::Write(len));
            ends.run(&Op::Read(len, i % 3 == 0));
            ends.run(&Op::Discard(len));
            ends.run(&Op::Ask);
        }
    });
}

/// How many words the peer of `many_words` stores, if SGM_HOSTILE_WORDS does not say.
const MANY_WORDS: u64 = 5_000_000;
/// No call waits for a peer, so this is for the machine's other work alone.
const LONGEST: Duration = Duration::from_secs(5);

/// Every call ends in time, whatever a peer stores meanwhile: values that are nearly sound, the same words again and
/// again, in the middle of a call.
#[test]
fn many_words() {
    let asked = std::env::var("SGM_HOSTILE_WORDS").ok();
    let asked = asked.map(|text| text.parse::<u64>().expect("SGM_HOSTILE_WORDS is a number"));
    let words = asked.unwrap_or(MANY_WORDS);
    let heap = Heap::with_overflow(PAGE, OVERFLOW);
    let done = AtomicBool::new(false);
    let (mut calls, mut longest) = (0_u64, Duration::ZERO);
    thread::scope(|s| {
        s.spawn(|| {
            let mut x = 0x2545_F491_4F6C_DD1D_u64;
            let mut one = 0;
            for stored in 0..words {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                if stored % 1024 == 0 {
                    // For a while only one word, as fast as can be; or all.
                    one = (x >> 20) as usize % (2 * WORDS);
                }
                let word = if one < WORDS {
                    one
                } else {
                    (x >> 33) as usize % WORDS
                };
                let near = position(&heap.direction, (x >> 40) as usize % 6);
                let value = match x >> 61 {
                    0 => x.rotate_left(29),
                    1 => MOVED | near,
                    2 => near.wrapping_sub(PAGE as u64 + 1),
                    3 => u64::MAX - (x >> 50) % 8,
                    _ => near.wrapping_add((x >> 45) % (2 * PAGE as u64)),
                };
                poke(&heap.direction, word, value);
            }
            done.store(true, Relaxed);
        });
        let mut ends = Ends::new(&heap);
        while !done.load(Relaxed) {
            let len = (calls as usize).wrapping_mul(2_654_435_761) % (3 * PAGE);
            for op in [
                Op::Write(len),
                Op::Read(len, calls % 3 == 0),
                Op::Discard(len),
                Op::Ask,
            ] {
                let start = Instant::now();
                ends.run(&op);
                longest = longest.max(start.elapsed());
                calls += 1;
            }
        }
    });
    println!("{words} words, {calls} calls, the longest took {longest:?}");
    assert!(calls > 0 && longest < LONGEST, "{longest:?}");
}

/// A header as a peer could leave it, and the size of the mapping.
#[derive(Clone, Debug)]
struct Header {
    magic: u64,
    version: u32,
    ring_bytes: u32,
    decision: u32,
    key: [u64; 5],
    mapped: usize,
}

/// Sound, but for some fields.
fn header(right: [u64; 5]) -> impl Strategy<Value = Header> {
    let magic = prop_oneof![9 => Just(MAGIC), 1 => any::<u64>(), 1 => Just(0)];
    let version = prop_oneof![9 => Just(VERSION), 1 => any::<u32>()];
    let ring_bytes = prop_oneof![
        6 => (12..=26_u32).prop_map(|shift| 1 << shift),
        1 => (0..32_u32).prop_map(|shift| 1 << shift),
        2 => any::<u32>(),
    ];
    let decision = prop_oneof![6 => 1..=4_u32, 1 => Just(0), 1 => any::<u32>()];
    let key = prop_oneof![9 => Just(right), 2 => any::<[u64; 5]>(), 2 => (0..5_usize, 0..64_u32)
    .prop_map(move |(word, bit)| {
        let mut key = right;
        key[word] ^= 1 << bit;
        key
    })];
    let mapped = prop_oneof![
        3 => Just(Areas::new(RING_BYTES_MAX, true).segment_bytes()),
        3 => (12..27_u32).prop_map(|shift| Areas::new(1 << shift, false).segment_bytes()),
        2 => 0..Areas::new(RING_BYTES_MAX, true).segment_bytes(),
    ];
    (magic, version, ring_bytes, decision, key, mapped).prop_map(
        |(magic, version, ring_bytes, decision, key, mapped)| Header {
            magic,
            version,
            ring_bytes,
            decision,
            key,
            mapped,
        },
    )
}

fn key() -> Key {
    Key {
        client_addr: *b"client of a test",
        server_addr: *b"server of a test",
        client_port: 40_000,
        server_port: 80,
        netns: 0xF000_0001,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn header_is_believed_only_if_sound(h in header(key().words())) {
        let header = SegmentHeader::default();
        header.magic.store(h.magic, Relaxed);
        header.version.store(h.version, Relaxed);
        header.ring_bytes.store(h.ring_bytes, Relaxed);
        header.decision.store(h.decision, Relaxed);
        for (slot, word) in header.key.iter().zip(h.key) {
            slot.store(word, Relaxed);
        }
        let n = h.ring_bytes as usize;
        let fits = n.is_power_of_two()
            && (RING_BYTES_MIN..=RING_BYTES_MAX).contains(&n)
            && layout::DATA_OFFSET + 2 * n <= h.mapped;
        let known = h.magic == MAGIC && h.version == VERSION && h.key == key().words();
        let sound = fits && known && h.decision != 0;
        let expected = if sound { Ok(n) } else { Err(Corrupt) };
        prop_assert_eq!(header.check(&key(), h.mapped), expected);

        // A decision that does not exist can't be moved, and says so.
        let decided = header.decision();
        prop_assert_eq!(decided.is_ok(), (1..=4).contains(&h.decision));
        prop_assert_eq!(header.claim(), decided == Ok(Decision::Offered));
        prop_assert_eq!(
            header.confirm(),
            matches!(decided, Ok(Decision::Offered | Decision::Claimed))
        );
        prop_assert!(!header.withdraw());
    }
}
