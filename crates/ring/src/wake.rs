//! Sleep and wake (INV-5), with the doorbell being one byte on the connection's TCP stream:
//!
//! ```text
//!   reader                                     writer
//!   ring empty? bells_taken += n   (rmw)       copy bytes in
//!   ring still empty? take n bells off TCP     publish tail            (read-modify-write)
//!   sleepers += 1          (rmw)               sleepers != 0 ?
//!   ring still empty?  ──▶ sleep on TCP        and no bell under way (bells_sent <= bells_taken)?
//!   ...                                            ──▶ bells_sent += 1, send one byte
//!   sleepers -= 1
//! ```
//!
//! An edge-triggered waiter (a member of an epoll set) sets `edge` instead of counting itself in `sleepers`; the
//! writer notes that it rings for it and does so, even if bells lie on the stream already, for those give no new edge. Who
//! takes bells off the stream sets it anew, for that one may not have been seen. A waiter with an event queue asks to be listed
//! there instead ([`layout::EDGE_LISTENS`], see `events`): no byte is sent for it.
//!
//! 1. Bells are taken off TCP only while the ring is empty, under the reading end's lock: as long as there are bytes
//!    after a bell, the descriptor stays readable for every waiter, ours or foreign.
//! 2. A bell under way is as good as a new one, because it will be seen before anybody sleeps again.
//! 3. A bell is counted before it is sent: once it can be seen on the stream, it can be taken.
//! 4. Both sides store first and look second, with a full barrier between: one of them sees the other.

use crate::layout;
use crate::stream::{Rx, SpaceWanted, Tx};
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::barrier_after_rmw;

impl Tx<'_> {
    /// After `publish` (or `finish`): does somebody who does not look by himself wait for it? See [`Tx::listener`] and
    /// [`Tx::bell_due`] then.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        let wait = &self.direction.wait;
        let edge = wait.edge.load(Relaxed);
        edge == layout::EDGE_LISTENS
            || edge == layout::EDGE_ARMED
            || wait.sleepers.load(Relaxed) != 0
    }

    /// The event queue in which the reading end is to be listed, and as what.
    pub fn listener(&self) -> Option<(u64, u32)> {
        let wait = &self.direction.wait;
        let listens = wait.edge.load(Acquire) == layout::EDGE_LISTENS;
        listens.then(|| (wait.queue.load(Relaxed), wait.entry.load(Relaxed)))
    }

    /// That queue can't be reached from here: a doorbell it is.
    pub fn ring_instead(&self) {
        let edge = &self.direction.wait.edge;
        let _ = edge.compare_exchange(layout::EDGE_LISTENS, layout::EDGE_ARMED, AcqRel, Relaxed);
    }

    /// It was not rung, though [`Tx::bell_due`] said so.
    pub fn not_rung(&self) {
        let edge = &self.direction.wait.edge;
        let _ = edge.compare_exchange(layout::EDGE_RUNG, layout::EDGE_ARMED, AcqRel, Relaxed);
    }

    /// After `publish` (or `finish`): must a doorbell be sent?
    #[inline]
    pub fn bell_due(&self) -> bool {
        let wait = &self.direction.wait;
        let armed = wait.edge.load(Relaxed) == layout::EDGE_ARMED;
        if !armed && wait.sleepers.load(Relaxed) == 0 {
            return false;
        }
        self.sleeper_needs_bell()
    }

    /// Somebody sleeps. An edge-triggered waiter that has not come to the switch gets its edge from the payload before it,
    /// and needs no bell. Another sleeper may: a second reader can have taken that payload before it looked.
    #[cold]
    fn sleeper_needs_bell(&self) -> bool {
        let wait = &self.direction.wait;
        let armed = layout::EDGE_ARMED;
        let edge = !self.reader_is_before_switch()
            && wait
                .edge
                .compare_exchange(armed, layout::EDGE_RUNG, AcqRel, Relaxed)
                .is_ok();
        edge || self.has_sleepers() && !self.bell_under_way()
    }

    /// Had the reading end not come to the switch yet when it last went to sleep? A bell would lie behind unread payload then,
    /// where it could not be taken off by who gives the stream away.
    pub fn reader_is_before_switch(&self) -> bool {
        let at = self.direction.wait.at.load(Acquire);
        at < self.direction.writer.up.load(Relaxed)
    }

    /// Does somebody wait in the kernel for this direction's bytes?
    pub fn has_sleepers(&self) -> bool {
        self.direction.wait.sleepers.load(Relaxed) != 0
    }

    /// Is a doorbell on its way that the reader has not taken yet?
    pub fn bell_under_way(&self) -> bool {
        let taken = self.direction.wait.bells_taken.load(Acquire);
        let sent = self.direction.writer.bells_sent.load(Relaxed);
        (sent.wrapping_sub(taken) as i32) > 0
    }

    /// A doorbell byte is about to be sent for this direction's reader. Caller holds the writing end's lock. Look at
    /// [`Tx::asks`] after this, before it is sent: who asked for no more bells then looks how many were counted.
    pub fn count_bell(&self) {
        let sent = &self.direction.writer.bells_sent;
        sent.swap(sent.load(Relaxed).wrapping_add(1), AcqRel);
        barrier_after_rmw();
    }

    /// It was not sent.
    pub fn uncount_bell(&self) {
        let sent = &self.direction.writer.bells_sent;
        sent.store(sent.load(Relaxed).wrapping_sub(1), Release);
    }

    /// Asks the reader to wake us when it has made room; then look at `room` again before sleeping.
    /// Returns the value of `space_seq` to sleep on.
    pub fn want_space(&self, kinds: SpaceWanted) -> u32 {
        let seq = self.direction.wait.space_seq.load(Acquire);
        self.direction.wait.space_wanted.fetch_or(kinds, AcqRel);
        barrier_after_rmw();
        seq
    }
}

impl Rx<'_> {
    /// After bytes were taken: does the writer wait for room, and is there enough to wake it for? A quarter of the
    /// ring at least, so that a full ring does not cost a wake-up per read. What overflows is as good as read, so that the
    /// writer comes back to the ring; one that waits looks now and then, if the reader gets no further.
    #[inline]
    pub fn space_due(&self) -> SpaceWanted {
        let wait = &self.direction.wait;
        if wait.space_wanted.load(Relaxed) == 0 {
            return 0;
        }
        let used = self.published().wrapping_sub(self.position());
        let quarter = self.direction.window(self.bytes.capacity()) / 4;
        let few = match self.direction.turns().overflows() {
            true => quarter,
            false => quarter * 3,
        };
        if used > few {
            return 0;
        }
        let wanted = wait.space_wanted.swap(0, AcqRel);
        wait.space_seq.fetch_add(1, AcqRel);
        wanted
    }

    /// Before `n` bells, which are known to be on the TCP stream, are taken off it. Caller holds the reading end's lock,
    /// the direction is on the ring by its `passed` switches.
    ///
    /// True: counted, take them. There is nothing to read, and whoever publishes from now on does not take these bells
    /// for under way any more. False: there is news that may count on these bells. They must stay on the stream, for
    /// everybody else who sleeps there.
    pub fn claim_bells(&self, n: u32, passed: u32) -> bool {
        let wait = &self.direction.wait;
        if wait.edge.load(Relaxed) == layout::EDGE_RUNG {
            // An edge-triggered waiter may not have seen its bell yet, and will not when it is gone.
            wait.edge.swap(layout::EDGE_ARMED, AcqRel);
        }
        wait.bells_taken.fetch_add(n, AcqRel);
        barrier_after_rmw();
        if self.published() == self.position()
            && self.down_at(passed).is_none()
            && self.flags() == 0
        {
            return true;
        }
        self.unclaim_bells(n);
        false
    }

    /// So many bells fewer than claimed came off the stream.
    pub fn unclaim_bells(&self, n: u32) {
        self.direction.wait.bells_taken.fetch_sub(n, AcqRel);
    }

    /// About to sleep, having come to position `at` of the TCP stream: look at the ring (and `down_at`, `finished`) once more
    /// after this.
    pub fn arm(&self, at: u64) {
        self.direction.wait.at.fetch_max(at, Relaxed);
        self.direction.wait.sleepers.fetch_add(1, AcqRel);
        barrier_after_rmw();
    }

    /// As [`Rx::arm`] for an edge-triggered waiter; needs no disarming. `own`: its event queue, in which it does not want to be
    /// listed now; 0: it has none. Gives the queue of another waiter, and its entry there, who is not listed any more: he must be
    /// told, for he may not look at the stream.
    #[must_use]
    pub fn arm_edge(&self, at: u64, own: u64) -> Option<(u64, u32)> {
        let wait = &self.direction.wait;
        wait.at.fetch_max(at, Relaxed);
        let entry = wait.entry.load(Relaxed);
        let mut other = None;
        match wait.queue.load(Relaxed) {
            0 | layout::MANY_QUEUES => {}
            was if was == own => {
                let _ = wait.queue.compare_exchange(own, 0, AcqRel, Relaxed);
            }
            was => {
                wait.queue.swap(layout::MANY_QUEUES, AcqRel);
                barrier_after_rmw();
                other = Some((was, entry));
            }
        }
        wait.edge.swap(layout::EDGE_ARMED, AcqRel);
        barrier_after_rmw();
        other
    }

    /// From now on it is listed as `entry` of the event queue `queue`, with the TCP stream read to position `at`. Look at the
    /// ring after this, and whether nobody else waits for this end. False: somebody does.
    pub fn listen(&self, queue: u64, entry: u32, at: u64) -> bool {
        let wait = &self.direction.wait;
        wait.at.fetch_max(at, Relaxed);
        let was = wait.queue.load(Relaxed);
        let free = || wait.queue.compare_exchange(0, queue, AcqRel, Relaxed);
        if was != queue && (was != 0 || free().is_err()) {
            return false;
        }
        wait.entry.store(entry, Relaxed);
        wait.edge.swap(layout::EDGE_LISTENS, AcqRel);
        barrier_after_rmw();
        // Another waiter may have come in between: it stores these two the other way round.
        wait.queue.load(Relaxed) == queue
    }

    /// An edge-triggered waiter is awake and looks by itself: no bell for it before it arms anew.
    pub fn disarm_edge(&self) {
        let edge = &self.direction.wait.edge;
        if matches!(edge.load(Relaxed), layout::EDGE_ARMED | layout::EDGE_RUNG) {
            edge.swap(0, AcqRel);
        }
    }

    /// As [`Rx::disarm_edge`], but a bell that is due stays known ([`Rx::bell_is_due`]).
    pub fn spare_bell(&self) {
        let edge = &self.direction.wait.edge;
        let _ = edge.compare_exchange(layout::EDGE_ARMED, 0, AcqRel, Relaxed);
    }

    /// Does an edge-triggered waiter rely on being rung for?
    pub fn is_edge_armed(&self) -> bool {
        self.direction.wait.edge.load(Relaxed) == layout::EDGE_ARMED
    }

    /// This end is looked at from now on, so it need not be listed.
    #[inline]
    pub fn look_yourself(&self) {
        let edge = &self.direction.wait.edge;
        if edge.load(Relaxed) == layout::EDGE_LISTENS {
            let _ = edge.compare_exchange(layout::EDGE_LISTENS, 0, Relaxed, Relaxed);
        }
    }

    /// The waiter of `queue` waits for this end no more.
    pub fn leave_queue(&self, queue: u64) {
        let word = &self.direction.wait.queue;
        if word.load(Relaxed) == queue {
            self.look_yourself();
            let _ = word.compare_exchange(queue, 0, AcqRel, Relaxed);
        }
    }

    /// Bells that the writer has counted and that are still on the stream (or about to be).
    pub fn bells_untaken(&self) -> usize {
        let sent = self.direction.writer.bells_sent.load(Acquire);
        let taken = self.direction.wait.bells_taken.load(Relaxed);
        usize::try_from(sent.wrapping_sub(taken) as i32).unwrap_or(0)
    }

    /// Is a bell on the stream, or did the writer find that one is due and has not counted it yet?
    pub fn bell_is_due(&self) -> bool {
        self.direction.wait.edge.load(Acquire) == layout::EDGE_RUNG || self.bells_untaken() > 0
    }

    pub fn disarm(&self) {
        self.direction.wait.sleepers.fetch_sub(1, AcqRel);
    }

    /// Does the writer wait for room, and for a doorbell that tells of it?
    pub fn wants_bell(&self) -> bool {
        self.direction.wait.space_wanted.load(Relaxed) & layout::WANT_BELL != 0
    }

    /// Bells that were taken off the stream for good.
    pub fn count_taken(&self, n: u32) {
        self.direction.wait.bells_taken.fetch_add(n, AcqRel);
    }

    /// Wakes a writer that sleeps for room whatever the fill, because the reading end goes away or changes.
    pub fn release_writer(&self) -> SpaceWanted {
        let wait = &self.direction.wait;
        let wanted = wait.space_wanted.swap(0, AcqRel);
        wait.space_seq.fetch_add(1, AcqRel);
        wanted
    }
}
