//! Addresses of sockets, and the calls of the table that have nothing to do with sockets.

use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKADDR, SOCKADDR_STORAGE, SOCKET};
use windows_sys::core::{BOOL, PCWSTR, PWSTR};

use crate::answer::{Code, done, lower, tell};
use crate::provider::{self, Lower};
use crate::slot::{Body, enter};

/// The address of a base socket's own end, or its peer's.
pub fn base_name(b: &Body, peer: bool) -> Result<SOCKADDR_STORAGE, Code> {
    let mut address = SOCKADDR_STORAGE::default();
    let mut len = size_of_val(&address) as i32;
    let call = if peer {
        b.lower.get_peer_name
    } else {
        b.lower.get_sock_name
    };
    // SAFETY: out-pointers to locals of the sizes given.
    lower(|code| unsafe {
        call(
            b.base,
            std::ptr::from_mut(&mut address).cast(),
            &mut len,
            code,
        )
    })?;
    Ok(address)
}

/// An address as the node's registry has it: 16 bytes (IPv4 mapped) and the port.
pub fn split(address: &SOCKADDR_STORAGE) -> Option<([u8; 16], u16)> {
    // SAFETY: a storage is as large and as aligned as any address; the family says which it is.
    unsafe {
        split_raw(
            std::ptr::from_ref(address).cast(),
            size_of_val(address) as i32,
        )
    }
}

/// # Safety
/// `address` is null or readable for `len` bytes.
pub unsafe fn split_raw(address: *const SOCKADDR, len: i32) -> Option<([u8; 16], u16)> {
    let len = usize::try_from(len).ok()?;
    if address.is_null() || len < size_of::<ws::SOCKADDR_IN>() {
        return None;
    }
    // SAFETY: by the caller; each read is of a structure that fits `len`.
    unsafe {
        match address.cast::<u16>().read_unaligned() {
            ws::AF_INET => {
                let a = address.cast::<ws::SOCKADDR_IN>().read_unaligned();
                let v4 = std::net::Ipv4Addr::from(u32::from_be(a.sin_addr.S_un.S_addr));
                Some((v4.to_ipv6_mapped().octets(), u16::from_be(a.sin_port)))
            }
            ws::AF_INET6 if len >= size_of::<ws::SOCKADDR_IN6>() => {
                let a = address.cast::<ws::SOCKADDR_IN6>().read_unaligned();
                Some((a.sin6_addr.u.Byte, u16::from_be(a.sin6_port)))
            }
            _ => None,
        }
    }
}

pub unsafe extern "system" fn get_sock_name(
    s: SOCKET,
    name: *mut SOCKADDR,
    len: *mut i32,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the caller's arguments, unchanged.
    unsafe {
        on_base(s, errno, |b, code| {
            (b.lower.get_sock_name)(b.base, name, len, code)
        })
    }
}

pub unsafe extern "system" fn get_peer_name(
    s: SOCKET,
    name: *mut SOCKADDR,
    len: *mut i32,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the caller's arguments, unchanged.
    unsafe {
        on_base(s, errno, |b, code| {
            (b.lower.get_peer_name)(b.base, name, len, code)
        })
    }
}

/// A call that is the base socket's.
///
/// # Safety
/// `errno` is the caller's place for the code, or null.
unsafe fn on_base(s: SOCKET, errno: *mut i32, call: impl FnOnce(&Body, *mut i32) -> i32) -> i32 {
    let call = || {
        let inside = enter(s)?;
        lower(|code| call(inside.body(), code))
    };
    // SAFETY: by the caller.
    unsafe { done(call(), errno) }
}

/// A translation between addresses and text, by the provider below the caller's entry, which sees its own entry.
///
/// # Safety
/// `info` is null or the caller's entry, `errno` the caller's place for the code, or null.
unsafe fn translated(
    info: *const ws::WSAPROTOCOL_INFOW,
    errno: *mut i32,
    call: impl FnOnce(&Lower, *const ws::WSAPROTOCOL_INFOW, *mut i32) -> i32,
) -> i32 {
    // SAFETY: by the caller.
    let id = unsafe { info.as_ref() }.map_or(0, |i| i.dwCatalogEntryId);
    let layer = provider::layer(id, 0, 0, 0);
    let below = layer.map_or(info, |l| &raw const l.lower_info);
    let call = || {
        let p = provider::any_lower(layer.map_or(0, |l| l.info.dwCatalogEntryId))?;
        lower(|code| call(p, below, code))
    };
    // SAFETY: by the caller.
    unsafe { done(call(), errno) }
}

pub unsafe extern "system" fn address_to_string(
    address: *const SOCKADDR,
    len: u32,
    info: *const ws::WSAPROTOCOL_INFOW,
    text: PWSTR,
    text_len: *mut u32,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the caller's arguments; the entry is ours or the caller's.
    unsafe {
        translated(info, errno, |p, info, code| {
            (p.address_to_string)(address, len, info, text, text_len, code)
        })
    }
}

pub unsafe extern "system" fn string_to_address(
    text: PCWSTR,
    family: i32,
    info: *const ws::WSAPROTOCOL_INFOW,
    address: *mut SOCKADDR,
    len: *mut i32,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the caller's arguments; the entry is ours or the caller's.
    unsafe {
        translated(info, errno, |p, info, code| {
            (p.string_to_address)(text, family, info, address, len, code)
        })
    }
}

pub unsafe extern "system" fn get_qos_by_name(
    s: SOCKET,
    name: *const ws::WSABUF,
    qos: *mut ws::QOS,
    errno: *mut i32,
) -> BOOL {
    match enter(s) {
        Ok(inside) => {
            let b = inside.body();
            // SAFETY: the caller's arguments, unchanged.
            unsafe { (b.lower.get_qos_by_name)(b.base, name, qos, errno) }
        }
        Err(code) => {
            // SAFETY: the caller's place for the code.
            unsafe { tell(code, errno) };
            0
        }
    }
}
