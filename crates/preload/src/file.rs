//! sendfile and splice: between files or pipes and connections, a piece at a time through a buffer.

use std::ffi::{c_int, c_uint};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;

use gm::Path;
use gm::end::flag;
use libc::{size_t, ssize_t};
use sockets::{Fault, Kernel, Ready, RecvOptions, SendOptions};

use crate::fds::{Inside, enter};
use crate::scratch::Piece;
use crate::send::{answer, options};
use crate::vectors::MOST;
use crate::{cancel, quiet, real};

/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile(
    out: c_int,
    from: c_int,
    offset: *mut i64,
    n: size_t,
) -> ssize_t {
    // SAFETY: the caller's arguments, or nothing to move.
    transmit_file(out, from, offset, n, |n| unsafe {
        real::sendfile(out, from, offset, n)
    })
}

/// # Safety
/// As sendfile64(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile64(
    out: c_int,
    from: c_int,
    offset: *mut i64,
    n: size_t,
) -> ssize_t {
    // SAFETY: the caller's arguments, or nothing to move.
    transmit_file(out, from, offset, n, |n| unsafe {
        real::sendfile64(out, from, offset, n)
    })
}

/// `plain`: the kernel's sendfile of that many bytes.
fn transmit_file(
    out: c_int,
    from: c_int,
    offset: *mut i64,
    n: size_t,
    plain: impl Fn(size_t) -> ssize_t,
) -> ssize_t {
    let Some(inside) = enter(out) else {
        let Some(source) = enter(from).filter(|_| n > 0 && offset.is_null()) else {
            return plain(n);
        };
        if !source.engaged() || !is_pipe(out, libc::O_WRONLY) {
            return plain(n);
        }
        // Into a pipe, the kernel's is splice.
        let flags = match source.conn().end().has(flag::NONBLOCK) {
            true => libc::SPLICE_F_NONBLOCK,
            false => 0,
        };
        let _whole = quiet::uncancelled();
        return match splice_out(&source, out, n.min(MOST), flags) {
            Err(Fault::UseKernel) => plain(n),
            Ok(moved) => moved,
            Err(f) => answer(Err(f), libc::MSG_NOSIGNAL),
        };
    };
    // Of nothing: the kernel looks at its arguments all the same.
    // sendfile is no cancellation point.
    let _whole = quiet::uncancelled();
    if !inside.engaged() || n == 0 {
        let r = plain(n);
        if r > 0 {
            inside.conn().count_plain(r as usize, 0);
        }
        return r;
    }
    // SAFETY: the caller's out-pointer, or null: then the file's own position counts, and moves only by what was sent.
    let start = unsafe {
        if offset.is_null() {
            libc::lseek64(from, 0, libc::SEEK_CUR)
        } else {
            *offset
        }
    };
    let moved = match start {
        0.. => move_file(&inside, from, start, n.min(MOST)),
        _ => Err(None),
    };
    let done = match moved {
        Ok(done) => done,
        Err(Some(fault)) => return answer(Err(fault), 0),
        Err(None) => {
            // A pipe, a socket, a bad offset: the kernel has its own word for each, and no byte moves.
            let e = crate::errno();
            if plain(0) >= 0 {
                // Nor can it send what has no position (ESPIPE is for a position that is named).
                let no_file = e == libc::ESPIPE && offset.is_null();
                crate::set_errno(if no_file { libc::EINVAL } else { e });
            }
            return -1;
        }
    };
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

/// Sends what the file holds from `start` on. The error: why nothing could be sent; `None`: the file, with its errno.
fn move_file(inside: &Inside, from: c_int, start: i64, n: usize) -> Result<usize, Option<Fault>> {
    let o = options(inside, 0);
    let mut piece = Piece::take();
    let mut done = 0;
    while done < n {
        let want = piece.len().min(n - done);
        let at = start.saturating_add(done as i64);
        // SAFETY: into our own buffer.
        let got = unsafe { libc::pread64(from, piece.as_mut_ptr().cast(), want, at) };
        let got = match got {
            0 => break,
            1.. => got as usize,
            _ if done > 0 => break,
            _ => return Err(None),
        };
        // Who gives a file's length as the count, as most do, pays nothing for this, unless it is tiny.
        if done == 0 && (got < want || got < TINY) && kernel_refuses(from, start) {
            crate::set_errno(libc::EINVAL);
            return Err(None);
        }
        match inside
            .conn()
            .send(&inside.fd(), &[IoSlice::new(&piece[..got])], o)
        {
            Ok(sent) => {
                done += sent;
                if sent < got {
                    forget_reset(inside);
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(fault) => return Err(Some(fault)),
        }
    }
    Ok(done)
}

/// The kernel goes on after a part, and so it meets the reset that cut it short; who is told of the part never hears of it.
fn forget_reset(inside: &Inside) {
    let end = inside.conn().end();
    if end.has(flag::RESET_DUE) {
        end.set(flag::RESET_TOLD);
        end.clear(flag::RESET_DUE);
    } else if end.tx_path() == Path::Tcp {
        // It may be on the kernel's socket still.
        inside.fd().take_error();
    }
}

/// So few bytes are sent too seldom for the price of a question to matter.
const TINY: usize = 512;

/// Files without a size, of /proc and the like, can be read, but not all of them by sendfile. A pipe tells, which takes one
/// byte of a copy.
fn kernel_refuses(from: c_int, mut at: i64) -> bool {
    let mut stat = std::mem::MaybeUninit::<libc::stat64>::zeroed();
    // SAFETY: an out-pointer of ours; zeros are a valid answer.
    let stat = unsafe {
        libc::fstat64(from, stat.as_mut_ptr());
        stat.assume_init()
    };
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG || stat.st_size != 0 {
        return false;
    }
    let Ok((_out, into)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) else {
        return false;
    };
    let (into, none) = (into.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: an offset of ours, a pipe of ours with room.
    let moved = unsafe { real::splice(from, &raw mut at, into, none, 1, 0) };
    moved < 0 && crate::errno() == libc::EINVAL
}

/// # Safety
/// As splice(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn splice(
    from: c_int,
    off_in: *mut i64,
    to: c_int,
    off_out: *mut i64,
    n: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    let plain = || unsafe { real::splice(from, off_in, to, off_out, n, flags) };
    let unheard = !(libc::SPLICE_F_MOVE
        | libc::SPLICE_F_NONBLOCK
        | libc::SPLICE_F_MORE
        | libc::SPLICE_F_GIFT);
    let refused =
        n == 0 || flags & unheard != 0 || !off_in.is_null() || !off_out.is_null() || from == to;
    // From here on it is none: what was taken from a pipe or a ring must not be lost with the thread.
    cancel::point();
    if let Some(inside) = enter(from) {
        // What the kernel refuses moves no byte: offsets of a socket, anything but a pipe at the other side.
        if inside.engaged() && !refused && is_pipe(to, libc::O_WRONLY) {
            let _whole = quiet::uncancelled();
            let moved = splice_out(&inside, to, n.min(MOST), flags);
            match moved {
                Err(Fault::UseKernel) => {}
                Ok(moved) => return moved,
                Err(f) => return answer(Err(f), libc::MSG_NOSIGNAL),
            }
        }
        let _whole = quiet::uncancelled();
        let r = plain();
        if r > 0 {
            inside.conn().count_plain(0, r as usize);
        }
        return r;
    }
    let Some(inside) = enter(to) else {
        return plain();
    };
    if inside.engaged() && !refused && is_pipe(from, libc::O_RDONLY) {
        let _whole = quiet::uncancelled();
        return splice_in(&inside, from, n.min(MOST), flags);
    }
    let _whole = quiet::uncancelled();
    let r = plain();
    if r > 0 {
        inside.conn().count_plain(r as usize, 0);
    }
    r
}

fn pipe_bytes(fd: c_int) -> Option<usize> {
    // SAFETY: asks only.
    let size = unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) };
    usize::try_from(size).ok()
}

/// A pipe, and the end of it that is good for `access`?
fn is_pipe(fd: c_int, access: c_int) -> bool {
    let saved = crate::errno();
    // SAFETY: asks only.
    let mode = unsafe { libc::fcntl(fd, libc::F_GETFL) } & libc::O_ACCMODE;
    let is = (mode == access || mode == libc::O_RDWR) && pipe_bytes(fd).is_some();
    crate::set_errno(saved);
    is
}

/// May the call wait for the pipe? `SPLICE_F_NONBLOCK` is about that alone, not about the connection.
fn pipe_waits(fd: c_int, flags: c_uint) -> bool {
    // SAFETY: asks only.
    let status = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags & libc::SPLICE_F_NONBLOCK == 0 && status & libc::O_NONBLOCK == 0
}

/// Would reading from (`POLLIN`), or writing a page to (`POLLOUT`) this pipe return at once?
fn pipe_ready(fd: c_int, events: i16) -> bool {
    let mut entry = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one entry of ours, no sleep.
    unsafe { real::poll(&raw mut entry, 1, 0) > 0 }
}

/// How much a pipe with unread bytes takes in one write without a sleep, if it takes any (PIPE_BUF).
const PAGE: usize = 4096;

/// What a pipe of the usual size holds of TCP's own pieces, in bytes.
const PIPE_MOST: usize = 512 * 1024;

/// A full pipe is made larger, as far as it would hold more of the kernel's larger pieces: a program that empties it by the
/// same thread, later, must not sleep here for ever.
fn make_room(pipe: c_int) {
    let saved = crate::errno();
    if let Some(all) = pipe_bytes(pipe).filter(|all| *all < PIPE_MOST) {
        // SAFETY: changes the pipe's size alone, or is refused.
        unsafe { libc::fcntl(pipe, libc::F_SETPIPE_SZ, (all * 2) as c_int) };
    }
    crate::set_errno(saved);
}

/// The pipe that a call of splice fills.
struct Filled {
    to: c_int,
    flags: c_uint,
    /// It takes so much without a sleep, whatever the sizes of the writes: it was empty as the call began. 0: not known.
    left: usize,
}

impl Filled {
    fn new(to: c_int, flags: c_uint) -> Self {
        let mut unread: c_int = 0;
        // SAFETY: an out-pointer of ours.
        let asked = unsafe { libc::ioctl(to, libc::FIONREAD, &raw mut unread) };
        let empty = asked == 0 && unread == 0;
        let left = if empty {
            pipe_bytes(to).unwrap_or(0)
        } else {
            0
        };
        Self { to, flags, left }
    }

    /// Can nothing be written, and may the call not wait for it?
    fn is_shut(&self) -> bool {
        self.left == 0 && !pipe_waits(self.to, self.flags) && !pipe_ready(self.to, libc::POLLOUT)
    }

    /// Writes what there is room for; `first`: and waits for some, if the pipe may. As write(2).
    fn put(&mut self, bytes: &[u8], first: bool) -> ssize_t {
        let room = if self.left > 0 {
            self.left
        } else {
            self.make_sure(first)
        };
        if room == 0 {
            crate::set_errno(libc::EAGAIN);
            return -1;
        }
        // SAFETY: from our own buffer.
        let put = unsafe { real::write(self.to, bytes.as_ptr().cast(), bytes.len().min(room)) };
        // Each write begins a page.
        let pages = usize::try_from(put).map_or(self.left, |put| put.next_multiple_of(PAGE));
        self.left = self.left.saturating_sub(pages);
        put
    }

    /// How much one write to a pipe with unread bytes may have, so that it does not sleep, or sleeps as it may.
    fn make_sure(&self, first: bool) -> usize {
        if !pipe_ready(self.to, libc::POLLOUT) {
            if !first || !pipe_waits(self.to, self.flags) {
                return 0;
            }
            make_room(self.to);
        }
        PAGE
    }
}

/// From a carried connection into a pipe: looks, writes, and takes what the pipe took. The pipe's own errors are in errno.
#[inline(never)] // one buffer on the stack at a time
fn splice_out(inside: &Inside, to: c_int, n: usize, flags: c_uint) -> Result<ssize_t, Fault> {
    let mut pipe = Filled::new(to, flags);
    if pipe.is_shut() {
        return Err(Fault::WouldBlock);
    }
    let nonblocking = inside.conn().end().has(flag::NONBLOCK);
    let mut piece = Piece::take();
    let mut done = 0;
    while done < n {
        let want = piece.len().min(n - done);
        let look = RecvOptions {
            dont_wait: nonblocking || done > 0,
            peek: true,
            ..Default::default()
        };
        let mut room = [IoSliceMut::new(&mut piece[..want])];
        let seen = match inside.conn().recv(&inside.fd(), &mut room, look) {
            Ok(0) => break,
            Ok(seen) => seen,
            Err(f) => return inside.conn().so_far(done, f).map(|done| done as ssize_t),
        };
        let mut taken = 0;
        while taken < seen {
            let put = pipe.put(&piece[taken..seen], done + taken == 0);
            if put <= 0 {
                break;
            }
            taken += put as usize;
        }
        done += taken;
        if taken > 0 {
            // Once more into the same place: what only skips has a page on the stack.
            let mut gone = [IoSliceMut::new(&mut piece[..taken])];
            if let Err(f) = inside.conn().take(&inside.fd(), &mut gone) {
                // The pipe has them all the same.
                return inside.conn().so_far(done, f).map(|done| done as ssize_t);
            }
        }
        if done == 0 {
            return Ok(-1);
        }
        if taken < seen {
            break;
        }
    }
    Ok(done as ssize_t)
}

/// From a pipe into a carried connection: only as much as there is room for, because a pipe takes nothing back.
#[inline(never)] // as above
fn splice_in(inside: &Inside, from: c_int, n: usize, flags: c_uint) -> ssize_t {
    let nonblocking = inside.conn().end().has(flag::NONBLOCK);
    let mut piece = Piece::take();
    let mut done = 0;
    while done < n {
        if !pipe_ready(from, libc::POLLIN) && (done > 0 || !pipe_waits(from, flags)) {
            crate::set_errno(libc::EAGAIN);
            break;
        }
        let mut want = piece.len().min(n - done);
        match inside.conn().room(&inside.fd()) {
            // Where the peer is gone, there is no room, but sending tells so.
            0 if nonblocking && !is_writable(inside) => {
                crate::set_errno(libc::EAGAIN);
                break;
            }
            // Little, because a signal can't give it back.
            0 => want = want.min(PAGE),
            room => want = want.min(room),
        }
        // SAFETY: into our own buffer.
        let got = unsafe { real::read(from, piece.as_mut_ptr().cast(), want) };
        if got == 0 {
            return done as ssize_t;
        }
        if got < 0 {
            break;
        }
        match send_all(inside, &piece[..got as usize]) {
            (sent, None) => done += sent,
            (0, Some(f)) if done == 0 => return answer(Err(f), 0),
            (sent, Some(_)) => {
                done += sent;
                break;
            }
        }
    }
    if done == 0 { -1 } else { done as ssize_t }
}

/// As poll tells it, the peer's death included.
fn is_writable(inside: &Inside) -> bool {
    let fd = inside.fd();
    let ready = inside.conn().ready(&fd, Some(fd.poll()));
    ready.intersects(Ready::OUT | Ready::ERR)
}

/// Sends what was taken from a pipe, whatever signals and time-outs say. How much, and what kept the rest from it.
fn send_all(inside: &Inside, bytes: &[u8]) -> (usize, Option<Fault>) {
    let o = SendOptions { dont_wait: false };
    let mut done = 0;
    while done < bytes.len() {
        let rest = [IoSlice::new(&bytes[done..])];
        match inside.conn().send(&inside.fd(), &rest, o) {
            Ok(sent) => done += sent,
            Err(Fault::Interrupted | Fault::WouldBlock) => {}
            Err(f) => return (done, Some(f)),
        }
    }
    (done, None)
}
