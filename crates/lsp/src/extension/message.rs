//! WSARecvMsg and WSASendMsg: for datagrams; on a stream they are receives and sends of their buffers.

use std::ptr::{from_mut, null, null_mut};

use spi::types::WSASENDMSG;
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET, WSAMSG};
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::{last_error, of_lower, of_stranger, pending, set_last_error, typed};
use crate::answer::Code;
use crate::data;
use crate::overlapped::{self, Kind, Request};
use crate::slot::{Inside, enter};

type Routine = ws::LPWSAOVERLAPPED_COMPLETION_ROUTINE;
type RecvMsg =
    unsafe extern "system" fn(SOCKET, *mut WSAMSG, *mut u32, *mut OVERLAPPED, Routine) -> i32;
type SendMsg = unsafe extern "system" fn(
    SOCKET,
    *const WSAMSG,
    u32,
    *mut u32,
    *mut OVERLAPPED,
    Routine,
) -> i32;

fn zero(r: i32) -> Result<(), Code> {
    if r == 0 { Ok(()) } else { Err(last_error()) }
}

fn told(result: Result<(), Code>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(code) => {
            set_last_error(code);
            ws::SOCKET_ERROR
        }
    }
}

/// # Safety
/// `p` is null or writable.
unsafe fn put(p: *mut u32, value: u32) {
    if !p.is_null() {
        // SAFETY: by the caller.
        unsafe { *p = value };
    }
}

pub unsafe extern "system" fn recv_msg(
    s: SOCKET,
    message: *mut WSAMSG,
    got: *mut u32,
    ov: *mut OVERLAPPED,
    routine: Routine,
) -> i32 {
    let call = || -> Result<(), Code> {
        // SAFETY: the caller's arguments, in all that follows.
        unsafe {
            let Ok(inside) = enter(s) else {
                let f = of_stranger(s, &ws::WSAID_WSARECVMSG)?;
                return zero(typed::<RecvMsg>(f)(s, message, got, ov, routine));
            };
            let f = typed::<RecvMsg>(of_lower(inside.body(), &ws::WSAID_WSARECVMSG)?);
            let base = inside.body().base;
            if inside.passes(ov).is_some() {
                return zero(f(base, message, got, ov, routine));
            }
            let m = message.as_mut().ok_or(ws::WSAEFAULT)?;
            match Request::direct(&inside, s, ov, routine)? {
                None if inside.engaged().is_some() => recv_plainly(s, m, got),
                None => {
                    let mut n = 0;
                    let look = m.dwFlags & (ws::MSG_PEEK | ws::MSG_OOB) as u32 != 0;
                    zero(f(base, message, &mut n, null_mut(), None))?;
                    put(got, n);
                    if let Some(conn) = inside.conn().filter(|_| n > 0 && !look) {
                        conn.count_plain(0, n as usize);
                    }
                    Ok(())
                }
                Some(r)
                    if overlapped::stands_in_line(&inside) || overlapped::back_to_tcp(&inside) =>
                {
                    let (bufs, count) = (m.lpBuffers, m.dwBufferCount);
                    let flags = &mut m.dwFlags;
                    pending(overlapped::recv(inside, r, bufs, count, got, flags))
                }
                Some(r) => {
                    let kind = Kind::receive(m.dwFlags);
                    pending(overlapped::start(inside, r, kind, 0, |p| {
                        zero(f(base, message, p.bytes, p.ov, None))
                    }))
                }
            }
        }
    };
    told(call())
}

/// # Safety
/// The program's message and place.
unsafe fn recv_plainly(s: SOCKET, m: &mut WSAMSG, got: *mut u32) -> Result<(), Code> {
    let mut code = 0;
    let errno = from_mut(&mut code).cast_const();
    // SAFETY: by the caller; a plain call.
    let r = unsafe {
        let (bufs, count, flags) = (m.lpBuffers, m.dwBufferCount, &mut m.dwFlags);
        data::recv(s, bufs, count, got, flags, null_mut(), None, null(), errno)
    };
    if r == 0 { Ok(()) } else { Err(code) }
}

pub unsafe extern "system" fn send_msg(
    s: SOCKET,
    message: *const WSAMSG,
    flags: u32,
    sent: *mut u32,
    ov: *mut OVERLAPPED,
    routine: Routine,
) -> i32 {
    let call = || -> Result<(), Code> {
        // SAFETY: the caller's arguments.
        unsafe {
            let Ok(inside) = enter(s) else {
                let f = of_stranger(s, &ws::WSAID_WSASENDMSG)?;
                return zero(typed::<SendMsg>(f)(s, message, flags, sent, ov, routine));
            };
            if inside.passes(ov).is_some() {
                let f = typed::<SendMsg>(of_lower(inside.body(), &ws::WSAID_WSASENDMSG)?);
                return zero(f(s, message, flags, sent, ov, routine));
            }
            let r = Request::direct(&inside, s, ov, routine)?;
            pending_unless_plain(r.is_some(), send_one(inside, s, message, flags, sent, r))
        }
    };
    told(call())
}

fn pending_unless_plain(overlapped: bool, result: Result<(), Code>) -> Result<(), Code> {
    if overlapped { pending(result) } else { result }
}

/// SIO_EXT_SENDMSG: WSASendMsg as ws2_32 passes it on.
///
/// # Safety
/// As for WSASendMsg; `thread` is null or the caller's.
pub unsafe fn ext_send_msg(
    inside: Inside,
    s: SOCKET,
    m: WSASENDMSG,
    thread: *const ws::WSATHREADID,
) -> Result<(), Code> {
    // SAFETY: by the caller.
    unsafe {
        let (ov, routine) = (m.lpOverlapped, m.lpCompletionRoutine);
        if inside.passes(ov).is_some() {
            let f = typed::<SendMsg>(of_lower(inside.body(), &ws::WSAID_WSASENDMSG)?);
            let sent = m.lpNumberOfBytesSent;
            return zero(f(s, m.lpMsg, m.dwFlags, sent, ov, routine));
        }
        let r = Request::new(&inside, s, ov, routine, thread);
        send_one(inside, s, m.lpMsg, m.dwFlags, m.lpNumberOfBytesSent, r)
    }
}

/// # Safety
/// As for WSASendMsg.
unsafe fn send_one(
    inside: Inside,
    s: SOCKET,
    message: *const WSAMSG,
    flags: u32,
    sent: *mut u32,
    r: Option<Request>,
) -> Result<(), Code> {
    // SAFETY: the caller's arguments, in all that follows.
    unsafe {
        let f = typed::<SendMsg>(of_lower(inside.body(), &ws::WSAID_WSASENDMSG)?);
        let m = message.as_ref().ok_or(ws::WSAEFAULT)?;
        let (bufs, count) = (m.lpBuffers.cast_const(), m.dwBufferCount);
        let base = inside.body().base;
        let Some(r) = r else {
            if inside.engaged().is_some() {
                let (mut code, none) = (0, null_mut());
                let done = data::send(s, bufs, count, sent, flags, none, None, null(), &mut code);
                return if done == 0 { Ok(()) } else { Err(code) };
            }
            let mut n = 0;
            zero(f(base, message, flags, &mut n, null_mut(), None))?;
            put(sent, n);
            if let Some(conn) = inside.conn().filter(|_| n > 0) {
                conn.count_plain(n as usize, 0);
            }
            return Ok(());
        };
        if overlapped::stands_in_line(&inside) || overlapped::back_to_tcp(&inside) {
            return overlapped::send(inside, r, bufs, count, sent, flags, (null(), 0));
        }
        let now = overlapped::start(inside, r, Kind::Send, 0, |p| {
            zero(f(base, message, flags, p.bytes, p.ov, None))
        })?;
        put(sent, now.bytes);
        Ok(())
    }
}
