//! Overlapped calls. A socket on which they are made is kept on TCP: the lower provider does the work, on OVERLAPPED
//! structures of our own, and the program's are finished through WPUCompleteOverlappedRequest or WPUQueueApc.

use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKADDR, SOCKET, WSABUF};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::core::BOOL;

use crate::answer::{Code, tell};
use crate::slot::Inside;

/// What the program wants to be told with: one of its overlapped calls.
pub struct Request {
    pub ov: *mut OVERLAPPED,
    pub routine: ws::LPWSAOVERLAPPED_COMPLETION_ROUTINE,
    pub thread: ws::WSATHREADID,
}

impl Request {
    /// `None`: a plain call. Without an OVERLAPPED structure, or on a socket made without WSA_FLAG_OVERLAPPED, every call is.
    ///
    /// # Safety
    /// As for the SPI's overlapped calls.
    pub unsafe fn new(
        inside: &Inside,
        ov: *mut OVERLAPPED,
        routine: ws::LPWSAOVERLAPPED_COMPLETION_ROUTINE,
        thread: *const ws::WSATHREADID,
    ) -> Option<Self> {
        if ov.is_null() || !inside.body().overlapped {
            return None;
        }
        // SAFETY: null or the caller's; copied, since it need not outlive the call.
        let thread = unsafe { thread.as_ref() }.copied().unwrap_or_default();
        Some(Self {
            ov,
            routine,
            thread,
        })
    }
}

/// # Safety
/// As for WSARecv.
pub unsafe fn recv(
    _inside: Inside,
    _r: Request,
    _bufs: *const WSABUF,
    _count: u32,
    _got: *mut u32,
    _flags: *mut u32,
) -> Result<(), Code> {
    Err(ws::WSAEOPNOTSUPP)
}

/// # Safety
/// As for WSARecvFrom.
pub unsafe fn recv_from(
    _inside: Inside,
    _r: Request,
    _bufs: *const WSABUF,
    _count: u32,
    _got: *mut u32,
    _flags: *mut u32,
    _from: (*mut SOCKADDR, *mut i32),
) -> Result<(), Code> {
    Err(ws::WSAEOPNOTSUPP)
}

/// WSPSend, or WSPSendTo if there is an address.
///
/// # Safety
/// As for WSASend and WSASendTo.
pub unsafe fn send(
    _inside: Inside,
    _r: Request,
    _bufs: *const WSABUF,
    _count: u32,
    _sent: *mut u32,
    _flags: u32,
    _to: (*const SOCKADDR, i32),
) -> Result<(), Code> {
    Err(ws::WSAEOPNOTSUPP)
}

pub unsafe extern "system" fn get_overlapped_result(
    _s: SOCKET,
    _ov: *const OVERLAPPED,
    _bytes: *mut u32,
    _wait: BOOL,
    _flags: *mut u32,
    errno: *mut i32,
) -> BOOL {
    // SAFETY: the caller's place for the code.
    unsafe { tell(ws::WSAEOPNOTSUPP, errno) };
    0
}

/// For the Winsock DLL under Wine, which passes the program's CancelIoEx on: 1 if something was cancelled.
///
/// # Safety
/// `ov` is only compared.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn SgmCancelIo(_s: SOCKET, _ov: *const OVERLAPPED) -> i32 {
    0
}

/// An ioctl that the lower provider may finish later.
///
/// # Safety
/// As for WSAIoctl.
pub unsafe fn ioctl(
    _inside: Inside,
    _r: Request,
    _request: u32,
    _bufs: &crate::ioctl::Buffers,
) -> Result<(), Code> {
    Err(ws::WSAEOPNOTSUPP)
}

/// The call was done at once; its completion is still owed. `bufs.returned` says how many bytes.
///
/// # Safety
/// As for WSAIoctl.
pub unsafe fn complete_now(
    _inside: Inside,
    _r: Request,
    _bufs: &crate::ioctl::Buffers,
) -> Result<(), Code> {
    Err(ws::WSAEOPNOTSUPP)
}
