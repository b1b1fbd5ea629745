//! Keeping the builtin out of the loader's search by name.
//!
//! Two modules of the process are called `ws2_32.dll`. A library that imports from that name must get ours, but Wine's loader
//! answers with the module that was last looked up if that has the name; and we look functions of the builtin up. So the
//! builtin's entry in the list of modules gets another base name. Its path stays, and with it what debuggers show.

use std::ffi::c_void;
use std::ptr;

use windows_sys::Win32::Foundation::{HMODULE, NTSTATUS, UNICODE_STRING};

/// LDR_DATA_TABLE_ENTRY up to the base name (winternl.h keeps it among the reserved fields).
#[repr(C)]
struct Entry {
    links: [*mut c_void; 6],
    base: *mut c_void,
    entry_point: *mut c_void,
    image_bytes: usize,
    path: UNICODE_STRING,
    name: UNICODE_STRING,
}

const _: () = assert!(
    std::mem::offset_of!(Entry, name)
        == if cfg!(target_pointer_width = "64") {
            0x58
        } else {
            0x2c
        }
);

#[link(name = "ntdll")]
unsafe extern "system" {
    fn LdrFindEntryForAddress(address: *const c_void, entry: *mut *mut Entry) -> NTSTATUS;
}

/// "ws2_32 spi": as long as the name it replaces.
static NAME: [u16; 11] = {
    let text = b"ws2_32 spi\0";
    let mut wide = [0; 11];
    let mut i = 0;
    while i < wide.len() {
        wide[i] = text[i] as u16;
        i += 1;
    }
    wide
};

/// Takes the name from a module that is never unloaded. Called under the loader's lock.
pub fn unlist(module: HMODULE) {
    let mut entry = ptr::null_mut();
    // SAFETY: a place for the result, which is the module's entry in the loader's list; nobody else reads that now.
    unsafe {
        if LdrFindEntryForAddress(module, &mut entry) == 0
            && (*entry).name.Length as usize == 2 * (NAME.len() - 1)
        {
            (*entry).name.MaximumLength = (*entry).name.Length + 2;
            (*entry).name.Buffer = NAME.as_ptr().cast_mut();
        }
    }
}
