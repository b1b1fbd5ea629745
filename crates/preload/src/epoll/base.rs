//! What the engine's waiting at a set ([`sockets::set`]) asks of an epoll set: its members, as the program gave them, and the
//! kernel's set.

use std::ffi::c_int;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use gm::EventQueue;
use libc::{epoll_event, sigset_t};
use sockets::set::{self, Interest, Put, State, Told};
use sockets::{Ask, Conn, Ready};

use super::sets::{Held, Set, find};
use crate::fds::{Inside, Slot};
use crate::kernel::{Fd, Here};
use crate::poll::{Failed, reported, wanted};
use crate::process::confine;
use crate::queues::{self, Kept};
use crate::{cancel, ctx, real};

/// Upper half of our tags; the lower half is the member's index, or [`BELL`].
const TAG: u64 = 0x5347_4d21 << 32;
const BELL: u64 = u32::MAX as u64;
const HALF: u64 = 0xffff_ffff;

pub const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
const EDGE: u32 = libc::EPOLLET as u32;
const ONCE: u32 = libc::EPOLLONESHOT as u32;
const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
const RDHUP: u32 = libc::EPOLLRDHUP as u32;

/// One descriptor in one set.
pub struct Member {
    pub fd: c_int,
    pub slot: &'static Slot,
    conn: *const Conn,
    pub events: u32,
    data: u64,
}

// SAFETY: `conn` points into `slot`, and is used only under the set's lock (rule 1 of `sockets::set`).
unsafe impl Send for Member {}

impl Member {
    /// Counted in the slot as long as it lives.
    pub fn new(inside: &Inside, asked: epoll_event) -> Self {
        inside.slot.watches.fetch_add(1, AcqRel);
        Self {
            fd: inside.number,
            slot: inside.slot,
            conn: inside.conn(),
            events: asked.events,
            data: asked.u64,
        }
    }

    pub fn is_of(&self, slot: &Slot) -> bool {
        std::ptr::eq(self.slot, slot)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.slot.watches.fetch_sub(1, AcqRel);
    }
}

impl set::Member for Member {
    type Kernel<'a> = Fd;
    type Asked = epoll_event;
    type Event = epoll_event;

    fn number(&self) -> i32 {
        self.fd
    }

    #[inline]
    fn conn(&self) -> &Conn {
        // SAFETY: we are under the set's lock, and closing takes the member out first (rule 1 of `sockets::set`).
        unsafe { &*self.conn }
    }

    #[inline]
    fn kernel(&self) -> Fd {
        Fd::of(self.fd)
    }

    fn is_alone(&self) -> bool {
        self.slot.watches.load(Acquire) == 1
    }

    fn ask(&mut self, asked: epoll_event) {
        self.events = asked.events;
        self.data = asked.u64;
    }

    fn interest(&self) -> Interest {
        Interest {
            want: wanted(self.events),
            edge: self.events & EDGE != 0,
            once: self.events & ONCE != 0,
        }
    }

    fn event(&self, due: Ready) -> epoll_event {
        epoll_event {
            events: reported(due, self.events),
            u64: self.data,
        }
    }

    fn merge(event: &mut epoll_event, more: &epoll_event) -> bool {
        let alike = { event.u64 } == { more.u64 };
        event.events |= if alike { more.events } else { 0 };
        alike
    }
}

/// A set under one of its numbers, and the mask of the call that waits there (null: none).
#[derive(Clone, Copy)]
pub struct Base {
    pub set: &'static Set,
    pub epfd: c_int,
    pub mask: *const sigset_t,
}

fn control(epfd: c_int, op: c_int, fd: c_int, events: u32, data: u64) -> bool {
    let mut e = epoll_event { events, u64: data };
    // SAFETY: a local event.
    unsafe { real::epoll_ctl(epfd, op, fd, &mut e) == 0 }
}

/// As [`control`], where no call of the program's fails with it.
fn control_quietly(epfd: c_int, op: c_int, fd: c_int, events: u32, data: u64) -> bool {
    let saved = crate::errno();
    let done = control(epfd, op, fd, events, data);
    crate::set_errno(saved);
    done
}

fn operation(how: Put) -> c_int {
    match how {
        Put::Add => libc::EPOLL_CTL_ADD,
        Put::Change => libc::EPOLL_CTL_MOD,
    }
}

impl set::Below for Base {
    type Member = Member;
    type Held<'a> = Held;
    type Fault = Failed;
    type Host = Here;

    #[inline]
    fn state(&self) -> &State {
        &self.set.state
    }

    #[inline]
    fn members(&self) -> Held {
        self.set.members()
    }

    fn give_back(&self) {
        self.set.give_back();
    }

    fn is_there(&self) -> bool {
        find(self.epfd).is_some_and(|set| std::ptr::eq(set, self.set))
    }

    fn follows_none(&self) -> bool {
        confine::is_confined()
    }

    fn register(&self, how: Put, member: &Member, index: usize, out: bool) -> bool {
        let events = IN | RDHUP | EDGE | if out { OUT } else { 0 };
        let tag = TAG | index as u64;
        control(self.epfd, operation(how), member.fd, events, tag)
    }

    fn unregister(&self, member: &Member) {
        control_quietly(self.epfd, libc::EPOLL_CTL_DEL, member.fd, 0, 0);
    }

    fn restore(&self, how: Put, member: &Member, spent: bool) {
        let events = if spent { 0 } else { member.events };
        control_quietly(self.epfd, operation(how), member.fd, events, member.data);
    }

    /// The kernel shows no event that such a member waits for. One that can't be looked up counts as not told of.
    fn is_spent(&self, member: &Member) -> bool {
        const PRIVATE: u32 = ONCE | EDGE | EXCLUSIVE | libc::EPOLLWAKEUP as u32;
        let _whole = crate::quiet::uncancelled();
        let Ok(text) = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.epfd)) else {
            return false;
        };
        let events = |line: &str| {
            let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
            let number: c_int = words.next()?.parse().ok()?;
            (number == member.fd).then_some(())?;
            u32::from_str_radix(words.nth(1)?, 16).ok()
        };
        text.lines()
            .find_map(events)
            .is_some_and(|e| e & !PRIVATE == 0)
    }

    fn ask(&self, out: &mut [epoll_event], how: Ask) -> Result<usize, Failed> {
        let told = match how {
            Ask::Look => {
                let saved = crate::errno();
                let told = ask(self.epfd, out, Some(0), std::ptr::null());
                crate::set_errno(saved);
                told
            }
            Ask::Sleep(limit_ns) => ask(self.epfd, out, limit_ns, self.mask),
        };
        usize::try_from(told).map_err(|_| Failed)
    }

    #[inline]
    fn told(event: &epoll_event) -> Told {
        match ({ event.u64 } & !HALF, { event.u64 } & HALF) {
            (TAG, BELL) => Told::Bell,
            (TAG, index) => Told::Member(index as usize, Ready(event.events & 0xffff)),
            _ => Told::Other,
        }
    }

    #[inline]
    fn queue(&self) -> Option<&'static EventQueue> {
        // SAFETY: never freed.
        let kept = unsafe { self.set.kept.load(Acquire).as_ref() };
        kept?.queue()
    }

    fn take_queue(&self) -> Option<&'static EventQueue> {
        let saved = crate::errno();
        let kept = queues::take();
        let queue = kept.and_then(Kept::queue).filter(|queue| {
            let bell = queue.bell().descriptor();
            control(self.epfd, libc::EPOLL_CTL_ADD, bell, IN | EDGE, TAG | BELL)
        });
        match (kept, queue) {
            (Some(kept), Some(_)) => {
                let kept = std::ptr::from_ref(kept).cast_mut();
                self.set.kept.store(kept, Release);
            }
            (kept, _) => kept.into_iter().for_each(queues::give),
        }
        crate::set_errno(saved);
        queue
    }

    fn take_bell_out(&self, queue: &EventQueue) {
        let bell = queue.bell().descriptor();
        control_quietly(self.epfd, libc::EPOLL_CTL_DEL, bell, 0, 0);
    }

    fn drop_queue(&self, reuse: bool) {
        let kept = self.set.kept.swap(std::ptr::null_mut(), AcqRel);
        // SAFETY: never freed.
        if let Some(kept) = unsafe { kept.as_ref() }.filter(|_| reuse) {
            queues::give(kept);
        }
    }

    fn share_queue(&self, id: u64) {
        if let Some(ctx) = ctx::opened() {
            let _quiet = crate::quiet::begin();
            EventQueue::share(ctx.node.dir(), id);
        }
    }

    fn host(&self) -> Here {
        Here
    }
}

/// Asks the kernel's set and sleeps there until it has something, at most for so many ns (`None`: no limit). As epoll_pwait(2).
pub fn ask(
    epfd: c_int,
    out: &mut [epoll_event],
    limit_ns: Option<u64>,
    mask: *const sigset_t,
) -> c_int {
    let max = c_int::try_from(out.len()).unwrap_or(c_int::MAX);
    // Milliseconds round up, as a sleep may be longer than asked, not shorter.
    let ms = limit_ns.map_or(-1, |ns| {
        c_int::try_from(ns.div_ceil(1_000_000)).unwrap_or(c_int::MAX)
    });
    let at = out.as_mut_ptr();
    // SAFETY: `out` has room for `max`; the mask is the program's own, or null.
    let call = || unsafe { real::epoll_pwait(epfd, at, max, ms, mask) };
    match ms {
        // A look, under no lock: it may be cancelled as it is.
        0 => call(),
        _ => cancel::sleep(|| call() as isize) as c_int,
    }
}
