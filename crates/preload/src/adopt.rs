//! Descriptors that came from elsewhere: by exec, from the program that started this one, or in a message. The socket's
//! cookie leads to the end that others have used so far, and this process becomes one more of its holders.
//!
//! A socket that nobody posted (see `gm::held`) stays unknown, and so plain TCP: who else holds it can't be told.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::net::{AddressFamily, ipproto, sockopt};

use crate::{cancel, ctx, fds, real};

/// How a descriptor came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It was open when this program began: the process holds it, whatever number of descriptors it has.
    Inherited,
    /// In a message, which was itself a holder.
    Message,
    /// As one more of what somebody else keeps.
    Copied,
}

/// Looks at what is open as the program begins. Later it could not be told from what the program opens itself, and at the
/// latest when it ends it would have to be known.
extern "C" fn at_start() {
    let saved = crate::errno();
    real::find_all();
    cancel::at_start();
    crate::process::at_start();
    crate::stdio::at_start();
    ctx::begin();
    each_tcp(|fd| {
        meet_tcp(fd, Came::Inherited);
        ControlFlow::Continue(())
    });
    crate::set_errno(saved);
}

/// Before the constructors of the program and of its other libraries, after the C library's.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

/// How many descriptors are open; 0: not known (Linux before 6.2).
fn open_count() -> usize {
    let told = rustix::fs::stat(c"/proc/self/fd").map_or(0, |s| s.st_size);
    usize::try_from(told).unwrap_or(0)
}

/// Every descriptor of this process that seems to be a TCP socket, until `f` breaks. Takes no memory.
pub fn each_tcp(mut f: impl FnMut(c_int) -> ControlFlow<()>) {
    /// A list of the descriptors costs as much as so many questions.
    const HOLES: usize = 100;
    let (count, mut found, mut next) = (open_count(), 0, 0);
    let most = if count == 0 { 0 } else { count + HOLES };
    while found < count && (next as usize) < most {
        let protocol = sockopt::socket_protocol(borrowed(next));
        found += usize::from(protocol != Err(Errno::BADF));
        if protocol == Ok(Some(ipproto::TCP)) && f(next).is_break() {
            return;
        }
        next += 1;
    }
    if count == 0 || found < count {
        each_open_from(next, |fd| match has_tcps_number(fd) {
            true => f(fd),
            false => ControlFlow::Continue(()),
        });
    }
}

/// As they are listed, from number `least` on.
fn each_open_from(least: c_int, mut f: impl FnMut(c_int) -> ControlFlow<()>) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty()) else {
        return each_open_by_poll(least, f);
    };
    let mut room = [MaybeUninit::<u8>::uninit(); 2048];
    let mut entries = RawDir::new(dir.as_fd(), &mut room);
    while let Some(Ok(entry)) = entries.next() {
        let number = entry.file_name().to_str().ok().and_then(|n| n.parse().ok());
        let known = number.filter(|fd| *fd >= least);
        if known.is_some_and(|fd| f(fd).is_break()) {
            return;
        }
    }
}

/// Without /proc: asks of the first 1024 which are open.
fn each_open_by_poll(least: c_int, mut f: impl FnMut(c_int) -> ControlFlow<()>) {
    const ONCE: usize = 128;
    const MOST: usize = 1024;
    for first in (0..MOST).step_by(ONCE) {
        let mut set: [libc::pollfd; ONCE] = std::array::from_fn(|i| libc::pollfd {
            fd: (first + i) as c_int,
            events: 0,
            revents: 0,
        });
        // SAFETY: our own array. Not the hook: nothing is tracked yet, and nobody waits.
        let r = unsafe { crate::real::poll(set.as_mut_ptr(), ONCE as libc::nfds_t, 0) };
        if r < 0 {
            return;
        }
        let open = |p: &&libc::pollfd| p.revents & libc::POLLNVAL == 0 && p.fd >= least;
        if set.iter().filter(open).any(|p| f(p.fd).is_break()) {
            return;
        }
    }
}

fn borrowed(fd: c_int) -> BorrowedFd<'static> {
    // SAFETY: whoever calls has the descriptor; if it is closed meanwhile, the kernel says EBADF.
    unsafe { crate::kernel::borrow(fd) }
}

/// Is this a TCP socket over IP?
pub fn is_tcp(fd: c_int) -> bool {
    let fd = borrowed(fd);
    let inet = [AddressFamily::INET, AddressFamily::INET6];
    sockopt::socket_protocol(fd) == Ok(Some(ipproto::TCP))
        && sockopt::socket_domain(fd).is_ok_and(|d| inet.contains(&d))
}

/// The kernel's own number of a socket; 0: it tells none.
pub fn cookie(fd: c_int) -> u64 {
    sockopt::socket_cookie(borrowed(fd)).unwrap_or(0)
}

/// Has it TCP's protocol number? What else has it has no cookie that was posted.
fn has_tcps_number(fd: c_int) -> bool {
    sockopt::socket_protocol(borrowed(fd)) == Ok(Some(ipproto::TCP))
}

/// A descriptor came: if its socket is known on this node, this process is one of its holders from now on.
pub fn meet(fd: c_int, came: Came) {
    if !crate::process::confine::is_confined() && has_tcps_number(fd) {
        meet_tcp(fd, came);
    }
}

fn meet_tcp(fd: c_int, came: Came) {
    let Some(ctx) = ctx::get() else { return };
    let cookie = cookie(fd);
    let Some(place) = ctx.node.find_held(cookie).filter(|_| cookie != 0) else {
        return;
    };
    let Some(port) = ctx.port_of(place.port) else {
        return;
    };
    let known = port.used_ends().get(place.index as usize);
    let sound =
        |e: &&gm::End| e.cookie.load(std::sync::atomic::Ordering::Relaxed) == cookie && e.is_used();
    if let Some(end) = known.filter(sound) {
        fds::join(fd, port, end, place, came);
    }
}

/// A message was received: what came with it.
///
/// # Safety
/// `msg` as recvmsg left it.
pub unsafe fn received(msg: *const libc::msghdr, peeked: bool) {
    let saved = crate::errno();
    // SAFETY: by the caller: the kernel filled the control buffer, to the length that it left there.
    unsafe {
        each_passed(msg, |fd| {
            fds::stale(fd);
            let came = if peeked { Came::Copied } else { Came::Message };
            meet(fd, came);
        });
    }
    crate::set_errno(saved);
}

/// The descriptors in a message's control data, as far as the kernel would go on reading it.
///
/// # Safety
/// `msg` as for sendmsg.
#[inline]
pub unsafe fn each_passed(msg: *const libc::msghdr, mut f: impl FnMut(c_int)) {
    // SAFETY: null or the caller's header.
    let Some(m) = (unsafe { msg.as_ref() }) else {
        return;
    };
    // More is refused unread.
    let mut left = if m.msg_controllen > c_int::MAX as usize {
        0
    } else {
        m.msg_controllen
    };
    let mut at = m.msg_control.cast_const().cast::<u8>();
    // SAFETY: within the caller's control buffer, by its length and by what is checked of each header.
    unsafe {
        while !at.is_null() && left >= size_of::<libc::cmsghdr>() {
            let head = at.cast::<libc::cmsghdr>().read_unaligned();
            let whole = head.cmsg_len;
            if !(size_of::<libc::cmsghdr>()..=left).contains(&whole) {
                return;
            }
            if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
                let data = at.add(libc::CMSG_LEN(0) as usize).cast::<c_int>();
                for i in 0..(whole - libc::CMSG_LEN(0) as usize) / size_of::<c_int>() {
                    f(data.add(i).read_unaligned());
                }
            }
            let step = whole.next_multiple_of(size_of::<usize>()).min(left);
            (at, left) = (at.add(step), left - step);
        }
    }
}
