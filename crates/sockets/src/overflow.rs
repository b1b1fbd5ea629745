//! Overflow: TCP's buffers take megabytes over loopback, a ring a quarter of one. What a sender has beyond that while its reader
//! makes no room goes into the direction's overflow area, until all is read.

use std::io::IoSlice;
use std::sync::atomic::Ordering::Relaxed;

use gm::Segment;
use ring::Corrupt;

use crate::{Conn, Fault, Kernel};

/// Its pages are given back when it was not used for so long, in µs: to make them anew costs as much as to copy them.
const UNUSED_US: u64 = 100_000;
/// So many bytes are sent between two looks whether it is time for the ring again; each takes the reader's cache line.
const MINDED_EVERY: u64 = 16 * 1024;

impl Conn {
    /// The ring is full: may a send go on in the overflow area?
    pub(crate) fn may_overflow(&self, segment: &Segment) -> bool {
        let tx = segment.tx();
        tx.may_overflow() && self.no_overflow_at.load(Relaxed) != tx.peer_head()
    }

    /// Goes on there. Zero: it can't, for want of memory. Caller holds the sending lock.
    #[cold]
    #[inline(never)]
    pub(crate) fn write_beside(
        &self,
        segment: &Segment,
        bufs: &[IoSlice<'_>],
        skip: usize,
    ) -> Result<usize, Fault> {
        let tx = segment.tx();
        let len: usize = bufs.iter().map(|b| b.len()).sum();
        let made = || segment.make_overflow(MINDED_EVERY.max(len as u64)).is_ok();
        if !self.may_overflow(segment) || !made() {
            self.no_overflow_at.store(tx.peer_head(), Relaxed);
            return Ok(0);
        }
        self.overflow_full.store(false, Relaxed);
        self.overflow_minded.store(tx.position(), Relaxed);
        tx.overflow();
        tx.write(&self.write_cache, bufs, skip)
            .map_err(|Corrupt| self.corrupt())
    }

    /// Before `len` bytes are sent: back to the ring if it is time, or the pages for them. False: there is no memory. Caller holds
    /// the sending lock.
    #[inline]
    pub(crate) fn mind_overflow(&self, k: &impl Kernel, segment: &Segment, len: usize) -> bool {
        let minded = self.overflow_minded.load(Relaxed);
        let since = segment.tx().position().wrapping_sub(minded);
        since.saturating_add(len as u64) <= MINDED_EVERY || self.turn(k, segment, len)
    }

    #[cold]
    fn turn(&self, k: &impl Kernel, segment: &Segment, len: usize) -> bool {
        let tx = segment.tx();
        self.overflow_minded.store(tx.position(), Relaxed);
        // Once it was full, a sender that is as fast as its reader would never find all read.
        let most = match self.overflow_full.load(Relaxed) {
            true => tx.window() / 4,
            false => 0,
        };
        tx.stop_overflow(most);
        if let Some(used) = tx.overflowed() {
            self.overflowed_us.store(k.now_us(), Relaxed);
            let upto = used.saturating_add(MINDED_EVERY.max(len as u64));
            return segment.make_overflow(upto).is_ok();
        }
        let unused = k.now_us().saturating_sub(self.overflowed_us.load(Relaxed));
        if unused > UNUSED_US && tx.is_overflow_over() {
            segment.drop_overflow();
            tx.forget_overflow();
        }
        true
    }

    /// Bytes of the peer's that can be unread in the segment at most.
    pub fn most_unread(&self) -> usize {
        self.segment().map_or(0, |s| s.rx().bytes.all() as usize)
    }
}
