//! read, recv and their family.

use std::ffi::{c_int, c_uint, c_void};
use std::io::IoSliceMut;
use std::mem::ManuallyDrop;

use libc::{iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};
use sockets::{Fault, RecvOptions};

use crate::fds::{Inside, enter};
use crate::kernel::errno_of;
use crate::vectors::{ANY, Buffers, IOV_MAX, is_refused, one_to_fill};
use crate::{cancel, real};

fn options(inside: &Inside, flags: c_int) -> RecvOptions {
    let nonblocking = inside.conn().end().has(gm::end::flag::NONBLOCK);
    RecvOptions {
        dont_wait: nonblocking || flags & libc::MSG_DONTWAIT != 0,
        peek: flags & libc::MSG_PEEK != 0,
        wait_all: flags & libc::MSG_WAITALL != 0,
    }
}

fn answer(r: Result<usize, Fault>) -> ssize_t {
    match r {
        Ok(n) => n as ssize_t,
        Err(f) => {
            crate::set_errno(errno_of(f));
            -1
        }
    }
}

/// One receiving call, with room for `room` bytes: from the ring if the connection is carried, else `plain`.
#[inline]
fn receive(
    fd: c_int,
    flags: c_int,
    room: usize,
    bufs: impl FnOnce(&mut dyn FnMut(&mut [IoSliceMut<'_>]) -> ssize_t) -> Result<ssize_t, c_int>,
    plain: impl Fn() -> ssize_t,
) -> ssize_t {
    cancel::point();
    let Some(inside) = enter(fd) else {
        return plain();
    };
    let n = receive_inside(inside, flags, room, bufs, plain);
    cancel::end();
    n
}

#[inline]
fn receive_inside(
    inside: Inside,
    flags: c_int,
    room: usize,
    bufs: impl FnOnce(&mut dyn FnMut(&mut [IoSliceMut<'_>]) -> ssize_t) -> Result<ssize_t, c_int>,
    plain: impl Fn() -> ssize_t,
) -> ssize_t {
    if inside.engaged() {
        if flags & (libc::MSG_OOB | libc::MSG_ERRQUEUE) != 0 {
            // MSG_OOB and the error queue are the kernel's; they take no byte of the stream.
            return plain();
        }
        let o = options(&inside, flags);
        let mut got = Err(Fault::UseKernel);
        if flags & libc::MSG_TRUNC != 0 && room > 0 {
            got = inside.conn().skip(&inside.fd(), room, o);
        } else {
            // A look that waits for all of it: news of more is not waited for while some is there. The kernel does that.
            let waits = o.peek && o.wait_all && !o.dont_wait;
            let r = bufs(&mut |b| {
                got = inside.conn().recv(&inside.fd(), b, o);
                if waits && got.is_ok_and(|n| n < b.iter().map(|b| b.len()).sum()) {
                    crate::giving::hand_back(&inside, gm::Reason::Unsupported);
                    got = Err(Fault::UseKernel);
                }
                got.map_or(-1, |n| n as ssize_t)
            });
            match r {
                Ok(0..) => return r.unwrap_or_default(),
                Ok(_) => {}
                Err(e) => {
                    crate::set_errno(e);
                    return -1;
                }
            }
        }
        if got != Err(Fault::UseKernel) {
            return answer(got);
        }
    }
    let inside = ManuallyDrop::new(inside);
    let n = cancel::plain(inside.slot, plain);
    let inside = ManuallyDrop::into_inner(inside);
    if n > 0 && flags & (libc::MSG_PEEK | libc::MSG_OOB | libc::MSG_ERRQUEUE) == 0 {
        inside.conn().count_plain(0, n as usize);
    }
    n
}

/// # Safety
/// `buf` must be writable for `n` bytes, as the C function demands.
#[inline]
unsafe fn fill_one(
    buf: *mut c_void,
    n: size_t,
    f: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> ssize_t,
) -> Result<ssize_t, c_int> {
    // SAFETY: by the caller.
    unsafe { Ok(f(&mut one_to_fill(buf, n)?)) }
}

/// # Safety
/// As for readv.
unsafe fn fill_many(
    iov: *const iovec,
    n: usize,
    f: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> ssize_t,
) -> Result<ssize_t, c_int> {
    // SAFETY: by the caller.
    unsafe { Ok(f(Buffers::many(iov, n, ANY)?.for_filling())) }
}

/// # Safety
/// As recv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recv(
    fd: c_int,
    buf: *mut c_void,
    n: size_t,
    flags: c_int,
) -> ssize_t {
    receive(
        fd,
        flags,
        n,
        // SAFETY: the caller's buffer.
        |f| unsafe { fill_one(buf, n, f) },
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::recv(fd, buf, n, flags) },
    )
}

/// # Safety
/// As read(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn read(fd: c_int, buf: *mut c_void, n: size_t) -> ssize_t {
    if (n == 0 || is_refused(buf, n)) && crate::fds::is_tracked(fd) {
        // read(2) of nothing, unlike recv(2), never waits.
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::read(fd, buf, n) };
    }
    receive(
        fd,
        0,
        n,
        // SAFETY: the caller's buffer.
        |f| unsafe { fill_one(buf, n, f) },
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::read(fd, buf, n) },
    )
}

/// # Safety
/// As recvfrom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvfrom(
    fd: c_int,
    buf: *mut c_void,
    n: size_t,
    flags: c_int,
    from: *mut sockaddr,
    len: *mut socklen_t,
) -> ssize_t {
    let r = receive(
        fd,
        flags,
        n,
        // SAFETY: the caller's buffer.
        |f| unsafe { fill_one(buf, n, f) },
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::recvfrom(fd, buf, n, flags, from, len) },
    );
    if r < 0 || from.is_null() || len.is_null() || !crate::fds::is_tracked(fd) {
        return r;
    }
    // SAFETY: the caller's in- and out-pointer.
    unsafe {
        if (*len).cast_signed() < 0 {
            // What was read is gone, as with the kernel's.
            crate::set_errno(libc::EINVAL);
            return -1;
        }
        // TCP reports no address: the kernel sets the length to zero.
        *len = 0;
    }
    r
}

/// # Safety
/// As readv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn readv(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t {
    if !(1..=IOV_MAX).contains(&n) {
        // SAFETY: the caller's arguments; the kernel refuses them, or has nothing to do.
        return unsafe { real::readv(fd, iov, n) };
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { receive_many(fd, 0, iov, n as usize, || real::readv(fd, iov, n)) }
}

/// # Safety
/// `iov` must be the caller's `n` buffers.
unsafe fn receive_many(
    fd: c_int,
    flags: c_int,
    iov: *const iovec,
    n: usize,
    plain: impl Fn() -> ssize_t,
) -> ssize_t {
    if !crate::fds::is_tracked(fd) {
        return plain();
    }
    // SAFETY: by the caller.
    let nothing = iov.is_null() || (0..n).all(|i| unsafe { (*iov.add(i)).iov_len } == 0);
    if nothing {
        // As read(2), it never waits then.
        return plain();
    }
    // SAFETY: by the caller.
    receive(fd, flags, 0, |f| unsafe { fill_many(iov, n, f) }, plain)
}

/// Flags of preadv2 and pwritev2 that say nothing to a stream, but for `RWF_NOWAIT`.
const CARRIED_RWF: c_int = libc::RWF_HIPRI
    | libc::RWF_DSYNC
    | libc::RWF_SYNC
    | libc::RWF_NOWAIT
    | libc::RWF_APPEND
    | libc::RWF_NOAPPEND;

/// May a call with these flags be carried? With others the kernel says no, or does what we don't know: on TCP, then.
pub fn carries_rwf(fd: c_int, flags: c_int) -> bool {
    let both = libc::RWF_APPEND | libc::RWF_NOAPPEND;
    if flags & !CARRIED_RWF != 0
        && let Some(inside) = enter(fd)
    {
        crate::giving::hand_back(&inside, gm::Reason::Unsupported);
    }
    flags & !CARRIED_RWF == 0 && flags & both != both
}

/// The calls with an offset and flags: carried is what is at no offset.
macro_rules! with_flags {
    ($many:ident: $($name:ident),*) => {$(
        /// # Safety
        /// As preadv2(2) and pwritev2(2).
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(
            fd: c_int,
            iov: *const iovec,
            n: c_int,
            offset: i64,
            flags: c_int,
        ) -> ssize_t {
            // SAFETY: the caller's arguments, unchanged.
            let plain = || unsafe { real::$name(fd, iov, n, offset, flags) };
            let now = if flags & libc::RWF_NOWAIT != 0 { libc::MSG_DONTWAIT } else { 0 };
            if offset != -1 || !(1..=IOV_MAX).contains(&n) || !$crate::receive::carries_rwf(fd, flags) {
                return plain();
            }
            // SAFETY: the caller's buffers.
            unsafe { $many(fd, now, iov, n as usize, plain) }
        }
    )*};
}
pub(crate) use with_flags;
with_flags!(receive_many: preadv2, preadv64v2);

/// # Safety
/// As recvmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    if !crate::fds::is_tracked(fd) {
        // SAFETY: the caller's arguments, unchanged.
        let n = unsafe { real::recvmsg(fd, msg, flags) };
        if n >= 0 {
            // SAFETY: the caller's header, as the kernel left it.
            unsafe { crate::adopt::received(msg, flags & libc::MSG_PEEK != 0) };
        }
        return n;
    }
    // SAFETY: null or the caller's header.
    let sound = unsafe { msg.as_ref() }.filter(|m| !crate::send::refused(m));
    // The sign of the flags (MSG_CMSG_COMPAT) is the kernel's own.
    let Some(count) = sound.filter(|_| flags >= 0).map(|m| m.msg_iovlen) else {
        // SAFETY: the caller's arguments; the kernel refuses them.
        return unsafe { real::recvmsg(fd, msg, flags) };
    };
    let room = if flags & libc::MSG_TRUNC != 0 {
        // SAFETY: the caller's header and its array.
        unsafe { Buffers::many((*msg).msg_iov, count, ANY) }.map_or(0, |b| b.bytes())
    } else {
        0
    };
    // SAFETY: the caller's header.
    let control = unsafe { (*msg).msg_controllen };
    let n = receive(
        fd,
        flags,
        room,
        |f| {
            // SAFETY: the caller's header and the buffers in it.
            unsafe {
                let m = &mut *msg;
                let r = fill_many(m.msg_iov, m.msg_iovlen, f)?;
                if r >= 0 {
                    m.msg_namelen = 0;
                    m.msg_controllen = 0;
                    m.msg_flags = 0;
                }
                Ok(r)
            }
        },
        // SAFETY: the caller's arguments, unchanged.
        || unsafe { real::recvmsg(fd, msg, flags) },
    );
    if n >= 0 && control > 0 {
        // SAFETY: the caller's header, as the kernel left it.
        unsafe { crate::adopt::received(msg, flags & libc::MSG_PEEK != 0) };
    }
    n
}

/// Takes the error that waits to be told.
fn pending_error(fd: c_int) -> Option<c_int> {
    let (mut error, mut length) = (0, size_of::<c_int>() as libc::socklen_t);
    let saved = crate::errno();
    // SAFETY: a local number of that size.
    let r = unsafe {
        let value = (&raw mut error).cast();
        crate::options::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, value, &mut length)
    };
    crate::set_errno(saved);
    (r == 0 && error != 0).then_some(error)
}

/// # Safety
/// As recvmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmmsg(
    fd: c_int,
    msgs: *mut mmsghdr,
    n: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    // SAFETY: null or the caller's time-out.
    let sound = || !msgs.is_null() && flags >= 0 && unsafe { crate::time::is_time(timeout) };
    if !crate::fds::is_tracked(fd) || !sound() {
        // SAFETY: the caller's arguments, unchanged.
        let r = unsafe { real::recvmmsg(fd, msgs, n, flags, timeout) };
        for i in 0..usize::try_from(r).unwrap_or(0) {
            // SAFETY: the kernel has filled the first `r` of the caller's headers.
            unsafe {
                crate::adopt::received(
                    &raw const (*msgs.add(i)).msg_hdr,
                    flags & libc::MSG_PEEK != 0,
                )
            };
        }
        return r;
    }
    if let Some(error) = pending_error(fd) {
        // The plural call, unlike the others, tells it before the bytes that are there.
        crate::set_errno(error);
        return -1;
    }
    // SAFETY: null or the caller's time-out.
    let end = unsafe { crate::time::after_timespec(timeout) };
    let mut done = 0;
    while done < n {
        // After the first message MSG_WAITFORONE means "what is there".
        let wait = done > 0 && flags & libc::MSG_WAITFORONE != 0;
        let f = flags & !libc::MSG_WAITFORONE | if wait { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: the caller's array of `n` headers.
        let r = unsafe {
            let m = &mut *msgs.add(done as usize);
            let r = recvmsg(fd, &raw mut m.msg_hdr, f);
            m.msg_len = r.max(0) as c_uint;
            r
        };
        if r < 0 && done > 0 {
            // As the kernel does: what was received is told first, and a reset then.
            if crate::errno() == libc::ECONNRESET
                && let Some(inside) = crate::fds::enter(fd)
            {
                let _ = inside.conn().so_far(1, sockets::Fault::Reset);
            }
            return done as c_int;
        }
        if r < 0 {
            return -1;
        }
        done += 1;
        // Looked at between messages alone; what is left of it is told.
        if let Some(left) = crate::time::left(end) {
            // SAFETY: the caller's time-out, since there is one.
            unsafe { *timeout = left };
            if left.tv_sec == 0 && left.tv_nsec == 0 {
                break;
            }
        }
    }
    done as c_int
}

/// glibc's fortified calls check the buffer's size and go on as the plain ones.
fn fortify(n: size_t, room: size_t) {
    if n > room {
        std::process::abort();
    }
}

/// # Safety
/// As read(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __read_chk(
    fd: c_int,
    buf: *mut c_void,
    n: size_t,
    room: size_t,
) -> ssize_t {
    fortify(n, room);
    // SAFETY: the caller's arguments.
    unsafe { read(fd, buf, n) }
}

/// # Safety
/// As recv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recv_chk(
    fd: c_int,
    buf: *mut c_void,
    n: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    fortify(n, room);
    // SAFETY: the caller's arguments.
    unsafe { recv(fd, buf, n, flags) }
}

/// # Safety
/// As recvfrom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recvfrom_chk(
    fd: c_int,
    buf: *mut c_void,
    n: size_t,
    room: size_t,
    flags: c_int,
    from: *mut sockaddr,
    len: *mut socklen_t,
) -> ssize_t {
    fortify(n, room);
    // SAFETY: the caller's arguments.
    unsafe { recvfrom(fd, buf, n, flags, from, len) }
}
