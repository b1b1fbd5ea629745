//! Carriers of closed sockets, kept for the next ones: making and closing one costs five calls into wineserver, a fifth of a
//! short connection.
//!
//! A kept carrier stays in the table with its owner and the context [`CLOSED`]: so calls on it still go to the provider, which
//! asks for the context and is told what it would be told of a number that is no socket.

use std::sync::Mutex;

use windows_sys::Win32::Networking::WinSock::SOCKET;

use crate::builtin;
use crate::handles::Registration;
use crate::lock::lock;
use crate::provider::{HANDLES, Provider};

/// The context of a carrier without a socket; no provider's, since those are addresses.
pub const CLOSED: usize = usize::MAX;

const MOST: usize = 64;

static KEPT: Mutex<Vec<SOCKET>> = Mutex::new(Vec::new());

/// Is this a kept carrier?
pub fn has(s: SOCKET) -> bool {
    HANDLES.get(s).is_some_and(|slot| slot.context() == CLOSED)
}

/// Keeps a carrier whose socket is being closed, if it is as good as new: a completion port can't be taken off a handle.
/// `false`: the caller closes it.
pub fn keep(s: SOCKET, owner: &'static Provider) -> bool {
    let good = HANDLES.get(s).is_some_and(|slot| slot.extra().is_unused());
    let mut kept = lock(&KEPT);
    if !good || kept.len() >= MOST {
        return false;
    }
    let closed = Registration {
        owner,
        context: CLOSED,
        non_ifs: true,
    };
    if HANDLES.set(s, closed) {
        kept.push(s);
        return true;
    }
    false
}

/// A carrier that was kept. It is still out of use: the caller registers it anew.
pub fn take() -> Option<SOCKET> {
    let mut kept = lock(&KEPT);
    while let Some(s) = kept.pop() {
        // A program may have done things to a handle that it had closed.
        let slot = HANDLES.get(s).filter(|slot| slot.context() == CLOSED);
        if let Some(slot) = slot
            && slot.extra().is_unused()
        {
            slot.extra().reset();
            return Some(s);
        }
        discard(s);
    }
    None
}

/// The last WSACleanup.
pub fn empty() {
    lock(&KEPT).drain(..).for_each(discard);
}

fn discard(s: SOCKET) {
    HANDLES.clear(s);
    // SAFETY: our own carrier, which nobody finds any more.
    unsafe { builtin::closesocket(s) };
}
