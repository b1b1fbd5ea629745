//! The members of one set: what is known of each, what is due of it, and which are hot.

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::atomic::Ordering::Acquire;

use libc::epoll_event;
use sockets::{Conn, Ready};

use crate::fds::Slot;
use crate::kernel::Fd;
use crate::real;

/// Upper half of our tags; the lower half is the member's index, or [`BELL`].
const TAG: u64 = 0x5347_4d21 << 32;
const BELL: u64 = u32::MAX as u64;

/// The tag of the set's bell (`queue`).
pub fn bell_tag() -> u64 {
    TAG | BELL
}
/// Looks without news after which a hot member goes cold, if there are more than `MANY_HOT`.
const QUIET_LOOKS: u32 = 256;
const MANY_HOT: usize = 32;
/// The same for a set with an event queue.
const FEW_LOOKS: u32 = 32;
const FEW_HOT: usize = 8;
const OUT: u32 = libc::EPOLLOUT as u32;

#[derive(Default)]
pub struct Members {
    pub list: Vec<Option<Watch>>,
    pub free: Vec<usize>,
    by_fd: HashMap<c_int, usize>,
    pub hot: Vec<usize>,
    /// Members that wait for room in a ring, where the peer's doorbell can't be counted on.
    pub roomless: Vec<usize>,
    /// Where the next look at the hot ones starts, so that none starves.
    pub turn: usize,
    /// When, in ticks, all were last looked at for want of trust in the queue.
    looked_at: u64,
    /// The event queue in which the cold ones are listed, as the number that they have in `list`.
    pub queue: Option<u64>,
}

/// One descriptor in one set.
pub struct Watch {
    pub fd: c_int,
    pub slot: &'static Slot,
    pub conn: *const Conn,
    pub events: u32,
    pub data: u64,
    /// In the kernel's set with our tag.
    pub carried: bool,
    /// Registered there for writability: sending is on TCP, or a sleeper had to be woken.
    pub kernel_out: bool,
    pub hot: bool,
    /// Cold, and rung for one by one: no writer lists it.
    pub armed: bool,
    /// One-shot, and it was shot.
    pub spent: bool,
    /// The program took it out; the kernel's set has it still (rule 4 of the parent module).
    pub dormant: bool,
    pub seen: Seen,
    /// The kernel said something since the last report.
    pub kernel_edge: bool,
    pub quiet: u32,
}

/// Edges already reported, of each kind; `None`: report what is ready, for it was just added or modified.
#[derive(Clone, Copy)]
pub struct Seen {
    pub arrivals: Option<u64>,
    pub fulls: Option<u32>,
    /// Left to the kernel, which has not told of it yet. If the direction comes to the ring first, the ring tells it.
    pub kernel_in: bool,
    pub kernel_out: bool,
}

impl Seen {
    /// Of a member that was just added or modified: nothing, so that all that is ready is reported. But a direction that
    /// is on the stream the kernel reports of itself, and once is enough.
    pub fn at_first(conn: &Conn, fd: &Fd) -> Seen {
        conn.pass_switch(fd);
        let (arrivals, fulls) = conn.edges();
        let end = conn.end();
        let kernel_in = end.rx_path() != gm::Path::Ring;
        let kernel_out = end.tx_path() != gm::Path::Ring;
        Seen {
            arrivals: kernel_in.then_some(arrivals),
            fulls: kernel_out.then_some(fulls),
            kernel_in,
            kernel_out,
        }
    }

    /// Is something left that the kernel reports?
    pub fn leaves_to_kernel(&self) -> bool {
        self.kernel_in || self.kernel_out
    }
}

// SAFETY: `conn` points into `slot`, and is used only under the set's lock (rule 1 of the parent module).
unsafe impl Send for Watch {}

impl Watch {
    pub fn conn(&self) -> &Conn {
        // SAFETY: we are under the set's lock, and closing takes the member out first (rule 1 of the parent module).
        unsafe { &*self.conn }
    }

    pub fn tag(index: usize) -> u64 {
        TAG | index as u64
    }

    /// The index in a tag of ours; `None`: data of the program.
    pub fn index(data: u64) -> Option<usize> {
        (data & !0xffff_ffff == TAG).then_some((data & 0xffff_ffff) as usize)
    }

    /// What is to be reported now; 0: nothing. Changes nothing.
    pub fn due(&self, kernel: Option<Ready>) -> u32 {
        if self.spent || self.dormant {
            return 0;
        }
        let conn = self.conn();
        let ready = conn.ready(&Fd::of(self.fd), kernel).0;
        let mut due = ready & (self.events | (libc::EPOLLERR | libc::EPOLLHUP) as u32) & 0xffff;
        if ready & Ready::IN.0 != 0 {
            due |= self.events & libc::EPOLLRDNORM as u32;
        }
        if ready & Ready::OUT.0 != 0 {
            due |= self.events & libc::EPOLLWRNORM as u32;
        }
        if due != 0 && self.events & libc::EPOLLET as u32 != 0 && !self.kernel_edge {
            let (arrivals, fulls) = conn.edges();
            let (seen, end) = (&self.seen, conn.end());
            let kernel_in = seen.kernel_in && end.rx_path() == gm::Path::Ring;
            let kernel_out = seen.kernel_out && end.tx_path() == gm::Path::Ring;
            let arrived = (kernel_in || seen.arrivals != Some(arrivals)) && due & !OUT != 0;
            let room = (kernel_out || seen.fulls != Some(fulls)) && due & OUT != 0;
            if !arrived && !room {
                return 0;
            }
        }
        due
    }

    /// As `due`, and takes note that it is reported.
    pub fn report(&mut self, kernel: Option<Ready>) -> u32 {
        if let Some(kernel) = kernel {
            // An end that it tells of is an edge of this report, not of the next.
            self.conn().note_kernel(kernel);
        }
        // Edges are read first: what comes after them will be a new one.
        let (arrivals, fulls) = self.conn().edges();
        let due = self.due(kernel);
        if due != 0 {
            // What was not reported keeps its edge.
            if due & !OUT != 0 {
                self.seen.arrivals = Some(arrivals);
                self.seen.kernel_in = false;
            }
            if due & OUT != 0 {
                self.seen.fulls = Some(fulls);
                self.seen.kernel_out = false;
            }
            self.kernel_edge = false;
            self.quiet = 0;
            if self.events & libc::EPOLLONESHOT as u32 != 0 {
                self.spent = true;
            }
        }
        due
    }

    pub fn wants_out(&self) -> bool {
        self.events & OUT != 0
    }

    fn is_asked_for(&self) -> bool {
        self.carried && !self.spent && !self.dormant
    }

    /// How long, in µs, a sleep may last before it is looked at again. `None`: as long as it likes.
    fn slice_us(&self) -> Option<u64> {
        let room = || self.conn().room_slice_us();
        let behind = || self.conn().unread_slice_us(&Fd::of(self.fd));
        let room = (self.is_asked_for() && self.wants_out()).then(room);
        let behind = (self.is_asked_for() && self.armed).then(behind);
        room.flatten().into_iter().chain(behind.flatten()).min()
    }

    pub fn event(&self, events: u32) -> epoll_event {
        epoll_event {
            events,
            u64: self.data,
        }
    }
}

impl Members {
    pub fn position(&self, fd: c_int, slot: &Slot) -> Option<usize> {
        let i = *self.by_fd.get(&fd)?;
        self.list
            .get(i)?
            .as_ref()
            .is_some_and(|w| std::ptr::eq(w.slot, slot))
            .then_some(i)
    }

    /// Room for one more in every list. False: no memory.
    pub fn make_room(&mut self) -> bool {
        self.list.try_reserve(1).is_ok()
            && self.by_fd.try_reserve(1).is_ok()
            && [&mut self.free, &mut self.hot, &mut self.roomless]
                .into_iter()
                .all(|l| {
                    l.try_reserve(self.list.len() + 1 - l.len().min(self.list.len()))
                        .is_ok()
                })
    }

    pub fn insert(&mut self, i: usize, w: Watch) {
        self.by_fd.insert(w.fd, i);
        if i == self.list.len() {
            self.list.push(Some(w));
        } else {
            self.list[i] = Some(w);
        }
    }

    pub fn take(&mut self, i: usize) -> Option<Watch> {
        let w = self.list.get_mut(i)?.take()?;
        if self.by_fd.get(&w.fd) == Some(&i) {
            self.by_fd.remove(&w.fd);
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

    pub fn is_dormant(&self, i: usize) -> bool {
        matches!(self.list.get(i), Some(Some(w)) if w.dormant)
    }

    /// The program takes out a carried member: it is no longer looked at.
    pub fn sleep(&mut self, i: usize) {
        if let Some(Some(w)) = self.list.get_mut(i) {
            w.dormant = true;
            if let Some(queue) = self.queue {
                w.conn().leave_queue(queue);
            }
            if std::mem::take(&mut w.hot) {
                self.hot.retain(|h| *h != i);
            }
        }
    }

    /// Members that belong to `slot`: the one at `fd` if that is the only one, else all.
    pub fn of_slot(&self, slot: &Slot, fd: c_int) -> Vec<usize> {
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

    /// From now on it is looked at on every wait, if it is carried: the queue may have a number from its last use, or of the
    /// member that had it before, and what the kernel alone knows of would never be cooled.
    pub fn heat(&mut self, i: usize) {
        if let Some(Some(w)) = self.list.get_mut(i)
            && w.carried
        {
            w.quiet = 0;
            if !w.hot && !w.dormant {
                w.hot = true;
                self.hot.push(i);
            }
            if self.queue.is_some() {
                w.conn().look_yourself();
            }
        }
    }

    pub fn heat_all(&mut self) {
        (0..self.list.len()).for_each(|i| self.heat(i));
    }

    /// Before a sleep with a queue: is it time to look at everybody, whatever the queue says? Then all are hot.
    pub fn look_at_all_if_due(&mut self) -> bool {
        let now = gm::clock::ticks();
        let slice = sockets::QUEUE_SLICE_US * gm::clock::TICKS_PER_US;
        let due = now.wrapping_sub(self.looked_at) >= slice;
        if due {
            self.looked_at = now;
            self.heat_all();
        }
        due
    }

    /// The set has no event queue any more.
    pub fn leave_queue(&mut self) {
        self.heat_all();
        self.listen_no_more();
    }

    /// No writer lists a member any more.
    pub fn listen_no_more(&mut self) {
        if let Some(queue) = self.queue.take() {
            for w in self.list.iter().flatten() {
                w.conn().leave_queue(queue);
            }
        }
    }

    /// Arms a member, whose writer lists it or rings from now on; the caller takes it off the hot ones. False: it has news.
    pub fn cool(&mut self, epfd: c_int, i: usize) -> bool {
        let Some(Some(w)) = self.list.get_mut(i) else {
            return true;
        };
        match (self.queue, u32::try_from(i)) {
            (Some(queue), Ok(entry @ 0..gm::events::Words::ENTRIES)) => {
                let slot = w.slot;
                let alone = || slot.watches.load(Acquire) == 1;
                let (conn, fd) = (w.conn(), Fd::of(w.fd));
                let listens = conn.listen(&fd, queue, entry, alone);
                if !listens {
                    conn.arm_instead(&fd, queue);
                }
                w.armed = !listens;
            }
            _ => {
                w.armed = true;
                w.conn().arm_edge(&Fd::of(w.fd));
            }
        }
        let tx_on_tcp = w.conn().end().tx_path() != gm::Path::Ring;
        if tx_on_tcp != w.kernel_out && w.wants_out() {
            w.kernel_out = tx_on_tcp;
            register(epfd, libc::EPOLL_CTL_MOD, w, i);
        }
        // Before the look: what comes after this is seen by that one, or within a slice.
        let waits = w.slice_us().is_some();
        let quiet = w.due(None) == 0;
        if waits && !self.roomless.contains(&i) {
            self.roomless.push(i);
        }
        quiet
    }

    /// The longest sleep, in µs, while members wait for room, or for what lies behind a switch; 0: one has it. Its bell may have been taken off by another
    /// holder of the connection, so it is to be looked at.
    pub fn room_slice_us(&mut self) -> Option<u64> {
        let mut slice = None;
        for i in std::mem::take(&mut self.roomless) {
            let Some(Some(w)) = self
                .list
                .get(i)
                .filter(|w| w.as_ref().is_some_and(Watch::is_asked_for))
            else {
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
    pub fn heat_roomless(&mut self) {
        for i in std::mem::take(&mut self.roomless) {
            self.heat(i);
        }
    }

    /// With many hot ones, those that have been quiet for long go cold. Sooner if that costs no doorbell.
    pub fn cool_quiet(&mut self, epfd: c_int) {
        let (many, looks) = match self.queue {
            Some(_) => (FEW_HOT, FEW_LOOKS),
            None => (MANY_HOT, QUIET_LOOKS),
        };
        if self.hot.len() <= many {
            return;
        }
        let list = &self.list;
        let quiet = |i: &usize| list[*i].as_ref().is_some_and(|w| w.quiet > looks);
        let quiet: Vec<usize> = self.hot.iter().copied().filter(quiet).collect();
        for i in quiet {
            if self.cool(epfd, i) {
                self.hot.retain(|h| *h != i);
                if let Some(Some(w)) = self.list.get_mut(i) {
                    w.hot = false;
                }
            } else {
                self.heat(i);
            }
        }
    }
}

/// Puts a carried member into the kernel's set (or changes it there): edge-triggered, our tag.
pub fn register(epfd: c_int, op: c_int, w: &Watch, i: usize) -> c_int {
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

/// Takes a member out of the kernel's set.
pub fn unregister(epfd: c_int, w: &Watch) -> c_int {
    // SAFETY: DEL takes no event.
    unsafe { real::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, w.fd, std::ptr::null_mut()) }
}
