//! The way back to TCP, of one direction or of both.
//!
//! A sender that goes back to TCP *moves* what is unread in its ring there first: in one step it stops the ring's reader
//! and learns where that had come to, and then puts the rest on the stream, where everything that follows goes as well. So
//! at any moment a direction's unread bytes are on the stream before a switch, or behind it in the ring, never the other
//! way round, and whoever can read the stream to its end gets all of them.
//!
//! A receiver that needs the stream (because somebody will read it who does not know the ring) asks, and then waits until
//! it is *pure*: nothing unread in the ring, no doorbell on the stream, and none to come. The sender answers
//! 1. in any call on the connection, or from the call in which it waits (a doorbell wakes it);
//! 2. in shutdown, close and exit, before they take effect;
//! 3. by somebody's hand who may use its descriptor (`help`);
//! 4. never, if it is gone. Then the rest is in the ring alone: [`Given::Orphaned`].
//!
//! Whoever asked sees either that the ring is empty, or bytes that he waits for: the sender publishes first and looks at
//! what is asked then, as for doorbells (INV-5).

use gm::end::flag;
use gm::{Node, Path, Reason, Segment, State};
use ring::sync::Ordering::{AcqRel, Relaxed};
use ring::{Rx, Tx, layout};

use crate::lock::Guard;
use crate::send::has_shut_both_ways;
use crate::{Conn, Fault, Kernel, Ready};

/// How often a receiver that gives the connection away looks whether its peer has answered, in µs.
const ANSWER_SLICE_US: u64 = 500;
/// A peer that has not answered for so long, in µs, is busy elsewhere or stopped: time for help.
const HELP_AFTER_US: u64 = 3_000;
/// A peer that is moving its unread bytes, and gets no further for so long, in µs, waits for a reader of the stream.
const MOVED_AFTER_US: u64 = 200_000;
/// Bytes moved at once.
const PIECE: usize = 2048;

/// What [`Conn::hand_back`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// Whoever reads the kernel's stream gets what is unread, and what follows.
    Stream,
    /// The peer is gone and has left unread bytes in the ring: only [`Conn::recv`] reaches them.
    Orphaned,
    /// The program has shut both ways. The peer lives, but whatever it put on the stream now would reset it: only
    /// [`Conn::recv`] reaches what is unread in the ring.
    Deaf,
    /// Doorbells lie behind payload that is unread, and nobody can take them off: the stream may not be read any further.
    Spoilt,
}

impl Conn {
    /// From here on this end sends over TCP; what is unread goes there first. Caller holds the sending lock; the direction
    /// is on the ring. `why`: for good; else it may come back.
    #[cold]
    pub(crate) fn switch_down(&self, k: &impl Kernel, tx: Tx<'_>, why: Option<Reason>) {
        let end = self.end;
        if let Ok(segment) = self.rings()
            && segment.rx().wants_bell()
        {
            // The peer's writer waits for room in the other ring. Once switched, nothing can ring for it.
            self.ring_for_room(k, segment);
        }
        // With a doorbell unread, the death of this process would be a reset for its kernel, and what that has not sent yet
        // would be dropped.
        self.advance(k);
        self.leave_no_bell(k);
        let tcp = end.tcp_tx.load(Relaxed);
        let switched = {
            // Not while somebody takes doorbells by their count: see `take_bells`.
            let _rx = self.lock_rx(k);
            match self.peer_is_deaf() {
                true => Ok(tx.switch_down_behind(tcp)),
                false => tx.switch_down(tcp),
            }
        };
        let Ok((from, to)) = switched else {
            self.corrupt();
            return;
        };
        end.resend_to.store(to, Relaxed);
        end.resend.store(from + 1, Relaxed);
        end.tx_switches.fetch_add(1, AcqRel);
        if let Some(why) = why {
            end.keep_tcp(why);
        }
        // Some may have been counted since; from here on who counts one sees that we move.
        self.await_no_bell(k);
        self.send_rest(k, tx);
    }

    /// Has the peer shut both ways, and its kernel's socket as well ([`Conn::shuts_kernel_half`])? Whatever is sent there, its kernel
    /// answers with a reset.
    pub(crate) fn peer_is_deaf(&self) -> bool {
        let said = |rx: Rx<'_>| !rx.writer_is_on_ring() || rx.readable() == Ok(0);
        self.segment()
            .is_some_and(|s| has_shut_both_ways(s) && said(s.rx()))
    }

    /// Puts what is to be moved on the stream. True: all of it is there. Caller holds the sending lock.
    pub(crate) fn send_rest(&self, k: &impl Kernel, tx: Tx<'_>) -> bool {
        let end = self.end;
        let mut widened = None;
        let mut piece = [0_u8; PIECE];
        // A stream that is reset takes nothing more, and who reads it is told by the error, which a send would take off.
        let dead = k.poll().intersects(Ready::HUP | Ready::ERR);
        if dead && end.resend.load(Relaxed) != 0 {
            end.set(flag::KERNEL_DEAD);
            end.resend_to
                .store(end.resend.load(Relaxed).wrapping_sub(1), Relaxed);
        }
        // No more than a ring holds, whatever becomes of these words meanwhile.
        let mut most = tx.bytes.capacity();
        while let Some(at) = end.resend.load(Relaxed).checked_sub(1) {
            let left = end.resend_to.load(Relaxed).wrapping_sub(at);
            if left > most {
                end.resend.store(0, Relaxed);
                self.corrupt();
                break;
            }
            let n = piece.len().min(left as usize);
            if n == 0 {
                // In this order: who dies in between leaves nothing undone.
                tx.all_moved();
                end.resend.store(0, Relaxed);
                break;
            }
            tx.bytes.get(at, &mut piece[..n]);
            match k.send(&piece[..n]) {
                Ok(sent) => {
                    self.count_tcp(sent as u64, 0);
                    most -= sent as u64;
                    let next = at.wrapping_add(sent as u64);
                    end.resend.store(next.wrapping_add(1), Relaxed);
                }
                // These bytes were taken from the program: room for them is not its business.
                Err(Fault::WouldBlock) if widened.is_none() => {
                    widened = k.widen_send(left as usize);
                    if widened.is_none() {
                        return false;
                    }
                }
                Err(Fault::WouldBlock | Fault::Interrupted) => break,
                Err(f) => {
                    if matches!(f, Fault::Reset | Fault::Pipe) {
                        end.set(flag::UNMOVED);
                    }
                    self.kernel_fault(f);
                    tx.all_moved();
                    end.resend.store(0, Relaxed);
                    break;
                }
            }
        }
        if let Some(was) = widened {
            k.restore_send(was);
        }
        let done = end.resend.load(Relaxed) == 0;
        if done && end.has(flag::WRITE_SHUT) {
            let _ = k.shutdown(false, true);
        }
        done
    }

    /// The sending lock, with everything in order that a dead holder left half done.
    #[inline]
    pub(crate) fn lock_tx(&self, k: &impl Kernel) -> Guard<'_> {
        let guard = self.lock(&self.end.tx_lock, k);
        if guard.is_inherited()
            && let Some(segment) = self.segment()
        {
            self.after_dead_holder(k, segment.tx());
        }
        guard
    }

    /// The last holder of the sending lock died with it: puts right what it left half done. Caller holds the lock now.
    #[cold]
    fn after_dead_holder(&self, k: &impl Kernel, tx: Tx<'_>) {
        let end = self.end;
        let mut uncounted = 0;
        if let Some((sent, _)) = k.positions() {
            // It may have sent bytes, and not have counted them.
            uncounted = sent.wrapping_sub(end.tcp_tx.load(Relaxed));
            let (ring, tcp) = tx.direction.last_down();
            let moved = sent.wrapping_sub(tcp);
            if end.resend.load(Relaxed) != 0
                && end.resend_to.load(Relaxed).wrapping_sub(ring) >= moved
            {
                end.resend
                    .store(ring.wrapping_add(moved).wrapping_add(1), Relaxed);
            }
            end.tcp_tx.store(sent, Relaxed);
        }
        if tx.switches() != end.tx_switches.load(Relaxed) {
            // Between saying so and noting it.
            end.resend_to.store(tx.position(), Relaxed);
            end.resend
                .store(tx.direction.last_down().0.wrapping_add(1), Relaxed);
            end.tx_switches.store(tx.switches(), Relaxed);
        } else if end.tx_path() == Path::Ring && tx.is_moved() {
            self.switch_down(k, tx, None);
        } else if end.tx_path() == Path::Ring {
            // A bell is counted for its reader, sent, noted here, and counted among the stream's bytes, in this order.
            let noted = tx.bells_counted() == end.bells_sent.load(Relaxed) as u32;
            if !noted && uncounted == 0 {
                tx.uncount_bell();
            }
            end.bells_sent.store(tx.bells_counted().into(), Relaxed);
            // It may have published, and not have rung.
            self.list(k, tx);
            if !self.ring_bell(k) && tx.finished() {
                self.switch_down(k, tx, None);
            }
        }
    }

    /// Hands the connection back, because of a call that is not carried (`why`), and returns when whoever reads the kernel's
    /// stream from now on gets everything. That takes as long as bytes are unread and the peer lives, but makes no call;
    /// `help` is called now and then meanwhile, to act for it. A connection that is not promoted yet never will be.
    pub fn hand_back(
        &self,
        node: &Node,
        k: &impl Kernel,
        why: Reason,
        help: &mut dyn FnMut(),
    ) -> Given {
        if !self.begin_back(node, k, why) {
            return Given::Stream;
        }
        let Some(segment) = self.segment() else {
            return Given::Stream;
        };
        self.ask_and_switch(node, k, segment, why, help);
        let rx = segment.rx();
        let since = k.now_us();
        let mut help_at = since + HELP_AFTER_US;
        while self.settle(k) && !self.is_pure(k, segment) {
            if self.is_being_renewed(k) {
                match self.await_renewal(k) {
                    true => continue,
                    false => return Given::Spoilt,
                }
            }
            if self.peer_is_gone(k) || self.peer_has_closed(segment) {
                return self.without_peer(k, rx);
            }
            if self.is_spoilt(rx) {
                return Given::Spoilt;
            }
            if self.is_deaf() {
                return Given::Deaf;
            }
            let now = k.now_us();
            let passed_down = self.end.rx_path() == Path::Tcp && rx.up_at(self.passed()).is_none();
            if passed_down && now - since > MOVED_AFTER_US {
                // It is the new reader's turn.
                break;
            }
            if now >= help_at {
                // The kernel's word of it may wait behind payload that found no room here, and does not come when our reading is shut.
                if self.peer_is_over(node) {
                    return self.without_peer(k, rx);
                }
                help();
                // Not so often that helping in vain costs much.
                help_at = now + (now - since).min(1_000_000);
            }
            let seq = rx.direction.wait.space_seq.load(Relaxed);
            let _ = k.sleep_word(&rx.direction.wait.space_seq, seq, ANSWER_SLICE_US);
        }
        Given::Stream
    }

    /// The peer rang while payload from before its switch to the ring was unread. That takes a reader which slept, is woken by
    /// that payload, reads a part of it, and gives the connection away with the rest.
    fn is_spoilt(&self, rx: Rx<'_>) -> bool {
        let passed = self.passed();
        match (rx.up_at(passed), rx.down_at(passed)) {
            (Some(up), Some((_, tcp))) => up != tcp && self.end.tcp_rx.load(Relaxed) < up,
            _ => false,
        }
    }

    /// Has the program shut both ways, and is all that it sent on the stream? Then the kernel's socket is shut as well.
    fn is_deaf(&self) -> bool {
        let end = self.end;
        let shut = end.has(flag::READ_SHUT) && end.has(flag::WRITE_SHUT);
        shut && end.tx_path() == Path::Tcp && end.resend.load(Relaxed) == 0
    }

    /// Did the peer's last holder close in good order? Then it has made its last change in the ring.
    fn peer_has_closed(&self, segment: &Segment) -> bool {
        segment.tx().asks() & layout::READ_CLOSED != 0 && segment.rx().finished()
    }

    /// Has the peer given the connection away, or is it at that? Then others may hold its socket who are not known to us.
    pub fn peer_asks_for_tcp(&self) -> bool {
        self.segment()
            .is_some_and(|s| s.tx().asks() & layout::PLEASE_DOWN != 0)
    }

    /// The peer's process has ended, or closed: nothing is put on the stream any more, though some may still be under way,
    /// and nothing into the ring.
    fn without_peer(&self, k: &impl Kernel, rx: Rx<'_>) -> Given {
        self.note_kernel(k.poll());
        let _rx = loop {
            // It may have answered before its end, since we looked.
            if !self.settle(k) {
                return Given::Stream;
            }
            let guard = self.lock_rx(k);
            if self.is_engaged() && !self.is_being_renewed(k) {
                break guard;
            }
            drop(guard);
            if !self.await_renewal(k) {
                return Given::Spoilt;
            }
        };
        let in_ring = match rx.is_moved() {
            // It may have died in the middle of it; how far it came shows at the stream's end.
            true => !rx.all_moved(),
            false => rx.readable() != Ok(0),
        };
        if in_ring {
            return Given::Orphaned;
        }
        self.take_last_bells(k, rx);
        if rx.bells_untaken() > 0 {
            // Behind payload.
            return Given::Orphaned;
        }
        self.stream_is_all();
        Given::Stream
    }

    /// What is to be read is on the stream alone, for good. With all that was sent there too, the engine is out of it.
    fn stream_is_all(&self) {
        let all_sent = self.end.tx_path() == Path::Tcp && self.end.resend.load(Relaxed) == 0;
        if all_sent && !self.owes_reset() {
            self.end.set_state(State::Back);
        }
    }

    /// A call of ours took a reset off the kernel's socket, which tells it once: the program is still to hear of it.
    fn owes_reset(&self) -> bool {
        self.end.has(flag::RESET_DUE) && !self.end.has(flag::RESET_TOLD)
    }

    /// As [`Conn::hand_back`], for a caller that goes on receiving through the engine while the connection is engaged:
    /// what the peer has written, and writes before it sees that we ask, is read from the ring. Waits for nobody.
    pub fn ask_for_tcp(&self, node: &Node, k: &impl Kernel, why: Reason) {
        if self.begin_back(node, k, why)
            && let Some(segment) = self.segment()
        {
            self.ask_and_switch(node, k, segment, why, &mut || {});
            self.settle(k);
        }
    }

    /// True: there is a ring to come back from.
    fn begin_back(&self, node: &Node, k: &impl Kernel, why: Reason) -> bool {
        let end = self.end;
        end.keep_tcp(why);
        match end.state() {
            State::Offered => self.withdraw(node),
            State::Claimed if self.segment().is_some_and(|s| s.header().withdraw()) => {
                self.see_confirmation(k);
            }
            State::Claimed | State::Carried => {
                self.see_confirmation(k);
                return true;
            }
            _ => {}
        }
        false
    }

    /// Asks the peer to send over TCP, and does so itself.
    fn ask_and_switch(
        &self,
        node: &Node,
        k: &impl Kernel,
        segment: &Segment,
        why: Reason,
        help: &mut dyn FnMut(),
    ) {
        let rx = segment.rx();
        {
            // Not while somebody takes doorbells by their count: see `take_bells`.
            let _rx = self.lock_rx(k);
            rx.ask(layout::PLEASE_DOWN);
        }
        rx.direction.wait.edge.store(0, Relaxed);
        // A byte for a socket that is closed makes its kernel drop what it has not sent yet. So would one that a peer which
        // has nothing to do for us leaves unread to its end.
        let gone = self.peer_has_closed(segment) || self.peer_is_gone(k) || self.peer_is_over(node);
        let end_in_ring = rx.flags() != 0 && rx.writer_is_on_ring();
        let owes = rx.readable() != Ok(0) || rx.is_moved() && !rx.all_moved() || end_in_ring;
        let wanted = rx.release_writer();
        if !gone {
            self.wake_writer(k, wanted);
        }
        let guard = self.lock_tx(k);
        if self.end.tx_path() == Path::Ring && !guard.is_nested() {
            let tx = segment.tx();
            let asleep = tx.has_sleepers() || !tx.reader_is_before_switch();
            // Whatever the peer does now, a bell makes it look.
            if !gone && owes && asleep && !self.list(k, tx) && !self.ring_bell(k) {
                self.ring_in_need(k, segment, help);
            }
            self.switch_down(k, tx, Some(why));
        }
    }

    /// The peer owes us bytes, and has others on the stream that its death with a doorbell unread would cost. It is moving them
    /// just now, very likely; or somebody can act for it. If it sleeps, and neither comes true, it is rung for all the same: told as a
    /// reset, such a loss is better than to wait for ever. Caller holds the sending lock, the direction is on the ring.
    fn ring_in_need(&self, k: &impl Kernel, segment: &Segment, help: &mut dyn FnMut()) {
        let (tx, rx) = (segment.tx(), segment.rx());
        let owes = || rx.readable() != Ok(0) || rx.is_moved() && !rx.all_moved();
        let since = k.now_us();
        while owes() && tx.has_sleepers() {
            if k.now_us().saturating_sub(since) >= HELP_AFTER_US {
                help();
                if owes() && tx.has_sleepers() {
                    self.ring_unless(k, || false);
                }
                return;
            }
            let seq = rx.direction.wait.space_seq.load(Relaxed);
            let _ = k.sleep_word(&rx.direction.wait.space_seq, seq, ANSWER_SLICE_US);
        }
    }

    /// After asking: is there nothing unread in the ring, and no doorbell on the stream? The peer rings no more, and what it
    /// writes from now on goes over TCP.
    fn is_pure(&self, k: &impl Kernel, segment: &Segment) -> bool {
        let rx = segment.rx();
        let passed = self.passed();
        let nothing = || rx.readable() == Ok(0) && !rx.is_moved() && rx.down_at(passed).is_none();
        let _rx = self.lock_rx(k);
        if !self.is_engaged() {
            // A renewal was done while we waited for the lock.
            return true;
        }
        if !nothing() || self.is_being_renewed(k) {
            return false;
        }
        if rx.flags() == 0 {
            let _ = self.take_bells(k);
            return rx.bells_untaken() == 0 && nothing();
        }
        if !rx.finished() || self.end.rx_path() != Path::Ring {
            return false;
        }
        // The peer ended its sending in the ring, and only that is still to be told on the stream. We tell it ourselves.
        self.take_last_bells(k, rx);
        let told = rx.bells_untaken() == 0 && nothing() && k.shutdown(true, false).is_ok();
        if told {
            self.stream_is_all();
        }
        told
    }

    /// Does the peer ask for TCP, or is something still owed to it there? To be called wherever this end waits.
    #[inline]
    pub fn mind_asks(&self, k: &impl Kernel) {
        let Some(segment) = self.segment() else {
            return;
        };
        let asked = segment.tx().asks() & layout::PLEASE_DOWN != 0;
        if asked && self.end.tx_path() == Path::Ring || self.end.resend.load(Relaxed) != 0 {
            self.answer(k, segment.tx());
        }
    }

    #[cold]
    fn answer(&self, k: &impl Kernel, tx: Tx<'_>) {
        let guard = self.lock_tx(k);
        if guard.is_nested() {
            return;
        }
        if self.end.tx_path() == Path::Ring {
            self.switch_down(k, tx, None);
        } else {
            self.send_rest(k, tx);
        }
        drop(guard);
        self.settle_back();
    }

    /// Is the kernel's stream all there is, for good? Then the engine is out of it.
    pub(crate) fn settle_back(&self) {
        let end = self.end;
        let Some(segment) = self.segment() else {
            return;
        };
        if end.state() != State::Carried
            || end.tx_path() != Path::Tcp
            || end.resend.load(Relaxed) != 0
            || self.owes_reset()
        {
            return;
        }
        let (rx, passed) = (segment.rx(), self.passed());
        let we_asked = rx.asked() & layout::PLEASE_DOWN != 0;
        // A peer that asked sends over TCP from then on. One that never came to the ring might still do so.
        let asked = segment.tx().asks() & layout::PLEASE_DOWN != 0 && passed != 0;
        // Payload before the switch may be unread, if no doorbells are behind it.
        let no_bells = match (rx.up_at(passed), rx.down_at(passed)) {
            // If its writer is killed while it moves what was unread, the rest is in the ring.
            (None, None) => end.rx_path() == Path::Tcp && rx.all_moved(),
            (Some(up), Some((_, tcp))) => up == tcp && rx.all_moved(),
            _ => false,
        };
        // It may be so by a renewal's doing, which says itself when it is done. Looked for last.
        if (we_asked || asked) && no_bells && !end.has(flag::RENEWED) {
            end.set_state(State::Back);
        }
    }

    /// If this end's sending went back to TCP, its receiving may be due to follow, and then the kernel does it all.
    /// True: still engaged.
    #[cold]
    pub fn settle(&self, k: &impl Kernel) -> bool {
        self.mind_asks(k);
        self.advance(k);
        self.settle_back();
        self.is_engaged()
    }

    /// Before an urgent byte, which takes a place in the kernel's stream and is not read from it: the two ends count it
    /// differently, so a connection that is not promoted yet never will be, and one that is sends over TCP from here on.
    pub fn before_urgent(&self, node: &Node, k: &impl Kernel, why: Reason) {
        match self.end.state() {
            State::Plain | State::Offered => {
                self.begin_back(node, k, why);
            }
            State::Claimed => {
                // Withdrawn, or else confirmed meanwhile.
                self.segment().map(|s| s.header().withdraw());
                self.see_confirmation(k);
            }
            _ => {}
        }
        self.send_over_tcp(k, Some(why));
    }

    /// Our direction alone: for good, because of a call that is not carried (MSG_OOB ...), or (`None`) until the peer has read
    /// what is on its way.
    pub fn send_over_tcp(&self, k: &impl Kernel, why: Option<Reason>) {
        let Some(segment) = self.segment() else {
            return;
        };
        let guard = self.lock_tx(k);
        if guard.is_nested() {
            // A signal handler in the middle of this end's own send: that one switches when it is called again.
            return;
        }
        if self.end.tx_path() == Path::Ring {
            self.switch_down(k, segment.tx(), why);
            if why.is_none() {
                self.end.reason.store(Reason::Stalled as u32, Relaxed);
            }
        } else if let Some(why) = why {
            self.end.keep_tcp(why);
        }
    }

    /// The direction is on TCP because the ring was full and nobody read: back to the ring, if the peer has followed there, and
    /// so reads again. What the kernel still holds comes first. Caller holds the sending lock.
    #[cold]
    pub(crate) fn come_back(&self, tx: Tx<'_>) -> bool {
        let end = self.end;
        let stays = end.has(flag::KEEP_TCP | flag::KERNEL_DEAD | flag::WRITE_SHUT);
        if stays || tx.asks() != 0 || end.resend.load(Relaxed) != 0 || !tx.all_passed() {
            return false;
        }
        tx.switch_up(end.tcp_tx.load(Relaxed));
        end.tx_switches.fetch_add(1, AcqRel);
        end.reason.store(Reason::None as u32, Relaxed);
        true
    }

    /// The peer died in the middle of moving its unread bytes to TCP: where in the ring those are that follow position `at` of
    /// the stream. `None`: that was all.
    fn not_moved(&self, rx: Rx<'_>, at: u64) -> Option<u64> {
        let (ring, tcp) = rx.direction.last_down();
        let came = at.wrapping_sub(tcp);
        match rx.published().wrapping_sub(ring).checked_sub(came) {
            Some(1..) => Some(ring.wrapping_add(came)),
            _ => None,
        }
    }

    /// Has somebody read the stream past us, as stdio does? Where it broke off can't be told then. The kernel counts its end as a byte.
    fn is_read_past_us(&self, k: &impl Kernel) -> bool {
        let ours = self.end.tcp_rx.load(Relaxed);
        k.positions()
            .is_some_and(|(_, read)| read.saturating_sub(ours) > 1)
    }

    /// The peer died in the middle of moving its unread bytes to TCP, and the stream is at its end: the rest is read from
    /// the ring. True: the path has changed.
    #[cold]
    pub(crate) fn takes_back(&self, k: &impl Kernel) -> bool {
        let Ok(segment) = self.rings() else {
            return false;
        };
        let (end, rx) = (self.end, segment.rx());
        let guard = self.lock_rx(k);
        if self.renewed_elsewhere(k) {
            drop(guard);
            // The next look tells.
            return true;
        }
        // Once our reading is shut, the kernel's end says nothing of the writer: it may be moving bytes as we look.
        let may_live = end.has(flag::READ_SHUT) && !end.has(flag::KERNEL_DEAD);
        if !self.is_moved(rx) || end.has(flag::TAKEN_BACK) || may_live {
            return false;
        }
        let passed = self.passed();
        let from = match (end.rx_path(), rx.down_at(passed)) {
            // It had not said yet where the stream goes on, or its last bells never came.
            (Path::Ring, _) => rx.position(),
            (Path::Tcp, None) if passed > 0 && !self.is_read_past_us(k) => {
                match self.not_moved(rx, end.tcp_rx.load(Relaxed)) {
                    Some(from) => from,
                    None => return false,
                }
            }
            _ => return false,
        };
        if rx.published().wrapping_sub(from) > rx.bytes.capacity() {
            return false;
        }
        let on_ring = match end.rx_path() {
            Path::Ring => passed,
            Path::Tcp => passed - 1,
        };
        let frozen = self.renews(k);
        end.set(flag::TAKEN_BACK);
        if frozen {
            end.set(flag::FROZEN);
        }
        rx.move_back(from, on_ring, frozen);
        end.rx_passed.store(on_ring, Relaxed);
        true
    }
}
