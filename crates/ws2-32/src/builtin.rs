//! Wine's own Winsock, kept aside as `C:\windows\spi\ws2_32.dll` (`spi32`, for 32-bit programs): its functions, called by pointer.
//!
//! `builtin::recv(...)` is Wine's `recv`. The pointers are set by DllMain before any export of ours can be called, and never
//! change; a builtin that lacks one of them fails the load.

use std::ffi::{CStr, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use windows_sys::Win32::Foundation::{FARPROC, HANDLE, HWND};
use windows_sys::Win32::Networking::WinSock::*;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::LibraryLoader::{GetProcAddress, LoadLibraryW};
use windows_sys::Win32::System::SystemInformation::GetWindowsDirectoryW;
use windows_sys::core::BOOL;

use crate::unlist::unlist;
use crate::{overlapped_rows, same_rows, special_rows};

pub type Routine = LPWSAOVERLAPPED_COMPLETION_ROUTINE;

/// Below the Windows directory; whoever installs us puts Wine's file there. One prefix may have both.
#[cfg(target_pointer_width = "64")]
const PLACE: &str = r"\spi\ws2_32.dll";
#[cfg(target_pointer_width = "32")]
const PLACE: &str = r"\spi32\ws2_32.dll";

static MODULE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// A function of the builtin by name.
pub fn address(name: &CStr) -> FARPROC {
    // SAFETY: a module that is never unloaded (null finds nothing), a zero-terminated name.
    unsafe { GetProcAddress(MODULE.load(Relaxed), name.as_ptr().cast()) }
}

/// Loads it and looks all functions up. Called by DllMain under the loader's lock, which Wine's loader allows.
pub fn load() -> bool {
    let mut path = [0u16; 300];
    // SAFETY: the buffer holds what its length says.
    let len = unsafe { GetWindowsDirectoryW(path.as_mut_ptr(), 260) } as usize;
    let Some(rest) = path.get_mut(len..) else {
        return false;
    };
    for (to, from) in rest.iter_mut().zip(PLACE.encode_utf16()) {
        *to = from;
    }
    // SAFETY: zero-terminated: the buffer began as zeros and is longer than both parts.
    let module = unsafe { LoadLibraryW(path.as_ptr()) };
    if module.is_null() {
        return false;
    }
    unlist(module);
    MODULE.store(module, Relaxed);
    let found = |list: &[(&CStr, &AtomicPtr<c_void>)]| {
        list.iter().all(|(name, pointer)| match address(name) {
            Some(f) => {
                pointer.store(f as *mut c_void, Relaxed);
                true
            }
            None => false,
        })
    };
    found(OTHERS) && found(SAME) && found(SPECIAL) && found(OVERLAPPED_CALLS)
}

macro_rules! functions {
    ($list:ident, $($name:ident ($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        const $list: &[(&CStr, &AtomicPtr<c_void>)] = &[$((
            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => c"",
            },
            &pointers::$name,
        ),)*];

        $(
            /// # Safety
            /// As the function of that name.
            #[allow(non_snake_case, clippy::too_many_arguments)]
            #[inline(always)]
            pub unsafe fn $name($($arg: $ty),*) -> $ret {
                let f = pointers::$name.load(Relaxed);
                // SAFETY: the builtin's function of that name has this signature (winsock2.h); `load` found it.
                let f = unsafe { mem::transmute::<*mut c_void, unsafe extern "system" fn($($ty),*) -> $ret>(f) };
                // SAFETY: by the caller.
                unsafe { f($($arg),*) }
            }
        )*
    };
}

macro_rules! same { ($($name:ident / $entry:ident ($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
    functions! { SAME, $($name(s: SOCKET $(, $arg: $ty)*) -> $ret;)* }
} }
macro_rules! special { ($($name:ident / $entry:ident ($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
    functions! { SPECIAL, $($name(s: SOCKET $(, $arg: $ty)*) -> $ret;)* }
} }
macro_rules! overlapped { ($($name:ident / $entry:ident ($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
    functions! { OVERLAPPED_CALLS, $($name(s: SOCKET, $($arg: $ty,)* ov: *mut OVERLAPPED, routine: Routine) -> $ret;)* }
} }
same_rows!(same);
special_rows!(special);
overlapped_rows!(overlapped);

functions! { OTHERS,
    accept(s: SOCKET, name: *mut SOCKADDR, len: *mut i32) -> SOCKET;
    closesocket(s: SOCKET) -> i32;
    connect(s: SOCKET, name: *const SOCKADDR, len: i32) -> i32;
    ioctlsocket(s: SOCKET, command: i32, value: *mut u32) -> i32;
    recv(s: SOCKET, buffer: *mut u8, len: i32, flags: i32) -> i32;
    recvfrom(s: SOCKET, buffer: *mut u8, len: i32, flags: i32, from: *mut SOCKADDR, from_len: *mut i32) -> i32;
    select(n: i32, read: *mut FD_SET, write: *mut FD_SET, except: *mut FD_SET, timeout: *const TIMEVAL) -> i32;
    send(s: SOCKET, buffer: *const u8, len: i32, flags: i32) -> i32;
    sendto(s: SOCKET, buffer: *const u8, len: i32, flags: i32, to: *const SOCKADDR, to_len: i32) -> i32;
    socket(af: i32, kind: i32, protocol: i32) -> SOCKET;
    WSAAccept(s: SOCKET, name: *mut SOCKADDR, len: *mut i32, condition: LPCONDITIONPROC, data: usize) -> SOCKET;
    WSAAddressToStringW(name: *const SOCKADDR, len: u32, info: *const WSAPROTOCOL_INFOW, text: *mut u16, text_len: *mut u32) -> i32;
    WSACancelBlockingCall() -> i32;
    WSACleanup() -> i32;
    WSADuplicateSocketA(s: SOCKET, process: u32, info: *mut WSAPROTOCOL_INFOA) -> i32;
    WSAEnumProtocolsA(wanted: *const i32, list: *mut WSAPROTOCOL_INFOA, bytes: *mut u32) -> i32;
    WSAEnumProtocolsW(wanted: *const i32, list: *mut WSAPROTOCOL_INFOW, bytes: *mut u32) -> i32;
    WSAIsBlocking() -> BOOL;
    WSAPoll(fds: *mut WSAPOLLFD, n: u32, timeout_ms: i32) -> i32;
    WSASendMsg(s: SOCKET, message: *const WSAMSG, flags: u32, bytes: *mut u32, ov: *mut OVERLAPPED, routine: Routine) -> i32;
    WSASetBlockingHook(hook: FARPROC) -> FARPROC;
    WSASocketW(af: i32, kind: i32, protocol: i32, info: *const WSAPROTOCOL_INFOW, group: u32, flags: u32) -> SOCKET;
    WSAStartup(version: u16, data: *mut WSADATA) -> i32;
    WSAStringToAddressW(text: *const u16, af: i32, info: *const WSAPROTOCOL_INFOW, name: *mut SOCKADDR, len: *mut i32) -> i32;
    WSAUnhookBlockingHook() -> i32;
}

/// Where the pointers live; a module of its own because they bear the functions' names.
#[allow(non_upper_case_globals)]
mod pointers {
    use super::*;

    macro_rules! statics {
        ($($name:ident)*) => { $(pub static $name: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());)* };
    }
    macro_rules! of_rows {
        ($($name:ident / $entry:ident ($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => { statics! { $($name)* } };
    }
    same_rows!(of_rows);
    special_rows!(of_rows);
    overlapped_rows!(of_rows);
    statics! {
        accept closesocket connect ioctlsocket recv recvfrom select send sendto socket WSAAccept WSAAddressToStringW
        WSACancelBlockingCall WSACleanup WSADuplicateSocketA WSAEnumProtocolsA WSAEnumProtocolsW WSAIsBlocking WSAPoll
        WSASendMsg WSASetBlockingHook WSASocketW WSAStartup WSAStringToAddressW WSAUnhookBlockingHook
    }
}
