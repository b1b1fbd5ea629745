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
use std::ptr;
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Relaxed, Release},
};

use windows_sys::Win32::Foundation::{NTSTATUS, STATUS_HANDLES_CLOSED};
use windows_sys::Win32::Networking::WinSock::{SOCKET, WSA_OPERATION_ABORTED};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Threading::SetEvent;

use crate::carrier::{Carrier, Port};
use crate::extras;
use crate::gate::ports;
use crate::provider::HANDLES;

/// What tells of an end at a completion port.
pub struct Packet {
    pub port: Port,
    pub ov: *mut OVERLAPPED,
    pub status: NTSTATUS,
    pub bytes: usize,
}

impl Packet {
    fn post(self) {
        match self.port.known {
            Some(known) => known.post(self),
            None => ports::post_itself(&self),
        }
    }
}

thread_local! {
    /// The OVERLAPPED of the call that this thread is in, if a success at once is to give no packet.
    static CALLED: Cell<*mut OVERLAPPED> = const { Cell::new(ptr::null_mut()) };
    static HELD: Cell<Option<Packet>> = const { Cell::new(None) };
}

/// Has the handle a completion port? A call on it that is to be told of by a routine is refused then.
pub fn has_port(s: SOCKET) -> bool {
    HANDLES
        .get(s)
        .is_some_and(|slot| slot.is_non_ifs() && slot.extra().port().is_some())
}

/// Runs a provider's call with this OVERLAPPED, whose end is told by a completion routine or not.
pub fn within_call(
    s: SOCKET,
    ov: *mut OVERLAPPED,
    routine: bool,
    call: impl FnOnce() -> i32,
) -> i32 {
    let slot = HANDLES.get(s).filter(|slot| slot.is_non_ifs());
    if routine && slot.is_some() {
        ports::has_routine();
    }
    let Some(slot) = slot.filter(|_| !ov.is_null() && !routine) else {
        return call();
    };
    let carrier = slot.extra();
    carrier.transfers.store(true, Relaxed);
    // SAFETY: the program's OVERLAPPED, which nobody has begun to use.
    if unsafe { (*ov).hEvent }.is_null() && carrier.port().is_none() {
        carrier.begin(s);
    }
    if !carrier.skips_on_success() || !extras::are_on() {
        return call();
    }
    let outer = (CALLED.replace(ov), HELD.take());
    let result = call();
    CALLED.set(outer.0);
    if let Some(packet) = HELD.replace(outer.1).filter(|_| result != 0) {
        packet.post();
    }
    result
}

/// Runs a provider's WSPCloseSocket. Transfers that it aborts end as Wine ends those of a closed handle.
pub fn within_close(s: SOCKET, call: impl FnOnce() -> i32) -> i32 {
    let carrier = HANDLES
        .get(s)
        .filter(|slot| slot.is_non_ifs())
        .map(|slot| slot.extra())
        .filter(|carrier| carrier.transfers.load(Relaxed));
    if let Some(carrier) = carrier {
        carrier.closing.store(true, Release);
    }
    let result = call();
    if let Some(carrier) = carrier.filter(|_| result != 0) {
        carrier.closing.store(false, Release);
    }
    result
}

/// # Safety
/// The OVERLAPPED of a request on this handle that nobody has completed yet.
pub unsafe fn finish(s: SOCKET, carrier: &Carrier, ov: *mut OVERLAPPED, error: i32, bytes: u32) {
    let status = match error {
        WSA_OPERATION_ABORTED if carrier.closing.load(Relaxed) => STATUS_HANDLES_CLOSED,
        _ => spi::errors::to_ntstatus(error),
    };
    let status = extras::status(status);
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
    carrier.end(s);
    let Some(port) = carrier.port().filter(|_| event & 1 == 0) else {
        return;
    };
    let packet = Packet {
        port,
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
