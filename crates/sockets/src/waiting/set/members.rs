//! The members of one set: what is known of each, what is due of it, and which are hot.

use std::collections::HashMap;

use gm::Path;

use super::{Below, Interest, Member, Put};
use crate::{Conn, Kernel, QUEUE_SLICE_US, Ready};

/// Looks without news after which a hot member goes cold, if there are more than `MANY_HOT`.
const QUIET_LOOKS: u32 = 256;
const MANY_HOT: usize = 32;
/// The same for a set with an event queue.
const FEW_LOOKS: u32 = 32;
const FEW_HOT: usize = 8;

pub struct Members<M> {
    pub(super) list: Vec<Option<Watch<M>>>,
    free: Vec<usize>,
    by_number: HashMap<i32, usize>,
    pub(super) hot: Vec<usize>,
    /// Members that wait for room in a ring, where the peer's doorbell can't be counted on.
    roomless: Vec<usize>,
    /// Where the next look at the hot ones starts, so that none starves.
    pub(super) turn: usize,
    /// When, in ticks, all were last looked at for want of trust in the queue.
    looked_at: u64,
    /// The event queue in which the cold ones are listed, as the number that they have in `list`.
    pub(super) queue: Option<u64>,
}

impl<M> Default for Members<M> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            free: Vec::new(),
            by_number: HashMap::new(),
            hot: Vec::new(),
            roomless: Vec::new(),
            turn: 0,
            looked_at: 0,
            queue: None,
        }
    }
}

/// One socket in one set.
pub struct Watch<M> {
    pub(super) member: M,
    pub(super) interest: Interest,
    /// In the system's set as ours.
    pub(super) carried: bool,
    /// Registered there for writability: sending is on TCP, or a sleeper had to be woken.
    pub(super) kernel_out: bool,
    pub(super) hot: bool,
    /// Cold, and rung for one by one: no writer lists it.
    pub(super) armed: bool,
    /// One report was asked for, and it was made.
    pub(super) spent: bool,
    /// The program took it out; the system's set has it still (rule 4 of the parent module).
    pub(super) dormant: bool,
    pub(super) seen: Seen,
    /// The system said something since the last report.
    pub(super) kernel_edge: bool,
    pub(super) quiet: u32,
}

/// Edges already reported, of each kind; `None`: report what is ready, for it was just added or modified.
#[derive(Clone, Copy)]
pub struct Seen {
    arrivals: Option<u64>,
    fulls: Option<u32>,
    /// Left to the system, which has not told of it yet. If the direction comes to the ring first, the ring tells it.
    kernel_in: bool,
    kernel_out: bool,
}

impl Seen {
    /// Of a member that was just added or modified: nothing, so that all that is ready is reported. But a direction that
    /// is on the stream the system reports of itself, and once is enough.
    pub fn at_first(conn: &Conn, k: &impl Kernel) -> Seen {
        conn.pass_switch(k);
        let (arrivals, fulls) = conn.edges();
        let kernel_in = conn.end().rx_path() != Path::Ring;
        let kernel_out = conn.end().tx_path() != Path::Ring;
        Seen {
            arrivals: kernel_in.then_some(arrivals),
            fulls: kernel_out.then_some(fulls),
            kernel_in,
            kernel_out,
        }
    }

    /// Is something left that the system reports?
    pub fn leaves_to_kernel(&self) -> bool {
        self.kernel_in || self.kernel_out
    }

    /// There was room all the time, and it was told.
    pub fn never_full(&mut self, conn: &Conn) {
        self.fulls = Some(conn.edges().1);
        self.kernel_out = false;
    }
}

impl<M: Member> Watch<M> {
    pub fn new(member: M, k: &impl Kernel, carried: bool) -> Self {
        Self {
            interest: member.interest(),
            carried,
            kernel_out: carried && member.conn().end().tx_path() != Path::Ring,
            hot: false,
            armed: false,
            spent: false,
            dormant: false,
            seen: Seen::at_first(member.conn(), k),
            kernel_edge: false,
            quiet: 0,
            member,
        }
    }

    pub fn conn(&self) -> &Conn {
        self.member.conn()
    }

    /// What is to be reported now; NONE: nothing. Changes nothing.
    pub fn due(&self, kernel: Option<Ready>) -> Ready {
        if self.spent || self.dormant {
            return Ready::NONE;
        }
        let conn = self.conn();
        let ready = conn.ready(&self.member.kernel(), kernel);
        let due = ready & (self.interest.want | Ready::ERR | Ready::HUP);
        if due != Ready::NONE && self.interest.edge && !self.kernel_edge {
            let (arrivals, fulls) = conn.edges();
            let (seen, end) = (&self.seen, conn.end());
            let kernel_in = seen.kernel_in && end.rx_path() == Path::Ring;
            let kernel_out = seen.kernel_out && end.tx_path() == Path::Ring;
            let arrived =
                (kernel_in || seen.arrivals != Some(arrivals)) && due.has_other_than(Ready::OUT);
            let room = (kernel_out || seen.fulls != Some(fulls)) && due.intersects(Ready::OUT);
            if !arrived && !room {
                return Ready::NONE;
            }
        }
        due
    }

    /// As `due`, and takes note that it is reported.
    pub fn report(&mut self, kernel: Option<Ready>) -> Ready {
        if let Some(kernel) = kernel {
            // An end that it tells of is an edge of this report, not of the next.
            self.conn().note_kernel(kernel);
        }
        // Edges are read first: what comes after them will be a new one.
        let (arrivals, fulls) = self.conn().edges();
        let due = self.due(kernel);
        if due != Ready::NONE {
            // What was not reported keeps its edge.
            if due.has_other_than(Ready::OUT) {
                self.seen.arrivals = Some(arrivals);
                self.seen.kernel_in = false;
            }
            if due.intersects(Ready::OUT) {
                self.seen.fulls = Some(fulls);
                self.seen.kernel_out = false;
            }
            self.kernel_edge = false;
            self.quiet = 0;
            self.spent |= self.interest.once;
        }
        due
    }

    /// Is it on TCP for good?
    pub fn is_stale(&self) -> bool {
        let conn = self.conn();
        let on_tcp = || conn.end().tx_path() == Path::Tcp;
        !conn.is_engaged() || on_tcp() && !conn.settle(&self.member.kernel())
    }

    #[inline]
    pub fn wants_out(&self) -> bool {
        self.interest.want.intersects(Ready::OUT)
    }

    /// Is there anything that a report could be of? For polling.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.conn().has_news(self.wants_out())
    }

    /// Its writer lists it in the queue from now on, as `i`, or rings.
    fn arm(&mut self, queue: Option<u64>, i: usize) {
        let (conn, k) = (self.conn(), self.member.kernel());
        self.armed = match (queue, u32::try_from(i)) {
            (Some(queue), Ok(entry @ 0..gm::events::Words::ENTRIES)) => {
                let listens = conn.listen(&k, queue, entry, || self.member.is_alone());
                if !listens {
                    conn.arm_instead(&k, queue);
                }
                !listens
            }
            _ => {
                conn.arm_edge(&k);
                true
            }
        };
    }

    /// Is a report of it due by us, if there is news?
    fn is_asked_for(&self) -> bool {
        self.carried && !self.spent && !self.dormant
    }

    /// How long, in µs, a sleep may last before it is looked at again: it waits for room, or for what lies behind a switch.
    /// `None`: as long as it likes.
    fn slice_us(&self) -> Option<u64> {
        if !self.is_asked_for() {
            return None;
        }
        let room = || self.conn().room_slice_us();
        let behind = || self.conn().unread_slice_us(&self.member.kernel());
        let room = self.wants_out().then(room).flatten();
        let behind = self.armed.then(behind).flatten();
        room.into_iter().chain(behind).min()
    }
}

impl<M: Member> Members<M> {
    /// The member that the program knows by `number`, if it is the one.
    pub fn position(&self, number: i32, is_it: impl FnOnce(&M) -> bool) -> Option<usize> {
        let i = *self.by_number.get(&number)?;
        self.get(i).is_some_and(is_it).then_some(i)
    }

    pub fn get(&self, i: usize) -> Option<&M> {
        Some(&self.watch(i)?.member)
    }

    /// Places there are: some may be empty.
    pub fn places(&self) -> usize {
        self.list.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &M> {
        self.list.iter().flatten().map(|w| &w.member)
    }

    pub fn is_carried(&self, i: usize) -> bool {
        self.watch(i).is_some_and(|w| w.carried)
    }

    pub fn is_dormant(&self, i: usize) -> bool {
        self.watch(i).is_some_and(|w| w.dormant)
    }

    pub(super) fn watch(&self, i: usize) -> Option<&Watch<M>> {
        self.list.get(i)?.as_ref()
    }

    pub(super) fn watch_mut(&mut self, i: usize) -> Option<&mut Watch<M>> {
        self.list.get_mut(i)?.as_mut()
    }

    /// Room for one more in every list. False: no memory.
    pub fn make_room(&mut self) -> bool {
        self.list.try_reserve(1).is_ok()
            && self.by_number.try_reserve(1).is_ok()
            && [&mut self.free, &mut self.hot, &mut self.roomless]
                .into_iter()
                .all(|l| {
                    l.try_reserve(self.list.len() + 1 - l.len().min(self.list.len()))
                        .is_ok()
                })
    }

    /// Where the next one goes; it is inserted there, or the place is given back.
    pub(super) fn take_place(&mut self) -> usize {
        self.free.pop().unwrap_or(self.list.len())
    }

    pub(super) fn give_place(&mut self, i: usize) {
        if i < self.list.len() {
            self.free.push(i);
        }
    }

    pub(super) fn insert(&mut self, i: usize, w: Watch<M>) {
        self.by_number.insert(w.member.number(), i);
        if i == self.list.len() {
            self.list.push(Some(w));
        } else {
            self.list[i] = Some(w);
        }
    }

    pub(super) fn take(&mut self, i: usize) -> Option<Watch<M>> {
        let w = self.list.get_mut(i)?.take()?;
        let number = w.member.number();
        if self.by_number.get(&number) == Some(&i) {
            self.by_number.remove(&number);
        }
        if w.hot {
            self.hot.retain(|h| *h != i);
        }
        if let Some(queue) = self.queue {
            w.conn().leave_queue(queue);
        }
        self.free.push(i);
        Some(w)
    }

    /// The program takes out a carried member: it is no longer looked at.
    pub(super) fn doze(&mut self, i: usize) {
        let queue = self.queue;
        if let Some(w) = self.watch_mut(i) {
            w.dormant = true;
            if let Some(queue) = queue {
                w.conn().leave_queue(queue);
            }
            if std::mem::take(&mut w.hot) {
                self.hot.retain(|h| *h != i);
            }
        }
    }

    /// The members of a socket: the one at `number` if that is the only one, else all for which `is_it`.
    pub fn of_socket(&self, number: i32, is_it: impl Fn(&M) -> bool) -> Vec<usize> {
        let alone = |i: &usize| self.get(*i).is_some_and(Member::is_alone);
        match self.position(number, &is_it).filter(alone) {
            Some(i) => vec![i],
            None => (0..self.list.len())
                .filter(|i| self.get(*i).is_some_and(&is_it))
                .collect(),
        }
    }

    /// From now on it is looked at on every wait, if it is carried: the queue may have a number from its last use, or of the
    /// member that had it before, and what the system alone knows of would never be cooled.
    pub(super) fn heat(&mut self, i: usize) {
        let has_queue = self.queue.is_some();
        let Some(w) = self.list.get_mut(i).and_then(Option::as_mut) else {
            return;
        };
        if w.carried {
            w.quiet = 0;
            if !w.hot && !w.dormant {
                w.hot = true;
                self.hot.push(i);
            }
            if has_queue {
                w.conn().look_yourself();
            }
        }
    }

    pub(super) fn heat_all(&mut self) {
        (0..self.list.len()).for_each(|i| self.heat(i));
    }

    /// Before a sleep with a queue: is it time to look at everybody, whatever the queue says? Then all are hot.
    pub(super) fn look_at_all_if_due(&mut self) -> bool {
        let now = gm::clock::ticks();
        let slice = QUEUE_SLICE_US * gm::clock::TICKS_PER_US;
        let due = now.wrapping_sub(self.looked_at) >= slice;
        if due {
            self.looked_at = now;
            self.heat_all();
        }
        due
    }

    /// No writer lists a member any more.
    pub(super) fn listen_no_more(&mut self) {
        if let Some(queue) = self.queue.take() {
            for w in self.list.iter().flatten() {
                w.conn().leave_queue(queue);
            }
        }
    }

    /// Arms a member, whose writer lists it or rings from now on; the caller takes it off the hot ones. False: it has news.
    pub(super) fn cool<B: Below<Member = M>>(&mut self, below: &B, i: usize) -> bool {
        let queue = self.queue;
        let Some(w) = self.watch_mut(i) else {
            return true;
        };
        w.arm(queue, i);
        let tx_on_tcp = w.conn().end().tx_path() != Path::Ring;
        if tx_on_tcp != w.kernel_out && w.wants_out() {
            w.kernel_out = tx_on_tcp;
            below.register(Put::Change, &w.member, i, w.kernel_out);
        }
        // Before the look: what comes after this is seen by that one, or within a slice.
        let waits = w.slice_us().is_some();
        let quiet = w.due(None) == Ready::NONE;
        if waits && !self.roomless.contains(&i) {
            self.roomless.push(i);
        }
        quiet
    }

    /// The longest sleep, in µs, while members wait for room, or for what lies behind a switch; 0: one has it. Its bell may have
    /// been taken off by another holder of the connection, so it is to be looked at.
    pub(super) fn room_slice_us(&mut self) -> Option<u64> {
        let mut slice = None;
        for i in std::mem::take(&mut self.roomless) {
            let Some(w) = self.watch(i).filter(|w| w.is_asked_for()) else {
                continue;
            };
            let most = w.slice_us();
            slice = slice.into_iter().chain([most.unwrap_or(0)]).min();
            match most {
                Some(_) => self.roomless.push(i),
                None => self.heat(i),
            }
        }
        slice
    }

    /// After such a sleep: the next wait looks at them.
    pub(super) fn heat_roomless(&mut self) {
        for i in std::mem::take(&mut self.roomless) {
            self.heat(i);
        }
    }

    /// With many hot ones, those that have been quiet for long go cold. Sooner if that costs no doorbell.
    pub(super) fn cool_quiet<B: Below<Member = M>>(&mut self, below: &B) {
        let (many, looks) = match self.queue {
            Some(_) => (FEW_HOT, FEW_LOOKS),
            None => (MANY_HOT, QUIET_LOOKS),
        };
        if self.hot.len() <= many {
            return;
        }
        let quiet = |i: &usize| self.watch(*i).is_some_and(|w| w.quiet > looks);
        let quiet: Vec<usize> = self.hot.iter().copied().filter(quiet).collect();
        for i in quiet {
            if self.cool(below, i) {
                self.hot.retain(|h| *h != i);
                if let Some(w) = self.watch_mut(i) {
                    w.hot = false;
                }
            } else {
                self.heat(i);
            }
        }
    }
}
