//! TransmitFile and TransmitPackets.

use std::ptr::{null, null_mut};

use gm::end::flag;
use windows_sys::Win32::Foundation::{
    ERROR_HANDLE_EOF, GetLastError, HANDLE, INVALID_HANDLE_VALUE,
};
use windows_sys::Win32::Networking::WinSock::{
    self as ws, SOCKET, TRANSMIT_FILE_BUFFERS, WSABUF, WSAPOLLFD,
};
use windows_sys::Win32::Storage::FileSystem::ReadFile;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::core::BOOL;

use super::{of_lower, of_stranger, pending, told, truth, typed};
use crate::answer::Code;
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

/// What is read of a file at once, unless the program says.
const PIECE: u32 = 64 * 1024;

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
        let Some(r) = Request::direct(&inside, s, ov, None)? else {
            let ends = flags & (ws::TF_DISCONNECT | ws::TF_REUSE_SOCKET) != 0;
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
        let ends = flags & (ws::TF_DISCONNECT | ws::TF_REUSE_SOCKET) != 0;
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
    // SAFETY: null or the caller's.
    let (head, tail) = match unsafe { buffers.as_ref() } {
        Some(b) => (
            (b.Head.cast_const(), b.HeadLength),
            (b.Tail.cast_const(), b.TailLength),
        ),
        None => ((null(), 0), (null(), 0)),
    };
    let piece = if per_send == 0 {
        PIECE
    } else {
        per_send.min(PIECE)
    };
    let mut reader = Reader {
        file,
        // 0: all of it.
        left: (bytes > 0).then_some(bytes),
        buf: vec![0; piece as usize],
    };
    // The first piece before the head: a file that can't be read so is left to the lower provider, whole.
    let mut n = match reader.next() {
        Ok(n) => n,
        Err(_) => return Outcome::NotOurs,
    };
    let mut send = || -> Result<(), Code> {
        // SAFETY: the caller's buffers.
        unsafe { send_all(s, head.0.cast(), head.1)? };
        while n > 0 {
            // SAFETY: our own buffer, with `n` bytes.
            unsafe { send_all(s, reader.buf.as_ptr(), n)? };
            n = reader.next()?;
        }
        // SAFETY: the caller's buffers.
        unsafe { send_all(s, tail.0.cast(), tail.1) }
    };
    Outcome::Done(send())
}

struct Reader {
    file: HANDLE,
    left: Option<u32>,
    buf: Vec<u8>,
}

impl Reader {
    /// How many bytes came into `buf`; 0: that was all.
    fn next(&mut self) -> Result<u32, Code> {
        if self.file.is_null() || self.file == INVALID_HANDLE_VALUE {
            return Ok(0);
        }
        let room = self.buf.len() as u32;
        let want = self.left.map_or(room, |left| left.min(room));
        if want == 0 {
            return Ok(0);
        }
        let mut n = 0;
        // SAFETY: a buffer of at least that length; the program's file.
        let ok = unsafe { ReadFile(self.file, self.buf.as_mut_ptr(), want, &mut n, null_mut()) };
        if ok == 0 {
            // SAFETY: always valid to call.
            return match unsafe { GetLastError() } {
                ERROR_HANDLE_EOF => Ok(0),
                code => Err(code as Code),
            };
        }
        if let Some(left) = &mut self.left {
            *left -= n;
        }
        Ok(n)
    }
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
