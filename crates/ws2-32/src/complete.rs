//! Finishing an overlapped request of a non-IFS handle: what the kernel does for its own.
//!
//! 1. The status is written before anything is signalled, and the OVERLAPPED is not touched afterwards: the program may free
//!    or reuse it the instant it learns of the end.
//! 2. The event first, then the packet, which the program may ask not to get: by the lowest bit of hEvent, or for requests
//!    that succeed at once by FILE_SKIP_COMPLETION_PORT_ON_SUCCESS. Whether a request succeeded at once is known only when
//!    the provider's call returns: a packet of a request that is finished within its own call, in the same thread, is held
//!    until then. A provider that finishes requests in other threads returns WSA_IO_PENDING for them, as do its extension
//!    functions (AcceptEx ...), which programs call without us.

#![allow(clippy::missing_const_for_thread_local)] // they are const: clippy looks at what the macro makes of them

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Relaxed, Release},
};

use windows_sys::Win32::Foundation::{
    CloseHandle, DUPLICATE_SAME_ACCESS, DuplicateHandle, HANDLE, NTSTATUS,
};
use windows_sys::Win32::Networking::WinSock::SOCKET;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Threading::{GetCurrentProcess, SetEvent};

use crate::handles::Slot;
use crate::provider::{HANDLES, Provider};

pub const FILE_SKIP_COMPLETION_PORT_ON_SUCCESS: u32 = 1;

#[link(name = "ntdll")]
unsafe extern "system" {
    fn NtSetIoCompletion(
        port: HANDLE,
        key: usize,
        value: *mut c_void,
        status: NTSTATUS,
        bytes: usize,
    ) -> NTSTATUS;
}

/// A completion port with which a handle is associated.
#[derive(Clone, Copy)]
pub struct Port {
    pub handle: HANDLE,
    pub key: usize,
}

/// Remembers a port of the program's by a handle of our own, since the program may close its one.
pub fn set_port(slot: &Slot<Provider>, port: Port) {
    let mut own: HANDLE = ptr::null_mut();
    // SAFETY: pseudo-handles of this process, a place for the result; a null port (which ends the association) fails.
    unsafe {
        let this = GetCurrentProcess();
        DuplicateHandle(
            this,
            port.handle,
            this,
            &mut own,
            0,
            0,
            DUPLICATE_SAME_ACCESS,
        );
    }
    release(slot.set_port(own.addr(), port.key));
}

/// Closes our handle of a port.
pub fn release(port: usize) {
    if port != 0 {
        // SAFETY: made by `set_port`, and taken out of its slot.
        unsafe { CloseHandle(ptr::without_provenance_mut(port)) };
    }
}

/// Takes a handle out of the table, with what belongs to it. `false`: it wasn't there.
pub fn forget(s: SOCKET) -> bool {
    let port = HANDLES.get(s).map_or(0, |slot| slot.set_port(0, 0));
    let was = HANDLES.clear(s);
    release(port);
    was
}

struct Packet {
    port: Port,
    ov: *mut OVERLAPPED,
    status: NTSTATUS,
    bytes: usize,
}

impl Packet {
    fn post(&self) {
        // SAFETY: our own handle of the port; the OVERLAPPED is only a value here.
        unsafe {
            NtSetIoCompletion(
                self.port.handle,
                self.port.key,
                self.ov.cast(),
                self.status,
                self.bytes,
            )
        };
    }
}

thread_local! {
    /// The OVERLAPPED of the call that this thread is in, if a success at once is to give no packet.
    static CALLED: Cell<*mut OVERLAPPED> = const { Cell::new(ptr::null_mut()) };
    static HELD: Cell<Option<Packet>> = const { Cell::new(None) };
}

/// Runs a provider's call with this OVERLAPPED.
pub fn within_call(s: SOCKET, ov: *mut OVERLAPPED, call: impl FnOnce() -> i32) -> i32 {
    let skips = |slot: &Slot<Provider>| slot.modes() & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS != 0;
    if ov.is_null() || !HANDLES.get(s).is_some_and(skips) {
        return call();
    }
    let outer = CALLED.replace(ov);
    let result = call();
    CALLED.set(outer);
    if let Some(packet) = HELD.take().filter(|_| result != 0) {
        packet.post();
    }
    result
}

/// # Safety
/// The OVERLAPPED of a request on this handle that nobody has completed yet.
pub unsafe fn finish(slot: &Slot<Provider>, ov: *mut OVERLAPPED, error: i32, bytes: u32) {
    let status = spi::errors::to_ntstatus(error);
    // SAFETY: by the caller. Waiters watch `Internal`, so it comes last and publishes the rest.
    let event = unsafe {
        let event = (*ov).hEvent.addr();
        AtomicUsize::from_ptr(&raw mut (*ov).InternalHigh).store(bytes as usize, Relaxed);
        AtomicUsize::from_ptr(&raw mut (*ov).Internal).store(status as u32 as usize, Release);
        event
    };
    if event & !1 != 0 {
        // SAFETY: the program's event; anything else is refused.
        unsafe { SetEvent(ptr::without_provenance_mut(event & !1)) };
    }
    let Some((port, key)) = slot.port().filter(|_| event & 1 == 0) else {
        return;
    };
    let packet = Packet {
        port: Port {
            handle: ptr::without_provenance_mut(port),
            key,
        },
        ov,
        status,
        bytes: bytes as usize,
    };
    if CALLED.get() == ov && error == 0 {
        HELD.set(Some(packet));
    } else {
        packet.post();
    }
}
