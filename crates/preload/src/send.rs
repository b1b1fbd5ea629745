//! write, send and their family.

use std::ffi::{c_int, c_uint, c_void};
use std::io::IoSlice;
use std::mem::ManuallyDrop;

use gm::Reason;
use libc::{iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use sockets::{Fault, SendOptions};

use crate::fds::{Inside, enter};
use crate::kernel::errno_of;
use crate::receive::with_flags;
use crate::vectors::{Buffers, IOV_MAX, MOST, is_bad_address, is_refused, one_to_send};
use crate::{cancel, real};

const CARRIED: c_int = libc::MSG_DONTWAIT
    | libc::MSG_NOSIGNAL
    | libc::MSG_MORE
    | libc::MSG_EOR
    | libc::MSG_DONTROUTE
    | libc::MSG_CONFIRM;

pub fn options(inside: &Inside, flags: c_int) -> SendOptions {
    let nonblocking = inside.conn().end().has(gm::end::flag::NONBLOCK);
    SendOptions {
        dont_wait: nonblocking || flags & libc::MSG_DONTWAIT != 0,
    }
}

pub fn answer(r: Result<usize, Fault>, flags: c_int) -> ssize_t {
    match r {
        Ok(n) => n as ssize_t,
        Err(f) => {
            if f == Fault::Pipe && flags & libc::MSG_NOSIGNAL == 0 {
                // SAFETY: raises in this thread, as the kernel would.
                unsafe { libc::raise(libc::SIGPIPE) };
            }
            crate::set_errno(errno_of(f));
            -1
        }
    }
}

/// One sending call: into the ring if the connection is carried, else `plain`.
#[inline]
fn transmit(
    fd: c_int,
    flags: c_int,
    bufs: impl FnOnce(&dyn Fn(&[IoSlice<'_>]) -> ssize_t) -> Result<ssize_t, c_int>,
    plain: impl Fn() -> ssize_t,
) -> ssize_t {
    cancel::point();
    let Some(inside) = enter(fd) else {
        return plain();
    };
    let n = transmit_inside(inside, flags, bufs, plain);
    cancel::end();
    n
}

#[inline]
fn transmit_inside(
    inside: Inside,
    flags: c_int,
    bufs: impl FnOnce(&dyn Fn(&[IoSlice<'_>]) -> ssize_t) -> Result<ssize_t, c_int>,
    plain: impl Fn() -> ssize_t,
) -> ssize_t {
    if flags & libc::MSG_OOB != 0 {
        let node = &inside.ctx().node;
        inside
            .conn()
            .before_urgent(node, &inside.fd(), Reason::Unsupported);
    } else if inside.engaged() {
        if flags & !CARRIED == 0 {
            let o = options(&inside, flags);
            let sent = bufs(&|b| answer(inside.conn().send(&inside.fd(), b, o), flags));
            return sent.unwrap_or_else(|e| {
                crate::set_errno(e);
                -1
            });
        }
        // MSG_ZEROCOPY ...: this direction goes back to TCP, in order, and then the kernel does it.
        inside
            .conn()
            .send_over_tcp(&inside.fd(), Some(Reason::Unsupported));
    }
    let inside = ManuallyDrop::new(inside);
    let n = cancel::plain(inside.slot, plain);
    let inside = ManuallyDrop::into_inner(inside);
    if n > 0 {
        // The byte of MSG_OOB takes its place in the sequence as any other.
        inside.conn().count_plain(n as usize, 0);
    }
    n
}

/// # Safety
/// `buf` must be readable for `n` bytes.
#[inline]
unsafe fn send_one(
    buf: *const c_void,
    n: size_t,
    f: &dyn Fn(&[IoSlice<'_>]) -> ssize_t,
) -> Result<ssize_t, c_int> {
    // SAFETY: by the caller.
    unsafe { Ok(f(&one_to_send(buf, n)?)) }
}

/// # Safety
/// As for writev.
unsafe fn send_many(
    iov: *const iovec,
    n: usize,
    f: &dyn Fn(&[IoSlice<'_>]) -> ssize_t,
) -> Result<ssize_t, c_int> {
    // SAFETY: by the caller.
    unsafe { Ok(f(Buffers::many(iov, n, MOST)?.for_sending())) }
}

/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn write(fd: c_int, buf: *const c_void, n: size_t) -> ssize_t {
    if is_refused(buf, n) {
        // SAFETY: the caller's arguments; the kernel refuses them.
        return unsafe { real::write(fd, buf, n) };
    }
    transmit(
        fd,
        0,
        // SAFETY: the caller's buffer.
        |f| unsafe { send_one(buf, n, f) },
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::write(fd, buf, n) },
    )
}

/// # Safety
/// As send(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn send(
    fd: c_int,
    buf: *const c_void,
    n: size_t,
    flags: c_int,
) -> ssize_t {
    transmit(
        fd,
        flags,
        // SAFETY: the caller's buffer.
        |f| unsafe { send_one(buf, n, f) },
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::send(fd, buf, n, flags) },
    )
}

/// # Safety
/// As sendto(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendto(
    fd: c_int,
    buf: *const c_void,
    n: size_t,
    flags: c_int,
    to: *const sockaddr,
    len: socklen_t,
) -> ssize_t {
    if !to.is_null() && is_bad_address(len) {
        // SAFETY: the caller's arguments; the kernel refuses them.
        return unsafe { real::sendto(fd, buf, n, flags, to, len) };
    }
    transmit(
        fd,
        flags,
        // SAFETY: the caller's buffer.
        |f| unsafe { send_one(buf, n, f) },
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::sendto(fd, buf, n, flags, to, len) },
    )
}

/// # Safety
/// As writev(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn writev(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t {
    if !(1..=IOV_MAX).contains(&n) {
        // SAFETY: the caller's arguments; the kernel refuses them, or has nothing to do.
        return unsafe { real::writev(fd, iov, n) };
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { transmit_many(fd, 0, iov, n as usize, || real::writev(fd, iov, n)) }
}

/// # Safety
/// `iov` must be the caller's `n` buffers.
unsafe fn transmit_many(
    fd: c_int,
    flags: c_int,
    iov: *const iovec,
    n: usize,
    plain: impl Fn() -> ssize_t,
) -> ssize_t {
    // SAFETY: by the caller.
    transmit(fd, flags, |f| unsafe { send_many(iov, n, f) }, plain)
}

with_flags!(transmit_many: pwritev2, pwritev64v2);

/// # Safety
/// As sendmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: null or the caller's header.
    let header = unsafe { msg.as_ref() }.filter(|m| !refused(m));
    let Some(header) = header.filter(|_| flags >= 0) else {
        // SAFETY: the caller's arguments; the kernel refuses them.
        return unsafe { real::sendmsg(fd, msg, flags) };
    };
    // SAFETY: the caller's header.
    if header.msg_controllen != 0 && unsafe { control_fails(fd, header) } {
        return -1;
    }
    // SAFETY: the caller's header.
    let passed = unsafe { pass(msg) };
    let n = transmit(
        fd,
        flags,
        // SAFETY: the caller's header and the buffers in it.
        |f| unsafe { send_many((*msg).msg_iov, (*msg).msg_iovlen, f) },
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::sendmsg(fd, msg, flags) },
    );
    if n < 0 && passed {
        // SAFETY: the caller's header.
        unsafe { not_passed(msg) };
    }
    n
}

/// Does the kernel refuse a message for this, whatever socket it is for?
pub fn refused(m: &msghdr) -> bool {
    m.msg_iovlen > IOV_MAX as usize || !m.msg_name.is_null() && m.msg_namelen.cast_signed() < 0
}

/// Control data means nothing for bytes in a ring, but what is wrong with it is an error: the kernel is asked by a message
/// without bytes. errno says what it is.
///
/// # Safety
/// As sendmsg(2).
#[cold]
unsafe fn control_fails(fd: c_int, header: &msghdr) -> bool {
    if !enter(fd).is_some_and(|inside| inside.engaged()) {
        return false;
    }
    let mut empty = *header;
    empty.msg_iov = std::ptr::null_mut();
    empty.msg_iovlen = 0;
    let saved = crate::errno();
    // SAFETY: the caller's header, without its buffers.
    let r = unsafe {
        real::sendmsg(
            fd,
            &raw const empty,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    // The peer's end is the engine's to tell.
    const WRONG: [c_int; 5] = [
        libc::EINVAL,
        libc::EFAULT,
        libc::ENOBUFS,
        libc::EPERM,
        libc::ENOMEM,
    ];
    let fails = r < 0 && WRONG.contains(&crate::errno());
    if !fails {
        crate::set_errno(saved);
    }
    fails
}

/// # Safety
/// As sendmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmmsg(
    fd: c_int,
    msgs: *mut mmsghdr,
    n: c_uint,
    flags: c_int,
) -> c_int {
    if !crate::fds::is_tracked(fd) || msgs.is_null() || flags < 0 {
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::sendmmsg(fd, msgs, n, flags) };
    }
    let n = n.min(IOV_MAX as c_uint);
    for i in 0..n {
        // SAFETY: the caller's array of `n` headers.
        let r = unsafe {
            let m = &mut *msgs.add(i as usize);
            let r = sendmsg(fd, &raw const m.msg_hdr, flags);
            m.msg_len = r.max(0) as c_uint;
            r
        };
        if r < 0 {
            return if i > 0 { i as c_int } else { -1 };
        }
    }
    n as c_int
}

/// Descriptors in the control data of a message that the kernel sends by itself: all go back to TCP.
///
/// # Safety
/// `msg` as for sendmsg.
pub unsafe fn hand_back_passed(msg: *const msghdr) {
    let give = |fd| crate::process::give_away(fd, Reason::Handed);
    // SAFETY: by the caller.
    unsafe { crate::adopt::each_passed(msg, give) };
}

/// Descriptors in a message's control data leave for a process that may not run our code. A carried connection goes back to
/// TCP; a plain one stays free to be carried by who receives it, once nobody else holds it. True: one was posted so.
///
/// # Safety
/// `msg` as for sendmsg.
#[inline]
unsafe fn pass(msg: *const msghdr) -> bool {
    let mut any = false;
    // SAFETY: by the caller.
    unsafe { crate::adopt::each_passed(msg, |fd| any |= crate::process::exec::pass(fd)) };
    any
}

/// The message was not sent.
///
/// # Safety
/// `msg` as for sendmsg.
#[cold]
unsafe fn not_passed(msg: *const msghdr) {
    let saved = crate::errno();
    // SAFETY: by the caller.
    unsafe { crate::adopt::each_passed(msg, crate::process::exec::not_passed) };
    crate::set_errno(saved);
}
