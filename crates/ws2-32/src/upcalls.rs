//! The fifteen functions that a provider gets from us, and WPUCompleteOverlappedRequest, which it imports.
//!
//! A non-IFS handle is a *carrier*: an unconnected socket of the builtin's, made for its number. So it is a small number,
//! can be closed, duplicated and associated with a completion port as any socket, and no other handle has it meanwhile.

use std::ptr;

use windows_sys::Win32::Foundation::{
    CloseHandle, FALSE, GetLastError, HANDLE, HWND, LPARAM, TRUE, WPARAM,
};
use windows_sys::Win32::Networking::WinSock::*;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::LibraryLoader::{GetProcAddress, LoadLibraryW};
use windows_sys::Win32::System::Threading::{CreateEventW, ResetEvent, SetEvent};
use windows_sys::core::{BOOL, GUID};

use crate::dispatch::blocking;
use crate::handles::Registration;
use crate::provider::{self, HANDLES};
use crate::{builtin, catalog, complete, fdset, gate, pool, thread};

/// The table, as WSPStartup wants it: by value.
pub fn table() -> WSPUPCALLTABLE {
    WSPUPCALLTABLE {
        lpWPUCloseEvent: Some(close_event),
        lpWPUCloseSocketHandle: Some(close_socket_handle),
        lpWPUCreateEvent: Some(create_event),
        lpWPUCreateSocketHandle: Some(create_socket_handle),
        lpWPUFDIsSet: Some(fd_is_set),
        lpWPUGetProviderPath: Some(get_provider_path),
        lpWPUModifyIFSHandle: Some(modify_ifs_handle),
        lpWPUPostMessage: Some(post_message),
        lpWPUQueryBlockingCallback: Some(query_blocking_callback),
        lpWPUQuerySocketHandleContext: Some(query_socket_handle_context),
        lpWPUQueueApc: Some(queue_apc),
        lpWPUResetEvent: Some(reset_event),
        lpWPUSetEvent: Some(set_event),
        lpWPUOpenCurrentThread: Some(open_current_thread),
        lpWPUCloseThread: Some(close_thread),
    }
}

/// Stores an error where the provider wants it, which may be nowhere.
fn put(errno: *mut i32, error: i32) {
    // SAFETY: lpErrno, null or the provider's own variable.
    if let Some(errno) = unsafe { errno.as_mut() } {
        *errno = error;
    }
}

/// `Ok` is the value, `Err` is stored and `failed` returned.
fn answer<T>(errno: *mut i32, result: Result<T, i32>, failed: T) -> T {
    result.unwrap_or_else(|error| {
        put(errno, error);
        failed
    })
}

fn last_error() -> i32 {
    // SAFETY: reads the thread's own word.
    unsafe { GetLastError() as i32 }
}

fn checked(done: BOOL) -> Result<BOOL, i32> {
    if done == FALSE {
        Err(last_error())
    } else {
        Ok(TRUE)
    }
}

unsafe extern "system" fn create_event(errno: *mut i32) -> WSAEVENT {
    // SAFETY: a nameless manual-reset event, as WSACreateEvent makes.
    let event = unsafe { CreateEventW(ptr::null(), TRUE, FALSE, ptr::null()) };
    if event.is_null() {
        put(errno, last_error());
    }
    event as WSAEVENT
}

unsafe extern "system" fn close_event(event: WSAEVENT, errno: *mut i32) -> BOOL {
    // SAFETY: the provider's own event; anything else is refused.
    answer(
        errno,
        checked(unsafe { CloseHandle(event as HANDLE) }),
        FALSE,
    )
}

unsafe extern "system" fn reset_event(event: WSAEVENT, errno: *mut i32) -> BOOL {
    // SAFETY: as above.
    answer(
        errno,
        checked(unsafe { ResetEvent(event as HANDLE) }),
        FALSE,
    )
}

unsafe extern "system" fn set_event(event: WSAEVENT, errno: *mut i32) -> BOOL {
    // SAFETY: as above.
    answer(errno, checked(unsafe { SetEvent(event as HANDLE) }), FALSE)
}

unsafe extern "system" fn create_socket_handle(id: u32, context: usize, errno: *mut i32) -> SOCKET {
    answer(errno, carrier(id, context), INVALID_SOCKET)
}

fn carrier(id: u32, context: usize) -> Result<SOCKET, i32> {
    if !gate::install() {
        return Err(WSAEPROVIDERFAILEDINIT);
    }
    let owner = provider::of_entry(id).ok_or(WSAEINVAL)?;
    let registration = Registration {
        owner,
        context,
        non_ifs: true,
    };
    if let Some(s) = pool::take() {
        HANDLES.set(s, registration);
        share_port(s);
        return Ok(s);
    }
    let entry = catalog::current();
    let family = entry
        .entries
        .iter()
        .find(|e| e.info.dwCatalogEntryId == id)
        .map(|e| e.info.iAddressFamily);
    // The hidden entry of a provider has no family of its own.
    let family = match family {
        Some(f) if f == AF_INET6 as i32 => f,
        _ => AF_INET as i32,
    };
    // SAFETY: plain values.
    let s = unsafe {
        builtin::WSASocketW(
            family,
            SOCK_STREAM,
            IPPROTO_TCP,
            ptr::null(),
            0,
            WSA_FLAG_OVERLAPPED,
        )
    };
    if s == INVALID_SOCKET {
        return Err(last_error());
    }
    if !HANDLES.set(s, registration) {
        // SAFETY: made above.
        unsafe { builtin::closesocket(s) };
        return Err(WSAENOBUFS);
    }
    share_port(s);
    Ok(s)
}

/// A further handle of a socket.
fn share_port(s: SOCKET) {
    if let Some(slot) = HANDLES.get(s) {
        provider::each_twin(s, |twin| slot.extra().inherit(twin));
    }
}

/// Takes a carrier out of the table, with what belongs to it. `false`: it wasn't there.
pub fn forget_carrier(s: SOCKET) -> bool {
    let carrier = HANDLES.get(s).map(|slot| slot.extra());
    let was = HANDLES.clear(s);
    if let Some(carrier) = carrier {
        carrier.reset();
    }
    was
}

unsafe extern "system" fn close_socket_handle(s: SOCKET, errno: *mut i32) -> i32 {
    let slot = HANDLES.get(s).filter(|slot| slot.is_non_ifs());
    let ours = slot.is_some_and(|slot| slot.context() != pool::CLOSED);
    if let Some(owner) = slot.and_then(|slot| slot.owner())
        && ours
        && pool::keep(s, owner)
    {
        return 0;
    }
    // Cleared before the number can come back.
    if !ours || !forget_carrier(s) {
        put(errno, WSAENOTSOCK);
        return SOCKET_ERROR;
    }
    // SAFETY: a carrier that nobody finds any more.
    match unsafe { builtin::closesocket(s) } {
        0 => 0,
        failed => {
            put(errno, last_error());
            failed
        }
    }
}

unsafe extern "system" fn query_socket_handle_context(
    s: SOCKET,
    context: *mut usize,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the provider's variable.
    let context = unsafe { context.as_mut() };
    let slot = HANDLES.get(s).filter(|slot| slot.is_non_ifs());
    let result = match (slot.filter(|slot| slot.context() != pool::CLOSED), context) {
        (Some(slot), Some(context)) => {
            *context = slot.context();
            Ok(0)
        }
        (None, _) => Err(WSAENOTSOCK),
        (_, None) => Err(WSAEFAULT),
    };
    answer(errno, result, SOCKET_ERROR)
}

unsafe extern "system" fn modify_ifs_handle(id: u32, proposed: SOCKET, errno: *mut i32) -> SOCKET {
    let register = || {
        let owner = provider::of_entry(id).ok_or(WSAEINVAL)?;
        let registration = Registration {
            owner,
            context: 0,
            non_ifs: false,
        };
        if HANDLES.set(proposed, registration) {
            Ok(proposed)
        } else {
            Err(WSAENOTSOCK)
        }
    };
    answer(errno, register(), INVALID_SOCKET)
}

unsafe extern "system" fn fd_is_set(s: SOCKET, set: *const FD_SET) -> i32 {
    // SAFETY: null or a set whose count is true.
    unsafe { fdset::members(set) }.contains(&s) as i32
}

unsafe extern "system" fn get_provider_path(
    id: *const GUID,
    path: *mut u16,
    len: *mut i32,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the provider's variables.
    let result = match unsafe { (id.as_ref(), len.as_mut()) } {
        (Some(id), Some(len)) if !path.is_null() => copy_path(id, path, len),
        _ => Err(WSAEFAULT),
    };
    answer(errno, result, SOCKET_ERROR)
}

fn copy_path(id: &GUID, path: *mut u16, len: &mut i32) -> Result<i32, i32> {
    let catalog = catalog::current();
    let entry = catalog
        .entries
        .iter()
        .find(|e| spi::ids::same_guid(&e.info.ProviderId, id));
    let text = spi::wide::wide(&entry.ok_or(WSAEINVALIDPROVIDER)?.path);
    let room = *len;
    *len = text.len() as i32;
    if (room.max(0) as usize) < text.len() {
        return Err(WSAEFAULT);
    }
    // SAFETY: the buffer has room for `room` units, by the caller.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr(), path, text.len()) };
    Ok(0)
}

/// user32 is loaded by who has windows to post to; a provider must not make every program load it.
unsafe extern "system" fn post_message(
    window: HWND,
    message: u32,
    wparam: WPARAM,
    lparam: LPARAM,
) -> BOOL {
    type Post = unsafe extern "system" fn(HWND, u32, WPARAM, LPARAM) -> BOOL;
    let name = spi::wide::wide("user32.dll");
    // SAFETY: zero-terminated names; user32's function of that name has that signature.
    unsafe {
        match GetProcAddress(LoadLibraryW(name.as_ptr()), c"PostMessageW".as_ptr().cast()) {
            Some(f) => std::mem::transmute::<unsafe extern "system" fn() -> isize, Post>(f)(
                window, message, wparam, lparam,
            ),
            None => FALSE,
        }
    }
}

unsafe extern "system" fn query_blocking_callback(
    id: u32,
    callback: *mut LPBLOCKINGCALLBACK,
    context: *mut usize,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the provider's variables.
    let result = match unsafe { (callback.as_mut(), context.as_mut()) } {
        (Some(callback), Some(context)) => {
            (*callback, *context) = provider::of_entry(id).map_or((None, 0), blocking::callback);
            Ok(0)
        }
        _ => Err(WSAEFAULT),
    };
    answer(errno, result, SOCKET_ERROR)
}

unsafe extern "system" fn queue_apc(
    thread: *const WSATHREADID,
    f: LPWSAUSERAPC,
    context: usize,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the provider's copy.
    let result = unsafe { thread.as_ref() }
        .ok_or(WSAEFAULT)
        .and_then(|id| thread::queue(id, f, context));
    answer(errno, result.map(|()| 0), SOCKET_ERROR)
}

unsafe extern "system" fn open_current_thread(thread: *mut WSATHREADID, errno: *mut i32) -> i32 {
    // SAFETY: the provider's variable.
    let result = match unsafe { thread.as_mut() } {
        Some(place) => thread::open_current().map(|id| {
            *place = id;
            0
        }),
        None => Err(WSAEFAULT),
    };
    answer(errno, result, SOCKET_ERROR)
}

unsafe extern "system" fn close_thread(thread: *const WSATHREADID, errno: *mut i32) -> i32 {
    // SAFETY: the provider's copy.
    match unsafe { thread.as_ref() } {
        Some(id) => {
            thread::close(id);
            0
        }
        None => answer(errno, Err(WSAEFAULT), SOCKET_ERROR),
    }
}

/// Not in the table: exported, and only for handles of WPUCreateSocketHandle.
#[unsafe(no_mangle)]
unsafe extern "system" fn WPUCompleteOverlappedRequest(
    s: SOCKET,
    ov: *mut OVERLAPPED,
    error: u32,
    bytes: u32,
    errno: *mut i32,
) -> i32 {
    let result = match HANDLES.get(s).filter(|slot| slot.is_non_ifs()) {
        None => Err(WSAEINVAL),
        Some(slot) if slot.context() == pool::CLOSED => Err(WSAEINVAL),
        Some(_) if ov.is_null() => Err(WSAEFAULT),
        Some(slot) => {
            // SAFETY: the OVERLAPPED of a request that the provider has not completed yet.
            unsafe { complete::finish(s, slot.extra(), ov, error as i32, bytes) };
            Ok(0)
        }
    };
    answer(errno, result, SOCKET_ERROR)
}
