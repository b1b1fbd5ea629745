//! The calls that the API and the SPI share: one row says the name, the WSPPROC_TABLE entry and the arguments.
//!
//! From these rows come the builtin's typed pointers (`builtin`), the exports (`dispatch`) and the base provider's entries
//! (`base`). Every row begins with the socket; the SPI adds lpErrno at the end. Overlapped calls end with the OVERLAPPED and
//! the completion routine, to which the SPI adds a WSATHREADID before lpErrno.

/// API and SPI take the same arguments, and both sides need no more than passing them on.
#[macro_export]
macro_rules! same_rows {
    ($m:ident) => {
        $m! {
            bind / lpWSPBind (name: *const SOCKADDR, len: i32) -> i32;
            getpeername / lpWSPGetPeerName (name: *mut SOCKADDR, len: *mut i32) -> i32;
            getsockname / lpWSPGetSockName (name: *mut SOCKADDR, len: *mut i32) -> i32;
            getsockopt / lpWSPGetSockOpt (level: i32, option: i32, value: *mut u8, len: *mut i32) -> i32;
            listen / lpWSPListen (backlog: i32) -> i32;
            setsockopt / lpWSPSetSockOpt (level: i32, option: i32, value: *const u8, len: i32) -> i32;
            shutdown / lpWSPShutdown (how: i32) -> i32;
            WSAAsyncSelect / lpWSPAsyncSelect (window: HWND, message: u32, events: i32) -> i32;
            WSAEnumNetworkEvents / lpWSPEnumNetworkEvents (event: HANDLE, found: *mut WSANETWORKEVENTS) -> i32;
            WSAEventSelect / lpWSPEventSelect (event: WSAEVENT, events: i32) -> i32;
            WSAGetOverlappedResult / lpWSPGetOverlappedResult (ov: *const OVERLAPPED, bytes: *mut u32, wait: BOOL, flags: *mut u32) -> BOOL;
            WSAGetQOSByName / lpWSPGetQOSByName (name: *const WSABUF, qos: *mut QOS) -> BOOL;
            WSARecvDisconnect / lpWSPRecvDisconnect (data: *const WSABUF) -> i32;
            WSASendDisconnect / lpWSPSendDisconnect (data: *const WSABUF) -> i32;
        }
    };
}

/// The exports pass these on as they are, the base provider has its own way with them (or a new socket comes back).
#[macro_export]
macro_rules! special_rows {
    ($m:ident) => {
        $m! {
            closesocket / lpWSPCloseSocket () -> i32;
            WSAConnect / lpWSPConnect (name: *const SOCKADDR, len: i32, caller: *const WSABUF, callee: *mut WSABUF, sqos: *const QOS, gqos: *const QOS) -> i32;
            WSADuplicateSocketW / lpWSPDuplicateSocket (process: u32, info: *mut WSAPROTOCOL_INFOW) -> i32;
            WSAJoinLeaf / lpWSPJoinLeaf (name: *const SOCKADDR, len: i32, caller: *const WSABUF, callee: *mut WSABUF, sqos: *const QOS, gqos: *const QOS, flags: u32) -> SOCKET;
        }
    };
}

#[macro_export]
macro_rules! overlapped_rows {
    ($m:ident) => {
        $m! {
            WSAIoctl / lpWSPIoctl (code: u32, input: *const c_void, input_len: u32, output: *mut c_void, output_len: u32, bytes: *mut u32) -> i32;
            WSARecv / lpWSPRecv (buffers: *const WSABUF, n: u32, bytes: *mut u32, flags: *mut u32) -> i32;
            WSARecvFrom / lpWSPRecvFrom (buffers: *const WSABUF, n: u32, bytes: *mut u32, flags: *mut u32, from: *mut SOCKADDR, from_len: *mut i32) -> i32;
            WSASend / lpWSPSend (buffers: *const WSABUF, n: u32, bytes: *mut u32, flags: u32) -> i32;
            WSASendTo / lpWSPSendTo (buffers: *const WSABUF, n: u32, bytes: *mut u32, flags: u32, to: *const SOCKADDR, to_len: i32) -> i32;
        }
    };
}
