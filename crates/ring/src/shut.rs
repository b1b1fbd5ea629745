//! A peer that has shut its reading. Once its sending is over on the stream as well, its kernel answers a byte with a reset, and
//! drops what it has not delivered: so what it has not read stays in the ring, where it reads it.

use crate::layout;
use crate::sync::Ordering::{Acquire, Relaxed};
use crate::{Rx, Tx};

impl Tx<'_> {
    /// Has the peer's program shut its reading?
    pub fn reading_is_shut(&self) -> bool {
        self.direction.wait.asks.load(Acquire) & layout::READ_SHUT != 0
    }

    /// As [`Tx::switch_down`], but what is unread stays where it is, and is taken before the reader goes on with the stream.
    pub fn switch_down_behind(&self, tcp: u64) -> (u64, u64) {
        let w = &self.direction.writer;
        let tail = w.tail.load(Relaxed);
        w.down_tcp.store(tcp, Relaxed);
        w.down.store(tail, Relaxed);
        self.count_switch();
        (tail, tail)
    }
}

impl Rx<'_> {
    /// Does somebody of this end wait in the kernel for bytes?
    pub fn has_sleepers(&self) -> bool {
        self.direction.wait.sleepers.load(Relaxed) != 0
    }

    /// The program has shut its reading. To be said before the kernel is told.
    pub fn shut_reading(&self) {
        self.ask(layout::READ_SHUT);
    }
}
