//! The front's own heap: what `Box`, `Vec` and `format!` of this library take. Not the C library's, for a hook may be called
//! where malloc's lock is held: by a signal handler, by an allocator that opens a socket, in a forked child.
//!
//! ```text
//!   chunk   64 KiB, aligned to that: 16 bytes that say its number, then blocks of one class
//!   class   blocks of 16 B, 32 B, ... 16 KiB, each aligned to its size; larger ones are mappings of their own
//!   block   named by chunk number and offset in 16 bytes: 28 bits, so that a free list's head has room for a count
//! ```
//!
//! Rules:
//! 1. No lock, no loop that waits for somebody: each step is one compare-and-swap, and who loses it has seen another win.
//! 2. A free list's head counts its changes in the upper half, so that a block which was taken and given back meanwhile
//!    is not mistaken for one that lay there all the time.
//! 3. Chunks are never unmapped, so a look into a block that somebody else has just taken reads memory, if not a link.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

use crate::scratch::{map, unmap};

const CHUNK: usize = 64 * 1024;
/// 256 MiB.
const CHUNKS_MAX: usize = 4096;
/// Blocks are named in units of the smallest.
const UNIT: usize = 16;
const CLASSES: usize = 11;
const LARGEST: usize = UNIT << (CLASSES - 1);
/// Units of a chunk.
const UNITS: u32 = (CHUNK / UNIT) as u32;

/// In the child of a process with threads: its memory is not of one moment, so the lists may name blocks that are in use. They are
/// left as they are, for good.
pub fn in_child() {
    for class in &OF_CLASS {
        class.free.store(0, Relaxed);
        class.fresh.store(0, Relaxed);
    }
}

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

static CHUNKS: [AtomicPtr<u8>; CHUNKS_MAX] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; CHUNKS_MAX];
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Blocks of one size.
struct Class {
    /// Changes in the upper half; the first free block's name in the lower, 0: none.
    free: AtomicU64,
    /// The next block of the newest chunk that was never given out; 0: none.
    fresh: AtomicU32,
}

static OF_CLASS: [Class; CLASSES] = [const {
    Class {
        free: AtomicU64::new(0),
        fresh: AtomicU32::new(0),
    }
}; CLASSES];

/// The class that a layout belongs to; `None`: too large for any.
fn class_of(layout: Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(UNIT);
    (size <= LARGEST).then(|| (size.next_power_of_two() / UNIT).trailing_zeros() as usize)
}

/// Where the block of that name is.
fn place(name: u32) -> *mut u8 {
    let chunk = CHUNKS[(name / UNITS) as usize].load(Acquire);
    chunk.wrapping_add((name % UNITS) as usize * UNIT)
}

/// # Safety
/// A block of a chunk.
unsafe fn name(block: *mut u8) -> u32 {
    let offset = block as usize % CHUNK;
    // SAFETY: chunks are aligned to their size, and begin with their number.
    let number = unsafe { block.wrapping_sub(offset).cast::<u32>().read() };
    number * UNITS + (offset / UNIT) as u32
}

/// # Safety
/// A block of a chunk.
unsafe fn link<'a>(block: *mut u8) -> &'a AtomicU32 {
    // SAFETY: at least 16 bytes, aligned to 16, never unmapped. Where its owner writes to it meanwhile, what is read here is
    // thrown away (rule 2).
    unsafe { &*block.cast::<AtomicU32>() }
}

impl Class {
    fn pop(&self) -> Option<*mut u8> {
        let mut head = self.free.load(Acquire);
        loop {
            let first = head as u32;
            if first == 0 {
                return None;
            }
            let block = place(first);
            // SAFETY: it was in the list a moment ago, so it is a block.
            let next = unsafe { link(block) }.load(Relaxed);
            let changed = (head >> 32).wrapping_add(1) << 32 | u64::from(next);
            match self
                .free
                .compare_exchange_weak(head, changed, AcqRel, Acquire)
            {
                Ok(_) => return Some(block),
                Err(now) => head = now,
            }
        }
    }

    /// # Safety
    /// A block of this class that nobody uses.
    unsafe fn push(&self, block: *mut u8) {
        // SAFETY: by the caller.
        let (name, link) = unsafe { (name(block), link(block)) };
        let mut head = self.free.load(Relaxed);
        loop {
            link.store(head as u32, Relaxed);
            let changed = (head >> 32).wrapping_add(1) << 32 | u64::from(name);
            match self
                .free
                .compare_exchange_weak(head, changed, Release, Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// A block that was never used; `units` is the class's size.
    fn take_fresh(&self, units: u32) -> Option<*mut u8> {
        loop {
            let at = self.fresh.load(Acquire);
            if at == 0 {
                let first = new_chunk()? * UNITS + units;
                if self
                    .fresh
                    .compare_exchange(0, first, AcqRel, Relaxed)
                    .is_err()
                {
                    // Another was as quick: this chunk's blocks go into the list.
                    for name in (first..first / UNITS * UNITS + UNITS).step_by(units as usize) {
                        // SAFETY: a whole block of a chunk that nobody knows of.
                        unsafe { self.push(place(name)) };
                    }
                    return self.pop();
                }
                continue;
            }
            let next = at + units;
            let next = if next.is_multiple_of(UNITS) { 0 } else { next };
            if self
                .fresh
                .compare_exchange_weak(at, next, AcqRel, Relaxed)
                .is_ok()
            {
                return Some(place(at));
            }
        }
    }
}

/// Chunks that are mapped at once.
const AT_ONCE: usize = 8;
/// Where the next of them is, and in the low bits how many there are.
static NEXT: AtomicUsize = AtomicUsize::new(0);
const PLACE: usize = !(CHUNK - 1);

/// Room for a chunk.
fn chunk_room() -> Option<*mut u8> {
    let one_less = |next: usize| (!next.is_multiple_of(CHUNK)).then(|| next + CHUNK - 1);
    if let Ok(next) = NEXT.fetch_update(AcqRel, Acquire, one_less) {
        return Some(std::ptr::with_exposed_provenance_mut(next & PLACE));
    }
    // Aligned, or one less.
    let all = map(AT_ONCE * CHUNK)?;
    let before = all.align_offset(CHUNK);
    let first = all.wrapping_add(before);
    let many = AT_ONCE - usize::from(before > 0);
    first.expose_provenance();
    let rest = first as usize + CHUNK + many - 1;
    // Where another was as quick, what it has not given out yet stays unused.
    NEXT.store(rest, Release);
    Some(first)
}

/// The number of a fresh chunk. `None`: no memory.
fn new_chunk() -> Option<u32> {
    let chunk = chunk_room()?;
    let number = MADE.fetch_add(1, Relaxed);
    let Some(cell) = CHUNKS.get(number) else {
        MADE.store(CHUNKS_MAX, Relaxed);
        // SAFETY: nobody knows of it.
        unsafe { unmap(chunk, CHUNK) };
        return None;
    };
    // SAFETY: the first bytes of the chunk, which belong to no block.
    unsafe { chunk.cast::<u32>().write(number as u32) };
    cell.store(chunk, Release);
    Some(number as u32)
}

fn pages(size: usize) -> usize {
    const PAGE: usize = 4096;
    size.next_multiple_of(PAGE)
}

// SAFETY: a block is given out once until it is given back: `free` and `fresh` change by compare-and-swap alone; blocks are as
// large and as aligned as their class, mappings are of whole pages.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = match class_of(layout) {
            Some(i) => OF_CLASS[i].pop().or_else(|| OF_CLASS[i].take_fresh(1 << i)),
            None => map(pages(layout.size())),
        };
        block.unwrap_or(std::ptr::null_mut())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: by the caller, from `alloc` with this layout.
        unsafe {
            match class_of(layout) {
                Some(i) => OF_CLASS[i].push(block),
                None => unmap(block, pages(layout.size())),
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: `size` is not 0 and does not overflow, by the caller; the alignment is an old one.
        unsafe {
            let wanted = Layout::from_size_align_unchecked(size, layout.align());
            let class = class_of(layout);
            if class.is_some() && class == class_of(wanted) {
                return block;
            }
            let other = self.alloc(wanted);
            if !other.is_null() {
                other.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
            other
        }
    }
}
