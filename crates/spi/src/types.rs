//! What mswsock.h and ws2spi.h define and windows-sys lacks, and the shape checks on what it has.

use windows_sys::Win32::Networking::WinSock::{
    FD_SET, TIMEVAL, WSAPROTOCOL_INFOW, WSPPROC_TABLE, WSPUPCALLTABLE,
};

pub use windows_sys::Win32::Networking::WinSock::{
    SIO_BASE_HANDLE, SIO_BSP_HANDLE, SIO_BSP_HANDLE_POLL, SIO_BSP_HANDLE_SELECT, SIO_EXT_POLL,
    SIO_EXT_SELECT, SIO_EXT_SENDMSG, SIO_QUERY_TARGET_PNP_HANDLE, WSAPOLLDATA, WSASENDMSG,
};

/// `ProtocolChain.ChainLen` of the three kinds of catalog entry; a chain has more than [`BASE_PROTOCOL`].
pub const LAYERED_PROTOCOL: i32 = 0;
pub const BASE_PROTOCOL: i32 = 1;

/// Entries that a chain can hold.
pub const MAX_CHAIN: usize = 7;

/// Winsock version 2.2 as `WSPStartup` and `WSPDATA` have it.
pub const VERSION_2_2: u16 = 0x0202;

/// Entries in a provider's table: none of them may be null.
pub const PROC_COUNT: usize = 30;

/// Input and output of `SIO_EXT_SELECT`: the arguments of the `select` that ws2_32 passes down, and its result.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WSASELECTDATA {
    pub result: i32,
    pub nfds: i32,
    pub readfds: *mut FD_SET,
    pub writefds: *mut FD_SET,
    pub exceptfds: *mut FD_SET,
    pub timeout: *const TIMEVAL,
}

const _: () = assert!(size_of::<WSAPROTOCOL_INFOW>() == 628);
const _: () = assert!(size_of::<WSPPROC_TABLE>() == PROC_COUNT * size_of::<usize>());
const _: () = assert!(size_of::<WSPUPCALLTABLE>() == 15 * size_of::<usize>());

/// The table as addresses, in table order; zero is a missing entry.
pub fn addresses(table: &WSPPROC_TABLE) -> [usize; PROC_COUNT] {
    // SAFETY: thirty `Option<fn>` of pointer size and nothing else (asserted above); every bit pattern is a `usize`.
    unsafe { std::mem::transmute_copy(table) }
}

/// Whether all thirty entries are there, as ws2_32 demands (WSAEINVALIDPROCTABLE otherwise).
pub fn complete(table: &WSPPROC_TABLE) -> bool {
    addresses(table).iter().all(|entry| *entry != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_incomplete() {
        assert!(!complete(&WSPPROC_TABLE::default()));
    }

    #[test]
    fn ioctl_codes_are_those_of_mswsock_h() {
        let codes = [
            SIO_BSP_HANDLE,
            SIO_BSP_HANDLE_SELECT,
            SIO_BSP_HANDLE_POLL,
            SIO_BASE_HANDLE,
        ];
        assert_eq!(codes, [0x4800_001B, 0x4800_001C, 0x4800_001D, 0x4800_0022]);
        let codes = [SIO_EXT_SELECT, SIO_EXT_POLL, SIO_EXT_SENDMSG];
        assert_eq!(codes, [0xC800_001E, 0xC800_001F, 0xC800_0020]);
    }
}
