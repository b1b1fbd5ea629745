//! What is made once, when it is first wanted. Nobody waits for it who may not: a caller that interrupted its making (an
//! allocator, for one) goes without, and one in another thread has patience for a moment.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU32};

use crate::{quiet, thread};

/// `by`: it was made, or could not be.
const OVER: u32 = u32::MAX;
/// Another thread's making is a few files opened and mapped.
const PATIENCE_NS: u64 = 200_000_000;

pub struct Once<T: 'static> {
    made: AtomicPtr<T>,
    /// The thread that makes it; 0: nobody has begun.
    by: AtomicU32,
}

impl<T: Sync> Once<T> {
    pub const fn new() -> Self {
        Self {
            made: AtomicPtr::new(std::ptr::null_mut()),
            by: AtomicU32::new(0),
        }
    }

    #[inline]
    pub fn get(&self) -> Option<&'static T> {
        // SAFETY: null, or what a `make` gave, which lives as long as the process.
        unsafe { self.made.load(Acquire).as_ref() }
    }

    /// What `make` gives, called at most once. `None`: it gave nothing, or is still at it.
    #[inline]
    pub fn get_or_make(&self, make: impl FnOnce() -> Option<&'static T>) -> Option<&'static T> {
        self.get().or_else(|| self.make(make))
    }

    #[cold]
    fn make(&self, make: impl FnOnce() -> Option<&'static T>) -> Option<&'static T> {
        let me = thread::number();
        let mut until = 0;
        loop {
            // Before the word says that it is us: a handler that finds it there goes without.
            let quiet = quiet::begin();
            match self.by.compare_exchange(0, me, AcqRel, Acquire) {
                Ok(_) => {
                    if let Some(made) = make() {
                        self.made
                            .store(std::ptr::from_ref(made).cast_mut(), Release);
                    }
                    self.by.store(OVER, Release);
                    return self.get();
                }
                Err(OVER) => return self.get(),
                Err(by) if by == me => return None,
                Err(_) => {}
            }
            drop(quiet);
            let now = gm::os::monotonic_ns();
            if until == 0 {
                until = now + PATIENCE_NS;
            } else if now > until {
                return None;
            }
            rustix::thread::sched_yield();
        }
    }

    /// In a forked child: who was making it is not here.
    pub fn after_fork(&self) {
        if self.by.load(Relaxed) != OVER {
            self.by.store(0, Relaxed);
        }
    }
}
