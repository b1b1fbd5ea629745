//! How operations end before their time: cancelled, or with their socket; and what waits for that.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET};
use windows_sys::Win32::System::IO::{CancelIoEx, OVERLAPPED};

use super::op::{self, DONE, Op, PENDING};
use super::progress;
use crate::answer::Code;
use crate::slot::{Inside, enter, locked};

/// For the Winsock DLL under Wine, which passes the program's CancelIoEx on: 1 if something was cancelled.
///
/// # Safety
/// `ov` is only compared.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn SgmCancelIo(s: SOCKET, ov: *const OVERLAPPED) -> i32 {
    let Ok(inside) = enter(s) else { return 0 };
    let base = inside.body().base as HANDLE;
    // If nothing is pending, "all of it" is the lower provider's to answer: Windows says no, Wine yes.
    // SAFETY: our base socket.
    let found = Op::cancel_of(&inside, ov) || ov.is_null() && unsafe { CancelIoEx(base, ov) } != 0;
    i32::from(found)
}

/// Before the base socket's close: that cancels as well, but not what another process's handle keeps alive, and Wine has a
/// status of its own for it (STATUS_HANDLES_CLOSED), where the documentation and we say WSA_OPERATION_ABORTED.
pub fn cancel_all(inside: &Inside) {
    let io = &inside.body().io;
    if io.pending.load(Acquire) > 0 {
        Op::cancel_of(inside, std::ptr::null());
        // Or one of these might call the lower provider with a handle that is another socket's by then.
        await_operations(|_| !io.receiving.is_busy() && !io.sending.is_busy());
    }
}

/// Cancels what was begun by this handle of the socket, and waits until it is told of.
pub fn cancel_by(inside: &Inside, s: SOCKET) {
    if inside.body().io.pending.load(Acquire) > 0 {
        Op::cancel_by(inside, s);
        await_operations(|operations| !operations.values().any(|op| op.is_by(inside, s)));
    }
}

/// The socket is being closed: no more news of it.
pub fn forget(inside: &Inside) {
    progress::forget(inside);
}

/// A plain call comes after the operations that wait. One that does not wait finds nothing to do then.
pub fn take_turn(inside: &Inside, sends: bool) -> Result<(), Code> {
    let b = inside.body();
    let line = if sends {
        &b.io.sending
    } else {
        &b.io.receiving
    };
    let taken = || b.io.pending.load(Acquire) > 0 && line.is_taken();
    if !taken() {
        return Ok(());
    }
    if b.is_nonblocking() {
        return Err(ws::WSAEWOULDBLOCK);
    }
    let mut operations = locked(&PENDING);
    while !b.is_closing() && taken() {
        operations = DONE
            .wait(operations)
            .unwrap_or_else(PoisonError::into_inner);
    }
    Ok(())
}

/// Waits until all operations are told of. The base socket was closed, so they end now.
pub fn drain(inside: &Inside) {
    let io = &inside.body().io;
    if io.pending.load(Acquire) > 0 {
        await_operations(|_| io.pending.load(Acquire) == 0);
    }
}

/// Waits for operations to end; a lower provider that does not end them must not keep the program for ever.
fn await_operations(done: impl Fn(&op::Operations) -> bool) {
    const LIMIT: Duration = Duration::from_secs(1);
    let end = Instant::now() + LIMIT;
    let mut operations = locked(&PENDING);
    while !done(&operations) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        operations = DONE
            .wait_timeout(operations, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}
