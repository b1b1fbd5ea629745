//! The base provider: what layered providers stand on. Its table calls the builtin by pointer, never through `dispatch`.
//!
//! Catalog entries of base protocols name this DLL as their provider, so that a layered provider loads it and calls its
//! WSPStartup as it would mswsock's. Overlapped calls pass through to the builtin as they are: events, completion ports,
//! and completion routines in the calling thread, which is what the WSATHREADID says too.

use std::ffi::c_void;
use std::ptr;

use windows_sys::Wdk::Storage::FileSystem::{
    FileIoCompletionNotificationInformation, NtQueryInformationFile,
};
use windows_sys::Win32::Foundation::{FALSE, GetLastError, HANDLE, HWND};
use windows_sys::Win32::Networking::WinSock::*;
use windows_sys::Win32::System::IO::{IO_STATUS_BLOCK, OVERLAPPED};
use windows_sys::core::BOOL;

use crate::builtin::{self, Routine};
use crate::carrier::FILE_SKIP_COMPLETION_PORT_ON_SUCCESS;
use crate::dispatch::failed;
use crate::provider::HANDLES;
use crate::{overlapped_rows, same_rows};

#[unsafe(no_mangle)]
unsafe extern "system" fn WSPStartup(
    version: u16,
    data: *mut WSPDATA,
    _info: *const WSAPROTOCOL_INFOW,
    _upcalls: WSPUPCALLTABLE,
    table: *mut WSPPROC_TABLE,
) -> i32 {
    if version < spi::types::VERSION_2_2 {
        return WSAVERNOTSUPPORTED;
    }
    // SAFETY: null or the layered provider's own structures.
    match unsafe { (data.as_mut(), table.as_mut()) } {
        (Some(data), Some(table)) => {
            *data = WSPDATA::default();
            (data.wVersion, data.wHighVersion) = (spi::types::VERSION_2_2, spi::types::VERSION_2_2);
            spi::wide::fill(&mut data.szDescription, "Wine's Winsock as a base provider");
            *table = TABLE;
            0
        }
        _ => WSAEFAULT,
    }
}

const TABLE: WSPPROC_TABLE = WSPPROC_TABLE {
    lpWSPAccept: Some(accept),
    lpWSPAddressToString: Some(address_to_string),
    lpWSPAsyncSelect: Some(same::WSAAsyncSelect),
    lpWSPBind: Some(same::bind),
    lpWSPCancelBlockingCall: Some(cancel_blocking_call),
    lpWSPCleanup: Some(cleanup),
    lpWSPCloseSocket: Some(close_socket),
    lpWSPConnect: Some(connect),
    lpWSPDuplicateSocket: Some(duplicate_socket),
    lpWSPEnumNetworkEvents: Some(same::WSAEnumNetworkEvents),
    lpWSPEventSelect: Some(same::WSAEventSelect),
    lpWSPGetOverlappedResult: Some(same::WSAGetOverlappedResult),
    lpWSPGetPeerName: Some(same::getpeername),
    lpWSPGetSockName: Some(same::getsockname),
    lpWSPGetSockOpt: Some(same::getsockopt),
    lpWSPGetQOSByName: Some(same::WSAGetQOSByName),
    lpWSPIoctl: Some(ioctl),
    lpWSPJoinLeaf: Some(join_leaf),
    lpWSPListen: Some(same::listen),
    lpWSPRecv: Some(recv),
    lpWSPRecvDisconnect: Some(same::WSARecvDisconnect),
    lpWSPRecvFrom: Some(recv_from),
    lpWSPSelect: Some(select),
    lpWSPSend: Some(overlapped::WSASend),
    lpWSPSendDisconnect: Some(same::WSASendDisconnect),
    lpWSPSendTo: Some(overlapped::WSASendTo),
    lpWSPSetSockOpt: Some(same::setsockopt),
    lpWSPShutdown: Some(same::shutdown),
    lpWSPSocket: Some(socket),
    lpWSPStringToAddress: Some(string_to_address),
};

/// The SPI's way with errors: `failed` means that the builtin left one for the thread.
fn answer<T: PartialEq>(errno: *mut i32, failed: T, result: T) -> T {
    if result == failed {
        // SAFETY: reads the thread's own word.
        put(errno, unsafe { GetLastError() } as i32);
    }
    result
}

fn put(errno: *mut i32, error: i32) {
    // SAFETY: lpErrno: null or the layered provider's own variable.
    if let Some(errno) = unsafe { errno.as_mut() } {
        *errno = error;
    }
}

fn refuse(errno: *mut i32, error: i32) -> i32 {
    put(errno, error);
    SOCKET_ERROR
}

mod same {
    use super::*;

    macro_rules! entries {
        ($($name:ident / $entry:ident ($($arg:ident: $ty:ty),*) -> $ret:ident;)*) => { $(
            #[allow(non_snake_case)]
            pub unsafe extern "system" fn $name(s: SOCKET, $($arg: $ty,)* errno: *mut i32) -> $ret {
                // SAFETY: the layered provider's own arguments.
                answer(errno, failed!($ret), unsafe { builtin::$name(s $(, $arg)*) })
            }
        )* };
    }
    same_rows!(entries);
}

mod overlapped {
    use super::*;

    macro_rules! entries {
        ($($name:ident / $entry:ident ($($arg:ident: $ty:ty),*) -> $ret:ident;)*) => { $(
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub unsafe extern "system" fn $name(s: SOCKET, $($arg: $ty,)* ov: *mut OVERLAPPED, routine: Routine, _thread: *const WSATHREADID, errno: *mut i32) -> $ret {
                // SAFETY: the layered provider's own arguments.
                answer(errno, failed!($ret), unsafe { builtin::$name(s, $($arg,)* ov, routine) })
            }
        )* };
    }
    overlapped_rows!(entries);
}

/// windows-sys has this one lpErrno as const.
#[rustfmt::skip] // one line each: the SPI's arguments, passed on
unsafe extern "system" fn recv(s: SOCKET, buffers: *const WSABUF, n: u32, bytes: *mut u32, flags: *mut u32, ov: *mut OVERLAPPED, routine: Routine, thread: *const WSATHREADID, errno: *const i32) -> i32 {
    // SAFETY: the layered provider's own arguments.
    let result = unsafe { overlapped::WSARecv(s, buffers, n, bytes, flags, ov, routine, thread, errno.cast_mut()) };
    too_long(s, result, ov, errno.cast_mut())
}

#[rustfmt::skip]
unsafe extern "system" fn recv_from(s: SOCKET, buffers: *const WSABUF, n: u32, bytes: *mut u32, flags: *mut u32, from: *mut SOCKADDR, len: *mut i32, ov: *mut OVERLAPPED, routine: Routine, thread: *const WSATHREADID, errno: *mut i32) -> i32 {
    // SAFETY: the layered provider's own arguments.
    let result = unsafe { overlapped::WSARecvFrom(s, buffers, n, bytes, flags, from, len, ov, routine, thread, errno) };
    too_long(s, result, ov, errno)
}

/// Wine refuses an overlapped receive of a datagram that is too long with WSAEMSGSIZE and also sends the port a packet. By
/// the contract an error at once means that no packet follows; libuv counts on it on sockets that it takes for layered ones,
/// and so do layered providers. What Wine does is right if the call says that it is pending. Not so with an event, which
/// may mean that there is no port, or with FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, which keeps the packet away.
fn too_long(s: SOCKET, result: i32, ov: *mut OVERLAPPED, errno: *mut i32) -> i32 {
    if result != SOCKET_ERROR || ov.is_null() || errno.is_null() {
        return result;
    }
    // SAFETY: the layered provider's own structures; a refused call has left the OVERLAPPED alone.
    let (refused, event) = unsafe { (*errno, (*ov).hEvent) };
    if refused == WSAEMSGSIZE && event.is_null() && !skips_packets(s) {
        put(errno, WSA_IO_PENDING);
    }
    result
}

fn skips_packets(s: SOCKET) -> bool {
    let mut modes = 0u32;
    let mut status = IO_STATUS_BLOCK::default();
    let file: HANDLE = ptr::without_provenance_mut(s);
    // SAFETY: a word for the result, as its length says.
    let result = unsafe {
        NtQueryInformationFile(
            file,
            &mut status,
            (&raw mut modes).cast(),
            4,
            FileIoCompletionNotificationInformation,
        )
    };
    result == 0 && modes & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS != 0
}

unsafe extern "system" fn socket(
    af: i32,
    kind: i32,
    protocol: i32,
    info: *const WSAPROTOCOL_INFOW,
    group: u32,
    flags: u32,
    errno: *mut i32,
) -> SOCKET {
    // SAFETY: null or the layered provider's own.
    let given = unsafe { info.as_ref() };
    let duplicated = given.and_then(duplicated);
    let s = match &duplicated {
        // SAFETY: a structure that lives through the call.
        Some(info) => unsafe { builtin::WSASocketW(af, kind, protocol, info, group, flags) },
        None => {
            let or = |value, from: fn(&WSAPROTOCOL_INFOW) -> i32| match given {
                Some(info) if value == FROM_PROTOCOL_INFO => from(info),
                _ => value,
            };
            let af = or(af, |i| i.iAddressFamily);
            let kind = or(kind, |i| i.iSocketType);
            let protocol = or(protocol, |i| i.iProtocol);
            // SAFETY: plain values.
            unsafe { builtin::WSASocketW(af, kind, protocol, ptr::null(), group, flags) }
        }
    };
    HANDLES.clear(s);
    answer(errno, INVALID_SOCKET, s)
}

unsafe extern "system" fn accept(
    s: SOCKET,
    name: *mut SOCKADDR,
    len: *mut i32,
    condition: LPCONDITIONPROC,
    data: usize,
    errno: *mut i32,
) -> SOCKET {
    // SAFETY: the layered provider's own arguments.
    let s = unsafe {
        match condition {
            None => builtin::accept(s, name, len),
            Some(_) => builtin::WSAAccept(s, name, len, condition, data),
        }
    };
    HANDLES.clear(s);
    answer(errno, INVALID_SOCKET, s)
}

/// The handle may also be an IFS provider's own one: forgotten before the number can come back.
unsafe extern "system" fn close_socket(s: SOCKET, errno: *mut i32) -> i32 {
    HANDLES.clear(s);
    // SAFETY: plain value.
    answer(errno, SOCKET_ERROR, unsafe { builtin::closesocket(s) })
}

unsafe extern "system" fn connect(
    s: SOCKET,
    name: *const SOCKADDR,
    len: i32,
    caller: *const WSABUF,
    callee: *mut WSABUF,
    sqos: *const QOS,
    gqos: *const QOS,
    errno: *mut i32,
) -> i32 {
    let plain = caller.is_null() && callee.is_null() && sqos.is_null() && gqos.is_null();
    // SAFETY: the layered provider's own arguments.
    let result = unsafe {
        if plain {
            builtin::connect(s, name, len)
        } else {
            builtin::WSAConnect(s, name, len, caller, callee, sqos, gqos)
        }
    };
    answer(errno, SOCKET_ERROR, result)
}

unsafe extern "system" fn join_leaf(
    s: SOCKET,
    name: *const SOCKADDR,
    len: i32,
    caller: *const WSABUF,
    callee: *mut WSABUF,
    sqos: *const QOS,
    gqos: *const QOS,
    flags: u32,
    errno: *mut i32,
) -> SOCKET {
    // SAFETY: the layered provider's own arguments.
    let joined = unsafe { builtin::WSAJoinLeaf(s, name, len, caller, callee, sqos, gqos, flags) };
    answer(errno, INVALID_SOCKET, joined)
}

unsafe extern "system" fn duplicate_socket(
    s: SOCKET,
    process: u32,
    info: *mut WSAPROTOCOL_INFOW,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the layered provider's own arguments.
    let result = unsafe { builtin::WSADuplicateSocketW(s, process, info) };
    // SAFETY: as above.
    if let (0, Some(info)) = (result, unsafe { info.as_mut() }) {
        carry_duplicate(info);
    }
    answer(errno, SOCKET_ERROR, result)
}

unsafe extern "system" fn select(
    n: i32,
    read: *mut FD_SET,
    write: *mut FD_SET,
    except: *mut FD_SET,
    timeout: *const TIMEVAL,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the layered provider's own arguments.
    answer(errno, SOCKET_ERROR, unsafe {
        builtin::select(n, read, write, except, timeout)
    })
}

unsafe extern "system" fn cancel_blocking_call(errno: *mut i32) -> i32 {
    // SAFETY: no arguments.
    answer(errno, SOCKET_ERROR, unsafe {
        builtin::WSACancelBlockingCall()
    })
}

/// The builtin is started and stopped by the program's WSAStartup and WSACleanup.
unsafe extern "system" fn cleanup(_errno: *mut i32) -> i32 {
    0
}

unsafe extern "system" fn address_to_string(
    name: *const SOCKADDR,
    len: u32,
    _info: *const WSAPROTOCOL_INFOW,
    text: *mut u16,
    text_len: *mut u32,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the layered provider's own arguments.
    let result = unsafe { builtin::WSAAddressToStringW(name, len, ptr::null(), text, text_len) };
    answer(errno, SOCKET_ERROR, result)
}

unsafe extern "system" fn string_to_address(
    text: *const u16,
    af: i32,
    _info: *const WSAPROTOCOL_INFOW,
    name: *mut SOCKADDR,
    len: *mut i32,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the layered provider's own arguments.
    let result = unsafe { builtin::WSAStringToAddressW(text, af, ptr::null(), name, len) };
    answer(errno, SOCKET_ERROR, result)
}

/// The ioctls by which a layered provider is asked whose handle it is, and those that carry another call: at the bottom the
/// first are answered with the socket itself, the others by that call. Wine has none of them.
unsafe extern "system" fn ioctl(
    s: SOCKET,
    code: u32,
    input: *const c_void,
    input_len: u32,
    output: *mut c_void,
    output_len: u32,
    bytes: *mut u32,
    ov: *mut OVERLAPPED,
    routine: Routine,
    thread: *const WSATHREADID,
    errno: *mut i32,
) -> i32 {
    let has = |needed: usize| !input.is_null() && input_len as usize >= needed;
    match code {
        SIO_BSP_HANDLE | SIO_BSP_HANDLE_SELECT | SIO_BSP_HANDLE_POLL => {
            if output.is_null() || (output_len as usize) < size_of::<SOCKET>() {
                return refuse(errno, WSAEFAULT);
            }
            // SAFETY: checked to have room.
            unsafe { output.cast::<SOCKET>().write_unaligned(s) };
            // SAFETY: null or the caller's variable.
            if let Some(bytes) = unsafe { bytes.as_mut() } {
                *bytes = size_of::<SOCKET>() as u32;
            }
            0
        }
        SIO_EXT_POLL if has(std::mem::offset_of!(WSAPOLLDATA, fdArray)) => {
            // SAFETY: input and output are one such structure, says the ioctl.
            unsafe { poll(input.cast_mut().cast(), output.cast(), output_len, errno) }
        }
        SIO_EXT_SENDMSG if has(size_of::<WSASENDMSG>()) => {
            // SAFETY: the input is such a structure, says the ioctl.
            let m = unsafe { &*input.cast::<WSASENDMSG>() };
            // SAFETY: the sender's own arguments.
            let result = unsafe {
                builtin::WSASendMsg(
                    s,
                    m.lpMsg,
                    m.dwFlags,
                    m.lpNumberOfBytesSent,
                    m.lpOverlapped,
                    m.lpCompletionRoutine,
                )
            };
            answer(errno, SOCKET_ERROR, result)
        }
        // SAFETY: the layered provider's own arguments.
        _ => unsafe {
            overlapped::WSAIoctl(
                s, code, input, input_len, output, output_len, bytes, ov, routine, thread, errno,
            )
        },
    }
}

/// # Safety
/// `data` is a WSAPOLLDATA with as many members as it says; `output` null, or room for `output_len` bytes.
unsafe fn poll(
    data: *mut WSAPOLLDATA,
    output: *mut WSAPOLLDATA,
    output_len: u32,
    errno: *mut i32,
) -> i32 {
    let head = std::mem::offset_of!(WSAPOLLDATA, fdArray);
    // SAFETY: by the caller.
    unsafe {
        let (n, array) = ((*data).fds, data.byte_add(head).cast::<WSAPOLLFD>());
        (*data).result = builtin::WSAPoll(array, n, (*data).timeout);
        answer(errno, SOCKET_ERROR, (*data).result);
        let len = head + n as usize * size_of::<WSAPOLLFD>();
        if !output.is_null() && output_len as usize >= len {
            ptr::copy(data.cast::<u8>(), output.cast::<u8>(), len);
        }
        if (*data).result == SOCKET_ERROR {
            SOCKET_ERROR
        } else {
            0
        }
    }
}

/// How Wine marks a duplicated socket's info: this in dwServiceFlags4, and the handle in the other process in 3. A layered
/// provider replaces those by its own entry's; what it must leave alone is dwProviderReserved, so that carries the handle
/// from one base provider to the other.
const DUPLICATE: u32 = 0xff00_ff00;

fn carry_duplicate(info: &mut WSAPROTOCOL_INFOW) {
    if info.dwServiceFlags4 == DUPLICATE {
        info.dwProviderReserved = info.dwServiceFlags3;
        (info.dwServiceFlags3, info.dwServiceFlags4) = (0, 0);
    }
}

/// The info as the builtin knows it, if it is a duplicated socket's.
pub fn duplicated(info: &WSAPROTOCOL_INFOW) -> Option<WSAPROTOCOL_INFOW> {
    (info.dwProviderReserved != 0).then_some(WSAPROTOCOL_INFOW {
        dwServiceFlags3: info.dwProviderReserved,
        dwServiceFlags4: DUPLICATE,
        ..*info
    })
}
