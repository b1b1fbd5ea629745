//! What this DLL gives to providers beyond what is documented, and how a provider learns of it.
//!
//! A provider must do without: on Windows nobody gives it. `SGM_EXTRAS=0` takes it away here too, and makes this a Winsock DLL
//! with the other choices that the documentation leaves: it unloads providers after the last WSACleanup, and ends requests
//! with other statuses for the same errors.

use std::sync::OnceLock;

use windows_sys::Win32::Foundation::NTSTATUS;
use windows_sys::Win32::Networking::WinSock::WSPPROC_TABLE;
use windows_sys::Win32::System::LibraryLoader::{
    GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
    GetModuleHandleExW, GetProcAddress,
};

/// In the word that `SgmWinsockGives` gets: a success at once under FILE_SKIP_COMPLETION_PORT_ON_SUCCESS brings no packet, and
/// `OVERLAPPED.Internal` has the statuses of `spi::errors`.
const HOLDS_PACKETS: u32 = 1;

pub fn are_on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os("SGM_EXTRAS").is_none_or(|v| v != "0"))
}

/// Tells a provider, if it wants to know.
pub fn tell(table: &WSPPROC_TABLE) {
    type Gives = unsafe extern "system" fn(u32);
    if let Some(f) = of_provider(table, c"SgmWinsockGives")
        && are_on()
    {
        // SAFETY: the function's contract is ours.
        unsafe {
            std::mem::transmute::<unsafe extern "system" fn() -> isize, Gives>(f)(HOLDS_PACKETS);
        }
    }
}

/// A function that is exported by the DLL into which a provider's table points.
pub fn of_provider(
    table: &WSPPROC_TABLE,
    name: &std::ffi::CStr,
) -> Option<unsafe extern "system" fn() -> isize> {
    let place = table.lpWSPRecv? as *const u16;
    let flags =
        GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    let mut module = std::ptr::null_mut();
    // SAFETY: an address instead of a name, says the flag; a zero-terminated name.
    unsafe {
        GetModuleHandleExW(flags, place, &mut module);
        GetProcAddress(module, name.as_ptr().cast())
    }
}

#[link(name = "ntdll")]
unsafe extern "system" {
    fn RtlNtStatusToDosError(status: NTSTATUS) -> u32;
}

/// The status with which a request ends: one that programs know, or another for the same error.
pub fn status(known: NTSTATUS) -> NTSTATUS {
    const NTWIN32_ERROR: u32 = 0xC007_0000;
    if known == 0 || are_on() {
        return known;
    }
    // SAFETY: a plain value.
    let error = unsafe { RtlNtStatusToDosError(known) };
    (NTWIN32_ERROR | error & 0xFFFF) as i32
}
