//! Byte rings, doorbells and the hand-over word in shared memory.
//!
//! Rule of this crate: it knows memory and nothing else. No operating system, no clock, no descriptor: what must be
//! slept on or rung is the caller's business, this crate says *when*. All atomics come through [`sync`], so that loom
//! can explore every protocol here.
//!
//! ```text
//! segment   one per promoted connection, mapped by both ends
//! ┌──────────────┬───────────────────────────┬───────────────────────────┬────────────────┬────────────────┐
//! │ SegmentHeader│ Direction 0: client→server│ Direction 1: server→client│ bytes of dir. 0│ bytes of dir. 1│
//! │ magic, sizes │ WriterLine│ReaderLine│Wait│ WriterLine│ReaderLine│Wait│ ring_bytes     │ ring_bytes     │
//! │ hand-over    │  tail ...    head     ... │                           │ (power of two) │                │
//! └──────────────┴───────────────────────────┴───────────────────────────┴────────────────┴────────────────┘
//! ```
//!
//! Who may touch what:
//! 1. `WriterLine` is stored to only by the writing end, `ReaderLine` only by the reading end; `WaitLine` says per word.
//! 2. Positions count bytes since the start of the stretch and never wrap; an offset is a position masked.
//! 3. The writing end has one writer at a time (the caller's lock); readers need no lock: a read is copied out first
//!    and taken by compare-and-swap of `head`, so a reader that dies or loses the race has taken nothing.
//! 4. Nothing read from here is believed: `tail - head` beyond the ring's size is [`Corrupt`], offsets are masked.

#![allow(unsafe_code)] // Overlays on shared memory and the copies in and out of it; see `bytes` and `layout`.

pub mod bytes;
pub mod events;
pub mod handover;
pub mod layout;
mod overflow;
pub mod shut;
pub mod stream;
pub mod sync;
mod wake;
mod window;

pub use handover::Decision;
pub use layout::{Direction, Key, SegmentHeader, VERSION};
pub use stream::{Part, ReadCache, Rx, Tx, WriteCache, part_bytes};

/// The shared words contradict each other: the peer (or a stray pointer) wrote nonsense. Reset this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;
