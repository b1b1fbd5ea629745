//! `syscall(2)`: libuv closes its sockets with it, nginx and others call newer functions by number.

use std::ffi::{c_int, c_long, c_uint};

use crate::{
    adopt, epoll, file, options, poll, process, real, receive, select, send, setup, time, uring,
};

/// # Safety
/// As syscall(2). Unused arguments are whatever the registers hold, and are passed on as they are.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // A raw call on a descriptor that we don't follow is none of our business, except those that make new ones.
    let fd = a as c_int;
    // Nor is it a cancellation point.
    let _whole = (crate::fds::limit() > 0).then(crate::quiet::uncancelled);
    // SAFETY: each arm decodes the arguments as the kernel would for that number.
    unsafe {
        match number {
            libc::SYS_read => receive::read(fd, b as _, c) as c_long,
            libc::SYS_write => send::write(fd, b as _, c) as c_long,
            libc::SYS_readv => receive::readv(fd, b as _, c as c_int) as c_long,
            libc::SYS_writev => send::writev(fd, b as _, c as c_int) as c_long,
            libc::SYS_recvfrom => {
                receive::recvfrom(fd, b as _, c, d as c_int, e as _, f as _) as c_long
            }
            libc::SYS_sendto => send::sendto(fd, b as _, c, d as c_int, e as _, f as u32) as c_long,
            libc::SYS_recvmsg => receive::recvmsg(fd, b as _, c as c_int) as c_long,
            libc::SYS_sendmsg => send::sendmsg(fd, b as _, c as c_int) as c_long,
            libc::SYS_recvmmsg => {
                receive::recvmmsg(fd, b as _, c as c_uint, d as c_int, e as _).into()
            }
            libc::SYS_sendmmsg => send::sendmmsg(fd, b as _, c as c_uint, d as c_int).into(),
            libc::SYS_sendfile => file::sendfile(fd, b as c_int, c as _, d) as c_long,
            libc::SYS_socket => setup::socket(fd, b as c_int, c as c_int).into(),
            libc::SYS_connect => setup::connect(fd, b as _, c as u32).into(),
            libc::SYS_listen => setup::listen(fd, b as c_int).into(),
            libc::SYS_accept => setup::accept(fd, b as _, c as _).into(),
            libc::SYS_accept4 => setup::accept4(fd, b as _, c as _, d as c_int).into(),
            libc::SYS_close => setup::close(fd).into(),
            libc::SYS_close_range => {
                setup::close_range(a as c_uint, b as c_uint, c as c_int).into()
            }
            libc::SYS_shutdown => setup::shutdown(fd, b as c_int).into(),
            libc::SYS_dup => setup::dup(fd).into(),
            libc::SYS_dup2 => setup::dup2(fd, b as c_int).into(),
            libc::SYS_dup3 => setup::dup3(fd, b as c_int, c as c_int).into(),
            libc::SYS_fcntl => options::fcntl(fd, b as c_int, c).into(),
            libc::SYS_ioctl => options::ioctl(fd, b as _, c).into(),
            libc::SYS_setsockopt => {
                options::setsockopt(fd, b as c_int, c as c_int, d as _, e as u32).into()
            }
            libc::SYS_poll => poll::poll(a as _, b as _, c as c_int).into(),
            libc::SYS_ppoll => {
                time_left(c as _, || poll::ppoll(a as _, b as _, c as _, d as _)).into()
            }
            libc::SYS_pselect6 => {
                let mask = (f as *const *const libc::sigset_t).as_ref().copied();
                let mask = mask.unwrap_or(std::ptr::null());
                let wait = || select::pselect(fd, b as _, c as _, d as _, e as _, mask);
                time_left(e as _, wait).into()
            }
            libc::SYS_preadv2 => {
                receive::preadv2(fd, b as _, c as c_int, d as i64, f as c_int) as c_long
            }
            libc::SYS_pwritev2 => {
                send::pwritev2(fd, b as _, c as c_int, d as i64, f as c_int) as c_long
            }
            libc::SYS_getsockopt => {
                options::getsockopt(fd, b as c_int, c as c_int, d as _, e as _).into()
            }
            libc::SYS_splice => {
                file::splice(fd, b as _, c as c_int, d as _, e, f as c_uint) as c_long
            }
            libc::SYS_select => select::select(fd, b as _, c as _, d as _, e as _).into(),
            libc::SYS_epoll_create => epoll::epoll_create(fd).into(),
            libc::SYS_epoll_create1 => epoll::epoll_create1(fd).into(),
            libc::SYS_epoll_ctl => epoll::epoll_ctl(fd, b as c_int, c as c_int, d as _).into(),
            libc::SYS_epoll_wait => epoll::epoll_wait(fd, b as _, c as c_int, d as c_int).into(),
            libc::SYS_epoll_pwait => {
                epoll::epoll_pwait(fd, b as _, c as c_int, d as c_int, e as _).into()
            }
            libc::SYS_epoll_pwait2 => {
                epoll::epoll_pwait2(fd, b as _, c as c_int, d as _, e as _).into()
            }
            libc::SYS_io_uring_setup => uring::setup(a, b),
            libc::SYS_io_uring_enter => uring::enter(a, b, c, d, e, f),
            libc::SYS_io_uring_register => uring::register(a, b, c, d),
            libc::SYS_fork | libc::SYS_vfork => process::fork().into(),
            libc::SYS_execve => process::exec::execve(a as _, b as _, c as _).into(),
            libc::SYS_execveat => {
                process::exec::execveat(fd, b as _, c as _, d as _, e as c_int).into()
            }
            libc::SYS_seccomp => {
                process::confine::confine();
                real::syscall(number, a, b, c, d, e, f)
            }
            libc::SYS_prctl => process::confine::prctl(fd, b, c, d, e).into(),
            libc::SYS_unshare => process::confine::unshare(fd).into(),
            libc::SYS_setrlimit => process::confine::setrlimit(a as c_uint, b as _).into(),
            libc::SYS_prlimit64 => {
                process::confine::prlimit64(fd, b as c_uint, c as _, d as _).into()
            }
            libc::SYS_landlock_restrict_self => {
                crate::fds::wake_all();
                real::syscall(number, a, b, c, d, e, f)
            }
            libc::SYS_chroot => process::confine::chroot(a as _).into(),
            libc::SYS_setns => process::confine::setns(fd, b as c_int).into(),
            libc::SYS_pidfd_getfd => {
                let fd = real::syscall(number, a, b, c, d, e, f);
                if fd >= 0 {
                    adopt::meet(fd as c_int, adopt::Came::Copied);
                }
                fd
            }
            _ => real::syscall(number, a, b, c, d, e, f),
        }
    }
}

/// The kernel writes back how much of a time-out is left; the C library's functions don't.
///
/// # Safety
/// Null or the caller's time-out.
unsafe fn time_left(timeout: *mut libc::timespec, wait: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: by the caller.
    unsafe {
        let deadline = time::after_timespec(timeout);
        let sound = time::is_time(timeout);
        let r = wait();
        if let (true, Some(t), Some(left)) = (sound, timeout.as_mut(), time::left(deadline)) {
            *t = left;
        }
        r
    }
}
