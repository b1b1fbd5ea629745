//! epoll. How a set waits is the engine's ([`sockets::set`]); here are its calls, and what it asks of the kernel's set, which
//! stays true: every member is in it, a carried one edge-triggered with a tag of ours as its data.
//!
//! `base`: the kernel's set; `sets`: which descriptor names which set, and what closing and forking mean to them.

mod base;
mod sets;

use std::ffi::c_int;
use std::sync::atomic::Ordering::Acquire;

use libc::{epoll_event, sigset_t, timespec};
use sockets::set;

use self::base::{Base, EXCLUSIVE, Member, ask};
use self::sets::{Members, Set, find, find_or_make};
pub use self::sets::{
    after_fork, alias_set, be_watched, become_plain, before_fork, close_set, close_sets,
    forget_free, in_child, is_busy, is_set, on_close, on_engaged, on_substituted,
};
use crate::fds::{Inside, enter};
use crate::poll::Failed;
use crate::time::{self, Deadline};
use crate::{cancel, real};

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
    let room =
        |set: &'static Set| set.is_mine() || op != libc::EPOLL_CTL_ADD || set.members().make_room();
    let Some(set) = find_or_make(epfd).filter(|set| room(set)) else {
        inside.conn().end().keep_tcp(gm::Reason::TableFull);
        return plain();
    };
    if set.is_mine() || event.is_null() && op != libc::EPOLL_CTL_DEL {
        return plain();
    }
    let base = Base {
        set,
        epfd,
        mask: std::ptr::null(),
    };
    set::mind_inherited(&base);
    // SAFETY: the caller's event, not null.
    let asked = unsafe { event.as_ref() }.copied();
    match (op, asked) {
        (libc::EPOLL_CTL_ADD, Some(e)) => add(&base, &inside, e, plain),
        (libc::EPOLL_CTL_MOD, Some(e)) => modify(&base, &inside, e, plain),
        (libc::EPOLL_CTL_DEL, _) => remove(&base, &inside, plain),
        _ => plain(),
    }
}

fn position(members: &Members, inside: &Inside) -> Option<usize> {
    members.position(inside.number, |w| w.is_of(inside.slot))
}

fn answer(done: bool) -> c_int {
    if done { 0 } else { -1 }
}

fn refuse(code: c_int) -> c_int {
    crate::set_errno(code);
    -1
}

fn add(base: &Base, inside: &Inside, e: epoll_event, plain: impl FnOnce() -> c_int) -> c_int {
    if base.set.watched.load(Acquire) {
        let why = gm::Reason::Unsupported;
        crate::giving::hand_back(inside, why);
    }
    // May promote, which changes sets: not under the lock.
    let carried = inside.engaged();
    let mut m = base.set.members();
    if let Some(i) = position(&m, inside)
        && m.is_dormant(i)
    {
        if carried {
            return answer(set::modify(base, &mut m, i, e, &inside.fd(), || false));
        }
        set::forget(base, &mut m, i);
    }
    let member = (Member::new(inside, e), carried);
    let plain = || plain() == 0;
    answer(set::add(base, &mut m, member, &inside.fd(), plain))
}

fn modify(base: &Base, inside: &Inside, e: epoll_event, plain: impl FnOnce() -> c_int) -> c_int {
    let mut m = base.set.members();
    let Some(i) = position(&m, inside) else {
        return plain();
    };
    if m.is_dormant(i) {
        return refuse(libc::ENOENT);
    }
    let exclusive = m
        .get(i)
        .is_some_and(|w| (w.events | e.events) & EXCLUSIVE != 0);
    if m.is_carried(i) && exclusive {
        return refuse(libc::EINVAL);
    }
    let plain = || plain() == 0;
    answer(set::modify(base, &mut m, i, e, &inside.fd(), plain))
}

fn remove(base: &Base, inside: &Inside, plain: impl FnOnce() -> c_int) -> c_int {
    let mut m = base.set.members();
    let Some(i) = position(&m, inside) else {
        return plain();
    };
    if m.is_dormant(i) {
        return refuse(libc::ENOENT);
    }
    answer(set::take_out(base, &mut m, i, || plain() == 0))
}

/// The kernel is about to be asked for a member by another way: one that the program took out must be out.
pub fn forget_dormant(epfd: c_int, fd: c_int) {
    if let (Some(inside), Some(set)) = (enter(fd), find(epfd))
        && !set.is_mine()
    {
        let base = Base {
            set,
            epfd,
            mask: std::ptr::null(),
        };
        let mut m = set.members();
        if let Some(i) = position(&m, &inside)
            && m.is_dormant(i)
        {
            set::forget(&base, &mut m, i);
        }
    }
}

/// A whole wait: until there is something to report, the time is over, or a signal came. Answers as epoll_pwait(2),
/// whose `mask` it is (null: none).
fn wait(epfd: c_int, out: &mut [epoll_event], deadline: Deadline, mask: *const sigset_t) -> c_int {
    cancel::point();
    let r = wait_for_any(epfd, out, deadline, mask);
    cancel::end();
    r
}

fn wait_for_any(
    epfd: c_int,
    out: &mut [epoll_event],
    deadline: Deadline,
    mask: *const sigset_t,
) -> c_int {
    loop {
        let base = |set| Base { set, epfd, mask };
        let Some(set) = find(epfd) else {
            let r = ask(epfd, out, time::left_ns(deadline), mask);
            // A set may have been made, and a member of it promoted, while we slept.
            let Some(set) = find(epfd).filter(|_| r > 0) else {
                return r;
            };
            let n = set::sort(&base(set), out, 0, r as usize);
            if n == 0 && !time::passed(deadline) {
                continue;
            }
            return n as c_int;
        };
        if set.is_mine() {
            // A handler that interrupted a wait on this very set.
            return refuse(libc::EINTR);
        }
        match set::wait(&base(set), out, deadline) {
            Ok(Some(n)) => return n as c_int,
            // It was closed meanwhile.
            Ok(None) => {}
            Err(Failed) => return -1,
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
