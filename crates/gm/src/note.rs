//! A place for something that is noted once: never waits, and a forked child can drop it whatever its parent's other threads
//! were at. The standard library's `OnceLock` waits for who is at it, or panics for want of it.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A number, not 0, that is asked for once, or by several at the same time, and kept.
#[derive(Default)]
pub struct Asked(AtomicU64);

impl Asked {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn get(&self, ask: impl FnOnce() -> u64) -> u64 {
        if self.0.load(Relaxed) == 0 {
            self.0.store(ask().max(1), Relaxed);
        }
        self.0.load(Relaxed)
    }
}

const EMPTY: u32 = 0;
const BEING_SET: u32 = 1;
const SET: u32 = 2;

pub struct Note<T> {
    state: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written by the one who took the place (`BEING_SET`), and read by others after it was published (`SET`).
unsafe impl<T: Send + Sync> Sync for Note<T> {}

impl<T> Default for Note<T> {
    fn default() -> Self {
        Self {
            state: AtomicU32::new(EMPTY),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }
}

impl<T> Note<T> {
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: published, and not changed any more.
        (self.state.load(Acquire) == SET).then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// Gives the value back if there is one already, or somebody else is at it.
    pub fn set(&self, value: T) -> Result<(), T> {
        if self
            .state
            .compare_exchange(EMPTY, BEING_SET, Acquire, Relaxed)
            .is_err()
        {
            return Err(value);
        }
        // SAFETY: nobody reads before `SET`, and only we write.
        unsafe { (*self.value.get()).write(value) };
        self.state.store(SET, Release);
        Ok(())
    }
}

impl<T> Drop for Note<T> {
    fn drop(&mut self) {
        if *self.state.get_mut() == SET {
            // SAFETY: written, and dropped once.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn first_stays() {
        let drops = Arc::new(());
        let note = Note::default();
        assert!(note.get().is_none());
        assert!(note.set(Arc::clone(&drops)).is_ok());
        assert!(note.set(Arc::clone(&drops)).is_err());
        assert!(note.get().is_some());
        drop(note);
        assert_eq!(Arc::strong_count(&drops), 1);
    }

    #[test]
    fn half_set_is_dropped_as_empty() {
        let note = Note::<Arc<()>> {
            state: AtomicU32::new(BEING_SET),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        };
        assert!(note.get().is_none() && note.set(Arc::new(())).is_err());
    }
}
