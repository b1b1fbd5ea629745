//! select and pselect, by way of poll.
//!
//! A set is as many words as the caller's count says, whatever `fd_set` holds; of descriptors that the process's table has
//! no place for the kernel reads nothing, and so don't we, because old programs give the limit on descriptors as the count.

use std::ffi::c_int;

use libc::{fd_set, pollfd, sigset_t, timespec, timeval};

use crate::scratch::List;
use crate::time::{self, Deadline};
use crate::{cancel, epoll, fds, poll, process, real};

type Sets = [*mut fd_set; 3];
const WORD: usize = u64::BITS as usize;
/// Epoll sets have no followed members from here on.
const SETS: c_int = 1 << 16;

/// # Safety
/// Null, or a set that has word `at`.
unsafe fn word(set: *const fd_set, at: usize) -> u64 {
    if set.is_null() {
        return 0;
    }
    // SAFETY: by the caller.
    unsafe { set.cast::<u64>().add(at).read_unaligned() }
}

fn is_in(sets: &Sets, fd: c_int) -> bool {
    let (at, bit) = (fd as usize / WORD, fd as usize % WORD);
    // SAFETY: an open descriptor below the caller's count: the kernel would read this word.
    sets.iter().any(|s| unsafe { word(*s, at) } >> bit & 1 != 0)
}

/// The largest tracked descriptor in any of the sets.
fn last_tracked(n: c_int, sets: &Sets) -> Option<c_int> {
    (0..n.min(SETS))
        .filter(|fd| epoll::is_set(*fd) && is_in(sets, *fd))
        .for_each(epoll::be_watched);
    (0..n.min(fds::limit()))
        .rev()
        .find(|fd| fds::is_tracked(*fd) && is_in(sets, *fd))
}

/// How many descriptors the kernel looks at, if `open` is the largest that is known to be open.
fn looked_at(n: c_int, open: c_int) -> c_int {
    // A set of the usual size is there in any case, and a table's size is a power of two.
    let sure = (open as u32 + 1).next_power_of_two() as c_int;
    if n <= libc::FD_SETSIZE as c_int || n <= sure {
        return n;
    }
    n.min(table_size().unwrap_or(sure))
}

/// Places in this process's table of descriptors.
fn table_size() -> Option<c_int> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/thread-self/status", flags, Mode::empty()).ok()?;
    let mut text = [0_u8; 1024];
    let n = rustix::io::read(&file, &mut text).ok()?;
    let lines = std::str::from_utf8(&text[..n]).ok()?.lines();
    let size = lines.filter_map(|l| l.strip_prefix("FDSize:")).next()?;
    size.trim().parse().ok()
}

type Asked = List<pollfd, 64>;

/// What is asked of the descriptors in the first `n` places. False: no memory.
#[inline]
fn gather(list: &mut Asked, n: c_int, sets: &Sets) -> bool {
    let n = n as usize;
    for at in 0..n.div_ceil(WORD) {
        let below = match n - at * WORD {
            left @ 0..WORD => (1 << left) - 1,
            _ => u64::MAX,
        };
        // SAFETY: words that the kernel would read.
        let words = sets.map(|s| unsafe { word(s, at) } & below);
        let mut left = words[0] | words[1] | words[2];
        while left != 0 {
            let bit = left.trailing_zeros();
            left &= left - 1;
            let asked = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
            let events = asked
                .iter()
                .zip(words)
                .map(|(e, w)| *e * (w >> bit & 1) as i16);
            let entry = pollfd {
                fd: (at * WORD) as c_int + bit as c_int,
                events: events.sum(),
                revents: 0,
            };
            if !list.push(entry) {
                return false;
            }
        }
    }
    true
}

fn wait(n: c_int, sets: Sets, open: c_int, deadline: Deadline, mask: *const sigset_t) -> c_int {
    let n = looked_at(n, open);
    let mut list = Asked::new();
    if !gather(&mut list, n, &sets) {
        crate::set_errno(libc::ENOMEM);
        return -1;
    }
    let got = poll::wait(&mut list, deadline, mask);
    if got < 0 && crate::errno() == libc::EINVAL {
        // poll's array is refused for the limit on descriptors, which select does not mind.
        for p in list.iter() {
            process::give_away(p.fd, gm::Reason::Unsupported);
        }
        let left = time::left(deadline);
        let left = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let [r, w, e] = sets;
        // SAFETY: the caller's sets; a local time-out.
        return unsafe { real::pselect(n, r, w, e, left, mask) };
    }
    if got < 0 {
        return got;
    }
    if let Some(bad) = list.iter().find(|p| p.revents & libc::POLLNVAL != 0) {
        // Beyond the table, the kernel did not look.
        if let Some(size) = table_size().filter(|size| bad.fd >= *size) {
            return wait(size, sets, open, deadline, mask);
        }
        crate::set_errno(libc::EBADF);
        return -1;
    }
    answer(n, sets, &list)
}

/// Leaves in the sets what is ready, and counts it.
fn answer(n: c_int, sets: Sets, list: &[pollfd]) -> c_int {
    // The kernel's own table of what select calls readable, writable and exceptional.
    const TESTS: [(i16, i16); 3] = [
        (
            libc::POLLIN,
            libc::POLLIN | libc::POLLRDNORM | libc::POLLHUP | libc::POLLERR,
        ),
        (
            libc::POLLOUT,
            libc::POLLOUT | libc::POLLWRNORM | libc::POLLERR,
        ),
        (libc::POLLPRI, libc::POLLPRI),
    ];
    let mut bits = 0;
    for (set, (asked, events)) in sets.into_iter().zip(TESTS) {
        if set.is_null() {
            continue;
        }
        let words = set.cast::<u64>();
        let mut ready = list
            .iter()
            .filter(|p| p.events & asked != 0 && p.revents & events != 0)
            .map(|p| p.fd as usize)
            .peekable();
        for at in 0..(n as usize).div_ceil(WORD) {
            let mut word = 0;
            // The list goes up.
            while let Some(fd) = ready.next_if(|fd| fd / WORD == at) {
                word |= 1 << (fd % WORD);
                bits += 1;
            }
            // SAFETY: a word of the caller's set, which the kernel would write.
            unsafe { words.add(at).write_unaligned(word) };
        }
    }
    bits
}

/// # Safety
/// As select(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn select(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    let sets = [r, w, e];
    // SAFETY: null or the caller's time-out.
    let negative = unsafe { timeout.as_ref() }.is_some_and(|t| t.tv_sec < 0 || t.tv_usec < 0);
    let open = last_tracked(n, &sets).filter(|_| !negative);
    let Some(open) = open else {
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::select(n, r, w, e, timeout) };
    };
    // SAFETY: null or the caller's time-out.
    let deadline = unsafe { timeout.as_ref() }.map_or(Deadline::NEVER, |t| {
        let us = (t.tv_sec.max(0) as u64).saturating_mul(1_000_000);
        time::after_us(us.saturating_add(t.tv_usec.max(0) as u64))
    });
    cancel::point();
    let got = wait(n, sets, open, deadline, std::ptr::null());
    cancel::end();
    // Linux writes back the time that is left.
    // SAFETY: null or the caller's time-out.
    if let (Some(t), Some(left)) = (unsafe { timeout.as_mut() }, time::left(deadline)) {
        t.tv_sec = left.tv_sec;
        t.tv_usec = left.tv_nsec / 1000;
    }
    got
}

/// # Safety
/// As pselect(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pselect(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let sets = [r, w, e];
    // SAFETY: the caller's time-out.
    let open = last_tracked(n, &sets).filter(|_| unsafe { time::is_time(timeout) });
    let Some(open) = open else {
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::pselect(n, r, w, e, timeout, mask) };
    };
    // SAFETY: null or the caller's time-out.
    let deadline = unsafe { time::after_timespec(timeout) };
    cancel::point();
    let got = wait(n, sets, open, deadline, mask);
    cancel::end();
    got
}
