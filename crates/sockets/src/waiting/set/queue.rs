//! The event queue of a set: carried members that are not looked at are listed there by their writers, and one bell, which is a
//! member of the system's set, wakes who sleeps on it.
//!
//! A set has its queue to itself in this process. A forked child shares the system's set, and with it the bell: what wakes the
//! one may be meant for the other. So when the child first uses a set that it inherited, it says so in the queue, the parent
//! leaves that, and both are woken by the connections' own doorbells, as is every set that has no queue.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use gm::EventQueue;

use super::{Below, Members};

/// A set that has slept so often has a queue from then on: to make one costs as much as some ten sleeps.
pub(super) const SLEEPS: u32 = 4;
/// In `State::sleeps`: no queue any more.
const NEVER: u32 = u32::MAX;

#[derive(Default)]
pub struct State {
    /// The queue that the parent has for this set.
    inherited: AtomicU64,
    sleeps: AtomicU32,
}

/// A thread is about to sleep on the set, which gets a queue if that is worth it.
pub fn begin<B: Below>(below: &B, members: &mut Members<B::Member>) {
    let sleeps = &below.state().queue.sleeps;
    if below.queue().is_some_and(|queue| !queue.bell().is_sound()) {
        // The program closed it behind our back, and with that took it out of the system's set.
        leave(below, members);
        sleeps.store(0, Relaxed);
    }
    let slept = sleeps.load(Relaxed);
    if slept == NEVER || members.queue.is_some() {
        return;
    }
    sleeps.store(slept + 1, Relaxed);
    if slept + 1 < SLEEPS && !crate::at_once() {
        return;
    }
    match below.take_queue() {
        Some(queue) => members.queue = Some(queue.id()),
        None => sleeps.store(NEVER, Relaxed),
    }
}

/// The set has no queue from now on; its members are to be armed one by one.
pub fn leave<B: Below>(below: &B, members: &mut Members<B::Member>) {
    below.state().queue.sleeps.store(NEVER, Relaxed);
    if let Some(queue) = below.queue().filter(|queue| queue.bell().is_sound()) {
        below.take_bell_out(queue);
    }
    // Not used again: a thread may be asleep there still, and who shares it may ring.
    below.drop_queue(false);
    members.heat_all();
    members.listen_no_more();
}

/// The set is over, and the system forgets the bell with it. But for threads that are `asleep` there: they keep the system's
/// set, and must not be woken by a bell that is somebody else's then.
pub fn end<B: Below>(below: &B, asleep: bool) {
    if let Some(queue) = below.queue().filter(|q| asleep && q.bell().is_sound()) {
        below.take_bell_out(queue);
    }
    below.drop_queue(true);
    let state = &below.state().queue;
    state.inherited.store(0, Relaxed);
    state.sleeps.store(0, Relaxed);
}

/// In a forked child: what there is, is the parent's.
pub fn in_child<B: Below>(below: &B, members: &mut Members<B::Member>) {
    let state = &below.state().queue;
    if let Some(queue) = below.queue() {
        state.inherited.store(queue.id(), Relaxed);
    }
    below.drop_queue(false);
    state.sleeps.store(0, Relaxed);
    members.queue = None;
}

/// Another process uses the system's set as well: the bell may wake the wrong one.
#[inline]
pub fn mind_sharing<B: Below>(below: &B) {
    if below.queue().is_some_and(EventQueue::is_shared) {
        leave(below, &mut below.members());
    }
    mind_inherited(below);
}

/// The child that inherited the set uses it.
#[inline]
pub fn mind_inherited<B: Below>(below: &B) {
    if below.state().queue.inherited.load(Relaxed) != 0 {
        share(below, &mut below.members());
    }
}

/// Tells the parent so.
#[cold]
fn share<B: Below>(below: &B, members: &mut Members<B::Member>) {
    let state = &below.state().queue;
    state.sleeps.store(NEVER, Relaxed);
    let id = state.inherited.swap(0, Relaxed);
    if id != 0 {
        below.share_queue(id);
        members.heat_all();
    }
}
