//! epoll. The kernel's set stays true: every member is in it. A carried member is in it edge-triggered, for doorbells
//! and the peer's end, with a tag of ours as its data; what the program asked for is kept here.
//!
//! ```text
//!   hot    used lately: looked at directly on every wait, not armed (its writer rings no bell)
//!   cold   quiet: its writer lists it in the set's event queue (`queue`), or, where there is none, rings a bell, which comes
//!          through the kernel's set; either makes it hot again
//! ```
//!
//! Rules:
//! 1. A set's lock is held for looking and changing, never while sleeping. A member's connection can't go away while
//!    it is held: closing takes the member out first.
//! 2. Before anybody sleeps in the kernel, every member is armed and was looked at after that.
//! 3. While another thread sleeps on the same set, nothing stays hot when a wait returns.
//! 4. A carried member that the program takes out goes *dormant*: it stays in the kernel's set until the kernel speaks of it
//!    or the process forks, so that a program which changes what it waits for by DEL and ADD pays no call for it.

mod members;
mod queue;
mod sets;
mod wait;

use std::ffi::c_int;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use libc::{epoll_event, sigset_t, timespec};

use self::members::{Members, Seen, Watch, register};
use self::sets::{Set, find_or_make};
pub use self::sets::{
    after_fork, alias_set, be_watched, become_plain, before_fork, close_set, close_sets,
    forget_free, in_child, is_busy, is_set, on_close, on_engaged, on_substituted,
};
pub use self::wait::came_to_ring;
use self::wait::wait;
use crate::fds::{Inside, enter};
use crate::real;
use crate::time;

/// # Safety
/// As epoll_create(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_create(size: c_int) -> c_int {
    // SAFETY: the caller's argument, unchanged.
    created(unsafe { real::epoll_create(size) })
}

/// # Safety
/// As epoll_create1(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_create1(flags: c_int) -> c_int {
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
pub unsafe extern "C-unwind" fn epoll_ctl(
    epfd: c_int,
    op: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let plain = || unsafe { real::epoll_ctl(epfd, op, fd, event) };
    let Some(inside) = enter(fd) else {
        if op == libc::EPOLL_CTL_ADD {
            be_watched(fd);
        }
        return plain();
    };
    let room = |set: &Set| set.is_mine() || op != libc::EPOLL_CTL_ADD || set.members().make_room();
    let Some(set) = find_or_make(epfd).filter(|set| room(set)) else {
        inside.conn().end().keep_tcp(gm::Reason::TableFull);
        return plain();
    };
    if set.is_mine() || event.is_null() && op != libc::EPOLL_CTL_DEL {
        return plain();
    }
    if set.queue.is_inherited() {
        set.queue.share(&mut set.members());
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
    if set.watched.load(Acquire) {
        let why = gm::Reason::Unsupported;
        crate::giving::hand_back(inside, why);
    }
    // May promote, which changes sets: not under the lock.
    let carried = inside.engaged();
    let mut m = set.members();
    if let Some(i) = m.position(inside.number, inside.slot)
        && m.is_dormant(i)
    {
        if carried {
            change(set, epfd, &mut m, i, inside, e);
            return 0;
        }
        set.forget(epfd, &mut m, i);
    }
    let i = m.free.pop().unwrap_or(m.list.len());
    let w = Watch {
        fd: inside.number,
        slot: inside.slot,
        conn: inside.conn(),
        events: e.events,
        data: e.u64,
        carried,
        kernel_out: carried && inside.conn().end().tx_path() != gm::Path::Ring,
        hot: false,
        armed: false,
        spent: false,
        dormant: false,
        seen: Seen::at_first(inside.conn(), &inside.fd()),
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
    set.arm_for_sleepers(m, epfd, i);
}

fn modify(
    set: &'static Set,
    epfd: c_int,
    inside: &Inside,
    e: epoll_event,
    plain: impl FnOnce() -> c_int,
) -> c_int {
    let mut m = set.members();
    let Some(i) = m.position(inside.number, inside.slot) else {
        return plain();
    };
    let Some(w) = m.list[i].as_mut() else {
        return plain();
    };
    if w.dormant {
        crate::set_errno(libc::ENOENT);
        return -1;
    }
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
    change(set, epfd, &mut m, i, inside, e);
    0
}

/// A carried member is asked for (again) with other events.
fn change(set: &Set, epfd: c_int, m: &mut Members, i: usize, inside: &Inside, e: epoll_event) {
    let Some(w) = m.list[i].as_mut() else { return };
    w.events = e.events;
    w.data = e.u64;
    w.spent = false;
    w.dormant = false;
    w.seen = Seen::at_first(inside.conn(), &inside.fd());
    if w.seen.leaves_to_kernel() {
        register(epfd, libc::EPOLL_CTL_MOD, w, i);
    }
    warm_up(set, m, epfd, i);
}

fn remove(set: &'static Set, inside: &Inside, plain: impl FnOnce() -> c_int) -> c_int {
    let mut m = set.members();
    let Some(i) = m.position(inside.number, inside.slot) else {
        return plain();
    };
    if m.is_dormant(i) {
        crate::set_errno(libc::ENOENT);
        return -1;
    }
    // With a holder in another process the kernel would keep it in the set beyond our close.
    let alone = inside.conn().end().refs.load(Acquire) == 1;
    // Not `inside.engaged()`, which may promote, and that takes the lock.
    let carried = inside.conn().is_engaged() && m.list[i].as_ref().is_some_and(|w| w.carried);
    if carried && alone {
        m.sleep(i);
        return 0;
    }
    let r = plain();
    if r == 0
        && let Some(w) = m.take(i)
    {
        set.drop_watch(w);
    }
    r
}

/// The kernel is about to be asked for a member by another way: one that the program took out must be out.
pub fn forget_dormant(epfd: c_int, fd: c_int) {
    if let (Some(inside), Some(set)) = (enter(fd), sets::find(epfd))
        && !set.is_mine()
    {
        let mut m = set.members();
        if let Some(i) = m.position(inside.number, inside.slot)
            && m.is_dormant(i)
        {
            set.forget(epfd, &mut m, i);
        }
    }
}

/// # Safety
/// `events` must have room for `max`.
unsafe fn room<'a>(events: *mut epoll_event, max: c_int) -> Option<&'a mut [epoll_event]> {
    /// The kernel refuses more (EP_MAX_EVENTS).
    const MOST: usize = c_int::MAX as usize / size_of::<epoll_event>();
    if events.is_null() || max <= 0 || max as usize > MOST {
        return None;
    }
    // SAFETY: by the caller.
    Some(unsafe { std::slice::from_raw_parts_mut(events, max as usize) })
}

/// # Safety
/// As epoll_wait(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_wait(
    set: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
) -> c_int {
    // SAFETY: the caller's array and arguments.
    unsafe {
        match room(events, max) {
            Some(out) => wait(set, out, time::after_ms(timeout), std::ptr::null()),
            None => real::epoll_wait(set, events, max, timeout),
        }
    }
}

/// # Safety
/// As epoll_pwait(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait(
    set: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's array and arguments.
    unsafe {
        match room(events, max) {
            Some(out) => wait(set, out, time::after_ms(timeout), mask),
            None => real::epoll_pwait(set, events, max, timeout, mask),
        }
    }
}

/// # Safety
/// As epoll_pwait2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait2(
    set: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's array and arguments.
    unsafe {
        match (room(events, max), is_set(set) && time::is_time(timeout)) {
            (Some(out), true) => wait(set, out, time::after_timespec(timeout), mask),
            _ => real::epoll_pwait2(set, events, max, timeout, mask),
        }
    }
}
