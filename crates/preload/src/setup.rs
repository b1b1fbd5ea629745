//! Life of a socket: making, connecting, accepting, copies, closing.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::Ordering::Relaxed;

use gm::end::flag;
use gm::node::ListenAddress;
use gm::os::{is_ours, next_of_ours};
use gm::{Reason, Role};
use libc::{sockaddr, socklen_t};

use crate::fds::{self, Inside, enter};
use crate::kernel::{self, is_open};
use crate::{cancel, options, quiet, real, uring};

/// # Safety
/// As socket(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let fd = unsafe { real::socket(domain, kind, protocol) };
    let stream = kind & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) == libc::SOCK_STREAM;
    let inet = domain == libc::AF_INET || domain == libc::AF_INET6;
    if fd >= 0 && stream && inet && (protocol == 0 || protocol == libc::IPPROTO_TCP) {
        fds::track(fd, Role::Fresh, nonblock_flag(kind));
    } else if fd >= 0 {
        fds::stale(fd);
    }
    fd
}

fn nonblock_flag(kind: c_int) -> u32 {
    if kind & libc::SOCK_NONBLOCK != 0 {
        flag::NONBLOCK
    } else {
        0
    }
}

/// # Safety
/// As connect(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn connect(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int {
    if let Some(inside) = enter(fd) {
        // SAFETY: the caller's address, at least a family long or refused by the kernel.
        let unspec =
            len >= 2 && !to.is_null() && unsafe { (*to).sa_family } as c_int == libc::AF_UNSPEC;
        if unspec {
            // Dissolves a connection; what comes after it is another one on the same descriptor.
            crate::giving::hand_back(&inside, Reason::Unsupported);
        } else if !to.is_null() && inside.conn().end().role() == Role::Fresh {
            inside.conn().end().role.store(Role::Client as u32, Relaxed);
            // SAFETY: the caller's address of `len` bytes.
            unsafe { note_listener(&inside, to, len as usize) };
        }
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::connect(fd, to, len) }
}

/// Looks the peer's address up while its listener is certainly there; it may be gone when promotion is due.
///
/// # Safety
/// `to` must be readable for `len` bytes.
unsafe fn note_listener(inside: &Inside, to: *const sockaddr, len: usize) {
    // SAFETY: by the caller; each cast is to a structure that fits `len`.
    let at = unsafe {
        if len >= size_of::<libc::sockaddr_in6>() && i32::from((*to).sa_family) == libc::AF_INET6 {
            let a = to.cast::<libc::sockaddr_in6>().read_unaligned();
            (a.sin6_addr.s6_addr, a.sin6_port)
        } else if len >= size_of::<libc::sockaddr_in>()
            && i32::from((*to).sa_family) == libc::AF_INET
        {
            let a = to.cast::<libc::sockaddr_in>().read_unaligned();
            let v4 = std::net::Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr));
            (v4.to_ipv6_mapped().octets(), a.sin_port)
        } else {
            return;
        }
    };
    let port = u16::from_be(at.1);
    let network = || kernel::likely_network(inside.number);
    inside
        .conn()
        .connecting(&inside.ctx().node, network, at.0, port);
}

/// # Safety
/// As listen(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let r = unsafe { real::listen(fd, backlog) };
    if r == 0
        && let Some(inside) = enter(fd)
    {
        inside
            .conn()
            .end()
            .role
            .store(Role::Listener as u32, Relaxed);
        register(&inside);
    }
    r
}

/// Puts the listener into the node's registry, once per process that listens or accepts on it.
pub fn register(inside: &Inside) {
    // Offers to who takes none would be wasted.
    if crate::ctx::looks_for_races() {
        return;
    }
    let ctx = inside.ctx();
    let me = ctx.node.me().pid;
    if inside.slot.listener_pid.swap(me, Relaxed) == me {
        return;
    }
    let saved = crate::errno();
    // With it goes what this process listened at before an exec.
    let _ = ctx.port();
    if let Some(at) = listen_address(inside) {
        inside.slot.set_listener(ctx.node.listen(&at).ok());
    }
    crate::set_errno(saved);
}

fn listen_address(inside: &Inside) -> Option<ListenAddress> {
    // A listener has no peer, so `Kernel::stream` does not serve here.
    // SAFETY: the hook's caller passed the descriptor.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(inside.number) };
    let at = std::net::SocketAddr::try_from(rustix::net::getsockname(fd).ok()?).ok()?;
    let netns = kernel::network(inside.number)?;
    let (address, any_v4, any_v6) = match at.ip() {
        std::net::IpAddr::V4(v4) => (v4.to_ipv6_mapped().octets(), v4.is_unspecified(), false),
        std::net::IpAddr::V6(v6) => {
            let only = rustix::net::sockopt::ipv6_v6only(fd).unwrap_or(true);
            (
                v6.octets(),
                v6.is_unspecified() && !only,
                v6.is_unspecified(),
            )
        }
    };
    Some(ListenAddress {
        address,
        port: at.port(),
        netns,
        any_v4,
        any_v6,
    })
}

fn accepted(listener: c_int, fd: c_int, nonblocking: bool) {
    if fd < 0 || crate::process::confine::is_confined() {
        return;
    }
    if !fds::is_tracked(listener) && crate::adopt::is_tcp(fd) {
        // It came by exec, or from another process. Who knows what was set there.
        fds::track(listener, Role::Listener, flag::PASSES_OPTIONS);
    }
    match enter(listener) {
        Some(l) => {
            register(&l);
            fds::track(
                fd,
                Role::Server,
                if nonblocking { flag::NONBLOCK } else { 0 },
            );
            if l.conn().end().has(flag::PASSES_OPTIONS)
                && let Some(inside) = enter(fd)
            {
                options::inherit(&inside);
            }
        }
        None => fds::stale(fd),
    }
}

/// # Safety
/// As accept(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept(
    fd: c_int,
    from: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let new = unsafe { real::accept(fd, from, len) };
    accepted(fd, new, false);
    new
}

/// # Safety
/// As accept4(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept4(
    fd: c_int,
    from: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let new = unsafe { real::accept4(fd, from, len, flags) };
    accepted(fd, new, flags & libc::SOCK_NONBLOCK != 0);
    new
}

/// # Safety
/// As close(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    cancel::point();
    if is_ours(fd) {
        // Nothing that the program opened.
        crate::set_errno(libc::EBADF);
        return -1;
    }
    fds::forget(fd);
    crate::epoll::close_set(fd);
    uring::forget(fd);
    // SAFETY: the caller's argument, unchanged.
    unsafe { real::close(fd) }
}

/// The whole ranges in `first..=last` between descriptors of ours, which stay open.
fn without_ours(first: c_uint, last: c_uint) -> impl Iterator<Item = (c_uint, c_uint)> {
    let mut at = Some(first).filter(|at| *at <= last);
    std::iter::from_fn(move || {
        loop {
            let from = at?;
            let ours = next_of_ours(from).filter(|ours| *ours <= last);
            at = ours.and_then(|o| o.checked_add(1)).filter(|at| *at <= last);
            match ours {
                None => return Some((from, last)),
                Some(ours) if ours > from => return Some((from, ours - 1)),
                Some(_) => {}
            }
        }
    })
}

/// # Safety
/// As close_range(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    const UNSHARE: c_int = 2;
    const CLOEXEC: c_int = 4;
    if flags & !(UNSHARE | CLOEXEC) == 0 && flags & UNSHARE != 0 && first <= last {
        crate::process::confine::part_files();
    }
    // Another thread goes on with what is closed for this one alone: the tables here are of all.
    let closes = flags == 0 || flags == UNSHARE && crate::signals::single_threaded();
    if closes && first <= last {
        fds::forget_range(first as usize, last as usize);
        crate::epoll::close_sets(first as usize, last as usize);
        uring::forget_range(first as usize, last as usize);
    }
    if flags & CLOEXEC == 0 && first <= last && next_of_ours(first).is_some_and(|o| o <= last) {
        // SAFETY: as the caller's, in parts.
        let close = |(from, to)| unsafe { real::close_range(from, to, flags) };
        return without_ours(first, last).map(close).min().unwrap_or(0);
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::close_range(first, last, flags) }
}

/// # Safety
/// As closefrom(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn closefrom(first: c_int) {
    fds::forget_range(first.max(0) as usize, usize::MAX - 1);
    crate::epoll::close_sets(first.max(0) as usize, usize::MAX - 1);
    uring::forget_range(first.max(0) as usize, usize::MAX - 1);
    let mut first = first.max(0);
    while let Some(ours) = next_of_ours(first as c_uint) {
        if first < ours as c_int {
            // SAFETY: as the caller's, in parts.
            unsafe { real::close_range(first as c_uint, ours - 1, 0) };
        }
        first = ours as c_int + 1;
    }
    // SAFETY: the caller's argument, or what is left.
    unsafe { real::closefrom(first) }
}

/// # Safety
/// As shutdown(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn shutdown(fd: c_int, how: c_int) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let plain = || unsafe { real::shutdown(fd, how) };
    let Some(inside) = enter(fd) else {
        return plain();
    };
    if !inside.engaged() || !(0..=2).contains(&how) {
        if (0..=2).contains(&how) && inside.conn().end().role() != Role::Listener {
            crate::giving::hand_back(&inside, Reason::Shutdown);
        }
        return plain();
    }
    let read = how == libc::SHUT_RD || how == libc::SHUT_RDWR;
    let write = how == libc::SHUT_WR || how == libc::SHUT_RDWR;
    let _whole = quiet::uncancelled();
    let node = &inside.ctx().node;
    match inside.conn().shutdown(node, &inside.fd(), read, write) {
        Ok(()) => 0,
        Err(f) => {
            crate::set_errno(crate::kernel::errno_of(f));
            -1
        }
    }
}

pub fn aliased(old: c_int, new: c_int) -> c_int {
    if new >= 0 && new != old {
        match enter(old) {
            Some(inside) => fds::alias(&inside, new),
            None => fds::stale(new),
        }
        crate::epoll::alias_set(old, new);
        uring::alias(old, new);
    }
    new
}

/// # Safety
/// As dup(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup(fd: c_int) -> c_int {
    // SAFETY: the caller's argument, unchanged.
    aliased(fd, unsafe { real::dup(fd) })
}

/// Not so if the limit was lowered to less than what is open.
fn may_be_opened(fd: c_int) -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.is_none_or(|most| (fd as u64) < most)
}

/// `fd` is about to be put over `to`, which must not be closed when that is going to fail.
fn make_way(fd: c_int, to: c_int, flags: c_int) {
    if fd == to || flags & !libc::O_CLOEXEC != 0 {
        return;
    }
    if is_ours(to) {
        gm::os::move_away(to);
    }
    if (fds::is_tracked(to) || crate::epoll::is_set(to)) && is_open(fd) && may_be_opened(to) {
        fds::forget(to);
        crate::epoll::close_set(to);
    }
}

/// # Safety
/// As dup2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup2(fd: c_int, to: c_int) -> c_int {
    make_way(fd, to, 0);
    // SAFETY: the caller's arguments, unchanged.
    aliased(fd, unsafe { real::dup2(fd, to) })
}

/// # Safety
/// As dup3(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    make_way(fd, to, flags);
    // SAFETY: the caller's arguments, unchanged.
    aliased(fd, unsafe { real::dup3(fd, to, flags) })
}
