//! Ending: shutdown, close, and handing a direction back to TCP.

use gm::end::flag;
use gm::{Node, Path, Reason, Segment, State};
use ring::sync::Ordering::{Relaxed, Release};
use ring::{Decision, Tx, layout};

use crate::lock::lock;
use crate::{Conn, Fault, Kernel};

/// How long a hand-back waits for the peer's answer, in µs, and how often it looks. A peer that does not answer is
/// stopped, or busy elsewhere; it will answer with its next call.
const BACK_PATIENCE_US: u64 = 200_000;
const BACK_SLICE_US: u64 = 500;

impl Conn {
    /// From here on this end sends over TCP. Caller holds the sending lock; the direction is on the ring.
    #[cold]
    pub(crate) fn switch_down(&self, k: &impl Kernel, tx: Tx<'_>, why: Option<Reason>) {
        let end = self.end;
        if !end.has(flag::KERNEL_DEAD) && !tx.peer_froze() && tx.bell_due() {
            // The reader may sleep; once switched, only payload may follow on the stream.
            self.ring_bell(k);
        }
        let tail = tx.position();
        let mut from = tail;
        if tx.peer_froze() {
            // It left these in the ring; they are sent again. A head beyond the tail is nonsense, and nobody's loss.
            let head = tx.peer_head();
            if tail.wrapping_sub(head) <= tx.bytes.capacity() {
                from = head;
            }
        }
        tx.switch_down_at(from, end.tcp_tx.load(Relaxed));
        end.resend
            .store(if from == tail { 0 } else { from + 1 }, Relaxed);
        end.tx_path.store(Path::Back as u32, Release);
        if let Some(why) = why {
            end.keep_tcp(why);
        }
        self.send_rest(k, tx);
    }

    /// Both directions back on TCP: the engine is out of it.
    pub(crate) fn settle_back(&self) {
        let end = self.end;
        let both = end.tx_path() == Path::Back && end.rx_path() == Path::Back;
        if both && end.resend.load(Relaxed) == 0 {
            end.set_state(State::Back);
        }
    }

    /// Hands the connection back, because of a call that is not carried (`why`): our direction at once, and the peer's
    /// as soon as it sees that we ask, for which this waits a little. What is unread in the ring then comes over TCP.
    /// A connection that is not promoted yet never will be.
    pub fn hand_back(&self, node: &Node, k: &impl Kernel, why: Reason) {
        if self.begin_back(node, k, why) {
            self.ask_back(k, why);
        }
    }

    /// As [`Conn::hand_back`], for a caller that goes on receiving through the engine while the connection is engaged:
    /// what the peer has written, and writes before it sees that we ask, is read from the ring. Waits for nobody.
    pub fn ask_for_tcp(&self, node: &Node, k: &impl Kernel, why: Reason) {
        if self.begin_back(node, k, why)
            && let Some(segment) = self.segment()
        {
            self.ask_and_switch(k, segment, why);
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
    fn ask_and_switch(&self, k: &impl Kernel, segment: &Segment, why: Reason) {
        let rx = segment.rx();
        rx.ask(layout::PLEASE_DOWN);
        self.wake_writer(k, rx.release_writer());
        let guard = lock(&self.end.tx_lock, k);
        if self.end.tx_path() == Path::Ring && !guard.is_nested() {
            // Whatever the peer does now, this makes it look.
            self.ring_bell(k);
            self.switch_down(k, segment.tx(), Some(why));
        }
    }

    fn ask_back(&self, k: &impl Kernel, why: Reason) {
        let Some(segment) = self.segment() else {
            return;
        };
        let rx = segment.rx();
        {
            let _rx = lock(&self.end.rx_lock, k);
            if self.end.rx_path() == Path::Tcp && rx.up_at() == Some(self.end.tcp_rx.load(Relaxed))
            {
                self.end.rx_path.store(Path::Ring as u32, Release);
            }
            if self.end.rx_path() == Path::Ring {
                rx.freeze();
            }
        }
        rx.direction.wait.edge.store(0, Release);
        self.ask_and_switch(k, segment, why);
        let since = k.now_us();
        while rx.down_at().is_none()
            && k.now_us().saturating_sub(since) < BACK_PATIENCE_US
            && !self.peer_is_gone(k)
        {
            let seq = rx.direction.wait.space_seq.load(Relaxed);
            let _ = k.sleep_word(&rx.direction.wait.space_seq, seq, BACK_SLICE_US);
        }
        if !self.settle(k) {
            return;
        }
        // No answer yet. From now on the peer rings no more, so what is taken here are the last bells; its bytes come
        // over TCP when it makes its next call.
        let mut scratch = [0_u8; 64];
        let _rx = lock(&self.end.rx_lock, k);
        let n = scratch.len().min(rx.bells_untaken());
        if rx.down_at().is_none()
            && self.end.rx_path() == Path::Ring
            && n > 0
            && let Ok(n) = k.recv(&mut scratch[..n], false)
        {
            self.count_tcp(0, n as u64);
            rx.direction.wait.bells_taken.fetch_add(n as u32, Release);
        }
    }

    /// Does the peer ask for TCP, or is something still owed to it there? To be called wherever this end waits.
    #[inline]
    pub(crate) fn mind_asks(&self, k: &impl Kernel) {
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
        let guard = lock(&self.end.tx_lock, k);
        if guard.is_nested() {
            return;
        }
        if self.end.tx_path() == Path::Ring {
            self.switch_down(k, tx, None);
        } else {
            self.send_rest(k, tx);
        }
    }

    /// Sends the bytes that the peer left in the ring over TCP. True: all are out. Caller holds the sending lock.
    pub(crate) fn send_rest(&self, k: &impl Kernel, tx: Tx<'_>) -> bool {
        let end = self.end;
        let mut piece = [0_u8; 8192];
        while let Some(at) = end.resend.load(Relaxed).checked_sub(1) {
            let n = piece.len().min(tx.position().wrapping_sub(at) as usize);
            if n == 0 {
                end.resend.store(0, Relaxed);
                break;
            }
            tx.bytes.get(at, &mut piece[..n]);
            match k.send(&piece[..n]) {
                Ok(sent) => {
                    self.count_tcp(sent as u64, 0);
                    end.resend.store(at + sent as u64 + 1, Relaxed);
                }
                Err(Fault::WouldBlock | Fault::Interrupted) => return false,
                Err(f) => {
                    self.kernel_fault(f);
                    end.resend.store(0, Relaxed);
                }
            }
        }
        if end.has(flag::WRITE_SHUT) {
            let _ = k.shutdown(false, true);
        }
        self.settle_back();
        true
    }

    /// Before an urgent byte, which takes a place in the kernel's stream and is not read from it: the two ends count it
    /// differently, so a connection that is not promoted yet never will be, and one that is sends over TCP from here on.
    pub fn before_urgent(&self, node: &Node, k: &impl Kernel, why: Reason) {
        match self.end.state() {
            State::Plain | State::Offered => self.hand_back(node, k, why),
            State::Claimed => {
                // Withdrawn, or else confirmed meanwhile.
                self.segment().map(|s| s.header().withdraw());
                self.see_confirmation(k);
            }
            _ => {}
        }
        self.send_over_tcp(k, why);
    }

    /// Our direction alone (MSG_OOB, sendfile of what can't be mapped ...).
    pub fn send_over_tcp(&self, k: &impl Kernel, why: Reason) {
        let Some(segment) = self.segment() else {
            return;
        };
        let guard = lock(&self.end.tx_lock, k);
        if guard.is_nested() {
            // A signal handler in the middle of this end's own send: that one switches when it is called again.
            return;
        }
        if self.end.tx_path() == Path::Ring {
            self.switch_down(k, segment.tx(), Some(why));
        }
    }

    /// shutdown(2). The sending half is shut in the ring only: the kernel's half stays open for doorbells that tell
    /// the peer of room, and ends with close.
    pub fn shutdown(&self, k: &impl Kernel, read: bool, write: bool) -> Result<(), Fault> {
        let end = self.end;
        self.see_confirmation(k);
        if read {
            end.set(flag::READ_SHUT);
        }
        let mut write_kernel = false;
        if write {
            let _tx = lock(&end.tx_lock, k);
            end.set(flag::WRITE_SHUT);
            write_kernel = true;
            if end.tx_path() == Path::Ring {
                let segment = self.rings()?;
                let tx = segment.tx();
                tx.finish(false);
                if tx.bell_due() {
                    self.ring_bell(k);
                }
                // If nothing comes in any more, no room has to be told of.
                let over = segment.rx().flags() & layout::FIN != 0 || end.has(flag::KERNEL_ENDS);
                write_kernel = over;
                end.set(if over { flag::CLOSED_BOTH } else { 0 });
            }
        }
        match k.shutdown(read, write_kernel) {
            // The peer closed, and a doorbell made its kernel reset the stream: not the program's business, unless it
            // was reset in earnest.
            Err(_) if write && end.tx_path() == Path::Ring && !end.has(flag::RESET_TOLD) => Ok(()),
            other => other,
        }
    }

    /// Before the kernel's close of this process's last descriptor. `last`: no other process holds the socket.
    pub fn close(&self, node: &Node, k: &impl Kernel, last: bool) {
        let end = self.end;
        if !last {
            return;
        }
        let Some(segment) = self.segment() else {
            return;
        };
        match end.state() {
            State::Offered => return self.withdraw(node),
            State::Claimed if segment.header().decision() != Ok(Decision::Confirmed) => {
                segment.header().withdraw();
                return;
            }
            State::Claimed | State::Carried => {}
            _ => return,
        }
        self.see_confirmation(k);
        while end.resend.load(Relaxed) != 0 && !self.peer_is_gone(k) {
            let rest = {
                let _tx = lock(&end.tx_lock, k);
                !self.send_rest(k, segment.tx())
            };
            // A signal does not end this: the bytes are the program's, and were taken.
            let lost = |f| f != Fault::Interrupted;
            if rest && k.sleep_writable(0).is_err_and(lost) {
                break;
            }
        }
        let rx = segment.rx();
        let unread = end.rx_path() != Path::Back && rx.readable().map_or(true, |n| n > 0);
        let abort = unread || end.has(flag::LINGER_ZERO | flag::CORRUPT);
        if abort {
            // What the kernel would do with unread bytes: the peer gets ECONNRESET.
            k.abort_on_close();
        } else {
            // Unread doorbells would make the kernel reset the connection.
            let _ = self.take_bells(k);
        }
        if end.tx_path() == Path::Ring {
            let _tx = lock(&end.tx_lock, k);
            segment.tx().finish(abort);
        }
        rx.ask(layout::READ_CLOSED);
        let wanted = rx.release_writer();
        if wanted & layout::WANT_FUTEX != 0 {
            k.wake_word(&rx.direction.wait.space_seq);
        }
    }
}
