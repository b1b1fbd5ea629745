//! select and pselect, by way of poll.

use std::ffi::c_int;

use libc::{fd_set, pollfd, sigset_t, timespec, timeval};

use crate::poll::{self, Deadline};
use crate::{epoll, fds, real};

fn is_set(fd: c_int, set: *const fd_set) -> bool {
    // SAFETY: the caller of select gave a set with at least `n` bits, and `fd < n`.
    !set.is_null() && unsafe { libc::FD_ISSET(fd, set) }
}

/// Is a tracked descriptor in any of the sets?
fn any_tracked(n: c_int, sets: [*mut fd_set; 3]) -> bool {
    (0..n)
        .filter(|fd| epoll::is_set(*fd) && sets.iter().any(|s| is_set(*fd, *s)))
        .for_each(epoll::be_watched);
    (0..n).any(|fd| fds::is_tracked(fd) && sets.iter().any(|s| is_set(fd, *s)))
}

fn wait(n: c_int, sets: [*mut fd_set; 3], deadline: Deadline, mask: *const sigset_t) -> c_int {
    let [r, w, e] = sets;
    let mut list: Vec<pollfd> = Vec::new();
    for fd in 0..n {
        let mut events = 0;
        for (set, bit) in [(r, libc::POLLIN), (w, libc::POLLOUT), (e, libc::POLLPRI)] {
            if is_set(fd, set) {
                events |= bit;
            }
        }
        if events != 0 {
            list.push(pollfd {
                fd,
                events,
                revents: 0,
            });
        }
    }
    let got = poll::wait(&mut list, deadline, mask);
    if got < 0 {
        return got;
    }
    if list.iter().any(|p| p.revents & libc::POLLNVAL != 0) {
        crate::set_errno(libc::EBADF);
        return -1;
    }
    let mut bits = 0;
    for p in &list {
        // The kernel's own table of what select calls readable, writable and exceptional.
        let tests = [
            (
                r,
                libc::POLLIN,
                libc::POLLIN | libc::POLLRDNORM | libc::POLLHUP | libc::POLLERR,
            ),
            (
                w,
                libc::POLLOUT,
                libc::POLLOUT | libc::POLLWRNORM | libc::POLLERR,
            ),
            (e, libc::POLLPRI, libc::POLLPRI),
        ];
        for (set, asked, events) in tests {
            if p.events & asked == 0 {
                continue;
            }
            if p.revents & events != 0 {
                bits += 1;
            } else {
                // SAFETY: a set of the caller's, with this bit in it.
                unsafe { libc::FD_CLR(p.fd, set) };
            }
        }
    }
    bits
}

/// # Safety
/// As select(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn select(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    let sets = [r, w, e];
    // SAFETY: null or the caller's time-out.
    let negative = unsafe { timeout.as_ref() }.is_some_and(|t| t.tv_sec < 0 || t.tv_usec < 0);
    if n < 0 || !any_tracked(n, sets) || negative {
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::select(n, r, w, e, timeout) };
    }
    // SAFETY: null or the caller's time-out.
    let deadline = unsafe { timeout.as_ref() }.map_or(Deadline::never(), |t| {
        Deadline::after_us(t.tv_sec.max(0) as u64 * 1_000_000 + t.tv_usec.max(0) as u64)
    });
    let got = wait(n, sets, deadline, std::ptr::null());
    // Linux writes back the time that is left.
    // SAFETY: null or the caller's time-out.
    if let (Some(t), Some(left)) = (unsafe { timeout.as_mut() }, deadline.left()) {
        t.tv_sec = left.tv_sec;
        t.tv_usec = left.tv_nsec / 1000;
    }
    got
}

/// # Safety
/// As pselect(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pselect(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let sets = [r, w, e];
    // SAFETY: the caller's time-out.
    if n < 0 || !any_tracked(n, sets) || !unsafe { poll::is_time(timeout) } {
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::pselect(n, r, w, e, timeout, mask) };
    }
    // SAFETY: null or the caller's time-out.
    let deadline = unsafe { Deadline::after_timespec(timeout) };
    wait(n, sets, deadline, mask)
}
