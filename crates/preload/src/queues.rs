//! The event queues of this process: taken by an epoll set for as long as it is there, or by a call for one sleep, and used
//! again by others. So there are as many as sleep at a time.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use gm::{EventQueue, Note};

use crate::arena::{Arena, Place, Placed};
use crate::ctx;
use crate::process::confine;

/// Each is a descriptor, here and in every process that rings it.
const MOST: u32 = 32;

#[derive(Default)]
pub struct Kept {
    place: Place,
    queue: Note<EventQueue>,
    /// Whose it is: not a forked child's.
    pid: AtomicU32,
}

impl Placed for Kept {
    fn place(&self) -> &Place {
        &self.place
    }
}

impl Kept {
    pub fn queue(&'static self) -> Option<&'static EventQueue> {
        self.queue.get()
    }
}

static KEPT: Arena<Kept> = Arena::new();
/// Made in this process so far.
static MADE: AtomicU32 = AtomicU32::new(0);

fn my_pid() -> u32 {
    ctx::opened().map_or(0, |ctx| ctx.node.me().pid)
}

/// One with a queue, for the caller alone. `None`: there can be no more.
pub fn take() -> Option<&'static Kept> {
    let ctx = ctx::opened().filter(|_| !confine::is_confined())?;
    let kept = KEPT.take(Kept::default)?;
    if kept.queue.get().is_none_or(|q| !q.bell().is_sound()) {
        return fill(ctx, kept);
    }
    Some(kept)
}

#[cold]
fn fill(ctx: &ctx::Ctx, mut kept: &'static Kept) -> Option<&'static Kept> {
    let me = ctx.node.me();
    if MADE.fetch_add(1, Relaxed) >= MOST {
        KEPT.give(kept);
        return None;
    }
    if kept.queue.get().is_some() {
        // The program closed its bell; it stays as it is.
        kept = KEPT.fresh(Kept::default)?;
    }
    let _quiet = crate::quiet::begin();
    let Ok(queue) = EventQueue::create(ctx.node.dir(), me) else {
        KEPT.give(kept);
        return None;
    };
    kept.pid.store(me.pid, Relaxed);
    kept.queue.set(queue).ok()?;
    Some(kept)
}

/// It is free to be taken, unless it is of the process that this one was forked from.
pub fn give(kept: &'static Kept) {
    if kept.pid.load(Relaxed) == my_pid() {
        KEPT.give(kept);
    }
}

/// In a forked child, which has none.
pub fn in_child() {
    KEPT.in_child();
    MADE.store(0, Relaxed);
    for kept in KEPT.all() {
        if let Some(queue) = kept.queue.get() {
            queue.bell().close();
        }
    }
}

/// The process ends: its queues' names go.
pub fn at_exit() {
    let Some(ctx) = ctx::opened() else { return };
    let me = ctx.node.me().pid;
    for kept in KEPT.all().filter(|k| k.pid.load(Relaxed) == me) {
        if let Some(queue) = kept.queue.get() {
            EventQueue::remove(ctx.node.dir(), queue.id());
        }
    }
}

/// So many sleeps of a process are on doorbells: to make a queue costs as much as some ten sleeps.
const SLEEPS: u32 = 8;

/// For one sleep.
pub struct Lent(&'static Kept);

impl Lent {
    pub fn new() -> Option<Self> {
        static SLEPT: AtomicU32 = AtomicU32::new(0);
        if SLEPT.load(Relaxed) < SLEEPS && !sockets::at_once() {
            SLEPT.fetch_add(1, Relaxed);
            return None;
        }
        take().map(Self)
    }

    pub fn queue(&self) -> Option<&'static EventQueue> {
        self.0.queue()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        give(self.0);
    }
}
