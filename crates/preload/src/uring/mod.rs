//! io_uring: a way into the kernel past the other hooks. Submissions are looked at before the kernel takes them (`sqe`),
//! in the rings that this process made by `syscall()` (`rings`) or by liburing (`liburing`).
//!
//! A ring that can't be looked at makes the process *blind*: from then on it promotes nothing, and what was carried goes
//! back to TCP. These are rings whose submissions a kernel thread takes without a call (SQPOLL), whose queue is memory of
//! the program's own (NO_MMAP), that have flags newer than this, and that were made by a system call in line. Of the last
//! we learn late, at a promotion: see [`hidden`].

mod liburing;
mod rings;
mod sqe;

use std::ffi::{CStr, c_int, c_long, c_uint};
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use self::rings::{Params, setup as flag};
pub use self::rings::{forget, forget_range, in_child};
use crate::{fds, real};

const ENTER_REGISTERED_RING: u32 = 1 << 4;

static BLIND: AtomicBool = AtomicBool::new(false);

/// Is there a ring that we can't look into?
#[inline]
pub fn blind() -> bool {
    BLIND.load(Relaxed)
}

/// From now on everything is on TCP.
#[cold]
fn go_blind() {
    if BLIND.swap(true, Release) {
        return;
    }
    let saved = crate::errno();
    fds::each(|fd, _| sqe::to_tcp(fd));
    crate::set_errno(saved);
}

/// `new` names what `old` names.
#[inline]
pub fn alias(old: c_int, new: c_int) {
    if !rings::alias(old, new) {
        go_blind();
    }
}

/// A ring was made.
fn made(fd: c_int, p: &Params) {
    let blinds = flag::SQPOLL | flag::NO_MMAP | !flag::KNOWN;
    if !rings::remember(fd, Some(p).filter(|p| p.flags & blinds == 0)) || p.flags & blinds != 0 {
        go_blind();
    }
}

/// # Safety
/// As io_uring_setup(2).
pub unsafe fn setup(entries: usize, params: usize) -> c_long {
    // SAFETY: the caller's arguments, unchanged.
    let fd = unsafe { real::syscall(libc::SYS_io_uring_setup, entries, params, 0, 0, 0, 0) };
    if fd >= 0 {
        // SAFETY: the kernel has just filled it in.
        let p = unsafe { (params as *const Params).read_unaligned() };
        made(fd as c_int, &p);
    }
    fd
}

/// # Safety
/// As io_uring_enter(2).
pub unsafe fn enter(a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long {
    // SAFETY: the submissions are the caller's.
    unsafe { before_enter(a as c_int, b as u32, d as u32) };
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::syscall(libc::SYS_io_uring_enter, a, b, c, d, e, f) }
}

/// # Safety
/// As io_uring_enter(2).
unsafe fn before_enter(fd: c_int, submit: u32, flags: u32) {
    if submit == 0 {
        return;
    }
    // SAFETY: by the caller.
    unsafe {
        if flags & ENTER_REGISTERED_RING != 0 {
            // An index that only this thread's part of the kernel knows.
            rings::look_at_all();
        } else if !rings::look(fd, submit) && !blind() && is_ring(fd) {
            go_blind();
        }
    }
}

/// # Safety
/// As io_uring_register(2).
pub unsafe fn register(fd: usize, op: usize, arg: usize, n: usize) -> c_long {
    // SAFETY: the caller's arguments, unchanged.
    let r = unsafe { real::syscall(libc::SYS_io_uring_register, fd, op, arg, n, 0, 0) };
    if r >= 0 {
        // SAFETY: the kernel has just read its argument.
        unsafe { registered(fd as c_int, op as u32, arg, n) };
    }
    r
}

/// # Safety
/// The kernel took these arguments.
unsafe fn registered(fd: c_int, op: u32, arg: usize, n: usize) {
    const FILES: u32 = 2;
    const FILES_UPDATE: u32 = 6;
    const RESTRICTIONS: u32 = 11;
    const FILES2: u32 = 13;
    const FILES_UPDATE2: u32 = 14;
    const RESIZE_RINGS: u32 = 33;
    const USE_REGISTERED_RING: u32 = 1 << 31;
    // `struct io_uring_files_update`, `io_uring_rsrc_register`, `io_uring_rsrc_update2`: where the array is, and how long.
    // SAFETY: by the caller.
    let word = |at: usize| unsafe { (arg as *const u8).add(at).cast::<u64>().read_unaligned() };
    let saved = crate::errno();
    let (fds, n) = match op & !USE_REGISTERED_RING {
        FILES => (arg, n),
        FILES_UPDATE => (word(8) as usize, n),
        FILES2 => (word(16) as usize, word(0) as u32 as usize),
        FILES_UPDATE2 => (word(8) as usize, word(24) as u32 as usize),
        RESIZE_RINGS if op == RESIZE_RINGS => {
            // SAFETY: by the caller.
            let p = unsafe { (arg as *const Params).read_unaligned() };
            made(fd, &p);
            (0, 0)
        }
        // What the program may submit, a NOP perhaps is not.
        RESTRICTIONS | RESIZE_RINGS => {
            go_blind();
            (0, 0)
        }
        _ => (0, 0),
    };
    // SAFETY: the kernel has just read it, but for a sparse table, which has none.
    unsafe { sqe::to_tcp_all(fds as *const c_int, n) };
    crate::set_errno(saved);
}

/// A promotion is due: is there a ring that we have not seen being made? Then there is none. Looked for at the first such
/// question, the second, the fourth and so on, among the lowest descriptors: an event loop makes its ring before it has
/// many. Another thread may just be making or closing one that we do see, so we are blind only after a while of finding
/// some at every question; until then nothing is promoted.
pub fn hidden() -> bool {
    const PATIENCE_NS: u64 = 100_000_000;
    static ASKED: AtomicU32 = AtomicU32::new(0);
    /// When the first was found; 0: the last look found none.
    static SINCE: AtomicU64 = AtomicU64::new(0);
    if blind() {
        return true;
    }
    let asked = ASKED.fetch_add(1, Relaxed).wrapping_add(1);
    let since = SINCE.load(Relaxed);
    if since == 0 && !asked.is_power_of_two() {
        return false;
    }
    let now = gm::os::monotonic_ns();
    match (any_unknown(), since) {
        (false, 0) => return false,
        (false, _) => SINCE.store(0, Relaxed),
        (true, 0) => SINCE.store(now, Relaxed),
        (true, _) if now.saturating_sub(since) > PATIENCE_NS => go_blind(),
        (true, _) => {}
    }
    SINCE.load(Relaxed) != 0
}

fn any_unknown() -> bool {
    const FDS: c_int = 256;
    (0..FDS).any(|fd| !rings::is_known(fd) && !fds::is_tracked(fd) && is_ring(fd))
}

/// Is this descriptor an io_uring?
fn is_ring(fd: c_int) -> bool {
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
    let Ok(mut n) = c_uint::try_from(fd) else {
        return false;
    };
    let digits = n.checked_ilog10().map_or(1, |l| l as usize + 1);
    for at in (14..14 + digits).rev() {
        path[at] = b'0' + (n % 10) as u8;
        n /= 10;
    }
    let Ok(path) = CStr::from_bytes_until_nul(&path) else {
        return false;
    };
    let mut to = [0_u8; 32];
    let r = rustix::fs::readlinkat_raw(rustix::fs::CWD, path, &mut to[..]);
    r.is_ok_and(|n| to[..n] == *b"anon_inode:[io_uring]")
}
