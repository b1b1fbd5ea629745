//! epoll. The kernel's set stays true: every member is in it. A carried member is in it edge-triggered, for doorbells
//! and the peer's end, with a tag of ours as its data; what the program asked for is kept here.
//!
//! ```text
//!   hot    used lately: looked at directly on every wait, not armed (its writer rings no bell)
//!   cold   quiet: armed (`Conn::arm_edge`), a bell comes through the kernel's set and makes it hot again
//! ```
//!
//! Rules:
//! 1. A set's lock is held for looking and changing, never while sleeping. A member's connection can't go away while
//!    it is held: closing takes the member out first.
//! 2. Before anybody sleeps in the kernel, every member is armed and was looked at after that.
//! 3. While another thread sleeps on the same set, nothing stays hot when a wait returns.

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32};

use libc::{epoll_event, sigset_t, timespec};
use sockets::{Conn, Kernel, Ready, Spin, Spun};

use crate::fds::{Inside, Slot, enter};
use crate::kernel::Fd;
use crate::lock::Lock;
use crate::poll::Deadline;
use crate::{kernel, real};

/// Sets on descriptors beyond this are not followed (their members stay plain).
const SETS_MAX: usize = 1 << 16;
/// Upper half of our tags; the lower half is the member's index.
const TAG: u64 = 0x5347_4d21 << 32;
/// Looks without news after which a hot member goes cold, if there are many.
const QUIET_LOOKS: u32 = 256;
const MANY_HOT: usize = 32;
/// Waits answered from rings alone before the kernel's set is asked again.
const KERNEL_EVERY: u32 = 8;

#[derive(Default)]
struct Set {
    lock: Lock<Members>,
    /// Threads asleep in the kernel on this set.
    sleepers: AtomicU32,
    /// Members that are carried.
    carried: AtomicU32,
    /// Waits since the kernel's set was asked.
    unasked: AtomicU32,
    /// Descriptors that name this set, and one of them.
    fds: AtomicU32,
    fd: AtomicI32,
    spin: Spin,
}

#[derive(Default)]
struct Members {
    list: Vec<Option<Watch>>,
    free: Vec<usize>,
    by_fd: HashMap<c_int, usize>,
    hot: Vec<usize>,
    /// Where the next look at the hot ones starts, so that none starves.
    turn: usize,
}

struct Watch {
    fd: c_int,
    slot: &'static Slot,
    conn: *const Conn,
    events: u32,
    data: u64,
    /// In the kernel's set with our tag.
    carried: bool,
    /// Registered there for writability, because sending is on TCP.
    kernel_out: bool,
    hot: bool,
    /// One-shot, and it was shot.
    spent: bool,
    /// Edges already reported; `None`: report whatever is ready (just added or modified).
    seen: Option<(u64, u32)>,
    /// The kernel said something since the last report.
    kernel_edge: bool,
    quiet: u32,
}

// SAFETY: `conn` points into `slot`, and is used only under the set's lock (rule 1).
unsafe impl Send for Watch {}

impl Watch {
    fn conn(&self) -> &Conn {
        // SAFETY: rule 1 of this module.
        unsafe { &*self.conn }
    }

    fn tag(index: usize) -> u64 {
        TAG | index as u64
    }

    /// What is to be reported now; 0: nothing. Changes nothing.
    fn due(&self, kernel: Option<Ready>) -> u32 {
        if self.spent {
            return 0;
        }
        let conn = self.conn();
        let ready = conn.ready(&Fd(self.fd), kernel).0;
        let mut due = ready & (self.events | (libc::EPOLLERR | libc::EPOLLHUP) as u32) & 0xffff;
        if ready & Ready::IN.0 != 0 {
            due |= self.events & libc::EPOLLRDNORM as u32;
        }
        if ready & Ready::OUT.0 != 0 {
            due |= self.events & libc::EPOLLWRNORM as u32;
        }
        if due != 0 && self.events & libc::EPOLLET as u32 != 0 && !self.kernel_edge {
            let Some(seen) = self.seen else { return due };
            let now = conn.edges();
            let arrived = now.0 != seen.0 && due & !(libc::EPOLLOUT as u32) != 0;
            let room = now.1 != seen.1 && due & libc::EPOLLOUT as u32 != 0;
            if !arrived && !room {
                return 0;
            }
        }
        due
    }

    /// As `due`, and takes note that it is reported.
    fn report(&mut self, kernel: Option<Ready>) -> u32 {
        // Edges are read first: what comes after them will be a new one.
        let edges = self.conn().edges();
        let due = self.due(kernel);
        if due != 0 {
            // What was not reported keeps its edge.
            let (arrivals, fulls) = self.seen.unwrap_or(edges);
            let told_in = due & !(libc::EPOLLOUT as u32) != 0;
            let told_out = due & libc::EPOLLOUT as u32 != 0;
            self.seen = Some((
                if told_in { edges.0 } else { arrivals },
                if told_out { edges.1 } else { fulls },
            ));
            self.kernel_edge = false;
            self.quiet = 0;
            if self.events & libc::EPOLLONESHOT as u32 != 0 {
                self.spent = true;
            }
        }
        due
    }

    fn wants_out(&self) -> bool {
        self.events & libc::EPOLLOUT as u32 != 0
    }

    fn event(&self, events: u32) -> epoll_event {
        epoll_event {
            events,
            u64: self.data,
        }
    }
}

static SETS: [AtomicPtr<Set>; SETS_MAX] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; SETS_MAX];
/// All sets ever made, for finding a socket's members. Sets are used again, never freed.
static ALL: Lock<Vec<&'static Set>> = Lock::new(Vec::new());
static FREE: Lock<Vec<&'static Set>> = Lock::new(Vec::new());

fn cell(set: c_int) -> Option<&'static AtomicPtr<Set>> {
    SETS.get(usize::try_from(set).ok()?)
}

#[inline]
fn find(set: c_int) -> Option<&'static Set> {
    let p = cell(set)?.load(Acquire);
    // SAFETY: sets are never freed.
    unsafe { p.as_ref() }
}

pub fn is_set(fd: c_int) -> bool {
    find(fd).is_some()
}

fn find_or_make(fd: c_int) -> Option<&'static Set> {
    if let Some(s) = find(fd) {
        return Some(s);
    }
    let cell = cell(fd)?;
    let fresh = FREE.lock().pop().unwrap_or_else(|| {
        let s: &'static Set = Box::leak(Box::default());
        ALL.lock().push(s);
        s
    });
    fresh.fds.store(1, Relaxed);
    fresh.fd.store(fd, Relaxed);
    let p = std::ptr::from_ref(fresh).cast_mut();
    match cell.compare_exchange(std::ptr::null_mut(), p, AcqRel, Acquire) {
        Ok(_) => Some(fresh),
        Err(_) => {
            fresh.fds.store(0, Relaxed);
            FREE.lock().push(fresh);
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
    let members = std::mem::take(&mut *set.lock.lock());
    for w in members.list.into_iter().flatten() {
        set.drop_watch(w);
    }
    FREE.lock().push(set);
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
        cell.store(
            std::ptr::from_ref(set).cast_mut(),
            std::sync::atomic::Ordering::Release,
        );
    }
}

impl Set {
    fn drop_watch(&self, w: Watch) {
        if w.carried {
            self.carried.fetch_sub(1, AcqRel);
        }
        w.slot.watches.fetch_sub(1, AcqRel);
    }
}

impl Members {
    fn position(&self, fd: c_int, slot: &Slot) -> Option<usize> {
        let i = *self.by_fd.get(&fd)?;
        self.list
            .get(i)?
            .as_ref()
            .is_some_and(|w| std::ptr::eq(w.slot, slot))
            .then_some(i)
    }

    fn insert(&mut self, i: usize, w: Watch) {
        self.by_fd.insert(w.fd, i);
        if i == self.list.len() {
            self.list.push(Some(w));
        } else {
            self.list[i] = Some(w);
        }
    }

    fn take(&mut self, i: usize) -> Option<Watch> {
        let w = self.list.get_mut(i)?.take()?;
        if self.by_fd.get(&w.fd) == Some(&i) {
            self.by_fd.remove(&w.fd);
        }
        if w.hot {
            self.hot.retain(|h| *h != i);
        }
        self.free.push(i);
        Some(w)
    }

    /// Members that belong to `slot`: the one at `fd` if that is the only one, else all.
    fn of_slot(&self, slot: &Slot, fd: c_int) -> Vec<usize> {
        match self.position(fd, slot) {
            Some(i) if slot.watches.load(Acquire) == 1 => vec![i],
            _ => (0..self.list.len())
                .filter(|i| {
                    self.list[*i]
                        .as_ref()
                        .is_some_and(|w| std::ptr::eq(w.slot, slot))
                })
                .collect(),
        }
    }

    fn heat(&mut self, i: usize) {
        if let Some(Some(w)) = self.list.get_mut(i) {
            w.quiet = 0;
            if !w.hot {
                w.hot = true;
                self.hot.push(i);
            }
        }
    }

    /// Arms a hot member. False: it has news.
    fn cool(&mut self, epfd: c_int, i: usize) -> bool {
        let Some(Some(w)) = self.list.get_mut(i) else {
            return true;
        };
        w.conn().arm_edge(&Fd(w.fd));
        let tx_on_tcp = w.conn().end().tx_path() != gm::Path::Ring;
        if tx_on_tcp != w.kernel_out && w.wants_out() {
            w.kernel_out = tx_on_tcp;
            register(epfd, libc::EPOLL_CTL_MOD, w, i);
        }
        w.due(None) == 0
    }
}

/// Puts a carried member into the kernel's set (or changes it there): edge-triggered, our tag.
fn register(epfd: c_int, op: c_int, w: &Watch, i: usize) -> c_int {
    let mut events = (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
    if w.kernel_out {
        events |= libc::EPOLLOUT as u32;
    }
    let mut e = epoll_event {
        events,
        u64: Watch::tag(i),
    };
    // SAFETY: a local event.
    unsafe { real::epoll_ctl(epfd, op, w.fd, &mut e) }
}

/// A connection was promoted while it is a member of sets: its registrations change to ours.
pub fn on_engaged(inside: &Inside) {
    let saved = crate::errno();
    let (slot, conn) = (inside.slot, inside.conn());
    for set in live_sets() {
        let epfd = set.fd.load(Relaxed);
        let mut m = set.lock.lock();
        for i in m.of_slot(slot, inside.fd.0) {
            let Some(w) = m.list[i].as_mut().filter(|w| !w.carried) else {
                continue;
            };
            w.carried = true;
            // The kernel reports what is ready as it is registered anew; that is the first report.
            w.seen = Some(conn.edges());
            w.conn = conn;
            w.kernel_out = conn.end().tx_path() != gm::Path::Ring;
            set.carried.fetch_add(1, AcqRel);
            if register(epfd, libc::EPOLL_CTL_MOD, w, i) != 0 {
                // EPOLLEXCLUSIVE members can't be modified, only made anew.
                // SAFETY: DEL takes no event.
                unsafe { real::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, w.fd, std::ptr::null_mut()) };
                register(epfd, libc::EPOLL_CTL_ADD, w, i);
            }
            if set.sleepers.load(Acquire) > 0 {
                m.cool(epfd, i);
            } else {
                m.heat(i);
            }
        }
    }
    crate::set_errno(saved);
}

fn live_sets() -> Vec<&'static Set> {
    ALL.lock()
        .iter()
        .copied()
        .filter(|s| s.fds.load(Acquire) > 0)
        .collect()
}

/// A descriptor of a socket closes; with the last one of this process the kernel forgets its registrations (unless
/// another process still has it), and so do we.
pub fn on_close(slot: &'static Slot, fd: c_int, last: bool) {
    for set in live_sets() {
        let mut m = set.lock.lock();
        for i in m.of_slot(slot, fd) {
            let gone = m.list[i]
                .as_ref()
                .is_some_and(|w| last || w.fd == fd && !w.carried);
            if gone && let Some(w) = m.take(i) {
                set.drop_watch(w);
            }
        }
    }
}

/// # Safety
/// As epoll_create(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_create(size: c_int) -> c_int {
    // SAFETY: the caller's argument, unchanged.
    created(unsafe { real::epoll_create(size) })
}

/// # Safety
/// As epoll_create1(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: the caller's argument, unchanged.
    created(unsafe { real::epoll_create1(flags) })
}

/// A set is known from the start, so that who sleeps on it is counted before it has a member of ours.
fn created(fd: c_int) -> c_int {
    if fd >= 0 {
        close_set(fd);
        find_or_make(fd);
    }
    fd
}

/// # Safety
/// As epoll_ctl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(
    epfd: c_int,
    op: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let plain = || unsafe { real::epoll_ctl(epfd, op, fd, event) };
    let Some(inside) = enter(fd) else {
        return plain();
    };
    let Some(set) = find_or_make(epfd) else {
        inside.conn().end().keep_tcp(gm::Reason::TableFull);
        return plain();
    };
    if event.is_null() && op != libc::EPOLL_CTL_DEL {
        return plain();
    }
    // SAFETY: the caller's event, not null.
    let asked = unsafe { event.as_ref() }.copied();
    match (op, asked) {
        (libc::EPOLL_CTL_ADD, Some(e)) => add(set, epfd, &inside, e, plain),
        (libc::EPOLL_CTL_MOD, Some(e)) => modify(set, epfd, &inside, e, plain),
        (libc::EPOLL_CTL_DEL, _) => remove(set, &inside, plain),
        _ => plain(),
    }
}

fn add(
    set: &'static Set,
    epfd: c_int,
    inside: &Inside,
    e: epoll_event,
    plain: impl FnOnce() -> c_int,
) -> c_int {
    let carried = inside.engaged();
    let mut m = set.lock.lock();
    let i = m.free.pop().unwrap_or(m.list.len());
    let w = Watch {
        fd: inside.fd.0,
        slot: inside.slot,
        conn: inside.conn(),
        events: e.events,
        data: e.u64,
        carried,
        kernel_out: carried && inside.conn().end().tx_path() != gm::Path::Ring,
        hot: false,
        spent: false,
        seen: None,
        kernel_edge: false,
        quiet: 0,
    };
    let r = if carried {
        register(epfd, libc::EPOLL_CTL_ADD, &w, i)
    } else {
        plain()
    };
    if r != 0 {
        if i < m.list.len() {
            m.free.push(i);
        }
        return r;
    }
    inside.slot.watches.fetch_add(1, AcqRel);
    m.insert(i, w);
    if carried {
        set.carried.fetch_add(1, AcqRel);
        warm_up(set, &mut m, epfd, i);
    }
    0
}

/// A member was added or changed: it is looked at by the next wait, and by a wait that already sleeps.
fn warm_up(set: &Set, m: &mut Members, epfd: c_int, i: usize) {
    m.heat(i);
    if set.sleepers.load(Acquire) == 0 {
        return;
    }
    if !m.cool(epfd, i)
        && let Some(Some(w)) = m.list.get_mut(i)
    {
        // Ready now, and the sleeper would not see it: the socket is writable, so this registration fires at once.
        w.kernel_out = true;
        register(epfd, libc::EPOLL_CTL_MOD, w, i);
    }
}

fn modify(
    set: &'static Set,
    epfd: c_int,
    inside: &Inside,
    e: epoll_event,
    plain: impl FnOnce() -> c_int,
) -> c_int {
    let mut m = set.lock.lock();
    let Some(i) = m.position(inside.fd.0, inside.slot) else {
        return plain();
    };
    let Some(w) = m.list[i].as_mut() else {
        return plain();
    };
    if !w.carried {
        let r = plain();
        if r == 0 {
            w.events = e.events;
            w.data = e.u64;
        }
        return r;
    }
    let exclusive = libc::EPOLLEXCLUSIVE as u32;
    if (w.events | e.events) & exclusive != 0 {
        crate::set_errno(libc::EINVAL);
        return -1;
    }
    w.events = e.events;
    w.data = e.u64;
    w.spent = false;
    w.seen = None;
    warm_up(set, &mut m, epfd, i);
    0
}

fn remove(set: &'static Set, inside: &Inside, plain: impl FnOnce() -> c_int) -> c_int {
    let mut m = set.lock.lock();
    let r = plain();
    if r == 0
        && let Some(i) = m.position(inside.fd.0, inside.slot)
        && let Some(w) = m.take(i)
    {
        set.drop_watch(w);
    }
    r
}

/// One wait. `real`: asks the kernel's set, with a time-out in its own terms.
fn wait(epfd: c_int, out: &mut [epoll_event], deadline: Deadline, mask: *const sigset_t) -> c_int {
    loop {
        let Some(set) = find(epfd) else {
            let r = ask(epfd, out, deadline.left(), mask);
            // A set may have been made, and a member of it promoted, while we slept.
            match (r > 0).then(|| find(epfd)).flatten() {
                Some(set) => {
                    let n = set.sort(epfd, out, 0, r as usize);
                    if n == 0 && !deadline.passed() {
                        continue;
                    }
                    return n as c_int;
                }
                None => return r,
            }
        };
        if let Some(r) = set.wait_once(epfd, out, deadline, mask) {
            return r;
        }
    }
}

fn ask(
    epfd: c_int,
    out: &mut [epoll_event],
    left: Option<timespec>,
    mask: *const sigset_t,
) -> c_int {
    let max = c_int::try_from(out.len()).unwrap_or(c_int::MAX);
    // Milliseconds round up, as a sleep may be longer than asked, not shorter.
    let ms = left.map_or(-1, |t| {
        let ms = t
            .tv_sec
            .saturating_mul(1000)
            .saturating_add((t.tv_nsec + 999_999) / 1_000_000);
        c_int::try_from(ms).unwrap_or(c_int::MAX)
    });
    // SAFETY: the caller's array.
    unsafe { real::epoll_pwait(epfd, out.as_mut_ptr(), max, ms, mask) }
}

const NOW: timespec = timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

impl Set {
    /// A round of a wait: rings, then polling, then the kernel. `None`: nothing yet, go round again.
    fn wait_once(
        &self,
        epfd: c_int,
        out: &mut [epoll_event],
        deadline: Deadline,
        mask: *const sigset_t,
    ) -> Option<c_int> {
        if self.carried.load(Acquire) == 0 {
            return self.sleep(epfd, out, deadline, mask);
        }
        let n = self.collect(epfd, out);
        if n > 0 {
            // Others must get their turn as well.
            let ask_now = self
                .unasked
                .fetch_add(1, Relaxed)
                .is_multiple_of(KERNEL_EVERY);
            let more = if ask_now && n < out.len() {
                self.ask_now(epfd, out, n)
            } else {
                0
            };
            self.leave(epfd);
            return Some((n + more) as c_int);
        }
        let mut found = 0;
        if !deadline.passed() {
            let mut last = gm::clock::ticks();
            let news = || {
                let now = gm::clock::ticks();
                if now.wrapping_sub(last) > 8 * gm::clock::TICKS_PER_US {
                    last = now;
                    found = self.ask_now(epfd, out, 0);
                }
                found > 0 || self.any_hot_due()
            };
            let give_way = rustix::thread::sched_yield;
            if self.spin.wait(kernel::cpus(), give_way, news) == Spun::Found {
                if found > 0 {
                    self.leave(epfd);
                    return Some(found as c_int);
                }
                return None;
            }
        }
        self.sleep(epfd, out, deadline, mask)
    }

    /// Arms everything, looks once more, sleeps in the kernel.
    fn sleep(
        &self,
        epfd: c_int,
        out: &mut [epoll_event],
        deadline: Deadline,
        mask: *const sigset_t,
    ) -> Option<c_int> {
        self.sleepers.fetch_add(1, AcqRel);
        if !self.cool_all(epfd) {
            self.sleepers.fetch_sub(1, AcqRel);
            return None;
        }
        let start = gm::clock::ticks();
        let r = ask(epfd, out, deadline.left(), mask);
        self.sleepers.fetch_sub(1, AcqRel);
        self.unasked.store(0, Relaxed);
        if r == 0 {
            return Some(self.last_look(epfd, out) as c_int);
        }
        if r < 0 {
            // EINTR.
            return Some(r);
        }
        self.spin.slept(gm::clock::ticks().wrapping_sub(start));
        let n = self.sort(epfd, out, 0, r as usize);
        self.leave(epfd);
        if n > 0 || deadline.passed() {
            Some(n as c_int)
        } else {
            None
        }
    }

    fn ask_now(&self, epfd: c_int, out: &mut [epoll_event], from: usize) -> usize {
        let saved = crate::errno();
        let r = ask(epfd, &mut out[from..], Some(NOW), std::ptr::null());
        crate::set_errno(saved);
        self.unasked.store(0, Relaxed);
        match usize::try_from(r) {
            Ok(r) if r > 0 => self.sort(epfd, out, from, r),
            _ => 0,
        }
    }

    /// Reports of the hot members, in turn.
    fn collect(&self, epfd: c_int, out: &mut [epoll_event]) -> usize {
        let mut m = self.lock.lock();
        let mut n = 0;
        let hot = m.hot.len();
        if hot == 0 || out.is_empty() {
            return 0;
        }
        let start = m.turn % hot;
        m.turn = m.turn.wrapping_add(1);
        let mut stale = false;
        for step in 0..hot {
            let i = m.hot[(start + step) % hot];
            let Some(w) = m.list[i].as_mut() else {
                continue;
            };
            if !w.conn().is_engaged() {
                stale = true;
                continue;
            }
            let due = if w.conn().has_news(w.wants_out()) {
                w.report(None)
            } else {
                0
            };
            if due == 0 {
                w.quiet += 1;
                continue;
            }
            out[n] = w.event(due);
            n += 1;
            if n == out.len() {
                break;
            }
        }
        if stale {
            self.plain_again(epfd, &mut m);
        }
        if hot > MANY_HOT {
            self.cool_quiet(epfd, &mut m);
        }
        n
    }

    /// The time is over. Bytes that are there already, whose bell is not yet, are reported all the same, where looking
    /// at every member costs little.
    fn last_look(&self, epfd: c_int, out: &mut [epoll_event]) -> usize {
        const FEW: usize = 128;
        {
            let mut m = self.lock.lock();
            if m.list.len() > FEW {
                return 0;
            }
            for i in 0..m.list.len() {
                let due = m.list[i].as_ref().is_some_and(|w| {
                    w.carried && w.conn().has_news(w.wants_out()) && w.due(None) != 0
                });
                if due {
                    m.heat(i);
                }
            }
        }
        self.collect(epfd, out)
    }

    fn any_hot_due(&self) -> bool {
        let m = self.lock.lock();
        m.hot.iter().any(|i| {
            m.list[*i]
                .as_ref()
                .is_some_and(|w| w.conn().has_news(w.wants_out()) && w.due(None) != 0)
        })
    }

    /// Members that have been quiet for long go cold.
    fn cool_quiet(&self, epfd: c_int, m: &mut Members) {
        let quiet: Vec<usize> = m
            .hot
            .iter()
            .copied()
            .filter(|i| m.list[*i].as_ref().is_some_and(|w| w.quiet > QUIET_LOOKS))
            .collect();
        for i in quiet {
            if m.cool(epfd, i) {
                m.hot.retain(|h| *h != i);
                if let Some(Some(w)) = m.list.get_mut(i) {
                    w.hot = false;
                }
            } else {
                m.heat(i);
            }
        }
    }

    /// Makes every hot member cold. False: one has news, and all that were not cooled are hot.
    fn cool_all(&self, epfd: c_int) -> bool {
        let mut m = self.lock.lock();
        let hot = std::mem::take(&mut m.hot);
        for (k, i) in hot.iter().copied().enumerate() {
            if m.cool(epfd, i) {
                if let Some(Some(w)) = m.list.get_mut(i) {
                    w.hot = false;
                    gm::End::count(&w.conn().end().sleeps, 1);
                }
            } else {
                m.hot.extend_from_slice(&hot[k..]);
                return false;
            }
        }
        true
    }

    /// Rule 3.
    fn leave(&self, epfd: c_int) {
        if self.sleepers.load(Acquire) == 0 {
            return;
        }
        if !self.cool_all(epfd) {
            // One that is reported now, or has news again: whoever waits next sees it; a sleeper is woken by the kernel.
            let mut m = self.lock.lock();
            for i in m.hot.clone() {
                if m.cool(epfd, i) {
                    continue;
                }
                if let Some(Some(w)) = m.list.get_mut(i) {
                    w.kernel_out = true;
                    register(epfd, libc::EPOLL_CTL_MOD, w, i);
                }
            }
        }
    }

    /// Goes through what the kernel's set said at `out[from..from + got]`: our tags become reports (or nothing), the
    /// rest is left as it is. Returns how many remain.
    fn sort(&self, epfd: c_int, out: &mut [epoll_event], from: usize, got: usize) -> usize {
        let mut kept = from;
        let mut m = self.lock.lock();
        let mut stale = false;
        for k in from..from + got {
            let e = out[k];
            let tag = e.u64;
            if tag & !0xffff_ffff != TAG {
                out[kept] = e;
                kept += 1;
                continue;
            }
            let i = (tag & 0xffff_ffff) as usize;
            m.heat(i);
            let Some(Some(w)) = m.list.get_mut(i) else {
                continue;
            };
            if !w.conn().is_engaged() {
                stale = true;
            }
            let mut kernel = Ready(e.events & 0xffff);
            if w.conn().end().rx_path() != gm::Path::Ring
                || w.conn().end().tx_path() != gm::Path::Ring
            {
                w.kernel_edge = true;
                kernel |= Fd(w.fd).poll();
            }
            let reported_before = out[..from].iter().any(|o| { o.u64 } == w.data);
            let due = w.report(Some(kernel));
            if due != 0 && !reported_before {
                out[kept] = w.event(due);
                kept += 1;
            }
        }
        if stale {
            self.plain_again(epfd, &mut m);
        }
        kept - from
    }

    /// Connections that went back to TCP get their own registrations back.
    fn plain_again(&self, epfd: c_int, m: &mut Members) {
        let saved = crate::errno();
        for i in 0..m.list.len() {
            let Some(w) = m.list[i].as_mut() else {
                continue;
            };
            if !w.carried || w.conn().is_engaged() {
                continue;
            }
            w.carried = false;
            self.carried.fetch_sub(1, AcqRel);
            w.hot = false;
            let mut e = epoll_event {
                events: if w.spent { 0 } else { w.events },
                u64: w.data,
            };
            // SAFETY: a local event.
            unsafe { real::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, w.fd, &mut e) };
            m.hot.retain(|h| *h != i);
        }
        crate::set_errno(saved);
    }
}

/// # Safety
/// `events` must have room for `max`.
unsafe fn room<'a>(events: *mut epoll_event, max: c_int) -> Option<&'a mut [epoll_event]> {
    if events.is_null() || max <= 0 {
        return None;
    }
    // SAFETY: by the caller.
    Some(unsafe { std::slice::from_raw_parts_mut(events, max as usize) })
}

/// # Safety
/// As epoll_wait(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    set: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
) -> c_int {
    // SAFETY: the caller's array and arguments.
    unsafe {
        match room(events, max) {
            Some(out) => wait(set, out, Deadline::after_ms(timeout), std::ptr::null()),
            None => real::epoll_wait(set, events, max, timeout),
        }
    }
}

/// # Safety
/// As epoll_pwait(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_pwait(
    set: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's array and arguments.
    unsafe {
        match room(events, max) {
            Some(out) => wait(set, out, Deadline::after_ms(timeout), mask),
            None => real::epoll_pwait(set, events, max, timeout, mask),
        }
    }
}

/// # Safety
/// As epoll_pwait2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_pwait2(
    set: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's array and arguments.
    unsafe {
        match (
            room(events, max),
            is_set(set) && crate::poll::is_time(timeout),
        ) {
            (Some(out), true) => wait(set, out, Deadline::after_timespec(timeout), mask),
            _ => real::epoll_pwait2(set, events, max, timeout, mask),
        }
    }
}

/// Before fork: no set may be half changed.
pub fn before_fork() {
    ALL.hold();
    FREE.hold();
    // SAFETY: held just above.
    for set in unsafe { ALL.held() } {
        set.lock.hold();
    }
}

/// After it, in parent and child.
pub fn after_fork() {
    // SAFETY: held since `before_fork`.
    for set in unsafe { ALL.held() } {
        set.lock.give_back();
    }
    FREE.give_back();
    ALL.give_back();
}

/// In the child: nobody sleeps.
pub fn in_child() {
    for set in live_sets() {
        set.sleepers.store(0, Relaxed);
    }
}
