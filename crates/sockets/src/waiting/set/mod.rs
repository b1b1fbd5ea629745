//! Waiting at a set that outlasts the call: what is behind an epoll set. A front translates what the program asks and what it
//! is told ([`Member`]), and is the way to the system's own set ([`Below`]), which stays true: every member is in it. A carried
//! member is in it for edges alone, of doorbells and the peer's end; what the program asked for is kept here.
//!
//! ```text
//!   hot      used lately: looked at directly on every wait, not armed (its writer rings no bell)
//!   cold     quiet: its writer lists it in the set's event queue (`queue`), or, where there is none, rings a bell, which comes
//!            through the system's set; either makes it hot again
//!   dormant  the program took it out; the system's set has it still (rule 4)
//! ```
//!
//! Rules:
//! 1. The members are locked for looking and changing, never while sleeping. A member's connection can't go away while
//!    they are: closing takes the member out first.
//! 2. Before anybody sleeps in the system, every member is armed and was looked at after that (INV-5).
//! 3. While another thread sleeps on the same set, nothing stays hot when a wait returns.
//! 4. A carried member that the program takes out goes *dormant*: it stays in the system's set until the system speaks of it
//!    or the process forks, so that a program which changes what it waits for by taking out and putting in pays no call for it.
//!
//! `members`: what is known of each, and what is due; `change`: put in, changed, taken out, promoted, gone back;
//! `queue`: the set's event queue; `wait`: the waits.

mod change;
mod members;
mod queue;
#[cfg(test)]
mod tests;
mod wait;

use std::ops::DerefMut;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use gm::EventQueue;

use crate::waiting::{Ask, Host, Spin};
use crate::{Conn, Kernel, Ready};

pub use self::change::{
    add, become_plain, end, engaged, forget, forget_all, in_child, modify, plain_again,
    substituted, take, take_out,
};
pub use self::members::Members;
pub use self::queue::mind_inherited;
#[cfg(test)]
pub(crate) use self::wait::CAME_HERE;
pub(crate) use self::wait::came_to_ring;
pub use self::wait::{look, sort, wait};

/// What the program asks of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Of IN, OUT, PRI and RDHUP; errors and ends are told in any case.
    pub want: Ready,
    /// Edges are told once, not what is ready as long as it is.
    pub edge: bool,
    /// One report, and nothing more until it is asked again.
    pub once: bool,
}

/// A socket in a set, as the front knows it.
pub trait Member {
    type Kernel<'a>: Kernel
    where
        Self: 'a;
    /// What the program gave for it.
    type Asked;
    /// What the program, or the system below, is told with.
    type Event: Copy;

    /// The number that the program knows it by.
    fn number(&self) -> i32;
    fn conn(&self) -> &Conn;
    fn kernel(&self) -> Self::Kernel<'_>;
    /// Is it in no other set of this process, nor here under another number?
    fn is_alone(&self) -> bool;

    fn ask(&mut self, asked: Self::Asked);
    fn interest(&self) -> Interest;

    /// A report.
    fn event(&self, due: Ready) -> Self::Event;
    /// One report instead of both, if the program can't tell whom they are of.
    fn merge(event: &mut Self::Event, more: &Self::Event) -> bool;
    /// Can the program not tell this report from one of this member?
    fn is_like(&self, event: &Self::Event) -> bool {
        Self::merge(&mut { *event }, &self.event(Ready::NONE))
    }
}

/// Of what the system's set tells.
pub enum Told {
    /// A carried member, by its index.
    Member(usize, Ready),
    /// The bell of the set's queue.
    Bell,
    /// What the program itself put there.
    Other,
}

/// Into the system's set, or changed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Add,
    Change,
}

type EventOf<B> = <<B as Below>::Member as Member>::Event;

/// A front's set: its members' lock, and the system's own set.
pub trait Below {
    type Member: Member;
    type Held<'a>: DerefMut<Target = Members<Self::Member>>
    where
        Self: 'a;
    type Fault;
    type Host: Host;

    fn state(&self) -> &State;
    /// Locks the members.
    fn members(&self) -> Self::Held<'_>;
    /// The set is over, and nobody sleeps there any more.
    fn give_back(&self);
    /// Is this still the set that the program waits at?
    fn is_there(&self) -> bool;
    /// Must every member be the system's alone?
    fn follows_none(&self) -> bool {
        false
    }

    /// A carried member: edges of IN and RDHUP, and of OUT if `out`, told as [`Told::Member`] of `index`. False: refused.
    fn register(&self, how: Put, member: &Self::Member, index: usize, out: bool) -> bool;
    fn unregister(&self, member: &Self::Member);
    /// A member that is carried no more: as the program asked, or for nothing if it is `spent`.
    fn restore(&self, how: Put, member: &Self::Member, spent: bool);
    /// Has the system told of this member, which was not carried, once, and nothing since?
    fn is_spent(&self, member: &Self::Member) -> bool;

    /// What the system's set has, to the start of `out`. Returns how many.
    fn ask(&self, out: &mut [EventOf<Self>], how: Ask) -> Result<usize, Self::Fault>;
    fn told(event: &EventOf<Self>) -> Told;

    /// The event queue that the set has now.
    fn queue(&self) -> Option<&'static EventQueue>;
    /// Gets it one, whose bell is in the system's set from then on. `None`: there can be none.
    fn take_queue(&self) -> Option<&'static EventQueue>;
    /// Takes its bell out of the system's set.
    fn take_bell_out(&self, queue: &EventQueue);
    /// The set has it no more. `reuse`: another one may.
    fn drop_queue(&self, reuse: bool);
    /// Tells the process that made the queue `id` to leave it.
    fn share_queue(&self, id: u64);

    fn host(&self) -> Self::Host;
}

/// What is known of a set without its lock.
#[derive(Default)]
pub struct State {
    /// Threads asleep on this set.
    sleepers: AtomicU32,
    /// Members that are carried.
    carried: AtomicU32,
    /// Rings alone filled the last wait: the system's members come first in the next.
    filled: AtomicBool,
    spin: Spin,
    /// It was ended while threads sleep on it: the last of them gives it back.
    over: AtomicBool,
    /// What was last seen of [`came_to_ring`]'s count.
    came: AtomicU32,
    /// When, in ticks, [`look`] last asked the system.
    asked: AtomicU64,
    queue: queue::State,
}

impl State {
    #[inline]
    fn has_carried(&self) -> bool {
        self.carried.load(Acquire) > 0
    }

    #[inline]
    fn has_sleepers(&self) -> bool {
        self.sleepers.load(Acquire) > 0
    }

    /// Was it ended while this thread slept on it?
    fn is_over(&self) -> bool {
        self.over.load(Acquire)
    }
}

/// A thread sleeps here no more. Returns how many did.
fn leave_sleepers<B: Below>(below: &B) -> u32 {
    // In a child that a handler forked, what that interrupted is not counted.
    let one_less = |n: u32| n.checked_sub(1);
    let sleepers = &below.state().sleepers;
    let before = sleepers.fetch_update(AcqRel, Acquire, one_less);
    give_if_over(below);
    before.unwrap_or(0)
}

fn give_if_over<B: Below>(below: &B) {
    // Each of the two who may do so stores first and looks second.
    let state = below.state();
    let idle = || state.sleepers.fetch_add(0, AcqRel) == 0;
    if state.is_over() && idle() && state.over.swap(false, AcqRel) {
        below.give_back();
    }
}
