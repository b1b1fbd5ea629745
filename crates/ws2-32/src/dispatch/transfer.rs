//! Winsock 1.1's calls, and those of Winsock 2 that the SPI has under another form.

use std::ptr;

use windows_sys::Win32::Networking::WinSock::*;
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::{ask, entry, failed, layered, pointer, spi_call, thread_id};
use crate::builtin::{self, Routine};
use crate::complete;

#[unsafe(no_mangle)]
unsafe extern "system" fn recv(s: SOCKET, buffer: *mut u8, len: i32, flags: i32) -> i32 {
    match layered(s) {
        // SAFETY: the program's own arguments.
        None => unsafe { builtin::recv(s, buffer, len, flags) },
        Some(p) => {
            let one = WSABUF {
                len: len as u32,
                buf: buffer,
            };
            let (mut got, mut flags) = (0, flags as u32);
            match ask!(p, lpWSPRecv(s, &one, 1, &mut got, &mut flags, ptr::null_mut(), None, ptr::null()) -> i32)
            {
                0 => got as i32,
                failed => failed,
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn recvfrom(
    s: SOCKET,
    buffer: *mut u8,
    len: i32,
    flags: i32,
    from: *mut SOCKADDR,
    from_len: *mut i32,
) -> i32 {
    match layered(s) {
        // SAFETY: the program's own arguments.
        None => unsafe { builtin::recvfrom(s, buffer, len, flags, from, from_len) },
        Some(p) => {
            let one = WSABUF {
                len: len as u32,
                buf: buffer,
            };
            let (mut got, mut flags) = (0, flags as u32);
            match ask!(p, lpWSPRecvFrom(s, &one, 1, &mut got, &mut flags, from, from_len, ptr::null_mut(), None, ptr::null()) -> i32)
            {
                0 => got as i32,
                failed => failed,
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn send(s: SOCKET, buffer: *const u8, len: i32, flags: i32) -> i32 {
    match layered(s) {
        // SAFETY: the program's own arguments.
        None => unsafe { builtin::send(s, buffer, len, flags) },
        Some(p) => {
            let one = WSABUF {
                len: len as u32,
                buf: buffer.cast_mut(),
            };
            let mut sent = 0;
            match ask!(p, lpWSPSend(s, &one, 1, &mut sent, flags as u32, ptr::null_mut(), None, ptr::null()) -> i32)
            {
                0 => sent as i32,
                failed => failed,
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn sendto(
    s: SOCKET,
    buffer: *const u8,
    len: i32,
    flags: i32,
    to: *const SOCKADDR,
    to_len: i32,
) -> i32 {
    match layered(s) {
        // SAFETY: the program's own arguments.
        None => unsafe { builtin::sendto(s, buffer, len, flags, to, to_len) },
        Some(p) => {
            let one = WSABUF {
                len: len as u32,
                buf: buffer.cast_mut(),
            };
            let mut sent = 0;
            match ask!(p, lpWSPSendTo(s, &one, 1, &mut sent, flags as u32, to, to_len, ptr::null_mut(), None, ptr::null()) -> i32)
            {
                0 => sent as i32,
                failed => failed,
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn connect(s: SOCKET, name: *const SOCKADDR, len: i32) -> i32 {
    match layered(s) {
        // SAFETY: the program's own arguments.
        None => unsafe { builtin::connect(s, name, len) },
        Some(p) => {
            ask!(p, lpWSPConnect(s, name, len, ptr::null(), ptr::null_mut(), ptr::null(), ptr::null()) -> i32)
        }
    }
}

/// One word in and out, whichever the command needs; so does Wine.
#[unsafe(no_mangle)]
unsafe extern "system" fn ioctlsocket(s: SOCKET, command: i32, value: *mut u32) -> i32 {
    match layered(s) {
        // SAFETY: the program's own arguments.
        None => unsafe { builtin::ioctlsocket(s, command, value) },
        Some(p) => {
            let mut bytes = 0;
            ask!(p, lpWSPIoctl(s, command as u32, value.cast(), 4, value.cast(), 4, &mut bytes, ptr::null_mut(), None, ptr::null()) -> i32)
        }
    }
}

/// A provider gets it as SIO_EXT_SENDMSG; one that doesn't know that ioctl, as WSPSendTo if that says it all.
#[unsafe(no_mangle)]
unsafe extern "system" fn WSASendMsg(
    s: SOCKET,
    message: *mut WSAMSG,
    flags: u32,
    bytes: *mut u32,
    ov: *mut OVERLAPPED,
    routine: Routine,
) -> i32 {
    let Some(p) = layered(s) else {
        // SAFETY: the program's own arguments.
        return unsafe { builtin::WSASendMsg(s, message, flags, bytes, ov, routine) };
    };
    // SAFETY: the program's message.
    let Some(m) = (unsafe { message.as_ref() }) else {
        super::fail(WSAEFAULT);
        return SOCKET_ERROR;
    };
    let id = thread_id(routine);
    let packed = WSASENDMSG {
        lpMsg: message,
        dwFlags: flags,
        lpNumberOfBytesSent: bytes,
        lpOverlapped: ov,
        lpCompletionRoutine: routine,
    };
    let (input, len) = ((&raw const packed).cast(), size_of_val(&packed) as u32);
    let (none, mut returned) = (ptr::null_mut(), 0);
    spi_call(SOCKET_ERROR, |errno: *mut i32| {
        complete::within_call(s, ov, routine.is_some(), || {
            let by_ioctl = entry!(p, lpWSPIoctl(s, SIO_EXT_SENDMSG, input, len, none, 0,
                &mut returned, ov, routine, pointer(&id), errno) -> i32);
            // SAFETY: the variable of `spi_call`.
            let refused = unsafe { *errno };
            let unknown = matches!(refused, WSAEOPNOTSUPP | WSAEINVAL | WSAENOPROTOOPT);
            if by_ioctl != SOCKET_ERROR || !unknown || m.Control.len > 0 {
                return by_ioctl;
            }
            entry!(p, lpWSPSendTo(s, m.lpBuffers, m.dwBufferCount, bytes, flags, m.name, m.namelen,
                ov, routine, pointer(&id), errno) -> i32)
        })
    })
}
