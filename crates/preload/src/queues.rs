//! The event queues of this process: taken by an epoll set for as long as it is there, or by a call for one sleep, and used
//! again by others. So there are as many as sleep at a time.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};

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
    while let Some(kept) = KEPT.take_free() {
        if kept.queue.get().is_some_and(|q| q.bell().is_sound()) {
            return Some(kept);
        }
        // The program closed its bell; it stays as it is.
    }
    if MADE.load(Relaxed) >= MOST {
        return None;
    }
    make(ctx)
}

/// Those that could not be made count as well: who has no room now is not asked again and again.
#[cold]
fn make(ctx: &ctx::Ctx) -> Option<&'static Kept> {
    let me = ctx.node.me();
    if MADE.fetch_add(1, Relaxed) >= MOST {
        return None;
    }
    let _quiet = crate::quiet::begin();
    let queue = EventQueue::create(ctx.node.dir(), me).ok()?;
    let kept = KEPT.fresh(Kept::default)?;
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
    if confine::is_confined() {
        // The filter may not know of what this takes.
        return;
    }
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

/// The kernel refuses an array of one entry more than the program's: its limit on descriptors is that low.
static TIGHT: AtomicBool = AtomicBool::new(false);

/// A sleep with a bell was refused, for its limits or a reason of the program's own: from now on sleeps have none.
#[cold]
pub fn refused() {
    TIGHT.store(true, Relaxed);
}

/// For one sleep.
pub struct Lent(&'static Kept);

impl Lent {
    /// `needed`: whatever it costs.
    pub fn new(needed: bool) -> Option<Self> {
        if TIGHT.load(Relaxed) {
            return None;
        }
        static SLEPT: AtomicU32 = AtomicU32::new(0);
        if SLEPT.load(Relaxed) < SLEEPS && !needed && !sockets::at_once() {
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
