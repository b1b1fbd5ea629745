//! A base socket through the lower provider alone: the way of Windows.
//!
//! Winsock has no "do not wait" flag, so each call first asks whether it would: the base socket keeps the program's mode.

use sockets::{Fault, Peeked, Ready, Stream};
use windows_sys::Win32::Networking::WinSock as ws;

use std::sync::atomic::Ordering::Relaxed;

use crate::slot::Body;

const FIONREAD: u32 = ws::FIONREAD as u32;

/// A lower provider may tell of a reset once only, to whichever call asks first. One that a look has found is kept for the call
/// that takes errors, as a kernel keeps it: [`Body::broken`].
const BROKEN: u32 = 1;
/// It was told; the connection is over.
const BROKEN_TOLD: u32 = 2;

/// A reset that is to be told now.
fn take_broken(b: &Body) -> bool {
    b.broken.load(Relaxed) == BROKEN
        && b.broken
            .compare_exchange(BROKEN, BROKEN_TOLD, Relaxed, Relaxed)
            .is_ok()
}

fn fault(code: i32) -> Fault {
    match code {
        ws::WSAEWOULDBLOCK | ws::WSAETIMEDOUT => Fault::WouldBlock,
        ws::WSAEINTR => Fault::Interrupted,
        ws::WSAECONNRESET => Fault::Reset,
        ws::WSAESHUTDOWN => Fault::Pipe,
        code => Fault::Other(code),
    }
}

fn one(s: ws::SOCKET) -> ws::FD_SET {
    let mut set = ws::FD_SET {
        fd_count: 1,
        ..Default::default()
    };
    set.fd_array[0] = s;
    set
}

/// Asks, or waits, whether the base socket can be read or written. `limit_us`: `None` is no limit.
fn select(b: &Body, read: bool, write: bool, limit_us: Option<u64>) -> Result<(bool, bool), Fault> {
    let (mut r, mut w) = (one(b.base), one(b.base));
    let limit = limit_us.map(|us| ws::TIMEVAL {
        tv_sec: (us / 1_000_000).min(i32::MAX as u64) as i32,
        tv_usec: (us % 1_000_000) as i32,
    });
    let mut code = 0;
    let none = std::ptr::null_mut();
    // SAFETY: sets and a time-out of our own.
    let n = unsafe {
        (b.lower.select)(
            0,
            if read { &mut r } else { none },
            if write { &mut w } else { none },
            none,
            limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            &mut code,
        )
    };
    match n {
        0 => Ok((false, false)),
        1.. => Ok((read && r.fd_count > 0, write && w.fd_count > 0)),
        _ => Err(fault(code)),
    }
}

pub fn recv(b: &Body, buf: &mut [u8], peek: bool) -> Result<usize, Fault> {
    if queued(b) == 0 {
        if take_broken(b) {
            return Err(Fault::Reset);
        }
        if !select(b, true, false, Some(0))?.0 {
            return Err(Fault::WouldBlock);
        }
    }
    let got = recv_now(b, buf, peek);
    if got == Err(Fault::Reset) {
        b.broken.store(BROKEN_TOLD, Relaxed);
    }
    got
}

/// As [`recv`], on a socket whose mode is non-blocking.
pub fn recv_now(b: &Body, buf: &mut [u8], peek: bool) -> Result<usize, Fault> {
    let bufs = ws::WSABUF {
        len: u32::try_from(buf.len()).unwrap_or(u32::MAX),
        buf: buf.as_mut_ptr(),
    };
    let mut flags = if peek { ws::MSG_PEEK as u32 } else { 0 };
    let (mut got, mut code) = (0, 0);
    // SAFETY: one buffer of the length given; a plain call.
    let r = unsafe {
        (b.lower.recv)(
            b.base,
            &bufs,
            1,
            &mut got,
            &mut flags,
            std::ptr::null_mut(),
            None,
            std::ptr::null(),
            // windows-sys says const; the provider writes it.
            (&raw mut code).cast_const(),
        )
    };
    b.base_tells.store(true, Relaxed);
    if r == 0 {
        Ok(got as usize)
    } else {
        Err(fault(code))
    }
}

pub fn send(b: &Body, buf: &[u8]) -> Result<usize, Fault> {
    /// A blocking send takes all it is given: little at a time, so that it waits for little.
    const PIECE: usize = 4096;
    if !select(b, false, true, Some(0))?.1 {
        return Err(Fault::WouldBlock);
    }
    let bufs = ws::WSABUF {
        len: buf.len().min(PIECE) as u32,
        buf: buf.as_ptr().cast_mut(),
    };
    let (mut sent, mut code) = (0, 0);
    // SAFETY: one buffer of the length given, only read; a plain call.
    let r = unsafe {
        (b.lower.send)(
            b.base,
            &bufs,
            1,
            &mut sent,
            0,
            std::ptr::null_mut(),
            None,
            std::ptr::null(),
            &mut code,
        )
    };
    if r == 0 {
        Ok(sent as usize)
    } else {
        Err(fault(code))
    }
}

pub fn sleep_readable(b: &Body, limit_us: u64) -> Result<Peeked, Fault> {
    let limit = (limit_us > 0).then_some(limit_us);
    let (readable, _) = select(b, true, false, limit)?;
    if b.is_closing() {
        return Err(super::closed());
    }
    if !readable {
        return Err(Fault::WouldBlock);
    }
    match recv(b, &mut [0], true) {
        Ok(0) => Ok(Peeked::EndOfFile),
        Ok(n) => Ok(Peeked::Bytes(n)),
        Err(Fault::WouldBlock) => Ok(Peeked::Bytes(0)),
        Err(f) => Err(f),
    }
}

pub fn sleep_writable(b: &Body, limit_us: u64) -> Result<(), Fault> {
    let (_, writable) = select(b, false, true, (limit_us > 0).then_some(limit_us))?;
    if writable {
        Ok(())
    } else {
        Err(Fault::WouldBlock)
    }
}

/// The lower provider tells of an end only when all before it is read, so doorbells are taken off first.
pub fn poll(b: &Body) -> Ready {
    let ask = || select(b, true, true, Some(0));
    let Ok((mut readable, writable)) = ask() else {
        return Ready::ERR | Ready::HUP;
    };
    let mut unread = readable && queued(b) > 0;
    if unread && let Some(conn) = &b.conn {
        // A selected socket's end is told by an event; each receive would have the bells that are left signal that anew.
        conn.uncover_end(&super::Socket(b), !b.is_selected());
        unread = queued(b) > 0;
        readable = unread || ask().is_ok_and(|(readable, _)| readable);
    }
    let mut ready = if writable { Ready::OUT } else { Ready::NONE };
    if readable {
        ready |= Ready::IN;
        if !unread && b.broken.load(Relaxed) == 0 {
            match recv(b, &mut [0], true) {
                Ok(0) => ready |= Ready::RDHUP,
                Err(Fault::Reset) => b.broken.store(BROKEN, Relaxed),
                Err(Fault::Other(_)) => ready |= Ready::ERR | Ready::HUP,
                _ => {}
            }
        }
    }
    match b.broken.load(Relaxed) {
        0 => {}
        BROKEN => ready |= Ready::RDHUP | Ready::HUP | Ready::ERR,
        _ => ready |= Ready::RDHUP | Ready::HUP,
    }
    ready
}

pub fn take_error(b: &Body) {
    take_broken(b);
    let (mut value, mut len, mut code) = (0_i32, 4, 0);
    // SAFETY: an out-pointer to a local of the length given.
    unsafe {
        (b.lower.get_sock_opt)(
            b.base,
            ws::SOL_SOCKET,
            ws::SO_ERROR,
            std::ptr::from_mut(&mut value).cast(),
            &mut len,
            &mut code,
        )
    };
}

pub fn queued(b: &Body) -> usize {
    let (mut n, mut bytes, mut code) = (0_u32, 0, 0);
    // SAFETY: an out-buffer of the length given; a plain call.
    unsafe {
        (b.lower.ioctl)(
            b.base,
            FIONREAD,
            std::ptr::null(),
            0,
            std::ptr::from_mut(&mut n).cast(),
            4,
            &mut bytes,
            std::ptr::null_mut(),
            None,
            std::ptr::null(),
            &mut code,
        )
    };
    n as usize
}

pub fn set_nonblocking(b: &Body) -> bool {
    let (on, mut bytes, mut code) = (1_u32, 0, 0);
    // SAFETY: an in-buffer of the length given; a plain call.
    let r = unsafe {
        (b.lower.ioctl)(
            b.base,
            ws::FIONBIO as u32,
            std::ptr::from_ref(&on).cast(),
            4,
            std::ptr::null_mut(),
            0,
            &mut bytes,
            std::ptr::null_mut(),
            None,
            std::ptr::null(),
            &mut code,
        )
    };
    r == 0
}

/// All calls that move bytes of a non-IFS socket come through this provider, so its own count is the kernel's.
pub fn positions(b: &Body) -> Option<(u64, u64)> {
    let end = b.conn.as_ref()?.end();
    Some((end.tcp_tx.load(Relaxed), end.tcp_rx.load(Relaxed)))
}

pub fn stream(b: &Body) -> Option<Stream> {
    use crate::names::{base_name, split};
    Some(Stream {
        local: split(&base_name(b, false).ok()?)?,
        peer: split(&base_name(b, true).ok()?)?,
    })
}

pub fn abort_on_close(b: &Body) {
    let value = ws::LINGER {
        l_onoff: 1,
        l_linger: 0,
    };
    let mut code = 0;
    // SAFETY: a value of the length given.
    unsafe {
        (b.lower.set_sock_opt)(
            b.base,
            ws::SOL_SOCKET,
            ws::SO_LINGER,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as i32,
            &mut code,
        )
    };
}

pub fn shutdown(b: &Body, read: bool, write: bool) -> Result<(), Fault> {
    let how = match (read, write) {
        (true, true) => ws::SD_BOTH,
        (true, false) => ws::SD_RECEIVE,
        (false, true) => ws::SD_SEND,
        (false, false) => return Ok(()),
    };
    let mut code = 0;
    // SAFETY: a plain call.
    if unsafe { (b.lower.shutdown)(b.base, how, &mut code) } == 0 {
        Ok(())
    } else {
        Err(fault(code))
    }
}
