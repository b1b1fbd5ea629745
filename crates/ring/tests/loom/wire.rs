//! One direction of a modelled connection: the ring, and the TCP stream that carries its doorbells.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use loom::sync::atomic::AtomicU8;
use loom::sync::{Condvar, Mutex};
use sgm_ring::bytes::Bytes;
use sgm_ring::{Direction, ReadCache, Rx, Tx, WriteCache};

/// What a doorbell looks like on the stream. No payload byte of any model is zero.
pub const BELL: u8 = 0;

/// The kernel's TCP stream: bytes come out in order, and a sleeper sees whether it is readable *now* (poll, epoll and
/// a blocking recv all look again when they are woken).
#[derive(Default)]
pub struct Stream {
    queue: Mutex<VecDeque<u8>>,
    arrived: Condvar,
}

impl Stream {
    pub fn send(&self, byte: u8) {
        self.queue.lock().unwrap().push_back(byte);
        self.arrived.notify_all();
    }

    /// Takes at most `max` bytes.
    pub fn recv(&self, max: usize) -> Vec<u8> {
        let mut queue = self.queue.lock().unwrap();
        let n = max.min(queue.len());
        queue.drain(..n).collect()
    }

    pub fn peek(&self, max: usize) -> Vec<u8> {
        self.queue
            .lock()
            .unwrap()
            .iter()
            .take(max)
            .copied()
            .collect()
    }

    /// Sleeps until the stream is readable.
    pub fn sleep_readable(&self) {
        let mut queue = self.queue.lock().unwrap();
        while queue.is_empty() {
            queue = self.arrived.wait(queue).unwrap();
        }
    }
}

/// What both ends of a direction share.
pub struct Line {
    pub direction: Direction,
    cells: Box<[AtomicU8]>,
    pub stream: Stream,
    pub write_cache: WriteCache,
    pub read_cache: ReadCache,
}

impl Line {
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            direction: Direction::default(),
            cells: (0..capacity).map(|_| AtomicU8::new(0)).collect(),
            stream: Stream::default(),
            write_cache: WriteCache::default(),
            read_cache: ReadCache::default(),
        })
    }

    pub fn tx(&self) -> Tx<'_> {
        Tx {
            direction: &self.direction,
            bytes: Bytes::model(&self.cells),
        }
    }

    pub fn rx(&self) -> Rx<'_> {
        Rx {
            direction: &self.direction,
            bytes: Bytes::model(&self.cells),
        }
    }

    /// Writes what fits, without ringing.
    pub fn write(&self, bytes: &[u8]) -> usize {
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
        let mut out = vec![0; max];
        let n = self
            .rx()
            .read(&self.read_cache, &mut [IoSliceMut::new(&mut out)], 0, peek)
            .unwrap();
        out.truncate(n);
        out
    }

    /// The engine's send into the ring: writes all of `bytes` (there must be room), and rings if that is due.
    pub fn send(&self, bytes: &[u8]) {
        assert_eq!(
            self.write(bytes),
            bytes.len(),
            "the model's ring is too small"
        );
        if self.tx().bell_due() {
            self.ring_bell();
        }
    }

    pub fn ring_bell(&self) {
        self.stream.send(BELL);
        self.tx().count_bell();
    }
}
