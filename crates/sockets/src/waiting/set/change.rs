//! What happens to members and sets: put in, changed and taken out by the program, promoted, gone back to TCP, closed, forked.

use gm::Path;
use ring::sync::Ordering::{AcqRel, Acquire, Relaxed};

use super::members::{Seen, Watch};
use super::{Below, Member, Members, Put, give_if_over, queue};
use crate::Kernel;

/// A stream that took no more than this was not full yet (the smallest SO_SNDBUF is larger). Who has sent more may be waiting
/// for room, and there is some now: in the ring.
const NEVER_FULL: u64 = 2048;

/// Puts a member in. `plain`: does so in the system's set, for one that is not carried. False: the system refused.
pub fn add<B: Below>(
    below: &B,
    members: &mut Members<B::Member>,
    (member, carried): (B::Member, bool),
    k: &impl Kernel,
    plain: impl FnOnce() -> bool,
) -> bool {
    let i = members.take_place();
    let w = Watch::new(member, k, carried);
    let put = match carried {
        true => below.register(Put::Add, &w.member, i, w.kernel_out),
        false => plain(),
    };
    if !put {
        members.give_place(i);
        return false;
    }
    members.insert(i, w);
    if carried {
        below.state().carried.fetch_add(1, AcqRel);
        warm_up(below, members, i);
    }
    true
}

/// A member was added or changed: it is looked at by the next wait, and by a wait that already sleeps.
fn warm_up<B: Below>(below: &B, members: &mut Members<B::Member>, i: usize) {
    members.heat(i);
    arm_for_sleepers(below, members, i);
}

/// Somebody may be asleep on this set, and this member may be hot: then it must wake that one, now if it has news.
pub(super) fn arm_for_sleepers<B: Below>(below: &B, members: &mut Members<B::Member>, i: usize) {
    if !below.state().has_sleepers() || members.cool(below, i) {
        return;
    }
    match (below.queue(), u32::try_from(i)) {
        (Some(queue), Ok(entry)) if queue.list(entry).is_some() => {}
        _ => {
            if let Some(w) = members.watch_mut(i) {
                // The socket is writable, so this registration fires at once.
                w.kernel_out = true;
                below.register(Put::Change, &w.member, i, true);
            }
        }
    }
}

/// A member is asked for (again) with something else. `plain`: the same in the system's set, for one that is not carried.
/// False: the system refused.
pub fn modify<B: Below>(
    below: &B,
    members: &mut Members<B::Member>,
    i: usize,
    asked: <B::Member as Member>::Asked,
    k: &impl Kernel,
    plain: impl FnOnce() -> bool,
) -> bool {
    let Some(w) = members.watch_mut(i) else {
        return plain();
    };
    if !w.carried && !plain() {
        return false;
    }
    w.member.ask(asked);
    w.interest = w.member.interest();
    if !w.carried {
        return true;
    }
    w.spent = false;
    w.dormant = false;
    w.seen = Seen::at_first(w.member.conn(), k);
    if w.seen.leaves_to_kernel() {
        below.register(Put::Change, &w.member, i, w.kernel_out);
    }
    warm_up(below, members, i);
    true
}

/// The program takes a member out. `plain`: so does the system's set. False: that refused.
pub fn take_out<B: Below>(
    below: &B,
    members: &mut Members<B::Member>,
    i: usize,
    plain: impl FnOnce() -> bool,
) -> bool {
    let may_doze = members.watch(i).is_some_and(|w| {
        // With a holder in another process the system would keep it in the set beyond our close.
        let alone = || w.conn().end().refs.load(Acquire) == 1;
        w.carried && w.conn().is_engaged() && alone()
    });
    if may_doze {
        members.doze(i);
        return true;
    }
    let out = plain();
    if out {
        drop(take(below, members, i));
    }
    out
}

/// The member is no more, here.
pub fn take<B: Below>(below: &B, members: &mut Members<B::Member>, i: usize) -> Option<B::Member> {
    let w = members.take(i)?;
    if w.carried {
        below.state().carried.fetch_sub(1, AcqRel);
    }
    Some(w.member)
}

/// Ends a dormant member.
pub fn forget<B: Below>(below: &B, members: &mut Members<B::Member>, i: usize) {
    if let Some(member) = take(below, members, i) {
        below.unregister(&member);
    }
}

/// Ends all dormant members.
pub fn forget_all<B: Below>(below: &B) {
    let mut members = below.members();
    for i in 0..members.list.len() {
        if members.is_dormant(i) {
            forget(below, &mut members, i);
        }
    }
}

/// A connection was promoted while it is a member: its registration changes to ours.
pub fn engaged<B: Below>(below: &B, members: &mut Members<B::Member>, i: usize, k: &impl Kernel) {
    let Some(w) = members.watch_mut(i).filter(|w| !w.carried) else {
        return;
    };
    w.carried = true;
    w.spent = w.interest.once && below.is_spent(&w.member);
    // What is on the stream the system reports as it is registered anew; but the peer may have put bytes into the
    // ring already.
    let conn = w.member.conn();
    w.seen = Seen::at_first(conn, k);
    if conn.end().tcp_tx.load(Relaxed) < NEVER_FULL {
        w.seen.never_full(conn);
    }
    w.kernel_out = conn.end().tx_path() != Path::Ring;
    below.state().carried.fetch_add(1, AcqRel);
    if !below.register(Put::Change, &w.member, i, w.kernel_out) {
        // Exclusive members can't be changed, only made anew.
        below.unregister(&w.member);
        below.register(Put::Add, &w.member, i, w.kernel_out);
    }
    warm_up(below, members, i);
}

/// Another socket of the system has taken the place of a member's: it is registered as the program wants it, if `put`.
pub fn substituted<B: Below>(below: &B, members: &mut Members<B::Member>, i: usize, put: bool) {
    let Some((dormant, spent)) = members.watch(i).map(|w| (w.dormant, w.spent)) else {
        return;
    };
    if let Some(member) = take(below, members, i)
        && put
        && !dormant
    {
        below.restore(Put::Add, &member, spent);
    }
}

/// Connections that went back to TCP get their own registrations back.
pub fn plain_again<B: Below>(below: &B, members: &mut Members<B::Member>) {
    let all = below.follows_none();
    for i in 0..members.list.len() {
        let Some(w) = members.watch_mut(i) else {
            continue;
        };
        if !w.carried || !all && w.conn().is_engaged() {
            continue;
        }
        if w.dormant {
            forget(below, members, i);
            continue;
        }
        w.carried = false;
        w.hot = false;
        below.state().carried.fetch_sub(1, AcqRel);
        below.restore(Put::Change, &w.member, w.spent);
        members.hot.retain(|h| *h != i);
    }
}

/// All that was carried is on TCP for good, and the front makes no calls of its own from now on: so the system's set is what
/// the program thinks it is.
pub fn become_plain<B: Below>(below: &B) {
    forget_all(below);
    let mut members = below.members();
    if below.queue().is_some() {
        queue::leave(below, &mut members);
    }
    plain_again(below, &mut members);
}

/// The program has the set no more.
pub fn end<B: Below>(below: &B) {
    let mut members = std::mem::take(&mut *below.members());
    members.listen_no_more();
    let state = below.state();
    state.over.swap(true, AcqRel);
    let asleep = state.has_sleepers();
    queue::end(below, asleep);
    for w in members.list.into_iter().flatten() {
        if asleep && w.dormant {
            // As for the bell.
            below.unregister(&w.member);
        }
        if w.carried {
            state.carried.fetch_sub(1, AcqRel);
        }
    }
    give_if_over(below);
}

/// In a forked child: nobody sleeps. `members`: unless the thread that forked was interrupted while it held them.
pub fn in_child<B: Below>(below: &B, members: Option<&mut Members<B::Member>>) {
    below.state().sleepers.store(0, Relaxed);
    if let Some(members) = members {
        queue::in_child(below, members);
    }
}
