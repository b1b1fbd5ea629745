//! WSPStartup and WSPCleanup: our place in the catalog, the lower providers, the table that ws2_32 gets.
//!
//! 1. Startups are counted. What the first one learns (upcalls, layers) stays for the process: ws2_32 is the same one.
//!    A Winsock DLL may unload providers after the last WSPCleanup, but threads, waits and routines of ours may be on their way
//!    then, and what they use is never freed: so the first startup keeps this DLL in the process for good.
//! 2. Each chain of ours has one lower provider. It is loaded with the first socket of that chain.

use std::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::sync::{Mutex, OnceLock};

use spi::{WSAPROTOCOL_INFOW, chain, ids};
use windows_sys::Win32::Networking::WinSock as ws;
use windows_sys::Win32::System::LibraryLoader::{
    GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, GET_MODULE_HANDLE_EX_FLAG_PIN, GetModuleHandleExW,
};

use crate::answer::{Code, tell};
use crate::slot::locked;
use crate::{data, events, ioctl, life, names, options, select};

/// The function inside an optional function pointer.
pub trait Inner {
    type F;
}

impl<F> Inner for Option<F> {
    type F = F;
}

macro_rules! lower_calls {
    ($($name:ident: $field:ident: $ty:ident;)*) => {
        /// A lower provider's functions, all there.
        #[derive(Clone, Copy)]
        pub struct Lower {
            $(pub $name: <ws::$ty as Inner>::F,)*
        }

        impl Lower {
            fn from_table(t: &ws::WSPPROC_TABLE) -> Option<Self> {
                Some(Self { $($name: t.$field?,)* })
            }
        }
    };
}

lower_calls! {
    accept: lpWSPAccept: LPWSPACCEPT;
    address_to_string: lpWSPAddressToString: LPWSPADDRESSTOSTRING;
    async_select: lpWSPAsyncSelect: LPWSPASYNCSELECT;
    bind: lpWSPBind: LPWSPBIND;
    cancel_blocking_call: lpWSPCancelBlockingCall: LPWSPCANCELBLOCKINGCALL;
    close_socket: lpWSPCloseSocket: LPWSPCLOSESOCKET;
    connect: lpWSPConnect: LPWSPCONNECT;
    duplicate_socket: lpWSPDuplicateSocket: LPWSPDUPLICATESOCKET;
    enum_network_events: lpWSPEnumNetworkEvents: LPWSPENUMNETWORKEVENTS;
    event_select: lpWSPEventSelect: LPWSPEVENTSELECT;
    get_overlapped_result: lpWSPGetOverlappedResult: LPWSPGETOVERLAPPEDRESULT;
    get_peer_name: lpWSPGetPeerName: LPWSPGETPEERNAME;
    get_sock_name: lpWSPGetSockName: LPWSPGETSOCKNAME;
    get_sock_opt: lpWSPGetSockOpt: LPWSPGETSOCKOPT;
    get_qos_by_name: lpWSPGetQOSByName: LPWSPGETQOSBYNAME;
    ioctl: lpWSPIoctl: LPWSPIOCTL;
    join_leaf: lpWSPJoinLeaf: LPWSPJOINLEAF;
    listen: lpWSPListen: LPWSPLISTEN;
    recv: lpWSPRecv: LPWSPRECV;
    recv_disconnect: lpWSPRecvDisconnect: LPWSPRECVDISCONNECT;
    recv_from: lpWSPRecvFrom: LPWSPRECVFROM;
    select: lpWSPSelect: LPWSPSELECT;
    send: lpWSPSend: LPWSPSEND;
    send_disconnect: lpWSPSendDisconnect: LPWSPSENDDISCONNECT;
    send_to: lpWSPSendTo: LPWSPSENDTO;
    set_sock_opt: lpWSPSetSockOpt: LPWSPSETSOCKOPT;
    shutdown: lpWSPShutdown: LPWSPSHUTDOWN;
    socket: lpWSPSocket: LPWSPSOCKET;
    string_to_address: lpWSPStringToAddress: LPWSPSTRINGTOADDRESS;
}

/// The upcalls that we use.
#[derive(Clone, Copy)]
pub struct Upcalls {
    pub create_handle: <ws::LPWPUCREATESOCKETHANDLE as Inner>::F,
    pub close_handle: <ws::LPWPUCLOSESOCKETHANDLE as Inner>::F,
    pub modify_handle: <ws::LPWPUMODIFYIFSHANDLE as Inner>::F,
    pub query_context: <ws::LPWPUQUERYSOCKETHANDLECONTEXT as Inner>::F,
    pub post_message: <ws::LPWPUPOSTMESSAGE as Inner>::F,
    pub queue_apc: <ws::LPWPUQUEUEAPC as Inner>::F,
    pub open_thread: <ws::LPWPUOPENCURRENTTHREAD as Inner>::F,
    pub close_thread: <ws::LPWPUCLOSETHREAD as Inner>::F,
    table: ws::WSPUPCALLTABLE,
}

impl Upcalls {
    fn from_table(table: ws::WSPUPCALLTABLE) -> Option<Self> {
        Some(Self {
            create_handle: table.lpWPUCreateSocketHandle?,
            close_handle: table.lpWPUCloseSocketHandle?,
            modify_handle: table.lpWPUModifyIFSHandle?,
            query_context: table.lpWPUQuerySocketHandleContext?,
            post_message: table.lpWPUPostMessage?,
            queue_apc: table.lpWPUQueueApc?,
            open_thread: table.lpWPUOpenCurrentThread?,
            close_thread: table.lpWPUCloseThread?,
            table,
        })
    }
}

/// A chain of ours, and the provider below it.
pub struct Layer {
    /// The chain's catalog entry: what programs see.
    pub info: WSAPROTOCOL_INFOW,
    /// What the lower provider is called with.
    pub lower_info: WSAPROTOCOL_INFOW,
    chain: chain::Layer,
    lower: OnceLock<Option<Lower>>,
}

static UPCALLS: OnceLock<Upcalls> = OnceLock::new();
static LAYERS: Mutex<Vec<&'static Layer>> = Mutex::new(Vec::new());
static STARTED: AtomicU32 = AtomicU32::new(0);

#[inline]
pub fn upcalls() -> Option<&'static Upcalls> {
    UPCALLS.get()
}

impl Layer {
    /// The provider below, loaded with the first call.
    pub fn lower(&'static self) -> Result<&'static Lower, Code> {
        self.lower
            .get_or_init(|| {
                let upcalls = upcalls()?;
                let id = &self.chain.lower.ProviderId;
                let started = spi::lower::Lower::start(id, &self.lower_info, &upcalls.table);
                // Never stopped: sockets of this process may outlive our own count of startups.
                Lower::from_table(&started.ok()?.table)
            })
            .as_ref()
            .ok_or(ws::WSAEPROVIDERFAILEDINIT)
    }
}

/// The layer of a chain's catalog id, or the first for these numbers.
pub fn layer(id: u32, family: i32, kind: i32, protocol: i32) -> Option<&'static Layer> {
    let layers = locked(&LAYERS);
    let by_id = layers.iter().find(|l| l.info.dwCatalogEntryId == id);
    let by_kind = || {
        layers.iter().find(|l| {
            l.info.iAddressFamily == family
                && l.info.iSocketType == kind
                && (protocol == 0 || l.info.iProtocol == protocol)
        })
    };
    by_id.or_else(by_kind).copied()
}

/// Any provider below, for calls that have no socket.
pub fn any_lower(id: u32) -> Result<&'static Lower, Code> {
    let first = locked(&LAYERS).first().copied();
    layer(id, 0, 0, 0)
        .or(first)
        .ok_or(ws::WSAEPROVIDERFAILEDINIT)?
        .lower()
}

/// Reads the catalog for chains that are new.
fn find_layers(startup: &WSAPROTOCOL_INFOW) -> Result<(), Code> {
    let catalog = spi::lower::catalog().map_err(|_| ws::WSAEPROVIDERFAILEDINIT)?;
    // Installed by inst_lsp, or else the first id of the chain with which ws2_32 started us.
    let own = chain::own_id(&catalog, &ids::DUMMY_PROVIDER)
        .filter(|id| chain::ids(startup).contains(id))
        .or_else(|| chain::ids(startup).first().copied())
        .ok_or(ws::WSAEPROVIDERFAILEDINIT)?;
    let mut layers = locked(&LAYERS);
    for found in chain::layers(&catalog, own) {
        let known = |l: &&Layer| l.info.dwCatalogEntryId == found.info.dwCatalogEntryId;
        if !layers.iter().any(known) {
            layers.push(Box::leak(Box::new(Layer {
                info: found.info,
                lower_info: *found.lower_info(),
                chain: found,
                lower: OnceLock::new(),
            })));
        }
    }
    if layers.is_empty() {
        Err(ws::WSAEPROVIDERFAILEDINIT)
    } else {
        Ok(())
    }
}

const VERSION: u16 = spi::types::VERSION_2_2;

/// The provider's entry (MSDN "WSPStartup").
///
/// # Safety
/// As ws2_32 calls it.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSPStartup(
    version: u16,
    data: *mut ws::WSPDATA,
    info: *const WSAPROTOCOL_INFOW,
    upcalls: ws::WSPUPCALLTABLE,
    table: *mut ws::WSPPROC_TABLE,
) -> i32 {
    // SAFETY: null or the caller's entry.
    let Some(info) = (unsafe { info.as_ref() }) else {
        return ws::WSAEFAULT;
    };
    if data.is_null() || table.is_null() {
        return ws::WSAEFAULT;
    }
    if version < VERSION && (version & 0xff) < 2 {
        return ws::WSAVERNOTSUPPORTED;
    }
    match Upcalls::from_table(upcalls) {
        Some(u) => {
            let _ = UPCALLS.set(u);
        }
        None => return ws::WSAEPROVIDERFAILEDINIT,
    }
    // A provider that could make no socket says so now, while ws2_32 can still take another one.
    let able = find_layers(info).and_then(|()| {
        layer(info.dwCatalogEntryId, 0, 0, 0).map_or(Ok(()), |l| l.lower().map(|_| ()))
    });
    if let Err(code) = able {
        return code;
    }
    // SAFETY: the caller's out-pointers, checked above.
    unsafe {
        (*data).wVersion = VERSION;
        (*data).wHighVersion = VERSION;
        let name = "Sockets-GM layered service provider";
        for (slot, c) in (*data)
            .szDescription
            .iter_mut()
            .zip(name.encode_utf16().chain([0]))
        {
            *slot = c;
        }
        *table = our_table();
    }
    stay_loaded();
    STARTED.fetch_add(1, AcqRel);
    0
}

fn stay_loaded() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mut module = std::ptr::null_mut();
        let here = stay_loaded as fn() as usize;
        let flags = GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS;
        // SAFETY: an address in this module, an out-pointer to a local.
        unsafe { GetModuleHandleExW(flags, here as *const u16, &mut module) };
    });
}

/// A Winsock DLL of this project says what it gives beyond the documentation: 1, it holds the packet of a call back that succeeds
/// at once, if the program wants none then, and `OVERLAPPED.Internal` has the statuses of `spi::errors`.
#[unsafe(no_mangle)]
pub extern "system" fn SgmWinsockGives(what: u32) {
    GIVEN.store(what, Relaxed);
}

static GIVEN: AtomicU32 = AtomicU32::new(0);

/// Is the Winsock DLL one of this project?
pub fn is_known() -> bool {
    GIVEN.load(Relaxed) & 1 != 0
}

unsafe extern "system" fn cleanup(errno: *mut i32) -> i32 {
    match STARTED.fetch_update(AcqRel, Acquire, |n| n.checked_sub(1)) {
        Ok(1) => {
            // The last one ends every socket of the process. The lower providers stay started, for a new start.
            crate::slot::each(life::end_with_process);
            0
        }
        Ok(_) => 0,
        Err(_) => {
            // SAFETY: the caller's place for the code.
            unsafe { tell(ws::WSANOTINITIALISED, errno) };
            ws::SOCKET_ERROR
        }
    }
}

unsafe extern "system" fn cancel_blocking_call(errno: *mut i32) -> i32 {
    match any_lower(0) {
        // SAFETY: the caller's arguments, unchanged.
        Ok(lower) => unsafe { (lower.cancel_blocking_call)(errno) },
        Err(code) => {
            // SAFETY: the caller's place for the code.
            unsafe { tell(code, errno) };
            ws::SOCKET_ERROR
        }
    }
}

fn our_table() -> ws::WSPPROC_TABLE {
    ws::WSPPROC_TABLE {
        lpWSPAccept: Some(life::accept),
        lpWSPAddressToString: Some(names::address_to_string),
        lpWSPAsyncSelect: Some(events::async_select),
        lpWSPBind: Some(life::bind),
        lpWSPCancelBlockingCall: Some(cancel_blocking_call),
        lpWSPCleanup: Some(cleanup),
        lpWSPCloseSocket: Some(life::close_socket),
        lpWSPConnect: Some(life::connect),
        lpWSPDuplicateSocket: Some(life::duplicate_socket),
        lpWSPEnumNetworkEvents: Some(events::enum_network_events),
        lpWSPEventSelect: Some(events::event_select),
        lpWSPGetOverlappedResult: Some(crate::overlapped::get_overlapped_result),
        lpWSPGetPeerName: Some(names::get_peer_name),
        lpWSPGetSockName: Some(names::get_sock_name),
        lpWSPGetSockOpt: Some(options::get_sock_opt),
        lpWSPGetQOSByName: Some(names::get_qos_by_name),
        lpWSPIoctl: Some(ioctl::ioctl),
        lpWSPJoinLeaf: Some(life::join_leaf),
        lpWSPListen: Some(life::listen),
        lpWSPRecv: Some(data::recv),
        lpWSPRecvDisconnect: Some(data::recv_disconnect),
        lpWSPRecvFrom: Some(data::recv_from),
        lpWSPSelect: Some(select::select),
        lpWSPSend: Some(data::send),
        lpWSPSendDisconnect: Some(data::send_disconnect),
        lpWSPSendTo: Some(data::send_to),
        lpWSPSetSockOpt: Some(options::set_sock_opt),
        lpWSPShutdown: Some(life::shutdown),
        lpWSPSocket: Some(life::socket),
        lpWSPStringToAddress: Some(names::string_to_address),
    }
}
