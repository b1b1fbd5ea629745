//! The Linux front, `libsockets_gm.so`: interposed libc calls. Decode the call, one engine call, encode the answer.
//!
//! Rules of a guest:
//! 1. Nothing is printed, no thread is started, errno changes only as the original would change it.
//! 2. A descriptor that is not in the table (`fds`) costs one load and goes to the original.
//! 3. Nothing here makes a call fail that would have worked on TCP: whatever goes wrong means "plain".

#![allow(unsafe_code)] // C signatures and C memory; every block says what it relies on.

#[macro_use]
mod table;
mod adopt;
#[cfg(target_arch = "x86_64")]
mod alias;
mod arena;
mod buffers;
mod cancel;
mod ctx;
mod epoll;
mod fds;
mod file;
mod giving;
mod heap;
mod kernel;
mod leap;
mod lock;
mod objects;
mod once;
mod options;
mod poll;
mod process;
mod queues;
mod quiet;
mod raw;
mod real;
mod receive;
mod scratch;
mod select;
mod send;
mod setup;
mod signals;
mod stdio;
mod thread;
mod time;
mod uring;
#[cfg(target_arch = "x86_64")]
mod variadic;
mod vectors;

use std::ffi::c_int;

/// errno of the calling thread.
fn errno() -> c_int {
    // SAFETY: always valid to call.
    unsafe { *libc::__errno_location() }
}

fn set_errno(e: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = e };
}
