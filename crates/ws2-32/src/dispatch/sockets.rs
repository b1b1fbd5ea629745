//! Calls that make sockets: which provider a new one belongs to.

use std::ptr;
use std::sync::atomic::Ordering::Release;

use windows_sys::Win32::Networking::WinSock::*;

use super::{ask, entry, fail, failed, layered, protocols, spi_call};
use crate::catalog::{self, Entry};
use crate::provider::{self, HANDLES, Provider};
use crate::{base, builtin, choose, complete, gate, startup};

/// `af`, `type` or `protocol` of WSASocket that are to be taken from the protocol info.
const FROM_INFO: i32 = FROM_PROTOCOL_INFO;

/// A socket fresh from the builtin. A program may have closed a provider's IFS handle behind our back (CloseHandle), and the
/// number come back.
fn fresh(s: SOCKET) -> SOCKET {
    HANDLES.clear(s);
    s
}

#[unsafe(no_mangle)]
unsafe extern "system" fn socket(af: i32, kind: i32, protocol: i32) -> SOCKET {
    match serving((af, kind, protocol), None) {
        Serving::Builtin => {
            // SAFETY: plain values.
            fresh(unsafe { builtin::socket(af, kind, protocol) })
        }
        Serving::Layered(p, info) => {
            match ask!(p, lpWSPSocket(af, kind, protocol, &*info, 0, overlapped_by_default()) -> SOCKET)
            {
                INVALID_SOCKET if gate::has_failed() => {
                    // SAFETY: plain values.
                    fresh(unsafe { builtin::socket(af, kind, protocol) })
                }
                s => s,
            }
        }
        Serving::Nobody(error) => refuse(error),
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSASocketW(
    af: i32,
    kind: i32,
    protocol: i32,
    info: *const WSAPROTOCOL_INFOW,
    group: u32,
    flags: u32,
) -> SOCKET {
    // SAFETY: null or the program's own.
    let given = unsafe { info.as_ref() };
    let (merged, counts) = merge((af, kind, protocol), given);
    match serving(merged, given.filter(|_| counts)) {
        Serving::Builtin => {
            // A provider may hand on the info of a socket that the base provider duplicated.
            let duplicated = given.and_then(base::duplicated);
            let info = duplicated.as_ref().map_or(info, ptr::from_ref);
            // SAFETY: the program's own arguments, or a structure that lives through the call.
            fresh(unsafe { builtin::WSASocketW(af, kind, protocol, info, group, flags) })
        }
        Serving::Layered(p, entry) => {
            // The program's own copy of the entry may carry a duplicated socket.
            if given.is_some() {
                provider::DUPLICATED.store(true, Release);
            }
            let entry = given.filter(|_| counts).unwrap_or(&entry);
            let (af, kind, protocol) = merged;
            match ask!(p, lpWSPSocket(af, kind, protocol, entry, group, flags) -> SOCKET) {
                INVALID_SOCKET if gate::has_failed() && entry.dwProviderReserved == 0 => {
                    // SAFETY: plain values: the base provider that is there for these.
                    fresh(unsafe {
                        builtin::WSASocketW(af, kind, protocol, ptr::null(), group, flags)
                    })
                }
                s => s,
            }
        }
        Serving::Nobody(error) => refuse(error),
    }
}

/// The numbers that count: those of the call, and the structure's where the call has none. Does the structure still name the
/// provider? If it is of a provider's entry and the numbers are others, the first entry for these serves, unless it carries a
/// duplicate.
fn merge(
    (af, kind, protocol): (i32, i32, i32),
    given: Option<&WSAPROTOCOL_INFOW>,
) -> ((i32, i32, i32), bool) {
    let Some(info) = given else {
        return ((af, kind, protocol), false);
    };
    let or = |value, from| match value {
        0 | FROM_INFO => from,
        value => value,
    };
    let triple = |i: &WSAPROTOCOL_INFOW| (i.iAddressFamily, i.iSocketType, i.iProtocol);
    let own = triple(info);
    let merged = (or(af, own.0), or(kind, own.1), or(protocol, own.2));
    let marks = |i: &WSAPROTOCOL_INFOW| {
        let flags = (i.dwServiceFlags2, i.dwServiceFlags3, i.dwServiceFlags4);
        (flags, i.dwProviderReserved)
    };
    let catalog = catalog::current();
    let entry = catalog.entries.iter().find(|e| {
        e.info.dwCatalogEntryId == info.dwCatalogEntryId && marks(&e.info) == marks(info)
    });
    let serves = entry.is_none_or(|e| !choose::is_layered(info) || merged == triple(&e.info));
    (merged, serves)
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSASocketA(
    af: i32,
    kind: i32,
    protocol: i32,
    info: *const WSAPROTOCOL_INFOA,
    group: u32,
    flags: u32,
) -> SOCKET {
    // SAFETY: null or the program's own.
    match unsafe { info.as_ref() } {
        // SAFETY: the program's own arguments.
        None => unsafe { WSASocketW(af, kind, protocol, ptr::null(), group, flags) },
        Some(info) => {
            let info = protocols::to_wide(info);
            // SAFETY: as above, and a structure that lives through the call.
            unsafe { WSASocketW(af, kind, protocol, &info, group, flags) }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn accept(s: SOCKET, name: *mut SOCKADDR, len: *mut i32) -> SOCKET {
    match layered(s) {
        // SAFETY: the program's own arguments.
        None => fresh(unsafe { builtin::accept(s, name, len) }),
        Some(p) => ask!(p, lpWSPAccept(s, name, len, None, 0) -> SOCKET),
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSAAccept(
    s: SOCKET,
    name: *mut SOCKADDR,
    len: *mut i32,
    condition: LPCONDITIONPROC,
    data: usize,
) -> SOCKET {
    match layered(s) {
        // SAFETY: the program's own arguments.
        None => fresh(unsafe { builtin::WSAAccept(s, name, len, condition, data) }),
        Some(p) => ask!(p, lpWSPAccept(s, name, len, condition, data) -> SOCKET),
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn closesocket(s: SOCKET) -> i32 {
    match layered(s) {
        // SAFETY: a plain value.
        None => unsafe { builtin::closesocket(s) },
        Some(p) => spi_call(SOCKET_ERROR, |errno| {
            complete::within_close(s, || entry!(p, lpWSPCloseSocket(s, errno) -> i32))
        }),
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSADuplicateSocketA(
    s: SOCKET,
    process: u32,
    info: *mut WSAPROTOCOL_INFOA,
) -> i32 {
    let Some(p) = layered(s) else {
        // SAFETY: the program's own arguments.
        return unsafe { builtin::WSADuplicateSocketA(s, process, info) };
    };
    let mut wide = WSAPROTOCOL_INFOW::default();
    let result = ask!(p, lpWSPDuplicateSocket(s, process, &mut wide) -> i32);
    // SAFETY: null or the program's own.
    match unsafe { info.as_mut() } {
        Some(info) if result == 0 => *info = protocols::to_ansi(&wide),
        Some(_) => {}
        None => return refuse_i32(WSAEFAULT),
    }
    result
}

fn refuse(error: i32) -> SOCKET {
    fail(error);
    INVALID_SOCKET
}

fn refuse_i32(error: i32) -> i32 {
    fail(error);
    SOCKET_ERROR
}

enum Serving {
    Builtin,
    Layered(&'static Provider, Box<WSAPROTOCOL_INFOW>),
    Nobody(i32),
}

fn serving(triple: (i32, i32, i32), given: Option<&WSAPROTOCOL_INFOW>) -> Serving {
    if !startup::is_on() {
        return Serving::Builtin; // which refuses it
    }
    let catalog = catalog::current();
    if !catalog.entries.iter().any(|e| choose::is_layered(&e.info)) {
        return Serving::Builtin;
    }
    let by_id = |id| {
        catalog
            .entries
            .iter()
            .find(|e| e.info.dwCatalogEntryId == id)
    };
    let entry = match given {
        Some(info) => by_id(info.dwCatalogEntryId).filter(|_| choose::is_layered(info)),
        None => concrete(triple)
            .and_then(|triple| choose::first(catalog.entries.iter().map(|e| &e.info), triple))
            .and_then(|found| by_id(found.dwCatalogEntryId)),
    };
    match entry {
        Some(entry) if choose::is_layered(&entry.info) => started_or_plain(entry, given),
        _ => Serving::Builtin,
    }
}

/// Windows fails the call with WSAEPROVIDERFAILEDINIT if a provider can't be started (DLL missing, wrong bitness, WSPStartup
/// refuses). Here the program gets the plain socket that it would have got without the provider: a broken installation must
/// break no program. A socket duplicated by such a provider exists nowhere else, so that one is refused.
fn started_or_plain(entry: &Entry, given: Option<&WSAPROTOCOL_INFOW>) -> Serving {
    match provider::start(entry) {
        Ok(p) => Serving::Layered(p, Box::new(entry.info)),
        Err(error) if given.is_some_and(|info| info.dwProviderReserved != 0) => {
            Serving::Nobody(error)
        }
        Err(_) => Serving::Builtin,
    }
}

/// Zero as family or type means what the builtin takes it for: a socket of its own tells. Rare enough to make one.
fn concrete((af, kind, protocol): (i32, i32, i32)) -> Option<(i32, i32, i32)> {
    if af != 0 && kind != 0 {
        return Some((af, kind, protocol));
    }
    let mut info = WSAPROTOCOL_INFOW::default();
    let mut len = size_of::<WSAPROTOCOL_INFOW>() as i32;
    // SAFETY: plain values, and a structure as long as its length says.
    unsafe {
        let s = builtin::WSASocketW(af, kind, protocol, ptr::null(), 0, 0);
        let known = s != INVALID_SOCKET
            && builtin::getsockopt(
                s,
                SOL_SOCKET,
                SO_PROTOCOL_INFOW,
                (&raw mut info).cast(),
                &mut len,
            ) == 0;
        builtin::closesocket(s);
        known.then_some((info.iAddressFamily, info.iSocketType, info.iProtocol))
    }
}

/// `socket` makes overlapped sockets unless the thread asked for others (SO_OPENTYPE, asked of no socket).
fn overlapped_by_default() -> u32 {
    let (mut kind, mut len) = (0u32, 4);
    // SAFETY: four bytes, as the length says.
    let asked = unsafe {
        builtin::getsockopt(
            INVALID_SOCKET,
            SOL_SOCKET,
            SO_OPENTYPE,
            (&raw mut kind).cast(),
            &mut len,
        )
    };
    if asked == 0 && kind != 0 {
        0
    } else {
        WSA_FLAG_OVERLAPPED
    }
}
