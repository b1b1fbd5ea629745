//! Overlapped calls.
//!
//! 1. On a connection, carried or not, they stand in [`line`]: what can be done at once is done by the call, the rest by whoever
//!    has news ([`progress`]). Where there is no descriptor (on Windows), and on other sockets, the lower provider does the work, on
//!    OVERLAPPED structures of our own; such a connection is kept on TCP, and stands in line until it is there:
//!    ```text
//!    program's OVERLAPPED ── Op ── our OVERLAPPED ── base socket ── our completion port ── worker ── program
//!    ```
//! 2. Each operation is told of once ([`op`]), through WPUCompleteOverlappedRequest or WPUQueueApc. A call that succeeds at once
//!    tells in the calling thread before it returns 0, since the program may free its OVERLAPPED then.
//! 3. The program's OVERLAPPED is not touched after its status was written. The status goes there last.
//! 4. The program's socket is not closed to ws2_32 before its operations are told of ([`drain`]).

mod cancel;
mod line;
mod op;
mod port;
mod progress;
pub mod source;
mod way;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::*};
use std::sync::{OnceLock, PoisonError};

use gm::{Reason, Role};
use sockets::Ready;
use windows_sys::Win32::Foundation::{HANDLE, STATUS_PENDING};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKADDR, SOCKET, WSABUF};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Threading::{INFINITE, WaitForSingleObject};
use windows_sys::core::BOOL;

use crate::answer::{Code, lower, no_error, tell};
use crate::ioctl::Buffers;
use crate::provider::{self, upcalls};
use crate::slot::{Body, Inside, enter, locked};
use crate::wait;

pub use cancel::{SgmCancelIo, cancel_all, cancel_by, drain, forget, take_turn};
use line::Line;
pub use line::shut_later;
use op::{DONE, PENDING};
pub use op::{Kind, Places, start};
pub use progress::{at_exit, on_engaged};
use way::Way;

/// A socket's part of this: in its [`Body`].
#[derive(Default)]
pub struct State {
    /// The base socket's packets come to our port; `false`: it has another one already.
    attached: OnceLock<bool>,
    /// Operations that are not told of yet.
    pending: AtomicU32,
    /// Of these, those that receive and those that send.
    begun: [AtomicU32; 2],
    /// The peer was asked to go back to TCP.
    asked_back: AtomicBool,
    /// It has, or had, a peer.
    connected: AtomicBool,
    /// Its sending was shut down, on TCP.
    pub has_shut: AtomicBool,
    /// A receive was told of the peer's reset.
    reset_told: AtomicBool,
    /// Of [`progress::watched`].
    watched: AtomicU32,
    receiving: Line,
    sending: Line,
}

/// What the program wants to be told with: one of its overlapped calls.
pub struct Request {
    /// The program's handle: the socket may have several.
    s: SOCKET,
    ov: *mut OVERLAPPED,
    routine: ws::LPWSAOVERLAPPED_COMPLETION_ROUTINE,
    thread: ws::WSATHREADID,
    /// `thread` was opened by us.
    opened: bool,
}

impl Request {
    /// `None`: a plain call. Without an OVERLAPPED structure, or on a socket made without WSA_FLAG_OVERLAPPED, every call is.
    ///
    /// # Safety
    /// As for the SPI's overlapped calls.
    pub unsafe fn new(
        inside: &Inside,
        s: SOCKET,
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
            s,
            ov,
            routine,
            thread,
            opened: false,
        })
    }

    /// Of an extension function, which programs call without ws2_32: no thread comes with it. `None`: a plain call, or
    /// one that goes to the lower provider as it is ([`Inside::passes`]).
    pub fn direct(
        inside: &Inside,
        s: SOCKET,
        ov: *mut OVERLAPPED,
        routine: ws::LPWSAOVERLAPPED_COMPLETION_ROUTINE,
    ) -> Result<Option<Self>, Code> {
        if ov.is_null() || inside.passes(ov).is_some() {
            return Ok(None);
        }
        let mut thread = ws::WSATHREADID::default();
        let opened = routine.is_some();
        if opened {
            let open = upcalls().ok_or(ws::WSANOTINITIALISED)?.open_thread;
            // SAFETY: ws2_32's own function; out-pointers to locals.
            lower(|code| unsafe { open(&mut thread, code) })?;
        }
        Ok(Some(Self {
            s,
            ov,
            routine,
            thread,
            opened,
        }))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.opened
            && let Some(up) = upcalls()
        {
            let mut error = 0;
            // SAFETY: opened by us, and ws2_32 keeps a thread for as long as something is queued to it.
            unsafe { (up.close_thread)(&self.thread, &mut error) };
        }
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

/// Overlapped calls are made on it: TCP from now on. True: not yet, it is still engaged.
pub fn back_to_tcp(inside: &Inside) -> bool {
    let Some(conn) = inside.conn() else {
        return false;
    };
    if !inside.body().io.asked_back.swap(true, Relaxed)
        && let Some(ctx) = crate::ctx::get()
    {
        // Not `hand_back`, which leaves what is unread to the peer to send again: that one may have nothing more to say.
        conn.ask_for_tcp(&ctx.node, &inside.socket(), Reason::Overlapped);
    }
    conn.is_engaged() && conn.settle(&inside.socket())
}

/// Do its overlapped calls stand in line, and does it stay carried? A connection with a descriptor.
pub fn stands_in_line(inside: &Inside) -> bool {
    let b = inside.body();
    let Some(conn) = &b.conn else { return false };
    // One that is to be accepted into gets its descriptor with the connection.
    if !matches!(conn.end().role(), Role::Client | Role::Server) {
        return false;
    }
    let connected = &b.io.connected;
    let known = b
        .fd()
        .is_some_and(|fd| connected.load(Relaxed) || fd.is_connected());
    if known {
        connected.store(true, Relaxed);
        // A step of promotion, if one is due.
        inside.engaged();
    }
    known
}

/// Does nothing stand between a new send and the base socket?
fn send_is_plain(inside: &Inside) -> bool {
    inside
        .conn()
        .is_none_or(|conn| !conn.is_engaged() || conn.sends_on_tcp())
}

/// [`back_to_tcp`], and waits until everything sent so far is on TCP, for what only the base socket can send.
pub fn flush_to_tcp(inside: &Inside) {
    back_to_tcp(inside);
    let io = &inside.body().io;
    while !inside.body().is_closing() && (!send_is_plain(inside) || io.sending.is_taken()) {
        wait_a_while(inside, Ready::OUT);
        if let Some(conn) = inside.conn() {
            conn.settle(&inside.socket());
        }
    }
}

/// Until there is news on an engaged connection, or for so long that a cancellation is noticed.
fn wait_a_while(inside: &Inside, want: Ready) {
    const SLICE_US: u64 = 20_000;
    let mut member = [wait::member(inside.clone(), want)];
    let deadline = wait::after_us(Some(SLICE_US));
    let _ = wait::wait(&mut member, deadline, &mut crate::poll::ask_base);
}

/// TransmitFile with OVERLAPPED on a connection that [`stands_in_line`]. Gives the request back if the file is not ours to read.
///
/// # Safety
/// As for TransmitFile.
pub unsafe fn transmit_file(
    inside: &Inside,
    r: Request,
    (file, bytes): (HANDLE, u32),
    per_send: u32,
    buffers: *const ws::TRANSMIT_FILE_BUFFERS,
) -> Result<Result<(), Code>, Request> {
    // SAFETY: the program's structure: the offset in the file is an input.
    let at = unsafe { (*r.ov).Anonymous.Anonymous };
    let offset = u64::from(at.OffsetHigh) << 32 | u64::from(at.Offset);
    // SAFETY: by the caller.
    match unsafe { source::Source::open(file, Some(offset), bytes, per_send, buffers) } {
        Ok((source, head)) => {
            Ok(line::join(inside.clone(), r, Way::file(source, head)).map(|_| ()))
        }
        Err(_) => Err(r),
    }
}

/// # Safety
/// As for WSARecv.
pub unsafe fn recv(
    inside: Inside,
    r: Request,
    bufs: *const WSABUF,
    count: u32,
    got: *mut u32,
    flags: *mut u32,
) -> Result<(), Code> {
    let none = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the caller's arguments; a null address means WSPRecv.
    unsafe { recv_from(inside, r, bufs, count, got, flags, none) }
}

/// WSPRecvFrom, or WSPRecv if no address is wanted.
///
/// # Safety
/// As for WSARecv and WSARecvFrom.
pub unsafe fn recv_from(
    inside: Inside,
    r: Request,
    bufs: *const WSABUF,
    count: u32,
    got: *mut u32,
    flags: *mut u32,
    from: (*mut SOCKADDR, *mut i32),
) -> Result<(), Code> {
    // SAFETY: null or the program's.
    let asked = unsafe { flags.as_ref() }.copied().ok_or(ws::WSAEFAULT)?;
    let oob = asked & ws::MSG_OOB as u32 != 0;
    let in_line = || back_to_tcp(&inside) || inside.body().io.receiving.is_taken();
    if !oob && (stands_in_line(&inside) || in_line()) {
        // SAFETY: the program's buffers, which stay until the completion; its places, which it reads after a call that
        // succeeded at once.
        unsafe {
            let way = Way::receive(bufs, count, asked)?;
            let now = line::join(inside, r, way)?;
            put(got, now.bytes);
            put(flags, now.flags);
        }
        no_error();
        return Ok(());
    }
    let kind = Kind::receive(asked);
    let b = inside.clone();
    // SAFETY: the program's buffers and address, which stay until the completion; the rest is the operation's own.
    let now = start(inside, r, kind, asked, |p| unsafe {
        base_recv(b.body(), p, (bufs, count), from)
    })?;
    // SAFETY: the program's places, which it reads after a call that succeeded at once.
    unsafe {
        put(got, now.bytes);
        put(flags, now.flags);
    }
    Ok(())
}

/// # Safety
/// As for WSPRecvFrom, with the operation's own places.
unsafe fn base_recv(
    b: &Body,
    p: &Places,
    (bufs, count): (*const WSABUF, u32),
    from: (*mut SOCKADDR, *mut i32),
) -> Result<(), Code> {
    let thread = std::ptr::null();
    // SAFETY: by the caller.
    lower(|code| unsafe {
        if from.0.is_null() && from.1.is_null() {
            let code = code.cast_const();
            (b.lower.recv)(
                b.base, bufs, count, p.bytes, p.flags, p.ov, None, thread, code,
            )
        } else {
            (b.lower.recv_from)(
                b.base, bufs, count, p.bytes, p.flags, from.0, from.1, p.ov, None, thread, code,
            )
        }
    })
}

/// WSPSend, or WSPSendTo if there is an address.
///
/// # Safety
/// As for WSASend and WSASendTo.
pub unsafe fn send(
    inside: Inside,
    r: Request,
    bufs: *const WSABUF,
    count: u32,
    sent: *mut u32,
    flags: u32,
    to: (*const SOCKADDR, i32),
) -> Result<(), Code> {
    let in_line = || {
        back_to_tcp(&inside);
        !send_is_plain(&inside) || inside.body().io.sending.is_taken()
    };
    let oob = flags & ws::MSG_OOB as u32 != 0;
    if !oob && stands_in_line(&inside) || in_line() {
        // SAFETY: the program's buffers, which stay until the completion, and its place.
        unsafe {
            let way = Way::send(bufs, count, flags)?;
            put(sent, line::join(inside, r, way)?.bytes);
        }
        no_error();
        return Ok(());
    }
    let b = inside.clone();
    // SAFETY: the program's buffers stay until the completion; the rest is the operation's own.
    let now = start(inside, r, Kind::Send, 0, |p| unsafe {
        base_send(b.body(), p, (bufs, count), flags, to)
    })?;
    // SAFETY: the program's place.
    unsafe { put(sent, now.bytes) };
    Ok(())
}

/// # Safety
/// As for WSPSendTo, with the operation's own places.
unsafe fn base_send(
    b: &Body,
    p: &Places,
    (bufs, count): (*const WSABUF, u32),
    flags: u32,
    to: (*const SOCKADDR, i32),
) -> Result<(), Code> {
    let thread = std::ptr::null();
    // SAFETY: by the caller.
    lower(|code| unsafe {
        if to.0.is_null() {
            (b.lower.send)(
                b.base, bufs, count, p.bytes, flags, p.ov, None, thread, code,
            )
        } else {
            (b.lower.send_to)(
                b.base, bufs, count, p.bytes, flags, to.0, to.1, p.ov, None, thread, code,
            )
        }
    })
}

/// An ioctl that the lower provider may finish later.
///
/// # Safety
/// As for WSAIoctl.
pub unsafe fn ioctl(inside: Inside, r: Request, request: u32, bufs: &Buffers) -> Result<(), Code> {
    let i = inside.clone();
    let b = i.body();
    let now = start(inside, r, Kind::Ioctl, 0, |p| {
        // SAFETY: the program's buffers, which stay until the completion; the rest is the operation's own.
        lower(|code| unsafe {
            (b.lower.ioctl)(
                b.base,
                request,
                bufs.input,
                bufs.input_len,
                bufs.output,
                bufs.output_len,
                p.bytes,
                p.ov,
                None,
                std::ptr::null(),
                code,
            )
        })
    })?;
    // SAFETY: the program's place.
    unsafe { put(bufs.returned, now.bytes) };
    Ok(())
}

/// The call was done at once; its completion is still owed. As on Wine that says nothing of bytes.
pub fn complete_now(inside: Inside, r: Request) -> Result<(), Code> {
    let says_done = r.routine.is_some() || provider::is_known();
    op::tell_at_once(&inside, r, 0);
    if says_done {
        Ok(())
    } else {
        Err(ws::WSA_IO_PENDING)
    }
}

pub unsafe extern "system" fn get_overlapped_result(
    s: SOCKET,
    ov: *const OVERLAPPED,
    bytes: *mut u32,
    wait: BOOL,
    flags: *mut u32,
    errno: *mut i32,
) -> BOOL {
    let call = || {
        let inside = enter(s)?;
        if ov.is_null() {
            return Err(ws::WSA_INVALID_PARAMETER);
        }
        if let Some(b) = inside.passes(ov) {
            // SAFETY: the caller's arguments, unchanged; the thread's own word.
            return lower(|code| unsafe {
                i32::from(
                    (b.lower.get_overlapped_result)(b.base, ov, bytes, wait, flags, code) == 0,
                )
            })
            .map(|()| unsafe { ws::WSAGetLastError() });
        }
        // SAFETY: the program's structure, which it keeps for the whole call.
        let status = unsafe { result_of(ov, wait != 0)? };
        let told = op::told(ov as usize);
        // SAFETY: as above. Of operations that failed as well: a datagram that was cut has bytes.
        unsafe {
            put(bytes, (*ov).InternalHigh as u32);
            put(flags, told.map_or(0, |(_, flags)| flags));
        }
        let (code, last) = match told {
            Some((code, _)) if !provider::is_known() => (code, 0),
            _ if status == 0 => (0, 0),
            // What no operation of ours has written is the lower provider's to read.
            _ => status_code(inside.body(), ov),
        };
        if code == 0 { Ok(last) } else { Err(code) }
    };
    match call() {
        Ok(last) => {
            // As Wine, which converts every status, that of a success as well.
            // SAFETY: always valid to call.
            unsafe { ws::WSASetLastError(last) };
            1
        }
        Err(code) => {
            // SAFETY: the caller's place for the code.
            unsafe { tell(code, errno) };
            0
        }
    }
}

/// What the lower provider takes a completed OVERLAPPED's status for, and what it leaves as the last error if that is none.
fn status_code(b: &Body, ov: *const OVERLAPPED) -> (Code, Code) {
    let (mut bytes, mut flags, mut code) = (0, 0, 0);
    // SAFETY: the program's structure, which is only read; out-pointers to locals.
    let ok = unsafe {
        (b.lower.get_overlapped_result)(b.base, ov, &mut bytes, 0, &mut flags, &mut code)
    };
    // SAFETY: always valid to call.
    let last = unsafe { ws::WSAGetLastError() };
    if ok != 0 { (0, last) } else { (code, 0) }
}

/// The operation's NTSTATUS, when it is there.
///
/// # Safety
/// The program's structure.
unsafe fn result_of(ov: *const OVERLAPPED, wait: bool) -> Result<i32, Code> {
    // SAFETY: by the caller; other threads of ours and ws2_32 write this word.
    let internal = unsafe { AtomicUsize::from_ptr(&raw mut (*ov.cast_mut()).Internal) };
    let pending = || internal.load(Acquire) as i32 == STATUS_PENDING;
    if pending() {
        if !wait {
            return Err(ws::WSA_IO_INCOMPLETE);
        }
        // SAFETY: by the caller.
        let event = unsafe { (*ov).hEvent } as usize & !1;
        if event != 0 {
            // SAFETY: the program's event; anything else is refused.
            unsafe { WaitForSingleObject(event as HANDLE, INFINITE) };
        }
        let mut operations = locked(&PENDING);
        while pending() {
            if !operations.contains_key(&(ov as usize)) {
                // Not one of ours: nobody will ever write here.
                return Err(ws::WSA_IO_INCOMPLETE);
            }
            operations = DONE
                .wait(operations)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
    Ok(internal.load(Acquire) as i32)
}
