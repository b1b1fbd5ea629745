//! WSAEnumProtocols out of the catalog, and protocol infos between ANSI and UTF-16.

use std::ptr;

use windows_sys::Win32::Globalization::{CP_ACP, MultiByteToWideChar, WideCharToMultiByte};
use windows_sys::Win32::Networking::WinSock::*;

use super::fail;
use crate::{builtin, catalog, choose};

#[unsafe(no_mangle)]
unsafe extern "system" fn WSAEnumProtocolsW(
    wanted: *const i32,
    list: *mut WSAPROTOCOL_INFOW,
    bytes: *mut u32,
) -> i32 {
    // SAFETY: the program's own arguments.
    match unsafe { offered(wanted) } {
        // SAFETY: as above.
        None => unsafe { builtin::WSAEnumProtocolsW(wanted, list, bytes) },
        // SAFETY: as above.
        Some(infos) => unsafe { copy_out(&infos, list, bytes) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSAEnumProtocolsA(
    wanted: *const i32,
    list: *mut WSAPROTOCOL_INFOA,
    bytes: *mut u32,
) -> i32 {
    // SAFETY: the program's own arguments.
    match unsafe { offered(wanted) } {
        // SAFETY: as above.
        None => unsafe { builtin::WSAEnumProtocolsA(wanted, list, bytes) },
        Some(infos) => {
            let infos: Vec<_> = infos.iter().map(to_ansi).collect();
            // SAFETY: as above.
            unsafe { copy_out(&infos, list, bytes) }
        }
    }
}

/// The visible entries, in catalog order; `None` if the catalog holds nothing that the builtin doesn't know.
///
/// # Safety
/// `wanted` is null or a list that ends with a zero.
unsafe fn offered(wanted: *const i32) -> Option<Vec<WSAPROTOCOL_INFOW>> {
    let catalog = catalog::current();
    if !catalog.entries.iter().any(|e| choose::is_layered(&e.info)) {
        return None;
    }
    let asked_for = |protocol| {
        wanted.is_null()
            || (0..)
                // SAFETY: by the caller; reading stops at the zero.
                .map(|i| unsafe { *wanted.add(i) })
                .take_while(|p| *p != 0)
                .any(|p| p == protocol)
    };
    let visible = |e: &&catalog::Entry| {
        e.info.ProtocolChain.ChainLen != 0
            && e.info.dwProviderFlags & PFL_HIDDEN == 0
            && asked_for(e.info.iProtocol)
    };
    Some(
        catalog
            .entries
            .iter()
            .filter(visible)
            .map(|e| e.info)
            .collect(),
    )
}

/// # Safety
/// `bytes` is null or valid, `list` is null or as long as `*bytes` says.
unsafe fn copy_out<T: Copy>(infos: &[T], list: *mut T, bytes: *mut u32) -> i32 {
    // SAFETY: by the caller.
    let Some(bytes) = (unsafe { bytes.as_mut() }) else {
        fail(WSAEFAULT);
        return SOCKET_ERROR;
    };
    let needed = size_of_val(infos) as u32;
    if list.is_null() || *bytes < needed {
        *bytes = needed;
        fail(WSAENOBUFS);
        return SOCKET_ERROR;
    }
    // SAFETY: by the caller, and checked to have room.
    unsafe { ptr::copy_nonoverlapping(infos.as_ptr(), list, infos.len()) };
    infos.len() as i32
}

/// The two forms differ in the name at their end only.
const COMMON: usize = std::mem::offset_of!(WSAPROTOCOL_INFOW, szProtocol);
const _: () = assert!(COMMON == std::mem::offset_of!(WSAPROTOCOL_INFOA, szProtocol));

pub fn to_ansi(info: &WSAPROTOCOL_INFOW) -> WSAPROTOCOL_INFOA {
    let mut out = WSAPROTOCOL_INFOA::default();
    let name = &info.szProtocol;
    // SAFETY: the common part of both, and arrays of the given lengths; the last byte stays zero.
    unsafe {
        ptr::copy_nonoverlapping(
            ptr::from_ref(info).cast::<u8>(),
            (&raw mut out).cast(),
            COMMON,
        );
        let room = out.szProtocol.len() as i32 - 1;
        WideCharToMultiByte(
            CP_ACP,
            0,
            name.as_ptr(),
            name.len() as i32,
            out.szProtocol.as_mut_ptr().cast(),
            room,
            ptr::null(),
            ptr::null_mut(),
        );
    }
    out
}

pub fn to_wide(info: &WSAPROTOCOL_INFOA) -> WSAPROTOCOL_INFOW {
    let mut out = WSAPROTOCOL_INFOW::default();
    let name = &info.szProtocol;
    // SAFETY: as above.
    unsafe {
        ptr::copy_nonoverlapping(
            ptr::from_ref(info).cast::<u8>(),
            (&raw mut out).cast(),
            COMMON,
        );
        let room = out.szProtocol.len() as i32 - 1;
        MultiByteToWideChar(
            CP_ACP,
            0,
            name.as_ptr().cast(),
            name.len() as i32,
            out.szProtocol.as_mut_ptr(),
            room,
        );
    }
    out
}
