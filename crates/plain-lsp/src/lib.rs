//! The fall-through provider: `plain_lsp.dll`, an IFS layered service provider that changes nothing.
//!
//! `inst_lsp` puts a copy of it into the system directory as `lsp.dll`, where every program finds it that has no
//! `lsp.dll` of its own beside it. It hands out the lower provider's handles (WPUModifyIFSHandle), so completion ports,
//! ReadFile and the rest work as without it. If the program is opted in ([`opt_in`]), it loads the real `lsp.dll` and
//! gives ws2_32 that one's table instead of its own.
//!
//! Rules:
//! 1. Whatever goes wrong with the real provider, the program runs on the fall-through.
//! 2. Which lower provider a socket belongs to is remembered when the socket is made. A handle that we did not make
//!    (inherited, or closed by CloseHandle and used again elsewhere) goes to the first lower provider, which knows best.
//! 3. No lock is held while a lower provider is called, except while one is started.

#![allow(unsafe_code)] // a provider's entries take their callers' pointers and call the lower provider's entries
#![cfg_attr(not(windows), allow(dead_code))] // elsewhere only the pure part is compiled, for its tests

#[cfg(windows)]
mod calls;
mod opt_in;
#[cfg(windows)]
mod provider;

#[cfg(windows)]
mod entry {
    use std::ptr;

    use spi::types::VERSION_2_2;
    use spi::wide;
    use windows_sys::Win32::Networking::WinSock::{
        WSAEFAULT, WSAPROTOCOL_INFOW, WSAVERNOTSUPPORTED, WSPDATA, WSPPROC_TABLE, WSPUPCALLTABLE,
    };

    use crate::{calls, opt_in, provider};

    /// The DLL's one export.
    ///
    /// # Safety
    /// As ws2spi.h documents: the structures are the caller's.
    #[unsafe(no_mangle)]
    pub unsafe extern "system" fn WSPStartup(
        version: u16,
        data: *mut WSPDATA,
        info: *const WSAPROTOCOL_INFOW,
        upcalls: WSPUPCALLTABLE,
        table: *mut WSPPROC_TABLE,
    ) -> i32 {
        let [major, minor] = version.to_le_bytes();
        if (major, minor) < (2, 2) {
            return WSAVERNOTSUPPORTED;
        }
        if data.is_null() || info.is_null() || table.is_null() {
            return WSAEFAULT;
        }
        // SAFETY: not null, and the caller's; read once, as the structure may lie in a buffer of its own alignment.
        let info = unsafe { info.read_unaligned() };
        let filled = match opt_in::real_provider(&info, &upcalls) {
            Some(real) => real,
            None => match provider::start(&info, &upcalls) {
                Ok(()) => calls::TABLE,
                Err(error) => return error,
            },
        };
        let mut about = WSPDATA {
            wVersion: VERSION_2_2,
            wHighVersion: VERSION_2_2,
            ..Default::default()
        };
        wide::fill(&mut about.szDescription, "Sockets-GM");
        // SAFETY: not null, and the caller's to be filled.
        unsafe {
            ptr::write(data, about);
            ptr::write(table, filled);
        }
        0
    }
}
