//! What is set on a socket: descriptor flags, ioctl, options. The kernel has them all; the ring must know some.

use std::ffi::{c_int, c_ulong, c_void};
use std::sync::atomic::Ordering::Relaxed;

use gm::end::flag;
use gm::{Path, Reason, Role};
use libc::{socklen_t, timeval};

use crate::fds::{self, Inside, enter};
use crate::{buffers, real, setup};

fn after_fcntl(fd: c_int, cmd: c_int, arg: usize, r: c_int) -> c_int {
    match cmd {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => return setup::aliased(fd, r),
        libc::F_SETFL if r == 0 => {
            set_nonblocking(fd, arg as c_int & libc::O_NONBLOCK != 0);
            if arg as c_int & libc::O_ASYNC != 0 {
                signals_wanted(fd);
            }
        }
        _ => {}
    }
    r
}

/// SIGIO for what arrives: the kernel sends it, and sees doorbells only.
fn signals_wanted(fd: c_int) {
    crate::process::give_away(fd, Reason::Unsupported);
}

fn set_nonblocking(fd: c_int, on: bool) {
    if let Some(inside) = enter(fd) {
        let end = inside.conn().end();
        end.clear(flag::NONBLOCK_FOUND);
        if on {
            end.set(flag::NONBLOCK)
        } else {
            end.clear(flag::NONBLOCK)
        }
    }
}

/// # Safety
/// As fcntl(2). The third argument, if any, is in the register where `arg` is expected.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl(fd: c_int, cmd: c_int, arg: usize) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    after_fcntl(fd, cmd, arg, unsafe { real::fcntl(fd, cmd, arg) })
}

/// # Safety
/// As fcntl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl64(fd: c_int, cmd: c_int, arg: usize) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    after_fcntl(fd, cmd, arg, unsafe { real::fcntl64(fd, cmd, arg) })
}

/// # Safety
/// As ioctl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ioctl(fd: c_int, request: c_ulong, arg: usize) -> c_int {
    const SIOCOUTQNSD: c_ulong = 0x894b;
    if let Some(inside) = enter(fd)
        && inside.conn().is_engaged()
        && arg != 0
    {
        let n = match request {
            libc::FIONREAD => Some(inside.conn().readable_bytes(&inside.fd())),
            libc::TIOCOUTQ | SIOCOUTQNSD => {
                let stream = match inside.conn().end().tx_path() {
                    Path::Tcp => buffers::unsent(inside.fd().now(), request),
                    Path::Ring => 0,
                };
                Some(inside.conn().unsent_bytes() + stream)
            }
            _ => None,
        };
        if let Some(n) = n {
            // SAFETY: these requests take a pointer to int.
            unsafe { *(arg as *mut c_int) = c_int::try_from(n).unwrap_or(c_int::MAX) };
            return 0;
        }
    }
    // SAFETY: the caller's arguments, unchanged.
    let r = unsafe { real::ioctl(fd, request, arg) };
    if r == 0 && [libc::FIONBIO, libc::FIOASYNC].contains(&request) && fds::is_tracked(fd) {
        // SAFETY: both take a pointer to int, and the kernel has just read it.
        let on = unsafe { *(arg as *const c_int) } != 0;
        match request {
            libc::FIONBIO => set_nonblocking(fd, on),
            _ if on => signals_wanted(fd),
            _ => {}
        }
    }
    r
}

/// The flag that keeps the program's value of an option that delays small segments.
fn push_option(name: c_int) -> Option<u32> {
    match name {
        libc::TCP_NODELAY => Some(flag::NODELAY),
        libc::TCP_CORK => Some(flag::CORK),
        _ => None,
    }
}

/// A doorbell is one byte that must go out at once: neither held by Nagle's algorithm (until a delayed
/// acknowledgement, 40 ms) nor by a cork. The program keeps seeing its own values.
pub fn own_push(inside: &Inside) {
    let end = inside.conn().end();
    // SAFETY: inside, the descriptor is open.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(inside.number) };
    if rustix::net::sockopt::tcp_nodelay(fd).unwrap_or(false) {
        end.set(flag::NODELAY);
    }
    if rustix::net::sockopt::tcp_cork(fd).unwrap_or(false) {
        end.set(flag::CORK);
    }
    end.set(flag::OWN_PUSH);
    push_at_once(inside);
}

fn push_at_once(inside: &Inside) {
    // SAFETY: inside, the descriptor is open.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(inside.number) };
    let _ = rustix::net::sockopt::set_tcp_cork(fd, false);
    let _ = rustix::net::sockopt::set_tcp_nodelay(fd, true);
}

/// # Safety
/// As getsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let r = unsafe { real::getsockopt(fd, level, name, value, len) };
    if r == 0
        && level == libc::IPPROTO_TCP
        && let Some(push) = push_option(name)
        && let Some(inside) = enter(fd)
        && inside.conn().end().has(flag::OWN_PUSH)
    {
        let set = [u8::from(inside.conn().end().has(push)), 0, 0, 0];
        // SAFETY: the kernel has just written `*len` bytes there, at most 4.
        unsafe {
            value
                .cast::<u8>()
                .copy_from(set.as_ptr(), (*len as usize).min(4))
        };
    }
    if r == 0
        && (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR)
        && let Some(inside) = enter(fd)
        // SAFETY: the kernel has just written the length there.
        && unsafe { *len } as usize == size_of::<c_int>()
    {
        let value = value.cast::<c_int>();
        // SAFETY: the kernel has just written an int there.
        let told = unsafe { value.read_unaligned() };
        if inside
            .conn()
            .take_reset(&inside.fd(), told == libc::ECONNRESET)
        {
            // SAFETY: as above.
            unsafe { value.write_unaligned(libc::ECONNRESET) };
        }
    }
    r
}

/// # Safety
/// As setsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let plain = || unsafe { real::setsockopt(fd, level, name, value, len) };
    if level == libc::IPPROTO_TCP
        && let Some(push) = push_option(name)
        && let Some(inside) = enter(fd)
        && inside.conn().end().has(flag::OWN_PUSH)
    {
        // Servers cork and uncork around every answer: where the kernel's value is ours, that takes no call.
        let noted = inside.conn().is_engaged() && len as usize >= size_of::<c_int>();
        let r = if noted && !value.is_null() {
            0
        } else {
            plain()
        };
        if r == 0 {
            let end = inside.conn().end();
            // SAFETY: the caller's value; the length was checked, or the kernel has just read an int there.
            if unsafe { value.cast::<c_int>().read_unaligned() } != 0 {
                end.set(push)
            } else {
                end.clear(push)
            }
        }
        return r;
    }
    let r = plain();
    if r == 0
        && let Some(inside) = enter(fd)
    {
        // SAFETY: the kernel has just read `len` bytes there.
        unsafe { note_option(&inside, level, name, value, len as usize) };
    }
    r
}

/// Options of SOL_SOCKET that `note_option` minds and that an accepted socket has from its listener.
const INHERITED: [c_int; 6] = [
    libc::SO_LINGER,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_RCVLOWAT,
    libc::SO_ZEROCOPY,
    libc::SO_OOBINLINE,
];

/// # Safety
/// `value` must be readable for `len` bytes.
unsafe fn note_option(
    inside: &Inside,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: usize,
) {
    let end = inside.conn().end();
    if level == libc::SOL_SOCKET && INHERITED.contains(&name) && end.role() != Role::Server {
        // It may be, or become, a listener.
        end.set(flag::PASSES_OPTIONS);
    }
    // SAFETY: by the caller, and the length is checked.
    let int = || (len >= 4).then(|| unsafe { value.cast::<c_int>().read_unaligned() });
    let time = || {
        // SAFETY: as above.
        let t = (len >= size_of::<timeval>())
            .then(|| unsafe { value.cast::<timeval>().read_unaligned() })?;
        Some((t.tv_sec.max(0) as u64) * 1_000_000 + t.tv_usec.max(0) as u64)
    };
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => {
            end.receive_timeout_us.store(time().unwrap_or(0), Relaxed);
        }
        (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => {
            end.send_timeout_us.store(time().unwrap_or(0), Relaxed);
        }
        (libc::SOL_SOCKET, libc::SO_LINGER) if len >= size_of::<libc::linger>() => {
            // SAFETY: as above.
            let l = unsafe { value.cast::<libc::linger>().read_unaligned() };
            if l.l_onoff != 0 && l.l_linger == 0 {
                end.set(flag::LINGER_ZERO);
            } else {
                end.clear(flag::LINGER_ZERO);
            }
        }
        (
            libc::SOL_SOCKET,
            libc::SO_SNDBUF
            | libc::SO_RCVBUF
            | libc::SO_SNDBUFFORCE
            | libc::SO_RCVBUFFORCE
            | buffers::SO_BUF_LOCK,
        ) => inside.conn().on_buffers(&inside.fd()),
        // What the ring can't do: the kernel does it.
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT) if int() > Some(1) => give_up(inside),
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY | libc::SO_OOBINLINE) if int() != Some(0) => {
            give_up(inside);
        }
        (libc::IPPROTO_TCP, libc::TCP_ULP | libc::TCP_REPAIR) => give_up(inside),
        _ => {}
    }
}

fn give_up(inside: &Inside) {
    crate::giving::hand_back(inside, Reason::Option);
}

/// What an accepted socket has from its listener, and the ring must obey.
pub fn inherit(inside: &Inside) {
    let saved = crate::errno();
    for name in INHERITED {
        let mut value = [0_u8; 16];
        let mut len = value.len() as socklen_t;
        let at = value.as_mut_ptr().cast::<c_void>();
        // SAFETY: out-pointers to locals of the sizes given; what was written there is then read.
        unsafe {
            if real::getsockopt(inside.number, libc::SOL_SOCKET, name, at, &mut len) == 0 {
                note_option(inside, libc::SOL_SOCKET, name, at, len as usize);
            }
        }
    }
    crate::set_errno(saved);
}
