//! Ending: shutdown and close. Published bytes come first, whatever path they are on.

use gm::end::flag;
use gm::{Node, Path, Reason, State};
use ring::sync::Ordering::{Acquire, Relaxed};
use ring::{Decision, Rx, layout};

use crate::bells::BELL_PATIENCE_US;
use crate::{Conn, Fault, Kernel};

/// Close does not wait for a peer that lets no byte through, as TCP's does not: so long, in µs, it tries to get rid of what
/// it owes, and then the peer gets a reset, not an end-of-file.
const CLOSE_PATIENCE_US: u64 = 200_000;

impl Conn {
    /// shutdown(2). The sending half is shut in the ring only: the kernel's half stays open for doorbells that tell
    /// the peer of room, and for a way back of what is unread; it ends with close.
    pub fn shutdown(
        &self,
        node: &Node,
        k: &impl Kernel,
        read: bool,
        write: bool,
    ) -> Result<(), Fault> {
        let end = self.end;
        self.see_confirmation(k);
        // Who asked for TCP hears of the end there.
        self.mind_asks(k);
        if self.is_over() || end.rx_path() == Path::Ring && self.is_reset_by_now(k) {
            return Err(Fault::NotConnected);
        }
        if read {
            end.set(flag::READ_SHUT);
            self.rings()?.rx().shut_reading();
        }
        let mut write_kernel = false;
        if write {
            let _tx = self.lock_tx(k);
            end.set(flag::WRITE_SHUT);
            let segment = self.rings()?;
            let tx = segment.tx();
            // On TCP as well: it tells an end in good order from a death.
            tx.finish(false);
            if end.tx_path() == Path::Ring && tx.asks() & layout::PLEASE_DOWN != 0 {
                self.switch_down(k, tx, None);
            } else if end.tx_path() == Path::Ring {
                if tx.is_awaited() {
                    self.list(k, tx);
                    let due = tx.bell_due() && !self.is_bereaved(node, segment);
                    if due && !self.ring_bell(k) {
                        // The kernel's own end costs nothing.
                        self.switch_down(k, tx, None);
                    }
                }
                write_kernel = end.tx_path() == Path::Ring && self.shuts_kernel_half(segment.rx());
            } else {
                // What still moves to TCP goes before the kernel's end.
                write_kernel = !self.owes_rest();
            }
        }
        match k.shutdown(read, write_kernel) {
            // The peer closed, and a doorbell made its kernel reset the stream: not the program's business, unless it
            // was reset in earnest.
            Err(_) if write && end.tx_path() == Path::Ring && !end.has(flag::RESET_TOLD) => Ok(()),
            other => other,
        }
    }

    /// Did the peer die with bytes that its kernel may not have delivered? It would drop them for a byte, as it does not for the
    /// end of a stream. It can't be asked while our buffer is full.
    fn is_bereaved(&self, node: &Node, segment: &gm::Segment) -> bool {
        let on_stream = self.end.rx_path() == Path::Tcp || !segment.rx().writer_is_on_ring();
        on_stream && self.peer_is_over(node)
    }

    /// Has either end said that it sends no more? TCP's connection is closed then, whatever is unread.
    fn is_over(&self) -> bool {
        let end = self.end;
        let we_did = end.has(flag::WRITE_SHUT) && !self.owes_rest();
        let said = |s: &gm::Segment| s.rx().flags() & layout::FIN != 0;
        we_did && (self.segment().is_some_and(said) || end.has(flag::KERNEL_EOF))
    }

    /// Both halves are shut in the ring, or we have shut both ways, and all of ours is read: no doorbell will be needed and nothing
    /// has to go back to TCP, so the kernel may close its own half. To be called once our half is shut.
    pub(crate) fn shuts_kernel_half(&self, rx: Rx<'_>) -> bool {
        let end = self.end;
        let over = rx.flags() & layout::FIN != 0 || end.has(flag::KERNEL_ENDS);
        let read = self.rings().is_ok_and(|s| s.tx().unread() == Ok(0));
        let now = over && read && !end.has(flag::CLOSED_BOTH);
        if now {
            end.set(flag::CLOSED_BOTH);
        }
        now
    }

    /// Before the kernel's close of this process's last descriptor. `uncount` takes this process off the holders, and says
    /// whether it was the last; so does this. One that was not has no business with the end from then on: the others may
    /// close it at any moment, and the next socket may be in its place.
    pub fn leave(&self, node: &Node, k: &impl Kernel, uncount: impl FnOnce() -> bool) -> bool {
        // Perhaps it is the last all the same: a holder that was killed is still counted.
        if self.end.refs.load(Acquire) != 1 && self.settle_confirmed(k) {
            let _ = self.take_bells(k);
        }
        let last = uncount();
        if last {
            self.close(node, k);
        }
        last
    }

    /// Makes what steps are due. False: it is not carried, nor confirmed.
    fn settle_confirmed(&self, k: &impl Kernel) -> bool {
        let confirmed = |s: &gm::Segment| s.header().decision() == Ok(Decision::Confirmed);
        let carried = match self.end.state() {
            State::Claimed => self.segment().is_some_and(confirmed),
            State::Carried => self.segment().is_some(),
            _ => false,
        };
        if carried {
            self.see_confirmation(k);
            self.settle(k);
        }
        carried
    }

    /// The last holder's part of [`Conn::leave`].
    pub fn close(&self, node: &Node, k: &impl Kernel) {
        let end = self.end;
        let Some(segment) = self.segment() else {
            return;
        };
        if !self.settle_confirmed(k) {
            let state = end.state();
            if matches!(state, State::Offered | State::Claimed) {
                end.reason.store(Reason::Ended as u32, Relaxed);
            }
            match state {
                State::Offered => {
                    self.note_offer(node, false);
                    self.withdraw(node);
                }
                State::Claimed => {
                    segment.header().withdraw();
                }
                _ => {}
            }
            return;
        }
        self.note_use(node);
        self.linger(k, segment);
        let (tx, rx) = (segment.tx(), segment.rx());
        // A peer that knows the ring finds there what does not come on the stream (`takes_back`).
        let owes = self.pay_what_is_owed(k) && tx.asks() & layout::PLEASE_DOWN != 0;
        // In the ring, or on the stream, where the kernel resets the connection by itself; the ring's end must say the same.
        // One that was given away may be held by others whom nobody has counted: there the kernel alone decides.
        let given = rx.asked() & layout::PLEASE_DOWN != 0 && end.tx_path() == Path::Tcp;
        let in_ring = rx.readable() != Ok(0);
        let unread = in_ring || !given && self.readable_bytes(k) > 0;
        let abort = owes || unread || end.has(flag::LINGER_ZERO | flag::CORRUPT);
        rx.ask(layout::READ_CLOSED);
        if abort {
            // What the kernel would do with unread bytes: the peer gets ECONNRESET.
            k.abort_on_close();
        } else {
            self.take_last_bells(k, rx);
        }
        {
            let _tx = self.lock_tx(k);
            segment.tx().finish(abort);
        }
        if rx.release_writer() & layout::WANT_FUTEX != 0 {
            k.wake_word(&rx.direction.wait.space_seq);
        }
    }

    /// SO_LINGER: the kernel waits for what it has to deliver, and we for what a kernel would have. It stays in the ring.
    fn linger(&self, k: &impl Kernel, segment: &gm::Segment) {
        if self.held_in_ring() == 0 {
            return;
        }
        let (since, limit, tx) = (k.now_us(), k.lingers_us(), segment.tx());
        loop {
            let seq = tx.want_space(layout::WANT_FUTEX);
            let left = limit.saturating_sub(k.now_us().saturating_sub(since));
            if left == 0 || self.held_in_ring() == 0 || self.peer_is_gone(k) {
                break;
            }
            let slice = left.min(crate::send::ROOM_SLICE_US);
            let _ = k.sleep_word(&tx.direction.wait.space_seq, seq, slice);
        }
    }

    /// Before an exec that will close the socket: unread doorbells would make that a reset.
    pub fn before_closing_exec(&self, k: &impl Kernel) {
        if self.is_engaged() && self.settle(k) {
            let _ = self.take_bells(k);
        }
    }

    /// Bytes on their way from the ring to TCP must be with the kernel before it closes. True: they can't be.
    fn pay_what_is_owed(&self, k: &impl Kernel) -> bool {
        let since = k.now_us();
        while self.owes_rest() {
            self.mind_asks(k);
            let waited = k.now_us().saturating_sub(since);
            if !self.owes_rest() || self.peer_is_gone(k) {
                return false;
            }
            // A signal does not end this: the bytes are the program's, and were taken.
            let left = CLOSE_PATIENCE_US.saturating_sub(waited);
            if left == 0
                || k.sleep_writable(left)
                    .is_err_and(|f| f != Fault::Interrupted)
            {
                return true;
            }
        }
        false
    }

    /// Unread doorbells would make the kernel reset the connection, and drop what it has not sent; and who reads the stream
    /// from now on would take them for payload. After READ_CLOSED, or without a peer, no more are counted.
    pub(crate) fn take_last_bells(&self, k: &impl Kernel, rx: Rx<'_>) {
        let end = self.end;
        let _rx = self.lock_rx(k);
        let mut scratch = [0_u8; 64];
        let since = k.now_us();
        while end.rx_path() == Path::Ring && rx.bells_untaken() > 0 {
            let n = scratch.len().min(rx.bells_untaken());
            match k.recv(&mut scratch[..n], false) {
                Ok(0) => break,
                Ok(n) => {
                    self.count_tcp(0, n as u64);
                    rx.count_taken(n as u32);
                }
                Err(Fault::WouldBlock) if k.now_us() - since < BELL_PATIENCE_US => k.yield_now(),
                Err(_) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Pair;
    use gm::Role;
    use ring::sync::Ordering::AcqRel;

    #[test]
    fn who_is_not_the_last_leaves_the_next_one_alone() {
        let pair = Pair::carried();
        let (conn, socket) = (&pair.server.conn, &pair.server.socket);
        // By a fork there are two. The other one closes this moment, and the next connection gets the end.
        conn.end.refs.store(2, Relaxed);
        let last = conn.leave(&pair.place.node, socket, || {
            let last = conn.end.refs.fetch_sub(1, AcqRel) == 1;
            conn.end.reset(Role::Server, 1);
            conn.end.set_state(State::Claimed);
            last
        });
        assert!(!last);
        assert_eq!(conn.end.state(), State::Claimed);
        assert_eq!(conn.end.tx_path(), Path::Tcp, "it is on the ring");
        assert!(!conn.end.has(u32::MAX), "its flags changed");
    }

    /// The stream takes nothing while the sender closes; its peer reads the rest where it is.
    #[test]
    fn what_a_close_still_owes_is_found_in_the_ring() {
        let pair = Pair::carried();
        let (conn, socket) = (&pair.client.conn, &pair.client.socket);
        assert_eq!(pair.client.send(b"rest"), 4);
        socket.fill_up(true);
        conn.send_over_tcp(socket, None);
        assert!(conn.owes_rest());
        assert!(conn.leave(&pair.place.node, socket, || {
            conn.end.refs.fetch_sub(1, AcqRel) == 1
        }));
        socket.shutdown(false, true).unwrap();
        let flags = pair.server.conn.rings().map(|s| s.rx().flags());
        assert_eq!(flags, Ok(layout::FIN));
        assert_eq!(pair.server.recv(10), 4);
        assert_eq!(pair.server.recv(10), 0);
    }

    #[test]
    fn the_last_holder_says_the_end() {
        let pair = Pair::carried();
        let (conn, socket) = (&pair.server.conn, &pair.server.socket);
        assert!(conn.leave(&pair.place.node, socket, || {
            conn.end.refs.fetch_sub(1, AcqRel) == 1
        }));
        let rings = pair.client.conn.rings().map(|s| s.rx().flags());
        assert_eq!(rings, Ok(layout::FIN));
    }
}
