//! A lock for a table of this process, which names its holder: a signal handler sees whether it interrupted that one and
//! must not wait for it, and a fork handler can hold the lock across fork and give it back on both sides.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};

use crate::thread;

#[derive(Default)]
pub struct Lock<T> {
    /// The holder's thread number; 0: nobody.
    word: AtomicU32,
    /// The thread that forks held it already.
    nested: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached only through a guard, and there is one guard at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

pub struct Guard<'a, T>(&'a Lock<T>);

impl<T> Lock<T> {
    /// Not where the caller may have interrupted the holder: see [`Lock::is_mine`].
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        self.take(thread::number());
        Guard(self)
    }

    #[inline]
    fn take(&self, me: u32) {
        let mut rounds = 0;
        while self
            .word
            .compare_exchange_weak(0, me, Acquire, Relaxed)
            .is_err()
        {
            rounds += 1;
            if rounds > 100 {
                rustix::thread::sched_yield();
            }
            core::hint::spin_loop();
        }
    }

    /// Does this thread hold it, in what the caller interrupted?
    #[inline]
    pub fn is_mine(&self) -> bool {
        self.word.load(Relaxed) == thread::number()
    }

    /// Takes the lock without a guard: before fork.
    pub fn hold(&self) {
        if self.is_mine() {
            self.nested.store(true, Relaxed);
        } else {
            self.take(thread::number());
        }
    }

    /// After fork, in the parent: gives back what `hold` took.
    pub fn give_back(&self) {
        if self.is_mine() && !self.nested.swap(false, Relaxed) {
            self.word.store(0, Release);
        }
    }

    /// After fork, in the child, where only this thread is, under another number.
    pub fn in_child(&self) {
        let word = match self.nested.swap(false, Relaxed) {
            true => thread::number(),
            false => 0,
        };
        self.word.store(word, Release);
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
        self.0.word.store(0, Release);
    }
}
