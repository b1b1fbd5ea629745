//! The bytes of a ring: the only place where memory that the peer can write is copied.

use core::marker::PhantomData;

/// The data area of one ring, `mask + 1` bytes.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    #[cfg(not(loom))]
    base: *mut u8,
    #[cfg(loom)]
    cells: &'a [loom::sync::atomic::AtomicU8],
    mask: u64,
    _life: PhantomData<&'a u8>,
}

// SAFETY: the area is shared memory by design; all access is by the copies below, under the ring's protocol.
#[cfg(not(loom))]
unsafe impl Send for Bytes<'_> {}
// SAFETY: as above.
#[cfg(not(loom))]
unsafe impl Sync for Bytes<'_> {}

impl<'a> Bytes<'a> {
    /// # Safety
    /// `base..base + len` must be mapped readable and writable for `'a`; `len` must be a power of two.
    #[cfg(not(loom))]
    pub unsafe fn new(base: *mut u8, len: usize) -> Self {
        debug_assert!(len.is_power_of_two());
        Self {
            base,
            mask: len as u64 - 1,
            _life: PhantomData,
        }
    }

    #[cfg(loom)]
    pub fn model(cells: &'a [loom::sync::atomic::AtomicU8]) -> Self {
        assert!(cells.len().is_power_of_two());
        Self {
            cells,
            mask: cells.len() as u64 - 1,
            _life: PhantomData,
        }
    }

    #[inline]
    pub fn capacity(&self) -> u64 {
        self.mask + 1
    }

    /// Splits `len` bytes at `position` into the piece before the wrap and the rest.
    #[inline]
    #[cfg(not(loom))]
    fn pieces(&self, position: u64, len: usize) -> (usize, usize) {
        debug_assert!(len as u64 <= self.capacity());
        let offset = (position & self.mask) as usize;
        (offset, len.min(self.mask as usize + 1 - offset))
    }

    /// Copies into the ring at `position`; at most `capacity` bytes.
    #[inline]
    #[cfg(not(loom))]
    pub fn put(&self, position: u64, src: &[u8]) {
        let (offset, first) = self.pieces(position, src.len().min(self.mask as usize + 1));
        let rest = src.len().min(self.mask as usize + 1) - first;
        // SAFETY: `pieces` keeps both runs inside the area; the source is the caller's own slice. The peer may be
        // reading these bytes only if it ignores the protocol, and then reads garbage, not more.
        unsafe {
            core::ptr::copy_nonoverlapping(src.as_ptr(), self.base.add(offset), first);
            core::ptr::copy_nonoverlapping(src.as_ptr().add(first), self.base, rest);
        }
    }

    /// Copies out of the ring at `position`; at most `capacity` bytes.
    #[inline]
    #[cfg(not(loom))]
    pub fn get(&self, position: u64, dst: &mut [u8]) {
        let (offset, first) = self.pieces(position, dst.len().min(self.mask as usize + 1));
        let rest = dst.len().min(self.mask as usize + 1) - first;
        // SAFETY: as in `put`. A reader that loses the race for these bytes may copy while they are overwritten; it
        // then fails its compare-and-swap and the copy is thrown away.
        unsafe {
            core::ptr::copy_nonoverlapping(self.base.add(offset), dst.as_mut_ptr(), first);
            core::ptr::copy_nonoverlapping(self.base, dst.as_mut_ptr().add(first), rest);
        }
    }

    #[cfg(loom)]
    pub fn put(&self, position: u64, src: &[u8]) {
        for (i, b) in src.iter().enumerate() {
            let offset = ((position + i as u64) & self.mask) as usize;
            self.cells[offset].store(*b, loom::sync::atomic::Ordering::Relaxed);
        }
    }

    #[cfg(loom)]
    pub fn get(&self, position: u64, dst: &mut [u8]) {
        for (i, b) in dst.iter_mut().enumerate() {
            let offset = ((position + i as u64) & self.mask) as usize;
            *b = self.cells[offset].load(loom::sync::atomic::Ordering::Relaxed);
        }
    }
}
