//! poll and ppoll over carried and other descriptors together; select comes here as well.

use std::ffi::{c_int, c_uint};

use libc::{nfds_t, pollfd, sigset_t, size_t, timespec};
use sockets::{Ready, Spin, Spun};

use crate::fds::{self, Inside, enter};
use crate::scratch::List;
use crate::{cancel, epoll, kernel, real};

/// A point in time, or never.
#[derive(Clone, Copy)]
pub struct Deadline(Option<u64>);

impl Deadline {
    pub fn never() -> Self {
        Self(None)
    }

    /// That many µs from now.
    pub fn after_us(us: u64) -> Self {
        Self(Some(
            gm::os::monotonic_ns().saturating_add(us.saturating_mul(1000)),
        ))
    }

    /// poll's and epoll_wait's time-out: negative is never.
    pub fn after_ms(ms: c_int) -> Self {
        u64::try_from(ms).map_or(Self::never(), |ms| Self::after_us(ms * 1000))
    }

    /// ppoll's time-out: null is never.
    ///
    /// # Safety
    /// Null or readable.
    pub unsafe fn after_timespec(t: *const timespec) -> Self {
        // SAFETY: by the caller.
        match unsafe { t.as_ref() } {
            None => Self::never(),
            Some(t) => Self::after_us(
                (t.tv_sec.max(0) as u64)
                    .saturating_mul(1_000_000)
                    .saturating_add((t.tv_nsec.max(0) as u64).div_ceil(1000)),
            ),
        }
    }

    pub fn sooner(self, other: Self) -> Self {
        Self(self.0.into_iter().chain(other.0).min())
    }

    pub fn left_ns(self) -> Option<u64> {
        self.0.map(|at| at.saturating_sub(gm::os::monotonic_ns()))
    }

    pub fn passed(self) -> bool {
        self.left_ns() == Some(0)
    }

    /// What is left, for a system call.
    pub fn left(self) -> Option<timespec> {
        self.left_ns().map(|ns| timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        })
    }
}

/// The tracked descriptors of one call. A handful stay on the stack; none of this is malloc's, for poll may be called where
/// that may not.
struct Members(List<Member, 8>);

struct Member {
    at: usize,
    /// What was asked of it, while the array says what the kernel is asked.
    events: i16,
    engaged: bool,
    inside: Inside,
}

impl Members {
    /// `None`: no memory.
    fn of(fds: &[pollfd]) -> Option<Self> {
        let mut members = List::new();
        for (at, p) in fds.iter().enumerate() {
            if let Some(inside) = enter(p.fd) {
                let member = Member {
                    at,
                    events: p.events,
                    engaged: inside.engaged(),
                    inside,
                };
                if !members.push(member) {
                    return None;
                }
            }
        }
        Some(Self(members))
    }

    fn engaged(&self) -> impl Iterator<Item = &Member> {
        self.0.iter().filter(|m| m.engaged)
    }
}

const OUT: i16 = libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND;

/// What poll reports of `ready` to somebody who asked for `events`.
fn reported(ready: Ready, events: i16) -> i16 {
    let r = ready.0 as i16;
    let mut out = r & (events | libc::POLLERR | libc::POLLHUP);
    if r & libc::POLLIN != 0 {
        out |= events & libc::POLLRDNORM;
    }
    if r & libc::POLLOUT != 0 {
        out |= events & libc::POLLWRNORM;
    }
    out
}

static SPIN: Spin = Spin::new();

/// The call behind poll, ppoll and select.
pub fn wait(fds: &mut [pollfd], deadline: Deadline, mask: *const sigset_t) -> c_int {
    let r = wait_for_any(fds, deadline, mask);
    if cancel::is_on() { -1 } else { r }
}

fn wait_for_any(fds: &mut [pollfd], deadline: Deadline, mask: *const sigset_t) -> c_int {
    let Some(members) = Members::of(fds) else {
        crate::set_errno(libc::ENOMEM);
        return -1;
    };
    if members.engaged().next().is_none() {
        // Staying inside the plain ones keeps them plain while we sleep.
        return ask_kernel(fds, deadline.left(), mask);
    }
    let others = members.engaged().count() < fds.len();
    loop {
        let mut ready = report(fds, &members);
        if ready > 0 || deadline.passed() {
            // The kernel knows of the others, and of peers that are gone.
            if others || ready == 0 {
                ready = ask_kernel_too(fds, &members);
            }
            return ready;
        }
        let mut rounds = 0_u32;
        let mut others_ready = false;
        let news = || {
            rounds += 1;
            others_ready = others && rounds.is_multiple_of(64) && ask_kernel_too(fds, &members) > 0;
            others_ready || members.engaged().any(|m| look(fds, m) != 0)
        };
        if SPIN.wait(kernel::cpus(), rustix::thread::sched_yield, news) == Spun::Found {
            if others_ready {
                return ask_kernel_too(fds, &members);
            }
            continue;
        }
        match sleep(fds, &members, deadline, mask) {
            Slept::News => {}
            Slept::Over(n) => return n,
        }
    }
}

fn look(fds: &[pollfd], m: &Member) -> i16 {
    let events = fds[m.at].events;
    if !m.inside.conn().has_news(events & OUT != 0) {
        return 0;
    }
    reported(m.inside.conn().ready(&m.inside.fd(), None), events)
}

/// Fills in the carried ones' events, clears the others'.
fn report(fds: &mut [pollfd], members: &Members) -> c_int {
    fds.iter_mut().for_each(|p| p.revents = 0);
    let mut n = 0;
    for m in members.engaged() {
        let p = &mut fds[m.at];
        p.revents = reported(m.inside.conn().ready(&m.inside.fd(), None), p.events);
        n += c_int::from(p.revents != 0);
    }
    n
}

/// All descriptors, without sleeping: the carried ones by their rings and the kernel's view of them.
fn ask_kernel_too(fds: &mut [pollfd], members: &Members) -> c_int {
    let none = timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    ask_substituted(fds, members, Some(none), std::ptr::null())
}

fn ask_kernel(fds: &mut [pollfd], left: Option<timespec>, mask: *const sigset_t) -> c_int {
    let left = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let (array, n) = (fds.as_mut_ptr(), fds.len() as nfds_t);
    // SAFETY: the program's array; a local time-out.
    cancel::sleep(|| unsafe { real::ppoll(array, n, left, mask) } as isize) as c_int
}

/// The program's array, in which the carried ones' events are put in the kernel's terms: as long as it lives, even if the
/// thread is cancelled then.
struct Substituted<'a> {
    fds: &'a mut [pollfd],
    members: &'a Members,
}

impl<'a> Substituted<'a> {
    fn new(fds: &'a mut [pollfd], members: &'a Members) -> Self {
        for m in members.engaged() {
            fds[m.at].events = kernel_events(m, m.events);
        }
        Self { fds, members }
    }
}

impl Drop for Substituted<'_> {
    fn drop(&mut self) {
        for m in self.members.engaged() {
            self.fds[m.at].events = m.events;
        }
    }
}

/// Asks the kernel, with the carried descriptors' events put in its terms and its answer put in ours.
fn ask_substituted(
    fds: &mut [pollfd],
    members: &Members,
    left: Option<timespec>,
    mask: *const sigset_t,
) -> c_int {
    let substituted = Substituted::new(fds, members);
    let r = ask_kernel(substituted.fds, left, mask);
    drop(substituted);
    if r < 0 {
        return r;
    }
    let mut n = fds.iter().filter(|p| p.revents != 0).count() as c_int;
    for m in members.engaged() {
        let p = &mut fds[m.at];
        n -= c_int::from(p.revents != 0);
        let kernel = Ready(p.revents as u16 as u32);
        let ready = match p.revents & libc::POLLNVAL {
            0 => reported(
                m.inside.conn().ready(&m.inside.fd(), Some(kernel)),
                p.events,
            ),
            nval => nval,
        };
        // Urgent data is the kernel's alone.
        let ready = ready | kernel.0 as i16 & p.events & libc::POLLPRI;
        p.revents = ready;
        n += c_int::from(ready != 0);
    }
    n
}

const IN: i16 = libc::POLLIN | libc::POLLRDNORM;

/// What to ask the kernel about a carried descriptor: doorbells and the peer's end; not what is known already and was
/// not asked for, or the sleep would end at once.
fn kernel_events(m: &Member, events: i16) -> i16 {
    let conn = m.inside.conn();
    let mut ask = events & libc::POLLPRI;
    if !conn.read_is_over() {
        ask |= libc::POLLRDHUP;
        if events & IN != 0 || conn.readable_bytes(&m.inside.fd()) == 0 {
            ask |= libc::POLLIN;
        }
    }
    if conn.end().tx_path() != gm::Path::Ring {
        ask |= events & OUT;
    }
    ask
}

enum Slept {
    News,
    Over(c_int),
}

/// With unread bytes that nobody asked for, the doorbell for room, or of the end, can't be told from theirs: look this often,
/// in ns.
const BLIND_FOR_ROOM_NS: u64 = 1_000_000;
const BLIND_FOR_END_NS: u64 = 20_000_000;

fn sleep(
    fds: &mut [pollfd],
    members: &Members,
    deadline: Deadline,
    mask: *const sigset_t,
) -> Slept {
    let mut blind = None;
    for m in members.engaged() {
        let conn = m.inside.conn();
        conn.arm(&m.inside.fd());
        let events = fds[m.at].events;
        if kernel_events(m, events) & libc::POLLIN == 0 {
            let end = events & libc::POLLRDHUP != 0 && !conn.read_is_over();
            let room = (events & OUT != 0).then_some(BLIND_FOR_ROOM_NS);
            let end = end.then_some(BLIND_FOR_END_NS);
            blind = blind.into_iter().chain(room).chain(end).min();
        }
    }
    // Before the look: room that comes after this is seen by that one, or within a slice. Its bell may be taken off by another
    // holder of the connection.
    let most = room_slice_ns(fds, members).into_iter();
    let news = members.engaged().any(|m| {
        reported(
            m.inside.conn().ready(&m.inside.fd(), None),
            fds[m.at].events,
        ) != 0
    });
    let result = if news {
        Slept::News
    } else {
        let most = most.chain(blind).min();
        let slice = deadline.left_ns().into_iter().chain(most).min();
        let left = slice.map(|ns| timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        });
        let start = gm::clock::ticks();
        let n = ask_substituted(fds, members, left, mask);
        SPIN.slept(gm::clock::ticks().wrapping_sub(start));
        for m in members.engaged() {
            gm::End::count(&m.inside.conn().end().sleeps, 1);
        }
        if n != 0 || deadline.passed() {
            Slept::Over(n)
        } else {
            Slept::News
        }
    };
    for m in members.engaged() {
        m.inside.conn().disarm();
    }
    result
}

/// The longest sleep of those who wait for room, where the peer's doorbell can't be counted on.
fn room_slice_ns(fds: &[pollfd], members: &Members) -> Option<u64> {
    members
        .engaged()
        .filter(|m| fds[m.at].events & OUT != 0)
        .filter_map(|m| m.inside.conn().room_slice_us())
        .min()
        .map(|us| us * 1000)
}

/// Is this a time that the kernel takes? Others it refuses, and so must we.
///
/// # Safety
/// Null or readable.
pub unsafe fn is_time(t: *const timespec) -> bool {
    // SAFETY: by the caller.
    unsafe { t.as_ref() }.is_none_or(|t| t.tv_sec >= 0 && (0..1_000_000_000).contains(&t.tv_nsec))
}

/// # Safety
/// As poll(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the caller's array.
    match unsafe { carried(fds, n) } {
        Some(fds) => {
            cancel::point();
            let r = wait(fds, Deadline::after_ms(timeout), std::ptr::null());
            cancel::end();
            r
        }
        // SAFETY: the caller's arguments, unchanged.
        None => unsafe { real::poll(fds, n, timeout) },
    }
}

/// So many entries are worth looking at without asking whether the kernel would.
const FEW: usize = 16;

/// RLIMIT_NOFILE, beyond which poll's array is refused unread.
fn most_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map_or(usize::MAX, |n| n as usize)
}

/// The program's array, if a descriptor in it is one of ours.
///
/// # Safety
/// As for poll.
unsafe fn carried<'a>(fds: *mut pollfd, n: nfds_t) -> Option<&'a mut [pollfd]> {
    // The kernel's own argument is an unsigned int.
    let n = n as c_uint as usize;
    if fds.is_null() || n == 0 || (n > FEW && n > most_descriptors()) {
        return None;
    }
    // SAFETY: by the caller.
    let fds = unsafe { std::slice::from_raw_parts_mut(fds, n) };
    fds.iter().for_each(|p| epoll::be_watched(p.fd));
    fds.iter().any(|p| fds::is_tracked(p.fd)).then_some(fds)
}

/// # Safety
/// As poll(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __poll_chk(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: c_int,
    room: size_t,
) -> c_int {
    if room / size_of::<pollfd>() < n as usize {
        std::process::abort();
    }
    // SAFETY: the caller's arguments.
    unsafe { poll(fds, n, timeout) }
}

/// # Safety
/// As ppoll(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ppoll(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe {
        match carried(fds, n) {
            Some(fds) if is_time(timeout) => {
                cancel::point();
                let r = wait(fds, Deadline::after_timespec(timeout), mask);
                cancel::end();
                r
            }
            _ => real::ppoll(fds, n, timeout, mask),
        }
    }
}

/// # Safety
/// As ppoll(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __ppoll_chk(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    room: size_t,
) -> c_int {
    if room / size_of::<pollfd>() < n as usize {
        std::process::abort();
    }
    // SAFETY: the caller's arguments.
    unsafe { ppoll(fds, n, timeout, mask) }
}
