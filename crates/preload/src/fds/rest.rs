//! Sockets that came with the program, or in a message, and have not been used yet. What they need besides their end, a
//! connection's segment, a listener's entry in the registry, is for the first call on them: most programs that are started
//! use none of the sockets they inherit.
//!
//! Rules:
//! 1. Who goes inside by [`enter`](super::enter) finds the slot awake. By [`enter_at_rest`] it may be asleep: then its end alone
//!    is used, or [`Inside::wake`] comes first.
//! 2. The last holder wakes it before it leaves: there is something to end.
//! 3. All wake before the program gives up what waking takes: files of the node within reach, descriptors, address space. Where
//!    it has little of that from the beginning, they wake as they come.

use std::ffi::c_int;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};

use gm::Role;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::fork::{Change, each_slot_once};
use super::{Inside, cell};
use crate::quiet;

/// Values of `Slot::dead`.
pub const LIVE: u32 = 0;
/// To be cleaned up by the last to leave.
pub const CLOSED: u32 = 1;
pub const CLEANED: u32 = 2;
pub const ASLEEP: u32 = 3;
/// In a forked child of who was at it: asleep.
pub const WAKING: u32 = 4;

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

    /// Gets what the socket needs, if that is not done yet. False: it is closed.
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
                    let to = |from, to| state.compare_exchange(from, to, AcqRel, Relaxed).is_ok();
                    if self.conn().end().role() == Role::Listener {
                        if to(ASLEEP, LIVE) {
                            crate::setup::register(self);
                        }
                        continue;
                    }
                    // A forked child would not see it done.
                    let _change = Change::begin();
                    if to(ASLEEP, WAKING) {
                        self.find_segment();
                        to(WAKING, LIVE);
                    }
                }
                _ => return false,
            }
        }
    }

    /// If it can't be had, calls say that the connection is reset.
    fn find_segment(&self) {
        let (conn, node) = (self.conn(), &self.ctx().node);
        let find = || conn.rejoin(node, &self.fd());
        if !find() && conn.is_engaged() {
            // Perhaps all are taken that the program may have.
            with_more_descriptors(find);
        }
    }
}

/// So many descriptors does it take, and some for other threads.
const MORE: u64 = 8;

/// Does `f` while the limit is a little higher.
fn with_more_descriptors(f: impl FnOnce() -> bool) {
    static BUSY: AtomicBool = AtomicBool::new(false);
    // Signals are blocked: no handler waits for its own thread.
    while BUSY.swap(true, Acquire) {
        rustix::thread::sched_yield();
    }
    let before = getrlimit(Resource::Nofile);
    let current = before.current.map(|n| n + MORE);
    let more = Rlimit {
        current,
        maximum: before.maximum.max(current),
    };
    if setrlimit(Resource::Nofile, more).is_ok() {
        f();
        let _ = setrlimit(Resource::Nofile, before);
    }
    BUSY.store(false, Release);
}

/// What `may_sleep` found: see there.
static ROOM: AtomicU32 = AtomicU32::new(UNKNOWN);
const UNKNOWN: u32 = 0;
const ENOUGH: u32 = 1;
const LITTLE: u32 = 2;

/// May what comes sleep, because there will be what waking takes?
pub(super) fn may_sleep() -> bool {
    /// A program hardly ever fills so large a table.
    const MANY: u64 = 4096;
    if ROOM.load(Relaxed) == UNKNOWN {
        let descriptors = getrlimit(Resource::Nofile);
        let more = |n: u64| descriptors.maximum.is_none_or(|most| most > n);
        let enough = |n: u64| n >= MANY || more(n + MORE);
        let enough =
            descriptors.current.is_none_or(enough) && getrlimit(Resource::As).current.is_none();
        ROOM.store(if enough { ENOUGH } else { LITTLE }, Relaxed);
    }
    ROOM.load(Relaxed) == ENOUGH
}

/// Rule 3. The limits may be others from now on.
pub fn wake_all() {
    ROOM.store(UNKNOWN, Relaxed);
    if super::limit() > 0 {
        let saved = crate::errno();
        each_slot_once(|inside| {
            inside.wake();
        });
        crate::set_errno(saved);
    }
}
