//! A ring and its overflow area in ordinary memory, between guard pages that nobody may touch.

use std::cell::UnsafeCell;
use std::sync::OnceLock;

use sgm_ring::bytes::{Area, Bytes};
use sgm_ring::{Direction, Rx, Tx};

pub const PAGE: usize = 4096;
const GUARD: u8 = 0xA5;

pub struct Heap {
    pub direction: Box<Direction>,
    cells: Box<[UnsafeCell<u8>]>,
    start: usize,
    len: usize,
    overflow: usize,
    /// Of `cells`, from the first use on.
    bytes: OnceLock<Bytes<'static>>,
}

// SAFETY: the words are atomics, the bytes are shared under the ring's protocol, as they would be with a peer.
unsafe impl Sync for Heap {}

impl Heap {
    pub fn new(len: usize) -> Self {
        Self::with_overflow(len, 0)
    }

    pub fn with_overflow(len: usize, overflow: usize) -> Self {
        let cells: Box<[_]> = (0..len + overflow + 4 * PAGE)
            .map(|_| UnsafeCell::new(GUARD))
            .collect();
        let start = PAGE + cells.as_ptr().align_offset(PAGE);
        Self {
            direction: Box::default(),
            cells,
            start,
            len,
            overflow,
            bytes: OnceLock::new(),
        }
    }

    /// Where the overflow area is: behind the ring and a guard page.
    fn overflow_start(&self) -> usize {
        self.start + self.len + PAGE
    }

    fn bytes(&self) -> &Bytes<'_> {
        self.bytes.get_or_init(|| {
            let all = UnsafeCell::raw_get(self.cells.as_ptr());
            // SAFETY: both are inside `cells`, which live as long as `self`; the lengths are powers of two.
            let area = |at, len| unsafe { Area::new(all.add(at), len) };
            let overflow = self.overflow_start();
            let overflow = (self.overflow != 0).then(|| area(overflow, self.overflow));
            Bytes::new(area(self.start, self.len), overflow)
        })
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
    /// Every test that ends without complaint has written to its areas only.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let (start, end) = (self.start, self.start + self.len);
        let overflow = self.overflow_start();
        let sound = |cells: &mut [UnsafeCell<u8>]| cells.iter_mut().all(|c| *c.get_mut() == GUARD);
        assert!(sound(&mut self.cells[..start]), "written before the ring");
        assert!(
            sound(&mut self.cells[end..overflow]),
            "written behind the ring"
        );
        assert!(
            sound(&mut self.cells[overflow + self.overflow..]),
            "written behind the overflow area"
        );
    }
}
