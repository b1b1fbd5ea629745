//! May the program's buffers be used? TCP's calls are answered by the system, which says WSAEFAULT for memory that is not
//! there; a ring is read and written by us, and would fault.
//!
//! The system is asked once for each region of memory (some µs). What it said is kept: programs use the same few buffers for
//! every call. Memory that is given back later may fault then, as it may in any code of the program's own.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEMORY_BASIC_INFORMATION, PAGE_EXECUTE, PAGE_EXECUTE_READ, PAGE_NOACCESS,
    PAGE_READONLY, VirtualQuery,
};

const PAGE_BITS: u32 = 12;
/// Of a region's word: its first page above, the number of its pages below.
const COUNT_BITS: u32 = 24;
const REGIONS: usize = 8;

/// Regions that may be used in one way.
struct Known {
    regions: [AtomicU64; REGIONS],
    next: AtomicU32,
}

static READABLE: Known = Known::none();
static WRITABLE: Known = Known::none();

impl Known {
    const fn none() -> Self {
        Self {
            regions: [const { AtomicU64::new(0) }; REGIONS],
            next: AtomicU32::new(0),
        }
    }

    #[inline]
    fn has(&self, first: u64, last: u64) -> bool {
        self.regions.iter().any(|word| {
            let word = word.load(Relaxed);
            let start = word >> COUNT_BITS;
            let pages = word & ((1 << COUNT_BITS) - 1);
            first >= start && last < start + pages
        })
    }

    #[cold]
    fn learn(&self, start: u64, pages: u64) {
        let pages = pages.min((1 << COUNT_BITS) - 1);
        let at = self.next.fetch_add(1, Relaxed) as usize % REGIONS;
        self.regions[at].store(start << COUNT_BITS | pages, Relaxed);
    }
}

/// Can all of it be written (or only read)?
#[inline]
pub fn is_usable(at: *const u8, len: usize, write: bool) -> bool {
    let known = if write { &WRITABLE } else { &READABLE };
    let Some(end) = at.addr().checked_add(len.max(1) - 1) else {
        return false;
    };
    let (first, last) = ((at.addr() >> PAGE_BITS) as u64, (end >> PAGE_BITS) as u64);
    known.has(first, last) || ask(known, at.addr(), end, write)
}

#[cold]
fn ask(known: &Known, mut at: usize, end: usize, write: bool) -> bool {
    while at <= end {
        let mut told = MEMORY_BASIC_INFORMATION::default();
        // SAFETY: an address to ask about, an out-structure of the size given.
        let got = unsafe {
            VirtualQuery(
                std::ptr::without_provenance(at),
                &mut told,
                size_of::<MEMORY_BASIC_INFORMATION>(),
            )
        };
        let (start, len) = (told.BaseAddress.addr(), told.RegionSize);
        let refused = match told.Protect & 0xff {
            PAGE_NOACCESS | PAGE_EXECUTE | 0 => true,
            PAGE_READONLY | PAGE_EXECUTE_READ => write,
            _ => false,
        };
        if got == 0 || told.State != MEM_COMMIT || refused || len == 0 {
            return false;
        }
        known.learn((start >> PAGE_BITS) as u64, (len >> PAGE_BITS) as u64);
        at = start.saturating_add(len);
    }
    true
}
