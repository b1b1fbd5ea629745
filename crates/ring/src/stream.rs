//! One direction of a connection as a byte stream: writing, reading, and the sleep/wake protocol.
//!
//! Sleep and wake (INV-5), with the doorbell being one byte on the connection's TCP stream:
//!
//! ```text
//!   reader                                     writer
//!   ring empty? bells_taken += n   (rmw)       copy bytes in
//!   ring still empty? take n bells off TCP     publish tail            (read-modify-write)
//!   sleepers += 1          (rmw)               sleepers != 0 ?
//!   ring still empty?  ──▶ sleep on TCP        and no bell under way (bells_sent <= bells_taken)?
//!   ...                                            ──▶ bells_sent += 1, send one byte
//!   sleepers -= 1
//! ```
//!
//! An edge-triggered waiter (a member of an epoll set) sets `edge` instead of counting itself in `sleepers`; the
//! writer takes it and rings, even if bells lie on the stream already, for those give no new edge.
//!
//! 1. Bells are taken off TCP only while the ring is empty, under the reading end's lock: as long as there are bytes
//!    after a bell, the descriptor stays readable for every waiter, ours or foreign.
//! 2. A bell under way is as good as a new one, because it will be seen before anybody sleeps again.
//! 3. A bell is counted before it is sent: once it can be seen on the stream, it can be taken.
//! 4. Both sides store first and look second, with a full barrier between: one of them sees the other.

use std::io::{IoSlice, IoSliceMut};

use crate::Corrupt;
use crate::bytes::Bytes;
use crate::layout::{self, Direction};
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{AtomicU64, barrier_after_rmw};

/// The writer's copy of the reader's `head`. Only ever behind the truth, so room is underestimated, never over.
#[derive(Default)]
pub struct WriteCache(AtomicU64);
/// The reader's copy of the writer's `tail`.
#[derive(Default)]
pub struct ReadCache(AtomicU64);

/// The writing end of a direction.
#[derive(Clone, Copy)]
pub struct Tx<'a> {
    pub direction: &'a Direction,
    pub bytes: Bytes<'a>,
}

/// A read or write of more than so much of a ring is done in parts: a quarter, and not less than a page.
pub fn part_bytes(ring_bytes: u64) -> usize {
    (ring_bytes as usize / 4).max(4096)
}

/// What [`Rx::read_part`] took, and where the ring goes on.
#[derive(Clone, Copy)]
pub struct Part {
    pub bytes: usize,
    pub next: u64,
}

/// The reading end of a direction.
#[derive(Clone, Copy)]
pub struct Rx<'a> {
    pub direction: &'a Direction,
    pub bytes: Bytes<'a>,
}

/// Whom to wake after bytes were taken (bits of [`layout::WANT_FUTEX`], [`layout::WANT_BELL`]).
pub type SpaceWanted = u32;

impl Tx<'_> {
    /// Bytes published so far. Acquire for those who ask without the writing end's lock: with it they see the room that
    /// the writer had found.
    #[inline]
    pub fn position(&self) -> u64 {
        self.direction.writer.tail.load(Acquire)
    }

    /// Room for how many bytes? Looks at the peer's `head` only if the cached one leaves less than `want`.
    #[inline]
    pub fn room(&self, cache: &WriteCache, want: usize) -> Result<usize, Corrupt> {
        let capacity = self.bytes.capacity();
        loop {
            let tail = self.position();
            let used = tail.wrapping_sub(cache.0.load(Acquire));
            if used <= capacity && capacity - used >= want as u64 {
                return Ok((capacity - used) as usize);
            }
            let head = self.direction.reader.head.load(Acquire) & !layout::FROZEN;
            let used = tail.wrapping_sub(head);
            if used <= capacity {
                cache.0.store(head, Release);
                return Ok((capacity - used) as usize);
            }
            // Asked without the writing end's lock: another thread may have written, and the peer read that, between
            // the two loads. If nobody wrote, it is nonsense.
            if self.position() == tail {
                return Err(Corrupt);
            }
        }
    }

    /// Copies as much as fits and publishes it. The caller holds the writing end's lock. Returns the bytes taken,
    /// from byte `skip` of `bufs` on.
    #[inline]
    pub fn write(
        &self,
        cache: &WriteCache,
        bufs: &[IoSlice<'_>],
        mut skip: usize,
    ) -> Result<usize, Corrupt> {
        let want = bufs
            .iter()
            .map(|b| b.len())
            .sum::<usize>()
            .saturating_sub(skip);
        let mut room = self.room(cache, want)?;
        let start = self.position();
        let mut tail = start;
        // A long write is published in parts, so that the reader copies one while the next is written.
        let part = part_bytes(self.bytes.capacity());
        let mut published = start;
        'bufs: for buf in bufs {
            if skip >= buf.len() {
                skip -= buf.len();
                continue;
            }
            for piece in buf[skip..].chunks(part) {
                let n = piece.len().min(room);
                self.bytes.put(tail, &piece[..n]);
                tail = tail.wrapping_add(n as u64);
                room -= n;
                if room == 0 {
                    break 'bufs;
                }
                if tail.wrapping_sub(published) >= part as u64 {
                    self.publish(tail);
                    published = tail;
                }
            }
            skip = 0;
        }
        if tail != published {
            self.publish(tail);
        }
        Ok(tail.wrapping_sub(start) as usize)
    }

    /// Makes everything before `tail` visible, at once and for good (INV-3).
    #[inline]
    pub fn publish(&self, tail: u64) {
        // A read-modify-write instead of a store: it is also the barrier before `bell_due` looks for sleepers.
        self.direction.writer.tail.swap(tail, AcqRel);
        barrier_after_rmw();
    }

    /// After `publish` (or `finish`, `switch_down`): must a doorbell be sent?
    #[inline]
    pub fn bell_due(&self) -> bool {
        let wait = &self.direction.wait;
        let edge = wait.edge.load(Relaxed) != 0 && wait.edge.swap(0, AcqRel) != 0;
        edge || wait.sleepers.load(Relaxed) != 0 && !self.bell_under_way()
    }

    /// Is a doorbell on its way that the reader has not taken yet?
    pub fn bell_under_way(&self) -> bool {
        let taken = self.direction.wait.bells_taken.load(Acquire);
        let sent = self.direction.writer.bells_sent.load(Relaxed);
        (sent.wrapping_sub(taken) as i32) > 0
    }

    /// A doorbell byte is about to be sent for this direction's reader. Caller holds the writing end's lock.
    pub fn count_bell(&self) {
        let sent = &self.direction.writer.bells_sent;
        sent.store(sent.load(Relaxed).wrapping_add(1), Release);
    }

    /// It could not be sent.
    pub fn uncount_bell(&self) {
        let sent = &self.direction.writer.bells_sent;
        sent.store(sent.load(Relaxed).wrapping_sub(1), Release);
    }

    /// Asks the reader to wake us when it has made room; then look at `room` again before sleeping.
    /// Returns the value of `space_seq` to sleep on.
    pub fn want_space(&self, kinds: SpaceWanted) -> u32 {
        let seq = self.direction.wait.space_seq.load(Acquire);
        self.direction.wait.space_wanted.fetch_or(kinds, AcqRel);
        barrier_after_rmw();
        seq
    }

    /// From position `tcp` of the TCP stream on, this direction's bytes are in the ring.
    pub fn switch_up(&self, tcp: u64) {
        self.direction.writer.up.store(tcp + 1, Release);
    }

    /// Everything published so far is the last of the ring; the bytes after it start at position `tcp` of the stream.
    pub fn switch_down(&self, tcp: u64) {
        self.switch_down_at(self.direction.writer.tail.load(Relaxed), tcp);
    }

    /// As [`Tx::switch_down`], but the bytes from position `ring` on will come over TCP as well: for a reading end that
    /// froze there.
    pub fn switch_down_at(&self, ring: u64, tcp: u64) {
        let w = &self.direction.writer;
        w.down_tcp.store(tcp, Relaxed);
        w.down.swap(ring.wrapping_add(1), AcqRel);
        barrier_after_rmw();
    }

    /// What the reading end has taken.
    pub fn peer_head(&self) -> u64 {
        self.direction.reader.head.load(Acquire) & !layout::FROZEN
    }

    /// Has the reading end stopped for good?
    pub fn peer_froze(&self) -> bool {
        self.direction.reader.head.load(Acquire) & layout::FROZEN != 0
    }

    /// Nothing follows. With `reset` the peer gets ECONNRESET after the last byte instead of end-of-file.
    pub fn finish(&self, reset: bool) {
        let flags = if reset {
            layout::FIN | layout::RESET
        } else {
            layout::FIN
        };
        self.direction.writer.flags.fetch_or(flags, AcqRel);
        barrier_after_rmw();
    }

    pub fn finished(&self) -> bool {
        self.direction.writer.flags.load(Relaxed) & layout::FIN != 0
    }

    /// What the reading end asks for ([`layout::READ_CLOSED`], [`layout::PLEASE_DOWN`]).
    #[inline]
    pub fn asks(&self) -> u32 {
        self.direction.wait.asks.load(Acquire)
    }

    /// Published bytes that the peer has not taken.
    pub fn unread(&self) -> Result<u64, Corrupt> {
        loop {
            let tail = self.position();
            let used = tail.wrapping_sub(self.peer_head());
            if used <= self.bytes.capacity() {
                return Ok(used);
            }
            // As in `room`.
            if self.position() == tail {
                return Err(Corrupt);
            }
        }
    }
}

impl Rx<'_> {
    /// Bytes taken so far.
    #[inline]
    pub fn position(&self) -> u64 {
        self.direction.reader.head.load(Acquire) & !layout::FROZEN
    }

    /// Takes nothing any more, for good: a read that is under way takes nothing either.
    pub fn freeze(&self) {
        self.direction.reader.head.fetch_or(layout::FROZEN, AcqRel);
    }

    pub fn is_frozen(&self) -> bool {
        self.direction.reader.head.load(Relaxed) & layout::FROZEN != 0
    }

    /// Bytes published so far. Not checked: compare with [`Rx::readable`].
    #[inline]
    pub fn published(&self) -> u64 {
        self.direction.writer.tail.load(Acquire)
    }

    /// Bytes ready to be read.
    #[inline]
    pub fn readable(&self) -> Result<usize, Corrupt> {
        loop {
            if self.is_frozen() {
                return Ok(0);
            }
            let head = self.position();
            let ready = self.published().wrapping_sub(head);
            if ready <= self.bytes.capacity() {
                return Ok(ready as usize);
            }
            // Another reader of this end may have moved between the two loads; if nobody did, it is nonsense.
            if self.position() == head {
                return Err(Corrupt);
            }
        }
    }

    /// Copies out what is there, at most `bufs` hold, and takes it unless `peek`. Zero: the ring is empty.
    #[inline]
    pub fn read(
        &self,
        cache: &ReadCache,
        bufs: &mut [IoSliceMut<'_>],
        skip: usize,
        peek: bool,
    ) -> Result<usize, Corrupt> {
        let most = u64::MAX;
        self.read_part(cache, bufs, skip, peek, None, most)
            .map(|part| part.bytes)
    }

    /// As [`Rx::read`], but at most `most` bytes, and (with `at`) only if the ring's head is there: what another reader took
    /// meanwhile ends a read in parts. Taking in parts lets the writer go on while the rest is copied.
    #[inline]
    pub fn read_part(
        &self,
        cache: &ReadCache,
        bufs: &mut [IoSliceMut<'_>],
        skip: usize,
        peek: bool,
        at: Option<u64>,
        most: u64,
    ) -> Result<Part, Corrupt> {
        let none = Part { bytes: 0, next: 0 };
        let want = bufs
            .iter()
            .map(|b| b.len())
            .sum::<usize>()
            .saturating_sub(skip) as u64;
        loop {
            let head = self.direction.reader.head.load(Acquire);
            if head & layout::FROZEN != 0 || at.is_some_and(|at| at != head) {
                return Ok(none);
            }
            // Acquire: the thread that left this tail here has acquired the bytes before it, not we.
            let mut ready = cache.0.load(Acquire).wrapping_sub(head);
            if ready < want || ready > self.bytes.capacity() {
                let tail = self.published();
                ready = tail.wrapping_sub(head);
                if ready == 0 {
                    return Ok(none);
                }
                if ready > self.bytes.capacity() {
                    if self.position() != head {
                        continue;
                    }
                    return Err(Corrupt);
                }
                cache.0.store(tail, Release);
            }
            let n = self.copy_out(head, ready.min(most), bufs, skip);
            // A peek takes nothing, but it must know as well that nobody took the bytes, and the writer wrote over
            // them, while they were copied.
            if n == 0 || self.take(head, if peek { 0 } else { n }) {
                return Ok(Part {
                    bytes: n,
                    next: head.wrapping_add(n as u64),
                });
            }
        }
    }

    #[inline]
    fn copy_out(
        &self,
        head: u64,
        ready: u64,
        bufs: &mut [IoSliceMut<'_>],
        mut skip: usize,
    ) -> usize {
        let mut position = head;
        let mut left = ready as usize;
        for buf in bufs {
            if skip >= buf.len() {
                skip -= buf.len();
                continue;
            }
            let piece = &mut buf[skip..];
            skip = 0;
            let n = piece.len().min(left);
            self.bytes.get(position, &mut piece[..n]);
            position = position.wrapping_add(n as u64);
            left -= n;
            if left == 0 {
                break;
            }
        }
        position.wrapping_sub(head) as usize
    }

    /// Takes `n` bytes at `head`. False: another reader of this end took them.
    #[inline]
    fn take(&self, head: u64, n: usize) -> bool {
        let taken = self
            .direction
            .reader
            .head
            .compare_exchange(head, head.wrapping_add(n as u64), AcqRel, Acquire)
            .is_ok();
        barrier_after_rmw();
        taken
    }

    /// Throws `max` bytes away at most (recv with MSG_TRUNC). Returns how many.
    pub fn discard(&self, max: usize) -> Result<usize, Corrupt> {
        loop {
            let head = self.position();
            let n = self.readable()?.min(max);
            if n == 0 || self.take(head, n) {
                return Ok(n);
            }
        }
    }

    /// After bytes were taken: does the writer wait for room, and is there enough to wake it for? A quarter of the
    /// ring at least, so that a full ring does not cost a wake-up per read.
    #[inline]
    pub fn space_due(&self) -> SpaceWanted {
        let wait = &self.direction.wait;
        if wait.space_wanted.load(Relaxed) == 0 {
            return 0;
        }
        let used = self.published().wrapping_sub(self.position());
        if used > self.bytes.capacity() / 4 * 3 {
            return 0;
        }
        let wanted = wait.space_wanted.swap(0, AcqRel);
        wait.space_seq.fetch_add(1, AcqRel);
        wanted
    }

    /// Before `n` bells, which are known to be on the TCP stream, are taken off it. Caller holds the reading end's lock.
    ///
    /// True: counted, take them. There is nothing to read, and whoever publishes from now on does not take these bells
    /// for under way any more. False: there is news that may count on these bells. They must stay on the stream, for
    /// everybody else who sleeps there.
    pub fn claim_bells(&self, n: u32) -> bool {
        self.direction.wait.bells_taken.fetch_add(n, AcqRel);
        barrier_after_rmw();
        if self.published() == self.position() && self.down_at().is_none() && self.flags() == 0 {
            return true;
        }
        self.unclaim_bells(n);
        false
    }

    /// So many bells fewer than claimed came off the stream.
    pub fn unclaim_bells(&self, n: u32) {
        self.direction.wait.bells_taken.fetch_sub(n, AcqRel);
    }

    /// About to sleep: look at the ring (and `switched_down`, `finished`) once more after this.
    pub fn arm(&self) {
        self.direction.wait.sleepers.fetch_add(1, AcqRel);
        barrier_after_rmw();
    }

    /// As [`Rx::arm`] for an edge-triggered waiter; needs no disarming.
    pub fn arm_edge(&self) {
        self.direction.wait.edge.swap(1, AcqRel);
        barrier_after_rmw();
    }

    /// Bells that the writer has counted and that are still on the stream (or about to be).
    pub fn bells_untaken(&self) -> usize {
        let sent = self.direction.writer.bells_sent.load(Acquire);
        let taken = self.direction.wait.bells_taken.load(Relaxed);
        usize::try_from(sent.wrapping_sub(taken) as i32).unwrap_or(0)
    }

    pub fn disarm(&self) {
        self.direction.wait.sleepers.fetch_sub(1, AcqRel);
    }

    /// Where on the TCP stream the ring takes over, if the writer has said so.
    #[inline]
    pub fn up_at(&self) -> Option<u64> {
        self.direction.writer.up.load(Acquire).checked_sub(1)
    }

    /// Where in the ring TCP takes over again, and from which position of the TCP stream.
    #[inline]
    pub fn down_at(&self) -> Option<(u64, u64)> {
        let w = &self.direction.writer;
        let ring = w.down.load(Acquire).checked_sub(1)?;
        Some((ring, w.down_tcp.load(Relaxed)))
    }

    /// The writer's flags; look at the ring again after seeing [`layout::FIN`], bytes may have come before it.
    #[inline]
    pub fn flags(&self) -> u32 {
        self.direction.writer.flags.load(Acquire)
    }

    /// Nothing follows what is published, in good order. A reset is in force only when the kernel says so too.
    #[inline]
    pub fn finished(&self) -> bool {
        self.flags() & (layout::FIN | layout::RESET) == layout::FIN
    }

    /// Tells the writer what we want ([`layout::READ_CLOSED`], [`layout::PLEASE_DOWN`]).
    pub fn ask(&self, what: u32) {
        self.direction.wait.asks.fetch_or(what, AcqRel);
    }

    /// Wakes a writer that sleeps for room whatever the fill, because the reading end goes away or changes.
    pub fn release_writer(&self) -> SpaceWanted {
        let wait = &self.direction.wait;
        let wanted = wait.space_wanted.swap(0, AcqRel);
        wait.space_seq.fetch_add(1, AcqRel);
        wanted
    }
}
