//! Answers: WSA codes for the engine's faults, and the way an SPI function gives its result.

use sockets::Fault;
use windows_sys::Win32::Networking::WinSock as ws;

/// A WSA error code.
pub type Code = i32;

/// Gives an SPI function's result: 0, or SOCKET_ERROR with the code in `*errno`.
///
/// # Safety
/// `errno` is null or writable.
pub unsafe fn done(result: Result<(), Code>, errno: *mut i32) -> i32 {
    match result {
        Ok(()) => 0,
        Err(code) => {
            // SAFETY: by the caller.
            unsafe { tell(code, errno) };
            ws::SOCKET_ERROR
        }
    }
}

/// # Safety
/// `errno` is null or writable.
pub unsafe fn tell(code: Code, errno: *mut i32) {
    if !errno.is_null() {
        // SAFETY: by the caller.
        unsafe { *errno = code };
    }
}

/// A transfer that succeeds leaves no error behind, as Wine's own does.
pub fn no_error() {
    // SAFETY: always valid to call.
    unsafe { ws::WSASetLastError(0) };
}

/// Makes a call of the lower provider and gives its code as a result. `call` gets the place for the code and answers 0
/// for success.
pub fn lower(call: impl FnOnce(*mut i32) -> i32) -> Result<(), Code> {
    let mut code = 0;
    if call(&mut code) == 0 {
        Ok(())
    } else {
        Err(code)
    }
}

/// What a receive says of a connection that the peer has reset: WSAECONNRESET. Under Wine only a call that waited when the
/// reset came says so; afterwards its server has taken the error off the socket, and programs see an end-of-file.
pub fn reset_answer(waited: bool) -> Result<usize, Code> {
    if gm::os::raw::is_wine() && !waited {
        Ok(0)
    } else {
        Err(ws::WSAECONNRESET)
    }
}

/// What a call gets that waits on a socket when another thread closes it.
pub fn closed_code() -> Code {
    if gm::os::raw::is_wine() {
        ws::WSAEINVAL
    } else {
        ws::WSAEINTR
    }
}

/// What Winsock says of a fault. `waits`: the call was a blocking one, so "nothing yet" was a time-out.
pub fn code_of(fault: Fault, waits: bool) -> Code {
    match fault {
        Fault::WouldBlock if waits => ws::WSAETIMEDOUT,
        Fault::WouldBlock => ws::WSAEWOULDBLOCK,
        Fault::Interrupted => ws::WSAEINTR,
        Fault::Reset => ws::WSAECONNRESET,
        // The peer is gone; what this end shut down itself is told before the engine is asked.
        Fault::Pipe => ws::WSAECONNRESET,
        Fault::NotConnected => ws::WSAENOTCONN,
        // Made on the base socket before it comes to this.
        Fault::UseKernel => ws::WSAEWOULDBLOCK,
        Fault::Other(code) => code,
    }
}
