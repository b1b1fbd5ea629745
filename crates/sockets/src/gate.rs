//! Who is inside a connection: a count of calls, and an exclusive mode for changing its state.
//!
//! A call enters, works, leaves. Promotion needs to be alone: a thread that is inside may turn its own entry into the
//! exclusive one if nobody else is inside. Closing waits for nobody: the last to leave cleans up.

use ring::sync::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

const ALONE: u32 = 1 << 31;

#[derive(Default)]
pub struct Gate(AtomicU32);

impl Gate {
    /// Counts the caller in. While somebody is alone inside, waits for it (it only does a few system calls, with
    /// signals blocked).
    #[inline]
    pub fn enter(&self, mut wait: impl FnMut()) {
        loop {
            if self.0.fetch_add(1, AcqRel) & ALONE == 0 {
                return;
            }
            self.0.fetch_sub(1, AcqRel);
            while self.0.load(Acquire) & ALONE != 0 {
                wait();
            }
        }
    }

    /// Counts the caller out. True: nobody is left inside.
    #[inline]
    pub fn leave(&self) -> bool {
        let inside = self.0.fetch_sub(1, AcqRel);
        if inside == 0 {
            self.not_counted();
        }
        inside == 1
    }

    /// A call that was interrupted by a handler, which forked, goes on in the child: see [`Gate::reset`].
    #[cold]
    fn not_counted(&self) {
        self.0.fetch_add(1, AcqRel);
    }

    /// As `enter`, in a process that has one thread: without the cost of a locked instruction. Handlers come and go in between,
    /// and leave the count as it was.
    #[inline]
    pub fn enter_single(&self, wait: impl FnMut()) {
        let inside = self.0.load(Relaxed);
        if inside & ALONE != 0 {
            return self.enter(wait);
        }
        self.0.store(inside + 1, Relaxed);
    }

    /// As `leave`, in such a process.
    #[inline]
    pub fn leave_single(&self) -> bool {
        let inside = self.0.load(Relaxed);
        // As `leave`: it may not have been counted.
        self.0.store(inside.saturating_sub(1), Relaxed);
        inside == 1
    }

    /// From inside: be alone, or not at all.
    pub fn try_alone(&self) -> bool {
        self.0
            .compare_exchange(1, ALONE | 1, AcqRel, Relaxed)
            .is_ok()
    }

    /// Back from alone to one of many.
    pub fn not_alone(&self) {
        self.0.fetch_and(!ALONE, Release);
    }

    /// From inside: is nobody else?
    pub fn is_mine_alone(&self) -> bool {
        self.0.load(Acquire) == 1
    }

    pub fn is_empty(&self) -> bool {
        self.0.load(Acquire) == 0
    }

    /// In a forked child: the other threads that were inside do not exist here. What the forking thread itself is inside of is not
    /// counted any more.
    pub fn reset(&self) {
        self.0.store(0, Release);
    }
}
