//! liburing makes its system calls in line, so its own functions are hooked: those that submit, before they publish what
//! the program has put into `struct io_uring`; those that make and end rings, so that we know that these are seen; those
//! that register files.
//!
//! The library's name space is not ours. It may be loaded for one plug-in alone, or be part of one, and yet its calls come
//! here first: so `real` looks for the original beyond the global scope. Without one the answer is -ENOSYS, which is what
//! a program gets where the kernel has no io_uring.
//!
//! `io_uring_wait_cqes` and its kin submit nothing on kernels that a node runs on (IORING_FEAT_EXT_ARG).

use std::ffi::{c_int, c_uint, c_void};

use libc::{sigset_t, size_t};

use super::rings::{self, Params, setup as flag};
use super::sqe::{Sqe, to_tcp_all};
use super::{before_enter, go_blind, is_ring, made, registered};
use crate::real;

/// The beginning of `struct io_uring`, the same in all of liburing.so.2.
#[repr(C)]
struct Head {
    khead: *const u32,
    ktail: *const u32,
    kring_mask: *const u32,
    unused: [usize; 4],
    sqes: *mut u8,
    sqe_head: u32,
    sqe_tail: u32,
    more_sq: [u64; 4],
    cq: [u64; 11],
    flags: u32,
    ring_fd: c_int,
}
const _: () = assert!(std::mem::offset_of!(Head, ring_fd) == 196);

/// Looks at what the next submission will publish.
///
/// # Safety
/// Null, or the caller's ring.
unsafe fn look(ring: *const c_void) {
    // SAFETY: by the caller.
    let Some(r) = (unsafe { ring.cast::<Head>().as_ref() }) else {
        return;
    };
    if r.flags & !flag::KNOWN != 0 {
        go_blind();
    }
    if r.kring_mask.is_null() || r.sqes.is_null() || r.flags & flag::IOPOLL != 0 {
        return;
    }
    // SAFETY: liburing reads it next.
    let mask = unsafe { *r.kring_mask };
    let stride = size_of::<Sqe>() << u32::from(r.flags & flag::SQE128 != 0);
    let n = r.sqe_tail.wrapping_sub(r.sqe_head);
    let mut linked = false;
    for at in 0..n.min(mask.wrapping_add(1)) {
        let index = r.sqe_head.wrapping_add(at) & mask;
        // SAFETY: one of the queue's `mask + 1` submissions, which is the program's until liburing publishes it.
        let sqe = unsafe { &mut *r.sqes.add(index as usize * stride).cast::<Sqe>() };
        let links = sqe.links();
        // SAFETY: meant for the kernel, so its pointers are valid.
        unsafe { sqe.prepare(linked) };
        linked = links;
    }
}

macro_rules! submit {
    ($($name:ident($ring:ident $(, $arg:ident: $ty:ty)*);)*) => {$(
        /// # Safety
        /// As liburing's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name($ring: *mut c_void $(, $arg: $ty)*) -> c_int {
            // SAFETY: the caller's ring and arguments.
            unsafe {
                look($ring);
                real::$name($ring $(, $arg)*)
            }
        }
    )*};
}
submit! {
    io_uring_submit(ring);
    io_uring_submit_and_wait(ring, n: c_uint);
    io_uring_submit_and_wait_timeout(ring, cqe: *mut c_void, n: c_uint, time: *mut c_void, mask: *mut sigset_t);
    io_uring_submit_and_wait_min_timeout(ring, cqe: *mut c_void, n: c_uint, time: *mut c_void, least: c_uint, mask: *mut sigset_t);
    io_uring_submit_and_wait_reg(ring, cqe: *mut c_void, n: c_uint, at: c_int);
    io_uring_submit_and_get_events(ring);
}

macro_rules! init {
    ($($name:ident($entries:ident, $ring:ident $(, $arg:ident: $ty:ty)*);)*) => {$(
        /// # Safety
        /// As liburing's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name($entries: c_uint, $ring: *mut c_void $(, $arg: $ty)*) -> c_int {
            // SAFETY: the caller's arguments, unchanged; on success the ring is filled in.
            unsafe {
                let r = real::$name($entries, $ring $(, $arg)*);
                if r >= 0 && !rings::remember((*$ring.cast::<Head>()).ring_fd, None) {
                    go_blind();
                }
                r
            }
        }
    )*};
}
init! {
    io_uring_queue_init(entries, ring, flags: c_uint);
    io_uring_queue_init_params(entries, ring, params: *mut c_void);
    io_uring_queue_init_mem(entries, ring, params: *mut c_void, buf: *mut c_void, size: size_t);
}

/// # Safety
/// As liburing's function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn io_uring_queue_exit(ring: *mut c_void) {
    // SAFETY: the caller's ring.
    unsafe {
        if let Some(r) = ring.cast::<Head>().as_ref() {
            rings::forget(r.ring_fd);
        }
        real::io_uring_queue_exit(ring);
    }
}

macro_rules! files {
    ($($name:ident([$($before:ident: $before_ty:ty)?] files [$($tags:ident: *const u64)?]);)*) => {$(
        /// # Safety
        /// As liburing's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(ring: *mut c_void, $($before: $before_ty,)? files: *const c_int, $($tags: *const u64,)? n: c_uint) -> c_int {
            // SAFETY: the caller's arguments, unchanged; on success the kernel has read the array.
            unsafe {
                let r = real::$name(ring, $($before,)? files, $($tags,)? n);
                if r >= 0 {
                    to_tcp_all(files, n as usize);
                }
                r
            }
        }
    )*};
}
files! {
    io_uring_register_files([] files []);
    io_uring_register_files_tags([] files [tags: *const u64]);
    io_uring_register_files_update([offset: c_uint] files []);
    io_uring_register_files_update_tag([offset: c_uint] files [tags: *const u64]);
}

/// # Safety
/// As io_uring_setup(2), with -errno for an error.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn io_uring_setup(entries: c_uint, params: *mut c_void) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let fd = unsafe { real::io_uring_setup(entries, params) };
    // Others than liburing have functions of this name.
    if fd >= 0 && is_ring(fd) {
        // SAFETY: the kernel has just filled it in.
        made(fd, unsafe { &*params.cast::<Params>() });
    }
    fd
}

/// # Safety
/// As io_uring_enter(2), with -errno for an error.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn io_uring_enter(
    fd: c_uint,
    submit: c_uint,
    wait: c_uint,
    flags: c_uint,
    mask: *mut sigset_t,
) -> c_int {
    // SAFETY: the caller's submissions and arguments.
    unsafe {
        before_enter(fd as c_int, submit, flags);
        real::io_uring_enter(fd, submit, wait, flags, mask)
    }
}

/// # Safety
/// As io_uring_enter(2), with -errno for an error.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn io_uring_enter2(
    fd: c_uint,
    submit: c_uint,
    wait: c_uint,
    flags: c_uint,
    argument: *mut c_void,
    size: size_t,
) -> c_int {
    // SAFETY: the caller's submissions and arguments.
    unsafe {
        before_enter(fd as c_int, submit, flags);
        real::io_uring_enter2(fd, submit, wait, flags, argument, size)
    }
}

/// # Safety
/// As io_uring_register(2), with -errno for an error.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn io_uring_register(
    fd: c_uint,
    op: c_uint,
    argument: *const c_void,
    n: c_uint,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged; what was registered, the kernel has read.
    unsafe {
        let r = real::io_uring_register(fd, op, argument, n);
        if r >= 0 && rings::is_known(fd as c_int) {
            registered(fd as c_int, op, argument as usize, n as usize);
        }
        r
    }
}
