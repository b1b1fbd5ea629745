//! Memory for one call. The caller's stack may be a few pages, and malloc's own lock may be what the call interrupted: so
//! there is little in place, and the rest in mappings of its own.

use std::mem::MaybeUninit;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// Fresh pages, zeroed.
pub fn map(bytes: usize) -> Option<*mut u8> {
    use rustix::mm::{MapFlags, ProtFlags};
    // SAFETY: a fresh private mapping at an address of the kernel's choice aliases nothing.
    let base = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    base.ok().map(<*mut std::ffi::c_void>::cast)
}

/// # Safety
/// Whole pages of a mapping made by `map`, which nobody uses any more.
pub unsafe fn unmap(base: *mut u8, bytes: usize) {
    // SAFETY: by the caller.
    let _ = unsafe { rustix::mm::munmap(base.cast(), bytes) };
}

/// A list in one piece: the first `FEW` elements in place, all in a mapping once there are more.
pub struct List<T, const FEW: usize> {
    few: [MaybeUninit<T>; FEW],
    /// Null: still in place.
    many: *mut T,
    room: usize,
    used: usize,
}

impl<T, const FEW: usize> List<T, FEW> {
    pub fn new() -> Self {
        Self {
            few: [const { MaybeUninit::uninit() }; FEW],
            many: std::ptr::null_mut(),
            room: FEW,
            used: 0,
        }
    }

    /// False: no memory.
    #[must_use]
    pub fn push(&mut self, item: T) -> bool {
        if self.used == self.room && !self.grow() {
            return false;
        }
        // SAFETY: below `room`, so inside the array or mapping, and not initialised yet.
        unsafe { self.base().add(self.used).write(item) };
        self.used += 1;
        true
    }

    fn base(&mut self) -> *mut T {
        if self.many.is_null() {
            self.few.as_mut_ptr().cast()
        } else {
            self.many
        }
    }

    #[cold]
    fn grow(&mut self) -> bool {
        let room = (self.room * 2).max(4096 / size_of::<T>());
        let Some(fresh) = map(room * size_of::<T>()) else {
            return false;
        };
        let (fresh, old) = (fresh.cast::<T>(), self.base());
        // SAFETY: `used` initialised elements move to a larger place; pages are aligned for every type.
        unsafe { fresh.copy_from_nonoverlapping(old, self.used) };
        self.release();
        (self.many, self.room) = (fresh, room);
        true
    }

    fn release(&mut self) {
        if !self.many.is_null() {
            // SAFETY: our mapping, of that size, which nothing refers to any more.
            unsafe { unmap(self.many.cast(), self.room * size_of::<T>()) };
            self.many = std::ptr::null_mut();
        }
    }
}

impl<T, const FEW: usize> std::ops::Deref for List<T, FEW> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let base = if self.many.is_null() {
            self.few.as_ptr().cast()
        } else {
            self.many.cast_const()
        };
        // SAFETY: `used` elements are initialised there.
        unsafe { std::slice::from_raw_parts(base, self.used) }
    }
}

impl<T, const FEW: usize> std::ops::DerefMut for List<T, FEW> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        let (base, used) = (self.base(), self.used);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(base, used) }
    }
}

impl<T, const FEW: usize> Drop for List<T, FEW> {
    fn drop(&mut self) {
        let items: *mut [T] = &mut **self;
        // SAFETY: initialised elements, dropped once.
        unsafe { items.drop_in_place() };
        self.release();
    }
}

/// What is copied at a time between a file or pipe and a ring.
pub const PIECE: usize = 32 * 1024;
/// Where there is no memory for that.
const SMALL: usize = 512;

/// Pieces that nobody uses at the moment. One that a thread held at fork is lost to the child, no more.
static SPARE: [AtomicPtr<u8>; 4] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 4];

/// A buffer of `PIECE` bytes, kept for the next call when dropped: fresh pages would cost as much as the copy.
pub struct Piece {
    base: *mut u8,
    small: [u8; SMALL],
}

impl Piece {
    pub fn take() -> Self {
        let spare = SPARE
            .iter()
            .filter(|slot| !slot.load(Relaxed).is_null())
            .map(|slot| slot.swap(std::ptr::null_mut(), Acquire))
            .find(|base| !base.is_null());
        Self {
            base: spare.or_else(|| map(PIECE)).unwrap_or(std::ptr::null_mut()),
            small: [0; SMALL],
        }
    }
}

impl std::ops::Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.base.is_null() {
            return &self.small;
        }
        // SAFETY: our own mapping of that size; its pages began as zeros.
        unsafe { std::slice::from_raw_parts(self.base, PIECE) }
    }
}

impl std::ops::DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        if self.base.is_null() {
            return &mut self.small;
        }
        // SAFETY: as above, and `self` is the only one that has it.
        unsafe { std::slice::from_raw_parts_mut(self.base, PIECE) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let null = std::ptr::null_mut();
        if self.base.is_null()
            || SPARE.iter().any(|slot| {
                slot.compare_exchange(null, self.base, AcqRel, Relaxed)
                    .is_ok()
            })
        {
            return;
        }
        // SAFETY: made by `map` with that size, and nobody else has it.
        unsafe { unmap(self.base, PIECE) };
    }
}
