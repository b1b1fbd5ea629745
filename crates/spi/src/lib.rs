//! What the Winsock crates share: error table, catalog entries, chains, the lower provider, types that windows-sys lacks.
//!
//! Written to Microsoft's public SPI documentation (ws2spi.h, "Winsock Service Provider Interface"). Pure logic compiles
//! and is tested on every system; what calls Windows is `#[cfg(windows)]`: `lower` and `registry`.

#![allow(unsafe_code)] // reads structures out of registry bytes, and calls providers through their tables

pub mod catalog;
pub mod catalog_item;
pub mod chain;
pub mod errors;
pub mod ids;
#[cfg(windows)]
pub mod lower;
pub mod ports;
#[cfg(windows)]
pub mod registry;
pub mod types;
pub mod waits;
pub mod wide;

pub use windows_sys::Win32::Networking::WinSock::WSAPROTOCOL_INFOW;
