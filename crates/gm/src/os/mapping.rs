//! A shared mapping of a whole file.

use std::io;
use std::ptr::NonNull;

use super::{populate_pages, remove_pages, unmap};

/// Unmapped on drop.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is shared memory; every access goes through atomics or the ring's copies.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `base..base + len` is a mapping that nobody else unmaps.
    pub(super) fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub fn bytes(&self) -> usize {
        self.len
    }

    /// A table of `T` at `offset`, if the mapping holds `count` of them.
    ///
    /// # Safety
    /// `T` must consist of atomics alone: valid for any bit pattern and for concurrent change by other processes.
    pub unsafe fn table<T>(&self, offset: usize, count: usize) -> Option<&[T]> {
        let bytes = count.checked_mul(size_of::<T>())?;
        let fits = offset.checked_add(bytes)? <= self.len;
        if !fits || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: in bounds (just checked), aligned (mappings are page-aligned), any bits are valid (caller).
        Some(unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast(), count) })
    }

    /// Makes sure the pages under `offset..offset + len` exist, so that touching them can't fail when the file system
    /// is full. The range is widened to whole pages.
    pub fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        const PAGE: usize = 4096;
        let start = offset / PAGE * PAGE;
        let end = (offset + len).div_ceil(PAGE) * PAGE;
        if end > self.len.div_ceil(PAGE) * PAGE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range lies inside our mapping.
        unsafe { populate_pages(self.base.as_ptr().add(start), end - start) }
    }

    /// Gives the memory of `offset..offset + len` back, in the file as well; both are whole pages. The bytes are zero then.
    pub fn drop_pages(&self, offset: usize, len: usize) -> io::Result<()> {
        if offset.saturating_add(len) > self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range lies inside our mapping.
        unsafe { remove_pages(self.base.as_ptr().add(offset), len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; whoever borrowed from it borrowed from `self`.
        unsafe { unmap(self.base.as_ptr(), self.len) };
    }
}
