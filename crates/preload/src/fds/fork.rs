//! What fork does to the table: the child will hold every socket as well, so each gets a holder *before* the fork.
//!
//! Between that and the fork nothing changes in the table. Else the child would have to find out what did, and it can't: its
//! memory is not of one moment while other threads run, so it may see one word of a change and not the other. A change is
//! a few instructions, and counted while it is made; a fork waits until none is under way, changes wait until the fork
//! is over. Both waits end by themselves, for a signal handler may have interrupted what it waits for.

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32};

use super::rest::{ASLEEP, WAKING, is_in_use};
use super::{HIGHEST, Inside, SLOTS, Slot, cell, each, has_lower};
use crate::thread::words;

/// Changes and forks under way.
static CHANGES: AtomicU32 = AtomicU32::new(0);
static FORKS: AtomicU32 = AtomicU32::new(0);
/// The process has, or had, other threads when it forked.
static TORN: AtomicBool = AtomicBool::new(false);
/// Yields, after which a wait ends whatever is the case: a change takes no time, a fork of a large process some of it.
const CHANGE_PATIENCE: u32 = 10_000;
/// The same where the change that is left may be the forking thread's own, which a handler interrupted.
const DOUBTFUL_PATIENCE: u32 = 3;
const FORK_PATIENCE: u32 = 1_000_000;
const FORKS_IN_A_ROW: u32 = 100;

fn wait(patience: u32, over: impl Fn() -> bool) {
    for _ in 0..patience {
        if over() {
            return;
        }
        rustix::thread::sched_yield();
    }
}

/// Counts a change of this thread, or counts it off. A handler may fork in the midst of it: its thread's word is never behind then,
/// and in the child what was counted for all is made to agree, for it has this thread alone.
fn count(words: &crate::thread::Words, for_itself_first: bool, step: impl Fn()) {
    let (births, changes) = (words.births.get(), words.changes.get());
    let counting = words.counting.replace(true);
    if for_itself_first {
        words.changes.set(changes + 1);
        step();
    } else {
        step();
        words.changes.set(changes - 1);
    }
    words.counting.set(counting);
    if words.births.get() != births {
        CHANGES.store(words.changes.get(), SeqCst);
    }
}

/// A change of the table and of what counts its entries. Nothing that waits is done meanwhile.
pub(super) struct Change(());

impl Change {
    pub fn begin() -> Change {
        let words = words();
        // A handler that interrupted a change does not wait for the fork that waits for that one; nor does who forks.
        let waits = words.changes.get() == 0 && !words.forks.get();
        count(words, true, || {
            CHANGES.fetch_add(1, SeqCst);
            // Another fork may begin as one ends.
            for _ in 0..FORKS_IN_A_ROW {
                if !waits || FORKS.load(SeqCst) == 0 {
                    break;
                }
                CHANGES.fetch_sub(1, SeqCst);
                wait(FORK_PATIENCE, || FORKS.load(SeqCst) == 0);
                CHANGES.fetch_add(1, SeqCst);
            }
        });
        Change(())
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        count(words(), false, || {
            CHANGES.fetch_sub(1, SeqCst);
        });
    }
}

/// Before fork: the child will hold every socket as well.
pub fn before_fork() {
    words().forks.set(true);
    if crate::thread::has_others() {
        TORN.store(true, Relaxed);
    }
    FORKS.fetch_add(1, SeqCst);
    let own = words().changes.get();
    match words().counting.get() {
        true => wait(DOUBTFUL_PATIENCE, || CHANGES.load(SeqCst) < own),
        false => wait(CHANGE_PATIENCE, || CHANGES.load(SeqCst) <= own),
    }
    each_slot_once(|inside| {
        inside.conn().end().refs.fetch_add(1, AcqRel);
    });
}

/// In the parent. Our own `fork` knows more, and goes on with [`fork_over`].
pub fn after_fork_in_parent() {
    if !words().fork_told.get() {
        fork_over(true);
    }
}

/// The parent's last step. Without a child nobody else holds the sockets.
pub fn fork_over(born: bool) {
    if !words().forks.replace(false) {
        return;
    }
    if !born {
        each_slot_once(|inside| {
            inside.conn().end().refs.fetch_sub(1, AcqRel);
        });
    }
    FORKS.fetch_sub(1, SeqCst);
}

/// In the child: other threads that were inside a gate are not here, nor is what they were at.
pub fn after_fork_in_child() {
    words().forks.set(false);
    words().fork_told.set(false);
    FORKS.store(0, Relaxed);
    words().births.set(words().births.get() + 1);
    CHANGES.store(words().changes.get(), Relaxed);
    ROUNDS.store(0, Relaxed);
    let torn = TORN.swap(false, Relaxed);
    if torn {
        crate::heap::in_child();
        SLOTS.in_child();
        crate::epoll::forget_free();
    }
    for fd in 0..HIGHEST.load(Relaxed) as c_int {
        let Some(cell) = cell(fd) else { continue };
        // SAFETY: slots are never freed.
        let Some(slot) = (unsafe { cell.load(Relaxed).as_ref() }) else {
            continue;
        };
        if torn {
            // Else a handler forks that interrupted this very thread's calls: they go on in the child.
            slot.gate.reset();
        }
        match slot.dead.load(Relaxed) {
            WAKING => slot.dead.store(ASLEEP, Relaxed),
            dead if !is_in_use(dead) => cell.store(std::ptr::null_mut(), Relaxed),
            _ => {}
        }
    }
    for slot in SLOTS.all() {
        slot.seen.store(0, Relaxed);
        // Kept for calls of threads that are not here: the peer would wait for this process to close it.
        let kept = slot.kept.swap(0, Relaxed);
        if kept != 0 {
            // SAFETY: a descriptor of the front's own.
            drop(unsafe { OwnedFd::from_raw_fd(kept - 1) });
        }
    }
}

/// Rounds of [`each_slot_once`] under way, one bit each.
static ROUNDS: AtomicU32 = AtomicU32::new(0);

/// 0: all are in use.
fn take_round() -> u32 {
    let one_more = |used: u32| (used != u32::MAX).then_some(used | (used + 1));
    ROUNDS
        .fetch_update(AcqRel, Acquire, one_more)
        .map_or(0, |used| !used & (used + 1))
}

fn give_round(round: u32) {
    for slot in SLOTS.all() {
        if slot.seen.load(Relaxed) & round != 0 {
            slot.seen.fetch_and(!round, SeqCst);
        }
    }
    ROUNDS.fetch_and(!round, AcqRel);
}

/// Has this round, or without one a lower descriptor, come by the slot already?
fn is_first(round: u32, fd: c_int, slot: &Slot, counts: impl Fn(c_int, &Slot) -> bool) -> bool {
    match round {
        0 => !has_lower(fd, slot, |other| counts(other, slot)),
        round => slot.seen.fetch_or(round, AcqRel) & round == 0,
    }
}

/// Every socket once, however many descriptors it has. It may be asleep: see `rest`.
pub fn each_slot_once(f: impl FnMut(&Inside)) {
    each_slot_once_of(|_, _| true, f);
}

/// The same by the descriptors that count.
pub fn each_slot_once_of(counts: impl Fn(c_int, &Slot) -> bool, mut f: impl FnMut(&Inside)) {
    let round = take_round();
    each(|fd, inside| {
        if counts(fd, inside.slot) && is_first(round, fd, inside.slot, &counts) {
            f(inside);
        }
    });
    if round != 0 {
        give_round(round);
    }
}
