//! The list of what is loaded. AddressSanitizer looks whether its own library is the first, before the program's beginning and
//! before ours, and ends the program if it is not; so this one is told of last. Our hooks call its interceptors, and those the
//! C library, in the order in which the loader has them.

use std::ffi::{c_int, c_void};

use libc::{dl_phdr_info, size_t};

use crate::real;

type Callback = unsafe extern "C-unwind" fn(*mut dl_phdr_info, size_t, *mut c_void) -> c_int;

struct Listing {
    callback: Callback,
    data: *mut c_void,
    /// What was told of this library, and how much of it.
    ours: Option<(dl_phdr_info, size_t)>,
}

/// # Safety
/// The caller's object, whose program headers are mapped.
unsafe fn is_ours(info: &dl_phdr_info) -> bool {
    let here = is_ours as *const () as u64;
    // SAFETY: by the caller.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    headers.iter().any(|h| {
        let at = info.dlpi_addr.wrapping_add(h.p_vaddr);
        h.p_type == libc::PT_LOAD && here.wrapping_sub(at) < h.p_memsz
    })
}

unsafe extern "C-unwind" fn each(
    info: *mut dl_phdr_info,
    size: size_t,
    listing: *mut c_void,
) -> c_int {
    // SAFETY: the C library's object, and what `dl_iterate_phdr` below gave it.
    unsafe {
        let listing = &mut *listing.cast::<Listing>();
        if listing.ours.is_none() && size == size_of::<dl_phdr_info>() && is_ours(&*info) {
            listing.ours = Some((info.read(), size));
            return 0;
        }
        (listing.callback)(info, size, listing.data)
    }
}

/// # Safety
/// As dl_iterate_phdr(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dl_iterate_phdr(callback: *mut c_void, data: *mut c_void) -> c_int {
    // SAFETY: the caller's function, of this type; the list lives as long as the call.
    unsafe {
        let mut listing = Listing {
            callback: std::mem::transmute::<*mut c_void, Callback>(callback),
            data,
            ours: None,
        };
        let entry: Callback = each;
        let r = real::dl_iterate_phdr(entry as *mut c_void, (&raw mut listing).cast());
        match listing.ours {
            Some((mut info, size)) if r == 0 => (listing.callback)(&raw mut info, size, data),
            _ => r,
        }
    }
}
