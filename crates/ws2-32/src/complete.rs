//! Finishing an overlapped request of a non-IFS handle: what the kernel does for its own.
//!
//! Order matters: the program may free or reuse the OVERLAPPED the instant it learns of the end, so the status is written
//! before anything is signalled, and nothing is read from it afterwards.

use std::ptr;
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Relaxed, Release},
};

use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Networking::WinSock::SOCKET;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Threading::SetEvent;

/// # Safety
/// The OVERLAPPED of a request on this handle that nobody has completed yet.
pub unsafe fn finish(_s: SOCKET, ov: *mut OVERLAPPED, error: u32, bytes: u32) {
    let status = spi::errors::to_ntstatus(error as i32);
    // SAFETY: by the caller. Waiters watch `Internal`, so it comes last and publishes the rest.
    let event = unsafe {
        let event = (*ov).hEvent.addr();
        word(&raw mut (*ov).InternalHigh).store(bytes as usize, Relaxed);
        word(&raw mut (*ov).Internal).store(status as u32 as usize, Release);
        event
    };
    let event: HANDLE = ptr::without_provenance_mut(event & !1);
    if !event.is_null() {
        // SAFETY: the program's event; anything else is refused.
        unsafe { SetEvent(event) };
    }
}

/// # Safety
/// A word that only atomics touch while the request is pending.
unsafe fn word<'a>(word: *mut usize) -> &'a AtomicUsize {
    // SAFETY: by the caller.
    unsafe { AtomicUsize::from_ptr(word) }
}
