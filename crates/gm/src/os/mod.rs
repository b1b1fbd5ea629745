//! The operating system, as far as the message layer needs it. One file per system, the same names in each.

mod mapping;
pub use mapping::Mapping;

#[cfg(target_os = "linux")]
mod bell_linux;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use bell_linux::*;
#[cfg(target_os = "linux")]
pub use linux::*;

#[cfg(windows)]
mod bell_windows;
#[cfg(windows)]
pub use bell_windows::*;
#[cfg(windows)]
pub mod raw;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub use windows::*;
