//! The next lower provider: finding its DLL, loading it, starting it; and the catalog as providers ask for it.
//!
//! Only upcalls and documented WSC* calls, so this works the same over mswsock.dll, over another layered provider, and
//! over the base provider for Wine.

use std::ffi::c_void;
use std::ptr;

use windows_sys::Win32::Foundation::{FreeLibrary, HMODULE};
use windows_sys::Win32::Networking::WinSock::{
    LPWSPSTARTUP, WSAEFAULT, WSAEINVALIDPROCTABLE, WSAEINVALIDPROVIDER, WSAENOBUFS,
    WSAEPROVIDERFAILEDINIT, WSAPROTOCOL_INFOW, WSAVERNOTSUPPORTED, WSCEnumProtocols,
    WSCGetProviderPath, WSPDATA, WSPPROC_TABLE, WSPUPCALLTABLE,
};
use windows_sys::Win32::System::LibraryLoader::{
    GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
    GetModuleHandleExW, GetProcAddress, LoadLibraryW,
};
use windows_sys::core::GUID;

use crate::types::{VERSION_2_2, complete};
use crate::wide::{expand, text};

/// A provider's DLL; the reference goes with the value.
pub struct Module(HMODULE);

// SAFETY: a module handle belongs to the process, not to a thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads the DLL by the usual rules of path resolution; `path` ends with a zero.
    pub fn load(path: &[u16]) -> Result<Self, i32> {
        if path.last() != Some(&0) {
            return Err(WSAEFAULT);
        }
        // SAFETY: `path` ends with a zero.
        let module = unsafe { LoadLibraryW(path.as_ptr()) };
        if module.is_null() {
            return Err(WSAEPROVIDERFAILEDINIT);
        }
        Ok(Self(module))
    }

    /// Calls WSPStartup for version 2.2. The error is a WSA code, as WSPStartup returns it.
    pub fn startup(
        &self,
        info: &WSAPROTOCOL_INFOW,
        upcalls: &WSPUPCALLTABLE,
        data: &mut WSPDATA,
        table: &mut WSPPROC_TABLE,
    ) -> Result<(), i32> {
        type Found = Option<unsafe extern "system" fn() -> isize>;
        // SAFETY: a loaded module, and a name that ends with a zero.
        let found = unsafe { GetProcAddress(self.0, c"WSPStartup".as_ptr().cast()) };
        // SAFETY: ws2spi.h gives WSPStartup this signature, in every DLL that exports it; `None` stays `None`.
        let startup = unsafe { std::mem::transmute::<Found, LPWSPSTARTUP>(found) };
        let Some(startup) = startup else {
            return Err(WSAEINVALIDPROVIDER);
        };
        // The header declares the data as output; windows-sys calls it const.
        let data = ptr::from_mut(data).cast_const();
        // SAFETY: all pointers are to living structures of the right types, and the upcalls go by value.
        match unsafe { startup(VERSION_2_2, data, info, *upcalls, table) } {
            0 => Ok(()),
            error => Err(error),
        }
    }

    /// Starts the provider and checks what it gives: all thirty entries, version 2.2. The error is a WSA code.
    pub fn start(
        &self,
        info: &WSAPROTOCOL_INFOW,
        upcalls: &WSPUPCALLTABLE,
    ) -> Result<WSPPROC_TABLE, i32> {
        let mut table = WSPPROC_TABLE::default();
        let mut data = WSPDATA::default();
        self.startup(info, upcalls, &mut data, &mut table)?;
        let error = match (complete(&table), data.wVersion) {
            (false, _) => WSAEINVALIDPROCTABLE,
            (true, VERSION_2_2) => return Ok(table),
            (true, _) => WSAVERNOTSUPPORTED,
        };
        cleanup(&table);
        Err(error)
    }

    /// Whether `address` lies in this DLL.
    pub fn holds(&self, address: *const c_void) -> bool {
        const BY_ADDRESS: u32 =
            GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
        let mut module = ptr::null_mut();
        // SAFETY: with this flag the "name" is any address; no reference is taken.
        let found = unsafe { GetModuleHandleExW(BY_ADDRESS, address.cast(), &mut module) };
        found != 0 && module == self.0
    }

    /// Keeps the DLL for the life of the process.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the reference that `load` took. Nobody who holds a pointer into the DLL lets its `Module` go.
        unsafe { FreeLibrary(self.0) };
    }
}

/// A lower provider that was started once. Its DLL stays loaded for the life of the process: a thread may still be on
/// its way out of a call into it when the last cleanup is done.
pub struct Lower {
    pub table: WSPPROC_TABLE,
}

impl Lower {
    /// Loads and starts `provider` for `info`, with the upcalls that we were started with. The error is a WSA code.
    pub fn start(
        provider: &GUID,
        info: &WSAPROTOCOL_INFOW,
        upcalls: &WSPUPCALLTABLE,
    ) -> Result<Self, i32> {
        let module = Module::load(&expand(&provider_path(provider, upcalls)?))?;
        let table = module.start(info, upcalls)?;
        module.keep();
        Ok(Self { table })
    }

    /// The one WSPCleanup that is due for the start.
    pub fn cleanup(&self) {
        cleanup(&self.table);
    }
}

fn cleanup(table: &WSPPROC_TABLE) {
    let mut errno = 0;
    if let Some(cleanup) = table.lpWSPCleanup {
        // SAFETY: the provider's own entry, called once for each start.
        unsafe { cleanup(&mut errno) };
    }
}

/// Every entry of the catalog, hidden ones included.
pub fn catalog() -> Result<Vec<WSAPROTOCOL_INFOW>, i32> {
    const ENTRY: usize = size_of::<WSAPROTOCOL_INFOW>();
    let mut room = 64;
    // The catalog may grow between two calls; it does not do so for long.
    for _ in 0..8 {
        let mut entries = vec![WSAPROTOCOL_INFOW::default(); room];
        let mut bytes = u32::try_from(room * ENTRY).map_err(|_| WSAENOBUFS)?;
        let mut errno = 0;
        let buffer = entries.as_mut_ptr();
        // SAFETY: the buffer is as long as said; null asks for every protocol.
        let count = unsafe { WSCEnumProtocols(ptr::null(), buffer, &mut bytes, &mut errno) };
        match usize::try_from(count) {
            Ok(count) => {
                entries.truncate(count);
                return Ok(entries);
            }
            Err(_) if errno == WSAENOBUFS => room = (bytes as usize / ENTRY + 1).max(room * 2),
            Err(_) => return Err(errno),
        }
    }
    Err(WSAENOBUFS)
}

/// A provider's DLL path, unexpanded: from ws2_32's upcall, or from WSCGetProviderPath without one.
pub fn provider_path(provider: &GUID, upcalls: &WSPUPCALLTABLE) -> Result<String, i32> {
    let get = upcalls.lpWPUGetProviderPath.unwrap_or(WSCGetProviderPath);
    let mut room = 260;
    for _ in 0..2 {
        let mut path = vec![0u16; room];
        let mut len = i32::try_from(room).map_err(|_| WSAEFAULT)?;
        let mut errno = 0;
        // SAFETY: the buffer holds `len` characters; the rest are living values of ours.
        let failed = unsafe { get(provider, path.as_mut_ptr(), &mut len, &mut errno) };
        if failed == 0 {
            return Ok(text(&path));
        }
        // WSAEFAULT with the length that it wants means a longer path.
        match usize::try_from(len) {
            Ok(wanted) if errno == WSAEFAULT && (room..32768).contains(&wanted) => {
                room = wanted + 1
            }
            _ => return Err(errno),
        }
    }
    Err(WSAEFAULT)
}
