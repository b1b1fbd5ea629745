//! TransmitFile and TransmitPackets.

use std::ptr::{null, null_mut};

use gm::end::flag;
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Networking::WinSock::{
    self as ws, SOCKET, TRANSMIT_FILE_BUFFERS, WSABUF, WSAPOLLFD,
};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::core::BOOL;

use super::{of_lower, of_stranger, pending, told, truth, typed};
use crate::answer::Code;
use crate::overlapped::source::Source;
use crate::overlapped::{self, Kind, Request};
use crate::slot::enter;
use crate::{data, poll};

type TransmitFile = unsafe extern "system" fn(
    SOCKET,
    HANDLE,
    u32,
    u32,
    *mut OVERLAPPED,
    *const TRANSMIT_FILE_BUFFERS,
    u32,
) -> BOOL;
type TransmitPackets = unsafe extern "system" fn(
    SOCKET,
    *const ws::TRANSMIT_PACKETS_ELEMENT,
    u32,
    u32,
    *mut OVERLAPPED,
    u32,
) -> BOOL;

pub unsafe extern "system" fn transmit_file(
    s: SOCKET,
    file: HANDLE,
    bytes: u32,
    per_send: u32,
    ov: *mut OVERLAPPED,
    buffers: *const TRANSMIT_FILE_BUFFERS,
    flags: u32,
) -> BOOL {
    let call = || -> Result<(), Code> {
        let Ok(inside) = enter(s) else {
            let f = of_stranger(s, &ws::WSAID_TRANSMITFILE)?;
            // SAFETY: TransmitFile by its identifier; the caller's arguments.
            return truth(unsafe {
                typed::<TransmitFile>(f)(s, file, bytes, per_send, ov, buffers, flags)
            });
        };
        let f = of_lower(inside.body(), &ws::WSAID_TRANSMITFILE)?;
        // SAFETY: TransmitFile by its identifier.
        let f = unsafe { typed::<TransmitFile>(f) };
        let base = inside.body().base;
        let ends = flags & (ws::TF_DISCONNECT | ws::TF_REUSE_SOCKET) != 0;
        let Some(r) = Request::direct(&inside, s, ov, None)? else {
            let plain = inside
                .conn()
                .is_none_or(|c| c.end().has(flag::KEEP_TCP) && !c.is_engaged());
            let inside = if !ends && !plain {
                // Each of its sends comes inside by itself, or the connection would not be promoted meanwhile.
                drop(inside);
                // SAFETY: the caller's arguments.
                match unsafe { by_hand(s, file, bytes, per_send, buffers) } {
                    Outcome::Done(result) => return result,
                    Outcome::NotOurs => enter(s).map_err(|_| ws::WSAENOTSOCK)?,
                }
            } else {
                inside
            };
            // How much it sends is not told, so this connection can't be carried any more.
            overlapped::flush_to_tcp(&inside);
            // SAFETY: the caller's arguments, on the base socket.
            return truth(unsafe { f(base, file, bytes, per_send, ov, buffers, flags) });
        };
        let r = match !ends && overlapped::stands_in_line(&inside) {
            // SAFETY: the caller's arguments, which stay until the completion.
            true => match unsafe {
                overlapped::transmit_file(&inside, r, (file, bytes), per_send, buffers)
            } {
                Ok(begun) => return pending(begun),
                Err(r) => r,
            },
            false => r,
        };
        overlapped::flush_to_tcp(&inside);
        // SAFETY: the program's structure: the offset in the file is an input.
        let offset = unsafe { (*ov).Anonymous };
        // SAFETY: the program's buffers, which stay until the completion; the rest is the operation's own.
        pending(overlapped::start(inside, r, Kind::Send, 0, |p| unsafe {
            (*p.ov).Anonymous = offset;
            truth(f(base, file, bytes, per_send, p.ov, buffers, flags))
        }))
    };
    told(call())
}

enum Outcome {
    Done(Result<(), Code>),
    /// Nothing was sent: a file that only the lower provider can read.
    NotOurs,
}

/// Head, file and tail through WSPSend, so that a carried connection stays one. The file is read from where it stands.
///
/// # Safety
/// As for TransmitFile.
unsafe fn by_hand(
    s: SOCKET,
    file: HANDLE,
    bytes: u32,
    per_send: u32,
    buffers: *const TRANSMIT_FILE_BUFFERS,
) -> Outcome {
    // A file that can't be read so is left to the lower provider, whole.
    // SAFETY: by the caller.
    let opened = unsafe { Source::open(file, None, bytes, per_send, buffers) };
    let Ok((mut source, head)) = opened else {
        return Outcome::NotOurs;
    };
    let mut send = || -> Result<(), Code> {
        let mut next = Some(head);
        while let Some(part) = next {
            // SAFETY: the caller's buffer, or the source's.
            unsafe { send_all(s, part.buf, part.len)? };
            next = source.next()?;
        }
        Ok(())
    };
    Outcome::Done(send())
}

/// TransmitFile waits also on a socket that doesn't.
///
/// # Safety
/// `len` readable bytes.
unsafe fn send_all(s: SOCKET, mut at: *const u8, len: u32) -> Result<(), Code> {
    let mut left = len;
    while left > 0 {
        let buf = WSABUF {
            len: left,
            buf: at.cast_mut(),
        };
        let (mut sent, mut code, none) = (0, 0, null_mut());
        // SAFETY: by the caller; a plain call.
        let r = unsafe { data::send(s, &buf, 1, &mut sent, 0, none, None, null(), &mut code) };
        match (r, code) {
            (0, _) => {
                left -= sent.min(left);
                at = at.wrapping_add(sent as usize);
            }
            (_, ws::WSAEWOULDBLOCK) => {
                let mut room = [WSAPOLLFD {
                    fd: s,
                    events: ws::POLLWRNORM,
                    revents: 0,
                }];
                poll::poll(&mut room, -1)?;
            }
            (_, code) => return Err(code),
        }
    }
    Ok(())
}

pub unsafe extern "system" fn transmit_packets(
    s: SOCKET,
    elements: *const ws::TRANSMIT_PACKETS_ELEMENT,
    count: u32,
    size: u32,
    ov: *mut OVERLAPPED,
    flags: u32,
) -> BOOL {
    let call = || -> Result<(), Code> {
        let Ok(inside) = enter(s) else {
            let f = of_stranger(s, &ws::WSAID_TRANSMITPACKETS)?;
            // SAFETY: TransmitPackets by its identifier; the caller's arguments.
            return truth(unsafe {
                typed::<TransmitPackets>(f)(s, elements, count, size, ov, flags)
            });
        };
        let f = of_lower(inside.body(), &ws::WSAID_TRANSMITPACKETS)?;
        // SAFETY: TransmitPackets by its identifier.
        let f = unsafe { typed::<TransmitPackets>(f) };
        let base = inside.body().base;
        overlapped::flush_to_tcp(&inside);
        match Request::direct(&inside, s, ov, None)? {
            // SAFETY: the caller's arguments, on the base socket.
            None => truth(unsafe { f(base, elements, count, size, ov, flags) }),
            // SAFETY: the program's array and buffers, which stay until the completion; the structure is our own.
            Some(r) => pending(overlapped::start(inside, r, Kind::Send, 0, |p| unsafe {
                truth(f(base, elements, count, size, p.ov, flags))
            })),
        }
    };
    told(call())
}
