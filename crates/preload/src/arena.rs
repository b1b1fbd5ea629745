//! Things that are used again and never freed, taken and given back without a lock: each has a number, and the free ones
//! hang on a list of numbers whose head counts its changes (see `heap`).

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};

use crate::scratch::{map, unmap};

/// Pieces double in size, so these hold far more than there are descriptors.
const PIECES: usize = 24;
const FIRST: usize = 16;

pub struct Arena<T> {
    pieces: [AtomicPtr<T>; PIECES],
    made: AtomicU32,
    /// Changes in the upper half; 1 + the first free one's number in the lower.
    free: AtomicU64,
}

/// What each thing has for its arena.
pub struct Place {
    /// 1 + the number of the next free one; 0: the last.
    next: AtomicU32,
    /// 1 + its own number; 0: not made yet (fresh pages are zeros).
    number: AtomicU32,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    pub const fn new() -> Self {
        Self {
            next: AtomicU32::new(0),
            number: AtomicU32::new(0),
        }
    }
}

pub trait Placed {
    fn place(&self) -> &Place;
}

impl<T: Placed + Sync + 'static> Arena<T> {
    pub const fn new() -> Self {
        Self {
            pieces: [const { AtomicPtr::new(std::ptr::null_mut()) }; PIECES],
            made: AtomicU32::new(0),
            free: AtomicU64::new(0),
        }
    }

    /// Piece and place in it.
    fn split(number: u32) -> (usize, usize) {
        let n = number as usize / FIRST + 1;
        let piece = n.ilog2() as usize;
        (piece, number as usize - FIRST * ((1 << piece) - 1))
    }

    /// Where the thing of that number is, if its piece is there.
    fn at(&self, number: u32) -> Option<*mut T> {
        let (piece, i) = Self::split(number);
        let base = self.pieces.get(piece)?.load(Acquire);
        (!base.is_null()).then(|| base.wrapping_add(i))
    }

    /// One that nobody uses, made by `make` if there is none. `None`: no memory.
    pub fn take(&self, make: impl FnOnce() -> T) -> Option<&'static T> {
        self.take_free().or_else(|| self.make(make))
    }

    /// One that nobody uses, if there is one.
    pub fn take_free(&self) -> Option<&'static T> {
        let mut head = self.free.load(Acquire);
        while let Some(number) = (head as u32).checked_sub(1) {
            // SAFETY: what was in the list once is made, and never freed.
            let thing: &'static T = unsafe { &*self.at(number)? };
            let next = thing.place().next.load(Relaxed);
            let changed = (head >> 32).wrapping_add(1) << 32 | u64::from(next);
            match self
                .free
                .compare_exchange_weak(head, changed, AcqRel, Acquire)
            {
                Ok(_) => return Some(thing),
                Err(now) => head = now,
            }
        }
        None
    }

    /// One that was never used.
    pub fn fresh(&self, make: impl FnOnce() -> T) -> Option<&'static T> {
        self.make(make)
    }

    #[cold]
    fn make(&self, make: impl FnOnce() -> T) -> Option<&'static T> {
        let number = self.made.load(Relaxed);
        self.have_piece(number)?;
        let number = self.made.fetch_add(1, AcqRel);
        self.have_piece(number)?;
        let at = self.at(number)?;
        // SAFETY: inside the piece, and this number is nobody else's.
        let thing: &'static T = unsafe {
            at.write(make());
            &*at
        };
        thing.place().number.store(number + 1, Release);
        Some(thing)
    }

    fn have_piece(&self, number: u32) -> Option<()> {
        let (piece, _) = Self::split(number);
        let cell = self.pieces.get(piece)?;
        if !cell.load(Acquire).is_null() {
            return Some(());
        }
        let bytes = (FIRST << piece) * size_of::<T>();
        let base = map(bytes.next_multiple_of(4096))?;
        let null = std::ptr::null_mut();
        if cell
            .compare_exchange(null, base.cast(), AcqRel, Relaxed)
            .is_err()
        {
            // SAFETY: mapped just now, and nobody knows of it.
            unsafe { unmap(base, bytes.next_multiple_of(4096)) };
        }
        Some(())
    }

    /// It is free to be taken.
    pub fn give(&self, thing: &'static T) {
        let number = thing.place().number.load(Relaxed);
        let mut head = self.free.load(Relaxed);
        loop {
            thing.place().next.store(head as u32, Relaxed);
            let changed = (head >> 32).wrapping_add(1) << 32 | u64::from(number);
            match self
                .free
                .compare_exchange_weak(head, changed, Release, Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// As [`crate::heap::in_child`].
    pub fn in_child(&self) {
        self.free.store(0, Relaxed);
    }

    /// All that were ever made, in use or not.
    pub fn all(&self) -> impl Iterator<Item = &'static T> {
        (0..self.made.load(Acquire)).filter_map(|number| {
            let at = self.at(number)?;
            // SAFETY: inside the piece: fresh zeros, in which the place's number is 0, or a thing that is never freed.
            unsafe {
                let thing = &*at;
                (thing.place().number.load(Acquire) != 0).then_some(thing)
            }
        })
    }
}
