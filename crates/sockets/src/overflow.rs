//! Overflow: TCP's buffers take megabytes over loopback, a ring a quarter of one. What a sender has beyond that while its reader
//! makes no room goes into the direction's overflow area, until all is read.

use std::sync::atomic::Ordering::Relaxed;

use gm::Segment;

use crate::{Conn, Kernel};

/// Its pages are given back when it was not used for so long, in µs: to make them anew costs as much as to copy them.
const UNUSED_US: u64 = 100_000;

impl Conn {
    /// The ring is full: may a send go on in the overflow area?
    pub(crate) fn may_overflow(&self, segment: &Segment) -> bool {
        let tx = segment.tx();
        tx.may_overflow() && self.no_overflow_at.load(Relaxed) != tx.peer_head()
    }

    /// Goes on there, with `len` bytes. False: it can't, for want of memory. Caller holds the sending lock.
    #[cold]
    pub(crate) fn overflow(&self, segment: &Segment, len: usize) -> bool {
        let tx = segment.tx();
        let made = self.may_overflow(segment) && segment.make_overflow(len as u64).is_ok();
        if !made {
            self.no_overflow_at.store(tx.peer_head(), Relaxed);
        }
        made && tx.overflow()
    }

    /// Before `len` bytes are sent: back to the ring if all is read, or the pages for them. False: there is no memory. Caller
    /// holds the sending lock.
    #[cold]
    pub(crate) fn mind_overflow(&self, k: &impl Kernel, segment: &Segment, len: usize) -> bool {
        let tx = segment.tx();
        tx.stop_overflow();
        if let Some(used) = tx.overflowed() {
            self.overflowed_us.store(k.now_us(), Relaxed);
            return segment
                .make_overflow(used.saturating_add(len as u64))
                .is_ok();
        }
        if segment.has_overflow_pages() {
            let unused = k.now_us().saturating_sub(self.overflowed_us.load(Relaxed));
            if unused > UNUSED_US {
                segment.drop_overflow();
            }
        }
        true
    }

    /// Bytes of the peer's that can be unread in the segment at most.
    pub fn most_unread(&self) -> usize {
        self.segment().map_or(0, |s| s.rx().bytes.all() as usize)
    }
}
