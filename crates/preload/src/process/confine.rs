//! Programs that confine themselves: a seccomp filter knows the program's own system calls, not ours, and kills for others. So
//! before one is installed everything goes back to TCP, and from then on the front makes no call of its own. The same for who
//! enters another realm (`gm::os::Realm`), or has its children born there, and for a thread that goes on with descriptors of its
//! own: the tables here know one set of them.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use gm::Reason;

use crate::{ctx, epoll, fds, giving, kernel, real, thread};

static CONFINED: AtomicBool = AtomicBool::new(false);

/// Is a filter in force, or about to be?
#[inline]
pub fn is_confined() -> bool {
    CONFINED.load(Relaxed)
}

/// A filter is about to be installed.
#[cold]
pub fn confine() {
    if CONFINED.swap(true, AcqRel) || ctx::opened().is_none() {
        return;
    }
    all_to_tcp(Reason::Unsupported, |_| true);
    epoll::become_plain();
    fds::follow_nothing();
}

/// The program is about to go where it may not reach the node's files, or where it and its peers may not act for each other: what
/// is carried goes back to TCP while that is possible. What comes later finds out by itself.
#[cold]
fn move_out() {
    if !is_confined() && ctx::opened().is_some() {
        all_to_tcp(Reason::NoNode, |inside| inside.conn().is_engaged());
    }
}

fn all_to_tcp(why: Reason, which: impl Fn(&fds::Inside) -> bool) {
    let saved = crate::errno();
    fds::each_slot_once(|inside| {
        if inside.conn().end().role() != gm::Role::Listener && which(inside) {
            giving::hand_back(inside, why);
        }
    });
    crate::set_errno(saved);
}

/// # Safety
/// As prctl(2). Unused arguments are whatever the registers hold, and are passed on as they are.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn prctl(
    option: c_int,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
) -> c_int {
    if option == libc::PR_SET_SECCOMP {
        confine();
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::prctl(option, a, b, c, d) }
}

const TELLS_PROCESSES: c_int = libc::CLONE_NEWPID | CLONE_NEWTIME | libc::CLONE_NEWUSER;
/// `<linux/sched.h>`.
const CLONE_NEWTIME: c_int = 0x80;

/// The calling thread is about to have a table of descriptors for itself. A process of one thread goes on with the only one.
pub fn part_files() {
    if thread::has_others() {
        confine();
    }
}

/// The program is about to enter namespaces of these kinds.
fn into(kinds: c_int) {
    if kinds & TELLS_PROCESSES != 0 {
        confine();
    } else if kinds & libc::CLONE_NEWNS != 0 {
        move_out();
    }
}

/// # Safety
/// As unshare(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn unshare(flags: c_int) -> c_int {
    into(flags);
    if flags & libc::CLONE_FILES != 0 {
        part_files();
    }
    // SAFETY: the caller's argument, unchanged.
    let r = unsafe { real::unshare(flags) };
    kernel::forget_network();
    r
}

/// # Safety
/// As setns(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setns(fd: c_int, kind: c_int) -> c_int {
    /// Of which kind a namespace is, `<linux/nsfs.h>`.
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    let saved = crate::errno();
    let kinds = match kind {
        // SAFETY: takes no argument; another file's descriptor is refused.
        0 => unsafe { real::ioctl(fd, NS_GET_NSTYPE, 0) },
        kinds => kinds,
    };
    into(kinds.max(0));
    crate::set_errno(saved);
    // SAFETY: the caller's arguments, unchanged.
    let r = unsafe { real::setns(fd, kind) };
    kernel::forget_network();
    r
}

/// # Safety
/// As chroot(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn chroot(path: *const c_char) -> c_int {
    move_out();
    // SAFETY: the caller's argument, unchanged.
    unsafe { real::chroot(path) }
}

/// The program is about to become these users; -1: that one stays. Who stays effectively who he is keeps what he has.
fn become_user(effective: c_uint) {
    if effective != c_uint::MAX && effective != rustix::process::geteuid().as_raw() {
        move_out();
    }
}

/// # Safety
/// As setuid(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setuid(user: c_uint) -> c_int {
    become_user(user);
    // SAFETY: the caller's argument, unchanged.
    unsafe { real::setuid(user) }
}

/// # Safety
/// As seteuid(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn seteuid(user: c_uint) -> c_int {
    become_user(user);
    // SAFETY: the caller's argument, unchanged.
    unsafe { real::seteuid(user) }
}

/// # Safety
/// As setreuid(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setreuid(user: c_uint, effective: c_uint) -> c_int {
    become_user(effective);
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::setreuid(user, effective) }
}

/// # Safety
/// As setresuid(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setresuid(user: c_uint, effective: c_uint, saved: c_uint) -> c_int {
    become_user(effective);
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::setresuid(user, effective, saved) }
}

/// The program is about to have less of something that sockets which came with it may still need.
fn before_limit(kind: c_uint, limit: *const c_void) {
    if !limit.is_null() && [libc::RLIMIT_NOFILE, libc::RLIMIT_AS].contains(&kind) {
        fds::wake_all();
    }
}

macro_rules! limits {
    ($($name:ident($($pid:ident: $of:ty)?) $($before:ident)?;)*) => {$(
        /// # Safety
        /// As setrlimit(2), prlimit(2).
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(
            $($pid: $of,)?
            kind: c_uint,
            limit: *const c_void,
            $($before: *mut c_void,)?
        ) -> c_int {
            before_limit(kind, limit);
            // SAFETY: the caller's arguments, unchanged.
            unsafe { real::$name($($pid,)? kind, limit, $($before)?) }
        }
    )*};
}
limits! {
    setrlimit();
    setrlimit64();
    prlimit(pid: c_int) before;
    prlimit64(pid: c_int) before;
}
