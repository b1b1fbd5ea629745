//! The extension functions behind SIO_GET_EXTENSION_FUNCTION_POINTER: AcceptEx, ConnectEx, TransmitFile and their kin.
//!
//! 1. Programs ask once and use the answer on any socket: each function takes every socket of ours, and passes on what is
//!    not ours with the pointer that this socket's own provider gives.
//! 2. What a lower provider offers is asked per provider, family and type, when it is needed.
//! 3. They are called without ws2_32: errors go to WSASetLastError. Overlapped ones answer WSA_IO_PENDING even if they
//!    were done at once, since nobody stands between who could hold the completion back until they return.

mod connection;
mod file;
mod message;

use core::ffi::c_void;
use std::sync::Mutex;

use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET};
use windows_sys::core::{BOOL, GUID};

use crate::answer::{Code, lower};
use crate::slot::{Body, Inside, locked};

pub use message::ext_send_msg;

/// An extension: its identifier and our function.
type Extension = (GUID, fn() -> *const ());

/// GetAcceptExSockaddrs is missing: it has no socket, and only reads what the lower provider's AcceptEx wrote.
const EXTENSIONS: [Extension; 7] = [
    (ws::WSAID_ACCEPTEX, || connection::accept_ex as *const ()),
    (ws::WSAID_CONNECTEX, || connection::connect_ex as *const ()),
    (ws::WSAID_DISCONNECTEX, || {
        connection::disconnect_ex as *const ()
    }),
    (ws::WSAID_TRANSMITFILE, || file::transmit_file as *const ()),
    (ws::WSAID_TRANSMITPACKETS, || {
        file::transmit_packets as *const ()
    }),
    (ws::WSAID_WSARECVMSG, || message::recv_msg as *const ()),
    (ws::WSAID_WSASENDMSG, || message::send_msg as *const ()),
];

/// Our function for an extension's GUID; `None`: the lower provider's is as good, or it has none.
pub fn pointer(inside: &Inside, which: &GUID) -> Option<*const c_void> {
    let (_, own) = EXTENSIONS
        .iter()
        .find(|(id, _)| spi::ids::same_guid(id, which))?;
    of_lower(inside.body(), which).ok()?;
    Some(own().cast())
}

/// What lower providers answered.
struct Known {
    lower: usize,
    family: i32,
    kind: i32,
    id: u128,
    function: usize,
}

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

fn number(id: &GUID) -> u128 {
    let low = u64::from_be_bytes(id.data4);
    u128::from(id.data1) << 96
        | u128::from(id.data2) << 80
        | u128::from(id.data3) << 64
        | u128::from(low)
}

/// The lower provider's function, as an address.
fn of_lower(b: &Body, id: &GUID) -> Result<usize, Code> {
    let lower_at = std::ptr::from_ref(b.lower) as usize;
    let asked = (lower_at, b.family, b.kind, number(id));
    let same = |k: &&Known| (k.lower, k.family, k.kind, k.id) == asked;
    if let Some(known) = locked(&KNOWN).iter().find(same) {
        return Ok(known.function);
    }
    let (mut function, mut bytes) = (0_usize, 0);
    // SAFETY: buffers of the lengths given; a plain call.
    lower(|code| unsafe {
        (b.lower.ioctl)(
            b.base,
            ws::SIO_GET_EXTENSION_FUNCTION_POINTER,
            std::ptr::from_ref(id).cast(),
            size_of::<GUID>() as u32,
            std::ptr::from_mut(&mut function).cast(),
            size_of::<usize>() as u32,
            &mut bytes,
            std::ptr::null_mut(),
            None,
            std::ptr::null(),
            code,
        )
    })?;
    if function == 0 {
        return Err(ws::WSAEOPNOTSUPP);
    }
    locked(&KNOWN).push(Known {
        lower: lower_at,
        family: b.family,
        kind: b.kind,
        id: number(id),
        function,
    });
    Ok(function)
}

/// The function for a socket that is not ours.
fn of_stranger(s: SOCKET, id: &GUID) -> Result<usize, Code> {
    let (mut function, mut bytes) = (0_usize, 0);
    // SAFETY: buffers of the lengths given; a plain call.
    let r = unsafe {
        ws::WSAIoctl(
            s,
            ws::SIO_GET_EXTENSION_FUNCTION_POINTER,
            std::ptr::from_ref(id).cast(),
            size_of::<GUID>() as u32,
            std::ptr::from_mut(&mut function).cast(),
            size_of::<usize>() as u32,
            &mut bytes,
            std::ptr::null_mut(),
            None,
        )
    };
    if r != 0 {
        return Err(last_error());
    }
    let is_own = |(_, own): &Extension| own() as usize == function;
    if function == 0 || EXTENSIONS.iter().any(is_own) {
        return Err(ws::WSAENOTSOCK);
    }
    Ok(function)
}

/// A function by its address.
///
/// # Safety
/// `F` is the function's type.
unsafe fn typed<F: Copy>(function: usize) -> F {
    const { assert!(size_of::<F>() == size_of::<usize>()) };
    // SAFETY: by the caller.
    unsafe { std::mem::transmute_copy(&function) }
}

fn last_error() -> Code {
    // SAFETY: always valid to call.
    match unsafe { ws::WSAGetLastError() } {
        0 => ws::WSAEINVAL,
        code => code,
    }
}

fn set_last_error(code: Code) {
    // SAFETY: always valid to call.
    unsafe { ws::WSASetLastError(code) };
}

/// A BOOL of an extension function of the lower provider, as a result.
fn truth(ok: BOOL) -> Result<(), Code> {
    if ok != 0 { Ok(()) } else { Err(last_error()) }
}

/// A result, as a BOOL.
fn told(result: Result<(), Code>) -> BOOL {
    match result {
        Ok(()) => 1,
        Err(code) => {
            set_last_error(code);
            0
        }
    }
}

/// Rule 3.
fn pending<T>(started: Result<T, Code>) -> Result<(), Code> {
    started.and(Err(ws::WSA_IO_PENDING))
}
