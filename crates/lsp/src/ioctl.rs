//! WSPIoctl: what concerns a carried connection, the handles of Vista and later, extension pointers; the rest is the lower
//! provider's.

use core::ffi::c_void;
use core::mem::offset_of;

use gm::Reason;
use spi::types::{
    SIO_BASE_HANDLE, SIO_BSP_HANDLE, SIO_BSP_HANDLE_POLL, SIO_BSP_HANDLE_SELECT, SIO_EXT_POLL,
    SIO_EXT_SELECT, SIO_EXT_SENDMSG, WSAPOLLDATA, WSASELECTDATA,
};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET, WSAPOLLFD};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::core::GUID;

use crate::answer::{Code, done, lower};
use crate::overlapped::{self, Request};
use crate::slot::{Inside, enter};
use crate::{extension, poll, select};

const FIONBIO: u32 = ws::FIONBIO as u32;
const FIONREAD: u32 = ws::FIONREAD as u32;

/// The buffers of one call.
pub struct Buffers {
    pub input: *const c_void,
    pub input_len: u32,
    pub output: *mut c_void,
    pub output_len: u32,
    pub returned: *mut u32,
}

impl Buffers {
    /// # Safety
    /// The program's buffers.
    unsafe fn read<T: Copy>(&self) -> Result<T, Code> {
        if self.input.is_null() || (self.input_len as usize) < size_of::<T>() {
            return Err(ws::WSAEFAULT);
        }
        // SAFETY: by the caller, and the length is checked.
        Ok(unsafe { self.input.cast::<T>().read_unaligned() })
    }

    /// # Safety
    /// The program's buffers.
    unsafe fn write<T>(&self, value: T) -> Result<(), Code> {
        if self.output.is_null() || (self.output_len as usize) < size_of::<T>() {
            return Err(ws::WSAEFAULT);
        }
        // SAFETY: by the caller, and the length is checked.
        unsafe {
            self.output.cast::<T>().write_unaligned(value);
            if !self.returned.is_null() {
                *self.returned = size_of::<T>() as u32;
            }
        }
        Ok(())
    }
}

pub unsafe extern "system" fn ioctl(
    s: SOCKET,
    request: u32,
    input: *const c_void,
    input_len: u32,
    output: *mut c_void,
    output_len: u32,
    returned: *mut u32,
    ov: *mut OVERLAPPED,
    routine: ws::LPWSAOVERLAPPED_COMPLETION_ROUTINE,
    thread: *const ws::WSATHREADID,
    errno: *mut i32,
) -> i32 {
    let bufs = Buffers {
        input,
        input_len,
        output,
        output_len,
        returned,
    };
    let call = || {
        let inside = enter(s)?;
        if returned.is_null() && (ov.is_null() || request == FIONREAD) {
            return Err(ws::WSAEFAULT);
        }
        // SAFETY: the caller's arguments.
        unsafe {
            if request == SIO_EXT_SENDMSG {
                // The message's own OVERLAPPED is what counts.
                return extension::ext_send_msg(inside, s, bufs.read()?, thread);
            }
            if let Some(b) = inside.passes(ov) {
                lower(|code| {
                    let (i, o) = ((input, input_len), (output, output_len));
                    (b.lower.ioctl)(
                        b.base, request, i.0, i.1, o.0, o.1, returned, ov, routine, thread, code,
                    )
                })?;
                if request == ws::SIO_GET_EXTENSION_FUNCTION_POINTER {
                    return ours(&inside, s, request, &bufs).unwrap_or(Ok(()));
                }
                return Ok(());
            }
            if let Some(result) = ours(&inside, s, request, &bufs) {
                // Done at once, but an overlapped call wants its completion all the same.
                return match Request::new(&inside, s, ov, routine, thread) {
                    Some(r) if result.is_ok() => overlapped::complete_now(inside, r),
                    _ => result,
                };
            }
            if let Some(r) = Request::new(&inside, s, ov, routine, thread) {
                return overlapped::ioctl(inside, r, request, &bufs);
            }
            below(&inside, request, &bufs)
        }
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// # Safety
/// As for WSAIoctl, not overlapped.
unsafe fn below(inside: &Inside, request: u32, bufs: &Buffers) -> Result<(), Code> {
    let b = inside.body();
    // SAFETY: the caller's arguments, unchanged.
    lower(|code| unsafe {
        (b.lower.ioctl)(
            b.base,
            request,
            bufs.input,
            bufs.input_len,
            bufs.output,
            bufs.output_len,
            bufs.returned,
            std::ptr::null_mut(),
            None,
            std::ptr::null(),
            code,
        )
    })
}

/// What is answered here; `None`: the lower provider's.
///
/// # Safety
/// As for WSAIoctl.
unsafe fn ours(
    inside: &Inside,
    s: SOCKET,
    request: u32,
    bufs: &Buffers,
) -> Option<Result<(), Code>> {
    // SAFETY: the caller's buffers, in all that follows.
    unsafe {
        match request {
            FIONBIO => Some(below(inside, request, bufs).map(|()| {
                if let Ok(on) = bufs.read::<u32>() {
                    inside.body().set_nonblocking(on != 0);
                }
            })),
            FIONREAD => {
                let conn = inside.conn().filter(|c| c.is_engaged())?;
                let n = conn.readable_bytes(&inside.socket());
                Some(bufs.write(u32::try_from(n).unwrap_or(u32::MAX)))
            }
            ws::SIO_GET_EXTENSION_FUNCTION_POINTER => {
                let which = bufs.read::<GUID>().ok()?;
                let function = extension::pointer(inside, &which)?;
                Some(bufs.write(function))
            }
            SIO_BASE_HANDLE => {
                // Whoever asks waits for this socket past us (AFD polls), where only TCP's bytes can be seen.
                inside.hand_back(Reason::Unsupported);
                None
            }
            SIO_BSP_HANDLE | SIO_BSP_HANDLE_SELECT | SIO_BSP_HANDLE_POLL => Some(bufs.write(s)),
            SIO_EXT_POLL => Some(ext_poll(bufs)),
            SIO_EXT_SELECT => Some(ext_select(bufs)),
            _ => None,
        }
    }
}

/// # Safety
/// As for SIO_EXT_POLL: the structure with its array behind it, in and out (maybe the same place).
unsafe fn ext_poll(bufs: &Buffers) -> Result<(), Code> {
    const HEAD: usize = offset_of!(WSAPOLLDATA, fdArray);
    let mut data = bufs.input.cast::<[u32; 3]>();
    let (len, room) = (bufs.input_len as usize, bufs.output_len as usize);
    if data.is_null() || bufs.output.is_null() || len < HEAD || room < HEAD {
        return Err(ws::WSAEFAULT);
    }
    // SAFETY: by the caller, and the lengths are checked.
    unsafe {
        let [_, count, timeout] = data.read_unaligned();
        let whole = HEAD + count as usize * size_of::<WSAPOLLFD>();
        if len < whole || room < whole {
            return Err(ws::WSAEFAULT);
        }
        std::ptr::copy(bufs.input.cast::<u8>(), bufs.output.cast::<u8>(), whole);
        data = bufs.output.cast_const().cast();
        let fds = bufs.output.cast::<u8>().add(HEAD).cast::<WSAPOLLFD>();
        if !fds.is_aligned() {
            return Err(ws::WSAEFAULT);
        }
        let fds = std::slice::from_raw_parts_mut(fds, count as usize);
        let result = poll::poll(fds, timeout as i32)?;
        data.cast_mut().cast::<i32>().write_unaligned(result);
        if !bufs.returned.is_null() {
            *bufs.returned = whole as u32;
        }
    }
    Ok(())
}

/// # Safety
/// As for SIO_EXT_SELECT: the structure and its sets.
unsafe fn ext_select(bufs: &Buffers) -> Result<(), Code> {
    // SAFETY: by the caller.
    unsafe {
        let mut data = bufs.read::<WSASELECTDATA>()?;
        data.result =
            select::select_sets(data.readfds, data.writefds, data.exceptfds, data.timeout)?;
        bufs.write(data)
    }
}
