//! The Winsock API: a socket of a layered provider goes to its table, any other to the builtin.
//!
//! Errors come back from providers through lpErrno and go into the thread's last error, where the API has them. That is the
//! last thing that a call does: Rust's thread-local variables, for one, are read with TlsGetValue, which clears it.

pub mod blocking;
mod poll;
mod protocols;
mod select;
mod sockets;
mod transfer;

use std::ffi::c_void;

use windows_sys::Win32::Foundation::{FALSE, HANDLE, HWND, SetLastError};
use windows_sys::Win32::Networking::WinSock::*;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::core::BOOL;

use crate::builtin::{self, Routine};
use crate::provider::{HANDLES, Provider};
use crate::{complete, overlapped_rows, same_rows, special_rows, thread};

/// The provider of a socket, if it is a layered one's.
#[inline]
fn layered(s: SOCKET) -> Option<&'static Provider> {
    HANDLES.owner(s)
}

/// Runs an SPI call; what it left in lpErrno becomes the thread's last error if it returned `failed`.
#[inline]
fn spi_call<T: PartialEq>(failed: T, call: impl FnOnce(*mut i32) -> T) -> T {
    let mut error = 0;
    let result = call(&mut error);
    if result == failed {
        fail(error);
    }
    result
}

fn fail(error: i32) {
    // SAFETY: sets the thread's own word.
    unsafe { SetLastError(error as u32) };
}

/// What a call returns when it fails, by the return type that its row names.
macro_rules! failed {
    (i32) => {
        SOCKET_ERROR
    };
    (SOCKET) => {
        INVALID_SOCKET
    };
    (BOOL) => {
        FALSE
    };
}

/// Calls an entry of a provider's table. Tables have no holes (`provider::start`), but a hole must not be a crash.
macro_rules! entry {
    ($provider:expr, $entry:ident ($($arg:expr),* $(,)?) -> $ret:ident) => {
        match $provider.table().$entry {
            // SAFETY: the SPI's entry, with the program's own arguments.
            Some(f) => unsafe { f($($arg),*) },
            None => failed!($ret),
        }
    };
}

/// [`entry`] as an API call: its error goes to the thread.
macro_rules! ask {
    ($provider:expr, $entry:ident ($($arg:expr),* $(,)?) -> $ret:ident) => {
        spi_call(failed!($ret), |errno| entry!($provider, $entry($($arg,)* errno) -> $ret))
    };
}
pub(crate) use {ask, entry, failed};

macro_rules! pass_on {
    ($($name:ident / $entry:ident ($($arg:ident: $ty:ty),*) -> $ret:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "system" fn $name(s: SOCKET $(, $arg: $ty)*) -> $ret {
            match layered(s) {
                // SAFETY: the program's own arguments.
                None => unsafe { builtin::$name(s $(, $arg)*) },
                Some(p) => ask!(p, $entry(s $(, $arg)*) -> $ret),
            }
        }
    )* };
}
same_rows!(pass_on);
special_rows!(pass_on);

macro_rules! pass_on_overlapped {
    ($($name:ident / $entry:ident ($($arg:ident: $ty:ty),*) -> $ret:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "system" fn $name(s: SOCKET, $($arg: $ty,)* ov: *mut OVERLAPPED, routine: Routine) -> $ret {
            match layered(s) {
                // SAFETY: the program's own arguments.
                None => unsafe { builtin::$name(s, $($arg,)* ov, routine) },
                Some(_) if refuses_routine(s, ov, routine) && stringify!($name) != "WSAIoctl" => {
                    fail(WSAEINVAL);
                    failed!($ret)
                }
                Some(p) => {
                    let id = thread_id(routine);
                    spi_call(failed!($ret), |errno| {
                        complete::within_call(s, ov, routine.is_some(), || {
                            entry!(p, $entry(s, $($arg,)* ov, routine, pointer(&id), errno) -> $ret)
                        })
                    })
                }
            }
        }
    )* };
}
overlapped_rows!(pass_on_overlapped);

/// A transfer is told of by a routine or on the handle's port, not both.
fn refuses_routine(s: SOCKET, ov: *const OVERLAPPED, routine: Routine) -> bool {
    routine.is_some() && !ov.is_null() && complete::has_port(s)
}

/// The thread that a completion routine must run in; needed only if there is one.
fn thread_id(routine: Routine) -> Option<WSATHREADID> {
    routine.and_then(|_| thread::current())
}

fn pointer<T>(value: &Option<T>) -> *const T {
    value.as_ref().map_or(std::ptr::null(), std::ptr::from_ref)
}
