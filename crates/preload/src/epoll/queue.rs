//! The event queue of a set: carried members that are not looked at are listed there by their writers, and one bell, which is a
//! member of the kernel's set, wakes who sleeps on it.
//!
//! A set has its queue to itself in this process. A forked child shares the kernel's set, and with it the bell: what wakes the
//! one may be meant for the other. So when the child first uses a set that it inherited, it says so in the queue, the parent
//! leaves that, and both are woken by the connections' own doorbells, as is every set that has no queue.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};

use gm::EventQueue;

use super::members::{Members, bell_tag};
use crate::queues::{self, Kept};
use crate::{ctx, real};

/// A set that has slept so often has a queue from then on: to make one costs as much as some ten sleeps.
const SLEEPS: u32 = 4;
/// In `SetQueue::sleeps`: no queue any more.
const NEVER: u32 = u32::MAX;

/// What a set has of it.
#[derive(Default)]
pub struct SetQueue {
    kept: AtomicPtr<Kept>,
    /// The queue that the parent has for this set.
    inherited: AtomicU64,
    sleeps: AtomicU32,
}

impl SetQueue {
    #[inline]
    pub fn get(&self) -> Option<&'static EventQueue> {
        // SAFETY: never freed.
        let kept = unsafe { self.kept.load(Acquire).as_ref() };
        kept?.queue()
    }

    /// A thread is about to sleep on the set, which gets a queue if that is worth it. Caller holds the members.
    pub fn begin(&self, epfd: i32, members: &mut Members) {
        if self.get().is_some_and(|queue| !queue.bell().is_sound()) {
            // The program closed it behind our back, and with that took it out of the kernel's set.
            self.leave(epfd, members);
            self.sleeps.store(0, Relaxed);
        }
        let sleeps = self.sleeps.load(Relaxed);
        if sleeps == NEVER || members.queue.is_some() {
            return;
        }
        self.sleeps.store(sleeps + 1, Relaxed);
        if sleeps + 1 < SLEEPS && !sockets::at_once() {
            return;
        }
        let saved = crate::errno();
        let kept = queues::take();
        let queue = kept.and_then(Kept::queue);
        match (
            kept,
            queue.filter(|q| register(epfd, q, libc::EPOLL_CTL_ADD)),
        ) {
            (Some(kept), Some(queue)) => {
                members.queue = Some(queue.id());
                self.kept
                    .store(std::ptr::from_ref(kept).cast_mut(), Release);
            }
            (kept, _) => {
                self.sleeps.store(NEVER, Relaxed);
                kept.into_iter().for_each(queues::give);
            }
        }
        crate::set_errno(saved);
    }

    /// The set has no queue from now on; its members are to be armed one by one. Caller holds the members.
    pub fn leave(&self, epfd: i32, members: &mut Members) {
        let saved = crate::errno();
        self.sleeps.store(NEVER, Relaxed);
        if let Some(queue) = self.get().filter(|queue| queue.bell().is_sound()) {
            register(epfd, queue, libc::EPOLL_CTL_DEL);
        }
        // Not given back: a thread may be asleep there still, and who shares it may ring.
        self.kept.store(std::ptr::null_mut(), Release);
        members.leave_queue();
        crate::set_errno(saved);
    }

    /// The set is over, and the kernel forgets the bell with it. But for threads that are `asleep` there: they keep the kernel's
    /// set, and must not be woken by a bell that is somebody else's then.
    pub fn end(&self, members: &mut Members, epfd: i32, asleep: bool) {
        members.queue = None;
        if let Some(queue) = self.get().filter(|q| asleep && q.bell().is_sound()) {
            let saved = crate::errno();
            register(epfd, queue, libc::EPOLL_CTL_DEL);
            crate::set_errno(saved);
        }
        let kept = self.kept.swap(std::ptr::null_mut(), AcqRel);
        self.inherited.store(0, Relaxed);
        self.sleeps.store(0, Relaxed);
        // SAFETY: never freed.
        if let Some(kept) = unsafe { kept.as_ref() } {
            queues::give(kept);
        }
    }

    /// In a forked child: what there is, is the parent's.
    pub fn in_child(&self, members: &mut Members) {
        if let Some(queue) = self.get() {
            self.inherited.store(queue.id(), Relaxed);
        }
        self.kept.store(std::ptr::null_mut(), Relaxed);
        self.sleeps.store(0, Relaxed);
        members.queue = None;
    }

    /// The child that inherited the set uses it.
    #[inline]
    pub fn is_inherited(&self) -> bool {
        self.inherited.load(Relaxed) != 0
    }

    /// Tells the parent so. Caller holds the members.
    #[cold]
    pub fn share(&self, members: &mut Members) {
        self.sleeps.store(NEVER, Relaxed);
        let id = self.inherited.swap(0, Relaxed);
        if id == 0 {
            return;
        }
        if let Some(ctx) = ctx::opened() {
            let _quiet = crate::quiet::begin();
            EventQueue::share(ctx.node.dir(), id);
        }
        members.heat_all();
    }
}

fn register(epfd: i32, queue: &EventQueue, op: i32) -> bool {
    let mut e = libc::epoll_event {
        events: (libc::EPOLLIN | libc::EPOLLET) as u32,
        u64: bell_tag(),
    };
    // SAFETY: a local event.
    unsafe { real::epoll_ctl(epfd, op, queue.bell().descriptor(), &mut e) == 0 }
}
