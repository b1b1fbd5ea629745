//! Receiving from the kernel's stream, and the changes of path: where it goes on in the ring, and where on the stream again.

use std::io::IoSliceMut;

use gm::Path;
use gm::end::flag;
use ring::Rx;
use ring::sync::Ordering::{Relaxed, Release};

use crate::recv::{Look, first_room};
use crate::{Conn, Fault, Kernel, RecvOptions};

/// Bells that a writer which died while ringing may have sent beyond its count.
const BELLS_UNCOUNTED: u64 = 1;
/// Looks for a bell that was sent before we look: on one host it is there at once.
const BELLS_PATIENCE: u32 = 10_000;

impl Conn {
    /// Passes the switches that this end has come to.
    pub(crate) fn advance(&self, k: &impl Kernel) {
        self.pass_switch(k);
        if let Some(segment) = self.segment()
            && self.end.rx_path() == Path::Ring
            && let Some((down, _)) = segment.rx().down_at(self.passed())
            && segment.rx().position() == down
        {
            // A fault shows with the next read.
            let _ = self.receive_from_tcp_again(k, segment.rx());
        }
    }

    /// The direction goes back to TCP: takes the last doorbells off the stream, exactly.
    #[cold]
    pub(crate) fn receive_from_tcp_again(&self, k: &impl Kernel, rx: Rx<'_>) -> Result<(), Fault> {
        let end = self.end;
        let guard = self.lock_rx(k);
        if guard.is_nested() || end.rx_path() != Path::Ring {
            return Ok(());
        }
        let passed = self.passed();
        let Some((_, tcp)) = rx.down_at(passed) else {
            return Ok(());
        };
        if !rx.is_just_ahead(passed) {
            return Err(self.corrupt());
        }
        let mut waits = 0;
        let mut scratch = [0_u8; 64];
        loop {
            let left = tcp.wrapping_sub(end.tcp_rx.load(Relaxed));
            if left == 0 {
                break;
            }
            if left > rx.bells_untaken() as u64 + BELLS_UNCOUNTED || waits > BELLS_PATIENCE {
                return Err(self.corrupt());
            }
            let n = scratch.len().min(left as usize);
            match k.recv(&mut scratch[..n], false) {
                Ok(0) if !end.has(flag::READ_SHUT) || waits == BELLS_PATIENCE => {
                    self.stream_ended();
                    drop(guard);
                    return self.without_last_bells(k);
                }
                // The bells were sent before the switch was published; they are on their way.
                Ok(0) | Err(Fault::WouldBlock) => {
                    waits += 1;
                    k.yield_now();
                }
                Ok(n) => {
                    self.count_tcp(0, n as u64);
                    rx.count_taken(n as u32);
                    self.only_bells(&scratch[..n])?;
                }
                Err(f) => {
                    self.kernel_fault(f);
                    drop(guard);
                    return self.without_last_bells(k);
                }
            }
        }
        end.rx_passed.store(passed + 1, Release);
        rx.pass(passed + 1, tcp);
        Ok(())
    }

    /// The stream broke off before the switch: so none of the bytes behind it came, and all are in the ring.
    fn without_last_bells(&self, k: &impl Kernel) -> Result<(), Fault> {
        if self.takes_back(k) {
            return Ok(());
        }
        Err(self.corrupt())
    }

    /// Engaged, but this direction's writer has not switched yet, or bytes from before its switch are unread.
    #[cold]
    pub(crate) fn look_at_tcp(
        &self,
        k: &impl Kernel,
        bufs: &mut [IoSliceMut<'_>],
        skip: usize,
        o: RecvOptions,
    ) -> Result<Option<Look>, Fault> {
        let end = self.end;
        self.see_confirmation(k);
        let guard = self.lock_rx(k);
        if end.rx_path() != Path::Tcp {
            return Ok(None);
        }
        if self.renewed_elsewhere(k) {
            drop(guard);
            return self.after_renewal(k).map(Some);
        }
        let rx = self.rings()?.rx();
        let position = end.tcp_rx.load(Relaxed);
        let passed = self.passed();
        let before = rx.up_at(passed);
        let left = match before {
            Some(up) if up == position => {
                return self.receive_from_ring(k, rx).map(|()| None);
            }
            Some(up) if up < position => return Err(self.corrupt()),
            Some(up) => usize::try_from(up - position).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let Some(buf) = first_room(bufs, skip) else {
            return Ok(Some(Look::Bytes(0)));
        };
        let n = buf.len().min(left);
        // Looked at first: the writer may have switched, and rung, meanwhile. What lies beyond the switch is doorbells,
        // and those are taken by their own rule.
        let seen = match k.recv(&mut buf[..n], true) {
            Ok(0) => {
                self.stream_ended();
                drop(guard);
                return self.stream_is_over(k, rx, Ok(Look::EndOfFile));
            }
            Ok(n) => n,
            Err(Fault::WouldBlock) if end.has(flag::READ_SHUT) => return Ok(Some(Look::EndOfFile)),
            Err(Fault::WouldBlock) => return Ok(Some(Look::Empty)),
            Err(f) => {
                self.kernel_fault(f);
                drop(guard);
                return self.stream_is_over(k, rx, Err(f));
            }
        };
        let payload = match rx.up_at(passed) {
            Some(up) => {
                let p = up.checked_sub(position).ok_or_else(|| self.corrupt())?;
                seen.min(usize::try_from(p).unwrap_or(usize::MAX))
            }
            None => seen,
        };
        if payload == 0 {
            return Ok(None);
        }
        if !o.peek {
            return match k.recv(&mut buf[..payload], false) {
                Ok(taken) => {
                    self.count_tcp(0, taken as u64);
                    Ok(Some(Look::Stream(taken)))
                }
                // The connection is plain by now, and a call that left it to the kernel was quicker.
                Err(Fault::WouldBlock) => Ok(None),
                Err(f) => Err(f),
            };
        }
        if payload < n || bufs.len() == 1 {
            return Ok(Some(Look::Stream(payload)));
        }
        // What of this lies beyond the switch the ring's bytes are put over.
        let seen = k.peek_many(bufs)?;
        let left = match rx.up_at(passed) {
            Some(up) => usize::try_from(up.saturating_sub(position)).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        Ok(Some(Look::Stream(seen.min(left))))
    }

    /// The kernel's stream has nothing more. A peer that died may have left the rest in the ring.
    #[cold]
    fn stream_is_over(
        &self,
        k: &impl Kernel,
        rx: Rx<'_>,
        said: Result<Look, Fault>,
    ) -> Result<Option<Look>, Fault> {
        if self.takes_back(k) {
            return Ok(None);
        }
        self.end_is_real(k)?;
        let told = self.end.has(flag::RESET_TOLD);
        // A kernel whose reading is shut says so of a stream that goes on as well, whenever nothing has arrived.
        let ended = said.is_ok() && !self.end.has(flag::READ_SHUT);
        if ended && !told && rx.up_at(self.passed()).is_some() {
            // Bytes before the ring's were lost with the kernel's stream: no clean end.
            return Err(self.corrupt());
        }
        let due = self.end.has(flag::RESET_DUE) && !rx.finished() || self.end.has(flag::UNMOVED);
        if said.is_err() || (self.peer_aborted() || due) && !told {
            // Somebody else may have taken the error off the socket.
            self.end.set(flag::RESET_TOLD);
            self.end.clear(flag::RESET_DUE);
            return Err(said.err().unwrap_or(Fault::Reset));
        }
        said.map(Some)
    }

    /// If the last byte before the switch is read, receiving goes on in the ring.
    #[inline]
    pub fn pass_switch(&self, k: &impl Kernel) {
        if self.end.rx_path() == Path::Tcp {
            self.pass_switch_if_due(k);
        }
    }

    #[cold]
    fn pass_switch_if_due(&self, k: &impl Kernel) {
        let end = self.end;
        let Some(segment) = self.segment() else {
            return;
        };
        let rx = segment.rx();
        let due = || {
            let at = rx.up_at(self.passed());
            end.rx_path() == Path::Tcp && at == Some(end.tcp_rx.load(Relaxed))
        };
        if due() {
            let guard = self.lock_rx(k);
            if !guard.is_nested() && due() {
                // A fault shows with the next read.
                let _ = self.receive_from_ring(k, rx);
            }
        }
    }

    /// The kernel may have told of the stream's end while that was read, and tells it once: it holds for the ring too.
    fn receive_from_ring(&self, k: &impl Kernel, rx: Rx<'_>) -> Result<(), Fault> {
        if !rx.is_just_ahead(self.passed()) {
            return Err(self.corrupt());
        }
        let passed = self.passed() + 1;
        self.end.rx_passed.store(passed, Release);
        rx.pass(passed, self.end.tcp_rx.load(Relaxed));
        if rx.is_edge_armed() {
            crate::waiting::set::came_to_ring();
        }
        self.note_kernel(k.poll());
        Ok(())
    }
}
