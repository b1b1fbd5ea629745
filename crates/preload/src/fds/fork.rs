//! What fork does to the table: the child will hold every socket as well, so each gets a holder *before* the fork, and what
//! other threads make and close between that and the fork is put right in the child. Nobody waits for anybody.
//!
//! ```text
//!   before    the fork takes a mark, one bit; each socket that is given the mark gets a holder
//!   between   a socket that is closed with the mark: its holder is a debt, for the child will not have it
//!             a socket that is new has no mark: the child will take a holder for it
//!   child     counts itself in where the mark is missing, and out where there is a debt
//!   parent    takes the mark off, and forgets the debts
//! ```
//!
//! The child sees the memory as it was at the fork, so what its parent does afterwards does not mislead it.

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};

use gm::End;

use super::{HIGHEST, Inside, SLOTS, Slot, cell, each, has_lower};
use crate::ctx;
use crate::thread::words;

/// Marks in use, one bit each.
static MARKS: AtomicU32 = AtomicU32::new(0);
/// How often a mark was given back: a debt that is noted too late is of another fork.
static AGES: [AtomicU32; 32] = [const { AtomicU32::new(0) }; 32];
/// An end's address, the mark's number and its age; 0: none. If there is no room, an end is kept until its family is gone.
static DEBTS: [AtomicU64; 128] = [const { AtomicU64::new(0) }; 128];
const ADDRESS_BITS: u32 = 47;
const NUMBER_BITS: u32 = 5;

/// 0: all are in use.
fn take_mark() -> u32 {
    let one_more = |used: u32| (used != u32::MAX).then_some(used | (used + 1));
    MARKS
        .fetch_update(AcqRel, Acquire, one_more)
        .map_or(0, |used| !used & (used + 1))
}

fn give_mark(mark: u32) {
    AGES[mark.trailing_zeros() as usize].fetch_add(1, AcqRel);
    MARKS.fetch_and(!mark, AcqRel);
}

/// The upper part of a debt.
fn stamp(number: u32) -> u64 {
    let age = AGES[number as usize].load(Acquire);
    (u64::from(age) << NUMBER_BITS | u64::from(number)) << ADDRESS_BITS
}

/// Takes the debts of a mark.
fn settle(mark: u32, mut f: impl FnMut(&'static End)) {
    let stamp = stamp(mark.trailing_zeros());
    for debt in &DEBTS {
        let word = debt.load(Acquire);
        let address = word & ((1 << ADDRESS_BITS) - 1);
        if address != 0
            && word - address == stamp
            && debt.compare_exchange(word, 0, AcqRel, Relaxed).is_ok()
        {
            // SAFETY: an end's address, in a port that is never unmapped.
            f(unsafe { &*(address as *const End) });
        }
    }
}

/// The last descriptor of a socket is gone: forks under way have counted it in vain.
pub(super) fn gone(slot: &Slot, end: &'static End) {
    if slot.marks.load(SeqCst) == 0 {
        return;
    }
    // Before the marks are looked at: a mark that is there then has this age, or the debt is of nobody.
    let stamps: [u64; 32] = std::array::from_fn(|number| stamp(number as u32));
    let mut marks = slot.marks.load(SeqCst);
    while marks != 0 {
        let number = marks.trailing_zeros();
        marks &= marks - 1;
        let word = stamps[number as usize] | std::ptr::from_ref(end) as u64;
        // The debt first: a child that is born between sees one of them at least.
        let note = |d: &AtomicU64| d.compare_exchange(0, word, AcqRel, Relaxed).is_ok();
        let noted = DEBTS.iter().find(|d| note(d));
        let was_marked = slot.marks.fetch_and(!(1 << number), SeqCst) & 1 << number != 0;
        if let Some(debt) = noted.filter(|_| !was_marked) {
            let _ = debt.compare_exchange(word, 0, AcqRel, Relaxed);
        }
    }
}

/// Is there a debt of this mark for this end?
fn is_owed(mark: u32, end: &End) -> bool {
    let word = stamp(mark.trailing_zeros()) | std::ptr::from_ref(end) as u64;
    DEBTS.iter().any(|d| d.load(Acquire) == word)
}

/// Before fork: the child will hold every socket as well.
pub fn before_fork() {
    let mark = take_mark();
    words().fork.set(mark);
    if mark == 0 {
        return;
    }
    each(|_, inside| {
        let (slot, end) = (inside.slot, inside.conn().end());
        if slot.marks.fetch_or(mark, SeqCst) & mark == 0 {
            end.refs.fetch_add(1, AcqRel);
            // Closed meanwhile: either that saw the mark, and it is a debt, or it is taken off here.
            if slot.fds.load(SeqCst) == 0 && slot.marks.fetch_and(!mark, SeqCst) & mark != 0 {
                end.refs.fetch_sub(1, AcqRel);
            }
        }
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
    let mark = words().fork.replace(0);
    if mark == 0 {
        return;
    }
    if !born {
        each(|_, inside| {
            if inside.slot.marks.fetch_and(!mark, SeqCst) & mark != 0 {
                inside.conn().end().refs.fetch_sub(1, AcqRel);
            }
        });
    }
    settle(mark, |end| {
        if !born {
            end.refs.fetch_sub(1, AcqRel);
        }
    });
    take_off(mark, |slot| &slot.marks);
    give_mark(mark);
}

fn take_off(mark: u32, word: impl Fn(&'static Slot) -> &'static AtomicU32) {
    for slot in SLOTS.all() {
        if word(slot).load(Relaxed) & mark != 0 {
            word(slot).fetch_and(!mark, SeqCst);
        }
    }
}

/// In the child: other threads that were inside a gate are not here, nor is what they were at.
pub fn after_fork_in_child() {
    let mark = words().fork.replace(0);
    words().fork_told.set(false);
    // Counted anew: a dup or a close of another thread may have been between its two steps.
    SLOTS.all().for_each(|slot| slot.fds.store(0, Relaxed));
    for fd in 0..HIGHEST.load(Relaxed) as c_int {
        let Some(cell) = cell(fd) else { continue };
        // SAFETY: slots are never freed.
        let Some(slot) = (unsafe { cell.load(Relaxed).as_ref() }) else {
            continue;
        };
        slot.gate.reset();
        let counted = slot.marks.load(Relaxed) & mark != 0;
        let lives = slot.dead.load(Relaxed) == 0;
        if lives && counted {
            slot.seen.store(u32::MAX, Relaxed);
        }
        if lives && (counted || join(slot)) {
            slot.fds.fetch_add(1, Relaxed);
        } else {
            // The parent's last holder was quicker: a stray descriptor of the kernel's alone.
            cell.store(std::ptr::null_mut(), Relaxed);
        }
    }
    for slot in SLOTS.all() {
        let counted = mark != 0 && slot.marks.swap(0, Relaxed) & mark != 0;
        if counted && slot.seen.swap(0, Relaxed) == 0 {
            // Its last descriptor was taken out of the table, and the rest of its close is in the parent.
            // SAFETY: counted, and the mark not taken back: it was not cleaned up yet.
            let end = unsafe { (*slot.conn.get()).assume_init_ref() }.end();
            if !is_owed(mark, end) {
                leave(end);
            }
        }
        slot.seen.store(0, Relaxed);
        // Kept for calls of threads that are not here: the peer would wait for this process to close it.
        let kept = slot.kept.swap(0, Relaxed);
        if kept != 0 {
            // SAFETY: a descriptor of the front's own.
            drop(unsafe { OwnedFd::from_raw_fd(kept - 1) });
        }
    }
    if mark != 0 {
        settle(mark, |end| {
            // Memory is not copied in one moment: a debt may be seen, and the descriptor as well.
            if !is_held(end) {
                leave(end);
            }
        });
    }
    DEBTS.iter().for_each(|d| d.store(0, Relaxed));
    MARKS.store(0, Relaxed);
}

/// The child takes a holder of its own for a socket that was not counted. False: nobody holds it any more.
fn join(slot: &Slot) -> bool {
    // SAFETY: the table points to the slot, and it is not dead: its connection is initialised.
    let end = unsafe { (*slot.conn.get()).assume_init_ref() }.end();
    slot.seen.swap(u32::MAX, Relaxed) != 0
        || end
            .refs
            .fetch_update(AcqRel, Acquire, |n| (n > 0).then_some(n + 1))
            .is_ok()
}

/// Has a descriptor of this process that end? In the child alone, when the table is in order.
fn is_held(end: &End) -> bool {
    (0..HIGHEST.load(Relaxed) as c_int).any(|fd| {
        // SAFETY: slots are never freed, and one that the table points to has a connection.
        unsafe {
            let slot = cell(fd).and_then(|c| c.load(Relaxed).as_ref());
            slot.is_some_and(|s| std::ptr::eq((*s.conn.get()).assume_init_ref().end(), end))
        }
    })
}

/// This process was counted as a holder of the end, and is none.
fn leave(end: &'static End) {
    if end.refs.fetch_sub(1, AcqRel) != 1 {
        return;
    }
    for port in ctx::ports() {
        let at = std::ptr::from_ref(end);
        if let Some(index) = port.ends().iter().position(|e| std::ptr::eq(e, at)) {
            port.free(index as u32);
        }
    }
}

/// Every socket once, however many descriptors it has.
pub fn each_slot_once(mut f: impl FnMut(&Inside)) {
    let mark = take_mark();
    each(|fd, inside| {
        let first = match mark {
            0 => !has_lower(fd, inside.slot, |_| true),
            mark => inside.slot.seen.fetch_or(mark, AcqRel) & mark == 0,
        };
        if first {
            f(inside);
        }
    });
    if mark != 0 {
        take_off(mark, |slot| &slot.seen);
        give_mark(mark);
    }
}
