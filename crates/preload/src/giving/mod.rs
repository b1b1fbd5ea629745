//! Giving a connection to somebody who may not know of rings: another program, a call that the kernel alone can do.

mod substitute;

use std::ffi::c_int;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::Duration;

use gm::end::flag;
use gm::{Port, Reason};
use rustix::event::{PollFd, PollFlags};
use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use sockets::{Conn, Fault, Given, Kernel, RecvOptions};

use self::substitute::substitute;
use crate::fds::Inside;
use crate::kernel::Fd;
use crate::{buffers, ctx, quiet, real};

/// The kernel's stream has everything from now on.
pub fn hand_back(inside: &Inside, why: Reason) {
    let _whole = quiet::uncancelled();
    inside.wake();
    let conn = inside.conn();
    let mut help = || {
        let saved = crate::errno();
        act_for_peer(inside);
        crate::set_errno(saved);
    };
    let given = conn.hand_back(&inside.ctx().node, &inside.fd(), why, &mut help);
    match given {
        Given::Stream if matches!(why, Reason::Handed | Reason::TableFull) => note_stranger(conn),
        Given::Stream => {}
        // What the kernel still has to deliver would go down with its connection.
        Given::Orphaned if !delivers(inside) && renew(inside) => {}
        Given::Orphaned | Given::Deaf if substitute(inside) => {}
        // What can't be had whole must not look as if it were.
        Given::Orphaned | Given::Deaf | Given::Spoilt => disconnect(inside.fd().now()),
    }
}

/// From now on somebody may hold the socket who is not counted, and whose it is when we close: nobody is the last any more,
/// and the kernel's end of stream tells the peer.
fn note_stranger(conn: &Conn) {
    let end = conn.end();
    if conn.is_engaged() && !end.has(flag::GIVEN) {
        end.set(flag::GIVEN);
        end.refs.fetch_add(1, AcqRel);
    }
}

/// The peer makes no call: it is busy, or stopped, or waits for whom we are about to start. Where the system lets us (as it
/// lets a debugger), we answer in its place, by a copy of its descriptor.
fn act_for_peer(inside: &Inside) {
    let ctx = inside.ctx();
    let Some(place) = inside.conn().peer_place() else {
        return;
    };
    // Often it is in this very process, which may have no room for one more mapping, or no descriptor to spare.
    let known = ctx::ports().find(|p| p.maker() == place.port);
    // A connection's end is for ever, to the engine.
    let open = || Port::open_of(ctx.node.dir(), place.port).ok();
    let Some(port) = known.or_else(|| open().map(|p| &*Box::leak(Box::new(p)))) else {
        return;
    };
    let Some(end) = port.ends().get(place.index as usize) else {
        return;
    };
    let Some(number) = end.descriptor.load(Relaxed).checked_sub(1) else {
        return;
    };
    let answer = |socket: Fd| {
        let peer = Conn::new(end, place);
        if peer.rejoin(&ctx.node, &socket) {
            peer.settle(&socket);
        }
    };
    let last = end.pid.load(Relaxed);
    if last == ctx.node.me().pid && is_peer(Fd::of(number.cast_signed()), inside) {
        return answer(Fd::of(number.cast_signed()));
    }
    if gm::os::is_filtered() {
        // A service's filter, say, that lets through what programs of its kind need, and kills for the calls of a debugger.
        return;
    }
    let family = port.header().family.iter().map(|s| s.process().pid);
    for pid in std::iter::once(last).chain(family).filter(|pid| *pid != 0) {
        if let Some(copy) = copy_of(pid, number, inside) {
            return answer(Fd::of(copy.as_raw_fd()));
        }
    }
}

/// A copy of descriptor `number` of process `pid`, if that is the other end of our connection.
fn copy_of(pid: u32, number: u32, inside: &Inside) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let copy = pidfd_getfd(&process, number.cast_signed(), PidfdGetfdFlags::empty()).ok()?;
    is_peer(Fd::of(copy.as_raw_fd()), inside).then_some(copy)
}

/// Is this the other end of our connection?
fn is_peer(socket: Fd, inside: &Inside) -> bool {
    let names = |fd: BorrowedFd<'_>| {
        let peer = net::getpeername(fd).ok()??;
        Some((net::getsockname(fd).ok()?, peer))
    };
    // SAFETY: if it is no descriptor any more, the kernel says so.
    let theirs = names(unsafe { BorrowedFd::borrow_raw(socket.0) });
    let mine = names(borrow(inside)).map(|(local, peer)| (peer, local));
    mine.is_some() && mine == theirs
}

/// The peer is gone, and what it left no stream has. The kernel's socket gets another peer, which sends that and ends (see
/// `sockets::renewal`): so it is whole for all who hold it, and stays what it is. False: that can't be done, and what was left is
/// lost.
#[cold]
#[inline(never)]
fn renew(inside: &Inside) -> bool {
    let Ok(listener) = listener_beside(borrow(inside)) else {
        return false;
    };
    let Some(mut room) = Room::new(inside) else {
        return false;
    };
    // Another thread may close the descriptor at any moment.
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(borrow(inside), 0) else {
        return false;
    };
    let _whole = quiet::begin();
    let conn = inside.conn();
    let Some(mut renewal) = conn.begin_renewal(&inside.fd()) else {
        return !conn.is_engaged();
    };
    let whole = drain(inside, &mut room);
    if !renewal.reconnect(&inside.fd()) {
        return false;
    }
    let Ok(source) = reconnect(socket.as_fd(), &listener) else {
        return false;
    };
    deliver(conn, socket.as_fd(), source, &room, whole);
    renewal.done();
    true
}

/// Does the kernel still try to deliver bytes of ours, to somebody? What is on its way to a socket that was in the peer's hands
/// alone, a doorbell say, nobody will read.
fn delivers(inside: &Inside) -> bool {
    if !inside.conn().peer_asks_for_tcp() {
        return false;
    }
    /// TCP_CLOSE, <netinet/tcp.h>.
    const CLOSED: u8 = 7;
    let fd = inside.fd().now();
    // It begins with the state.
    let [state] = buffers::tcp_info(fd).unwrap_or([CLOSED]);
    state != CLOSED && buffers::unsent(fd, libc::TIOCOUTQ) > 0
}

/// Puts into `socket`, whose other end is `source`, what was drained, and the end: of the stream, if it is `whole`, else bytes as far
/// as they go, and then ECONNRESET. Then shuts the halves that the program has shut.
fn deliver(conn: &Conn, socket: BorrowedFd<'_>, source: OwnedFd, room: &Room, whole: bool) {
    /// Longer it takes for a full buffer alone.
    const ARRIVAL: Duration = Duration::from_secs(1);
    let (write_shut, read_shut) = (flag::WRITE_SHUT, flag::READ_SHUT);
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let bytes = room.filled();
    let sent = bytes.is_empty() || net::send(&source, bytes, flags) == Ok(bytes.len());
    if !whole || !sent {
        let _ = sockopt::set_socket_linger(&source, Some(Duration::ZERO));
    } else if conn.end().has(read_shut) {
        // Its close waits then until all has arrived.
        let _ = sockopt::set_socket_linger(&source, Some(ARRIVAL));
    }
    drop(source);
    if conn.end().has(write_shut) {
        let _ = net::shutdown(socket, net::Shutdown::Write);
    }
    // What comes to a socket that is shut both ways resets it. Who reads finds the same end without that.
    let arrived = || rustix::io::ioctl_fionread(socket) == Ok(bytes.len() as u64);
    if conn.end().has(read_shut) && arrived() {
        let _ = net::shutdown(socket, net::Shutdown::Read);
    }
}

/// Memory for all that may be unread.
struct Room {
    bytes: &'static mut [u8],
    filled: usize,
}

impl Room {
    fn new(inside: &Inside) -> Option<Self> {
        /// What a peer's kernel holds back at most, by default, because it finds no room at its reader's.
        const BEHIND: usize = 4 << 20;
        let bytes = inside.fd().queued() + inside.conn().most_unread() + BEHIND;
        let (none, read_write) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a fresh mapping, zeroed where it is touched; unmapped with the value.
        let at = unsafe { mm::mmap_anonymous(none, bytes, read_write, MapFlags::PRIVATE) }.ok()?;
        // SAFETY: mapped just now with that many bytes, nobody else knows of it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(at.cast::<u8>(), bytes) };
        Some(Self { bytes, filled: 0 })
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; nothing refers to it any more.
        let _ = unsafe { mm::munmap(self.bytes.as_mut_ptr().cast(), self.bytes.len()) };
    }
}

/// The peer is gone, but its kernel may still have payload that finds no room here before some is read: it follows at once
/// then. False: nothing comes.
fn more_follows(inside: &Inside) -> bool {
    const PATIENCE_US: u64 = 1_000_000;
    let limit = crate::kernel::timespec(PATIENCE_US);
    let fd = borrow(inside);
    let mut fds = [PollFd::new(&fd, PollFlags::IN | PollFlags::RDHUP)];
    loop {
        match rustix::event::poll(&mut fds, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            said => return said.is_ok_and(|n| n > 0),
        }
    }
}

/// Takes what is left to be read, up to the end. False: not all of it, or it ends in a reset.
fn drain(inside: &Inside, room: &mut Room) -> bool {
    let o = RecvOptions {
        dont_wait: true,
        ..Default::default()
    };
    loop {
        let free = &mut room.bytes[room.filled..];
        if free.is_empty() {
            return false;
        }
        let got = match inside
            .conn()
            .recv(&inside.fd(), &mut [IoSliceMut::new(free)], o)
        {
            Err(Fault::UseKernel) => {
                match net::recv(borrow(inside), &mut *free, RecvFlags::DONTWAIT) {
                    Err(rustix::io::Errno::AGAIN) => Err(Fault::WouldBlock),
                    said => said.map(|(n, _)| n).map_err(crate::kernel::fault),
                }
            }
            got => got,
        };
        match got {
            // Another's renewal that was not done ends as a reset does, also once that is told.
            Ok(0) => return !inside.conn().end().has(flag::CORRUPT),
            Ok(n) => room.filled += n,
            Err(Fault::WouldBlock) if more_follows(inside) => {}
            Err(_) => return false,
        }
    }
}

fn borrow(inside: &Inside) -> BorrowedFd<'_> {
    // SAFETY: inside, the socket is open, though another thread may have closed the descriptor.
    unsafe { BorrowedFd::borrow_raw(inside.fd().now()) }
}

/// A TCP socket of the same family.
fn socket_like(socket: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let domain = sockopt::socket_domain(socket)?;
    net::socket_with(domain, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// A listener that this socket can connect to, whatever address it is bound to.
fn listener_beside(socket: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let listener = socket_like(socket)?;
    if sockopt::socket_domain(socket)? == AddressFamily::INET6 {
        // It may be an IPv4 address, in IPv6's clothes.
        sockopt::set_ipv6_v6only(&listener, false)?;
    }
    let mut local = std::net::SocketAddr::try_from(net::getsockname(socket)?)?;
    local.set_port(0);
    net::bind(&listener, &local)?;
    // Anybody may connect to it.
    net::listen(&listener, 16)?;
    Ok(listener)
}

/// Connects a socket to such a listener. The other end.
fn join(socket: BorrowedFd<'_>, listener: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    use rustix::io::Errno;
    let to = net::getsockname(listener)?;
    loop {
        match net::connect(socket, &to) {
            Ok(()) | Err(Errno::ISCONN) => break,
            // It does not wait, or was interrupted; on one host this takes a moment.
            Err(Errno::INPROGRESS | Errno::ALREADY | Errno::INTR) => {
                let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
                let limit = crate::kernel::timespec(1_000_000);
                if rustix::event::poll(&mut fds, Some(&limit)) == Ok(0) {
                    return Err(Errno::TIMEDOUT);
                }
            }
            Err(error) => return Err(error),
        }
    }
    let ours = net::getsockname(socket)?;
    loop {
        let (other, from) = net::acceptfrom_with(listener, SocketFlags::CLOEXEC)?;
        if from.as_ref() == Some(&ours) {
            return Ok(other);
        }
    }
}

/// Dissolves the kernel's connection of a socket, and connects it to the listener. The other end.
fn reconnect(socket: BorrowedFd<'_>, listener: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    disconnect(socket.as_raw_fd());
    // That it was dissolved is not to be told.
    let _ = sockopt::socket_error(socket);
    join(socket, listener)
}

/// Resets the kernel's connection, so that both ends see an error and no end-of-file.
pub fn disconnect(fd: c_int) {
    let unspec = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let saved = crate::errno();
    // SAFETY: a local address of that size.
    unsafe { real::connect(fd, &unspec, size_of_val(&unspec) as libc::socklen_t) };
    crate::set_errno(saved);
}
