//! An epoll set of the Linux kernel, under Wine.

use gm::os::raw::{EINTR, call, checked, nr};
use sockets::Ready;
use sockets::set::Put;

/// As the kernel's `struct epoll_event`.
#[derive(Clone, Copy, Default)]
#[repr(C, packed)]
pub struct Event {
    pub ready: u32,
    pub data: u64,
}

const IN: u32 = 1;
const OUT: u32 = 4;
const RDHUP: u32 = 0x2000;
const EDGE: u32 = 1 << 31;
const ADD: usize = 1;
const DELETE: usize = 2;
const CHANGE: usize = 3;

pub struct Epoll {
    set: usize,
    /// An eventfd that is a member.
    bell: usize,
}

impl Epoll {
    /// `bell`: what it tells after [`Epoll::wake`].
    pub fn new(bell: u64) -> Option<Self> {
        const CLOEXEC: usize = 0o2_000_000;
        const NONBLOCK: usize = 0o4000;
        // SAFETY: plain arguments.
        let (set, own) = unsafe {
            (
                call(nr::EPOLL_CREATE1, [CLOEXEC, 0, 0, 0, 0, 0]),
                call(nr::EVENTFD2, [0, CLOEXEC | NONBLOCK, 0, 0, 0, 0]),
            )
        };
        let epoll = Self {
            set: checked(set).ok()?,
            bell: checked(own).ok()?,
        };
        // Not for edges: whoever else asks the set must not take it from the one who is to wake.
        epoll.control(ADD, own as i32, IN, bell).then_some(epoll)
    }

    /// From now on waits sleep again.
    pub fn hush(&self) {
        let mut count = 0_u64;
        // SAFETY: eight bytes of ours.
        unsafe {
            call(
                nr::READ,
                [self.bell, std::ptr::from_mut(&mut count).addr(), 8, 0, 0, 0],
            )
        };
    }

    /// Ends the wait of who sleeps, and every one until [`Epoll::hush`].
    pub fn wake(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes of ours.
        unsafe {
            call(
                nr::WRITE,
                [self.bell, std::ptr::from_ref(&one).addr(), 8, 0, 0, 0],
            )
        };
    }

    fn control(&self, how: usize, fd: i32, events: u32, data: u64) -> bool {
        let event = Event {
            ready: events,
            data,
        };
        let at = std::ptr::from_ref(&event).addr();
        // SAFETY: a local event, which is copied.
        let done = unsafe { call(nr::EPOLL_CTL, [self.set, how, fd as usize, at, 0, 0]) };
        done == 0
    }

    /// Tells of edges of IN and RDHUP, and of OUT if `out`, as `data`. False: refused.
    pub fn put(&self, how: Put, fd: i32, out: bool, data: u64) -> bool {
        let how = match how {
            Put::Add => ADD,
            Put::Change => CHANGE,
        };
        let out = if out { OUT } else { 0 };
        self.control(how, fd, IN | RDHUP | EDGE | out, data)
    }

    pub fn take_out(&self, fd: i32) {
        self.control(DELETE, fd, 0, 0);
    }

    /// What it has, to the start of `out`; waits for something at most so many ns (`None`: no limit). Returns how many.
    pub fn wait(&self, out: &mut [Event], limit_ns: Option<u64>) -> usize {
        let ms = limit_ns.map_or(usize::MAX, |ns| {
            ns.div_ceil(1_000_000).min(i32::MAX as u64) as usize
        });
        let at = out.as_mut_ptr().addr();
        // SAFETY: room for as many as are asked for.
        let told = unsafe { call(nr::EPOLL_PWAIT, [self.set, at, out.len(), ms, 0, 0]) };
        match checked(told) {
            Ok(n) => n.min(out.len()),
            // Wine suspends threads by signal.
            Err(EINTR) => 0,
            // Nothing that could be wrong with a set of our own is mended by asking again at once.
            Err(_) => {
                super::yield_now();
                0
            }
        }
    }
}

impl Event {
    pub fn of(ready: Ready, data: u64) -> Self {
        Self {
            ready: ready.0,
            data,
        }
    }
}
