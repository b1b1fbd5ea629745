//! A lock for this process's tables that a fork handler can hold across fork and give back on both sides, which the
//! standard library's cannot.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Default)]
pub struct Lock<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached only through a guard, and there is one guard at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

pub struct Guard<'a, T>(&'a Lock<T>);

impl<T> Lock<T> {
    pub const fn new(value: T) -> Self {
        Self {
            word: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    pub fn lock(&self) -> Guard<'_, T> {
        self.hold();
        Guard(self)
    }

    /// Takes the lock without a guard: before fork.
    pub fn hold(&self) {
        let mut rounds = 0;
        while self
            .word
            .compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            rounds += 1;
            if rounds > 100 {
                rustix::thread::sched_yield();
            }
            core::hint::spin_loop();
        }
    }

    /// The value, between `hold` and `give_back`.
    ///
    /// # Safety
    /// The caller holds the lock.
    pub unsafe fn held(&self) -> &T {
        // SAFETY: by the caller.
        unsafe { &*self.value.get() }
    }

    /// Gives back what `hold` took: after fork, in parent and child.
    pub fn give_back(&self) {
        self.word.store(0, Ordering::Release);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard is the only way to the value.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}
