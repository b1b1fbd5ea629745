//! Life of a socket: making, connecting, accepting, options, copies, closing.

use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::sync::atomic::Ordering::Relaxed;

use gm::end::flag;
use gm::node::ListenAddress;
use gm::os::{is_ours, next_of_ours};
use gm::{Reason, Role};
use libc::{sockaddr, socklen_t, timeval};

use crate::fds::{self, Inside, enter};
use crate::kernel::{self, is_open};
use crate::{cancel, quiet, real, uring};

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
                inherit_options(&inside);
            }
        }
        None => fds::stale(fd),
    }
}

/// What an accepted socket has from its listener, and the ring must obey.
fn inherit_options(inside: &Inside) {
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

fn aliased(old: c_int, new: c_int) -> c_int {
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

fn after_fcntl(fd: c_int, cmd: c_int, arg: usize, r: c_int) -> c_int {
    match cmd {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => return aliased(fd, r),
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
            libc::TIOCOUTQ | SIOCOUTQNSD => Some(inside.conn().unsent_bytes()),
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
            | kernel::SO_BUF_LOCK,
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
