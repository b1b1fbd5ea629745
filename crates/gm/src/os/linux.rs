//! Linux: tmpfs files, shared mappings, and processes told apart by pid and start time.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::Mapping;
use crate::trust::Distrust;

mod memory;
mod process;
pub use memory::*;
pub use process::*;

fn map(fd: impl AsFd, len: usize) -> io::Result<Mapping> {
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

/// # Safety
/// Whole pages of one mapping of a file, whose bytes nobody relies on.
pub(super) unsafe fn remove_pages(base: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: by the caller.
    unsafe { rustix::mm::madvise(base.cast(), len, rustix::mm::Advice::LinuxRemove)? };
    Ok(())
}

/// Does a file take memory only where it is written to?
pub fn makes_pages_late() -> bool {
    true
}

/// The directory that holds `path`, open and judged by what was opened: whoever puts another one in its place meanwhile
/// gets nothing. Access lists are for [`check_dir`], for this one runs in programs that have given system calls up.
pub(super) fn trusted_parent(path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let (dir, name) = path
        .parent()
        .zip(path.file_name())
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok((open_dir(dir, OFlags::PATH)?, name))
}

/// The directory of another realm than the first is reached through the one above, which is judged as well: who may write
/// there puts another in its place.
fn open_dir(path: &Path, how: OFlags) -> io::Result<OwnedFd> {
    // A slash at the end would have a link followed.
    let path = path.components().as_path();
    let parts = path.parent().zip(path.file_name());
    match parts.filter(|_| super::is_inner(path)) {
        Some((outer, name)) => {
            let outer = open_dir_at(rustix::fs::CWD, outer, OFlags::PATH)?;
            open_dir_at(outer, Path::new(name), how)
        }
        None => open_dir_at(rustix::fs::CWD, path, how),
    }
}

fn open_dir_at(at: impl AsFd, path: &Path, how: OFlags) -> io::Result<OwnedFd> {
    let path = path.components().as_path();
    let flags = how | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let look = || rustix::fs::statat(&at, path, AtFlags::SYMLINK_NOFOLLOW);
    let fd = rustix::fs::openat(&at, path, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOTDIR | Errno::LOOP if look().is_ok() => Distrust::NotDirectory.into(),
        // A stranger's, closed to us.
        Errno::ACCESS => look()
            .ok()
            .and_then(|s| Distrust::judge(my_uid(), s.st_uid, s.st_mode, is_anybody).err())
            .map_or(e.into(), io::Error::from),
        e => io::Error::from(e),
    })?;
    let stat = rustix::fs::fstat(&fd)?;
    Distrust::judge(my_uid(), stat.st_uid, stat.st_mode, is_anybody)?;
    Ok(fd)
}

fn my_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Refuses a file that the program's limits have no room for: to ask for one beyond RLIMIT_FSIZE is a signal that kills, and
/// address space that we take under RLIMIT_AS is missing to the program, which keeps half of it at least.
fn within_limits(len: usize) -> io::Result<()> {
    use rustix::process::{Resource, getrlimit};
    if getrlimit(Resource::Fsize)
        .current
        .is_some_and(|most| most < len as u64)
    {
        return Err(Errno::FBIG.into());
    }
    if let Some(most) = getrlimit(Resource::As).current {
        // SAFETY: always valid to call.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
        let used = read_small("/proc/self/statm")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
            .map(|pages| pages.saturating_mul(page));
        if used.is_none_or(|used| used.saturating_add(len as u64) > most / 2) {
            return Err(Errno::NOMEM.into());
        }
    }
    Ok(())
}

/// Does this say that the process may have no more, rather than that there is no more?
pub fn is_limit(error: &io::Error) -> bool {
    let limits = [Errno::MFILE, Errno::NFILE, Errno::FBIG, Errno::NOMEM];
    limits
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

/// Creates a file that must not exist yet, `len` bytes of holes, and maps it. It is for its owner alone.
pub fn create_mapped(path: &Path, len: usize) -> io::Result<Mapping> {
    within_limits(len)?;
    let (dir, name) = trusted_parent(path)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    let fd = rustix::fs::openat(&dir, name, flags, mode)?;
    // Once more, because the mask of the program may have taken bits away.
    rustix::fs::fchmod(&fd, mode)
        .and_then(|()| rustix::fs::ftruncate(&fd, len as u64))
        .map_err(io::Error::from)
        .and_then(|()| map(&fd, len))
        .inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
        })
}

/// Maps an existing regular file, whole, that is nobody else's. Files smaller than `min` or larger than `max` bytes are refused.
pub fn open_mapped(path: &Path, min: usize, max: usize) -> io::Result<Mapping> {
    let (dir, name) = trusted_parent(path)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    let len = usize::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    if !regular || !(min..=max).contains(&len) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Distrust::judge_file(my_uid(), stat.st_uid, stat.st_mode, is_anybody)
        .map_err(Distrust::of_file)?;
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

/// The node directory's default place, by the name that the user has outside of a user namespace: root of one is not root.
pub fn default_node_dir() -> PathBuf {
    let outside = uid_outside(my_uid());
    PathBuf::from(format!("/dev/shm/sockets-gm-{outside}"))
}

/// A node directory as the environment names it.
pub fn node_dir(name: &std::ffi::OsStr) -> PathBuf {
    PathBuf::from(name)
}

/// Makes the node directory (mode 0700) if it is missing, and the one above for a process namespace's own; and checks it.
pub fn ensure_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|_| super::is_inner(path)) {
        ensure_dir(parent)?;
    }
    // What such a one made would be as little his.
    let me = my_uid();
    if is_anybody(me) {
        return Err(Distrust::Anybody(me).into());
    }
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    check_dir(path)
}

/// The same for a directory that must be there already.
pub fn check_dir(path: &Path) -> io::Result<()> {
    let fd = open_dir(path, OFlags::RDONLY)?;
    // Where they can't be asked for, the mode has said it: a list's mask is its group bits.
    let listed = ["system.posix_acl_access", "system.posix_acl_default"]
        .iter()
        .any(|name| rustix::fs::fgetxattr_query(&fd, *name).is_ok_and(|n| n > 0));
    if listed {
        return Err(Distrust::AccessList.into());
    }
    Ok(())
}

/// What TCP makes a send buffer at most, in this network namespace: less than 4 MiB where there is little memory (tcp_wmem of tcp(7)).
pub fn send_buffer_limit() -> Option<u32> {
    last_number("/proc/sys/net/ipv4/tcp_wmem")
}

/// What TCP makes a receive buffer at most (tcp_rmem of tcp(7)).
pub fn receive_buffer_limit() -> Option<u32> {
    last_number("/proc/sys/net/ipv4/tcp_rmem")
}

/// Of three.
fn last_number(path: &str) -> Option<u32> {
    read_small(path)?
        .split_ascii_whitespace()
        .nth(2)?
        .parse()
        .ok()
}

/// By the C library, which every program of ours has: looking the kernel's page up ourselves, as rustix does, finds something
/// else under valgrind, and crashes.
pub fn monotonic_ns() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: an out-pointer of ours; a clock that every kernel has.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
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

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::Node;

    fn distrust(opened: Result<Node, crate::Error>) -> Option<Distrust> {
        match opened.err()? {
            crate::Error::Os { error, .. } => Distrust::of(&error),
            _ => None,
        }
    }

    #[test]
    fn a_realms_directory_is_only_as_good_as_the_one_around_it() {
        let outer = std::env::temp_dir().join(format!("sgm-outer-{:016x}", random()));
        let inner = outer.join("ns-1-2-3");
        drop(Node::open(&inner).unwrap());
        for mode in [0o755, 0o777] {
            set_permissions(&outer, Permissions::from_mode(mode)).unwrap();
            let why = Some(Distrust::Mode(mode));
            assert_eq!(distrust(Node::open(&inner)), why);
            assert_eq!(distrust(Node::attach(&inner)), why);
        }
        set_permissions(&outer, Permissions::from_mode(0o700)).unwrap();
        drop(Node::attach(&inner).unwrap());
        std::fs::remove_dir_all(&outer).unwrap();
    }

    #[test]
    fn a_file_that_others_may_open_is_not_mapped() {
        let dir = std::env::temp_dir().join(format!("sgm-file-{:016x}", random()));
        let file = Node::open(&dir).unwrap().file();
        for mode in [0o644, 0o666, 0o660, 0o601] {
            set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            assert_eq!(distrust(Node::open(&dir)), Some(Distrust::Mode(mode)));
        }
        set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        drop(Node::attach(&dir).unwrap());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
