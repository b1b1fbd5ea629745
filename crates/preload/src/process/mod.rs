//! Processes: fork and exit here; `exec` for what leaves to another program, `target` for whether that one will load the
//! front, `vfork` for the child that is not yet a process of its own.

pub mod confine;
pub mod exec;
mod target;
pub mod vfork;

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::Ordering::Relaxed;

use gm::{Port, Reason};

pub use self::target::{FileId, names_library};

use crate::thread::{self, words};
use crate::{ctx, epoll, fds, queues, quiet, real, stdio, uring};

/// As the library is loaded: later it may be a signal handler that makes the first socket.
pub fn at_start() {
    thread::at_start();
    // Fork handlers cover fork, daemon and forkpty, which call no interposable fork.
    // SAFETY: three handlers that stay loaded as long as the library.
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    // Handlers run last in, first out, and the one that runs the destructors of all libraries comes after this. It is no
    // library's, or it would run with ours: others flush streams on connections in theirs.
    let (no_argument, no_library) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: as above.
    unsafe { __cxa_atexit(at_exit, no_argument, no_library) };
}

unsafe extern "C" fn before() {
    ctx::ports().for_each(Port::expect_child);
    fds::before_fork();
    epoll::before_fork();
}

unsafe extern "C" fn in_parent() {
    epoll::after_fork();
    fds::after_fork_in_parent();
}

unsafe extern "C" fn in_child() {
    thread::forget_number();
    epoll::in_child();
    fds::after_fork_in_child();
    ctx::after_fork();
    uring::in_child();
    if confine::is_confined() {
        return;
    }
    if let Some(ctx) = ctx::opened() {
        ctx.node.after_fork();
        ctx::ports().for_each(|p| {
            p.join(ctx.node.me());
            p.child_came();
        });
        let pid = ctx.node.me().pid;
        fds::each_slot_once(|inside| {
            let end = inside.conn().end();
            if end.role() != gm::Role::Listener {
                let before = end.pid.swap(pid, Relaxed);
                inside.slot.pid_before.store(before, Relaxed);
            }
        });
    }
}

/// The process ends in an orderly way.
fn leave() {
    if confine::is_confined() {
        return;
    }
    let Some(ctx) = ctx::opened() else { return };
    let me = ctx.node.me();
    if vfork::is_guest(ctx) {
        // Not a member of the family.
        return;
    }
    let _whole = quiet::uncancelled();
    ctx::end();
    fds::at_exit();
    queues::at_exit();
    for port in ctx::ports() {
        port.leave(me);
        if port.is_left() && !port.is_awaited() && port.header().run.load(Relaxed) == 0 {
            gm::os::remove(port.path());
        }
    }
}

unsafe extern "C" {
    fn __cxa_atexit(
        handler: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
        library: *mut c_void,
    ) -> c_int;
}

unsafe extern "C" fn at_exit(_: *mut c_void) {
    stdio::flush_all();
    leave();
}

/// # Safety
/// As _exit(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _exit(status: c_int) -> ! {
    leave();
    // SAFETY: the caller's argument, unchanged.
    unsafe { real::_exit(status) }
}

/// # Safety
/// As _Exit(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _Exit(status: c_int) -> ! {
    // SAFETY: as _exit.
    unsafe { _exit(status) }
}

/// # Safety
/// As fork(2). The fork handlers do the work; they can't see whether it failed.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fork() -> c_int {
    words().fork_told.set(true);
    // SAFETY: no arguments.
    let pid = unsafe { real::fork() };
    words().fork_told.set(false);
    if pid != 0 {
        let saved = crate::errno();
        fds::fork_over(pid > 0);
        if pid < 0 {
            ctx::ports().for_each(Port::child_came);
        }
        crate::set_errno(saved);
    }
    pid
}

/// The C library has put something else on descriptors 0, 1 and 2, by calls that were not seen.
fn forget_standard() {
    (0..fds::STDIO_FDS).for_each(fds::stale);
}

/// # Safety
/// As daemon(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn daemon(stays: c_int, keeps: c_int) -> c_int {
    // SAFETY: plain numbers.
    let r = unsafe { real::daemon(stays, keeps) };
    if r == 0 && keeps == 0 {
        forget_standard();
    }
    r
}

/// # Safety
/// As forkpty(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn forkpty(
    pty: *mut c_int,
    name: *mut c_char,
    settings: *const c_void,
    size: *const c_void,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let pid = unsafe { real::forkpty(pty, name, settings, size) };
    if pid == 0 {
        forget_standard();
    }
    pid
}

/// # Safety
/// As login_tty(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn login_tty(fd: c_int) -> c_int {
    // SAFETY: a plain number.
    let r = unsafe { real::login_tty(fd) };
    if r == 0 {
        forget_standard();
    }
    r
}

/// The descriptor goes to somebody who may not run our code: back to TCP.
pub fn give_away(fd: c_int, why: Reason) {
    if let Some(inside) = fds::enter(fd) {
        crate::giving::hand_back(&inside, why);
    }
}

macro_rules! aio {
    ($($name:ident)*) => {$(
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(block: *mut libc::aiocb) -> c_int {
            // SAFETY: null or the caller's control block.
            if let Some(block) = unsafe { block.as_ref() } {
                give_away(block.aio_fildes, Reason::Unsupported);
            }
            // SAFETY: the caller's argument, unchanged.
            unsafe { real::$name(block) }
        }
    )*};
}
aio! { aio_read aio_read64 aio_write aio_write64 }

macro_rules! lio {
    ($($name:ident)*) => {$(
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(mode: c_int, list: *const *mut libc::aiocb, n: c_int, event: *mut c_void) -> c_int {
            for i in 0..usize::try_from(n).unwrap_or(0) {
                // SAFETY: the caller's list of `n` control blocks, of which some may be null.
                if let Some(block) = unsafe { list.add(i).as_ref().and_then(|b| b.as_ref()) } {
                    give_away(block.aio_fildes, Reason::Unsupported);
                }
            }
            // SAFETY: the caller's arguments, unchanged.
            unsafe { real::$name(mode, list, n, event) }
        }
    )*};
}
lio! { lio_listio lio_listio64 }
