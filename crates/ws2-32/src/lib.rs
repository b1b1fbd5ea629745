//! A Winsock 2 DLL with a provider catalog, for Wine.
//!
//! Wine's own `ws2_32.dll` has no catalog and loads no providers. This one takes its place in a prefix and plays the part
//! that ws2_32.dll and ws2ifsl.sys play on Windows; Wine's own, kept as `C:\windows\spi\ws2_32.dll`, is the *builtin* that
//! does the work for every socket without a layered provider. Each line uses only the lines below it:
//!
//! ```text
//! dispatch    the API: a socket of a layered provider -> its WSPPROC_TABLE, any other -> the builtin
//! gate        ntdll calls on a provider's non-IFS handles (ReadFile, CloseHandle, completion ports ...)
//! upcalls     what providers call: WPUCreateSocketHandle ..., WPUCompleteOverlappedRequest
//! provider    loading and starting providers; startup: WSAStartup's count
//! extras      what is given to providers beyond the documentation
//! catalog     the provider catalog in the registry; wsc: the WSC* functions
//! base        the base provider: a WSPPROC_TABLE that calls the builtin
//! handles     which SOCKET belongs to which provider
//! builtin     pointers to Wine's own functions; thunks: exports that just jump there
//! ```
//!
//! A program whose catalog matches no layered provider sees no difference and pays one look into `handles`.

#![allow(unsafe_code)] // a DLL's exports take their callers' pointers, and jump to functions found at run time
#![cfg_attr(not(windows), allow(dead_code))] // elsewhere only the pure parts are compiled, for their tests

mod choose;
mod fdset;
mod handles;

#[cfg(windows)]
mod base;
#[cfg(windows)]
mod builtin;
#[cfg(windows)]
mod carrier;
#[cfg(windows)]
mod catalog;
#[cfg(windows)]
mod complete;
#[cfg(windows)]
mod dispatch;
#[cfg(windows)]
mod extras;
#[cfg(windows)]
mod gate;
#[cfg(windows)]
mod lock;
#[cfg(windows)]
mod pool;
#[cfg(windows)]
mod provider;
#[cfg(windows)]
mod rows;
#[cfg(windows)]
mod startup;
#[cfg(windows)]
mod thread;
#[cfg(windows)]
mod thunks;
#[cfg(windows)]
mod unlist;
#[cfg(windows)]
mod upcalls;
#[cfg(windows)]
mod wsc;

#[cfg(windows)]
mod entry {
    use std::ffi::c_void;

    use windows_sys::Win32::System::SystemServices::DLL_PROCESS_ATTACH;

    /// Loads the builtin and nothing else: the loader's lock is held. Failing here fails the program's start as a missing
    /// ws2_32.dll would.
    unsafe extern "system" fn attach(_module: *mut c_void, reason: u32, _: *mut c_void) -> i32 {
        (reason != DLL_PROCESS_ATTACH || (crate::builtin::load() && crate::thunks::fill())) as i32
    }

    // The C runtime's entry point calls DllMain. A Rust function of this name would be exported, which Wine's DLL has not.
    #[cfg(target_pointer_width = "64")]
    core::arch::global_asm!(".text", ".globl DllMain", "DllMain:", "jmp {}", sym attach);
    #[cfg(target_pointer_width = "32")]
    core::arch::global_asm!(".text", ".globl _DllMain@12", "_DllMain@12:", "jmp {}", sym attach);
}
