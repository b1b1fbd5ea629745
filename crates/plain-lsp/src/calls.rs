//! The thirty entries of our table. Most pass on what they get; the first part of the file has the others.

use std::ffi::c_void;
use std::slice;
use std::sync::Arc;

use windows_sys::Win32::Foundation::{FALSE, HANDLE, HWND};
use windows_sys::Win32::Networking::WinSock::*;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::core::BOOL;

use crate::provider::{self, Layer};

type Routine = LPWSAOVERLAPPED_COMPLETION_ROUTINE;

pub const TABLE: WSPPROC_TABLE = WSPPROC_TABLE {
    lpWSPAccept: Some(accept),
    lpWSPAddressToString: Some(address_to_string),
    lpWSPAsyncSelect: Some(async_select),
    lpWSPBind: Some(bind),
    lpWSPCancelBlockingCall: Some(cancel_blocking_call),
    lpWSPCleanup: Some(cleanup),
    lpWSPCloseSocket: Some(close_socket),
    lpWSPConnect: Some(connect),
    lpWSPDuplicateSocket: Some(duplicate_socket),
    lpWSPEnumNetworkEvents: Some(enum_network_events),
    lpWSPEventSelect: Some(event_select),
    lpWSPGetOverlappedResult: Some(get_overlapped_result),
    lpWSPGetPeerName: Some(get_peer_name),
    lpWSPGetSockName: Some(get_sock_name),
    lpWSPGetSockOpt: Some(get_sock_opt),
    lpWSPGetQOSByName: Some(get_qos_by_name),
    lpWSPIoctl: Some(ioctl),
    lpWSPJoinLeaf: Some(join_leaf),
    lpWSPListen: Some(listen),
    lpWSPRecv: Some(recv),
    lpWSPRecvDisconnect: Some(recv_disconnect),
    lpWSPRecvFrom: Some(recv_from),
    lpWSPSelect: Some(select),
    lpWSPSend: Some(send),
    lpWSPSendDisconnect: Some(send_disconnect),
    lpWSPSendTo: Some(send_to),
    lpWSPSetSockOpt: Some(set_sock_opt),
    lpWSPShutdown: Some(shutdown),
    lpWSPSocket: Some(socket),
    lpWSPStringToAddress: Some(string_to_address),
};

/// Stores the error where the caller wants it, which may be nowhere, and gives back the failure value.
fn fail<T>(errno: *mut i32, error: i32, failed: T) -> T {
    // SAFETY: lpErrno, null or ws2_32's own variable.
    if let Some(errno) = unsafe { errno.as_mut() } {
        *errno = error;
    }
    failed
}

/// Registers the lower provider's new socket as ours. Without that it must not get out, so it is closed again.
fn adopt(lower: SOCKET, layer: &Arc<Layer>, errno: *mut i32) -> SOCKET {
    let mut error = WSANOTINITIALISED;
    let modify = provider::upcalls()
        .ok()
        .and_then(|u| u.lpWPUModifyIFSHandle);
    // SAFETY: ws2_32's function; the socket is a new one of the chain with this id.
    let s = modify.map_or(INVALID_SOCKET, |m| unsafe {
        m(layer.id(), lower, &mut error)
    });
    if s == INVALID_SOCKET {
        if let Some(close) = layer.table().and_then(|t| t.lpWSPCloseSocket) {
            // SAFETY: the socket that the same provider just made.
            unsafe { close(lower, &mut 0) };
        }
        return fail(errno, error, INVALID_SOCKET);
    }
    provider::insert(s, layer);
    s
}

unsafe extern "system" fn socket(
    family: i32,
    kind: i32,
    protocol: i32,
    info: *const WSAPROTOCOL_INFOW,
    group: u32,
    flags: u32,
    errno: *mut i32,
) -> SOCKET {
    if info.is_null() {
        return fail(errno, WSAEFAULT, INVALID_SOCKET);
    }
    // SAFETY: ws2_32's structure.
    let info = unsafe { info.read_unaligned() };
    let made = provider::layer_for(&info).and_then(|(upcalls, layer)| {
        let entry = layer
            .lower(&upcalls)?
            .lpWSPSocket
            .ok_or(WSAEPROVIDERFAILEDINIT)?;
        let mut lower = *layer.lower_info();
        // Not zero in an entry that WSPDuplicateSocket made: it is the lower provider's word for the socket.
        lower.dwProviderReserved = info.dwProviderReserved;
        // SAFETY: the lower provider's entry, with its own catalog entry.
        let s = unsafe { entry(family, kind, protocol, &lower, group, flags, errno) };
        Ok((s, layer))
    });
    match made {
        Ok((INVALID_SOCKET, _)) => INVALID_SOCKET,
        Ok((s, layer)) => adopt(s, &layer, errno),
        Err(error) => fail(errno, error, INVALID_SOCKET),
    }
}

unsafe extern "system" fn accept(
    s: SOCKET,
    addr: *mut SOCKADDR,
    len: *mut i32,
    condition: LPCONDITIONPROC,
    data: usize,
    errno: *mut i32,
) -> SOCKET {
    let layer = match provider::layer_of(s) {
        Ok(layer) => layer,
        Err(error) => return fail(errno, error, INVALID_SOCKET),
    };
    let Some(entry) = layer.table().and_then(|t| t.lpWSPAccept) else {
        return fail(errno, WSAENOTSOCK, INVALID_SOCKET);
    };
    // SAFETY: the caller's arguments as they came.
    match unsafe { entry(s, addr, len, condition, data, errno) } {
        INVALID_SOCKET => INVALID_SOCKET,
        new => adopt(new, &layer, errno),
    }
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
    let layer = match provider::layer_of(s) {
        Ok(layer) => layer,
        Err(error) => return fail(errno, error, INVALID_SOCKET),
    };
    let Some(entry) = layer.table().and_then(|t| t.lpWSPJoinLeaf) else {
        return fail(errno, WSAENOTSOCK, INVALID_SOCKET);
    };
    // SAFETY: the caller's arguments as they came.
    match unsafe { entry(s, name, len, caller, callee, sqos, gqos, flags, errno) } {
        INVALID_SOCKET => INVALID_SOCKET,
        same if same == s => s,
        new => adopt(new, &layer, errno),
    }
}

unsafe extern "system" fn close_socket(s: SOCKET, errno: *mut i32) -> i32 {
    let ours = provider::remove(s);
    let layer = match ours.clone().map_or_else(|| provider::layer_of(s), Ok) {
        Ok(layer) => layer,
        Err(error) => return fail(errno, error, SOCKET_ERROR),
    };
    let Some(entry) = layer.table().and_then(|t| t.lpWSPCloseSocket) else {
        return fail(errno, WSAENOTSOCK, SOCKET_ERROR);
    };
    let mut error = 0;
    // SAFETY: the caller's socket.
    let closed = unsafe { entry(s, &mut error) };
    if closed == 0 {
        return 0;
    }
    // WSAEWOULDBLOCK (lingering, non-blocking): the socket is still there.
    if let (Some(layer), WSAEWOULDBLOCK) = (ours, error) {
        provider::insert(s, &layer);
    }
    fail(errno, error, closed)
}

/// SO_PROTOCOL_INFO answers the chain's entry. The handle is the lower provider's, so here the flag says what that one
/// says; in the catalog it is clear, for the other provider of these chains hands out handles of its own.
unsafe extern "system" fn get_sock_opt(
    s: SOCKET,
    level: i32,
    option: i32,
    value: *mut u8,
    len: *mut i32,
    errno: *mut i32,
) -> i32 {
    let layer = match provider::layer_of(s) {
        Ok(layer) => layer,
        Err(error) => return fail(errno, error, SOCKET_ERROR),
    };
    let Some(entry) = layer.table().and_then(|t| t.lpWSPGetSockOpt) else {
        return fail(errno, WSAENOTSOCK, SOCKET_ERROR);
    };
    // SAFETY: the caller's arguments as they came. The lower provider checks the socket and the buffer.
    let got = unsafe { entry(s, level, option, value, len, errno) };
    if got != 0 || level != SOL_SOCKET {
        return got;
    }
    let mut info = *layer.info();
    info.dwServiceFlags1 |= layer.lower_info().dwServiceFlags1 & XP1_IFS_HANDLES;
    match option {
        // SAFETY: the lower provider has just written a structure of this size there.
        SO_PROTOCOL_INFOW => unsafe { value.cast::<WSAPROTOCOL_INFOW>().write_unaligned(info) },
        // SAFETY: as above.
        SO_PROTOCOL_INFOA => unsafe {
            value
                .cast::<WSAPROTOCOL_INFOA>()
                .write_unaligned(ansi(&info))
        },
        _ => {}
    }
    0
}

/// The same entry with an ANSI name; our own chains have ASCII names, another's may lose a character.
fn ansi(info: &WSAPROTOCOL_INFOW) -> WSAPROTOCOL_INFOA {
    let mut name = [0; 256];
    for (to, from) in name.iter_mut().zip(info.szProtocol) {
        *to = u8::try_from(from).unwrap_or(b'?') as i8;
    }
    WSAPROTOCOL_INFOA {
        dwServiceFlags1: info.dwServiceFlags1,
        dwServiceFlags2: info.dwServiceFlags2,
        dwServiceFlags3: info.dwServiceFlags3,
        dwServiceFlags4: info.dwServiceFlags4,
        dwProviderFlags: info.dwProviderFlags,
        ProviderId: info.ProviderId,
        dwCatalogEntryId: info.dwCatalogEntryId,
        ProtocolChain: info.ProtocolChain,
        iVersion: info.iVersion,
        iAddressFamily: info.iAddressFamily,
        iMaxSockAddr: info.iMaxSockAddr,
        iMinSockAddr: info.iMinSockAddr,
        iSocketType: info.iSocketType,
        iProtocol: info.iProtocol,
        iProtocolMaxOffset: info.iProtocolMaxOffset,
        iNetworkByteOrder: info.iNetworkByteOrder,
        iSecurityScheme: info.iSecurityScheme,
        dwMessageSize: info.dwMessageSize,
        dwProviderReserved: info.dwProviderReserved,
        szProtocol: name,
    }
}

/// The receiver gets the chain's entry, and in it the lower provider's word for the socket.
unsafe extern "system" fn duplicate_socket(
    s: SOCKET,
    process: u32,
    info: *mut WSAPROTOCOL_INFOW,
    errno: *mut i32,
) -> i32 {
    let layer = match provider::layer_of(s) {
        Ok(layer) => layer,
        Err(error) => return fail(errno, error, SOCKET_ERROR),
    };
    let Some(entry) = layer.table().and_then(|t| t.lpWSPDuplicateSocket) else {
        return fail(errno, WSAENOTSOCK, SOCKET_ERROR);
    };
    // SAFETY: the caller's arguments as they came.
    let done = unsafe { entry(s, process, info, errno) };
    if done == 0 && !info.is_null() {
        let mut chain = *layer.info();
        // SAFETY: not null, and just filled by the lower provider.
        unsafe {
            chain.dwProviderReserved = info.read_unaligned().dwProviderReserved;
            info.write_unaligned(chain);
        }
    }
    done
}

/// The sets hold the lower provider's own handles, so they pass as they are; the first socket says to whom.
unsafe extern "system" fn select(
    nfds: i32,
    read: *mut FD_SET,
    write: *mut FD_SET,
    except: *mut FD_SET,
    timeout: *const TIMEVAL,
    errno: *mut i32,
) -> i32 {
    let sets = [read, write, except].map(|set| {
        // SAFETY: null or a set whose count is true; programs make it longer than FD_SET says.
        unsafe { members(set) }
    });
    let first = sets.into_iter().flatten().next().copied();
    // Three empty sets are the lower provider's to refuse.
    let layer = match provider::layer_of(first.unwrap_or(INVALID_SOCKET)) {
        Ok(layer) => layer,
        Err(error) => return fail(errno, error, SOCKET_ERROR),
    };
    match layer.table().and_then(|t| t.lpWSPSelect) {
        // SAFETY: the caller's arguments as they came.
        Some(entry) => unsafe { entry(nfds, read, write, except, timeout, errno) },
        None => fail(errno, WSAENOTSOCK, SOCKET_ERROR),
    }
}

/// # Safety
/// `set` is null, or points to a count and as many sockets.
unsafe fn members<'a>(set: *const FD_SET) -> &'a [SOCKET] {
    if set.is_null() {
        return &[];
    }
    // SAFETY: not null; the array may be longer than its type, so it is reached by pointer alone.
    unsafe {
        slice::from_raw_parts(
            (&raw const (*set).fd_array).cast(),
            (*set).fd_count as usize,
        )
    }
}

unsafe extern "system" fn cleanup(errno: *mut i32) -> i32 {
    match provider::cleanup() {
        Ok(()) => 0,
        Err(error) => fail(errno, error, SOCKET_ERROR),
    }
}

/// The blocking call may be in any of the lower providers; the others find none of this thread's.
unsafe extern "system" fn cancel_blocking_call(errno: *mut i32) -> i32 {
    let mut error = WSAEINVAL;
    for layer in provider::started() {
        let Some(entry) = layer.table().and_then(|t| t.lpWSPCancelBlockingCall) else {
            continue;
        };
        // SAFETY: a started provider's entry.
        if unsafe { entry(&mut error) } == 0 {
            return 0;
        }
    }
    fail(errno, error, SOCKET_ERROR)
}

/// The layer that a conversion is meant for; any, if the caller does not say.
fn converter(info: *const WSAPROTOCOL_INFOW) -> Result<Arc<Layer>, i32> {
    if info.is_null() {
        return provider::layer_of(INVALID_SOCKET);
    }
    // SAFETY: ws2_32's structure.
    let (upcalls, layer) = provider::layer_for(&unsafe { info.read_unaligned() })?;
    layer.lower(&upcalls).map(drop)?;
    Ok(layer)
}

unsafe extern "system" fn address_to_string(
    addr: *const SOCKADDR,
    addr_len: u32,
    info: *const WSAPROTOCOL_INFOW,
    text: *mut u16,
    text_len: *mut u32,
    errno: *mut i32,
) -> i32 {
    let layer = match converter(info) {
        Ok(layer) => layer,
        Err(error) => return fail(errno, error, SOCKET_ERROR),
    };
    match layer.table().and_then(|t| t.lpWSPAddressToString) {
        // SAFETY: the caller's arguments, with the lower provider's own catalog entry.
        Some(entry) => unsafe { entry(addr, addr_len, layer.lower_info(), text, text_len, errno) },
        None => fail(errno, WSAEINVAL, SOCKET_ERROR),
    }
}

unsafe extern "system" fn string_to_address(
    text: *const u16,
    family: i32,
    info: *const WSAPROTOCOL_INFOW,
    addr: *mut SOCKADDR,
    addr_len: *mut i32,
    errno: *mut i32,
) -> i32 {
    let layer = match converter(info) {
        Ok(layer) => layer,
        Err(error) => return fail(errno, error, SOCKET_ERROR),
    };
    match layer.table().and_then(|t| t.lpWSPStringToAddress) {
        // SAFETY: the caller's arguments, with the lower provider's own catalog entry.
        Some(entry) => unsafe { entry(text, family, layer.lower_info(), addr, addr_len, errno) },
        None => fail(errno, WSAEINVAL, SOCKET_ERROR),
    }
}

/// Entries that pass on what they get. `failed` is what each returns when there is nobody to pass it to.
macro_rules! pass {
    ($($name:ident = $field:ident($($arg:ident: $ty:ty),*) -> $ret:ty, $failed:expr;)*) => {$(
        unsafe extern "system" fn $name(s: SOCKET, $($arg: $ty,)* errno: *mut i32) -> $ret {
            let layer = match provider::layer_of(s) {
                Ok(layer) => layer,
                Err(error) => return fail(errno, error, $failed),
            };
            match layer.table().and_then(|t| t.$field) {
                // SAFETY: the caller's arguments as they came.
                Some(entry) => unsafe { entry(s, $($arg,)* errno) },
                None => fail(errno, WSAENOTSOCK, $failed),
            }
        }
    )*};
}

pass! {
    async_select = lpWSPAsyncSelect(window: HWND, message: u32, events: i32) -> i32, SOCKET_ERROR;
    bind = lpWSPBind(name: *const SOCKADDR, len: i32) -> i32, SOCKET_ERROR;
    connect = lpWSPConnect(name: *const SOCKADDR, len: i32, caller: *const WSABUF, callee: *mut WSABUF, sqos: *const QOS, gqos: *const QOS) -> i32, SOCKET_ERROR;
    enum_network_events = lpWSPEnumNetworkEvents(event: HANDLE, found: *mut WSANETWORKEVENTS) -> i32, SOCKET_ERROR;
    event_select = lpWSPEventSelect(event: WSAEVENT, events: i32) -> i32, SOCKET_ERROR;
    get_overlapped_result = lpWSPGetOverlappedResult(ov: *const OVERLAPPED, bytes: *mut u32, wait: BOOL, flags: *mut u32) -> BOOL, FALSE;
    get_peer_name = lpWSPGetPeerName(name: *mut SOCKADDR, len: *mut i32) -> i32, SOCKET_ERROR;
    get_sock_name = lpWSPGetSockName(name: *mut SOCKADDR, len: *mut i32) -> i32, SOCKET_ERROR;
    get_qos_by_name = lpWSPGetQOSByName(name: *const WSABUF, qos: *mut QOS) -> BOOL, FALSE;
    ioctl = lpWSPIoctl(code: u32, input: *const c_void, input_len: u32, output: *mut c_void, output_len: u32, bytes: *mut u32, ov: *mut OVERLAPPED, routine: Routine, thread: *const WSATHREADID) -> i32, SOCKET_ERROR;
    listen = lpWSPListen(backlog: i32) -> i32, SOCKET_ERROR;
    recv_disconnect = lpWSPRecvDisconnect(data: *const WSABUF) -> i32, SOCKET_ERROR;
    recv_from = lpWSPRecvFrom(buffers: *const WSABUF, count: u32, bytes: *mut u32, flags: *mut u32, from: *mut SOCKADDR, from_len: *mut i32, ov: *mut OVERLAPPED, routine: Routine, thread: *const WSATHREADID) -> i32, SOCKET_ERROR;
    send = lpWSPSend(buffers: *const WSABUF, count: u32, bytes: *mut u32, flags: u32, ov: *mut OVERLAPPED, routine: Routine, thread: *const WSATHREADID) -> i32, SOCKET_ERROR;
    send_disconnect = lpWSPSendDisconnect(data: *const WSABUF) -> i32, SOCKET_ERROR;
    send_to = lpWSPSendTo(buffers: *const WSABUF, count: u32, bytes: *mut u32, flags: u32, to: *const SOCKADDR, to_len: i32, ov: *mut OVERLAPPED, routine: Routine, thread: *const WSATHREADID) -> i32, SOCKET_ERROR;
    set_sock_opt = lpWSPSetSockOpt(level: i32, option: i32, value: *const u8, len: i32) -> i32, SOCKET_ERROR;
    shutdown = lpWSPShutdown(how: i32) -> i32, SOCKET_ERROR;
}

/// windows-sys gives this entry's lpErrno, alone among all, as a const pointer.
unsafe extern "system" fn recv(
    s: SOCKET,
    buffers: *const WSABUF,
    count: u32,
    bytes: *mut u32,
    flags: *mut u32,
    ov: *mut OVERLAPPED,
    routine: Routine,
    thread: *const WSATHREADID,
    errno: *const i32,
) -> i32 {
    let layer = match provider::layer_of(s) {
        Ok(layer) => layer,
        Err(error) => return fail(errno.cast_mut(), error, SOCKET_ERROR),
    };
    match layer.table().and_then(|t| t.lpWSPRecv) {
        // SAFETY: the caller's arguments as they came.
        Some(entry) => unsafe {
            entry(s, buffers, count, bytes, flags, ov, routine, thread, errno)
        },
        None => fail(errno.cast_mut(), WSAENOTSOCK, SOCKET_ERROR),
    }
}
