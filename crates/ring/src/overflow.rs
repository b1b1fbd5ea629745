//! Turns between a direction's two areas: what its ring has no room for goes into the overflow area, until all is read.

use crate::stream::Tx;
use crate::sync::Ordering::{Relaxed, Release};

impl Tx<'_> {
    /// How many bytes may be unread in both areas: somewhat less than TCP takes, so that they find room there if they are moved.
    pub fn whole_window(&self) -> u64 {
        let all = self.direction.window(self.bytes.all());
        self.window().max(all - all / 8)
    }

    #[cold]
    pub(crate) fn room_after_turns(self, tail: u64, used: u64) -> u64 {
        let turns = self.direction.turns();
        let here = used.min(tail.wrapping_sub(turns.last()));
        let capacity = match turns.overflows() {
            true => self.bytes.overflow(),
            false => self.window(),
        };
        let whole = self.whole_window().saturating_sub(used);
        whole.min(capacity.saturating_sub(here))
    }

    /// What is written from here on goes into the overflow area. Each turn waits for what the one before left in the other area:
    /// so while the reader's `head` stands still in unread bytes there is one turn at most, and whoever takes bytes at `head` knew
    /// where they are. False: it goes there already, or may not. Caller holds the writing end's lock.
    pub fn overflow(&self) -> bool {
        let can = self.may_overflow();
        if can {
            let w = &self.direction.writer;
            w.turned.store(1, Relaxed);
            w.overflow_from.store(self.position(), Release);
        }
        can
    }

    /// May [`Tx::overflow`] do it? Not while the reading end is on the stream: what is unread there counts as well.
    pub fn may_overflow(&self) -> bool {
        let (turns, tail, head) = (self.direction.turns(), self.position(), self.peer_head());
        let begun = !turns.overflows() && tail > turns.ring && head >= turns.ring;
        begun
            && self.all_passed()
            && self.bytes.overflow() != 0
            && tail.wrapping_sub(head) < self.whole_window()
    }

    /// While bytes go into the overflow area: how many went since this turn.
    pub fn overflowed(&self) -> Option<u64> {
        let turns = self.direction.turns();
        let since = self.position().wrapping_sub(turns.overflow);
        turns.overflows().then_some(since)
    }

    /// What is written from here on goes into the ring again, if that is read out, and no more than `most` bytes are unread.
    /// Caller holds the writing end's lock.
    pub fn stop_overflow(&self, most: u64) {
        let (turns, tail, head) = (self.direction.turns(), self.position(), self.peer_head());
        let read_out = turns.overflows() && head >= turns.overflow;
        if read_out && tail.wrapping_sub(head) <= most {
            self.begin_ring(tail);
        }
    }

    /// Is the overflow area read out, and not written to?
    pub fn is_overflow_over(&self) -> bool {
        let turns = self.direction.turns();
        !turns.overflows() && self.peer_head() >= turns.ring
    }

    /// It was, so there was no turn, as far as anybody needs to know. Caller holds the writing end's lock.
    pub fn forget_overflow(&self) {
        self.direction.writer.turned.store(0, Release);
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
