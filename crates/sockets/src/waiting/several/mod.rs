//! Waiting for several sockets at once, carried and others: what poll, select and their kin share. A front decodes its
//! array into [`Member`]s, calls [`wait`], and encodes what each one got.
//!
//! Carried sockets are looked at in their rings. What else there is the system is asked for ([`Below`]): the others, doorbells
//! and the ends of peers.
//!
//! 1. Nobody sleeps without arming every carried member first and looking at all of them once more (INV-5).
//! 2. What a ring has ends the wait at once, but the others are asked as well then: a call reports all that is ready.
//! 3. Who always finds something in the rings still hears of peers that are gone, which the system alone knows ([`System`]).
//! 4. Where a doorbell can't be counted on the sleep is cut into slices ([`Conn::room_slice_us`], and here).

use gm::clock::{TICKS_PER_US, ticks};
use gm::{End, EventQueue, Path};
use ring::sync::{AtomicU64, Ordering::Relaxed};

use super::{Ask, Host, Spin, Spun, sleep_limit_ns};
use crate::{Conn, Deadline, Kernel, Ready};

#[cfg(test)]
mod tests;

/// With unread bytes that nobody asked for, the doorbell for room, or of the end, can't be told from theirs: look this often,
/// in ns.
const BLIND_FOR_ROOM_NS: u64 = 1_000_000;
const BLIND_FOR_END_NS: u64 = 20_000_000;
/// Rounds of polling between two looks at the sockets that are not carried.
const OTHERS_EVERY: u32 = 64;

/// A socket that a call is inside of.
pub trait Socket {
    type Kernel<'a>: Kernel
    where
        Self: 'a;
    /// `None`: it is none that could be carried.
    fn conn(&self) -> Option<&Conn>;
    fn kernel(&self) -> Self::Kernel<'_>;
    /// Does an epoll set of this process wait for this socket? Asked where there are event queues ([`Below::queue`]).
    fn is_watched(&self) -> bool {
        false
    }
}

/// One socket of a call.
pub struct Member<S> {
    pub socket: S,
    /// What is waited for, of IN, OUT, PRI and RDHUP; errors and ends are told in any case.
    pub want: Ready,
    /// What there is.
    pub got: Ready,
    /// What to ask below, and what was answered there.
    pub ask: Ready,
    pub below: Ready,
    carried: bool,
    /// It is listed in the call's event queue.
    listed: bool,
}

impl<S: Socket> Member<S> {
    /// `carried`: the engine answers for it, else the system alone.
    pub fn new(socket: S, want: Ready, carried: bool) -> Self {
        Self {
            socket,
            want,
            got: Ready::NONE,
            ask: want,
            below: Ready::NONE,
            carried,
            listed: false,
        }
    }

    pub fn is_carried(&self) -> bool {
        self.carried
    }

    fn carried(&self) -> Option<&Conn> {
        self.socket.conn().filter(|_| self.carried)
    }

    fn counts(&self, ready: Ready) -> bool {
        ready.intersects(self.want | Ready::ERR | Ready::HUP | Ready::NVAL)
    }

    fn is_ready(&self) -> bool {
        self.counts(self.got)
    }

    fn look(&mut self) {
        self.got = match self.carried() {
            Some(conn) => conn.ready(&self.socket.kernel(), None),
            None => Ready::NONE,
        };
    }

    fn has_news(&self) -> bool {
        self.carried().is_some_and(|conn| {
            conn.has_news(self.want.intersects(Ready::OUT))
                && self.counts(conn.ready(&self.socket.kernel(), None))
        })
    }

    /// What to ask below about a carried socket: doorbells and the peer's end; not what is known already and was not
    /// asked for, or the sleep would end at once.
    fn prepare(&mut self) {
        // Of a direction that is on the stream nobody takes note.
        let told = self.below.intersects(Ready::RDHUP);
        self.below = Ready::NONE;
        self.ask = self.want;
        let Some(conn) = self.carried() else {
            return;
        };
        let mut ask = self.want & Ready::PRI;
        // Who waits for room alone, and has read to the ring's end, would hear of nothing else for ever.
        let for_room = self.want & (Ready::IN | Ready::OUT | Ready::RDHUP) == Ready::OUT;
        let heard = told || for_room && conn.is_at_rings_end();
        if !conn.read_is_over() && !heard {
            ask |= Ready::RDHUP;
            let all_read = || conn.readable_bytes(&self.socket.kernel()) == 0;
            if self.want.intersects(Ready::IN) || all_read() {
                ask |= Ready::IN;
            }
        }
        if conn.end().tx_path() != Path::Ring {
            ask |= self.want & Ready::OUT;
        }
        self.ask = ask;
    }

    /// Before a sleep: whoever has news for it lists it in the call's event queue, or rings.
    fn arm(&mut self, queue: Option<&EventQueue>, entry: usize) {
        let Some(conn) = self.carried() else { return };
        let k = self.socket.kernel();
        let alone = || !self.socket.is_watched();
        let entry = u32::try_from(entry).unwrap_or(u32::MAX);
        let listed = queue.is_some_and(|q| conn.listen(&k, q.id(), entry, alone));
        if !listed {
            conn.arm(&k);
        }
        self.listed = listed;
    }

    fn disarm(&mut self, queue: Option<&EventQueue>) {
        let Some(conn) = self.carried() else { return };
        match queue {
            Some(queue) if self.listed => conn.leave_queue(queue.id()),
            _ => conn.disarm(),
        }
    }

    /// From what was answered below to what there is.
    fn conclude(&mut self, below: &impl Below<S>) {
        self.got = match self.carried() {
            Some(conn) if !self.below.intersects(Ready::NVAL) => {
                // Urgent data is the kernel's alone.
                conn.ready(&self.socket.kernel(), below.view(self)) | self.below & Ready::PRI
            }
            _ => self.below,
        };
    }

    /// How long it may sleep, in ns, where its doorbell can't be counted on. `None`: as long as it likes.
    fn slice_ns(&self) -> Option<u64> {
        let conn = self.carried()?;
        let wants_out = self.want.intersects(Ready::OUT);
        let room = wants_out.then(|| conn.room_slice_us()).flatten();
        let mut slice = room.map(|us| us * 1000);
        if !self.ask.intersects(Ready::IN) && !self.listed {
            let end = self.want.intersects(Ready::RDHUP) && !conn.read_is_over();
            let on_ring = conn.end().tx_path() == Path::Ring;
            let room = (wants_out && on_ring).then_some(BLIND_FOR_ROOM_NS);
            let blind = room.into_iter().chain(end.then_some(BLIND_FOR_END_NS));
            slice = slice.into_iter().chain(blind).min();
        }
        slice
    }
}

/// The system, which knows of all sockets of a call.
pub trait Below<S: Socket> {
    type Fault;
    type Host: Host;

    /// Asks for `ask` of every member, and for sockets that are no members at all; fills in `below` (it is NONE before). True:
    /// one of those has something.
    fn ask(&mut self, members: &mut [Member<S>], how: Ask) -> Result<bool, Self::Fault>;

    /// An event queue for a sleep of this call: it ends when the bell of that rings as well. `None`: there are doorbells alone.
    /// `needed`: it is worth making one.
    fn queue(&mut self, _needed: bool) -> Option<&'static EventQueue> {
        None
    }

    /// That sleep is over.
    fn leave_queue(&mut self) {}

    /// Is it time to ask, though the rings have an answer? Then it counts as asked.
    fn is_due(&self, members: usize) -> bool {
        SYSTEM.is_due(members)
    }

    /// Are there sockets that are not carried, members or not?
    fn has_others(&self) -> bool;

    /// Does a look take no longer than a few µs, so that it may be had while polling?
    fn looks_fast(&self) -> bool;

    /// All that the system knows of a carried member that it answered for. `None`: nothing new.
    fn view(&self, member: &Member<S>) -> Option<Ready> {
        Some(member.below)
    }

    fn host(&self) -> Self::Host;
}

static SPIN: Spin = Spin::new();

/// When the system was last asked by a call of this process that needed no answer from it.
struct System(AtomicU64);

static SYSTEM: System = System(AtomicU64::new(0));

impl System {
    /// Once in so long, in µs, and for each member: to ask costs a fraction of that.
    const EVERY_US: u64 = 1_000;
    const EVERY_OF_EACH_US: u64 = 10;

    /// Is it time to ask? Then it counts as asked.
    #[inline]
    fn is_due(&self, members: usize) -> bool {
        let now = ticks();
        let every = Self::EVERY_US + members as u64 * Self::EVERY_OF_EACH_US;
        let due = now.wrapping_sub(self.0.load(Relaxed)) > every * TICKS_PER_US;
        if due {
            self.0.store(now, Relaxed);
        }
        due
    }
}

/// Waits until a socket of the call is ready, or the time is over; what the members have is in `got` then. One of them at
/// least is carried, or the system could have been asked by itself.
pub fn wait<S: Socket, B: Below<S>>(
    members: &mut [Member<S>],
    deadline: Deadline,
    below: &mut B,
) -> Result<(), B::Fault> {
    loop {
        if look(members) {
            if below.has_others() || below.is_due(members.len()) {
                ask(members, Ask::Look, below)?;
            }
            return Ok(());
        }
        if deadline.passed(|| below.host().now_ns()) {
            // Peers that are gone, the system knows of.
            ask(members, Ask::Sleep(Some(0)), below)?;
            return Ok(());
        }
        match poll(members, below) {
            Polled::Others => return Ok(()),
            Polled::Rings => continue,
            Polled::Nothing => {}
        }
        if sleep(members, deadline, below)? {
            return Ok(());
        }
    }
}

/// By the rings alone. True: one is ready.
fn look<S: Socket>(members: &mut [Member<S>]) -> bool {
    let looked = members.iter_mut().map(|m| {
        m.look();
        m.is_ready()
    });
    looked.fold(false, |any, ready| any | ready)
}

/// Everybody, by what the system says. True: one is ready.
fn ask<S: Socket, B: Below<S>>(
    members: &mut [Member<S>],
    how: Ask,
    below: &mut B,
) -> Result<bool, B::Fault> {
    members.iter_mut().for_each(Member::prepare);
    ask_prepared(members, how, below)
}

fn ask_prepared<S: Socket, B: Below<S>>(
    members: &mut [Member<S>],
    how: Ask,
    below: &mut B,
) -> Result<bool, B::Fault> {
    let others = below.ask(members, how)?;
    let concluded = members.iter_mut().map(|m| {
        m.conclude(below);
        m.is_ready()
    });
    Ok(concluded.fold(others, |any, ready| any | ready))
}

enum Polled {
    Nothing,
    /// A ring has news.
    Rings,
    /// The system was asked, and all is concluded.
    Others,
}

fn poll<S: Socket, B: Below<S>>(members: &mut [Member<S>], below: &mut B) -> Polled {
    let often = below.has_others() && below.looks_fast();
    let host = below.host();
    let mut rounds = 0_u32;
    let mut others = false;
    let news = || {
        rounds += 1;
        // What fails here, fails in the sleep as well.
        others = often
            && rounds.is_multiple_of(OTHERS_EVERY)
            && matches!(ask(members, Ask::Look, below), Ok(true));
        others || members.iter().any(Member::has_news)
    };
    let spun = SPIN.wait(host.cpus(), || host.yield_now(), news);
    match (spun, others) {
        (Spun::Nothing, _) => Polled::Nothing,
        (Spun::Found, false) => Polled::Rings,
        (Spun::Found, true) => Polled::Others,
    }
}

/// Arms everything, looks once more, sleeps below (rule 1). True: the wait is over.
fn sleep<S: Socket, B: Below<S>>(
    members: &mut [Member<S>],
    deadline: Deadline,
    below: &mut B,
) -> Result<bool, B::Fault> {
    let mut carried = members.iter().filter_map(Member::carried);
    let queue = below.queue(carried.any(|conn| conn.stream_comes_first()));
    for (entry, m) in members.iter_mut().enumerate() {
        m.arm(queue, entry);
        m.prepare();
    }
    let asleep = queue.map(|queue| queue.words().fall_asleep());
    // Before the look: room that comes after this is seen by that one, or within a slice. Its bell may be taken off by another
    // holder of the connection.
    let slice = members.iter().filter_map(Member::slice_ns).min();
    let over = if look(members) {
        Ok(false)
    } else {
        let trusted = queue.map(|_| crate::QUEUE_SLICE_US * 1000);
        let slice = slice.into_iter().chain(trusted).min();
        let limit = sleep_limit_ns(deadline, slice, || below.host().now_ns());
        let start = gm::clock::ticks();
        let ready = ask_prepared(members, Ask::Sleep(limit), below);
        SPIN.slept(start, queue.map_or(0, EventQueue::rung_at));
        for conn in members.iter().filter_map(Member::carried) {
            End::count(&conn.end().sleeps, 1);
        }
        ready.map(|ready| ready || deadline.passed(|| below.host().now_ns()))
    };
    members.iter_mut().for_each(|m| m.disarm(queue));
    if let (Some(queue), Some(asleep)) = (queue, asleep) {
        // This sleep alone: in a forked child, whose call goes on, it is over, and the parent may be in another.
        queue.words().wake_up(asleep);
        below.leave_queue();
    }
    over
}
