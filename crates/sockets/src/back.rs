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
use ring::sync::Ordering::Relaxed;
use ring::{Rx, Tx, layout};

use crate::send::has_shut_both_ways;
use crate::{Conn, Kernel};

/// How often a receiver that gives the connection away looks whether its peer has answered, in µs.
const ANSWER_SLICE_US: u64 = 500;
/// A peer that has not answered for so long, in µs, is busy elsewhere or stopped: time for help.
const HELP_AFTER_US: u64 = 3_000;
/// A peer that is moving its unread bytes, and gets no further for so long, in µs, waits for a reader of the stream.
const MOVED_AFTER_US: u64 = 200_000;

/// A peer that takes what this end moves, and waits for whom we are about to start, does so at once; longer, in µs, none is waited for.
const REST_AFTER_US: u64 = 2_000_000;

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
        while self.settle(k) && (!self.is_pure(k, segment) || self.owes_rest()) {
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
            if passed_down && now - since > MOVED_AFTER_US && !self.owes_rest() {
                // It is the new reader's turn.
                break;
            }
            if self.owes_rest() && now - since > REST_AFTER_US {
                // The peer reads nothing. What it has no room for goes with a later call, or at the end.
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
        shut && end.tx_path() == Path::Tcp && !self.owes_rest()
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
        let all_sent = self.end.tx_path() == Path::Tcp && !self.owes_rest();
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
            // Whatever the peer does now, a bell makes it look. One that has shut both ways has hardly anything to look for, and its
            // kernel resets the connection for a bell that comes after its end: the kernel may be behind with its packets.
            let rung = || !has_shut_both_ways(segment) && self.ring_bell(k);
            if !gone && owes && asleep && !self.list(k, tx) && !rung() {
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
        if asked && self.end.tx_path() == Path::Ring || self.owes_rest() {
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
            || self.owes_rest()
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
}
