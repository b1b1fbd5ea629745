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
/// And so many between two looks whether there is a reader.
const READER_CHECKED_EVERY: u64 = 256 * 1024;

impl Conn {
    /// Goes on there. Zero: that may not be now. `None`: there is no memory for it, or no reader any more, and the direction has
    /// gone to TCP, which takes as much or tells of the end. Caller holds the sending lock.
    #[cold]
    #[inline(never)]
    pub(crate) fn write_beside(
        &self,
        k: &impl Kernel,
        segment: &Segment,
        bufs: &[IoSlice<'_>],
        skip: usize,
    ) -> Result<Option<usize>, Fault> {
        let tx = segment.tx();
        if !tx.may_overflow() {
            return Ok(Some(0));
        }
        let len: usize = bufs.iter().map(|b| b.len()).sum();
        let memory = || segment.make_overflow(MINDED_EVERY.max(len as u64));
        if self.peer_is_gone(k) || !k.has_memory() || memory().is_err() {
            self.switch_down(k, tx, None);
            return Ok(None);
        }
        self.overflow_full.store(false, Relaxed);
        self.overflow_minded.store(tx.position(), Relaxed);
        self.overflowed_us.store(k.now_us(), Relaxed);
        tx.overflow();
        let written = tx.write(&self.write_cache, bufs, skip);
        written.map(Some).map_err(|Corrupt| self.corrupt())
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
        let minded = self.overflow_minded.swap(tx.position(), Relaxed);
        // Once it was full, a sender that is as fast as its reader would never find all read.
        let most = match self.overflow_full.load(Relaxed) {
            true => tx.window() / 4,
            false => 0,
        };
        tx.stop_overflow(most);
        if let Some(used) = tx.overflowed() {
            self.overflowed_us.store(k.now_us(), Relaxed);
            if minded / READER_CHECKED_EVERY != tx.position() / READER_CHECKED_EVERY {
                self.check_peer_next();
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Pair;

    const MUCH: usize = 1 << 20;

    /// Sends more than the ring takes, and has it read. How much of the area has its pages then?
    fn made_after(pair: &Pair, pause_us: u64) -> u64 {
        assert_eq!(pair.client.send(&vec![1; MUCH]), MUCH);
        let segment = pair.client.conn.segment().unwrap();
        assert!(segment.tx().has_overflowed());
        let read: usize = std::iter::repeat_with(|| pair.server.recv(MUCH))
            .take_while(|n| *n > 0)
            .sum();
        assert_eq!(read, MUCH);
        pair.client.socket.pass_ns(pause_us * 1000);
        // The next looks whether it is time for the ring again, the second whether the area was of use.
        let next = MINDED_EVERY as usize + 1;
        for _ in 0..2 {
            assert_eq!(
                (pair.client.send(&vec![1; next]), pair.server.recv(next)),
                (next, next)
            );
        }
        segment.tx().direction.writer.overflow_made.load(Relaxed)
    }

    #[test]
    fn pages_in_use_stay() {
        let pair = Pair::carried();
        // From the beginning on: the time of the first use counts.
        pair.client.socket.pass_ns(3_600_000_000_000);
        assert!(made_after(&pair, UNUSED_US / 2) > 0);
        assert!(made_after(&pair, UNUSED_US / 2) > 0);
        assert_eq!(made_after(&pair, UNUSED_US + 1), 0);
    }
}
