//! One direction of a connection as a byte stream: writing, reading, switching paths. `wake` has the rest.

use std::io::{IoSlice, IoSliceMut};

use crate::Corrupt;
use crate::bytes::{Bytes, Turns};
use crate::layout::{self, Direction};
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{AtomicU64, barrier_after_rmw};

/// The writer's copy of the reader's `head`. Only ever behind the truth, so room is underestimated, never over.
#[derive(Default)]
pub struct WriteCache(AtomicU64);
/// The reader's copy of the writer's `tail`, and of `turned` after it: else each read would take the writer's cache line.
#[derive(Default)]
pub struct ReadCache(AtomicU64);
/// In it: look where the bytes are.
const TURNED: u64 = 1 << 63;

/// The writing end of a direction.
#[derive(Clone, Copy)]
pub struct Tx<'a> {
    pub direction: &'a Direction,
    pub bytes: &'a Bytes<'a>,
}

/// A read or write of more than so much of a ring is done in parts: a quarter, and not less than a page.
#[inline]
pub fn part_bytes(ring_bytes: u64) -> usize {
    (ring_bytes as usize / 4).max(4096)
}

/// Looks in a row that other threads of this end may spoil, by moving on between two loads. More is a peer that scribbles.
const LOOKS: u32 = 10_000;

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
    pub bytes: &'a Bytes<'a>,
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
        for _ in 0..LOOKS {
            let tail = self.position();
            let used = tail.wrapping_sub(cache.0.load(Acquire));
            let room = self.room_beside(tail, used);
            if used <= self.bytes.all() && room >= want as u64 {
                return Ok(room as usize);
            }
            let head = self.direction.reader.head.load(Acquire) & !layout::MOVED;
            let used = tail.wrapping_sub(head);
            if used <= self.bytes.all() {
                cache.0.store(head, Release);
                return Ok(self.room_beside(tail, used) as usize);
            }
            // Asked without the writing end's lock: another thread may have written, and the peer read that, between
            // the two loads. If nobody wrote, it is nonsense.
            if self.position() == tail {
                break;
            }
        }
        Err(Corrupt)
    }

    /// Room in the area that is written to, with `used` bytes unread before `tail`.
    #[inline]
    fn room_beside(&self, tail: u64, used: u64) -> u64 {
        match self.has_overflowed() {
            false => self.window().saturating_sub(used),
            true => self.room_after_turns(tail, used),
        }
    }

    /// Copies as much as fits and publishes it. The caller holds the writing end's lock. Returns the bytes taken,
    /// from byte `skip` of `bufs` on.
    #[inline]
    pub fn write(
        &self,
        cache: &WriteCache,
        bufs: &[IoSlice<'_>],
        skip: usize,
    ) -> Result<usize, Corrupt> {
        match self.has_overflowed() {
            false => self.write_in(Turns::default(), cache, bufs, skip),
            true => self.write_after_turns(cache, bufs, skip),
        }
    }

    #[cold]
    fn write_after_turns(
        self,
        cache: &WriteCache,
        bufs: &[IoSlice<'_>],
        skip: usize,
    ) -> Result<usize, Corrupt> {
        self.write_in(self.direction.turns(), cache, bufs, skip)
    }

    #[inline(always)] // One of the two is on the fast path, and knows its `turns`.
    fn write_in(
        &self,
        turns: Turns,
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
        if room < want && want as u64 <= self.window() / 4 {
            // A small message is not torn: between its halves another thread's could go.
            return Ok(0);
        }
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
                self.bytes.put(turns, tail, &piece[..n]);
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

    /// Has the reading end passed every switch? Only then may the ring take over (again).
    pub fn all_passed(&self) -> bool {
        let switches = self.direction.writer.switches.load(Relaxed);
        self.direction.wait.passed.load(Acquire) == switches
    }

    /// From position `tcp` of the TCP stream on, this direction's bytes are in the ring, which is empty. Only after
    /// [`Tx::all_passed`].
    pub fn switch_up(&self, tcp: u64) {
        let w = &self.direction.writer;
        // Nobody reads the ring now: the reading end is on the stream. Positions begin a lap further on, so that a read which
        // was held up since the ring was last in use takes nothing.
        let fresh = w.tail.load(Relaxed).wrapping_add(self.bytes.capacity()) & !layout::MOVED;
        if w.switches.load(Relaxed) != 0 {
            if self.has_overflowed() {
                self.begin_ring(fresh);
            }
            w.tail.store(fresh, Release);
            self.direction.reader.head.store(fresh, Release);
        }
        w.up.store(tcp, Relaxed);
        self.count_switch();
    }

    pub(crate) fn count_switch(&self) {
        let switches = &self.direction.writer.switches;
        switches.swap(switches.load(Relaxed).wrapping_add(1), AcqRel);
        barrier_after_rmw();
    }

    /// What is unread, and all that follows, goes over TCP: from position `tcp` of the stream on. Nobody takes anything from
    /// the ring any more. Returns the positions in the ring of the bytes that the caller must send there now, after
    /// which it says [`Tx::all_moved`].
    pub fn switch_down(&self, tcp: u64) -> Result<(u64, u64), Corrupt> {
        let w = &self.direction.writer;
        let head = self.direction.reader.head.fetch_or(layout::MOVED, AcqRel) & !layout::MOVED;
        let tail = w.tail.load(Relaxed);
        if tail.wrapping_sub(head) > self.bytes.all() {
            return Err(Corrupt);
        }
        w.down_tcp.store(tcp, Relaxed);
        w.down.store(head, Relaxed);
        self.count_switch();
        Ok((head, tail))
    }

    /// The bytes of the last switch down are with the kernel.
    pub fn all_moved(&self) {
        let w = &self.direction.writer;
        w.moved.store(w.switches.load(Relaxed), Release);
    }

    /// Switches made so far.
    pub fn switches(&self) -> u32 {
        self.direction.writer.switches.load(Relaxed)
    }

    /// Doorbells counted so far.
    pub fn bells_counted(&self) -> u32 {
        self.direction.writer.bells_sent.load(Relaxed)
    }

    /// Are unread bytes being moved to the stream, or were they?
    #[inline]
    pub fn is_moved(&self) -> bool {
        self.direction.reader.head.load(Relaxed) & layout::MOVED != 0
    }

    /// What the reading end has taken.
    #[inline]
    pub fn peer_head(&self) -> u64 {
        self.direction.reader.head.load(Acquire) & !layout::MOVED
    }

    /// Nothing follows. With `reset` the peer gets ECONNRESET after the last byte instead of end-of-file; but an end that was
    /// told in good order stays one, as a reset behind a FIN does not take that back.
    pub fn finish(&self, reset: bool) {
        let flags = if reset && !self.finished() {
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
        self.direction.wait.asks.load(Acquire) & !layout::READ_SHUT
    }

    /// Published bytes that the peer has not taken. What moved to the stream is the kernel's to count.
    pub fn unread(&self) -> Result<u64, Corrupt> {
        for _ in 0..LOOKS {
            if self.is_moved() {
                return Ok(0);
            }
            let tail = self.position();
            let used = tail.wrapping_sub(self.peer_head());
            if used <= self.bytes.all() {
                return Ok(used);
            }
            // As in `room`.
            if self.position() == tail {
                break;
            }
        }
        Err(Corrupt)
    }
}

impl Rx<'_> {
    /// Bytes taken so far.
    #[inline]
    pub fn position(&self) -> u64 {
        self.direction.reader.head.load(Acquire) & !layout::MOVED
    }

    /// Does the writing end move what is unread to the stream?
    #[inline]
    pub fn is_moved(&self) -> bool {
        self.direction.reader.head.load(Relaxed) & layout::MOVED != 0
    }

    /// Nobody takes bytes from here on, but by [`Rx::read_frozen`]; for an end whose writer is gone. False: the writer had marked them
    /// as moved to the stream.
    pub fn freeze(&self) -> bool {
        self.direction.reader.head.fetch_or(layout::MOVED, AcqRel) & layout::MOVED == 0
    }

    /// As [`Rx::read`], by the only one who may once the ring is frozen.
    pub fn read_frozen(
        &self,
        bufs: &mut [IoSliceMut<'_>],
        skip: usize,
        peek: bool,
    ) -> Result<usize, Corrupt> {
        let head = self.position();
        let ready = self.published().wrapping_sub(head);
        if ready > self.bytes.all() {
            return Err(Corrupt);
        }
        let n = self.copy_out_after_turns(head, ready, bufs, skip);
        if !peek {
            let next = head.wrapping_add(n as u64) | layout::MOVED;
            self.direction.reader.head.store(next, Release);
        }
        Ok(n)
    }

    /// Bytes published so far. Not checked: compare with [`Rx::readable`].
    #[inline]
    pub fn published(&self) -> u64 {
        self.direction.writer.tail.load(Acquire)
    }

    /// Bytes ready to be read.
    #[inline]
    pub fn readable(&self) -> Result<usize, Corrupt> {
        for _ in 0..LOOKS {
            if self.is_moved() {
                return Ok(0);
            }
            let head = self.position();
            let ready = self.published().wrapping_sub(head);
            if ready <= self.bytes.all() {
                return Ok(ready as usize);
            }
            // Another reader of this end may have moved between the two loads; if nobody did, it is nonsense.
            if self.position() == head {
                break;
            }
        }
        Err(Corrupt)
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
        for _ in 0..LOOKS {
            let head = self.direction.reader.head.load(Acquire);
            if head & layout::MOVED != 0 || at.is_some_and(|at| at != head) {
                return Ok(none);
            }
            // Acquire: the thread that left this tail here has acquired the bytes before it, not we.
            let mut cached = cache.0.load(Acquire);
            let mut ready = (cached & !TURNED).wrapping_sub(head);
            if ready < want || ready > self.bytes.all() {
                let tail = self.published();
                ready = tail.wrapping_sub(head);
                if ready == 0 {
                    return Ok(none);
                }
                if ready > self.bytes.all() {
                    if self.position() != head {
                        continue;
                    }
                    return Err(Corrupt);
                }
                let turned = self.direction.writer.turned.load(Acquire) != 0;
                cached = tail & !TURNED | if turned { TURNED } else { 0 };
                cache.0.store(cached, Release);
            }
            // A turn after the look at `tail` is for bytes behind it.
            let n = match cached & TURNED {
                0 => self.copy_out(Turns::default(), head, ready.min(most), bufs, skip),
                _ => self.copy_out_after_turns(head, ready.min(most), bufs, skip),
            };
            // A peek takes nothing, but it must know as well that nobody took the bytes, and the writer wrote over
            // them, while they were copied.
            if n == 0 || self.take(head, if peek { 0 } else { n }) {
                return Ok(Part {
                    bytes: n,
                    next: head.wrapping_add(n as u64),
                });
            }
        }
        Err(Corrupt)
    }

    #[cold]
    fn copy_out_after_turns(
        self,
        head: u64,
        ready: u64,
        bufs: &mut [IoSliceMut<'_>],
        skip: usize,
    ) -> usize {
        self.copy_out(self.direction.turns(), head, ready, bufs, skip)
    }

    #[inline(always)] // As `Tx::write_in`.
    fn copy_out(
        &self,
        turns: Turns,
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
            self.bytes.get(turns, position, &mut piece[..n]);
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
        for _ in 0..LOOKS {
            let head = self.position();
            let n = self.readable()?.min(max);
            if n == 0 || self.take(head, n) {
                return Ok(n);
            }
        }
        Err(Corrupt)
    }

    /// Switches that the writer has made beyond the `passed` ones. Two at most: it makes the next only when the reading end
    /// has passed all.
    #[inline]
    fn ahead(&self, passed: u32) -> u32 {
        let made = self.direction.writer.switches.load(Acquire);
        made.wrapping_sub(passed)
    }

    /// Can the writer have made so many switches, with `passed` of them passed? Told by who passes the next, under the reading
    /// end's lock: else a number of switches that never come would be gone through.
    pub fn is_just_ahead(&self, passed: u32) -> bool {
        self.ahead(passed) <= 1 + u32::from(passed.is_multiple_of(2))
    }

    /// For a reading end on the TCP stream (`passed` is even): where on it the ring takes over, if the writer has said so.
    #[inline]
    pub fn up_at(&self, passed: u32) -> Option<u64> {
        let due = passed.is_multiple_of(2) && self.ahead(passed) != 0;
        due.then(|| self.direction.writer.up.load(Relaxed))
    }

    /// Where in the ring TCP takes over again, and from which position of the TCP stream, if the writer has said so and
    /// the reading end has not passed it.
    #[inline]
    pub fn down_at(&self, passed: u32) -> Option<(u64, u64)> {
        let due = self.ahead(passed) > u32::from(passed.is_multiple_of(2));
        due.then(|| self.direction.last_down())
    }

    /// Does the writer send into the ring now? What it ends there it ends in the ring, so an end of the stream is its death
    /// or its close.
    #[inline]
    pub fn writer_is_on_ring(&self) -> bool {
        !self
            .direction
            .writer
            .switches
            .load(Acquire)
            .is_multiple_of(2)
    }

    /// The reading end is at position `at` of the stream and has passed so many switches now. Look at the ring after this.
    pub fn pass(&self, passed: u32, at: u64) {
        self.direction.wait.at.fetch_max(at, Relaxed);
        self.direction.wait.passed.swap(passed, AcqRel);
        barrier_after_rmw();
    }

    /// Are the bytes of the last switch down all with the kernel?
    pub fn all_moved(&self) -> bool {
        let w = &self.direction.writer;
        w.moved.load(Acquire) == w.switches.load(Relaxed)
    }

    /// The writer died in the middle of a switch down: what it did not move, from position `from` of the ring on, is read
    /// here after all, as if it had made `switches` switches. `frozen`: by whom alone may take it, see [`Rx::freeze`].
    pub fn move_back(&self, from: u64, switches: u32, frozen: bool) {
        self.direction.writer.switches.store(switches, Relaxed);
        let mark = if frozen { layout::MOVED } else { 0 };
        let head = from & !layout::MOVED | mark;
        self.direction.reader.head.store(head, Release);
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
    ///
    /// Look at the ring, and at how many bells were counted, after this.
    pub fn ask(&self, what: u32) {
        self.direction.wait.asks.fetch_or(what, AcqRel);
        barrier_after_rmw();
    }

    /// What we asked for.
    pub fn asked(&self) -> u32 {
        self.direction.wait.asks.load(Relaxed) & !layout::READ_SHUT
    }
}
