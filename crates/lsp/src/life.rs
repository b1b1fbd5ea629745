//! Life of a socket: making, connecting, accepting, duplicates, shutting, closing.

use gm::end::flag;
use gm::node::ListenAddress;
use gm::{Reason, Role};
use ring::sync::Ordering::{Relaxed, Release};
use sockets::{Conn, Fault};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKADDR, SOCKET};
use windows_sys::Win32::System::Threading::GetCurrentProcessId;

use crate::answer::{Code, code_of, done, lower, tell};
use crate::ctx;
use crate::names::{base_name, split, split_raw};
use crate::overlapped;
use crate::provider::{self, upcalls};
use crate::slot::{self, Body, Fresh, Inside, enter, locked};

/// Marks a WSAPROTOCOL_INFOW of WSPDuplicateSocket: for this very process (the slot's address follows), or for another.
const DUPLICATE_HERE: u32 = 0x5347_4d31;
const DUPLICATE_THERE: u32 = 0x5347_4d32;

pub unsafe extern "system" fn socket(
    family: i32,
    kind: i32,
    protocol: i32,
    info: *const ws::WSAPROTOCOL_INFOW,
    group: u32,
    flags: u32,
    errno: *mut i32,
) -> SOCKET {
    // SAFETY: null or the caller's entry.
    let info = unsafe { info.as_ref() };
    match make(family, kind, protocol, info, group, flags) {
        Ok(s) => s,
        Err(code) => {
            // SAFETY: the caller's place for the code.
            unsafe { tell(code, errno) };
            ws::INVALID_SOCKET
        }
    }
}

fn make(
    family: i32,
    kind: i32,
    protocol: i32,
    info: Option<&ws::WSAPROTOCOL_INFOW>,
    group: u32,
    flags: u32,
) -> Result<SOCKET, Code> {
    let id = info.map_or(0, |i| i.dwCatalogEntryId);
    let duplicate = info.map_or(0, |i| i.dwServiceFlags2);
    if let (DUPLICATE_HERE, Some(info)) = (duplicate, info) {
        return take_duplicate(info);
    }
    let layer = provider::layer(id, family, kind, protocol).ok_or(ws::WSAEPROTONOSUPPORT)?;
    let p = layer.lower()?;
    let mut below = layer.lower_info;
    if let (DUPLICATE_THERE, Some(info)) = (duplicate, info) {
        // All but what this provider changed is the lower provider's.
        below = *info;
        below.dwServiceFlags2 = layer.lower_info.dwServiceFlags2;
        below.dwCatalogEntryId = layer.lower_info.dwCatalogEntryId;
        below.ProtocolChain = layer.lower_info.ProtocolChain;
        below.ProviderId = layer.lower_info.ProviderId;
    }
    let known = |asked: i32, entry: i32| if asked > 0 { asked } else { entry };
    let family_known = known(family, layer.info.iAddressFamily);
    let kind_known = known(kind, layer.info.iSocketType);
    let protocol_known = known(protocol, layer.info.iProtocol);
    let mut code = ws::WSAENOBUFS;
    // Overlapped below whatever the program asked for: what is passed down must not wait.
    let asked = match slot::can_be_carried(family_known, kind_known, protocol_known) {
        true => flags | ws::WSA_FLAG_OVERLAPPED,
        false => flags,
    };
    // SAFETY: an entry of ours; plain arguments.
    let base = unsafe { (p.socket)(family, kind, protocol, &below, group, asked, &mut code) };
    if base == ws::INVALID_SOCKET {
        return Err(code);
    }
    let inside = take_in(Fresh {
        base,
        layer,
        lower: p,
        family: family_known,
        kind: kind_known,
        protocol: protocol_known,
        overlapped: flags & ws::WSA_FLAG_OVERLAPPED != 0,
        role: Role::Fresh,
        nonblocking: false,
        keep_tcp: (duplicate == DUPLICATE_THERE).then_some(Reason::Handed),
    })?;
    carrier_or_close(&inside)
}

/// A slot for a new base socket. One that can't be carried is given to the program as it is, an IFS handle: what it does
/// with it costs what it costs without us.
fn take_in(mut f: Fresh) -> Result<Inside, Code> {
    if !f.is_carriable() {
        let modify = upcalls().ok_or(ws::WSANOTINITIALISED)?.modify_handle;
        let mut code = ws::WSAENOBUFS;
        // SAFETY: ws2_32's own function; a fresh socket of this chain.
        let s = unsafe { modify(f.layer.info.dwCatalogEntryId, f.base, &mut code) };
        if s == ws::INVALID_SOCKET {
            // SAFETY: nobody has it.
            unsafe { (f.lower.close_socket)(f.base, &mut 0) };
            return Err(code);
        }
        f.base = s;
    }
    Ok(slot::make(f))
}

/// A carrier for a fresh slot; without one the base socket goes as well.
fn carrier_or_close(inside: &Inside) -> Result<SOCKET, Code> {
    inside.give_carrier().inspect_err(|_| {
        let b = inside.body();
        let mut code = 0;
        // SAFETY: our own base socket.
        unsafe { (b.lower.close_socket)(b.base, &mut code) };
        inside.bury();
    })
}

pub unsafe extern "system" fn bind(
    s: SOCKET,
    name: *const SOCKADDR,
    len: i32,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s).map_err(|code| {
            // SAFETY: the caller's address.
            let family = unsafe { name.cast::<u16>().as_ref() }.copied();
            let known = family.is_none_or(|f| f == ws::AF_INET || f == ws::AF_INET6);
            // Wine looks at the family before it looks at the handle.
            if known || len < 2 || !gm::os::raw::is_wine() {
                code
            } else {
                ws::WSAEAFNOSUPPORT
            }
        })?;
        let b = inside.body();
        // SAFETY: the caller's arguments, unchanged.
        lower(|code| unsafe { (b.lower.bind)(b.base, name, len, code) })
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// The connection is about to have a peer: notes whether it listens on this node, while its listener is certainly there.
///
/// # Safety
/// `to` is null or readable for `len` bytes.
pub unsafe fn connecting(conn: &Conn, to: *const SOCKADDR, len: i32) {
    if conn.end().role() != Role::Fresh {
        return;
    }
    conn.end().role.store(Role::Client as u32, Relaxed);
    // SAFETY: by the caller.
    let at = unsafe { split_raw(to, len) };
    if let (Some((address, port)), Some(ctx)) = (at, ctx::get()) {
        let network = || Some(gm::os::network_namespace());
        conn.connecting(&ctx.node, network, address, port);
    }
}

pub unsafe extern "system" fn connect(
    s: SOCKET,
    name: *const SOCKADDR,
    len: i32,
    caller: *const ws::WSABUF,
    callee: *mut ws::WSABUF,
    sqos: *const ws::QOS,
    gqos: *const ws::QOS,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        let b = inside.body();
        if let Some(conn) = &b.conn {
            // SAFETY: the caller's address.
            unsafe { connecting(conn, name, len) };
        }
        // SAFETY: the caller's arguments, unchanged.
        lower(|code| unsafe {
            (b.lower.connect)(b.base, name, len, caller, callee, sqos, gqos, code)
        })
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

pub unsafe extern "system" fn listen(s: SOCKET, backlog: i32, errno: *mut i32) -> i32 {
    let call = || {
        let inside = enter(s)?;
        let b = inside.body();
        // SAFETY: the caller's arguments, unchanged.
        lower(|code| unsafe { (b.lower.listen)(b.base, backlog, code) })?;
        listening(b);
        Ok(())
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// Puts a listener into the node's registry.
fn listening(b: &Body) {
    let (Some(conn), Some(ctx)) = (&b.conn, ctx::get()) else {
        return;
    };
    conn.end().role.store(Role::Listener as u32, Relaxed);
    let mut entry = locked(&b.listener);
    if entry.is_some() {
        return;
    }
    let Some((address, port)) = base_name(b, false).ok().and_then(|a| split(&a)) else {
        return;
    };
    let v4_any = address == std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
    let v6_any = address == [0; 16];
    *entry = ctx
        .node
        .listen(&ListenAddress {
            address,
            port,
            netns: gm::os::network_namespace(),
            any_v4: v4_any || v6_any && !v6_only(b),
            any_v6: v6_any,
        })
        .ok();
}

fn v6_only(b: &Body) -> bool {
    let (mut value, mut len, mut code) = (0_u32, 4, 0);
    // SAFETY: an out-pointer to a local of the length given.
    let r = unsafe {
        (b.lower.get_sock_opt)(
            b.base,
            ws::IPPROTO_IPV6,
            ws::IPV6_V6ONLY,
            std::ptr::from_mut(&mut value).cast(),
            &mut len,
            &mut code,
        )
    };
    r != 0 || value & 0xff != 0
}

pub unsafe extern "system" fn accept(
    s: SOCKET,
    address: *mut SOCKADDR,
    len: *mut i32,
    condition: ws::LPCONDITIONPROC,
    data: usize,
    errno: *mut i32,
) -> SOCKET {
    let call = || {
        let inside = enter(s)?;
        let b = inside.body();
        let mut code = ws::WSAEINVAL;
        // SAFETY: the caller's arguments, unchanged; the condition function runs in this thread, as it must.
        let base = unsafe { (b.lower.accept)(b.base, address, len, condition, data, &mut code) };
        if base == ws::INVALID_SOCKET {
            return Err(code);
        }
        let new = take_in(Fresh {
            base,
            layer: b.layer,
            lower: b.lower,
            family: b.family,
            kind: b.kind,
            protocol: b.protocol,
            overlapped: b.overlapped,
            role: Role::Server,
            nonblocking: b.is_nonblocking(),
            keep_tcp: None,
        })?;
        crate::options::inherit(b, new.body());
        let s = carrier_or_close(&new)?;
        crate::events::inherit(&inside, &new, s);
        Ok(s)
    };
    match call() {
        Ok(s) => s,
        Err(code) => {
            // SAFETY: the caller's place for the code.
            unsafe { tell(code, errno) };
            ws::INVALID_SOCKET
        }
    }
}

pub unsafe extern "system" fn join_leaf(
    s: SOCKET,
    name: *const SOCKADDR,
    len: i32,
    caller: *const ws::WSABUF,
    callee: *mut ws::WSABUF,
    sqos: *const ws::QOS,
    gqos: *const ws::QOS,
    flags: u32,
    errno: *mut i32,
) -> SOCKET {
    let call = || {
        let inside = enter(s)?;
        let b = inside.body();
        let mut code = 0;
        // SAFETY: the caller's arguments, unchanged.
        let base = unsafe {
            (b.lower.join_leaf)(
                b.base, name, len, caller, callee, sqos, gqos, flags, &mut code,
            )
        };
        if base == ws::INVALID_SOCKET {
            Err(code)
        } else if base == b.base {
            Ok(s)
        } else {
            carrier_or_close(&take_in(Fresh {
                base,
                layer: b.layer,
                lower: b.lower,
                family: b.family,
                kind: b.kind,
                protocol: b.protocol,
                overlapped: b.overlapped,
                role: Role::Fresh,
                nonblocking: b.is_nonblocking(),
                keep_tcp: Some(Reason::Unsupported),
            })?)
        }
    };
    match call() {
        Ok(s) => s,
        Err(code) => {
            // SAFETY: the caller's place for the code.
            unsafe { tell(code, errno) };
            ws::INVALID_SOCKET
        }
    }
}

/// shutdown on a carried connection.
pub fn shut(inside: &Inside, how: i32) -> Result<(), Code> {
    let (Some(conn), Some(ctx)) = (inside.conn(), ctx::get()) else {
        return Ok(());
    };
    let read = how == ws::SD_RECEIVE || how == ws::SD_BOTH;
    let write = how == ws::SD_SEND || how == ws::SD_BOTH;
    // A peer that is gone is no news to shutdown: Winsock answers that all is well.
    match conn.shutdown(&ctx.node, &inside.socket(), read, write) {
        Err(Fault::NotConnected) => {
            // Both have shut already; what comes after says that this was done all the same.
            let read = if read { flag::READ_SHUT } else { 0 };
            let write = if write { flag::WRITE_SHUT } else { 0 };
            conn.end().set(read | write);
            Ok(())
        }
        Ok(()) | Err(Fault::Other(ws::WSAENOTCONN) | Fault::Pipe | Fault::Reset) => Ok(()),
        Err(f) => Err(code_of(f, false)),
    }
}

/// shutdown, whatever became of the connection.
pub fn shut_down(inside: &Inside, how: i32) -> Result<(), Code> {
    let known = (0..=2).contains(&how);
    if known && inside.engaged().is_some() {
        return shut(inside, how);
    }
    if known
        && inside
            .conn()
            .is_some_and(|c| c.end().role() != Role::Listener)
    {
        inside.hand_back(Reason::Shutdown);
    }
    let b = inside.body();
    // SAFETY: plain arguments.
    lower(|code| unsafe { (b.lower.shutdown)(b.base, how, code) })?;
    if how != ws::SD_RECEIVE {
        b.io.has_shut.store(true, Release);
    }
    Ok(())
}

pub unsafe extern "system" fn shutdown(s: SOCKET, how: i32, errno: *mut i32) -> i32 {
    let call = || {
        let inside = enter(s)?;
        if matches!(how, ws::SD_SEND | ws::SD_BOTH) && overlapped::shut_later(&inside, how) {
            return Ok(());
        }
        shut_down(&inside, how)
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

pub unsafe extern "system" fn close_socket(s: SOCKET, errno: *mut i32) -> i32 {
    let call = || {
        let inside = enter(s)?;
        let up = upcalls().ok_or(ws::WSANOTINITIALISED)?;
        if gm::os::raw::is_wine() && inside.has_twins() {
            // Wine ends what was begun by this handle, as if it had been the socket's last.
            overlapped::cancel_by(&inside, s);
        }
        let last = inside.drop_carrier(s);
        let result = if last { close_base(&inside) } else { Ok(()) };
        if inside.body().own {
            return result;
        }
        let mut code = 0;
        // SAFETY: the carrier that this call was made for.
        unsafe { (up.close_handle)(s, &mut code) };
        result
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// The last WSPCleanup: the socket ends, however many carriers it has. ws2_32 takes those back itself.
pub fn end_with_process(inside: &Inside) {
    inside.drop_all_carriers();
    let _ = close_base(inside);
}

/// Ends the connection as TCP would, and the base socket with it. Calls of other threads that wait inside give up.
fn close_base(inside: &Inside) -> Result<(), Code> {
    let b = inside.body();
    crate::events::forget(inside);
    overlapped::forget(inside);
    if let Some(ctx) = ctx::get() {
        if let Some(entry) = locked(&b.listener).take() {
            ctx.node.unlisten(entry);
        }
        if let Some(conn) = &b.conn {
            conn.leave(&ctx.node, &inside.socket(), || {
                conn.end().refs.store(0, Relaxed);
                true
            });
        }
    }
    let wake = b.conn.as_ref().is_some_and(Conn::is_engaged) && !inside.is_alone();
    if wake && let Some(fd) = b.fd() {
        // They sleep on a descriptor of their own, which the base socket's close does not end.
        let _ = fd.shutdown(true, true);
    }
    inside.bury();
    if b.own {
        slot::forget_own(b.base);
    }
    overlapped::cancel_all(inside);
    // SAFETY: our own base socket.
    let result = lower(|code| unsafe { (b.lower.close_socket)(b.base, code) });
    overlapped::drain(inside);
    result
}

pub unsafe extern "system" fn duplicate_socket(
    s: SOCKET,
    process: u32,
    info: *mut ws::WSAPROTOCOL_INFOW,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        // SAFETY: null or the caller's place for the entry.
        let info = unsafe { info.as_mut() }.ok_or(ws::WSAEFAULT)?;
        let b = inside.body();
        // SAFETY: always valid to call.
        if !b.own && process == unsafe { GetCurrentProcessId() } {
            *info = b.layer.info;
            info.dwServiceFlags2 = DUPLICATE_HERE;
            let context = inside.slot.context() as u64;
            info.dwServiceFlags3 = context as u32;
            info.dwServiceFlags4 = (context >> 32) as u32;
            inside.hold();
            return Ok(());
        }
        // Another process can't join a ring: back to TCP, and the lower provider's way.
        inside.hand_back(Reason::Handed);
        // SAFETY: the caller's place for the entry.
        lower(|code| unsafe { (b.lower.duplicate_socket)(b.base, process, info, code) })?;
        info.dwServiceFlags2 = DUPLICATE_THERE;
        info.dwCatalogEntryId = b.layer.info.dwCatalogEntryId;
        info.ProtocolChain = b.layer.info.ProtocolChain;
        info.ProviderId = b.layer.info.ProviderId;
        Ok(())
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// The other half of [`duplicate_socket`] within the process.
fn take_duplicate(info: &ws::WSAPROTOCOL_INFOW) -> Result<SOCKET, Code> {
    let context = u64::from(info.dwServiceFlags4) << 32 | u64::from(info.dwServiceFlags3);
    let inside = slot::by_context(context as usize).ok_or(ws::WSAEINVAL)?;
    let carrier = inside.give_carrier();
    // The announcement's own hold, now that there is a carrier (or there will be none).
    inside.release();
    carrier
}
