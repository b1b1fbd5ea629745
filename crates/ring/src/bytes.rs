//! The bytes of a direction: the only place where memory that the peer can write is copied.

use core::marker::PhantomData;

/// One data area, `mask + 1` bytes.
#[derive(Clone, Copy)]
pub struct Area<'a> {
    #[cfg(not(loom))]
    base: *mut u8,
    #[cfg(loom)]
    cells: &'a [loom::sync::atomic::AtomicU8],
    mask: u64,
    _life: PhantomData<&'a u8>,
}

// SAFETY: the area is shared memory by design; all access is by the copies below, under the ring's protocol.
#[cfg(not(loom))]
unsafe impl Send for Area<'_> {}
// SAFETY: as above.
#[cfg(not(loom))]
unsafe impl Sync for Area<'_> {}

impl<'a> Area<'a> {
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

    /// Copies into the area at `position`; at most `capacity` bytes.
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

    /// Copies out of the area at `position`; at most `capacity` bytes.
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

/// Where in a direction's positions each area was last begun: everything since the later of the two is in that one, and what came
/// before, as far as it is unread, in the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    pub ring: u64,
    pub overflow: u64,
}

impl Turns {
    /// Is it the overflow area that is written to?
    #[inline]
    pub fn overflows(self) -> bool {
        self.overflow > self.ring
    }

    /// Since when the area that is written to is.
    #[inline]
    pub fn last(self) -> u64 {
        self.ring.max(self.overflow)
    }
}

/// The data areas of a direction: the ring, and what takes the bytes for which that has no room.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    ring: Area<'a>,
    overflow: Option<Area<'a>>,
    /// Of both.
    capacity: u64,
}

impl<'a> Bytes<'a> {
    pub fn new(ring: Area<'a>, overflow: Option<Area<'a>>) -> Self {
        let capacity = ring.capacity() + overflow.map_or(0, |o| o.capacity());
        Self {
            ring,
            overflow,
            capacity,
        }
    }

    /// Bytes of the ring.
    #[inline]
    pub fn capacity(&self) -> u64 {
        self.ring.capacity()
    }

    /// Bytes of the overflow area; 0: there is none.
    #[inline]
    pub fn overflow(&self) -> u64 {
        self.capacity - self.ring.capacity()
    }

    /// Bytes that may be unread at most.
    #[inline]
    pub fn all(&self) -> u64 {
        self.capacity
    }

    /// Copies in at `position`, which is in the area that is written to.
    #[inline]
    pub fn put(&self, turns: Turns, position: u64, src: &[u8]) {
        match turns.overflows() {
            false => self.ring.put(position, src),
            true => self.put_beside(turns, position, src),
        }
    }

    #[cold]
    fn put_beside(self, turns: Turns, position: u64, src: &[u8]) {
        let (area, at) = self.area(turns, true, position);
        area.put(at, src);
    }

    /// Copies out, also over the border of the areas.
    #[inline]
    pub fn get(&self, turns: Turns, position: u64, dst: &mut [u8]) {
        match turns == Turns::default() {
            true => self.ring.get(position, dst),
            false => self.get_beside(turns, position, dst),
        }
    }

    #[cold]
    fn get_beside(self, turns: Turns, position: u64, dst: &mut [u8]) {
        let (last, overflows) = (turns.last(), turns.overflows());
        // Whatever the peer says, the pieces lie inside the areas.
        let before = last.saturating_sub(position).min(dst.len() as u64) as usize;
        let (before, since) = dst.split_at_mut(before);
        if !before.is_empty() {
            let (area, at) = self.area(turns, !overflows, position);
            area.get(at, before);
        }
        if !since.is_empty() {
            let position = position.wrapping_add(before.len() as u64);
            let (area, at) = self.area(turns, overflows, position);
            area.get(at, since);
        }
    }

    /// The area, and what `position` is in it. A turn to overflow begins at that area's first byte, so that a small one has few pages.
    fn area(self, turns: Turns, overflows: bool, position: u64) -> (Area<'a>, u64) {
        match self.overflow {
            Some(area) if overflows => (area, position.wrapping_sub(turns.overflow)),
            _ => (self.ring, position),
        }
    }
}
