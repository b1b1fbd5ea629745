//! The WSC* functions: what installers use. Parameter checks and errors are those of Microsoft's ws2spi.h pages.
//!
//! There is one catalog, the 64-bit one: this DLL is for 64-bit prefixes, and the functions for the other catalog fail
//! with WSANO_RECOVERY, "failure when opening a Winsock catalog entry". Nothing here looks at LSP categories when a
//! provider is loaded; they are kept for those who ask. Name-space functions are the builtin's (`exports.def`).

use std::ptr;

use spi::catalog::Catalog;
use spi::registry::Key;
use spi::wide;
use windows_sys::Win32::Foundation::ERROR_CALL_NOT_IMPLEMENTED;
use windows_sys::Win32::Networking::WinSock::{
    SOCKET_ERROR, WSAEFAULT, WSAEINVAL, WSAEINVALIDPROVIDER, WSAENOBUFS, WSANO_RECOVERY,
    WSAPROTOCOL_INFOW, WSASERVICE_NOT_FOUND,
};
use windows_sys::core::GUID;

use crate::catalog;

const ENTRY_BYTES: usize = size_of::<WSAPROTOCOL_INFOW>();

/// `ProviderInfoLspCategories` and `ProviderInfoAudit`.
const LSP_CATEGORIES: i32 = 0;
const AUDIT: i32 = 1;

/// Categories that programs permit, one subkey per program.
const APP_IDS: &str = r"SYSTEM\CurrentControlSet\Services\WinSock2\Parameters\AppId_Catalog";
const APP_PATH: &str = "AppFullPath";
const APP_ARGS: &str = "AppArgs";
const APP_PERMITTED: &str = "PermittedLspCategories";

/// The value, or SOCKET_ERROR with the error in `*lpErrno`.
///
/// # Safety
/// `errno` is null or can be written to.
unsafe fn answer(errno: *mut i32, result: Result<i32, i32>) -> i32 {
    result.unwrap_or_else(|error| {
        if !errno.is_null() {
            // SAFETY: not null, by the caller.
            unsafe { *errno = error };
        }
        SOCKET_ERROR
    })
}

/// The installer's list; WSAEFAULT for a null one, WSAEINVAL for an empty one.
///
/// # Safety
/// `list` is null or points to `count` entries that outlive the result.
unsafe fn entries<'a, T>(list: *const T, count: u32) -> Result<&'a [T], i32> {
    if list.is_null() {
        return Err(WSAEFAULT);
    }
    if count == 0 {
        return Err(WSAEINVAL);
    }
    // SAFETY: not null; as long as the caller says.
    Ok(unsafe { std::slice::from_raw_parts(list, count as usize) })
}

/// A zero-terminated string.
///
/// # Safety
/// `at` is null or points to a string that ends with a zero.
unsafe fn string(at: *const u16) -> Result<String, i32> {
    /// What no path can exceed.
    const LONGEST: usize = 32_767;
    if at.is_null() {
        return Err(WSAEFAULT);
    }
    // SAFETY: read up to its zero and not beyond, by the caller's word.
    let len = (0..LONGEST)
        .take_while(|i| unsafe { *at.add(*i) } != 0)
        .count();
    // SAFETY: the characters just counted.
    Ok(wide::text(unsafe { std::slice::from_raw_parts(at, len) }))
}

/// A string of `len` characters.
///
/// # Safety
/// `at` is null or points to `len` characters.
unsafe fn counted(at: *const u16, len: u32) -> Result<String, i32> {
    // SAFETY: by the caller.
    unsafe { entries(at, len) }.map(wide::text)
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCEnumProtocols(
    protocols: *const i32,
    buffer: *mut WSAPROTOCOL_INFOW,
    bytes: *mut u32,
    errno: *mut i32,
) -> i32 {
    let catalog = catalog::fresh();
    // SAFETY: null, or a list that ends with a zero.
    let wanted = |p: i32| protocols.is_null() || unsafe { listed(protocols, p) };
    let found = catalog
        .entries
        .iter()
        .map(|e| e.info)
        .filter(|i| wanted(i.iProtocol));
    let found: Vec<_> = found.collect();
    let copy = || {
        // SAFETY: null or the caller's variable.
        let bytes = unsafe { bytes.as_mut() }.ok_or(WSAEFAULT)?;
        let needed = (found.len() * ENTRY_BYTES) as u32;
        if *bytes < needed || buffer.is_null() {
            *bytes = needed;
            return Err(WSAENOBUFS);
        }
        // SAFETY: the caller's buffer holds `*bytes` bytes, which is enough.
        unsafe { ptr::copy_nonoverlapping(found.as_ptr(), buffer, found.len()) };
        Ok(found.len() as i32)
    };
    // SAFETY: by the caller.
    unsafe { answer(errno, copy()) }
}

/// Whether `protocol` is in a list that ends with a zero.
unsafe fn listed(list: *const i32, protocol: i32) -> bool {
    let mut at = list;
    loop {
        // SAFETY: not beyond the zero, by the caller.
        match unsafe { *at } {
            0 => return false,
            p if p == protocol => return true,
            // SAFETY: the zero lies further on.
            _ => at = unsafe { at.add(1) },
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCInstallProvider(
    provider: *const GUID,
    path: *const u16,
    infos: *const WSAPROTOCOL_INFOW,
    count: u32,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the installer's own arguments.
    unsafe { with_entries(provider, path, infos, count, errno, Catalog::install) }
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCUpdateProvider(
    provider: *const GUID,
    path: *const u16,
    infos: *const WSAPROTOCOL_INFOW,
    count: u32,
    errno: *mut i32,
) -> i32 {
    // SAFETY: the installer's own arguments.
    unsafe { with_entries(provider, path, infos, count, errno, Catalog::update) }
}

type Change = fn(&mut Catalog, &GUID, &str, &[WSAPROTOCOL_INFOW]) -> Result<(), i32>;

/// # Safety
/// As for WSCInstallProvider.
unsafe fn with_entries(
    provider: *const GUID,
    path: *const u16,
    infos: *const WSAPROTOCOL_INFOW,
    count: u32,
    errno: *mut i32,
    change: Change,
) -> i32 {
    let changed = || {
        // SAFETY: by the caller.
        let (provider, path, infos) = unsafe {
            (
                provider.as_ref().ok_or(WSAEFAULT)?,
                string(path)?,
                entries(infos, count)?,
            )
        };
        catalog::change(|c| change(c, provider, &path, infos))
    };
    // SAFETY: by the caller.
    unsafe { answer(errno, changed().map(|()| 0)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCDeinstallProvider(provider: *const GUID, errno: *mut i32) -> i32 {
    let remove = || {
        // SAFETY: null or the installer's GUID.
        let provider = unsafe { provider.as_ref() }.ok_or(WSAEFAULT)?;
        catalog::change(|c| c.remove(provider))
    };
    // SAFETY: by the caller.
    unsafe { answer(errno, remove().map(|()| 0)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCGetProviderPath(
    provider: *const GUID,
    path: *mut u16,
    len: *mut i32,
    errno: *mut i32,
) -> i32 {
    let get = || {
        // SAFETY: null or the caller's GUID and variable.
        let (provider, len) = unsafe { (provider.as_ref(), len.as_mut()) };
        let (Some(provider), Some(len), false) = (provider, len, path.is_null()) else {
            return Err(WSAEFAULT);
        };
        let catalog = catalog::fresh();
        let units = wide::wide(&catalog.of_provider(provider).ok_or(WSAEINVAL)?.path);
        let room = usize::try_from(*len).unwrap_or(0);
        *len = units.len() as i32;
        if room < units.len() {
            return Err(WSAEFAULT);
        }
        // SAFETY: the caller's buffer holds `room` characters.
        unsafe { ptr::copy_nonoverlapping(units.as_ptr(), path, units.len()) };
        Ok(0)
    };
    // SAFETY: by the caller.
    unsafe { answer(errno, get()) }
}

/// The only one of them that returns its error itself.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCWriteProviderOrder(ids: *const u32, count: u32) -> i32 {
    // SAFETY: the caller's list.
    match unsafe { entries(ids, count) } {
        Ok(ids) => catalog::change(|c| c.order(ids)).err().unwrap_or(0),
        Err(_) => WSAEINVAL,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCGetProviderInfo(
    provider: *const GUID,
    kind: i32,
    info: *mut u8,
    size: *mut usize,
    flags: u32,
    errno: *mut i32,
) -> i32 {
    let get = || {
        // SAFETY: null or the caller's GUID and variable.
        let (provider, size) = unsafe { (provider.as_ref(), size.as_mut()) };
        let (Some(provider), Some(size)) = (provider, size) else {
            return Err(WSAEFAULT);
        };
        check_kind(kind, flags)?;
        let room = std::mem::replace(size, size_of::<u32>());
        if info.is_null() || room < size_of::<u32>() {
            return Err(WSAEFAULT);
        }
        let catalog = catalog::fresh();
        let entry = catalog.of_provider(provider).ok_or(WSAEINVALIDPROVIDER)?;
        // SAFETY: the caller's buffer holds four bytes at least; it need not be aligned.
        unsafe { info.cast::<u32>().write_unaligned(entry.categories) };
        Ok(0)
    };
    // SAFETY: by the caller.
    unsafe { answer(errno, get()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCSetProviderInfo(
    provider: *const GUID,
    kind: i32,
    info: *const u8,
    size: usize,
    flags: u32,
    errno: *mut i32,
) -> i32 {
    let set = || {
        // SAFETY: null or the installer's GUID.
        let provider = unsafe { provider.as_ref() }.ok_or(WSAEFAULT)?;
        check_kind(kind, flags)?;
        if info.is_null() {
            return Err(WSAEFAULT);
        }
        if size != size_of::<u32>() {
            return Err(WSAEINVAL);
        }
        // SAFETY: four bytes of the installer's; they need not be aligned.
        let categories = unsafe { info.cast::<u32>().read_unaligned() };
        catalog::change(|c| c.set_categories(provider, categories))
    };
    // SAFETY: by the caller.
    unsafe { answer(errno, set().map(|()| 0)) }
}

fn check_kind(kind: i32, flags: u32) -> Result<(), i32> {
    match (kind, flags) {
        (LSP_CATEGORIES, 0) => Ok(()),
        (AUDIT, _) => Err(ERROR_CALL_NOT_IMPLEMENTED as i32),
        _ => Err(WSAEINVAL),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCSetApplicationCategory(
    path: *const u16,
    path_len: u32,
    extra: *const u16,
    extra_len: u32,
    permitted: u32,
    previous: *mut u32,
    errno: *mut i32,
) -> i32 {
    let set = || {
        // SAFETY: the caller's strings, of the lengths that it says.
        let (path, args) = unsafe { app(path, path_len, extra, extra_len)? };
        let key = Key::create_machine(APP_IDS).map_err(|_| WSANO_RECOVERY)?;
        let name = app_key(&key, &path, &args);
        let name = name.unwrap_or_else(|free| free);
        let write = || {
            let app = key.create(&name)?;
            let before = app.get_u32(APP_PERMITTED).unwrap_or(0);
            app.set_text(APP_PATH, &path)?;
            app.set_text(APP_ARGS, &args)?;
            // Called twice for one program, the categories add up: documented.
            app.set_u32(APP_PERMITTED, before | permitted)?;
            std::io::Result::Ok(before)
        };
        let before = write().map_err(|_| WSANO_RECOVERY)?;
        // SAFETY: null or the caller's variable.
        if let Some(previous) = unsafe { previous.as_mut() } {
            *previous = before;
        }
        Ok(0)
    };
    // SAFETY: by the caller.
    unsafe { answer(errno, set()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCGetApplicationCategory(
    path: *const u16,
    path_len: u32,
    extra: *const u16,
    extra_len: u32,
    permitted: *mut u32,
    errno: *mut i32,
) -> i32 {
    let get = || {
        // SAFETY: the caller's strings, of the lengths that it says.
        let (path, args) = unsafe { app(path, path_len, extra, extra_len)? };
        // SAFETY: null or the caller's variable.
        let permitted = unsafe { permitted.as_mut() }.ok_or(WSAEFAULT)?;
        let key = Key::open_machine(APP_IDS).map_err(|_| WSASERVICE_NOT_FOUND)?;
        let name = app_key(&key, &path, &args).map_err(|_| WSASERVICE_NOT_FOUND)?;
        let app = key.open(&name).map_err(|_| WSANO_RECOVERY)?;
        *permitted = app.get_u32(APP_PERMITTED).ok_or(WSANO_RECOVERY)?;
        Ok(0)
    };
    // SAFETY: by the caller.
    unsafe { answer(errno, get()) }
}

/// A program's expanded path and its arguments, which are often not given.
///
/// # Safety
/// Each pointer is null or points to as many characters as is said.
unsafe fn app(
    path: *const u16,
    path_len: u32,
    extra: *const u16,
    extra_len: u32,
) -> Result<(String, String), i32> {
    // SAFETY: by the caller.
    let path = unsafe { counted(path, path_len)? };
    let args = match extra.is_null() {
        true => String::new(),
        // SAFETY: by the caller.
        false => unsafe { counted(extra, extra_len)? },
    };
    Ok((wide::text(&wide::expand(&path)), args))
}

/// The subkey of a program: eight hexadecimal digits, a hash of path and arguments. `Err` is the name that is free for it.
fn app_key(key: &Key, path: &str, args: &str) -> Result<String, String> {
    let bytes = path
        .bytes()
        .map(|b| b.to_ascii_lowercase())
        .chain([0])
        .chain(args.bytes());
    // FNV-1a. Two programs with one hash stand side by side.
    let mut hash = bytes.fold(0x811c_9dc5_u32, |h, b| {
        (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
    });
    loop {
        let name = format!("{hash:08X}");
        let Ok(app) = key.open(&name) else {
            return Err(name);
        };
        let same_path = app
            .get_text(APP_PATH)
            .is_some_and(|p| p.eq_ignore_ascii_case(path));
        if same_path && app.get_text(APP_ARGS).unwrap_or_default() == args {
            return Ok(name);
        }
        hash = hash.wrapping_add(1);
    }
}

/// For the catalog of 32-bit programs, which is not there.
macro_rules! no_32_bit_catalog {
    ($($name:ident($($ty:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "system" fn $name($(_: $ty,)* errno: *mut i32) -> i32 {
            // SAFETY: by the caller.
            unsafe { answer(errno, Err(WSANO_RECOVERY)) }
        }
    )*};
}

no_32_bit_catalog! {
    WSCEnumProtocols32(*const i32, *mut WSAPROTOCOL_INFOW, *mut u32);
    WSCDeinstallProvider32(*const GUID);
    WSCInstallProvider64_32(*const GUID, *const u16, *const WSAPROTOCOL_INFOW, u32);
    WSCInstallProviderAndChains64_32(*const GUID, *const u16, *const u16, *const u16, u32, *const WSAPROTOCOL_INFOW, u32, *mut u32);
    WSCGetProviderPath32(*const GUID, *mut u16, *mut i32);
    WSCUpdateProvider32(*const GUID, *const u16, *const WSAPROTOCOL_INFOW, u32);
    WSCGetProviderInfo32(*const GUID, i32, *mut u8, *mut usize, u32);
    WSCSetProviderInfo32(*const GUID, i32, *const u8, usize, u32);
}

#[unsafe(no_mangle)]
pub unsafe extern "system" fn WSCWriteProviderOrder32(_ids: *const u32, _count: u32) -> i32 {
    WSANO_RECOVERY
}
