//! The sets of this process: which descriptor names which, and what happens to them as sockets are promoted or
//! closed and as the process forks.

use std::ffi::c_int;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32};

use sockets::Spin;

use super::members::{Members, Seen, Watch, register, unregister};
use super::queue::SetQueue;
use crate::arena::{Arena, Place, Placed};
use crate::fds::{self, Inside, Slot};
use crate::lock::{Guard, Lock};
use crate::process::vfork;
use crate::queues;

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
    /// Threads asleep in the kernel on this set.
    pub sleepers: AtomicU32,
    /// Members that are carried.
    pub carried: AtomicU32,
    /// Rings alone filled the last wait: the kernel's members come first in the next.
    pub filled: AtomicBool,
    /// Descriptors that name this set, and one of them.
    pub fds: AtomicU32,
    pub fd: AtomicI32,
    /// Its own readiness counts for somebody: see [`be_watched`].
    pub watched: AtomicBool,
    pub spin: Spin,
    /// It was closed while threads sleep on it: the last of them gives it back.
    over: AtomicBool,
    pub queue: SetQueue,
    /// What was last seen of [`super::came_to_ring`]'s count.
    pub came: AtomicU32,
}

/// The members of a set, locked. What could not be done meanwhile is done afterwards.
pub struct Held<'a> {
    set: &'a Set,
    guard: Option<Guard<'a, Members>>,
}

impl Deref for Held<'_> {
    type Target = Members;
    fn deref(&self) -> &Members {
        self.guard.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Members {
        self.guard.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Held<'_> {
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
    pub fn members(&self) -> Held<'_> {
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
    fn catch_up(&self) {
        self.late.store(false, Relaxed);
        for place in &self.late_slots {
            let p = place.swap(std::ptr::null_mut(), AcqRel);
            // SAFETY: slots are never freed.
            let Some(slot) = (unsafe { p.as_ref() }) else {
                continue;
            };
            let mut m = self.lock.lock();
            for i in m.of_slot(slot, -1) {
                let gone = |w: &Watch| !fds::is_of(w.fd, slot);
                if m.list[i].as_ref().is_some_and(gone)
                    && let Some(w) = m.take(i)
                {
                    self.drop_watch(w);
                }
            }
            drop(m);
            fds::let_go(slot);
        }
        if self.fds.load(Acquire) == 0 && self.closed_late.swap(false, AcqRel) {
            self.end();
        }
    }

    /// Nobody names it any more.
    fn end(&self) {
        let mut members = std::mem::take(&mut *self.lock.lock());
        members.listen_no_more();
        self.over.swap(true, AcqRel);
        let asleep = self.sleepers.load(Acquire) > 0;
        self.queue.end(&mut members, self.fd.load(Relaxed), asleep);
        let saved = crate::errno();
        for w in members.list.into_iter().flatten() {
            if asleep && w.dormant {
                // As for the bell.
                unregister(self.fd.load(Relaxed), &w);
            }
            self.drop_watch(w);
        }
        crate::set_errno(saved);
        self.give_if_over();
    }

    /// Was it closed while this thread slept on it?
    pub fn is_over(&self) -> bool {
        self.over.load(Acquire)
    }

    /// A thread sleeps here no more. Returns how many did.
    pub fn leave_sleepers(&self) -> u32 {
        // In a child that a handler forked, what that interrupted is not counted.
        let one_less = |n: u32| n.checked_sub(1);
        let before = self.sleepers.fetch_update(AcqRel, Acquire, one_less);
        self.give_if_over();
        before.unwrap_or(0)
    }

    fn give_if_over(&self) {
        // Each of the two who may do so stores first and looks second.
        let idle = || self.sleepers.fetch_add(0, AcqRel) == 0;
        if self.over.load(Acquire) && idle() && self.over.swap(false, AcqRel) {
            // SAFETY: sets are made in the arena alone, and never freed.
            ARENA.give(unsafe { &*std::ptr::from_ref(self) });
        }
    }

    /// Somebody may be asleep on this set, and this member may be hot: then it must wake that one, now if it has news.
    pub fn arm_for_sleepers(&self, m: &mut Members, epfd: c_int, i: usize) {
        if self.sleepers.load(Acquire) == 0 || m.cool(epfd, i) {
            return;
        }
        match (self.queue.get(), u32::try_from(i)) {
            (Some(queue), Ok(entry)) if queue.list(entry).is_some() => {}
            _ => {
                if let Some(Some(w)) = m.list.get_mut(i) {
                    // The socket is writable, so this registration fires at once.
                    w.kernel_out = true;
                    register(epfd, libc::EPOLL_CTL_MOD, w, i);
                }
            }
        }
    }

    /// The count-keeping for a member that was taken out.
    pub fn drop_watch(&self, w: Watch) {
        if w.carried {
            self.carried.fetch_sub(1, AcqRel);
        }
        w.slot.watches.fetch_sub(1, AcqRel);
    }

    /// Ends a dormant member.
    pub fn forget(&self, epfd: c_int, m: &mut Members, i: usize) {
        let saved = crate::errno();
        if let Some(w) = m.take(i) {
            unregister(epfd, &w);
            self.drop_watch(w);
        }
        crate::set_errno(saved);
    }

    /// Ends all dormant members.
    fn forget_all(&self) {
        let epfd = self.fd.load(Relaxed);
        if self.is_mine() {
            return;
        }
        let mut m = self.members();
        for i in 0..m.list.len() {
            if m.is_dormant(i) {
                self.forget(epfd, &mut m, i);
            }
        }
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
    set.end();
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
fn watch(set: &Set, fd: c_int) {
    set.watched.store(true, Release);
    let saved = crate::errno();
    set.forget_all();
    let members: Vec<c_int> = set.members().list.iter().flatten().map(|w| w.fd).collect();
    for member in members {
        crate::process::give_away(member, gm::Reason::Unsupported);
    }
    set.plain_again(fd, &mut set.members());
    crate::set_errno(saved);
}

/// A stream that took no more than this was not full yet (the smallest SO_SNDBUF is larger). Who has sent more may be waiting
/// for room, and there is some now: in the ring.
const NEVER_FULL: u64 = 2048;

/// A connection was promoted while it is a member of sets: its registrations change to ours.
pub fn on_engaged(inside: &Inside) {
    let saved = crate::errno();
    let (slot, conn) = (inside.slot, inside.conn());
    for set in live_sets() {
        let epfd = set.fd.load(Relaxed);
        let mut m = set.members();
        for i in m.of_slot(slot, inside.number) {
            let Some(w) = m.list[i].as_mut().filter(|w| !w.carried) else {
                continue;
            };
            w.carried = true;
            w.spent = w.events & libc::EPOLLONESHOT as u32 != 0 && is_spent(epfd, w.fd);
            // What is on the stream the kernel reports as it is registered anew; but the peer may have put bytes into the
            // ring already.
            w.seen = Seen::at_first(conn, &inside.fd());
            if conn.end().tcp_tx.load(Relaxed) < NEVER_FULL {
                w.seen.fulls = Some(conn.edges().1);
                w.seen.kernel_out = false;
            }
            w.conn = conn;
            w.kernel_out = conn.end().tx_path() != gm::Path::Ring;
            set.carried.fetch_add(1, AcqRel);
            if register(epfd, libc::EPOLL_CTL_MOD, w, i) != 0 {
                // EPOLLEXCLUSIVE members can't be modified, only made anew.
                unregister(epfd, w);
                register(epfd, libc::EPOLL_CTL_ADD, w, i);
            }
            m.heat(i);
            set.arm_for_sleepers(&mut m, epfd, i);
        }
    }
    crate::set_errno(saved);
}

/// Another kernel socket has taken the place of a member's: it is registered as the program wants it.
pub fn on_substituted(slot: &'static Slot, fd: c_int) {
    for set in live_sets() {
        let mut m = set.members();
        for i in m.of_slot(slot, fd) {
            let Some(w) = m.take(i) else { continue };
            if !w.dormant && w.fd == fd {
                let mut e = libc::epoll_event {
                    events: if w.spent { 0 } else { w.events },
                    u64: w.data,
                };
                let epfd = set.fd.load(Relaxed);
                // SAFETY: a local event.
                unsafe { crate::real::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, fd, &mut e) };
            }
            set.drop_watch(w);
        }
    }
}

/// Has the kernel shot this one-shot member? Then it shows no event that it waits for. Nobody told us, while the member was
/// the kernel's alone. A member that can't be looked up counts as not shot.
fn is_spent(epfd: c_int, fd: c_int) -> bool {
    const PRIVATE: u32 = (libc::EPOLLONESHOT | libc::EPOLLET) as u32
        | libc::EPOLLWAKEUP as u32
        | libc::EPOLLEXCLUSIVE as u32;
    let _whole = crate::quiet::uncancelled();
    let Ok(text) = std::fs::read_to_string(format!("/proc/self/fdinfo/{epfd}")) else {
        return false;
    };
    let events = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
        let number: c_int = words.next()?.parse().ok()?;
        (number == fd).then_some(())?;
        u32::from_str_radix(words.nth(1)?, 16).ok()
    };
    text.lines()
        .find_map(events)
        .is_some_and(|e| e & !PRIVATE == 0)
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
        let mut m = set.members();
        for i in m.of_slot(slot, fd) {
            let Some(w) = &m.list[i] else { continue };
            if w.dormant && w.fd == fd && !last {
                // The kernel would keep it in the set, under a number that is free now.
                set.forget(set.fd.load(Relaxed), &mut m, i);
            } else if (last || w.fd == fd && !w.carried)
                && let Some(w) = m.take(i)
            {
                set.drop_watch(w);
            }
        }
    }
}

/// All that was carried is on TCP for good, and the front makes no calls of its own from now on: so the kernel's sets are what
/// the program thinks they are.
pub fn become_plain() {
    let saved = crate::errno();
    for set in live_sets().filter(|set| !set.is_mine()) {
        set.forget_all();
        let (epfd, mut m) = (set.fd.load(Relaxed), set.members());
        if set.queue.get().is_some() {
            set.queue.leave(epfd, &mut m);
        }
        set.plain_again(epfd, &mut m);
    }
    crate::set_errno(saved);
}

/// Before fork: no set may be half changed, and the kernel's, which the child shares, are as the program knows them.
pub fn before_fork() {
    for set in live_sets() {
        set.forget_all();
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
        set.sleepers.store(0, Relaxed);
        if !set.is_mine() {
            set.queue.in_child(&mut set.lock.lock());
        }
    }
    queues::in_child();
}

/// In the child of a process with threads.
pub fn forget_free() {
    ARENA.in_child();
}
