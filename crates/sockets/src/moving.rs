//! Moving: a sender that goes back to TCP puts what is unread in its ring on the stream first, or, if it dies at that, its reader
//! takes the rest back. See [`crate::back`] for when.

use gm::end::flag;
use gm::{Path, Reason};
use ring::sync::Ordering::{AcqRel, Relaxed};
use ring::{Rx, Tx};

use crate::lock::Guard;
use crate::send::has_shut_both_ways;
use crate::{Conn, Fault, Kernel, Ready};

/// Bytes moved at once.
const PIECE: usize = 2048;
/// So often the send buffer is widened for them; the system's limit may stop it.
const WIDENINGS: u32 = 4;

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

    /// Is something that the peer has not read still to be put on the stream? Nobody else does that for us: who gives the connection
    /// away may make no other call on it.
    #[inline]
    pub(crate) fn owes_rest(&self) -> bool {
        self.end.resend.load(Relaxed) != 0
    }

    /// Puts what is to be moved on the stream. True: all of it is there. Caller holds the sending lock.
    pub(crate) fn send_rest(&self, k: &impl Kernel, tx: Tx<'_>) -> bool {
        let end = self.end;
        // A packet's own bytes count as well, and small ones have many: once may not be enough.
        let (mut widened, mut widenings) = (None, 0);
        let mut piece = [0_u8; PIECE];
        // A stream that is reset takes nothing more, and who reads it is told by the error, which a send would take off.
        let dead = k.poll().intersects(Ready::HUP | Ready::ERR);
        if dead && self.owes_rest() {
            end.set(flag::KERNEL_DEAD);
            end.resend_to
                .store(end.resend.load(Relaxed).wrapping_sub(1), Relaxed);
        }
        // No more than can be unread, whatever becomes of these words meanwhile.
        let mut most = tx.bytes.all();
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
            tx.copy(at, &mut piece[..n]);
            match k.send(&piece[..n]) {
                Ok(sent) => {
                    self.count_tcp(sent as u64, 0);
                    most -= sent as u64;
                    let next = at.wrapping_add(sent as u64);
                    end.resend.store(next.wrapping_add(1), Relaxed);
                }
                // These bytes were taken from the program: room for them is not its business.
                Err(Fault::WouldBlock) if widenings < WIDENINGS => {
                    widenings += 1;
                    let was = k.widen_send(left as usize);
                    widened = widened.or(was);
                    if was.is_none() {
                        break;
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
        let done = !self.owes_rest();
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
            if self.owes_rest() && end.resend_to.load(Relaxed).wrapping_sub(ring) >= moved {
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

    /// The direction is on TCP because the ring was full and nobody read: back to the ring, if the peer has followed there, and
    /// so reads again. What the kernel still holds comes first. Caller holds the sending lock.
    #[cold]
    pub(crate) fn come_back(&self, tx: Tx<'_>) -> bool {
        let end = self.end;
        let stays = end.has(flag::KEEP_TCP | flag::KERNEL_DEAD | flag::WRITE_SHUT);
        if stays || tx.asks() != 0 || self.owes_rest() || !tx.all_passed() {
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
        if rx.published().wrapping_sub(from) > rx.bytes.all() {
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
