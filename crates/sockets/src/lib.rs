//! The engine: what a carried connection does on each call. No operating system and no clock of its own: what it
//! needs of the kernel's socket underneath it asks through [`Kernel`], which the fronts implement.
//!
//! One [`Conn`] per socket and process. Its shared state is the [`gm::End`] in the port's file (common to all
//! processes that hold the socket), its rings are in a [`gm::Segment`] (common with the peer).
//!
//! * `promote`: from plain TCP to the ring (INV-1), one exclusive step at a time
//! * `rejoin`: an end that other processes hold as well
//! * `recv`, `send`: bytes, waiting, and the path each direction is on (INV-2)
//! * `ready`: what poll, select and epoll want to know, and arming for sleep (INV-5)
//! * `waiting`: all of that; `call`: what one call of the program's knows of itself; `bells`: doorbells on the stream of a reader that slept
//! * `back`: the way back to TCP; `end`: shutdown and close

#![forbid(unsafe_code)]

mod back;
mod bells;
mod call;
mod conn;
mod end;
mod gate;
mod kernel;
mod lock;
#[cfg(test)]
mod mock;
mod moving;
mod overflow;
mod promote;
mod ready;
mod recv;
mod rejoin;
mod renewal;
mod send;
mod stream;
mod waiting;
mod window;

pub use back::Given;
pub use conn::Conn;
pub use gate::Gate;
pub use kernel::{Buffers, Fault, Kernel, Peeked, Stream};
pub use ready::Ready;
pub use recv::RecvOptions;
pub use renewal::Renewal;
pub use send::SendOptions;
pub use waiting::{Ask, Deadline, Host, Spin, Spun, set, several};

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Bytes of one ring. Large enough that a bulk sender and receiver seldom meet at its ends, small enough for both
/// directions to stay in a core's second-level cache.
pub const RING_BYTES: usize = 256 * 1024;
/// A connection is offered for promotion when its client has made this many calls that moved bytes (unless
/// [`promote_after`] says otherwise) ...
pub const PROMOTE_CALLS: u32 = 6;
/// ... or moved this many bytes.
pub const PROMOTE_BYTES: u64 = 64 * 1024;
/// An offer that nobody claimed is withdrawn after this many calls ...
pub const OFFER_PATIENCE_CALLS: u32 = 4096;
/// ... but not before it has stood this long: a busy server on a busy CPU may be kept from its next call for a while,
/// and a standing offer costs its client one load per call.
pub const OFFER_PATIENCE_US: u64 = 5_000_000;

/// A promotion has paid when it carried this many messages, or [`PROMOTE_BYTES`]: making a segment and agreeing on it costs as
/// much as so many messages save. Servers to which promotions do not pay are offered fewer (`gm::node`, rule 3).
pub const PAID_AFTER_MESSAGES: u64 = 16;

/// A sleep on an event queue is this long at most, in µs, and all that it waits for is looked at again then: whoever may write
/// into the node's files may spoil a queue's words or take what was rung.
const QUEUE_SLICE_US: u64 = 10_000_000;

static PROMOTE_AFTER: AtomicU32 = AtomicU32::new(PROMOTE_CALLS);

/// This process's connections are offered after `calls` calls. With 0 a suite of short tests gets to the rings.
pub fn promote_after(calls: u32) {
    PROMOTE_AFTER.store(calls, Relaxed);
}

/// Is nothing to be saved for connections that prove busy? So suites of short tests get to all that these have.
pub fn at_once() -> bool {
    PROMOTE_AFTER.load(Relaxed) == 0
}
