//! The originals: what `dlsym(RTLD_NEXT)` says of each row of the table.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use libc::{
    aiocb, epoll_event, fd_set, iovec, mmsghdr, msghdr, nfds_t, pollfd, pthread_t, sigset_t,
    size_t, sockaddr, socklen_t, ssize_t, timespec, timeval,
};

/// Looks the next definition of `name` up. Fails only for functions that this libc does not have, and for a library's
/// that is not loaded.
fn next(name: &'static CStr, class: &str) -> Option<NonNull<c_void>> {
    // SAFETY: a NUL-terminated name.
    let found = NonNull::new(unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) });
    if found.is_none() && class == "uring" {
        let saved = crate::errno();
        let found = anywhere(name);
        crate::set_errno(saved);
        return found;
    }
    found
}

/// A definition outside the scope that a program's own calls are resolved in: in a library that was loaded for a plug-in
/// alone, or in the plug-in. It stays loaded from then on.
#[cold]
fn anywhere(name: &CStr) -> Option<NonNull<c_void>> {
    /// `struct link_map`, <link.h>.
    #[repr(C)]
    struct Object {
        base: usize,
        path: *const c_char,
        dynamic: *const c_void,
        next: *const Object,
        previous: *const Object,
    }
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
    // SAFETY: `next` is a hook's row, so this library defines the name, and finds itself.
    let ours = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    let in_library = |path: *const c_char| {
        // SAFETY: a NUL-terminated path; what is not loaded is not loaded by this.
        let library = NonNull::new(unsafe { libc::dlopen(path, flags) })?;
        // SAFETY: an open library, and a name.
        let found = NonNull::new(unsafe { libc::dlsym(library.as_ptr(), name.as_ptr()) })
            .filter(|p| p.as_ptr() != ours);
        if found.is_none() {
            // SAFETY: opened just above.
            unsafe { libc::dlclose(library.as_ptr()) };
        }
        found
    };
    if let Some(found) = in_library(c"liburing.so.2".as_ptr()) {
        return Some(found);
    }
    // SAFETY: null is the program, whose handle is the first in the list of all that is loaded.
    let mut object = unsafe { libc::dlopen(std::ptr::null(), flags) }
        .cast::<Object>()
        .cast_const();
    // SAFETY: the list is the dynamic linker's; a library that is unloaded at this very moment would have to be the one
    // that calls us.
    while let Some(o) = unsafe { object.as_ref() } {
        // SAFETY: null or a path.
        let named = !o.path.is_null() && unsafe { *o.path } != 0;
        if let Some(found) = named.then(|| in_library(o.path)).flatten() {
            return Some(found);
        }
        object = o.next;
    }
    None
}

const fn name(text: &str) -> &CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(name) => name,
        Err(_) => c"",
    }
}

/// Finds and notes an original; what is missing now may be loaded later.
#[cold]
fn find(at: &AtomicPtr<c_void>, name: &'static CStr, class: &str) -> *mut c_void {
    match next(name, class) {
        Some(found) => {
            at.store(found.as_ptr(), Relaxed);
            found.as_ptr()
        }
        None => missing_of(class) as *mut c_void,
    }
}

extern "C" fn missing() -> c_int {
    // SAFETY: always valid to call.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
}

/// liburing's functions give errors back.
extern "C" fn missing_in_liburing() -> c_int {
    -libc::ENOSYS
}

fn missing_of(class: &str) -> extern "C" fn() -> c_int {
    if class == "uring" {
        missing_in_liburing
    } else {
        missing
    }
}

macro_rules! originals {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty, $class:ident, $text:literal);*) => {
        /// Where each is; null: not looked for yet.
        #[allow(non_upper_case_globals)] // C's names.
        mod at {
            use super::{AtomicPtr, c_void};
            $(pub static $name: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());)*
        }

        /// Looks for all of the C library's: later a signal handler, or an allocator, may be the first to want one, and the
        /// dynamic linker takes locks and memory.
        pub fn find_all() {
            $(if stringify!($class) != "uring" {
                find(&at::$name, const { name(concat!(stringify!($name), "\0")) }, "");
            })*
        }
    $(
        /// The original.
        ///
        /// # Safety
        /// As the C function's.
        #[inline]
        #[allow(clippy::too_many_arguments, non_snake_case, dead_code)] // C's names; every row has an original.
        pub unsafe fn $name($($arg: $ty),*) -> $ret {
            let mut p = at::$name.load(Relaxed);
            if p.is_null() {
                p = find(&at::$name, const { name(concat!(stringify!($name), "\0")) }, stringify!($class));
            }
            // SAFETY: the symbol of that name in the C library has this signature (the table's row).
            unsafe {
                let f: unsafe extern "C-unwind" fn($($ty),*) -> $ret = std::mem::transmute(p);
                f($($arg),*)
            }
        }
    )*};
}
for_each_hook!(originals);
