//! The originals: what `dlsym(RTLD_NEXT)` says of each row of the table.

use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use libc::{
    aiocb, epoll_event, fd_set, iovec, mmsghdr, msghdr, nfds_t, pollfd, sigset_t, size_t, sockaddr,
    socklen_t, ssize_t, timespec, timeval,
};

/// Looks the next definition of `name` (NUL-terminated) up. Fails only for functions that this libc does not have.
fn next(name: &'static [u8]) -> *mut c_void {
    debug_assert!(name.ends_with(&[0]));
    // SAFETY: a NUL-terminated name.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) }
}

extern "C" fn missing() -> c_int {
    // SAFETY: always valid to call.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
}

macro_rules! originals {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty, $class:ident, $text:literal);*) => {$(
        /// The original.
        ///
        /// # Safety
        /// As the C function's.
        #[inline]
        #[allow(clippy::too_many_arguments, non_snake_case, dead_code)] // C's names; every row has an original.
        pub unsafe fn $name($($arg: $ty),*) -> $ret {
            static ORIGINAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            let mut p = ORIGINAL.load(Relaxed);
            if p.is_null() {
                p = next(concat!(stringify!($name), "\0").as_bytes());
                if p.is_null() {
                    p = missing as extern "C" fn() -> c_int as *mut c_void;
                }
                ORIGINAL.store(p, Relaxed);
            }
            // SAFETY: the symbol of that name in the C library has this signature (the table's row).
            unsafe {
                let f: unsafe extern "C" fn($($ty),*) -> $ret = std::mem::transmute(p);
                f($($arg),*)
            }
        }
    )*};
}
for_each_hook!(originals);
