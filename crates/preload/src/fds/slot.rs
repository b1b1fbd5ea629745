//! What this process knows of one socket.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32};

use gm::{End, Port};
use sockets::{Conn, Gate};

use super::rest::{CLEANED, CLOSED, LIVE};
use super::{Inside, NO_LISTENER, SLOTS, met};
use crate::arena::{Place as Shelf, Placed};
use crate::ctx;

/// One socket of this process. Aligned, so that what a call touches lies in the same lines whichever slot it is.
#[repr(align(64))]
pub struct Slot {
    pub(super) gate: Gate,
    /// Who keeps it as it is, without a call being inside.
    pub(super) late: AtomicU32,
    /// Descriptors of this process that point here.
    pub(super) fds: AtomicU32,
    /// Not 0: no call may go inside (see `rest`).
    pub(super) dead: AtomicU32,
    /// 1 + the descriptor that keeps the socket open, because calls were at work on it when the program closed it; else 0.
    pub(super) kept: AtomicI32,
    /// 1 + the end that the slot had last; 0: none yet.
    pub(super) hint: AtomicU32,
    /// The rounds of `each_slot_once` that have seen it (`fork`).
    pub(super) seen: AtomicU32,
    pub(super) shelf: Shelf,
    /// Members of epoll sets that point here.
    pub watches: AtomicU32,
    /// Not 0: its end has a holder less because exec was called; to be put right if that fails (`process::exec`).
    pub left_by_exec: AtomicU32,
    /// A program that will be spawned gets a copy, even if this process's descriptors close on exec.
    pub spawn_copy: AtomicBool,
    /// Not 0: exec was called, and a descriptor of it stays open.
    pub stays: AtomicU32,
    /// The last holder closed it: the end is to be freed.
    pub(super) ends: AtomicBool,
    /// Who held the end before this process came; 0: nobody.
    pub pid_before: AtomicU32,
    /// Where the end is.
    pub(super) port: AtomicPtr<Port>,
    /// The end itself: for a look from outside.
    pub(super) end: AtomicPtr<End>,
    /// Process that put our listener into the registry.
    pub listener_pid: AtomicU32,
    /// 1 + its number there; 0: it is not there.
    pub(super) listener: AtomicU32,
    pub(super) conn: UnsafeCell<MaybeUninit<Conn>>,
}

// SAFETY: `conn` is written only while nobody is inside (see `track`, `clean`), and read only from inside.
unsafe impl Sync for Slot {}

impl Placed for Slot {
    fn place(&self) -> &Shelf {
        &self.shelf
    }
}

pub(super) fn new_slot() -> Slot {
    Slot {
        gate: Gate::default(),
        late: AtomicU32::new(0),
        fds: AtomicU32::new(0),
        dead: AtomicU32::new(CLOSED),
        kept: AtomicI32::new(0),
        hint: AtomicU32::new(0),
        seen: AtomicU32::new(0),
        shelf: Shelf::new(),
        watches: AtomicU32::new(0),
        left_by_exec: AtomicU32::new(0),
        spawn_copy: AtomicBool::new(false),
        stays: AtomicU32::new(0),
        ends: AtomicBool::new(false),
        pid_before: AtomicU32::new(0),
        port: AtomicPtr::new(std::ptr::null_mut()),
        end: AtomicPtr::new(std::ptr::null_mut()),
        listener_pid: AtomicU32::new(NO_LISTENER),
        listener: AtomicU32::new(0),
        conn: UnsafeCell::new(MaybeUninit::uninit()),
    }
}

impl Slot {
    /// A free slot gets a connection whose end is in `port`, and one descriptor.
    pub(super) fn begin(&'static self, port: &'static Port, conn: Conn) {
        self.end
            .store(std::ptr::from_ref(conn.end()).cast_mut(), Relaxed);
        met::note(conn.end());
        // SAFETY: the slot was free: nobody is inside, and its last connection was dropped.
        unsafe { (*self.conn.get()).write(conn) };
        self.port
            .store(std::ptr::from_ref(port).cast_mut(), Relaxed);
        self.seen.store(0, Relaxed);
        self.fds.store(1, Relaxed);
        self.watches.store(0, Relaxed);
        self.pid_before.store(0, Relaxed);
        self.spawn_copy.store(false, Relaxed);
        self.ends.store(false, Relaxed);
        self.dead.store(LIVE, Release);
    }

    /// Where its end is.
    pub fn port(&self) -> Option<&'static Port> {
        // SAFETY: null before the first connection, else a port that is never dropped.
        unsafe { self.port.load(Relaxed).as_ref() }
    }

    /// Where it is in the registry; at most one place.
    pub fn set_listener(&self, entry: Option<gm::node::Entry>) {
        self.listener
            .store(entry.map_or(0, |e| e.number() + 1), Release);
    }

    pub fn take_listener(&self) -> Option<gm::node::Entry> {
        let number = self.listener.swap(0, AcqRel).checked_sub(1)?;
        Some(gm::node::Entry::numbered(number))
    }

    /// The last one is out of a closed socket's slot.
    pub(super) fn clean(&'static self) {
        // Only one of those who see it empty does the work; who enters meanwhile sees `dead` and leaves.
        let take = || {
            let dead = &self.dead;
            dead.compare_exchange(CLOSED, CLEANED, AcqRel, Relaxed)
                .is_ok()
        };
        if !self.gate.is_empty() || self.late.load(Acquire) != 0 || !take() {
            return;
        }
        let kept = self.kept.load(Acquire);
        if kept != 0 {
            // Not counted by the gate: nobody enters any more.
            let inside = std::mem::ManuallyDrop::new(Inside {
                slot: self,
                number: kept - 1,
            });
            inside.end(true);
            self.kept.store(0, Release);
            // SAFETY: made for this slot, and known to nobody else.
            drop(unsafe { OwnedFd::from_raw_fd(kept - 1) });
        }
        // SAFETY: dead and empty: no reference to the connection exists, none can be made.
        let conn = unsafe { (*self.conn.get()).assume_init_read() };
        let index = conn.place().index;
        if let Some(ctx) = ctx::opened()
            && let Some(port) = self.port()
            && self.ends.load(Acquire)
        {
            conn.release(&ctx.node);
            port.free(index);
        }
        // The next socket in this slot tries the same end first, if that is in our own port.
        let own = ctx::opened().is_some_and(|ctx| conn.place().port == ctx.node.me());
        drop(conn);
        self.hint.store(if own { index + 1 } else { 0 }, Relaxed);
        SLOTS.give(self);
    }
}
