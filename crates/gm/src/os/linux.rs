//! Linux: tmpfs files, shared mappings, and processes told apart by pid and start time.

use std::io;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::Mapping;

fn map(fd: impl rustix::fd::AsFd, len: usize) -> io::Result<Mapping> {
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
    let base = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            fd,
            0,
        )?
    };
    let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
    Ok(Mapping::new(base, len))
}

/// # Safety
/// A mapping made by `map`, whole, that nobody uses any more.
pub(super) unsafe fn unmap(base: *mut u8, len: usize) {
    // SAFETY: by the caller.
    let _ = unsafe { rustix::mm::munmap(base.cast(), len) };
}

/// # Safety
/// Whole pages of one mapping.
pub(super) unsafe fn populate_pages(base: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: by the caller; populating changes no byte.
    unsafe { rustix::mm::madvise(base.cast(), len, rustix::mm::Advice::LinuxPopulateWrite)? };
    Ok(())
}

/// Creates a file that must not exist yet, `len` bytes of holes, and maps it.
pub fn create_mapped(path: &Path, len: usize, mode: u32) -> io::Result<Mapping> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(mode))?;
    // Once more, because the mask of the program may have taken bits away.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))
        .and_then(|()| rustix::fs::ftruncate(&fd, len as u64))
        .map_err(io::Error::from)
        .and_then(|()| map(&fd, len))
        .inspect_err(|_| {
            let _ = rustix::fs::unlink(path);
        })
}

/// Maps an existing regular file, whole. Files smaller than `min` or larger than `max` bytes are refused.
pub fn open_mapped(path: &Path, min: usize, max: usize) -> io::Result<Mapping> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    let len = usize::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    if !regular || !(min..=max).contains(&len) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    map(&fd, len)
}

pub fn remove(path: &Path) {
    let _ = rustix::fs::unlink(path);
}

/// Renames, but never over an existing file.
pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        from,
        rustix::fs::CWD,
        to,
        rustix::fs::RenameFlags::NOREPLACE,
    )?;
    Ok(())
}

/// The node directory's default place.
pub fn default_node_dir() -> PathBuf {
    PathBuf::from(format!(
        "/dev/shm/sockets-gm-{}",
        rustix::process::geteuid().as_raw()
    ))
}

/// A node directory as the environment names it.
pub fn node_dir(name: &std::ffi::OsStr) -> PathBuf {
    PathBuf::from(name)
}

/// Makes the node directory (mode 0700) if it is missing and checks that nobody else can write to it unless its
/// owner said so (a group's 2770 directory).
pub fn ensure_dir(path: &Path) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    check_dir(path)
}

/// The same for a directory that must be there already.
pub fn check_dir(path: &Path) -> io::Result<()> {
    let stat = rustix::fs::lstat(path)?;
    let ours = stat.st_uid == rustix::process::geteuid().as_raw() || stat.st_mode & 0o020 != 0;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()
        || stat.st_mode & 0o002 != 0
        || !ours
    {
        return Err(Errno::PERM.into());
    }
    Ok(())
}

/// Permissions of files in a node directory: the owner's, and the group's if the directory is shared with it.
pub fn file_mode(dir: &Path) -> u32 {
    let shared = rustix::fs::stat(dir).is_ok_and(|s| s.st_mode & 0o020 != 0);
    if shared { 0o660 } else { 0o600 }
}

/// A process for certain: its pid may be used again, with another start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ProcessId {
    pub pid: u32,
    /// Clock ticks after boot (field 22 of /proc/PID/stat).
    pub start: u64,
}

impl ProcessId {
    pub fn me() -> Self {
        let pid = rustix::process::getpid().as_raw_nonzero().get() as u32;
        Self {
            pid,
            start: start_time(pid).unwrap_or(0),
        }
    }

    /// The live process of that number.
    pub fn of(pid: u32) -> Option<Self> {
        start_time(pid).map(|start| Self { pid, start })
    }

    /// Does it live? A zombie does not.
    pub fn alive(self) -> bool {
        self.pid != 0 && start_time(self.pid) == Some(self.start)
    }
}

/// Start time of a live (not zombie) process.
fn start_time(pid: u32) -> Option<u64> {
    let text = read_small(&format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything, even parentheses: count fields after the last one.
    let rest = text.rsplit_once(')')?.1;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Is there a live task (process or thread) of this number?
pub fn task_alive(tid: u32) -> bool {
    start_time(tid).is_some()
}

/// Is there a process of this number, whoever it is? Cheaper than [`ProcessId::alive`], and may say yes of a stranger.
pub fn process_exists(pid: u32) -> bool {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|p| rustix::process::test_kill_process(p) != Err(Errno::SRCH))
}

/// Name of a process, as in /proc/PID/comm.
pub fn process_name(pid: u32) -> Option<String> {
    Some(
        read_small(&format!("/proc/{pid}/comm"))?
            .trim_end()
            .to_owned(),
    )
}

fn read_small(path: &str) -> Option<String> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buf = [0_u8; 1024];
    let n = rustix::io::read(&fd, &mut buf).ok()?;
    Some(String::from_utf8_lossy(&buf[..n]).into_owned())
}

/// A number that names this network namespace on this boot.
pub fn network_namespace() -> u32 {
    rustix::fs::stat("/proc/self/ns/net").map_or(0, |s| s.st_ino as u32)
}

pub fn monotonic_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// 64 bits that nobody else guesses or draws again.
pub fn random() -> u64 {
    let mut bytes = [0_u8; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => {
            monotonic_ns()
                ^ u64::from(rustix::process::getpid().as_raw_nonzero().get() as u32) << 40
        }
    }
}
