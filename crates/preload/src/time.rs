//! Time-outs as the program gives them, and as system calls take them.

use std::ffi::c_int;

use gm::os::monotonic_ns;
use libc::timespec;
pub use sockets::Deadline;

/// That many µs from now.
pub fn after_us(us: u64) -> Deadline {
    Deadline::after_us(us, monotonic_ns)
}

/// poll's and epoll_wait's time-out: negative is never.
pub fn after_ms(ms: c_int) -> Deadline {
    u64::try_from(ms).map_or(Deadline::NEVER, |ms| after_us(ms * 1000))
}

/// ppoll's time-out: null is never.
///
/// # Safety
/// Null or readable.
pub unsafe fn after_timespec(t: *const timespec) -> Deadline {
    // SAFETY: by the caller.
    unsafe { t.as_ref() }.map_or(Deadline::NEVER, |t| {
        let us = (t.tv_sec.max(0) as u64).saturating_mul(1_000_000);
        after_us(us.saturating_add((t.tv_nsec.max(0) as u64).div_ceil(1000)))
    })
}

/// Is this a time that the kernel takes? Others it refuses, and so must we.
///
/// # Safety
/// Null or readable.
pub unsafe fn is_time(t: *const timespec) -> bool {
    // SAFETY: by the caller.
    unsafe { t.as_ref() }.is_none_or(|t| t.tv_sec >= 0 && (0..1_000_000_000).contains(&t.tv_nsec))
}

pub fn passed(deadline: Deadline) -> bool {
    deadline.passed(monotonic_ns)
}

/// What is left, in ns.
pub fn left_ns(deadline: Deadline) -> Option<u64> {
    deadline.left_ns(monotonic_ns)
}

/// What is left, for a system call.
pub fn left(deadline: Deadline) -> Option<timespec> {
    left_ns(deadline).map(timespec_of)
}

pub fn timespec_of(ns: u64) -> timespec {
    timespec {
        tv_sec: (ns / 1_000_000_000) as i64,
        tv_nsec: (ns % 1_000_000_000) as i64,
    }
}
