//! The sets of this process: which descriptor names which, and what happens to them as sockets are promoted or
//! closed and as the process forks.

use std::ffi::c_int;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32};

use sockets::set::{self, State};

use super::base::{Base, Member};
use crate::arena::{Arena, Place, Placed};
use crate::fds::{self, Inside, Slot};
use crate::lock::{Guard, Lock};
use crate::process::vfork;
use crate::queues::{self, Kept};

pub type Members = set::Members<Member>;

/// Sets on descriptors beyond this are not followed (their members stay plain).
const SETS_MAX: usize = 1 << 16;

#[derive(Default)]
pub struct Set {
    lock: Lock<Members>,
    /// What came while the lock was held by the very thread that a signal handler then interrupted: sockets that were closed,
    /// each kept by a call that is inside it, and the set itself (`close_set`).
    late: AtomicBool,
    closed_late: AtomicBool,
    late_slots: [AtomicPtr<Slot>; 8],
    place: Place,
    pub state: State,
    /// Its event queue.
    pub kept: AtomicPtr<Kept>,
    /// Descriptors that name this set, and one of them.
    fds: AtomicU32,
    fd: AtomicI32,
    /// Its own readiness counts for somebody: see [`be_watched`].
    pub watched: AtomicBool,
}

/// The members of a set, locked. What could not be done meanwhile is done afterwards.
pub struct Held {
    set: &'static Set,
    guard: Option<Guard<'static, Members>>,
}

impl Deref for Held {
    type Target = Members;
    fn deref(&self) -> &Members {
        self.guard.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Members {
        self.guard.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        self.guard = None;
        if self.set.late.load(Relaxed) {
            self.set.catch_up();
        }
    }
}

impl Placed for Set {
    fn place(&self) -> &Place {
        &self.place
    }
}

impl Set {
    /// Not in a signal handler that interrupted the one who holds them ([`Set::is_mine`]).
    #[inline]
    pub fn members(&'static self) -> Held {
        Held {
            set: self,
            guard: Some(self.lock.lock()),
        }
    }

    /// Does this thread hold the members, in what was interrupted?
    #[inline]
    pub fn is_mine(&self) -> bool {
        self.lock.is_mine()
    }

    /// A socket was closed in a handler that interrupted the holder of the members. If there are too many of them, the slot is
    /// kept for good.
    fn note_late(&self, slot: &'static Slot) {
        fds::keep(slot);
        let at = std::ptr::from_ref(slot).cast_mut();
        let null = std::ptr::null_mut();
        let note =
            |place: &AtomicPtr<Slot>| place.compare_exchange(null, at, AcqRel, Relaxed).is_ok();
        let _ = self.late_slots.iter().any(note);
        self.late.store(true, Release);
    }

    #[cold]
    fn catch_up(&'static self) {
        self.late.store(false, Relaxed);
        for place in &self.late_slots {
            let p = place.swap(std::ptr::null_mut(), AcqRel);
            // SAFETY: slots are never freed.
            let Some(slot) = (unsafe { p.as_ref() }) else {
                continue;
            };
            let mut m = self.lock.lock();
            for i in m.of_socket(-1, |w| w.is_of(slot)) {
                if m.get(i).is_some_and(|w| !fds::is_of(w.fd, slot)) {
                    set::take(&self.base(), &mut m, i);
                }
            }
            drop(m);
            fds::release(slot);
        }
        if self.fds.load(Acquire) == 0 && self.closed_late.swap(false, AcqRel) {
            set::end(&self.base());
        }
    }

    /// The set, by one of its descriptors.
    fn base(&'static self) -> Base {
        Base {
            set: self,
            epfd: self.fd.load(Relaxed),
            mask: std::ptr::null(),
        }
    }

    /// Nobody uses it any more.
    pub fn give_back(&'static self) {
        ARENA.give(self);
    }
}

static SETS: [AtomicPtr<Set>; SETS_MAX] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; SETS_MAX];
/// All sets ever made, for finding a socket's members too.
static ARENA: Arena<Set> = Arena::new();

fn cell(set: c_int) -> Option<&'static AtomicPtr<Set>> {
    if vfork::is_child() {
        return None;
    }
    SETS.get(usize::try_from(set).ok()?)
}

#[inline]
pub fn find(set: c_int) -> Option<&'static Set> {
    let p = cell(set)?.load(Acquire);
    // SAFETY: sets are never freed.
    unsafe { p.as_ref() }
}

pub fn is_set(fd: c_int) -> bool {
    find(fd).is_some()
}

pub fn find_or_make(fd: c_int) -> Option<&'static Set> {
    if let Some(s) = find(fd) {
        return Some(s);
    }
    let cell = cell(fd)?;
    let fresh = ARENA.take(Set::default)?;
    fresh.fds.store(1, Relaxed);
    fresh.fd.store(fd, Relaxed);
    fresh.watched.store(false, Relaxed);
    let p = std::ptr::from_ref(fresh).cast_mut();
    match cell.compare_exchange(std::ptr::null_mut(), p, AcqRel, Acquire) {
        Ok(_) => Some(fresh),
        Err(_) => {
            fresh.fds.store(0, Relaxed);
            ARENA.give(fresh);
            find(fd)
        }
    }
}

/// The descriptor is about to be closed; if it names a set, that is over.
pub fn close_set(fd: c_int) {
    let Some(cell) = cell(fd) else { return };
    if cell.load(Relaxed).is_null() {
        return;
    }
    let p = cell.swap(std::ptr::null_mut(), AcqRel);
    // SAFETY: sets are never freed.
    let Some(set) = (unsafe { p.as_ref() }) else {
        return;
    };
    if set.fds.fetch_sub(1, AcqRel) != 1 {
        // Another descriptor stands for it now.
        let other = SETS.iter().position(|c| std::ptr::eq(c.load(Acquire), p));
        set.fd.store(other.map_or(-1, |fd| fd as c_int), Relaxed);
        return;
    }
    if set.is_mine() {
        set.closed_late.store(true, Release);
        set.late.store(true, Release);
        return;
    }
    set::end(&set.base());
}

pub fn close_sets(first: usize, last: usize) {
    for fd in first..SETS_MAX.min(last.saturating_add(1)) {
        close_set(fd as c_int);
    }
}

/// `new` names the same set as `old`.
pub fn alias_set(old: c_int, new: c_int) {
    close_set(new);
    if let (Some(set), Some(cell)) = (find(old), cell(new)) {
        set.fds.fetch_add(1, AcqRel);
        cell.store(std::ptr::from_ref(set).cast_mut(), Release);
    }
}

/// The descriptor is polled, or about to be a member of another set. Whether a set is ready, the kernel decides, and
/// of carried members it sees the doorbells only: so the members of such a set are on TCP, those of today and later.
#[inline]
pub fn be_watched(fd: c_int) {
    if let Some(set) = find(fd)
        && !set.watched.load(Relaxed)
        && !set.is_mine()
    {
        watch(set, fd);
    }
}

#[cold]
fn watch(set: &'static Set, fd: c_int) {
    set.watched.store(true, Release);
    let saved = crate::errno();
    let base = Base {
        epfd: fd,
        ..set.base()
    };
    set::forget_all(&base);
    let members: Vec<c_int> = set.members().iter().map(|w| w.fd).collect();
    for member in members {
        crate::process::give_away(member, gm::Reason::Unsupported);
    }
    set::plain_again(&base, &mut set.members());
    crate::set_errno(saved);
}

/// A connection was promoted while it is a member of sets.
pub fn on_engaged(inside: &Inside) {
    let saved = crate::errno();
    for set in live_sets() {
        let (base, mut m) = (set.base(), set.members());
        for i in m.of_socket(inside.number, |w| w.is_of(inside.slot)) {
            set::engaged(&base, &mut m, i, &inside.fd());
        }
    }
    crate::set_errno(saved);
}

/// Another kernel socket has taken the place of this one, under all its numbers.
pub fn on_substituted(slot: &'static Slot, fds: &[c_int]) {
    for set in live_sets() {
        let (base, mut m) = (set.base(), set.members());
        let of_slot = |i: &usize| m.get(*i).is_some_and(|w| w.is_of(slot));
        let all: Vec<usize> = (0..m.places()).filter(of_slot).collect();
        for i in all {
            let put = m.get(i).is_some_and(|w| fds.contains(&w.fd));
            set::substituted(&base, &mut m, i, put);
        }
    }
}

fn live_sets() -> impl Iterator<Item = &'static Set> {
    ARENA.all().filter(|s| s.fds.load(Acquire) > 0)
}

/// Did the caller interrupt this thread's own work on a set?
pub fn is_busy() -> bool {
    live_sets().any(Set::is_mine)
}

/// A descriptor of a socket closes; with the last one of this process the kernel forgets its registrations (unless
/// another process still has it), and so do we.
pub fn on_close(slot: &'static Slot, fd: c_int, last: bool) {
    for set in live_sets() {
        if set.is_mine() {
            set.note_late(slot);
            continue;
        }
        let (base, mut m) = (set.base(), set.members());
        for i in m.of_socket(fd, |w| w.is_of(slot)) {
            let here = m.get(i).is_some_and(|w| w.fd == fd);
            if m.is_dormant(i) && here && !last {
                // The kernel would keep it in the set, under a number that is free now.
                set::forget(&base, &mut m, i);
            } else if last || here && !m.is_carried(i) {
                set::take(&base, &mut m, i);
            }
        }
    }
}

/// All that was carried is on TCP for good, and the front makes no calls of its own from now on: so the kernel's sets are what
/// the program thinks they are.
pub fn become_plain() {
    let saved = crate::errno();
    for set in live_sets().filter(|set| !set.is_mine()) {
        set::become_plain(&set.base());
    }
    crate::set_errno(saved);
}

/// Before fork: no set may be half changed, and the kernel's, which the child shares, are as the program knows them.
pub fn before_fork() {
    for set in live_sets().filter(|set| !set.is_mine()) {
        set::forget_all(&set.base());
    }
    for set in ARENA.all() {
        set.lock.hold();
    }
}

/// After it, in the parent.
pub fn after_fork() {
    for set in ARENA.all() {
        set.lock.give_back();
    }
}

/// In the child: nobody sleeps, and nobody else holds anything.
pub fn in_child() {
    for set in ARENA.all() {
        set.lock.in_child();
        let mut members = (!set.is_mine()).then(|| set.lock.lock());
        set::in_child(&set.base(), members.as_deref_mut());
    }
    queues::in_child();
}

/// In the child of a process with threads.
pub fn forget_free() {
    ARENA.in_child();
}
