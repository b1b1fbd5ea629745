//! Doorbells on the stream: taking them off, and nothing else with them.

use gm::Path;
use gm::end::flag;
use ring::sync::Ordering::Relaxed;
use ring::{Corrupt, Rx, layout};

use crate::{Conn, Fault, Kernel};

/// So long, in µs, an end looks for a doorbell that was counted and is about to be sent, or is on its way where the kernel is behind
/// with its packets. One that comes after the end resets the connection.
pub(crate) const BELL_PATIENCE_US: u64 = 100_000;

impl Conn {
    /// Takes the doorbells that the writer has counted off the stream, if the ring is empty.
    pub(crate) fn take_bells(&self, k: &impl Kernel) -> Result<(), Fault> {
        let end = self.end;
        let rx = self.rings()?.rx();
        if rx.bells_untaken() == 0 || end.rx_path() != Path::Ring {
            return Ok(());
        }
        let _rx = self.lock_rx(k);
        let empty = rx.readable().map_err(|Corrupt| self.corrupt())? == 0;
        let mut scratch = [0_u8; 64];
        let mut n = scratch.len().min(rx.bells_untaken());
        // The end is news as bytes are: whoever still sleeps must find the stream readable.
        let ended = rx.flags() != 0 || rx.down_at(self.passed()).is_some();
        if end.rx_path() != Path::Ring || !empty || n == 0 || ended {
            return Ok(());
        }
        if rx.asked() != 0 || self.may_owe_stream(self.rings()?) {
            // Its writer may take the count back, and send payload then: what is on the stream before the last look is none.
            match k.recv(&mut scratch[..n], true) {
                Ok(seen) => n = seen,
                Err(f) => {
                    self.kernel_fault(f);
                    return Ok(());
                }
            }
        }
        if n == 0 {
            self.stream_ended();
            return Ok(());
        }
        if !rx.claim_bells(n as u32, self.passed()) {
            return Ok(());
        }
        let mut got = 0;
        match k.recv(&mut scratch[..n], false) {
            Ok(0) => self.stream_ended(),
            Ok(n) => {
                self.count_tcp(0, n as u64);
                self.only_bells(&scratch[..n])?;
                got = n;
            }
            Err(f) => self.kernel_fault(f),
        }
        if got < n {
            rx.unclaim_bells((n - got) as u32);
        }
        Ok(())
    }

    /// For a front whose kernel tells of the stream's end only to who has read all that lies before it: takes off the doorbells
    /// that nobody needs. What comes before unread bytes of the ring no sleeper waits for (`unread`: and nobody else); after a reset
    /// the end itself follows.
    pub fn uncover_end(&self, k: &impl Kernel, unread: bool) {
        let Ok(segment) = self.rings() else { return };
        let (end, rx) = (self.end, segment.rx());
        if rx.bells_untaken() == 0 || end.rx_path() != Path::Ring {
            return;
        }
        let reset = rx.flags() & layout::RESET != 0;
        let unread = unread && rx.flags() == 0 && rx.readable().is_ok_and(|n| n > 0);
        if !reset && (!unread || rx.has_sleepers()) {
            // If the ring is empty.
            let _ = self.take_bells(k);
            return;
        }
        let _rx = self.lock_rx(k);
        let goes_on = || {
            let passed = self.passed();
            end.rx_path() == Path::Ring && rx.down_at(passed).is_none() && !rx.is_moved()
        };
        let mut scratch = [0_u8; 64];
        while rx.bells_untaken() > 0 && goes_on() {
            let n = scratch.len().min(rx.bells_untaken());
            // Seen on the stream first, no switch after: these bytes are bells.
            let Ok(seen @ 1..) = k.recv(&mut scratch[..n], true) else {
                return;
            };
            rx.count_taken(seen as u32);
            let taken = match goes_on() {
                true => k.recv(&mut scratch[..seen], false).unwrap_or(0),
                false => 0,
            };
            rx.unclaim_bells((seen - taken) as u32);
            self.count_tcp(0, taken as u64);
            if self.only_bells(&scratch[..taken]).is_err() || taken < seen {
                return;
            }
        }
    }

    /// A doorbell that is unread when the peer is killed makes its kernel drop what it has not delivered yet. Does it hold, or will
    /// it, bytes that the peer has put on the stream?
    pub(crate) fn peer_owes_stream(&self, k: &impl Kernel, segment: &gm::Segment) -> bool {
        let rx = segment.rx();
        if self.is_moving(rx) {
            return true;
        }
        if self.end.rx_path() == Path::Ring {
            return false;
        }
        match rx.up_at(self.passed()) {
            // Is all that there is before the switch here?
            Some(up) => up.wrapping_sub(self.end.tcp_rx.load(Relaxed)) > k.queued() as u64,
            None => true,
        }
    }

    /// Does the peer go back to TCP just now, or has it, and we have not followed?
    pub(crate) fn is_moving(&self, rx: Rx<'_>) -> bool {
        rx.is_moved() || rx.down_at(self.passed()).is_some()
    }

    /// This end has bytes on the stream, or is about to: no doorbell may be left unread. Those that are counted come at once, or
    /// are taken back: who counts one looks then what we do.
    pub(crate) fn await_no_bell(&self, k: &impl Kernel) {
        let Ok(segment) = self.rings() else { return };
        let rx = segment.rx();
        let since = k.now_us();
        while rx.bells_untaken() > 0 && self.end.rx_path() == Path::Ring {
            self.leave_no_bell(k);
            self.advance(k);
            let stays = rx.readable() != Ok(0) || rx.flags() != 0 && rx.has_sleepers();
            if stays || self.end.has(flag::KERNEL_EOF | flag::KERNEL_DEAD) {
                return;
            }
            if rx.bells_untaken() > 0 {
                if k.now_us().saturating_sub(since) >= BELL_PATIENCE_US {
                    return;
                }
                k.yield_now();
            }
        }
    }

    /// Takes them off though the end is told, unless somebody sleeps who must find the stream readable.
    pub(crate) fn leave_no_bell(&self, k: &impl Kernel) {
        let Ok(segment) = self.rings() else { return };
        let rx = segment.rx();
        match rx.finished() && rx.readable() == Ok(0) && !rx.has_sleepers() {
            true => self.take_last_bells(k, rx),
            false => drop(self.take_bells(k)),
        }
    }

    /// Payload among the doorbells came by a call that nobody saw (stdio on the descriptor, a static helper): its place
    /// in the stream is lost, so the connection is reset rather than the byte.
    pub(crate) fn only_bells(&self, taken: &[u8]) -> Result<(), Fault> {
        if taken.iter().all(|b| *b == layout::BELL) {
            Ok(())
        } else {
            Err(self.corrupt())
        }
    }

    /// Woken, with an empty ring and no bell counted: a writer rang once more for one that was killed while ringing.
    /// Bytes seen on the stream while it is not back on TCP are bells, so one may be taken.
    pub(crate) fn drop_stray_bells(&self, k: &impl Kernel) {
        let Ok(segment) = self.rings() else { return };
        let rx = segment.rx();
        if self.end.rx_path() != Path::Ring || rx.readable() != Ok(0) || self.take_bells(k).is_err()
        {
            return;
        }
        let _rx = self.lock_rx(k);
        if !self.is_engaged() || self.end.has(flag::RENEWED) {
            // The kernel's socket may be another one by now, which has no bells.
            return;
        }
        let mut scratch = [0_u8; 1];
        if !matches!(k.recv(&mut scratch, true), Ok(1)) {
            return;
        }
        // Seen on the stream first, no switch after: this byte is a bell.
        if self.end.rx_path() == Path::Ring && rx.claim_bells(1, self.passed()) {
            match k.recv(&mut scratch, false) {
                Ok(1) => {
                    self.count_tcp(0, 1);
                    let _ = self.only_bells(&scratch);
                }
                _ => rx.unclaim_bells(1),
            }
        }
    }
}
