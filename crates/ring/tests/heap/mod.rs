//! A ring in ordinary memory, between two guard pages that nobody may touch.

use std::cell::UnsafeCell;

use sgm_ring::bytes::Bytes;
use sgm_ring::{Direction, Rx, Tx};

pub const PAGE: usize = 4096;
const GUARD: u8 = 0xA5;

pub struct Heap {
    pub direction: Box<Direction>,
    cells: Box<[UnsafeCell<u8>]>,
    start: usize,
    len: usize,
}

// SAFETY: the words are atomics, the bytes are shared under the ring's protocol, as they would be with a peer.
unsafe impl Sync for Heap {}

impl Heap {
    pub fn new(len: usize) -> Self {
        let cells: Box<[_]> = (0..len + 3 * PAGE)
            .map(|_| UnsafeCell::new(GUARD))
            .collect();
        let start = PAGE + cells.as_ptr().align_offset(PAGE);
        Self {
            direction: Box::default(),
            cells,
            start,
            len,
        }
    }

    fn bytes(&self) -> Bytes<'_> {
        let all = UnsafeCell::raw_get(self.cells.as_ptr());
        // SAFETY: `start + len` is inside `cells`, which live as long as `self`; `len` is a power of two.
        unsafe { Bytes::new(all.add(self.start), self.len) }
    }

    pub fn tx(&self) -> Tx<'_> {
        Tx {
            direction: &self.direction,
            bytes: self.bytes(),
        }
    }

    pub fn rx(&self) -> Rx<'_> {
        Rx {
            direction: &self.direction,
            bytes: self.bytes(),
        }
    }
}

impl Drop for Heap {
    /// Every test that ends without complaint has written to its ring only.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let (start, end) = (self.start, self.start + self.len);
        let sound = |cells: &mut [UnsafeCell<u8>]| cells.iter_mut().all(|c| *c.get_mut() == GUARD);
        assert!(sound(&mut self.cells[..start]), "written before the ring");
        assert!(sound(&mut self.cells[end..]), "written behind the ring");
    }
}
