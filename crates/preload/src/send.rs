//! write, send and their family, and sendfile.

use std::ffi::{c_int, c_uint, c_void};
use std::io::IoSlice;

use gm::Reason;
use libc::{iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use sockets::{Fault, SendOptions};

use crate::fds::{Inside, enter};
use crate::kernel::errno_of;
use crate::real;
use crate::receive::{IOV_MAX, with_flags};

const CARRIED: c_int = libc::MSG_DONTWAIT
    | libc::MSG_NOSIGNAL
    | libc::MSG_MORE
    | libc::MSG_EOR
    | libc::MSG_DONTROUTE
    | libc::MSG_CONFIRM;

fn options(inside: &Inside, flags: c_int) -> SendOptions {
    let nonblocking = inside.conn().end().has(gm::end::flag::NONBLOCK);
    SendOptions {
        dont_wait: nonblocking || flags & libc::MSG_DONTWAIT != 0,
    }
}

fn answer(r: Result<usize, Fault>, flags: c_int) -> ssize_t {
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
    bufs: impl FnOnce(&dyn Fn(&[IoSlice<'_>]) -> ssize_t) -> ssize_t,
    plain: impl FnOnce() -> ssize_t,
) -> ssize_t {
    let Some(inside) = enter(fd) else {
        return plain();
    };
    if flags & libc::MSG_OOB != 0 {
        let node = &inside.ctx().node;
        inside
            .conn()
            .before_urgent(node, &inside.fd, Reason::Unsupported);
    } else if inside.engaged() {
        if flags & !CARRIED == 0 {
            let o = options(&inside, flags);
            return bufs(&|b| answer(inside.conn().send(&inside.fd, b, o), flags));
        }
        // MSG_ZEROCOPY ...: this direction goes back to TCP, in order, and then the kernel does it.
        inside.conn().send_over_tcp(&inside.fd, Reason::Unsupported);
    }
    let n = plain();
    if n > 0 {
        // The byte of MSG_OOB takes its place in the sequence as any other.
        inside.conn().count_plain(n as usize, 0);
    }
    n
}

/// # Safety
/// `buf` must be readable for `n` bytes.
unsafe fn one<'a>(buf: *const c_void, n: size_t) -> IoSlice<'a> {
    if n == 0 || buf.is_null() {
        return IoSlice::new(&[]);
    }
    // SAFETY: by the caller.
    IoSlice::new(unsafe { std::slice::from_raw_parts(buf.cast(), n.min(isize::MAX as usize)) })
}

/// # Safety
/// As for writev. `IoSlice` is promised to have iovec's layout.
unsafe fn many<'a>(iov: *const iovec, n: usize) -> &'a [IoSlice<'a>] {
    if n == 0 || iov.is_null() {
        return &[];
    }
    // SAFETY: by the caller.
    unsafe { std::slice::from_raw_parts(iov.cast(), n) }
}

/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, buf: *const c_void, n: size_t) -> ssize_t {
    transmit(
        fd,
        0,
        // SAFETY: the caller's buffer.
        |f| f(&[unsafe { one(buf, n) }]),
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::write(fd, buf, n) },
    )
}

/// # Safety
/// As send(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(fd: c_int, buf: *const c_void, n: size_t, flags: c_int) -> ssize_t {
    transmit(
        fd,
        flags,
        // SAFETY: the caller's buffer.
        |f| f(&[unsafe { one(buf, n) }]),
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::send(fd, buf, n, flags) },
    )
}

/// # Safety
/// As sendto(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
    fd: c_int,
    buf: *const c_void,
    n: size_t,
    flags: c_int,
    to: *const sockaddr,
    len: socklen_t,
) -> ssize_t {
    transmit(
        fd,
        flags,
        // SAFETY: the caller's buffer.
        |f| f(&[unsafe { one(buf, n) }]),
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::sendto(fd, buf, n, flags, to, len) },
    )
}

/// # Safety
/// As writev(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t {
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
    transmit(fd, flags, |f| f(unsafe { many(iov, n) }), plain)
}

with_flags!(transmit_many: pwritev2, pwritev64v2);

/// # Safety
/// As sendmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: null or the caller's header.
    if unsafe { msg.as_ref() }.is_none_or(|m| m.msg_iovlen > IOV_MAX as usize) {
        // SAFETY: the caller's arguments; the kernel refuses them.
        return unsafe { real::sendmsg(fd, msg, flags) };
    }
    // SAFETY: the caller's header.
    let passed = unsafe { pass(msg) };
    let n = transmit(
        fd,
        flags,
        // SAFETY: the caller's header and the buffers in it.
        |f| unsafe { f(many((*msg).msg_iov, (*msg).msg_iovlen)) },
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::sendmsg(fd, msg, flags) },
    );
    if n < 0 && passed {
        // SAFETY: the caller's header.
        unsafe { not_passed(msg) };
    }
    n
}

/// # Safety
/// As sendmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmmsg(fd: c_int, msgs: *mut mmsghdr, n: c_uint, flags: c_int) -> c_int {
    if !crate::fds::is_tracked(fd) {
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::sendmmsg(fd, msgs, n, flags) };
    }
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

/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile(out: c_int, from: c_int, offset: *mut i64, n: size_t) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    transmit_file(out, from, offset, n, || unsafe {
        real::sendfile(out, from, offset, n)
    })
}

/// # Safety
/// As sendfile64(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(
    out: c_int,
    from: c_int,
    offset: *mut i64,
    n: size_t,
) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    transmit_file(out, from, offset, n, || unsafe {
        real::sendfile64(out, from, offset, n)
    })
}

/// A piece of file at a time through a buffer on the stack.
const FILE_PIECE: usize = 32 * 1024;
/// What sendfile(2) moves at most.
const FILE_MOST: usize = 0x7fff_f000;

fn transmit_file(
    out: c_int,
    from: c_int,
    offset: *mut i64,
    n: size_t,
    plain: impl FnOnce() -> ssize_t,
) -> ssize_t {
    let Some(inside) = enter(out) else {
        return plain();
    };
    if !inside.engaged() {
        let r = plain();
        if r > 0 {
            inside.conn().count_plain(r as usize, 0);
        }
        return r;
    }
    let n = n.min(FILE_MOST);
    let o = options(&inside, 0);
    let mut piece = [0_u8; FILE_PIECE];
    let mut done = 0;
    // SAFETY: the caller's out-pointer, or null: then the file's own position counts, and moves only by what was sent.
    let start = unsafe {
        if offset.is_null() {
            libc::lseek64(from, 0, libc::SEEK_CUR)
        } else {
            *offset
        }
    };
    let mut fault = match start {
        0.. => None,
        _ if offset.is_null() => Some(crate::errno()),
        _ => Some(libc::EINVAL),
    };
    while done < n && fault.is_none() {
        let want = piece.len().min(n - done);
        // SAFETY: into our own buffer.
        let got =
            unsafe { libc::pread64(from, piece.as_mut_ptr().cast(), want, start + done as i64) };
        match got {
            0 => break,
            ..0 => fault = Some(crate::errno()),
            got => {
                let got = got as usize;
                match inside
                    .conn()
                    .send(&inside.fd, &[IoSlice::new(&piece[..got])], o)
                {
                    Ok(sent) => {
                        done += sent;
                        if sent < got {
                            break;
                        }
                    }
                    Err(f) => {
                        if f == Fault::Pipe && done == 0 {
                            return answer(Err(f), 0);
                        }
                        fault = Some(errno_of(f));
                    }
                }
            }
        }
    }
    if done == 0
        && let Some(e) = fault
    {
        crate::set_errno(e);
        return -1;
    }
    // SAFETY: as above.
    unsafe {
        if offset.is_null() {
            libc::lseek64(from, start + done as i64, libc::SEEK_SET);
        } else {
            *offset = start + done as i64;
        }
    }
    done as ssize_t
}

/// # Safety
/// As splice(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn splice(
    from: c_int,
    off_in: *mut i64,
    to: c_int,
    off_out: *mut i64,
    n: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    let plain = || unsafe { real::splice(from, off_in, to, off_out, n, flags) };
    if let Some(inside) = enter(from) {
        if inside.engaged() {
            return splice_out(&inside, to, n, flags);
        }
        let r = plain();
        if r > 0 {
            inside.conn().count_plain(0, r as usize);
        }
        return r;
    }
    let Some(inside) = enter(to) else {
        return plain();
    };
    if inside.engaged() {
        return splice_in(&inside, from, n, flags);
    }
    let r = plain();
    if r > 0 {
        inside.conn().count_plain(r as usize, 0);
    }
    r
}

/// What a splice moves at once: a pipe's usual capacity is twice as much.
const SPLICE_PIECE: usize = 32 * 1024;

fn splice_waits(inside: &Inside, flags: c_uint) -> bool {
    let nonblocking = inside.conn().end().has(gm::end::flag::NONBLOCK);
    !nonblocking && flags & libc::SPLICE_F_NONBLOCK == 0
}

/// From a carried connection into a pipe: looks, writes, and takes what the pipe took.
fn splice_out(inside: &Inside, to: c_int, n: size_t, flags: c_uint) -> ssize_t {
    let mut piece = [0_u8; SPLICE_PIECE];
    let want = piece.len().min(n);
    let o = sockets::RecvOptions {
        dont_wait: !splice_waits(inside, flags),
        peek: true,
        ..Default::default()
    };
    let mut room = [std::io::IoSliceMut::new(&mut piece[..want])];
    let seen = match inside.conn().recv(&inside.fd, &mut room, o) {
        Ok(seen) => seen,
        Err(f) => return answer(Err(f), libc::MSG_NOSIGNAL),
    };
    if seen == 0 {
        return 0;
    }
    // SAFETY: from our own buffer.
    let put = unsafe { real::write(to, piece.as_ptr().cast(), seen) };
    if put > 0 {
        let take = sockets::RecvOptions {
            dont_wait: true,
            ..Default::default()
        };
        let _ = inside.conn().skip(&inside.fd, put as usize, take);
    }
    put
}

/// From a pipe into a carried connection: only as much as there is room for, because a pipe takes nothing back.
fn splice_in(inside: &Inside, from: c_int, n: size_t, flags: c_uint) -> ssize_t {
    let mut piece = [0_u8; SPLICE_PIECE];
    let waits = splice_waits(inside, flags);
    let room = if waits {
        piece.len()
    } else {
        inside.conn().room(&inside.fd)
    };
    let want = piece.len().min(n).min(room);
    if want == 0 && n > 0 {
        return answer(Err(Fault::WouldBlock), 0);
    }
    // SAFETY: into our own buffer.
    let got = unsafe { real::read(from, piece.as_mut_ptr().cast(), want) };
    if got <= 0 {
        return got;
    }
    let bytes = &piece[..got as usize];
    answer(
        inside.conn().send(
            &inside.fd,
            &[IoSlice::new(bytes)],
            SendOptions { dont_wait: false },
        ),
        0,
    )
}
