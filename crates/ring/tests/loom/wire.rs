//! One direction of a modelled connection: the ring, and the TCP stream that carries its doorbells.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, OnceLock};

use loom::sync::atomic::AtomicU8;
use loom::sync::{Condvar, Mutex};
use sgm_ring::bytes::{Area, Bytes};
use sgm_ring::sync::Ordering::Relaxed;
use sgm_ring::sync::{AtomicU32, AtomicU64};
use sgm_ring::{Direction, ReadCache, Rx, Tx, WriteCache};

/// What a doorbell looks like on the stream. No payload byte of any model is zero.
pub const BELL: u8 = 0;

/// Tells loom that the calling thread is about to change `word`, by a compare-and-swap that never matches.
///
/// loom remembers only the last access to a word. A thread that loads a word and then stores to it hides thereby the
/// load of another thread before, and loom would not try the store before that load. So every step that loads and
/// then stores touches the word first. It has no effect on memory.
pub fn touch(word: &AtomicU64) {
    let _ = word.compare_exchange(u64::MAX, u64::MAX, Relaxed, Relaxed);
}

/// [`touch`] for the narrow words.
pub fn touch32(word: &AtomicU32) {
    let _ = word.compare_exchange(u32::MAX, u32::MAX, Relaxed, Relaxed);
}

/// The kernel's TCP stream: bytes come out in order, and a sleeper sees whether it is readable *now* (poll, epoll and
/// a blocking recv all look again when they are woken).
#[derive(Default)]
pub struct Stream {
    state: Mutex<StreamState>,
    arrived: Condvar,
}

#[derive(Default)]
struct StreamState {
    queue: VecDeque<u8>,
    /// Bytes that ever arrived: what an edge-triggered waiter is woken by.
    arrivals: usize,
    ended: bool,
}

impl Stream {
    pub fn send(&self, byte: u8) {
        let mut state = self.state.lock().unwrap();
        state.queue.push_back(byte);
        state.arrivals += 1;
        self.arrived.notify_all();
    }

    /// The sending process is gone: nothing follows.
    pub fn end(&self) {
        let mut state = self.state.lock().unwrap();
        state.ended = true;
        self.arrived.notify_all();
    }

    pub fn is_ended(&self) -> bool {
        self.state.lock().unwrap().ended
    }

    /// Bytes that were ever sent.
    pub fn sent(&self) -> u64 {
        self.state.lock().unwrap().arrivals as u64
    }

    /// Takes at most `max` bytes.
    pub fn recv(&self, max: usize) -> Vec<u8> {
        let queue = &mut self.state.lock().unwrap().queue;
        let n = max.min(queue.len());
        queue.drain(..n).collect()
    }

    pub fn peek(&self, max: usize) -> Vec<u8> {
        self.state
            .lock()
            .unwrap()
            .queue
            .iter()
            .take(max)
            .copied()
            .collect()
    }

    /// Sleeps until the stream is readable, or has ended.
    pub fn sleep_readable(&self) {
        let mut state = self.state.lock().unwrap();
        while state.queue.is_empty() && !state.ended {
            state = self.arrived.wait(state).unwrap();
        }
    }

    /// Sleeps until more than `seen` bytes have arrived; how many have?
    pub fn sleep_edge(&self, seen: usize) -> usize {
        let mut state = self.state.lock().unwrap();
        while state.arrivals == seen {
            state = self.arrived.wait(state).unwrap();
        }
        state.arrivals
    }
}

/// What both ends of a direction share.
pub struct Line {
    pub direction: Direction,
    cells: Box<[AtomicU8]>,
    overflow: Box<[AtomicU8]>,
    /// Of both, from the first use on.
    bytes: OnceLock<Bytes<'static>>,
    pub stream: Stream,
    pub write_cache: WriteCache,
    pub read_cache: ReadCache,
    switched: (Mutex<()>, Condvar),
}

impl Line {
    pub fn new(capacity: usize) -> Arc<Self> {
        Self::with_overflow(capacity, 0)
    }

    pub fn with_overflow(capacity: usize, overflow: usize) -> Arc<Self> {
        let cells = |n| (0..n).map(|_| AtomicU8::new(0)).collect();
        Arc::new(Self {
            direction: Direction::default(),
            cells: cells(capacity),
            overflow: cells(overflow),
            bytes: OnceLock::new(),
            stream: Stream::default(),
            write_cache: WriteCache::default(),
            read_cache: ReadCache::default(),
            switched: Default::default(),
        })
    }

    #[allow(unsafe_code)]
    fn bytes(&self) -> &Bytes<'_> {
        self.bytes.get_or_init(|| {
            // SAFETY: the cells stay where they are as long as `self`, which nobody outlives who asks for these.
            let lasting = |cells: &[AtomicU8]| unsafe { &*std::ptr::from_ref(cells) };
            let overflow =
                (!self.overflow.is_empty()).then(|| Area::model(lasting(&self.overflow)));
            Bytes::new(Area::model(lasting(&self.cells)), overflow)
        })
    }

    pub fn tx(&self) -> Tx<'_> {
        Tx {
            direction: &self.direction,
            bytes: self.bytes(),
        }
    }

    pub fn rx(&self) -> Rx<'_> {
        Rx {
            direction: &self.direction,
            bytes: self.bytes(),
        }
    }

    /// Waits until the writer has made a switch that it has begun.
    pub fn await_switch(&self, made: impl Fn() -> bool) {
        let mut guard = self.switched.0.lock().unwrap();
        while !made() {
            guard = self.switched.1.wait(guard).unwrap();
        }
    }

    pub fn tell_switch(&self) {
        let _guard = self.switched.0.lock().unwrap();
        self.switched.1.notify_all();
    }

    /// Writes what fits, without ringing.
    pub fn write(&self, bytes: &[u8]) -> usize {
        touch(&self.direction.writer.tail);
        self.tx()
            .write(&self.write_cache, &[IoSlice::new(bytes)], 0)
            .unwrap()
    }

    /// Reads at most `max` bytes.
    pub fn read(&self, max: usize) -> Vec<u8> {
        self.read_as(max, false)
    }

    pub fn peek(&self, max: usize) -> Vec<u8> {
        self.read_as(max, true)
    }

    fn read_as(&self, max: usize, peek: bool) -> Vec<u8> {
        if !peek {
            touch(&self.direction.reader.head);
        }
        let mut out = vec![0; max];
        let n = self
            .rx()
            .read(&self.read_cache, &mut [IoSliceMut::new(&mut out)], 0, peek)
            .unwrap();
        out.truncate(n);
        out
    }
}
