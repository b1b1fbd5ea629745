//! Sockets that came with the program, or in a message, and have not been used yet. What they need besides their end, their
//! segment, is mapped as they come (later the program may have no descriptor to spare, another root or another user), and
//! not looked at before the first call on them: most programs that are started use none of the sockets they inherit.
//!
//! Rules:
//! 1. Who goes inside by [`enter`](super::enter) finds the slot awake. By [`enter_at_rest`] it may be asleep: then its end alone
//!    is used, or [`Inside::wake`] comes first.
//! 2. The last holder wakes it before it leaves: there is something to end.

use std::ffi::c_int;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::fork::Change;
use super::{Inside, cell};
use crate::quiet;

/// Values of `Slot::dead`.
pub const LIVE: u32 = 0;
/// To be cleaned up by the last to leave.
pub const CLOSED: u32 = 1;
pub const CLEANED: u32 = 2;
pub const ASLEEP: u32 = 3;
const WAKING: u32 = 4;

/// Is that the state of a slot that has a connection?
pub fn is_in_use(dead: u32) -> bool {
    !matches!(dead, CLOSED | CLEANED)
}

/// As [`enter`](super::enter), and leaves it asleep.
pub fn enter_at_rest(fd: c_int) -> Option<Inside> {
    let cell = cell(fd)?;
    loop {
        let p = cell.load(Acquire);
        // SAFETY: slots are never freed.
        let slot: &'static super::Slot = unsafe { p.as_ref() }?;
        slot.gate.enter(rustix::thread::sched_yield);
        let inside = Inside { slot, number: fd };
        if cell.load(Acquire) == p {
            return is_in_use(slot.dead.load(Acquire)).then_some(inside);
        }
    }
}

impl Inside {
    /// Has it not been used here yet?
    pub(super) fn is_asleep(&self) -> bool {
        matches!(self.slot.dead.load(Acquire), ASLEEP | WAKING)
    }

    /// Looks at what the connection needs, if that is not done yet. False: the socket is closed.
    #[cold]
    #[inline(never)]
    pub fn wake(&self) -> bool {
        let state = &self.slot.dead;
        loop {
            match state.load(Acquire) {
                LIVE => return true,
                // Another thread is at it: a handler can't have interrupted that.
                WAKING => rustix::thread::sched_yield(),
                ASLEEP => {
                    let _quiet = quiet::begin();
                    // A forked child would not see it done.
                    let _change = Change::begin();
                    let to = |from, to| state.compare_exchange(from, to, AcqRel, Relaxed).is_ok();
                    if to(ASLEEP, WAKING) {
                        self.conn().is_sound();
                        to(WAKING, LIVE);
                    }
                }
                _ => return false,
            }
        }
    }
}
