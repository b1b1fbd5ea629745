//! WSPSetSockOpt and WSPGetSockOpt: the base socket keeps every value; what the ring must obey is noted as well.

use gm::Reason;
use gm::end::flag;
use ring::sync::Ordering::Relaxed;
use sockets::{Conn, Kernel};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET};
use windows_sys::core::{PCSTR, PSTR};

use crate::answer::{Code, done, lower};
use crate::kernel::Socket;
use crate::slot::{Body, Inside, enter};

/// A carried connection rings doorbells, single bytes that must leave at once: not held by Nagle's algorithm. The
/// program keeps seeing its own value of TCP_NODELAY.
pub fn own_push(b: &Body, conn: &Conn) {
    let end = conn.end();
    if int_option(b, ws::IPPROTO_TCP, ws::TCP_NODELAY).is_some_and(|v| v & 0xff != 0) {
        end.set(flag::NODELAY);
    }
    end.set(flag::OWN_PUSH);
    push_at_once(b);
}

fn push_at_once(b: &Body) {
    if let Some(fd) = b.fd() {
        return fd.push_at_once();
    }
    let on = 1_i32.to_ne_bytes();
    let mut code = 0;
    // SAFETY: a value of the length given.
    unsafe {
        (b.lower.set_sock_opt)(
            b.base,
            ws::IPPROTO_TCP,
            ws::TCP_NODELAY,
            on.as_ptr(),
            4,
            &mut code,
        )
    };
}

/// An integer option of the base socket; shorter answers are widened.
fn int_option(b: &Body, level: i32, name: i32) -> Option<u32> {
    let (mut value, mut len, mut code) = (0_u32, 4, 0);
    // SAFETY: an out-pointer to a local of the length given.
    let r = unsafe {
        let value = std::ptr::from_mut(&mut value).cast();
        (b.lower.get_sock_opt)(b.base, level, name, value, &mut len, &mut code)
    };
    (r == 0).then_some(value)
}

/// An accepted socket has its listener's options, so what we noted of them as well.
pub fn inherit(listener: &Body, new: &Body) {
    let (Some(from), Some(to)) = (&listener.conn, &new.conn) else {
        return;
    };
    let (from, to) = (from.end(), to.end());
    for (a, b) in [
        (&from.receive_timeout_us, &to.receive_timeout_us),
        (&from.send_timeout_us, &to.send_timeout_us),
    ] {
        b.store(a.load(Relaxed), Relaxed);
    }
    if from.has(flag::LINGER_ZERO) {
        to.set(flag::LINGER_ZERO);
    }
    if from.has(flag::KEEP_TCP) {
        to.keep_tcp(from.reason());
    }
}

pub unsafe extern "system" fn set_sock_opt(
    s: SOCKET,
    level: i32,
    name: i32,
    value: PCSTR,
    len: i32,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        let b = inside.body();
        if (level, name) == (ws::SOL_SOCKET, ws::SO_UPDATE_ACCEPT_CONTEXT) {
            // SAFETY: the caller's value.
            return unsafe { update_accept_context(&inside, value, len) };
        }
        // SAFETY: the caller's arguments, unchanged.
        lower(|code| unsafe { (b.lower.set_sock_opt)(b.base, level, name, value, len, code) })?;
        if let Some(conn) = &b.conn {
            // SAFETY: the lower provider has just read the caller's value.
            unsafe { note(&inside, conn, level, name, value, len) };
        }
        Ok(())
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// The value is the listener's handle, which below is another.
///
/// # Safety
/// `value` is null or readable for `len` bytes.
unsafe fn update_accept_context(inside: &Inside, value: PCSTR, len: i32) -> Result<(), Code> {
    if value.is_null() || (len as usize) < size_of::<SOCKET>() {
        return Err(ws::WSAEFAULT);
    }
    // SAFETY: by the caller.
    let listener = enter(unsafe { value.cast::<SOCKET>().read_unaligned() })?;
    let b = inside.body();
    let base = listener.body().base;
    let size = size_of::<SOCKET>() as i32;
    // SAFETY: a value of the length given.
    lower(|code| unsafe {
        let value = std::ptr::from_ref(&base).cast();
        let name = ws::SO_UPDATE_ACCEPT_CONTEXT;
        (b.lower.set_sock_opt)(b.base, ws::SOL_SOCKET, name, value, size, code)
    })?;
    inherit(listener.body(), b);
    Ok(())
}

/// Notes what the ring must obey.
///
/// # Safety
/// `value` is readable for `len` bytes.
unsafe fn note(inside: &Inside, conn: &Conn, level: i32, name: i32, value: PCSTR, len: i32) {
    let end = conn.end();
    let len = usize::try_from(len).unwrap_or(0);
    // SAFETY: by the caller, and the length is checked. Options may be given in one byte, as BOOLEAN.
    let int = unsafe {
        match len {
            0 => 0,
            1..4 => u32::from(value.read()),
            _ => value.cast::<u32>().read_unaligned(),
        }
    };
    match (level, name) {
        // Milliseconds, where Unix has a struct timeval.
        (ws::SOL_SOCKET, ws::SO_RCVTIMEO) => {
            end.receive_timeout_us.store(u64::from(int) * 1000, Relaxed);
        }
        (ws::SOL_SOCKET, ws::SO_SNDTIMEO) => {
            end.send_timeout_us.store(u64::from(int) * 1000, Relaxed);
        }
        (ws::SOL_SOCKET, ws::SO_LINGER) if len >= size_of::<ws::LINGER>() => {
            // SAFETY: as above.
            let l = unsafe { value.cast::<ws::LINGER>().read_unaligned() };
            if l.l_onoff != 0 && l.l_linger == 0 {
                end.set(flag::LINGER_ZERO);
            } else {
                end.clear(flag::LINGER_ZERO);
            }
        }
        (ws::SOL_SOCKET, ws::SO_DONTLINGER) if int != 0 => end.clear(flag::LINGER_ZERO),
        // What the ring can't do: the kernel does it.
        (ws::SOL_SOCKET, ws::SO_OOBINLINE) if int != 0 => inside.hand_back(Reason::Option),
        (ws::IPPROTO_TCP, ws::TCP_NODELAY) if end.has(flag::OWN_PUSH) => {
            if int & 0xff != 0 {
                end.set(flag::NODELAY);
            } else {
                end.clear(flag::NODELAY);
            }
            if conn.is_engaged() {
                push_at_once(inside.body());
            }
        }
        _ => {}
    }
}

pub unsafe extern "system" fn get_sock_opt(
    s: SOCKET,
    level: i32,
    name: i32,
    value: PSTR,
    len: *mut i32,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        let b = inside.body();
        // SAFETY: the caller's arguments.
        unsafe {
            match (level, name) {
                // A handle of the lower provider's: who sees no layer treats it as such (libuv wants no packet for what succeeds at once).
                _ if b.own => {}
                (ws::SOL_SOCKET, ws::SO_PROTOCOL_INFOW) => {
                    return give(&b.layer.info, value, len);
                }
                (ws::SOL_SOCKET, ws::SO_PROTOCOL_INFOA) => {
                    return give(&narrow(&b.layer.info), value, len);
                }
                _ => {}
            }
            lower(|code| (b.lower.get_sock_opt)(b.base, level, name, value, len, code))?;
        }
        if let Some(conn) = &b.conn {
            // SAFETY: the lower provider has just written `*len` bytes there.
            unsafe { correct(&inside, conn, level, name, value, *len) };
        }
        Ok(())
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// The entry as ANSI programs see it. Protocol names are ASCII.
fn narrow(w: &ws::WSAPROTOCOL_INFOW) -> ws::WSAPROTOCOL_INFOA {
    let mut a = ws::WSAPROTOCOL_INFOA {
        dwServiceFlags1: w.dwServiceFlags1,
        dwServiceFlags2: w.dwServiceFlags2,
        dwServiceFlags3: w.dwServiceFlags3,
        dwServiceFlags4: w.dwServiceFlags4,
        dwProviderFlags: w.dwProviderFlags,
        ProviderId: w.ProviderId,
        dwCatalogEntryId: w.dwCatalogEntryId,
        ProtocolChain: w.ProtocolChain,
        iVersion: w.iVersion,
        iAddressFamily: w.iAddressFamily,
        iMaxSockAddr: w.iMaxSockAddr,
        iMinSockAddr: w.iMinSockAddr,
        iSocketType: w.iSocketType,
        iProtocol: w.iProtocol,
        iProtocolMaxOffset: w.iProtocolMaxOffset,
        iNetworkByteOrder: w.iNetworkByteOrder,
        iSecurityScheme: w.iSecurityScheme,
        dwMessageSize: w.dwMessageSize,
        dwProviderReserved: w.dwProviderReserved,
        szProtocol: [0; 256],
    };
    for (to, from) in a.szProtocol.iter_mut().zip(w.szProtocol) {
        *to = u8::try_from(from).unwrap_or(b'?') as _;
    }
    a
}

/// # Safety
/// `value` is null or writable for `*len` bytes.
unsafe fn give<T>(what: &T, value: PSTR, len: *mut i32) -> Result<(), Code> {
    // SAFETY: by the caller.
    unsafe {
        if value.is_null() || len.is_null() || (*len as usize) < size_of::<T>() {
            return Err(ws::WSAEFAULT);
        }
        std::ptr::copy_nonoverlapping(std::ptr::from_ref(what).cast(), value, size_of::<T>());
        *len = size_of::<T>() as i32;
    }
    Ok(())
}

/// What the base socket says of itself and is otherwise for the program.
///
/// # Safety
/// `value` holds `len` bytes.
unsafe fn correct(inside: &Inside, conn: &Conn, level: i32, name: i32, value: PSTR, len: i32) {
    let end = conn.end();
    if (level, name) == (ws::IPPROTO_TCP, ws::TCP_NODELAY) && end.has(flag::OWN_PUSH) && len > 0 {
        // SAFETY: by the caller; the rest of a longer value is zero.
        unsafe { value.write(u8::from(end.has(flag::NODELAY))) };
    }
    if (level, name) == (ws::SOL_SOCKET, ws::SO_ERROR) && len >= 4 {
        let value = value.cast::<i32>();
        // SAFETY: by the caller.
        let error = unsafe { value.read_unaligned() };
        let socket = Socket(inside.body());
        if conn.take_reset(&socket, error == ws::WSAECONNRESET) {
            // Told now, so not once more by the next call.
            socket.take_error();
            // SAFETY: by the caller.
            unsafe { value.write_unaligned(ws::WSAECONNRESET) };
        }
    }
}
