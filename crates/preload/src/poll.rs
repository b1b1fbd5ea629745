//! poll and ppoll over carried and other descriptors together; select comes here as well. How to wait is the engine's
//! ([`sockets::several`]); here are the kernel's part in it, and the array.

use std::ffi::{c_int, c_uint};

use std::sync::atomic::Ordering::Acquire;

use gm::EventQueue;
use libc::{nfds_t, pollfd, sigset_t, size_t, timespec};
use sockets::several::{self, Below, Socket};
use sockets::{Ask, Conn, Ready};

use crate::fds::{self, Inside, enter};
use crate::kernel::{self, Fd, Here};
use crate::queues::{self, Lent};
use crate::scratch::List;
use crate::time::{self, Deadline};
use crate::{cancel, epoll, real};

/// A tracked descriptor of the program's array.
struct Place {
    at: usize,
    /// What was asked of it, while the array says what the kernel is asked.
    events: i16,
    inside: Inside,
}

impl Socket for Place {
    type Kernel<'a> = Fd;

    fn conn(&self) -> Option<&Conn> {
        Some(self.inside.conn())
    }

    fn kernel(&self) -> Fd {
        self.inside.fd()
    }

    fn is_watched(&self) -> bool {
        self.inside.slot.watches.load(Acquire) > 0
    }
}

type Member = several::Member<Place>;

/// A handful stay on the stack; none of this is malloc's, for poll may be called where that may not.
type Members = List<Member, 8>;

/// Goes inside the tracked ones. Returns how many are carried; `None`: no memory.
#[inline]
fn gather(members: &mut Members, fds: &[pollfd]) -> Option<usize> {
    let mut carried = 0;
    for (at, p) in fds.iter().enumerate() {
        if let Some(inside) = enter(p.fd) {
            let engaged = inside.engaged();
            carried += usize::from(engaged);
            let events = p.events;
            let place = Place { at, events, inside };
            if !members.push(Member::new(place, wanted(bits(events)), engaged)) {
                return None;
            }
        }
    }
    Some(carried)
}

/// What poll's events, or epoll's of the same numbers, mean.
pub fn wanted(events: u32) -> Ready {
    let mut want = Ready(events) & (Ready::IN | Ready::OUT | Ready::PRI | Ready::RDHUP);
    if events & libc::POLLRDNORM as u32 != 0 {
        want |= Ready::IN;
    }
    if events & libc::POLLWRNORM as u32 != 0 {
        want |= Ready::OUT;
    }
    want
}

/// What is reported of `ready` to somebody who asked for `events`.
pub fn reported(ready: Ready, events: u32) -> u32 {
    const ALWAYS: Ready = Ready(Ready::ERR.0 | Ready::HUP.0 | Ready::NVAL.0);
    let mut out = ready.0 & (events | ALWAYS.0);
    if ready.intersects(Ready::IN) {
        out |= events & libc::POLLRDNORM as u32;
    }
    if ready.intersects(Ready::OUT) {
        out |= events & libc::POLLWRNORM as u32;
    }
    out
}

fn bits(events: i16) -> u32 {
    u32::from(events as u16)
}

/// The call behind poll, ppoll and select.
pub fn wait(fds: &mut [pollfd], deadline: Deadline, mask: *const sigset_t) -> c_int {
    let r = wait_for_any(fds, deadline, mask);
    if cancel::is_on() { -1 } else { r }
}

fn wait_for_any(fds: &mut [pollfd], deadline: Deadline, mask: *const sigset_t) -> c_int {
    let mut members = Members::new();
    let Some(carried) = gather(&mut members, fds) else {
        crate::set_errno(libc::ENOMEM);
        return -1;
    };
    let others = carried < fds.len();
    let mut array = Array {
        fds,
        mask,
        others,
        bell: None,
    };
    if carried == 0 {
        // Staying inside the plain ones keeps them plain while we sleep.
        return array.ask_kernel(time::left(deadline), mask);
    }
    match several::wait(&mut members, deadline, &mut array) {
        Ok(()) => answer(fds, &members),
        Err(Failed) => -1,
    }
}

/// Fills in the carried ones' events; the others' are the kernel's. Returns how many have some.
fn answer(fds: &mut [pollfd], members: &[Member]) -> c_int {
    for m in members.iter().filter(|m| m.is_carried()) {
        fds[m.socket.at].revents = reported(m.got, bits(m.socket.events)) as i16;
    }
    fds.iter().filter(|p| p.revents != 0).count() as c_int
}

/// The program's array, of which the kernel is asked.
struct Array<'a> {
    fds: &'a mut [pollfd],
    mask: *const sigset_t,
    others: bool,
    bell: Option<Bell>,
}

/// The bell of a sleep, and the array that the kernel is asked of then, with one entry more.
struct Bell {
    lent: Lent,
    entries: List<pollfd, 9>,
}

/// errno says why.
pub struct Failed;

impl Below<Place> for Array<'_> {
    type Fault = Failed;
    type Host = Here;

    fn ask(&mut self, members: &mut [Member], how: Ask) -> Result<bool, Failed> {
        let (limit_ns, mask) = match how {
            Ask::Look => (Some(0), std::ptr::null()),
            Ask::Sleep(limit_ns) => (limit_ns, self.mask),
        };
        let substituted = Substituted::new(self, members);
        let left = limit_ns.map(time::timespec_of);
        let mut ready = match how {
            Ask::Sleep(_) => substituted.array.sleep(left, mask),
            Ask::Look => substituted.array.ask_kernel(left, mask),
        };
        drop(substituted);
        if ready < 0 {
            return Err(Failed);
        }
        for m in members.iter_mut().filter(|m| m.is_carried()) {
            let revents = self.fds[m.socket.at].revents;
            m.below = Ready(bits(revents));
            ready -= c_int::from(revents != 0);
        }
        Ok(ready > 0)
    }

    fn queue(&mut self, needed: bool) -> Option<&'static EventQueue> {
        if self.fds.len() > FEW && self.fds.len() >= most_descriptors() {
            // The kernel would refuse one entry more.
            return None;
        }
        let lent = Lent::new(needed)?;
        let queue = lent.queue()?;
        let bell = pollfd {
            fd: queue.bell().descriptor(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut entries = List::new();
        let mut all = self.fds.iter().copied().chain([bell]);
        if !all.all(|entry| entries.push(entry)) {
            return None;
        }
        self.bell = Some(Bell { lent, entries });
        Some(queue)
    }

    fn leave_queue(&mut self) {
        self.bell = None;
    }

    fn has_others(&self) -> bool {
        self.others
    }

    fn looks_fast(&self) -> bool {
        true
    }

    fn host(&self) -> Here {
        Here
    }
}

impl Array<'_> {
    fn ask_kernel(&mut self, left: Option<timespec>, mask: *const sigset_t) -> c_int {
        kernel::ppoll(self.fds, left, mask)
    }

    /// As `ask_kernel`; the bell, if there is one, ends it as well.
    fn sleep(&mut self, left: Option<timespec>, mask: *const sigset_t) -> c_int {
        let Some(Bell { lent, entries }) = &mut self.bell else {
            return self.ask_kernel(left, mask);
        };
        for (entry, p) in entries.iter_mut().zip(self.fds.iter()) {
            *entry = *p;
        }
        let saved = crate::errno();
        let r = kernel::ppoll(entries, left, mask);
        if r < 0 && crate::errno() == libc::EINVAL {
            // As if woken: it goes round again.
            crate::set_errno(saved);
            queues::refused();
            self.fds.iter_mut().for_each(|p| p.revents = 0);
            return 0;
        }
        if r < 0 {
            return r;
        }
        for (entry, p) in entries.iter().zip(self.fds.iter_mut()) {
            p.revents = entry.revents;
        }
        let rung = entries.last().is_some_and(|bell| bell.revents != 0);
        if let (true, Some(queue)) = (rung, lent.queue()) {
            queue.bell().hush();
        }
        r - c_int::from(rung)
    }
}

/// The array, in which the carried ones' events are put in the kernel's terms: as long as it lives, even if the thread is
/// cancelled then.
struct Substituted<'a, 'b> {
    array: &'a mut Array<'b>,
    members: &'a [Member],
}

impl<'a, 'b> Substituted<'a, 'b> {
    fn new(array: &'a mut Array<'b>, members: &'a [Member]) -> Self {
        for m in members.iter().filter(|m| m.is_carried()) {
            array.fds[m.socket.at].events = m.ask.0 as i16;
        }
        Self { array, members }
    }
}

impl Drop for Substituted<'_, '_> {
    fn drop(&mut self) {
        for m in self.members.iter().filter(|m| m.is_carried()) {
            self.array.fds[m.socket.at].events = m.socket.events;
        }
    }
}

/// # Safety
/// As poll(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the caller's array.
    match unsafe { carried(fds, n) } {
        Some(fds) => {
            cancel::point();
            let r = wait(fds, time::after_ms(timeout), std::ptr::null());
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
            Some(fds) if time::is_time(timeout) => {
                cancel::point();
                let r = wait(fds, time::after_timespec(timeout), mask);
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
