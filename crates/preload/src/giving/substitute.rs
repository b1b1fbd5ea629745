//! Another socket in the place of one whose peer can put nothing on its stream any more, while the kernel still delivers what the
//! program has sent: the program has shut both ways, with bytes unread that came before, say. The kernel's connection has to go on
//! without us, so it can't be dissolved.

use std::ffi::c_int;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use gm::end::flag;
use rustix::io::FdFlags;
use rustix::net::sockopt;

use super::{Room, borrow, deliver, drain, join, listener_beside, socket_like};
use crate::fds::{self, Inside};
use crate::process::vfork;
use crate::{adopt, epoll, real};

/// False: that can't be done. Its buffers are not on the stack of whoever needs none.
#[cold]
#[inline(never)]
pub fn substitute(inside: &Inside) -> bool {
    let (Ok((fresh, source)), Some(mut room)) = (loopback_pair(inside), Room::new(inside)) else {
        return false;
    };
    let whole = drain(inside, &mut room);
    if inside.conn().end().refs.load(Relaxed) > 1 {
        // Other processes have the old one still, and what was drained is lost to them.
        inside.conn().end().set(flag::UNMOVED);
    }
    deliver(inside.conn(), fresh.as_fd(), source, &room, whole);
    match vfork::is_guest(inside.ctx()) {
        true => take_place_in_guest(inside, &fresh),
        false => take_place(inside, &fresh),
    }
    true
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
fn loopback_pair(inside: &Inside) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let listener = listener_beside(borrow(inside))?;
    let one = socket_like(borrow(inside))?;
    let other = join(one.as_fd(), &listener)?;
    Ok((one, other))
}
