//! WSAStartup and WSACleanup: counted per process, in step with the builtin's own count.
//!
//! Version negotiation and its errors are the builtin's. At the last WSACleanup the providers are told first (they still need
//! the builtin below them); the builtin then closes what sockets are left, as Wine does.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use windows_sys::Win32::Networking::WinSock::WSADATA;

use crate::lock::lock;
use crate::{builtin, extras, gate, provider};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Held while the count and the builtin's change together.
static CHANGE: Mutex<()> = Mutex::new(());

/// Whether Winsock is started: before that every call is left to the builtin, which refuses it.
pub fn is_on() -> bool {
    COUNT.load(Relaxed) > 0
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSAStartup(version: u16, data: *mut WSADATA) -> i32 {
    let _held = lock(&CHANGE);
    // SAFETY: the caller's own arguments.
    let result = unsafe { builtin::WSAStartup(version, data) };
    if result == 0 && COUNT.fetch_add(1, Relaxed) == 0 && extras::are_on() {
        // Early: a port that was made before is not known.
        gate::see_ports();
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSACleanup() -> i32 {
    let _held = lock(&CHANGE);
    if COUNT.load(Relaxed) == 1 {
        provider::stop_all();
    }
    // SAFETY: no arguments.
    let result = unsafe { builtin::WSACleanup() };
    if result == 0 {
        COUNT
            .fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1))
            .ok();
    }
    result
}
