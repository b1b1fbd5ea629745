//! The Windows front, `lsp.dll`: a layered service provider over the TCP and UDP base providers. Decode the SPI call, one
//! engine call, encode the answer.
//!
//! ```text
//! program ── ws2_32 ── WSP* (this crate) ──┬── engine, rings          busy TCP connections of this host
//!                                          └── lower provider         everything else, and the way back
//! ```
//!
//! Rules:
//! 1. Non-IFS: the program's handle is a *carrier* from WPUCreateSocketHandle; under each lies one *base* socket of the lower
//!    provider, a true TCP connection for its whole life ([`slot`]). What is never carried is handed out as it is (IFS).
//! 2. It speaks Winsock's SPI alone. What it knows of Wine is in [`kernel`] (the Linux descriptor of a base socket) and in
//!    `gm::os`; on Windows the same jobs go through the lower provider.
//! 3. A guest prints nothing, and starts a thread only when overlapped calls or window messages need one.
//! 4. Nothing here makes a call fail that would have worked on TCP: whatever goes wrong means "plain".

#![cfg(windows)]
#![allow(unsafe_code)] // The SPI's signatures and the program's memory; every block says what it relies on.

mod answer;
mod ctx;
mod data;
mod events;
mod extension;
mod ioctl;
mod kernel;
mod life;
mod memory;
mod names;
mod options;
mod overlapped;
mod poll;
mod provider;
mod select;
mod slot;
mod wait;

pub use overlapped::SgmCancelIo;
pub use provider::{SgmWinsockGives, WSPStartup};
