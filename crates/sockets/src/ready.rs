//! Readiness: what poll, select and epoll report of a carried connection.

use gm::end::flag;
use gm::{Path, State};
use ring::sync::Ordering::Relaxed;
use ring::{Tx, layout};

use crate::{Conn, Kernel};

/// A set of poll events, with poll's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(pub u32);

impl Ready {
    pub const NONE: Ready = Ready(0);
    pub const IN: Ready = Ready(0x1);
    /// Urgent data.
    pub const PRI: Ready = Ready(0x2);
    pub const OUT: Ready = Ready(0x4);
    pub const ERR: Ready = Ready(0x8);
    pub const HUP: Ready = Ready(0x10);
    /// No such socket.
    pub const NVAL: Ready = Ready(0x20);
    pub const RDHUP: Ready = Ready(0x2000);

    #[inline]
    pub fn intersects(self, other: Ready) -> bool {
        self.0 & other.0 != 0
    }

    /// Is there any besides `other`?
    #[inline]
    pub fn has_other_than(self, other: Ready) -> bool {
        self.0 & !other.0 != 0
    }
}

impl std::ops::BitOr for Ready {
    type Output = Ready;
    fn bitor(self, other: Ready) -> Ready {
        Ready(self.0 | other.0)
    }
}

impl std::ops::BitAnd for Ready {
    type Output = Ready;
    fn bitand(self, other: Ready) -> Ready {
        Ready(self.0 & other.0)
    }
}

impl std::ops::BitOrAssign for Ready {
    fn bitor_assign(&mut self, other: Ready) {
        self.0 |= other.0;
    }
}

const ENDED: Ready = Ready(Ready::ERR.0 | Ready::HUP.0);

impl Conn {
    /// The connection's events now. `kernel`: what the kernel's poll just said, if it was asked; where a direction is on TCP it
    /// is asked here, and anew, for what it said may have been about doorbells that are gone now.
    pub fn ready(&self, k: &impl Kernel, kernel: Option<Ready>) -> Ready {
        let end = self.end;
        if end.state() == State::Claimed {
            self.see_confirmation(k);
        }
        let Some(segment) = self.segment() else {
            return kernel.unwrap_or_else(|| k.poll());
        };
        let passed = self.passed();
        self.mind_asks(k);
        self.advance(k);
        self.mind_stall(k, segment);
        // What the kernel said before a switch was passed may have been of its last doorbells.
        let kernel = kernel.filter(|_| self.passed() == passed);
        let rx = segment.rx();
        if let Some(kernel) = kernel {
            self.note_kernel(kernel);
        }
        let mut ready = Ready::NONE;
        let on_kernel = end.rx_path() != Path::Ring || end.tx_path() != Path::Ring;
        let mut kernel = Ready::NONE;
        if on_kernel {
            kernel = k.poll();
            self.note_kernel(kernel);
        }
        let mut read_over = end.has(flag::KERNEL_EOF | flag::KERNEL_DEAD | flag::READ_SHUT);
        match end.rx_path() {
            Path::Ring => {
                read_over |= rx.finished() && !self.is_moved(rx);
                if rx.readable() != Ok(0) {
                    ready |= Ready::IN;
                }
            }
            Path::Tcp => {
                ready |= Ready(kernel.0 & (Ready::IN | Ready::RDHUP | ENDED).0);
                // Told by the kernel, or in the ring while payload before the switch is unread: the kernel does not know of that.
                read_over |= kernel.intersects(Ready::RDHUP);
                read_over |= rx.finished() && rx.writer_is_on_ring();
            }
        }
        if read_over {
            ready |= Ready::IN | Ready::RDHUP;
        }
        match end.tx_path() {
            Path::Ring => {
                if self.takes_more(segment) {
                    ready |= Ready::OUT;
                }
            }
            _ => {
                ready |= Ready(kernel.0 & (Ready::OUT | ENDED).0);
                if self.peer_takes_nothing() {
                    // A send fails.
                    ready |= Ready::OUT;
                }
            }
        }
        let reset = self.is_reset(segment);
        if read_over && end.has(flag::WRITE_SHUT) || end.has(flag::KERNEL_DEAD) || reset {
            ready |= Ready::HUP | Ready::OUT | Ready::IN;
        }
        if reset && !end.has(flag::RESET_TOLD) {
            ready |= Ready::ERR;
        }
        ready
    }

    /// Did the peer reset the connection, as far as the kernel has told?
    pub(crate) fn is_reset(&self, segment: &gm::Segment) -> bool {
        let ended = self.end.has(flag::KERNEL_EOF | flag::KERNEL_DEAD);
        let aborted = segment.rx().flags() & layout::RESET != 0 || self.died_unread(segment);
        ended && aborted || self.end.has(flag::CORRUPT | flag::UNMOVED)
    }

    /// As [`Conn::is_reset`]; the kernel is asked.
    pub(crate) fn is_reset_by_now(&self, k: &impl Kernel) -> bool {
        self.segment().is_some_and(|segment| {
            self.note_kernel(k.poll());
            self.is_reset(segment)
        })
    }

    /// SO_ERROR takes the error that is to be told, and none is told after it. True: it is a reset. `kernel`: its own was one, and
    /// has been taken.
    pub fn take_reset(&self, k: &impl Kernel, kernel: bool) -> bool {
        let due = self.is_engaged() && !self.end.has(flag::RESET_TOLD) && self.is_reset_by_now(k);
        if due || kernel {
            self.end.set(flag::RESET_TOLD | flag::KERNEL_DEAD);
        }
        due || kernel
    }

    /// Room enough to call the connection writable: a third of what may be unread, as TCP wants a third of its buffer.
    pub(crate) fn has_room(&self, segment: &gm::Segment) -> bool {
        let tx = segment.tx();
        let window = match tx.overflowed() {
            Some(_) => tx.whole_window(),
            None => tx.window(),
        };
        self.takes(tx, window as usize / 3) || tx.may_overflow()
    }

    /// Is there room for so many bytes where they go now? Nonsense shows with the next write.
    pub(crate) fn takes(&self, tx: Tx<'_>, bytes: usize) -> bool {
        tx.room(&self.write_cache, bytes)
            .map_or(true, |room| room >= bytes)
    }

    /// On the ring: would a send not wait? It has room, or goes over TCP, or fails.
    fn takes_more(&self, segment: &gm::Segment) -> bool {
        let tx = segment.tx();
        // Not by the ring's own word of our end, which the peer may write as well.
        self.has_room(segment) || tx.asks() != 0 || self.end.has(flag::WRITE_SHUT)
    }

    /// Takes note of the kernel's events on the stream. True: they may change what a read gives.
    pub fn note_kernel(&self, kernel: Ready) -> bool {
        if self.end.rx_path() != Path::Ring {
            return kernel.intersects(Ready::IN | Ready::RDHUP | Ready::HUP | Ready::ERR);
        }
        let mut news = false;
        // What the program shut the kernel tells as it does the peer's doing.
        let ours = self.end.has(flag::READ_SHUT);
        if kernel.intersects(Ready::RDHUP) && !ours {
            self.end.set(flag::KERNEL_EOF);
            news = true;
        }
        if kernel.intersects(Ready::HUP) && !ours || kernel.intersects(Ready::ERR) {
            self.end.set(flag::KERNEL_DEAD);
            news = true;
        }
        news
    }

    /// Is there a byte to read, a room to write, or an end? As cheap as can be, for polling many connections: false
    /// may be wrong only about what the kernel alone knows. Wherever `ready` has something, true, or who asks both goes
    /// round for ever.
    #[inline]
    pub fn has_news(&self, want_out: bool) -> bool {
        let Some(segment) = self.segment() else {
            return true;
        };
        if self.end.rx_path() != Path::Ring {
            return true;
        }
        let rx = segment.rx();
        rx.published() != rx.position()
            || rx.flags() != 0
            || self.end.has(flag::KERNEL_ENDS)
            || rx.is_moved()
            || segment.tx().asks() & layout::PLEASE_DOWN != 0
            || want_out && (self.end.tx_path() != Path::Ring || self.takes_more(segment))
    }

    /// Before sleeping on the descriptor in poll: bells off, armed, room asked for. Look at `ready` after this, and
    /// disarm in the end.
    pub fn arm(&self, k: &impl Kernel) {
        let Some(segment) = self.segment() else {
            return;
        };
        // Bells first: one that tells of room is for what is asked after it.
        let _ = self.take_bells(k);
        self.ask_for_room(segment);
        segment.rx().arm(self.end.tcp_rx.load(Relaxed));
    }

    fn ask_for_room(&self, segment: &gm::Segment) {
        if self.end.tx_path() == Path::Ring && !self.has_room(segment) {
            segment.tx().want_space(layout::WANT_BELL);
        }
    }

    /// How long, in µs, a sleep of somebody who waits for room may last before this end is looked at again. `None`: as long
    /// as it likes, for the way for bells is open, or there is room. Else the peer may be reading and cannot ring, because
    /// its own direction is not on the ring; or it does not read at all, see [`Conn::mind_stall`].
    pub fn room_slice_us(&self) -> Option<u64> {
        const SILENT_US: u64 = 1_000;
        let segment = self.segment()?;
        if self.end.tx_path() != Path::Ring || self.has_room(segment) {
            return None;
        }
        match self.end.rx_path() {
            Path::Ring => Some(crate::send::ROOM_SLICE_US),
            Path::Tcp => Some(SILENT_US),
        }
    }

    /// How long, in µs, a sleep of an edge-triggered waiter who is rung for may last before this end is looked at again, while bytes
    /// from before a switch are unread: for what the peer puts into the ring meanwhile there is no bell, which would lie behind
    /// them. They may be read by another call at any moment.
    pub fn unread_slice_us(&self, k: &impl Kernel) -> Option<u64> {
        let rx = self.segment()?.rx();
        let may_come = self.end.rx_path() == Path::Tcp && rx.asked() & layout::PLEASE_DOWN == 0;
        (may_come && k.queued() > 0).then_some(crate::send::ROOM_SLICE_US)
    }

    /// TCP's buffers are larger than a ring. If it is full and the peer does not read, it may be waiting for us just so, and
    /// what we send goes over TCP until it has read that.
    pub(crate) fn mind_stall(&self, k: &impl Kernel, segment: &gm::Segment) {
        if self.end.tx_path() != Path::Ring || self.has_room(segment) {
            return;
        }
        let (head, now) = (segment.tx().peer_head(), k.now_us());
        if self.full_head.swap(head, Relaxed) != head {
            self.full_since_us.store(now, Relaxed);
            return;
        }
        let waited = now.saturating_sub(self.full_since_us.load(Relaxed));
        if waited >= self.stall_patience_us(segment) {
            self.full_head.store(u64::MAX, Relaxed);
            self.send_over_tcp(k, None);
        }
    }

    /// Both full and unread: each may be waiting for the other to read. Else it is a slow reader, very likely.
    pub(crate) fn stall_patience_us(&self, segment: &gm::Segment) -> u64 {
        let nothing_unread = segment.rx().readable() == Ok(0) && self.end.rx_path() == Path::Ring;
        if nothing_unread {
            crate::send::STALLED_US
        } else {
            crate::send::ROOM_SLICE_US
        }
    }

    /// As [`Conn::arm`] for a member of an epoll set, which the kernel wakes by edges: look at it again after this.
    /// Needs no disarming.
    pub fn arm_edge(&self, k: &impl Kernel) {
        self.arm_instead(k, 0);
    }

    /// As [`Conn::arm_edge`], for a waiter that has the event queue `queue`.
    pub fn arm_instead(&self, k: &impl Kernel, queue: u64) {
        /// Bells may lie on the stream for a while, they cost a call to take. But what is not read is acknowledged late
        /// (40 ms), and TCP sends only 10 segments ahead of that: the next bell would wait.
        const BELLS_LEFT: usize = 4;
        let Some(segment) = self.segment() else {
            return;
        };
        let rx = segment.rx();
        if rx.bells_untaken() > BELLS_LEFT {
            let _ = self.take_bells(k);
        }
        self.ask_for_room(segment);
        if let Some((other, entry)) = rx.arm_edge(self.end.tcp_rx.load(Relaxed), queue) {
            let _ = k.list(other, entry);
        }
    }

    /// As [`Conn::arm_edge`] for a member of a waiter with an event queue: it is listed there, as `entry`, until
    /// [`Conn::look_yourself`]. `alone`: no other waiter of this process waits for this end. False: with another one, or another
    /// process that holds the socket, it is not listed, and must be armed (as [`Conn::arm_instead`] does).
    pub fn listen(
        &self,
        k: &impl Kernel,
        queue: u64,
        entry: u32,
        alone: impl Fn() -> bool,
    ) -> bool {
        let Some(segment) = self.segment() else {
            return true;
        };
        let alone = || alone() && self.end.refs.load(Relaxed) == 1;
        if !alone() {
            return false;
        }
        let rx = segment.rx();
        if rx.bells_untaken() > 0 {
            let _ = self.take_bells(k);
        }
        self.ask_for_room(segment);
        let listens = rx.listen(queue, entry, self.end.tcp_rx.load(Relaxed));
        if listens && !alone() {
            // The other one may have armed it just before.
            self.arm_instead(k, queue);
            return false;
        }
        listens
    }

    /// The waiter looks at this end by itself from now on.
    #[inline]
    pub fn look_yourself(&self) {
        if let Some(segment) = self.segment() {
            segment.rx().look_yourself();
        }
    }

    /// The waiter of `queue` waits for this end no more.
    pub fn leave_queue(&self, queue: u64) {
        if let Some(segment) = self.segment() {
            segment.rx().leave_queue(queue);
        }
    }

    /// As [`Conn::arm_edge`] for a waiter whose edge comes back only when the stream has been read: bells off first.
    pub fn arm_edge_clean(&self, k: &impl Kernel) {
        let _ = self.take_bells(k);
        self.arm_edge(k);
    }

    /// The only waiter of this end, which armed it as [`Conn::arm_edge`] does, is awake: doorbells off the stream, if the ring
    /// is empty, and no more of them.
    pub fn stay_awake(&self, k: &impl Kernel) {
        let _ = self.take_bells(k);
        if let Some(segment) = self.segment() {
            segment.rx().disarm_edge();
        }
    }

    /// Has the peer counted a doorbell that was not taken off the stream, or is it about to?
    pub fn bell_is_due(&self) -> bool {
        self.segment().is_some_and(|s| s.rx().bell_is_due())
    }

    /// The only waiter of this end is awake: a doorbell that is not due yet need not be rung.
    pub fn spare_bell(&self) {
        if let Some(segment) = self.segment() {
            segment.rx().spare_bell();
        }
    }

    pub fn disarm(&self) {
        if let Some(segment) = self.segment() {
            segment.rx().disarm();
        }
    }

    /// What an edge-triggered waiter compares: (arrivals, times that room ran out). A change of either is an edge if the
    /// readiness is there.
    pub fn edges(&self) -> (u64, u32) {
        let Some(segment) = self.segment() else {
            return (0, 0);
        };
        let rx = segment.rx();
        // A reset is none before the kernel says so: what it came with in the ring may be reported before that.
        let over = rx.finished() || self.end.has(flag::KERNEL_EOF | flag::KERNEL_DEAD);
        let reset = self.is_reset(segment);
        let shut = self.end.has(flag::READ_SHUT);
        let passed = self.passed();
        let down = rx.down_at(passed).is_some();
        // With the program's own end to it, the other way is over as well: HUP, which the kernel wakes for.
        let hung_up = (over || shut) && self.end.has(flag::WRITE_SHUT);
        let published = self.published(segment) & ((1 << 59) - 1);
        let arrivals = published
            | u64::from(over) << 63
            | u64::from(shut) << 62
            | u64::from(down) << 61
            | u64::from(reset) << 60
            | u64::from(hung_up) << 59;
        (arrivals, self.fulls.load(Relaxed))
    }

    /// Bytes that the peer put into the ring so far, counted on over the switches: a lap that a switch skips is no news, nor is
    /// coming to a switch.
    fn published(&self, segment: &gm::Segment) -> u64 {
        let (rx, passed) = (segment.rx(), self.passed());
        // Every switch up but the first skips a lap, once the writer has made it.
        let made = match self.end.rx_path() {
            Path::Tcp if rx.up_at(passed).is_some() => passed + 1,
            _ => passed,
        };
        let laps = u64::from(made.saturating_sub(1) / 2);
        rx.published()
            .wrapping_sub(laps.wrapping_mul(rx.bytes.capacity()))
    }

    /// Bytes that a send would take now without waiting; on TCP, a good guess.
    pub fn room(&self, k: &impl Kernel) -> usize {
        const ON_STREAM: usize = 4096;
        match (self.end.tx_path(), self.segment()) {
            (Path::Ring, Some(segment)) => segment
                .tx()
                .room(&self.write_cache, usize::MAX)
                .unwrap_or(0),
            _ if k.poll().intersects(Ready::OUT) => ON_STREAM,
            _ => 0,
        }
    }

    /// SIOCOUTQ, but for what the kernel has.
    pub fn unsent_bytes(&self) -> usize {
        match (self.end.resend.load(Relaxed).checked_sub(1), self.segment()) {
            (Some(next), Some(segment)) => {
                let rest = self.end.resend_to.load(Relaxed).wrapping_sub(next);
                rest.min(segment.tx().bytes.all()) as usize
            }
            _ => self.held_in_ring(),
        }
    }

    /// What TCP would still hold back. A reader's buffer takes most of a ring at once; what is beyond waits.
    pub(crate) fn held_in_ring(&self) -> usize {
        let Some(segment) = self.segment() else {
            return 0;
        };
        let tx = segment.tx();
        let held = tx.window() as usize / 4 * 3;
        (tx.unread().unwrap_or(0) as usize).saturating_sub(held)
    }

    /// Has the peer ended its sending, by a word in the ring or by the kernel's?
    pub fn peer_has_ended(&self) -> bool {
        let said = self.segment().is_some_and(|s| s.rx().flags() != 0);
        said || self.end.has(flag::KERNEL_EOF | flag::KERNEL_DEAD)
    }

    /// Is the ring read to its end? The doorbell that told of it stays on the stream, for others who sleep there.
    pub(crate) fn is_at_rings_end(&self) -> bool {
        let at_end = |rx: ring::Rx<'_>| rx.finished() && rx.readable() == Ok(0);
        let on_ring = self.end.rx_path() == Path::Ring;
        on_ring && self.segment().is_some_and(|s| at_end(s.rx()))
    }

    /// Has the peer said, or the kernel for it, that nothing more will come?
    pub fn read_is_over(&self) -> bool {
        self.end.has(flag::KERNEL_ENDS)
    }

    /// FIONREAD: bytes that can be read now.
    pub fn readable_bytes(&self, k: &impl Kernel) -> usize {
        let Some(segment) = self.segment() else {
            return k.queued();
        };
        let rx = segment.rx();
        let in_ring = rx.readable().unwrap_or(0);
        let passed = self.passed();
        match self.end.rx_path() {
            Path::Ring => match rx.down_at(passed) {
                None => in_ring,
                // Behind the last bells there is payload on the stream.
                Some((_, tcp)) => {
                    let bells = tcp.saturating_sub(self.end.tcp_rx.load(Relaxed)) as usize;
                    in_ring + k.queued().saturating_sub(bells)
                }
            },
            Path::Tcp => {
                let queued = k.queued();
                let Some(up) = rx.up_at(passed) else {
                    return queued;
                };
                let left = up.saturating_sub(self.end.tcp_rx.load(Relaxed)) as usize;
                // What lies behind the stretch before the ring counts when all of that is here, but for bells.
                let Some(behind) = queued.checked_sub(left) else {
                    return queued;
                };
                match rx.down_at(passed) {
                    None => left + in_ring,
                    Some((_, tcp)) => left + behind.saturating_sub(tcp.saturating_sub(up) as usize),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Pair;
    use crate::waiting::set::CAME_HERE;

    const BEFORE: &[u8] = b"before the switch";
    const BEHIND: &[u8] = b"behind it";

    /// Bytes before the switch are unread when a waiter of edges arms, and others are put into the ring.
    fn armed_before_the_switch() -> Pair {
        let pair = Pair::with_unread(BEFORE);
        let (conn, socket) = (&pair.client.conn, &pair.client.socket);
        conn.arm_edge(socket);
        assert_eq!(pair.server.send(BEHIND), BEHIND.len());
        assert_eq!(pair.server.conn.end.tx_path(), Path::Ring);
        assert_eq!(conn.end.rx_path(), Path::Tcp);
        // No doorbell lies behind them.
        assert_eq!(socket.queued(), BEFORE.len());
        pair
    }

    #[test]
    fn who_waits_for_edges_is_told_when_another_call_comes_to_the_ring() {
        let pair = armed_before_the_switch();
        let (client, told) = (&pair.client, &CAME_HERE);
        assert_eq!(client.recv(BEFORE.len() - 1), BEFORE.len() - 1);
        client.conn.pass_switch(&client.socket);
        assert_eq!(told.get(), 0);
        assert_eq!(client.recv(1), 1);
        client.conn.pass_switch(&client.socket);
        assert_eq!(client.conn.end.rx_path(), Path::Ring);
        assert_eq!(told.get(), 1);
        // From here on he is rung for.
        assert_eq!(client.recv(100), BEHIND.len());
        assert_eq!(client.socket.queued(), 0);
        assert_eq!(pair.server.send(BEHIND), BEHIND.len());
        assert_eq!((client.socket.queued(), told.get()), (1, 1));
    }

    #[test]
    fn nobody_is_told_who_does_not_wait_for_edges() {
        let pair = Pair::with_unread(BEFORE);
        let client = &pair.client;
        assert_eq!(pair.server.send(BEHIND), BEHIND.len());
        assert_eq!(client.recv(BEFORE.len()), BEFORE.len());
        assert_eq!(client.recv(100), BEHIND.len());
        assert_eq!(CAME_HERE.get(), 0);
    }

    #[test]
    fn a_sleep_for_edges_before_unread_bytes_is_a_slice() {
        let pair = armed_before_the_switch();
        let client = &pair.client;
        let slice = || client.conn.unread_slice_us(&client.socket);
        assert_eq!(slice(), Some(crate::send::ROOM_SLICE_US));
        assert_eq!(client.recv(BEFORE.len()), BEFORE.len());
        client.conn.pass_switch(&client.socket);
        assert_eq!(slice(), None);
    }
}
