//! Bytes in and out: WSPRecv, WSPRecvFrom, WSPSend, WSPSendTo and the disconnecting pair.
//!
//! `IoSliceMut` and `IoSlice` are promised to have WSABUF's layout on Windows, so the program's buffers go to the engine as
//! they are.

use std::io::{IoSlice, IoSliceMut};

use gm::Reason;
use gm::end::flag;
use sockets::{Conn, Fault, RecvOptions, SendOptions};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKADDR, SOCKET, WSABUF};
use windows_sys::Win32::System::IO::OVERLAPPED;

use crate::answer::{Code, closed_code, code_of, done, lower, no_error, reset_answer};
use crate::events;
use crate::memory;
use crate::overlapped::{self, Request};
use crate::slot::{Body, Inside, enter};

const MSG_OOB: u32 = ws::MSG_OOB as u32;
const MSG_PEEK: u32 = ws::MSG_PEEK as u32;
const MSG_WAITALL: u32 = ws::MSG_WAITALL as u32;

type Routine = ws::LPWSAOVERLAPPED_COMPLETION_ROUTINE;

/// The program's buffers for receiving.
///
/// # Safety
/// As for WSARecv: `count` buffers, each writable.
unsafe fn room<'a>(bufs: *const WSABUF, count: u32) -> &'a mut [IoSliceMut<'a>] {
    if bufs.is_null() || count == 0 {
        return &mut [];
    }
    // SAFETY: by the caller; the array itself is only read.
    unsafe { std::slice::from_raw_parts_mut(bufs.cast_mut().cast(), count as usize) }
}

/// The program's buffers for sending.
///
/// # Safety
/// As for WSASend: `count` buffers, each readable.
unsafe fn bytes<'a>(bufs: *const WSABUF, count: u32) -> &'a [IoSlice<'a>] {
    if bufs.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: by the caller.
    unsafe { std::slice::from_raw_parts(bufs.cast(), count as usize) }
}

/// May every buffer be used, for writing or only for reading? Else it is WSAEFAULT, as the base provider says.
///
/// # Safety
/// `count` descriptions of buffers.
pub unsafe fn sound(bufs: *const WSABUF, count: u32, write: bool) -> Result<(), Code> {
    if bufs.is_null() && count > 0 {
        return Err(ws::WSAEFAULT);
    }
    for i in 0..count as usize {
        // SAFETY: by the caller.
        let b = unsafe { &*bufs.add(i) };
        if b.len > 0 && !memory::is_usable(b.buf, b.len as usize, write) {
            return Err(ws::WSAEFAULT);
        }
    }
    Ok(())
}

/// What receives when the connection is carried; `None`: the base socket must do it.
///
/// # Safety
/// As for WSARecv.
unsafe fn carried_recv(
    inside: &Inside,
    bufs: *const WSABUF,
    count: u32,
    flags: u32,
) -> Option<Result<usize, Code>> {
    let conn = inside.engaged()?;
    if flags & MSG_OOB != 0 {
        // Urgent bytes are the kernel's; they take no byte of the stream.
        return None;
    }
    // SAFETY: by the caller.
    if let Err(code) = unsafe { sound(bufs, count, true) } {
        return Some(Err(code));
    }
    if conn.end().has(flag::READ_SHUT) {
        return Some(Err(ws::WSAESHUTDOWN));
    }
    let dont_wait = inside.body().is_nonblocking();
    let waits = !dont_wait && !conn.peer_has_ended();
    let o = RecvOptions {
        dont_wait,
        peek: flags & MSG_PEEK != 0,
        wait_all: flags & MSG_WAITALL != 0,
    };
    // SAFETY: by the caller; checked above.
    let got = conn.recv(&inside.socket(), unsafe { room(bufs, count) }, o);
    if got == Err(Fault::UseKernel) {
        return None;
    }
    if inside.body().is_closing() {
        return Some(Err(closed_code()));
    }
    events::after_recv(inside, conn);
    Some(match got {
        Err(Fault::Reset) if !conn.end().has(flag::CORRUPT) => reset_answer(waits),
        got => got.map_err(|f| code_of(f, !dont_wait)),
    })
}

/// As [`carried_recv`], for sending.
///
/// # Safety
/// As for WSASend.
unsafe fn carried_send(
    inside: &Inside,
    bufs: *const WSABUF,
    count: u32,
    flags: u32,
) -> Option<Result<usize, Code>> {
    if flags & MSG_OOB != 0 {
        // This direction goes back to TCP, in order, and then the kernel does it.
        let (conn, ctx) = (inside.conn()?, crate::ctx::get()?);
        conn.before_urgent(&ctx.node, &inside.socket(), Reason::Unsupported);
        return None;
    }
    let conn = inside.engaged()?;
    // SAFETY: by the caller.
    if let Err(code) = unsafe { sound(bufs, count, false) } {
        return Some(Err(code));
    }
    if conn.end().has(flag::WRITE_SHUT) {
        return Some(Err(ws::WSAESHUTDOWN));
    }
    let dont_wait = inside.body().is_nonblocking();
    // SAFETY: by the caller; checked above.
    let bufs = unsafe { bytes(bufs, count) };
    let mut sent = conn.send(&inside.socket(), bufs, SendOptions { dont_wait });
    if !dont_wait && let Ok(n) = sent {
        sent = finish(inside, conn, bufs, n);
    }
    if sent == Err(Fault::UseKernel) {
        return None;
    }
    events::after_send(inside, conn, sent);
    Some(sent.map_err(|f| code_of(f, !dont_wait)))
}

/// A blocking send takes all or fails: after a part (the peer is gone, or time ran out) what keeps it from the rest is told.
fn finish(
    inside: &Inside,
    conn: &Conn,
    bufs: &[IoSlice<'_>],
    mut done: usize,
) -> Result<usize, Fault> {
    let want: usize = bufs.iter().map(|b| b.len()).sum();
    while done < want {
        let mut skip = done;
        let first = bufs.iter().find_map(|b| {
            if skip < b.len() {
                return b.get(skip..);
            }
            skip -= b.len();
            None
        });
        let rest = [IoSlice::new(first.unwrap_or_default())];
        done += conn.send(&inside.socket(), &rest, SendOptions { dont_wait: false })?;
    }
    Ok(done)
}

/// Counts what the base socket moved.
fn plain(inside: &Inside, tx: u32, rx: u32) {
    if let Some(conn) = inside.conn()
        && (tx > 0 || rx > 0)
    {
        conn.count_plain(tx as usize, rx as usize);
    }
}

/// # Safety
/// `p` is null or writable.
unsafe fn put<T>(p: *mut T, value: T) {
    if !p.is_null() {
        // SAFETY: by the caller.
        unsafe { *p = value };
    }
}

pub unsafe extern "system" fn recv(
    s: SOCKET,
    bufs: *const WSABUF,
    count: u32,
    got: *mut u32,
    flags: *mut u32,
    ov: *mut OVERLAPPED,
    routine: Routine,
    thread: *const ws::WSATHREADID,
    errno: *const i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        // SAFETY: the caller's arguments.
        unsafe {
            if let Some(b) = inside.passes(ov) {
                return lower(|code| {
                    (b.lower.recv)(b.base, bufs, count, got, flags, ov, routine, thread, code)
                });
            }
            if let Some(r) = Request::new(&inside, s, ov, routine, thread) {
                return overlapped::recv(inside, r, bufs, count, got, flags);
            }
            if !flags.is_null() && *flags & MSG_OOB == 0 {
                overlapped::take_turn(&inside, false)?;
            }
            sync_recv(&inside, bufs, count, got, flags, |b, n, code| {
                let (none, t) = (std::ptr::null_mut(), std::ptr::null());
                (b.lower.recv)(b.base, bufs, count, n, flags, none, None, t, code)
            })
        }
    };
    // SAFETY: the caller's place for the code; windows-sys says const, the documentation out.
    unsafe { done(call(), errno.cast_mut()) }
}

/// # Safety
/// As for WSARecv.
unsafe fn sync_recv(
    inside: &Inside,
    bufs: *const WSABUF,
    count: u32,
    got: *mut u32,
    flags: *mut u32,
    below: impl FnOnce(&Body, *mut u32, *mut i32) -> i32,
) -> Result<(), Code> {
    // SAFETY: the caller's arguments; null flags are refused below, by the base provider.
    unsafe {
        let asked = if flags.is_null() { 0 } else { *flags };
        if let Some(r) = carried_recv(inside, bufs, count, asked) {
            put(got, r? as u32);
            no_error();
            return Ok(());
        }
        let mut n = 0;
        let received = lower(|code| below(inside.body(), &mut n, code));
        if asked & MSG_OOB == 0 {
            events::after_plain_recv(inside);
        }
        received?;
        put(got, n);
        if asked & (MSG_PEEK | MSG_OOB) == 0 {
            plain(inside, 0, n);
        }
        Ok(())
    }
}

pub unsafe extern "system" fn recv_from(
    s: SOCKET,
    bufs: *const WSABUF,
    count: u32,
    got: *mut u32,
    flags: *mut u32,
    from: *mut SOCKADDR,
    from_len: *mut i32,
    ov: *mut OVERLAPPED,
    routine: Routine,
    thread: *const ws::WSATHREADID,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        // SAFETY: the caller's arguments.
        unsafe {
            if let Some(b) = inside.passes(ov) {
                return lower(|code| {
                    (b.lower.recv_from)(
                        b.base, bufs, count, got, flags, from, from_len, ov, routine, thread, code,
                    )
                });
            }
            if let Some(r) = Request::new(&inside, s, ov, routine, thread) {
                let from = (from, from_len);
                return overlapped::recv_from(inside, r, bufs, count, got, flags, from);
            }
            if !flags.is_null() && *flags & MSG_OOB == 0 {
                overlapped::take_turn(&inside, false)?;
            }
            sync_recv(&inside, bufs, count, got, flags, |b, n, code| {
                let (none, t) = (std::ptr::null_mut(), std::ptr::null());
                (b.lower.recv_from)(
                    b.base, bufs, count, n, flags, from, from_len, none, None, t, code,
                )
            })
        }
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

pub unsafe extern "system" fn send(
    s: SOCKET,
    bufs: *const WSABUF,
    count: u32,
    sent: *mut u32,
    flags: u32,
    ov: *mut OVERLAPPED,
    routine: Routine,
    thread: *const ws::WSATHREADID,
    errno: *mut i32,
) -> i32 {
    let to = (std::ptr::null(), 0);
    // SAFETY: the caller's arguments.
    unsafe {
        send_any(
            s,
            bufs,
            count,
            sent,
            flags,
            to,
            (ov, routine, thread),
            errno,
        )
    }
}

pub unsafe extern "system" fn send_to(
    s: SOCKET,
    bufs: *const WSABUF,
    count: u32,
    sent: *mut u32,
    flags: u32,
    to: *const SOCKADDR,
    to_len: i32,
    ov: *mut OVERLAPPED,
    routine: Routine,
    thread: *const ws::WSATHREADID,
    errno: *mut i32,
) -> i32 {
    let to = (to, to_len);
    // SAFETY: the caller's arguments.
    unsafe {
        send_any(
            s,
            bufs,
            count,
            sent,
            flags,
            to,
            (ov, routine, thread),
            errno,
        )
    }
}

type Completion = (*mut OVERLAPPED, Routine, *const ws::WSATHREADID);

/// # Safety
/// As for WSASendTo; a null address is WSASend.
#[allow(clippy::too_many_arguments)] // the SPI's own list
unsafe fn send_any(
    s: SOCKET,
    bufs: *const WSABUF,
    count: u32,
    sent: *mut u32,
    flags: u32,
    to: (*const SOCKADDR, i32),
    (ov, routine, thread): Completion,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        // SAFETY: the caller's arguments.
        unsafe {
            if let Some(b) = inside.passes(ov) {
                return lower(|code| {
                    let base = b.base;
                    if to.0.is_null() {
                        (b.lower.send)(base, bufs, count, sent, flags, ov, routine, thread, code)
                    } else {
                        (b.lower.send_to)(
                            base, bufs, count, sent, flags, to.0, to.1, ov, routine, thread, code,
                        )
                    }
                });
            }
            if let Some(r) = Request::new(&inside, s, ov, routine, thread) {
                return overlapped::send(inside, r, bufs, count, sent, flags, to);
            }
            if sent.is_null() {
                return Err(ws::WSAEFAULT);
            }
            overlapped::take_turn(&inside, true)?;
            if let Some(r) = carried_send(&inside, bufs, count, flags) {
                put(sent, r? as u32);
                no_error();
                return Ok(());
            }
            let b = inside.body();
            let mut n = 0;
            let none = std::ptr::null_mut();
            lower(|code| {
                let (base, t) = (b.base, std::ptr::null());
                if to.0.is_null() {
                    (b.lower.send)(base, bufs, count, &mut n, flags, none, None, t, code)
                } else {
                    (b.lower.send_to)(
                        base, bufs, count, &mut n, flags, to.0, to.1, none, None, t, code,
                    )
                }
            })
            .inspect_err(|_| events::after_plain_block(&inside))?;
            put(sent, n);
            // The byte of MSG_OOB takes its place in the sequence as any other.
            plain(&inside, n, 0);
            Ok(())
        }
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

pub unsafe extern "system" fn recv_disconnect(
    s: SOCKET,
    data: *const WSABUF,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the caller's arguments, unchanged.
    unsafe {
        disconnected(s, ws::SD_RECEIVE, errno, |b, code| {
            (b.lower.recv_disconnect)(b.base, data, code)
        })
    }
}

pub unsafe extern "system" fn send_disconnect(
    s: SOCKET,
    data: *const WSABUF,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the caller's arguments, unchanged.
    unsafe {
        disconnected(s, ws::SD_SEND, errno, |b, code| {
            (b.lower.send_disconnect)(b.base, data, code)
        })
    }
}

/// # Safety
/// `errno` is the caller's place for the code, or null.
unsafe fn disconnected(
    s: SOCKET,
    how: i32,
    errno: *mut i32,
    below: impl FnOnce(&Body, *mut i32) -> i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        if inside.engaged().is_some() {
            return crate::life::shut(&inside, how);
        }
        lower(|code| below(inside.body(), code))
    };
    // SAFETY: by the caller.
    unsafe { done(call(), errno) }
}
