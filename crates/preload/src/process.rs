//! Processes: fork, exec, exit.

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use gm::Reason;
use gm::os::ProcessId;

use crate::{ctx, epoll, fds, kernel, real, uring};

/// Once, when the first TCP socket is made.
pub fn at_first_socket() {
    // Fork handlers cover fork, daemon and forkpty, which call no interposable fork.
    // SAFETY: three handlers that stay loaded as long as the library.
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
}

unsafe extern "C" fn before() {
    fds::before_fork();
    epoll::before_fork();
}

unsafe extern "C" fn in_parent() {
    epoll::after_fork();
    fds::after_fork_in_parent();
}

unsafe extern "C" fn in_child() {
    epoll::after_fork();
    fds::after_fork_in_child();
    kernel::forget_thread();
    uring::in_child();
    if let Some(ctx) = ctx::opened() {
        ctx.node.after_fork();
        ctx.port.join(ctx.node.me());
        let pid = ctx.node.me().pid;
        fds::each_slot_once(|inside| {
            let end = inside.conn().end();
            if end.role() != gm::Role::Listener {
                end.pid.store(pid, Relaxed);
            }
        });
        epoll::in_child();
    }
}

/// The process ends in an orderly way.
fn leave() {
    let Some(ctx) = ctx::opened() else { return };
    let me = ctx.node.me();
    if me != ProcessId::me() {
        // A child of a raw clone: not a member of the family.
        return;
    }
    fds::at_exit();
    ctx.port.leave(me);
    if !ctx.port.alive() && ctx.port.header().run.load(Relaxed) == 0 {
        gm::os::remove(ctx.port.path());
    }
}

extern "C" fn at_exit() {
    leave();
}

/// Runs with the destructors of the program's other libraries, after its own exit handlers.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

/// # Safety
/// As _exit(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _exit(status: c_int) -> ! {
    leave();
    // SAFETY: the caller's argument, unchanged.
    unsafe { real::_exit(status) }
}

/// # Safety
/// As _Exit(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _Exit(status: c_int) -> ! {
    // SAFETY: as _exit.
    unsafe { _exit(status) }
}

/// # Safety
/// As fork(2). The fork handlers do the work; they can't see whether it failed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fork() -> c_int {
    // SAFETY: no arguments.
    let pid = unsafe { real::fork() };
    if pid < 0 && ctx::opened().is_some() {
        let saved = crate::errno();
        fds::fork_failed();
        crate::set_errno(saved);
    }
    pid
}

/// # Safety
/// As fork(2): POSIX lets vfork be fork, and a child that writes to our tables in the parent's memory would not do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfork() -> c_int {
    // SAFETY: fork has no preconditions of its own.
    unsafe { fork() }
}

/// The descriptor goes to somebody who may not run our code: back to TCP.
pub fn give_away(fd: c_int, why: Reason) {
    if let Some(inside) = fds::enter(fd) {
        crate::giving::hand_back(&inside, why);
    }
}

/// Another program is about to get what does not close on exec: that goes back to TCP. If exec then fails, it is
/// slower, not wrong.
fn hand_over_open_ones() {
    if ctx::opened().is_none() {
        return;
    }
    let saved = crate::errno();
    fds::each(|fd, inside| {
        if !closes_on_exec(fd) {
            crate::giving::hand_back(inside, Reason::Handed);
        }
    });
    crate::set_errno(saved);
}

/// Before exec. What the kernel closes then has a holder less.
fn before_exec() {
    hand_over_open_ones();
    let saved = crate::errno();
    fds::each_slot_once(|inside| {
        let end = inside.conn().end();
        let shared = closes_on_exec(inside.fd.0) && end.refs.load(Acquire) > 1;
        if shared {
            end.refs.fetch_sub(1, AcqRel);
        }
        inside.slot.left_by_exec.store(shared, Relaxed);
    });
    crate::set_errno(saved);
}

/// Exec failed: the holders are all here still.
fn after_failed_exec() {
    if ctx::opened().is_none() {
        return;
    }
    let saved = crate::errno();
    fds::each_slot_once(|inside| {
        if inside.slot.left_by_exec.swap(false, Relaxed) {
            inside.conn().end().refs.fetch_add(1, AcqRel);
        }
    });
    crate::set_errno(saved);
}

fn closes_on_exec(fd: c_int) -> bool {
    // SAFETY: F_GETFD takes no argument.
    let flags = unsafe { real::fcntl(fd, libc::F_GETFD, 0) };
    flags >= 0 && flags & libc::FD_CLOEXEC != 0
}

macro_rules! exec {
    ($($name:ident($($arg:ident: $ty:ty),*);)*) => {$(
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> c_int {
            before_exec();
            // SAFETY: the caller's arguments, unchanged.
            let r = unsafe { real::$name($($arg),*) };
            after_failed_exec();
            r
        }
    )*};
}
exec! {
    execve(path: *const c_char, argv: *const *const c_char, env: *const *const c_char);
    execv(path: *const c_char, argv: *const *const c_char);
    execvp(path: *const c_char, argv: *const *const c_char);
    execvpe(path: *const c_char, argv: *const *const c_char, env: *const *const c_char);
    fexecve(fd: c_int, argv: *const *const c_char, env: *const *const c_char);
    execveat(dir: c_int, path: *const c_char, argv: *const *const c_char, env: *const *const c_char, flags: c_int);
}

macro_rules! spawn {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {$(
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            hand_over_open_ones();
            // SAFETY: the caller's arguments, unchanged.
            unsafe { real::$name($($arg),*) }
        }
    )*};
}
spawn! {
    posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    posix_spawnp(pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    system(command: *const c_char) -> c_int;
    popen(command: *const c_char, mode: *const c_char) -> *mut c_void;
}

/// # Safety
/// As posix_spawn_file_actions_adddup2(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawn_file_actions_adddup2(
    actions: *mut c_void,
    fd: c_int,
    to: c_int,
) -> c_int {
    // The copy stays open in the new program, even if `fd` closes on exec.
    give_away(fd, Reason::Handed);
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::posix_spawn_file_actions_adddup2(actions, fd, to) }
}

macro_rules! aio {
    ($($name:ident)*) => {$(
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(block: *mut libc::aiocb) -> c_int {
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
        pub unsafe extern "C" fn $name(mode: c_int, list: *const *mut libc::aiocb, n: c_int, event: *mut c_void) -> c_int {
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

/// # Safety
/// As fdopen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdopen(fd: c_int, mode: *const c_char) -> *mut c_void {
    give_away(fd, Reason::Stdio);
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::fdopen(fd, mode) }
}
