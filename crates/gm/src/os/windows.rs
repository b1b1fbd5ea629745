//! Windows, and Windows programs under Wine: mapped files, and processes told apart by pid and start time.
//!
//! Files are made and mapped by Win32 calls on both. Under Wine ([`raw::usable`]) the node is the one of the Linux
//! programs of the same user: its directory is on Linux's tmpfs (`Z:\dev\shm\...`), and processes and threads go by
//! Linux's numbers. On Windows it is a directory of the user's local application data.

use std::ffi::CString;
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::{MetadataExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

use windows_sys::Win32::Foundation::{CloseHandle, FILETIME, STILL_ACTIVE};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ATTRIBUTE_REPARSE_POINT, FILE_FLAG_OPEN_REPARSE_POINT, FILE_SHARE_DELETE, FILE_SHARE_READ,
    FILE_SHARE_WRITE, MoveFileExW,
};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP_ALL_ACCESS, MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile,
    PAGE_READWRITE, UnmapViewOfFile,
};
use windows_sys::Win32::System::Performance::{QueryPerformanceCounter, QueryPerformanceFrequency};
use windows_sys::Win32::System::Threading::{
    GetExitCodeProcess, GetExitCodeThread, GetProcessTimes, OpenProcess, OpenThread,
    PROCESS_QUERY_LIMITED_INFORMATION, THREAD_QUERY_LIMITED_INFORMATION,
};

use super::{Mapping, raw};
use crate::trust::Distrust;

const SHARE_ALL: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;

fn map(file: &std::fs::File, len: usize) -> io::Result<Mapping> {
    // SAFETY: our own handle; the section keeps the file, the view keeps the section.
    let base = unsafe {
        let section = CreateFileMappingW(
            file.as_raw_handle(),
            std::ptr::null(),
            PAGE_READWRITE,
            (len as u64 >> 32) as u32,
            len as u32,
            std::ptr::null(),
        );
        if section.is_null() {
            return Err(io::Error::last_os_error());
        }
        let view = MapViewOfFile(section, FILE_MAP_ALL_ACCESS, 0, 0, len);
        let error = io::Error::last_os_error();
        CloseHandle(section);
        NonNull::new(view.Value.cast::<u8>()).ok_or(error)?
    };
    Ok(Mapping::new(base, len))
}

/// # Safety
/// A mapping made by `map`, whole, that nobody uses any more.
pub(super) unsafe fn unmap(base: *mut u8, _len: usize) {
    // SAFETY: by the caller.
    unsafe { UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: base.cast() }) };
    remove_late();
}

/// # Safety
/// Whole pages of one mapping.
pub(super) unsafe fn populate_pages(base: *mut u8, len: usize) -> io::Result<()> {
    const MADV_POPULATE_WRITE: usize = 23;
    // SAFETY: by the caller; populating changes no byte.
    unsafe { advise(base, len, MADV_POPULATE_WRITE) }
}

/// # Safety
/// Whole pages of one mapping of a file, whose bytes nobody relies on.
pub(super) unsafe fn remove_pages(base: *mut u8, len: usize) -> io::Result<()> {
    const MADV_REMOVE: usize = 9;
    // SAFETY: by the caller.
    unsafe { advise(base, len, MADV_REMOVE) }
}

/// # Safety
/// As the advice wants it.
unsafe fn advise(base: *mut u8, len: usize, advice: usize) -> io::Result<()> {
    // Windows gave the file its space when it was made this long.
    if makes_pages_late() {
        let args = [base as usize, len, advice, 0, 0, 0];
        // SAFETY: by the caller.
        let r = unsafe { raw::call(raw::nr::MADVISE, args) };
        raw::checked(r).map_err(unix_error)?;
    }
    Ok(())
}

/// Does a file take memory only where it is written to?
pub fn makes_pages_late() -> bool {
    raw::usable()
}

/// An errno as the error kinds that callers look for.
pub(super) fn unix_error(errno: i32) -> io::Error {
    match errno {
        raw::EEXIST => io::ErrorKind::AlreadyExists.into(),
        raw::EPERM => io::ErrorKind::PermissionDenied.into(),
        e => io::Error::other(format!("Linux error {e}")),
    }
}

/// The Linux name of a `Z:\...` path, zero-terminated.
pub(super) fn unix_path(path: &Path) -> io::Result<CString> {
    let text = path.to_str().unwrap_or_default();
    let rest = text
        .strip_prefix("Z:")
        .or_else(|| text.strip_prefix("z:"))
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok(CString::new(rest.replace('\\', "/"))?)
}

fn options(create: bool) -> std::fs::OpenOptions {
    let mut o = std::fs::OpenOptions::new();
    o.read(true).write(true).create_new(create);
    o.share_mode(SHARE_ALL)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    o
}

/// How much memory a process may use at most: none can be told, so what a small machine has.
pub fn memory_limit() -> u64 {
    1 << 30
}

/// Does this say that the process may have no more? Windows has no such limits.
pub fn is_limit(_error: &io::Error) -> bool {
    false
}

/// Creates a file that must not exist yet, `len` bytes of zeros, and maps it. It is for its owner alone.
pub fn create_mapped(path: &Path, len: usize) -> io::Result<Mapping> {
    let file = options(true).open(path)?;
    let made = || {
        if raw::usable() {
            let name = unix_path(path)?;
            // SAFETY: a zero-terminated path.
            let r =
                unsafe { raw::call(raw::nr::CHMOD, [name.as_ptr() as usize, 0o600, 0, 0, 0, 0]) };
            raw::checked(r).map_err(unix_error)?;
        }
        file.set_len(len as u64)?;
        map(&file, len)
    };
    made().inspect_err(|_| remove(path))
}

/// Maps an existing regular file, whole. Files smaller than `min` or larger than `max` bytes are refused.
pub fn open_mapped(path: &Path, min: usize, max: usize) -> io::Result<Mapping> {
    let file = options(false).open(path)?;
    let m = file.metadata()?;
    let len = usize::try_from(m.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let link = m.file_attributes() & FILE_ATTRIBUTE_REPARSE_POINT != 0;
    if !m.is_file() || link || !(min..=max).contains(&len) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if raw::usable() {
        judge_dir(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
        judge(path, Distrust::judge_file).map_err(|e| match Distrust::of(&e) {
            Some(why) => why.of_file(),
            None => e,
        })?;
    }
    map(&file, len)
}

/// Judges a directory under Wine, and that around a realm's own: who may write there puts another in its place.
fn judge_dir(path: &Path) -> io::Result<()> {
    if let Some(outer) = path.parent().filter(|_| super::is_inner(path)) {
        judge(outer, Distrust::judge)?;
    }
    judge(path, Distrust::judge)
}

/// Judges what a path leads to under Wine.
fn judge(
    path: &Path,
    by: impl FnOnce(u32, u32, u32, fn(u32) -> bool) -> Result<(), Distrust>,
) -> io::Result<()> {
    // A slash at the end would have a link followed.
    let name = unix_path(path.components().as_path())?;
    let s = raw::lstat(&name).map_err(unix_error)?;
    by(raw::geteuid(), s.uid, s.mode, is_anybody)?;
    Ok(())
}

/// Does this number stand for all users who have none in this user namespace?
fn is_anybody(uid: u32) -> bool {
    const DEFAULT: u32 = 65534;
    static OVERFLOW: OnceLock<u32> = OnceLock::new();
    let text = |name| Some(String::from_utf8_lossy(&raw::read_small(name)?).into_owned());
    let overflow = OVERFLOW.get_or_init(|| {
        let told = text(c"/proc/sys/kernel/overflowuid");
        told.and_then(|t| t.trim_end().parse().ok())
            .unwrap_or(DEFAULT)
    });
    uid == *overflow && !text(c"/proc/self/uid_map").is_some_and(|map| crate::trust::maps_all(&map))
}

/// Windows deletes no file that is mapped, by whatever process. Such a one goes when we have let a mapping go, or with the next
/// program that sweeps.
pub fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            // Not waited for: at the end of a process a dead thread may have it.
            if let Ok(mut later) = LATER.try_lock()
                && later.len() < LATER_MOST
            {
                later.push(path.to_path_buf());
                LATER_COUNT.store(later.len(), Relaxed);
            }
        }
        _ => {}
    }
}

/// Files that could not be deleted yet.
static LATER: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static LATER_COUNT: AtomicUsize = AtomicUsize::new(0);
const LATER_MOST: usize = 4096;

fn remove_late() {
    if LATER_COUNT.load(Relaxed) == 0 {
        return;
    }
    if let Ok(mut later) = LATER.try_lock() {
        later.retain(|path| match std::fs::remove_file(path) {
            Ok(()) => false,
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        });
        LATER_COUNT.store(later.len(), Relaxed);
    }
}

/// Renames, but never over an existing file.
pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    if raw::usable() {
        const AT_FDCWD: usize = -100_isize as usize;
        const RENAME_NOREPLACE: usize = 1;
        let (from, to) = (unix_path(from)?, unix_path(to)?);
        let args = [
            AT_FDCWD,
            from.as_ptr() as usize,
            AT_FDCWD,
            to.as_ptr() as usize,
            RENAME_NOREPLACE,
            0,
        ];
        // SAFETY: zero-terminated paths.
        let r = unsafe { raw::call(raw::nr::RENAMEAT2, args) };
        return raw::checked(r).map(|_| ()).map_err(unix_error);
    }
    let wide = |p: &Path| -> Vec<u16> { p.as_os_str().encode_wide().chain([0]).collect() };
    // SAFETY: zero-terminated paths; without flags an existing target is an error.
    if unsafe { MoveFileExW(wide(from).as_ptr(), wide(to).as_ptr(), 0) } == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The node directory's default place.
pub fn default_node_dir() -> PathBuf {
    if raw::usable() {
        return PathBuf::from(format!("Z:\\dev\\shm\\sockets-gm-{}", raw::geteuid()));
    }
    let base = std::env::var_os("LOCALAPPDATA").unwrap_or_else(|| "C:\\ProgramData".into());
    PathBuf::from(base).join("Sockets-GM").join("node")
}

/// A node directory as the environment names it: under Wine it may be Linux's name of it.
pub fn node_dir(name: &std::ffi::OsStr) -> PathBuf {
    let text = name.to_string_lossy();
    if raw::usable() && text.starts_with('/') {
        return PathBuf::from(format!("Z:{}", text.replace('/', "\\")));
    }
    PathBuf::from(name)
}

/// Makes the node directory (for its owner alone) if it is missing, and checks it.
pub fn ensure_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|_| super::is_inner(path)) {
        ensure_dir(parent)?;
    }
    if raw::usable() {
        let name = unix_path(path)?;
        // What such a one made would be as little his.
        let me = raw::geteuid();
        if is_anybody(me) {
            return Err(Distrust::Anybody(me).into());
        }
        // SAFETY: a zero-terminated path.
        let r = unsafe { raw::call(raw::nr::MKDIR, [name.as_ptr() as usize, 0o700, 0, 0, 0, 0]) };
        match raw::checked(r) {
            Ok(_) | Err(raw::EEXIST) => {}
            Err(e) => return Err(unix_error(e)),
        }
    } else {
        std::fs::create_dir_all(path)?;
    }
    check_dir(path)
}

/// The same for a directory that must be there already. On Windows its access list is the one of the user's own data.
pub fn check_dir(path: &Path) -> io::Result<()> {
    if raw::usable() {
        judge_dir(path)?;
        let name = unix_path(path.components().as_path())?;
        let listed = [c"system.posix_acl_access", c"system.posix_acl_default"]
            .iter()
            .any(|list| {
                let list = list.as_ptr() as usize;
                // SAFETY: zero-terminated strings; the size alone is asked for.
                let r = unsafe {
                    raw::call(
                        raw::nr::LGETXATTR,
                        [name.as_ptr() as usize, list, 0, 0, 0, 0],
                    )
                };
                r > 0
            });
        if listed {
            return Err(Distrust::AccessList.into());
        }
        return Ok(());
    }
    if std::fs::metadata(path)?.is_dir() {
        Ok(())
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    }
}

/// A process for certain: its pid may be used again, with another start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ProcessId {
    pub pid: u32,
    /// Under Wine clock ticks after boot (field 22 of /proc/PID/stat), else 100 ns since 1601.
    pub start: u64,
}

impl ProcessId {
    pub fn me() -> Self {
        let pid = if raw::usable() {
            raw::getpid()
        } else {
            std::process::id()
        };
        Self {
            pid,
            start: start_time(pid).unwrap_or(0),
        }
    }

    /// Does it live?
    pub fn alive(self) -> bool {
        self.pid != 0 && start_time(self.pid) == Some(self.start)
    }
}

/// Start time of a live process (under Wine also of a thread).
fn start_time(pid: u32) -> Option<u64> {
    if raw::usable() {
        let name = CString::new(format!("/proc/{pid}/stat")).ok()?;
        let text = String::from_utf8_lossy(&raw::read_small(&name)?).into_owned();
        // The name in parentheses may hold anything, even parentheses: count fields after the last one.
        let rest = text.rsplit_once(')')?.1;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        if state == "Z" || state == "X" {
            return None;
        }
        return fields.nth(18)?.parse().ok();
    }
    const NEVER: FILETIME = FILETIME {
        dwLowDateTime: 0,
        dwHighDateTime: 0,
    };
    let (mut made, mut ended, mut kernel, mut user) = (NEVER, NEVER, NEVER, NEVER);
    let mut code = 0;
    // SAFETY: our own handle, out-pointers to locals.
    let lives = unsafe {
        let process = OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid);
        if process.is_null() {
            return None;
        }
        let told = GetProcessTimes(process, &mut made, &mut ended, &mut kernel, &mut user) != 0
            && GetExitCodeProcess(process, &mut code) != 0;
        CloseHandle(process);
        told && code == STILL_ACTIVE as u32
    };
    lives.then(|| u64::from(made.dwHighDateTime) << 32 | u64::from(made.dwLowDateTime))
}

/// Is there a live task (process or thread) of this number, by the numbers of [`ProcessId`]?
pub fn task_alive(tid: u32) -> bool {
    if raw::usable() {
        return start_time(tid).is_some();
    }
    thread_alive(tid)
}

/// Is there a live thread of this number of Windows'?
pub fn thread_alive(tid: u32) -> bool {
    let mut code = 0;
    // SAFETY: our own handle, an out-pointer to a local.
    unsafe {
        let thread = OpenThread(THREAD_QUERY_LIMITED_INFORMATION, 0, tid);
        if thread.is_null() {
            return false;
        }
        let told = GetExitCodeThread(thread, &mut code) != 0;
        CloseHandle(thread);
        told && code == STILL_ACTIVE as u32
    }
}

/// Is there a process of this number, whoever it is? Cheaper than [`ProcessId::alive`], and may say yes of a stranger.
pub fn process_exists(pid: u32) -> bool {
    if raw::usable() {
        // SAFETY: signal 0 only asks.
        let r = unsafe { raw::call(raw::nr::KILL, [pid as usize, 0, 0, 0, 0, 0]) };
        return pid != 0 && raw::checked(r) != Err(raw::ESRCH);
    }
    start_time(pid).is_some()
}

/// A number that names this network namespace on this boot; on Windows there is one.
pub fn network_namespace() -> u32 {
    static KNOWN: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *KNOWN.get_or_init(|| raw::netns_cookie().map_or(0, super::namespace_of))
}

/// Who this process is, and its realm.
pub fn identity() -> io::Result<(ProcessId, super::Realm)> {
    Ok((ProcessId::me(), realm()?))
}

/// Under Wine a process is one of Linux's namespaces.
pub fn realm() -> io::Result<super::Realm> {
    let first = super::Realm::FIRST;
    if !raw::usable() {
        return Ok(first);
    }
    let me = raw::read_small(c"/proc/self/stat").unwrap_or_default();
    let pid = String::from_utf8_lossy(&me);
    if pid.split(' ').next().and_then(|pid| pid.parse().ok()) != Some(raw::getpid()) {
        return Err(io::Error::other(
            "/proc is missing, or another process namespace's",
        ));
    }
    let inode = |path| raw::stat(path).map(|s| s.inode);
    Ok(super::Realm {
        processes: inode(c"/proc/self/ns/pid").map_err(unix_error)?,
        times: inode(c"/proc/self/ns/time").unwrap_or(first.times),
        users: inode(c"/proc/self/ns/user").unwrap_or(first.users),
    })
}

pub fn monotonic_ns() -> u64 {
    let (mut now, mut per_second) = (0, 0);
    // SAFETY: out-pointers to locals; these can't fail since Windows XP.
    unsafe {
        QueryPerformanceCounter(&mut now);
        QueryPerformanceFrequency(&mut per_second);
    }
    let per_second = per_second.max(1) as u128;
    (now as u128 * 1_000_000_000 / per_second) as u64
}

/// 64 bits that nobody else guesses or draws again.
pub fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's keys come from the system's generator, anew for each process and counted up for each use.
    let mut h = std::collections::hash_map::RandomState::new().build_hasher();
    h.write_u64(monotonic_ns());
    h.finish()
}
