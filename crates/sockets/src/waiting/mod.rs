//! Waiting. Look at the rings for a while; arm; look once more; sleep in the system (INV-5). What differs per system, how to
//! sleep and how to ring, is the front's: behind [`crate::Kernel`], and `Below` of each way of waiting.
//!
//! * `spin`: how long to look before sleeping; `deadline`: when a call that waits ends
//! * `several`: a call that brings its sockets along: poll, select, WSPSelect, WSAPoll
//! * `set`: a set that outlasts the call: epoll
//! * `idle`: a receive that finds nothing; `signals`: signals while a send waits

mod deadline;
mod idle;
pub mod set;
pub mod several;
mod signals;
mod spin;

pub use self::deadline::Deadline;
pub(crate) use self::signals::Waiting;
pub use self::spin::{Spin, Spun};

/// How the system is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What is there now, by the way: no call of the program's, and nobody is to see a failure.
    Look,
    /// As the program's own call: until there is something, at most for so many ns (`None`: without limit).
    Sleep(Option<u64>),
}

/// The machine, as far as who waits must know it.
pub trait Host {
    /// Nanoseconds of a monotonic clock.
    fn now_ns(&self) -> u64;
    /// Lets another thread of this CPU run.
    fn yield_now(&self);
    /// CPUs this process may run on.
    fn cpus(&self) -> u32;
}

/// How long a sleep may last, in ns: to the deadline, and no longer than a slice.
fn sleep_limit_ns(
    deadline: Deadline,
    slice_ns: Option<u64>,
    now_ns: impl FnOnce() -> u64,
) -> Option<u64> {
    deadline.left_ns(now_ns).into_iter().chain(slice_ns).min()
}
