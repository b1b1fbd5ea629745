//! Giving a connection to somebody who may not know of rings: stdio, another program, a call that the kernel alone can do.

use std::ffi::c_int;
use std::io::IoSliceMut;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use gm::end::flag;
use gm::{Port, Reason};
use rustix::event::{PollFd, PollFlags};
use rustix::io::FdFlags;
use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use sockets::{Conn, Copied, Fault, Given, Kernel, RecvOptions};

use crate::fds::{self, Inside};
use crate::kernel::Fd;
use crate::process::vfork;
use crate::{adopt, ctx, epoll, quiet, real};

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
        Given::Orphaned if substitute(inside).is_some() => {}
        // What can't be had whole must not look as if it were.
        Given::Orphaned | Given::Spoilt => disconnect(inside.number),
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

/// The peer is gone, and what it left is in the ring alone. Another connection, within this process, takes the place of its:
/// it has those bytes, and then the end. `None`: that can't be done. Its buffers are not on the stack of whoever needs none.
#[cold]
#[inline(never)]
fn substitute(inside: &Inside) -> Option<()> {
    let (fresh, source) = loopback_pair().ok()?;
    let guest = vfork::is_guest(inside.ctx());
    let shared = guest || inside.conn().end().refs.load(Acquire) > 1;
    let whole = match shared {
        true => pour_copy(inside, &source),
        false => pour(inside, &source),
    };
    if !whole {
        // Bytes first, as far as they go, then ECONNRESET.
        let _ = sockopt::set_socket_linger(&source, Some(std::time::Duration::ZERO));
    }
    drop(source);
    match guest {
        true => take_place_in_guest(inside, &fresh),
        false => take_place(inside, &fresh),
    }
    Some(())
}

/// As [`pour`], and leaves it where it is: other processes hold the connection too, and may be the ones that read.
fn pour_copy(inside: &Inside, to: &OwnedFd) -> bool {
    let bytes = inside.fd().queued() + sockets::RING_BYTES;
    let (none, read_write) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a fresh mapping, zeroed; unmapped below, when nothing refers to it.
    let Ok(room) = (unsafe { mm::mmap_anonymous(none, bytes, read_write, MapFlags::PRIVATE) })
    else {
        return false;
    };
    // SAFETY: mapped just now with that many bytes, nobody else knows of it.
    let room = unsafe { std::slice::from_raw_parts_mut(room.cast::<u8>(), bytes) };
    let seen = inside.conn().peek_all(&inside.fd(), room);
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let whole = match seen {
        Ok(Copied { bytes: n, whole }) => {
            let taken = net::send(to, &room[..n], flags) == Ok(n);
            taken && whole && !inside.conn().ends_by_reset()
        }
        Err(_) => false,
    };
    // SAFETY: the mapping made above.
    let _ = unsafe { mm::munmap(room.as_mut_ptr().cast(), bytes) };
    whole
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

/// What is left to be read goes into `to`, up to the end. False: not all of it, or it ends in a reset.
fn pour(inside: &Inside, to: &OwnedFd) -> bool {
    const PIECE: usize = 2048;
    let mut piece = [0_u8; PIECE];
    let o = RecvOptions {
        dont_wait: true,
        ..Default::default()
    };
    loop {
        let mut bufs = [IoSliceMut::new(&mut piece)];
        let got = match inside.conn().recv(&inside.fd(), &mut bufs, o) {
            Ok(0) => return true,
            Ok(n) => n,
            Err(Fault::WouldBlock) if more_follows(inside) => continue,
            Err(Fault::UseKernel) => {
                match net::recv(borrow(inside), &mut piece, RecvFlags::DONTWAIT) {
                    Ok((0, _)) => return true,
                    Ok((n, _)) => n,
                    Err(rustix::io::Errno::AGAIN) if more_follows(inside) => continue,
                    Err(_) => return false,
                }
            }
            Err(_) => return false,
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if net::send(to, &piece[..got], flags) != Ok(got) {
            return false;
        }
    }
}

fn borrow(inside: &Inside) -> BorrowedFd<'_> {
    // SAFETY: inside, the descriptor is open.
    unsafe { BorrowedFd::borrow_raw(inside.number) }
}

/// All descriptors of this process on the socket become `fresh`, which is nobody's business but the kernel's.
fn take_place(inside: &Inside, fresh: &OwnedFd) {
    make_alike(inside, fresh);
    let all: Vec<_> = fds::of_slot(inside.slot).collect();
    all.iter().for_each(|fd| put(fresh, *fd));
    // Only now has the kernel forgotten the old one in every set.
    epoll::on_substituted(inside.slot, &all);
    all.iter().for_each(|fd| fds::stale(*fd));
}

/// As [`take_place`], for a child whose descriptors are not in the tables: those that it has in common with its parent stay
/// the parent's.
fn take_place_in_guest(inside: &Inside, fresh: &OwnedFd) {
    let cookie = inside.conn().end().cookie.load(Relaxed);
    make_alike(inside, fresh);
    adopt::each_tcp(|fd| {
        if adopt::cookie(fd) == cookie {
            put(fresh, fd);
        }
        ControlFlow::Continue(())
    });
}

/// `fresh` gets what the program has set.
fn make_alike(inside: &Inside, fresh: &OwnedFd) {
    let old = borrow(inside);
    if let Ok(flags) = rustix::fs::fcntl_getfl(old) {
        let _ = rustix::fs::fcntl_setfl(fresh, flags);
    }
    for timeout in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        if let Ok(limit) = sockopt::socket_timeout(old, timeout) {
            let _ = sockopt::set_socket_timeout(fresh, timeout, limit);
        }
    }
    if inside.conn().end().has(flag::WRITE_SHUT) {
        let _ = net::shutdown(fresh, net::Shutdown::Write);
    }
}

/// A copy of `fresh` under the number `fd`, which is open.
fn put(fresh: &OwnedFd, fd: c_int) {
    // SAFETY: by the caller.
    let cloexec = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) })
        .is_ok_and(|f| f.contains(FdFlags::CLOEXEC));
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    let saved = crate::errno();
    // SAFETY: plain numbers.
    unsafe { real::dup3(fresh.as_raw_fd(), fd, flags) };
    crate::set_errno(saved);
}

/// Two ends of a fresh TCP connection.
fn loopback_pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let socket = || {
        net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
    };
    let listener = socket()?;
    let any = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0);
    net::bind(&listener, &any)?;
    net::listen(&listener, 1)?;
    let one = socket()?;
    net::connect(&one, &net::getsockname(&listener)?)?;
    loop {
        let (other, from) = net::acceptfrom_with(&listener, SocketFlags::CLOEXEC)?;
        // Anybody may connect to a listener.
        if from == Some(net::getsockname(one.as_fd())?) {
            return Ok((one, other));
        }
    }
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
