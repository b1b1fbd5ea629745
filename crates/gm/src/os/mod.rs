//! The operating system, as far as the message layer needs it. One file per system, the same names in each.

mod mapping;
pub use mapping::Mapping;

/// In which namespaces a process has its number, its start time and its user: others can't tell it from another, or may not
/// act for it when it gives a connection back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Realm {
    pub processes: u64,
    pub times: u64,
    pub users: u64,
}

impl Realm {
    /// The system's own (PROC_PID_INIT_INO and the like of Linux).
    pub const FIRST: Self = Self {
        processes: 0xefff_fffc,
        times: 0xefff_fffa,
        users: 0xefff_fffd,
    };

    /// The node directory below `dir` for processes of this realm: who can't tell another's processes may not judge them.
    pub fn directory(self, dir: std::path::PathBuf) -> std::path::PathBuf {
        match self {
            Self::FIRST => dir,
            Self {
                processes,
                times,
                users,
            } => dir.join(format!("{INNER}{processes:x}-{times:x}-{users:x}")),
        }
    }

    /// Whose directory this is; `None`: no realm's own.
    pub fn of_directory(dir: &std::path::Path) -> Option<Self> {
        let numbers = dir.file_name()?.to_str()?.strip_prefix(INNER)?;
        let mut numbers = numbers.split('-').map(|n| u64::from_str_radix(n, 16).ok());
        Some(Self {
            processes: numbers.next()??,
            times: numbers.next()??,
            users: numbers.next()??,
        })
    }
}

const INNER: &str = "ns-";

/// Is this the directory of a realm that is not the system's own, below another?
pub fn is_inner(dir: &std::path::Path) -> bool {
    let name = dir.file_name().and_then(|n| n.to_str());
    name.is_some_and(|n| n.starts_with(INNER))
}

/// Does this say that the node directory is no place for us, or not any more?
pub fn is_out_of_reach(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    let kinds = [
        Kind::PermissionDenied,
        Kind::NotFound,
        Kind::NotADirectory,
        Kind::ReadOnlyFilesystem,
    ];
    kinds.contains(&error.kind())
}

/// What a network namespace's cookie (SO_NETNS_COOKIE) is in a connection's name.
pub fn namespace_of(cookie: u64) -> u32 {
    (cookie ^ cookie >> 32) as u32
}

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
