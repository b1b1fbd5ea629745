//! Turns between a direction's two areas: what its ring has no room for goes into the overflow area, until all is read.

use crate::stream::Tx;
use crate::sync::Ordering::{Relaxed, Release};

impl Tx<'_> {
    /// How many bytes may be unread in both areas: somewhat less than TCP takes, so that they find room there if they are moved.
    pub fn whole_window(&self) -> u64 {
        let all = self.direction.window(self.bytes.all());
        self.window().max(all / 8 * 7)
    }

    /// What is written from here on goes into the overflow area, until all is read. So while the reader's `head` stands still in
    /// unread bytes there is one turn at most, and whoever takes bytes at `head` knew where they are. False: it does so already,
    /// or there is no such area. Caller holds the writing end's lock.
    pub fn overflow(&self) -> bool {
        let can = self.may_overflow();
        if can {
            let w = &self.direction.writer;
            w.turned.store(1, Relaxed);
            w.overflow_from.store(self.position(), Release);
        }
        can
    }

    /// May [`Tx::overflow`] do it?
    pub fn may_overflow(&self) -> bool {
        let turns = self.direction.turns();
        let (tail, used) = (
            self.position(),
            self.position().wrapping_sub(self.peer_head()),
        );
        let begun = !turns.overflows() && tail > turns.ring;
        begun && self.bytes.overflow() != 0 && used < self.whole_window()
    }

    /// While bytes go into the overflow area: how many went since this turn.
    pub fn overflowed(&self) -> Option<u64> {
        let turns = self.direction.turns();
        let since = self.position().wrapping_sub(turns.overflow);
        turns.overflows().then_some(since)
    }

    /// What is written from here on goes into the ring again, if all is read. Caller holds the writing end's lock.
    pub fn stop_overflow(&self) {
        let tail = self.position();
        if self.overflowed().is_some() && self.peer_head() == tail {
            self.begin_ring(tail);
        }
    }

    pub(crate) fn begin_ring(&self, at: u64) {
        self.direction.writer.ring_from.store(at, Release);
    }

    /// Did it once?
    #[inline]
    pub fn has_overflowed(&self) -> bool {
        self.direction.writer.turned.load(Relaxed) != 0
    }

    /// Copies out what is unread at `position`, for who moves it.
    pub fn copy(&self, position: u64, dst: &mut [u8]) {
        self.bytes.get(self.direction.turns(), position, dst);
    }
}
