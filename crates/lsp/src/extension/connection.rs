//! AcceptEx, ConnectEx, DisconnectEx.

use core::ffi::c_void;

use gm::State;
use gm::end::flag;
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKADDR, SOCKET};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::core::BOOL;

use super::{of_lower, of_stranger, pending, told, truth, typed};
use crate::answer::Code;
use crate::life;
use crate::overlapped::{self, Kind, Request};
use crate::slot::enter;

type AcceptEx = unsafe extern "system" fn(
    SOCKET,
    SOCKET,
    *mut c_void,
    u32,
    u32,
    u32,
    *mut u32,
    *mut OVERLAPPED,
) -> BOOL;
type ConnectEx = unsafe extern "system" fn(
    SOCKET,
    *const SOCKADDR,
    i32,
    *const c_void,
    u32,
    *mut u32,
    *mut OVERLAPPED,
) -> BOOL;
type DisconnectEx = unsafe extern "system" fn(SOCKET, *mut OVERLAPPED, u32, u32) -> BOOL;

/// # Safety
/// `p` is null or writable.
unsafe fn zero(p: *mut u32) {
    if !p.is_null() {
        // SAFETY: by the caller.
        unsafe { *p = 0 };
    }
}

pub unsafe extern "system" fn accept_ex(
    listener: SOCKET,
    accepted: SOCKET,
    out: *mut c_void,
    data: u32,
    local: u32,
    remote: u32,
    got: *mut u32,
    ov: *mut OVERLAPPED,
) -> BOOL {
    let call = || -> Result<(), Code> {
        let taken = enter(accepted).ok();
        let base = taken.as_ref().map_or(accepted, |i| i.body().base);
        let Ok(inside) = enter(listener) else {
            let f = of_stranger(listener, &ws::WSAID_ACCEPTEX)?;
            // SAFETY: AcceptEx by its identifier; the caller's arguments but for the socket.
            return truth(unsafe {
                typed::<AcceptEx>(f)(listener, base, out, data, local, remote, got, ov)
            });
        };
        let f = of_lower(inside.body(), &ws::WSAID_ACCEPTEX)?;
        // SAFETY: AcceptEx by its identifier.
        let f = unsafe { typed::<AcceptEx>(f) };
        let below = inside.body().base;
        let Some(r) = Request::direct(&inside, listener, ov, None)? else {
            // SAFETY: the caller's arguments, on the base sockets; the lower provider refuses this.
            return truth(unsafe { f(below, base, out, data, local, remote, got, ov) });
        };
        // SAFETY: the caller's place.
        unsafe { zero(got) };
        let kind = Kind::Accept(taken);
        // SAFETY: the program's buffer, which stays until the completion; the rest is the operation's own.
        pending(overlapped::start(inside, r, kind, 0, |p| unsafe {
            truth(f(below, base, out, data, local, remote, p.bytes, p.ov))
        }))
    };
    told(call())
}

pub unsafe extern "system" fn connect_ex(
    s: SOCKET,
    name: *const SOCKADDR,
    len: i32,
    data: *const c_void,
    data_len: u32,
    sent: *mut u32,
    ov: *mut OVERLAPPED,
) -> BOOL {
    let call = || -> Result<(), Code> {
        let Ok(inside) = enter(s) else {
            let f = of_stranger(s, &ws::WSAID_CONNECTEX)?;
            // SAFETY: ConnectEx by its identifier; the caller's arguments.
            return truth(unsafe { typed::<ConnectEx>(f)(s, name, len, data, data_len, sent, ov) });
        };
        let f = of_lower(inside.body(), &ws::WSAID_CONNECTEX)?;
        // SAFETY: ConnectEx by its identifier.
        let f = unsafe { typed::<ConnectEx>(f) };
        let base = inside.body().base;
        let Some(r) = Request::direct(&inside, s, ov, None)? else {
            // SAFETY: the caller's arguments, on the base socket; the lower provider refuses this.
            return truth(unsafe { f(base, name, len, data, data_len, sent, ov) });
        };
        // SAFETY: the caller's address and place.
        unsafe {
            if let Some(conn) = inside.conn() {
                life::connecting(conn, name, len);
            }
            zero(sent);
        }
        // SAFETY: the program's data, which stays until the completion; the rest is the operation's own.
        pending(overlapped::start(inside, r, Kind::Connect, 0, |p| unsafe {
            truth(f(base, name, len, data, data_len, p.bytes, p.ov))
        }))
    };
    told(call())
}

pub unsafe extern "system" fn disconnect_ex(
    s: SOCKET,
    ov: *mut OVERLAPPED,
    flags: u32,
    reserved: u32,
) -> BOOL {
    let call = || -> Result<(), Code> {
        let Ok(inside) = enter(s) else {
            let f = of_stranger(s, &ws::WSAID_DISCONNECTEX)?;
            // SAFETY: DisconnectEx by its identifier; the caller's arguments.
            return truth(unsafe { typed::<DisconnectEx>(f)(s, ov, flags, reserved) });
        };
        let f = of_lower(inside.body(), &ws::WSAID_DISCONNECTEX)?;
        // SAFETY: DisconnectEx by its identifier.
        let f = unsafe { typed::<DisconnectEx>(f) };
        let base = inside.body().base;
        // What was sent goes first; and the socket, if it is used again, stays on TCP.
        overlapped::flush_to_tcp(&inside);
        if flags & ws::TF_REUSE_SOCKET != 0
            && let Some(conn) = inside.conn().filter(|c| c.is_engaged())
        {
            // The peer has not answered, and what it sent is not wanted any more.
            conn.end().set_state(State::Back);
        }
        let i = inside.clone();
        let result = match Request::direct(&inside, s, ov, None)? {
            // SAFETY: the caller's arguments, on the base socket.
            None => truth(unsafe { f(base, ov, flags, reserved) }),
            // SAFETY: the operation's own structure.
            Some(r) => pending(overlapped::start(inside, r, Kind::Other, 0, |p| unsafe {
                truth(f(base, p.ov, flags, reserved))
            })),
        };
        if let (Ok(()) | Err(ws::WSA_IO_PENDING), Some(conn)) = (&result, i.conn()) {
            // For sends while the peer has not answered.
            conn.end().set(flag::WRITE_SHUT);
        }
        result
    };
    told(call())
}
