//! Waiting: rings first, then polling, then a sleep in the kernel; and what the kernel says becomes reports.

use std::ffi::c_int;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use gm::EventQueue;
use libc::{epoll_event, sigset_t, timespec};
use sockets::{Kernel, Ready, Spun};

use super::members::{Members, Watch, bell_tag};
use super::sets::{Set, find};
use crate::kernel::Fd;
use crate::process::confine;
use crate::time::{self, Deadline};
use crate::{cancel, kernel, real};

const NOW: timespec = timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// A whole wait: until there is something to report, the time is over, or a signal came. Answers as epoll_pwait(2),
/// whose `mask` it is (null: none).
pub fn wait(
    epfd: c_int,
    out: &mut [epoll_event],
    deadline: Deadline,
    mask: *const sigset_t,
) -> c_int {
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
        let Some(set) = find(epfd) else {
            let r = ask(epfd, out, time::left(deadline), mask);
            // A set may have been made, and a member of it promoted, while we slept.
            match (r > 0).then(|| find(epfd)).flatten() {
                Some(set) => {
                    let n = set.sort(epfd, out, 0, r as usize);
                    if n == 0 && !time::passed(deadline) {
                        continue;
                    }
                    return n as c_int;
                }
                None => return r,
            }
        };
        if set.is_mine() {
            // A handler that interrupted a wait on this very set.
            crate::set_errno(libc::EINTR);
            return -1;
        }
        if let Some(r) = set.wait_once(epfd, out, deadline, mask) {
            return r;
        }
    }
}

/// Asks the kernel's set and sleeps there until it has something, at most for what is `left` (`None`: no limit).
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
    let at = out.as_mut_ptr();
    // SAFETY: `out` has room for `max`; the mask is the program's own, or null.
    let call = || unsafe { real::epoll_pwait(epfd, at, max, ms, mask) };
    match ms {
        // A look, under no lock: it may be cancelled as it is.
        0 => call(),
        _ => cancel::sleep(|| call() as isize) as c_int,
    }
}

/// How often a connection came to the ring, by whatever call, with a waiter of edges that had armed before and was not rung
/// for what lies behind the switch.
static CAME: AtomicU32 = AtomicU32::new(0);

pub fn came_to_ring() {
    CAME.fetch_add(1, AcqRel);
}

/// A thread that sleeps on a set, or is about to.
struct Asleep<'a> {
    set: &'a Set,
    queue: Option<&'static EventQueue>,
}

impl<'a> Asleep<'a> {
    fn on(set: &'a Set, epfd: c_int) -> Self {
        set.sleepers.fetch_add(1, AcqRel);
        if set.carried.load(Acquire) > 0 {
            set.queue.begin(epfd, &mut set.members());
        }
        let queue = set.queue.get();
        Self { set, queue }
    }

    /// Everything is armed: who lists from now on rings. Look once more after this.
    fn say(&self) {
        if let Some(queue) = self.queue {
            queue.words().fall_asleep();
        }
    }

    /// Is it the set's own still? Not after that was closed, nor in a child that a handler forked.
    fn has_queue(&self, queue: &EventQueue) -> bool {
        let own = self.set.queue.get();
        own.is_some_and(|own| std::ptr::eq(own, queue))
    }
}

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        // Seen before it is known whose the queue is: so it is a sleep of this set.
        let seen = self.queue.map(|queue| queue.words().sleep());
        let queue = self.queue.filter(|queue| self.has_queue(queue));
        let before = self.set.leave_sleepers();
        if let (Some(queue), Some(seen)) = (queue, seen) {
            match before > 1 {
                // One bell wakes one of them. What is listed now, this one takes, or rings again (`leave`).
                true => _ = queue.words().fall_asleep(),
                false => queue.words().wake_up(seen),
            }
        }
    }
}

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
        self.mind_sharing(epfd);
        let first = match self.filled.swap(false, Relaxed) {
            true => self.ask_now(epfd, out, 0),
            false => 0,
        };
        let mut n = first + self.collect(epfd, out, first);
        if n > 0 {
            if n == out.len() {
                self.filled.store(first == 0, Relaxed);
            } else if first == 0 {
                // What else is ready, the kernel knows, and its own wait would report it now as well.
                n += self.ask_now(epfd, out, n);
            }
            self.leave(epfd);
            return Some(n as c_int);
        }
        let mut found = 0;
        if !time::passed(deadline) {
            let mut last = gm::clock::ticks();
            let news = || {
                let now = gm::clock::ticks();
                if now.wrapping_sub(last) > 8 * gm::clock::TICKS_PER_US {
                    last = now;
                    found = self.ask_now(epfd, out, 0);
                }
                found > 0 || self.any_listed() || self.any_hot_due()
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

    /// Arms everything, looks once more, sleeps in the kernel (rule 2). `None`: go round again.
    fn sleep(
        &self,
        epfd: c_int,
        out: &mut [epoll_event],
        deadline: Deadline,
        mask: *const sigset_t,
    ) -> Option<c_int> {
        let asleep = Asleep::on(self, epfd);
        if asleep.queue.is_some() && self.members().look_at_all_if_due() {
            return None;
        }
        let came = CAME.load(Acquire);
        if self.came.swap(came, Relaxed) != came {
            // Cold ones may be among them.
            self.members().heat_all();
        }
        if !self.cool_all(epfd) {
            return None;
        }
        asleep.say();
        if self.any_listed() {
            return None;
        }
        let slice = self.members().room_slice_us();
        if slice == Some(0) {
            return None;
        }
        let queue = asleep.queue.map(|_| sockets::QUEUE_SLICE_US);
        let slice = slice.into_iter().chain(queue).min().map(time::after_us);
        let until = slice.map_or(deadline, |slice| slice.sooner(deadline));
        let start = gm::clock::ticks();
        let r = ask(epfd, out, time::left(until), mask);
        let over = self.is_over();
        drop(asleep);
        if over {
            // It was closed meanwhile, and its number may name another: there is no going round. What is left in the kernel's set
            // are the program's own.
            let n = foreign(out, usize::try_from(r).unwrap_or(0));
            return Some(if r < 0 { r } else { n as c_int });
        }
        if r == 0 && slice.is_some() && !time::passed(deadline) {
            self.members().heat_roomless();
            return None;
        }
        if r == 0 {
            let n = self.collect(epfd, out, 0);
            let n = n + self.sort(epfd, out, n, 0);
            self.leave(epfd);
            return Some(n as c_int);
        }
        if r < 0 {
            // EINTR.
            return Some(r);
        }
        self.spin.slept(gm::clock::ticks().wrapping_sub(start));
        let mut n = self.sort(epfd, out, 0, r as usize);
        if self.any_listed() {
            n += self.collect(epfd, out, n);
        }
        self.leave(epfd);
        if n > 0 || time::passed(deadline) {
            Some(n as c_int)
        } else {
            None
        }
    }

    /// As `ask`, without sleeping; reports go to `out[from..]`. Returns how many.
    fn ask_now(&self, epfd: c_int, out: &mut [epoll_event], from: usize) -> usize {
        let saved = crate::errno();
        let r = ask(epfd, &mut out[from..], Some(NOW), std::ptr::null());
        crate::set_errno(saved);
        self.sort(epfd, out, from, usize::try_from(r).unwrap_or(0))
    }

    /// Has the event queue anything, of members that are there still? For polling.
    #[inline]
    fn any_listed(&self) -> bool {
        let queue = self.queue.get();
        queue.is_some_and(|q| q.words().has_any()) && self.carried.load(Acquire) > 0
    }

    /// Another process uses the kernel's set as well: the queue's bell may wake the wrong one.
    #[inline]
    fn mind_sharing(&self, epfd: c_int) {
        if self.queue.get().is_some_and(EventQueue::is_shared) {
            self.queue.leave(epfd, &mut self.members());
        }
        if self.queue.is_inherited() {
            self.queue.share(&mut self.members());
        }
    }

    /// Reports of the hot members, in turn, to `out[from..]`. Returns how many.
    fn collect(&self, epfd: c_int, out: &mut [epoll_event], from: usize) -> usize {
        let mut m = self.members();
        if let Some(queue) = self.queue.get()
            && queue.words().has_any()
        {
            queue.words().take(|entry| m.heat(entry as usize));
        }
        let mut n = from;
        let hot = m.hot.len();
        if hot == 0 || from == out.len() {
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
            if out[..from].iter().any(|o| { o.u64 } == w.data) {
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
        m.cool_quiet(epfd);
        n - from
    }

    /// Has a hot member something for `collect`? For polling; the cold ones are left to their bells.
    fn any_hot_due(&self) -> bool {
        let m = self.members();
        m.hot.iter().any(|i| {
            m.list[*i]
                .as_ref()
                .is_some_and(|w| w.conn().has_news(w.wants_out()) && w.due(None) != 0)
        })
    }

    /// Makes every hot member cold. False: one has news, and all that were not cooled are hot.
    fn cool_all(&self, epfd: c_int) -> bool {
        let mut m = self.members();
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

    /// Before a wait returns: while others sleep on this set, nothing stays hot (rule 3).
    fn leave(&self, epfd: c_int) {
        if self.sleepers.load(Acquire) == 0 {
            return;
        }
        if !self.cool_all(epfd) {
            // One that is reported now, or has news again: whoever waits next sees it; a sleeper is woken.
            let mut m = self.members();
            for i in m.hot.clone() {
                self.arm_for_sleepers(&mut m, epfd, i);
            }
        }
        if self.any_listed()
            && let Some(queue) = self.queue.get()
        {
            queue.wake();
        }
    }

    /// Goes through what the kernel's set said at `out[from..from + got]`: our tags become reports (or nothing), the
    /// rest is left as it is; then come cold members whose bell is late. Returns how many there are then.
    fn sort(&self, epfd: c_int, out: &mut [epoll_event], from: usize, got: usize) -> usize {
        let mut kept = from;
        let mut m = self.members();
        let mut stale = false;
        for k in from..from + got {
            let e = out[k];
            if e.u64 == bell_tag() {
                continue;
            }
            let Some(i) = Watch::index(e.u64) else {
                out[kept] = e;
                kept += 1;
                continue;
            };
            if m.is_dormant(i) {
                // It would wake waits for nothing.
                self.forget(epfd, &mut m, i);
                continue;
            }
            m.heat(i);
            let Some(Some(w)) = m.list.get_mut(i) else {
                continue;
            };
            let on_tcp = w.conn().end().tx_path() == gm::Path::Tcp;
            if !w.conn().is_engaged() || on_tcp && !w.conn().settle(&Fd::of(w.fd)) {
                stale = true;
            }
            let mut kernel = Ready(e.events & 0xffff);
            if kernel.intersects(Ready::RDHUP | Ready::HUP | Ready::ERR) {
                // The place may have got another member since the kernel spoke: an end must be this one's.
                kernel = Fd::of(w.fd).poll();
            }
            if w.conn().end().rx_path() != gm::Path::Ring
                || w.conn().end().tx_path() != gm::Path::Ring
            {
                let arrived =
                    w.conn().end().rx_path() != gm::Path::Ring && kernel.0 & !Ready::OUT.0 != 0;
                let room =
                    w.conn().end().tx_path() != gm::Path::Ring && kernel.0 & Ready::OUT.0 != 0;
                w.kernel_edge |= arrived || room;
            }
            if let Some(o) = out[..from].iter_mut().find(|o| { o.u64 } == w.data) {
                // Reported by its ring in this very call (or another member with the same data was), before the kernel told
                // of an end.
                o.events |= w.report(Some(kernel));
                continue;
            }
            let due = w.report(Some(kernel));
            if due != 0 {
                out[kept] = w.event(due);
                kept += 1;
            }
        }
        kept += look_at_cold(&mut m, out, kept);
        if stale {
            self.plain_again(epfd, &mut m);
        }
        kept - from
    }

    /// Connections that went back to TCP get their own registrations back.
    pub fn plain_again(&self, epfd: c_int, m: &mut Members) {
        let saved = crate::errno();
        // Of a confined program's connections none is followed any more.
        let all = confine::is_confined();
        for i in 0..m.list.len() {
            let Some(w) = m.list[i].as_mut() else {
                continue;
            };
            if !w.carried || !all && w.conn().is_engaged() {
                continue;
            }
            if w.dormant {
                self.forget(epfd, m, i);
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

/// Leaves at the start of `out[..got]` what has no tag of ours. Returns how many.
fn foreign(out: &mut [epoll_event], got: usize) -> usize {
    let mut kept = 0;
    for k in 0..got {
        if Watch::index(out[k].u64).is_none() {
            out[kept] = out[k];
            kept += 1;
        }
    }
    kept
}

/// Bytes are there as soon as they are published (FIONREAD and read say so), and their bell a moment later: long, if the
/// writer lost its CPU between. So whenever the kernel's set was asked, the cold members are looked at as well, where
/// that costs little. Reports go to `out[n..]`. Returns how many.
fn look_at_cold(m: &mut Members, out: &mut [epoll_event], n: usize) -> usize {
    const FEW: usize = 128;
    if m.list.len() > FEW {
        return 0;
    }
    let mut found = 0;
    for i in 0..m.list.len() {
        let kept = n + found;
        let Some(w) = m.list[i]
            .as_mut()
            .filter(|w| w.carried && !w.hot && !w.dormant)
        else {
            continue;
        };
        if kept == out.len() {
            break;
        }
        if !w.conn().is_engaged() || !w.conn().has_news(w.wants_out()) {
            continue;
        }
        if out[..kept].iter().any(|o| { o.u64 } == w.data) {
            // Another with the same data was reported; this one's turn comes with the next call.
            m.heat(i);
            continue;
        }
        let due = w.report(None);
        if due != 0 {
            out[kept] = w.event(due);
            found += 1;
            m.heat(i);
        }
    }
    found
}
