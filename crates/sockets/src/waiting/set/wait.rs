//! A wait at a set: rings first, then polling, then a sleep in the system; and what the system says becomes reports.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use gm::{End, EventQueue, Path};

use super::change::{arm_for_sleepers, forget, plain_again};
use super::{Below, EventOf, Member, Members, Told, leave_sleepers, queue};
use crate::waiting::{Ask, Host, Spun, sleep_limit_ns};
use crate::{Deadline, Kernel, QUEUE_SLICE_US, Ready};

/// The system's set is asked so often while polling, in µs.
const ASK_EVERY_US: u64 = 8;

/// How often a connection came to the ring, by whatever call, with a waiter of edges that had armed before and was not rung
/// for what lies behind the switch.
static CAME: AtomicU32 = AtomicU32::new(0);

/// Receiving has come to the ring behind the back of such a waiter: what is in the ring since is news to him.
pub(crate) fn came_to_ring() {
    CAME.fetch_add(1, AcqRel);
    #[cfg(test)]
    CAME_HERE.set(CAME_HERE.get() + 1);
}

// How often in this thread.
#[cfg(test)]
std::thread_local!(pub(crate) static CAME_HERE: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });

/// A whole wait: until there is something to report, the time is over, or the system's sleep fails. Reports go to the start of
/// `out`, which is not empty; returns how many. `None`: the set is not there any more.
pub fn wait<B: Below>(
    below: &B,
    out: &mut [EventOf<B>],
    deadline: Deadline,
) -> Result<Option<usize>, B::Fault> {
    loop {
        if let Some(n) = round(below, out, deadline)? {
            return Ok(Some(n));
        }
        if !below.is_there() {
            return Ok(None);
        }
    }
}

/// A thread that sleeps on a set, or is about to.
struct Asleep<'a, B: Below> {
    below: &'a B,
    queue: Option<&'static EventQueue>,
}

impl<'a, B: Below> Asleep<'a, B> {
    fn on(below: &'a B) -> Self {
        let state = below.state();
        state.sleepers.fetch_add(1, AcqRel);
        if state.has_carried() {
            queue::begin(below, &mut below.members());
        }
        let queue = below.queue();
        Self { below, queue }
    }

    /// Everything is armed: who lists from now on rings. Look once more after this.
    fn say(&self) {
        if let Some(queue) = self.queue {
            queue.words().fall_asleep();
        }
    }

    /// Is it the set's own still? Not after that was ended, nor in a child that a handler forked.
    fn has_queue(&self, queue: &EventQueue) -> bool {
        let own = self.below.queue();
        own.is_some_and(|own| std::ptr::eq(own, queue))
    }
}

impl<B: Below> Drop for Asleep<'_, B> {
    fn drop(&mut self) {
        // Seen before it is known whose the queue is: so it is a sleep of this set.
        let seen = self.queue.map(|queue| queue.words().sleep());
        let queue = self.queue.filter(|queue| self.has_queue(queue));
        let before = leave_sleepers(self.below);
        if let (Some(queue), Some(seen)) = (queue, seen) {
            match before > 1 {
                // One bell wakes one of them. What is listed now, this one takes, or rings again (`leave`).
                true => _ = queue.words().fall_asleep(),
                false => queue.words().wake_up(seen),
            }
        }
    }
}

/// Rings, then polling, then the system. `None`: nothing yet, go round again.
fn round<B: Below>(
    below: &B,
    out: &mut [EventOf<B>],
    deadline: Deadline,
) -> Result<Option<usize>, B::Fault> {
    let state = below.state();
    if !state.has_carried() {
        return sleep(below, out, deadline);
    }
    queue::mind_sharing(below);
    let first = match state.filled.swap(false, Relaxed) {
        true => ask_now(below, out, 0),
        false => 0,
    };
    let mut n = first + collect(below, out, first);
    if n > 0 {
        if n == out.len() {
            state.filled.store(first == 0, Relaxed);
        } else if first == 0 {
            // What else is ready, the system knows, and its own wait would report it now as well.
            n += ask_now(below, out, n);
        }
        leave(below);
        return Ok(Some(n));
    }
    if !deadline.passed(|| below.host().now_ns()) {
        match poll(below, out) {
            Polled::System(found) => {
                leave(below);
                return Ok(Some(found));
            }
            Polled::Rings => return Ok(None),
            Polled::Nothing => {}
        }
    }
    sleep(below, out, deadline)
}

/// What polling brought.
enum Polled {
    Nothing,
    /// News of a hot or listed member.
    Rings,
    /// So many reports of the system's, at the start of `out`.
    System(usize),
}

/// Looks on as long as that pays.
fn poll<B: Below>(below: &B, out: &mut [EventOf<B>]) -> Polled {
    let mut found = 0;
    let mut last = gm::clock::ticks();
    let news = || {
        let now = gm::clock::ticks();
        if now.wrapping_sub(last) > ASK_EVERY_US * gm::clock::TICKS_PER_US {
            last = now;
            found = ask_now(below, out, 0);
        }
        found > 0 || any_listed(below) || any_hot_due(below)
    };
    let host = below.host();
    let state = below.state();
    match state.spin.wait(host.cpus(), || host.yield_now(), news) {
        Spun::Found if found > 0 => Polled::System(found),
        Spun::Found => Polled::Rings,
        _ => Polled::Nothing,
    }
}

/// A wait that never sleeps: what is there, or comes while polling pays, if `patient`. Reports go to the start of `out`; returns
/// how many.
pub fn look<B: Below>(below: &B, out: &mut [EventOf<B>], patient: bool) -> usize {
    let state = below.state();
    let mut n = collect(below, out, 0);
    let now = gm::clock::ticks();
    let asked = state.asked.load(Relaxed);
    let due = now.wrapping_sub(asked) > ASK_EVERY_US * gm::clock::TICKS_PER_US;
    if n < out.len() && (n == 0 || due) {
        state.asked.store(now, Relaxed);
        n += ask_now(below, out, n);
    }
    if n == 0 && patient {
        n = match poll(below, out) {
            Polled::System(found) => found,
            Polled::Rings => collect(below, out, 0),
            Polled::Nothing => 0,
        };
    }
    leave(below);
    n
}

/// Arms everything, looks once more, sleeps in the system (rule 2). `None`: go round again.
fn sleep<B: Below>(
    below: &B,
    out: &mut [EventOf<B>],
    deadline: Deadline,
) -> Result<Option<usize>, B::Fault> {
    let state = below.state();
    let asleep = Asleep::on(below);
    if asleep.queue.is_some() && below.members().look_at_all_if_due() {
        return Ok(None);
    }
    let came = CAME.load(Acquire);
    if state.came.swap(came, Relaxed) != came {
        // Cold ones may be among them.
        below.members().heat_all();
    }
    if !cool_all(below) {
        return Ok(None);
    }
    asleep.say();
    if any_listed(below) {
        return Ok(None);
    }
    let slice_us = below.members().room_slice_us();
    if slice_us == Some(0) {
        return Ok(None);
    }
    let trusted_us = asleep.queue.map(|_| QUEUE_SLICE_US);
    let slice_us = slice_us.into_iter().chain(trusted_us).min();
    let slice_ns = slice_us.map(|us| us * 1000);
    let limit = sleep_limit_ns(deadline, slice_ns, || below.host().now_ns());
    let start = gm::clock::ticks();
    let slept = below.ask(out, Ask::Sleep(limit));
    let rung_at = asleep.queue.map_or(0, EventQueue::rung_at);
    let over = state.is_over();
    drop(asleep);
    if over {
        // It was ended meanwhile, and its number may name another: there is no going round. What is left in the system's set
        // are the program's own.
        return slept.map(|n| Some(foreign::<B>(&mut out[..n])));
    }
    match slept? {
        0 if slice_ns.is_some() && !deadline.passed(|| below.host().now_ns()) => {
            below.members().heat_roomless();
            Ok(None)
        }
        0 => {
            let n = collect(below, out, 0);
            let n = n + sort(below, out, n, 0);
            leave(below);
            Ok(Some(n))
        }
        told => {
            state.spin.slept(start, rung_at);
            let mut n = sort(below, out, 0, told);
            if any_listed(below) {
                n += collect(below, out, n);
            }
            leave(below);
            Ok((n > 0 || deadline.passed(|| below.host().now_ns())).then_some(n))
        }
    }
}

/// Asks the system's set without sleeping; reports go to `out[from..]`. Returns how many.
fn ask_now<B: Below>(below: &B, out: &mut [EventOf<B>], from: usize) -> usize {
    // What fails here, fails in the sleep as well.
    let told = below.ask(&mut out[from..], Ask::Look).unwrap_or(0);
    sort(below, out, from, told)
}

/// Has the event queue anything, of members that are there still? For polling.
#[inline]
fn any_listed<B: Below>(below: &B) -> bool {
    below.queue().is_some_and(|q| q.words().has_any()) && below.state().has_carried()
}

/// Reports of the hot members, in turn, to `out[from..]`. Returns how many.
fn collect<B: Below>(below: &B, out: &mut [EventOf<B>], from: usize) -> usize {
    let mut m = below.members();
    let m = &mut *m;
    if let Some(queue) = below.queue()
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
        if out[..from].iter().any(|o| w.member.is_like(o)) {
            continue;
        }
        let due = match w.has_news() {
            true => w.report(None),
            false => Ready::NONE,
        };
        if due == Ready::NONE {
            w.quiet += 1;
            continue;
        }
        out[n] = w.member.event(due);
        n += 1;
        if n == out.len() {
            break;
        }
    }
    if stale {
        plain_again(below, m);
    }
    m.cool_quiet(below);
    n - from
}

/// Has a hot member something for `collect`? For polling; the cold ones are left to their bells.
fn any_hot_due<B: Below>(below: &B) -> bool {
    let m = below.members();
    let due = |i: &usize| {
        m.watch(*i)
            .is_some_and(|w| w.has_news() && w.due(None) != Ready::NONE)
    };
    m.hot.iter().any(due)
}

/// Makes every hot member cold. False: one has news, and all that were not cooled are hot.
fn cool_all<B: Below>(below: &B) -> bool {
    let mut m = below.members();
    let hot = std::mem::take(&mut m.hot);
    for (k, i) in hot.iter().copied().enumerate() {
        if !m.cool(below, i) {
            m.hot.extend_from_slice(&hot[k..]);
            return false;
        }
        if let Some(w) = m.watch_mut(i) {
            w.hot = false;
            End::count(&w.conn().end().sleeps, 1);
        }
    }
    true
}

/// Before a wait returns: while others sleep on this set, nothing stays hot (rule 3).
fn leave<B: Below>(below: &B) {
    if !below.state().has_sleepers() {
        return;
    }
    if !cool_all(below) {
        // One that is reported now, or has news again: whoever waits next sees it; a sleeper is woken.
        let mut m = below.members();
        for i in m.hot.clone() {
            arm_for_sleepers(below, &mut m, i);
        }
    }
    if let Some(queue) = below.queue() {
        // Their bell may have been taken here, by who asked the system's set: they are to be rung for again.
        queue.words().fall_asleep();
        if any_listed(below) {
            queue.wake();
        }
    }
}

/// Goes through what the system's set said at `out[from..from + got]`: what it tells of carried members becomes reports (or
/// nothing), the rest is left as it is; then come cold members whose bell is late. Returns how many there are then.
pub fn sort<B: Below>(below: &B, out: &mut [EventOf<B>], from: usize, got: usize) -> usize {
    let mut kept = from;
    let mut m = below.members();
    let m = &mut *m;
    let mut stale = false;
    for k in from..from + got {
        let (i, mut kernel) = match B::told(&out[k]) {
            Told::Bell => continue,
            Told::Other => {
                // A member that went back to TCP since its ring was reported in this very call comes twice.
                if !merged::<B>(out, from, out[k]) {
                    out[kept] = out[k];
                    kept += 1;
                }
                continue;
            }
            Told::Member(i, ready) => (i, ready),
        };
        if m.is_dormant(i) {
            // It would wake waits for nothing.
            forget(below, m, i);
            continue;
        }
        m.heat(i);
        let Some(w) = m.watch_mut(i) else {
            continue;
        };
        stale |= w.is_stale();
        if kernel.intersects(Ready::RDHUP | Ready::HUP | Ready::ERR) {
            // The place may have got another member since the system spoke: an end must be this one's.
            kernel = w.member.kernel().poll();
        }
        let end = w.member.conn().end();
        let arrived = end.rx_path() != Path::Ring && kernel.has_other_than(Ready::OUT);
        let room = end.tx_path() != Path::Ring && kernel.intersects(Ready::OUT);
        w.kernel_edge |= arrived || room;
        let due = w.report(Some(kernel));
        if due == Ready::NONE {
            continue;
        }
        // Or it was reported by its ring in this very call (or another member like it was), before the system told of an end.
        let event = w.member.event(due);
        if !merged::<B>(out, from, event) {
            out[kept] = event;
            kept += 1;
        }
    }
    kept += look_at_cold::<B>(m, out, kept);
    if stale {
        plain_again(below, m);
    }
    kept - from
}

/// Is one of the first `n` reports like this one, and says now what both do?
fn merged<B: Below>(out: &mut [EventOf<B>], n: usize, event: EventOf<B>) -> bool {
    out[..n].iter_mut().any(|o| B::Member::merge(o, &event))
}

/// Leaves at the start of `out` what is the program's own. Returns how many.
fn foreign<B: Below>(out: &mut [EventOf<B>]) -> usize {
    let mut kept = 0;
    for k in 0..out.len() {
        if matches!(B::told(&out[k]), Told::Other) {
            out[kept] = out[k];
            kept += 1;
        }
    }
    kept
}

/// Bytes are there as soon as they are published (FIONREAD and read say so), and their bell a moment later: long, if the
/// writer lost its CPU between. So whenever the system's set was asked, the cold members are looked at as well, where
/// that costs little. Reports go to `out[n..]`. Returns how many.
fn look_at_cold<B: Below>(m: &mut Members<B::Member>, out: &mut [EventOf<B>], n: usize) -> usize {
    const FEW: usize = 128;
    if m.list.len() > FEW {
        return 0;
    }
    let mut found = 0;
    for i in 0..m.list.len() {
        let kept = n + found;
        let cold = |w: &&mut super::members::Watch<_>| w.carried && !w.hot && !w.dormant;
        let Some(w) = m.watch_mut(i).filter(cold) else {
            continue;
        };
        if kept == out.len() {
            break;
        }
        if !w.conn().is_engaged() || !w.has_news() {
            continue;
        }
        if out[..kept].iter().any(|o| w.member.is_like(o)) {
            // Another that is like it was reported; this one's turn comes with the next call.
            m.heat(i);
            continue;
        }
        let due = w.report(None);
        if due != Ready::NONE {
            out[kept] = w.member.event(due);
            found += 1;
            m.heat(i);
        }
    }
    found
}
