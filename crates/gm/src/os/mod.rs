//! The operating system, as far as the message layer needs it. One file per system, the same names in each.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::*;
