//! A reader that finds nothing: polling, arming, sleeping (INV-5).

use gm::clock::TICKS_PER_US;
use gm::end::flag;
use gm::{End, EventQueue, Path};
use ring::layout;
use ring::sync::Ordering::Relaxed;
use ring::{Corrupt, Rx};

use super::Spun;
use crate::call::Call;
use crate::{Conn, Fault, Kernel, Peeked, QUEUE_SLICE_US};

/// See [`Conn::check_idle_wake`]: some tens of milliseconds.
const IDLE_WAKES_TO_YIELD: u32 = 100;
const IDLE_WAKES_MOST: u32 = 1_000;
/// How often, in µs, a reader with a doorbell on its stream looks for the end of a switch that has begun.
const MOVING_SLICE_US: u64 = 1_000;
/// Two weeks or so: nobody waits so long.
const FAR_OFF_US: u64 = 1 << 40;
/// Empty reads in a row for payload that does not come though what follows it is there: about a second.
const STRETCH_READS_MOST: u32 = 200_000;
/// The same as `MOVING_SLICE_US` for a reader that sleeps.
const STRETCH_SLICE_US: u64 = 20_000;
/// Empty non-blocking reads between two looks at the kernel's socket for the peer's end.
const ASK_KERNEL_EVERY: u32 = 8;
/// ... and µs.
const ASK_KERNEL_US: u64 = 2;

/// How a sleep ended.
enum Slept {
    /// There is something to look at.
    Rung,
    /// So there was before it slept.
    Not,
    /// The stream has something, or the call is over.
    Stream(Result<Peeked, Fault>),
}

impl Conn {
    /// Nothing to read: poll for a while, then sleep. Returns when it is worth looking again; true: it slept.
    pub(crate) fn wait_readable(
        &self,
        k: &impl Kernel,
        dont_wait: bool,
        call: &mut Call,
    ) -> Result<bool, Fault> {
        self.mind_asks(k);
        if dont_wait {
            return self.would_block(k).map(|()| false);
        }
        if self.spin_readable(k) == Spun::Found {
            return Ok(false);
        }
        if !call.may_sleep(self, k) {
            return self.would_block(k).map(|()| false);
        }
        let most = self.end.receive_timeout_us.load(Relaxed);
        match call.left_us(most, k) {
            Some(0) => Err(Fault::WouldBlock),
            // A call that has bytes is ended by any signal, and tells of them: so it has a limit.
            None if call.has_begun => self.sleep_readable(k, FAR_OFF_US).map(|()| true),
            left => self.sleep_readable(k, left.unwrap_or(0)).map(|()| true),
        }
    }

    /// Has this direction come from the ring to TCP? When it goes back, a doorbell can lie behind payload, where nobody takes it off
    /// who gives the stream away.
    pub(crate) fn stream_comes_first(&self) -> bool {
        self.end.rx_path() == Path::Tcp && self.passed() > 0
    }

    fn spin_readable(&self, k: &impl Kernel) -> Spun {
        let Ok(segment) = self.rings() else {
            return Spun::Nothing;
        };
        if self.end.rx_path() != Path::Ring {
            return Spun::Nothing;
        }
        let rx = segment.rx();
        let (head, passed) = (rx.position(), self.passed());
        let news = || {
            rx.published() != head && !rx.is_moved()
                || rx.finished() && !rx.is_moved()
                || self.is_asked_for_tcp()
                || rx.down_at(passed).is_some()
        };
        self.read_spin.wait(k.cpus(), || k.yield_now(), news)
    }

    /// A non-blocking read found nothing. Now and then the kernel must be asked, for the peer may be gone.
    fn would_block(&self, k: &impl Kernel) -> Result<(), Fault> {
        let end = self.end;
        if end.rx_path() != Path::Ring {
            return Err(self.without_stretch(k));
        }
        let turn = self.empty_reads.load(Relaxed).wrapping_add(1);
        self.empty_reads.store(turn, Relaxed);
        // A reset that was told in the ring is in force when the kernel tells it too.
        let told = self.peer_aborted();
        let due = turn.is_multiple_of(ASK_KERNEL_EVERY) && self.ask_is_due();
        if (told || due) && self.note_kernel(k.poll()) {
            return Ok(());
        }
        Err(Fault::WouldBlock)
    }

    /// Who reads all the time, and finds nothing, does not ask all the time.
    fn ask_is_due(&self) -> bool {
        let now = gm::clock::ticks();
        let due = now.wrapping_sub(self.kernel_asked.load(Relaxed)) > ASK_KERNEL_US * TICKS_PER_US;
        if due {
            self.kernel_asked.store(now, Relaxed);
        }
        due
    }

    /// The stream is empty. An end that is told in the ring makes the connection readable; with an honest peer the payload before it
    /// is here at once, others may keep a program at this for ever.
    fn without_stretch(&self, k: &impl Kernel) -> Fault {
        let told = |s: &gm::Segment| s.rx().finished() && s.rx().up_at(self.passed()).is_some();
        if !self.segment().is_some_and(told) {
            return Fault::WouldBlock;
        }
        let wakes = self.idle_wakes.fetch_add(1, Relaxed);
        if wakes > IDLE_WAKES_TO_YIELD {
            k.yield_now();
        }
        match wakes > STRETCH_READS_MOST {
            true => self.corrupt(),
            false => Fault::WouldBlock,
        }
    }

    fn sleep_readable(&self, k: &impl Kernel, timeout_us: u64) -> Result<(), Fault> {
        let rx = self.rings()?.rx();
        let start = gm::clock::ticks();
        let needed = self.stream_comes_first();
        let listed = |queue: &EventQueue| self.sleep_listed(k, rx, queue, timeout_us);
        let slept = match k.with_queue(needed, listed) {
            Some(slept) => slept?,
            None => self.sleep_armed(k, rx, timeout_us)?,
        };
        let woken = match slept {
            Slept::Stream(woken) => woken,
            Slept::Rung => return Ok(()),
            Slept::Not => {
                self.await_stretch(k, rx);
                return Ok(());
            }
        };
        match woken {
            Ok(Peeked::EndOfFile) if self.end.rx_path() == Path::Ring => {
                self.stream_ended();
                Ok(())
            }
            Ok(Peeked::EndOfFile) => Ok(()),
            Ok(Peeked::Bytes(_)) => {
                if rx.flags() & layout::RESET != 0 {
                    // A doorbell lies before the kernel's own word of the reset.
                    self.note_kernel(k.poll());
                }
                self.drop_stray_bells(k);
                self.check_idle_wake(k, gm::clock::ticks().wrapping_sub(start))
            }
            Err(f @ (Fault::WouldBlock | Fault::Interrupted)) => Err(f),
            Err(f) if self.end.rx_path() == Path::Ring => {
                self.kernel_fault(f);
                Ok(())
            }
            Err(f) => Err(f),
        }
    }

    /// Until the writer lists this end in `queue` and rings, or there is something on the stream. `None`: it can't be listed.
    fn sleep_listed(
        &self,
        k: &impl Kernel,
        rx: Rx<'_>,
        queue: &EventQueue,
        timeout_us: u64,
    ) -> Option<Result<Slept, Fault>> {
        if !self.is_engaged() || !self.listen(k, queue.id(), 0, || !k.is_watched()) {
            return None;
        }
        let sleep = queue.words().fall_asleep();
        let slept = self.is_quiet(rx).map(|quiet| match quiet {
            true => self.count_sleep(
                || queue.rung_at(),
                || {
                    let (limit_us, timed) = match timeout_us {
                        0 => (QUEUE_SLICE_US, false),
                        us => (us, true),
                    };
                    match k.sleep_rung(queue, limit_us, timed) {
                        Ok(None) => Slept::Rung,
                        Ok(Some(peeked)) => Slept::Stream(Ok(peeked)),
                        Err(f) => Slept::Stream(Err(f)),
                    }
                },
            ),
            false => Slept::Not,
        });
        self.leave_queue(queue.id());
        // This sleep alone: in a forked child, whose call goes on, it is over, and the parent may be in another.
        queue.words().wake_up(sleep);
        Some(slept)
    }

    /// Until there is something on the stream: a doorbell, say.
    fn sleep_armed(&self, k: &impl Kernel, rx: Rx<'_>, timeout_us: u64) -> Result<Slept, Fault> {
        self.take_bells(k)?;
        rx.arm(self.end.tcp_rx.load(Relaxed));
        let slept = self.is_quiet(rx).map(|quiet| match quiet {
            true => self.count_sleep(|| 0, || Slept::Stream(k.sleep_readable(timeout_us))),
            false => Slept::Not,
        });
        rx.disarm();
        slept
    }

    fn count_sleep(&self, rung_at: impl Fn() -> u64, sleep: impl FnOnce() -> Slept) -> Slept {
        End::count(&self.end.sleeps, 1);
        let start = gm::clock::ticks();
        let slept = sleep();
        self.read_spin.slept(start, rung_at());
        slept
    }

    /// The ring has something behind a stretch of the stream that has not come. It is on its way with an honest peer; others may
    /// let us wait for ever.
    fn await_stretch(&self, k: &impl Kernel, rx: Rx<'_>) {
        if self.end.rx_path() == Path::Ring || k.queued() > 0 {
            self.idle_wakes.store(0, Relaxed);
            return;
        }
        let wakes = self.idle_wakes.fetch_add(1, Relaxed);
        if wakes < IDLE_WAKES_TO_YIELD {
            k.yield_now();
            return;
        }
        let slice = match wakes {
            0..IDLE_WAKES_MOST => MOVING_SLICE_US,
            _ => STRETCH_SLICE_US,
        };
        let seq = rx.direction.wait.space_seq.load(Relaxed);
        let _ = k.sleep_word(&rx.direction.wait.space_seq, seq, slice);
    }

    /// Woken at once again and again, with nothing to show for it: somebody keeps the stream readable and the shared
    /// words in the way of taking what is there.
    fn check_idle_wake(&self, k: &impl Kernel, slept: u64) -> Result<(), Fault> {
        let Ok(segment) = self.rings() else {
            return Ok(());
        };
        let rx = segment.rx();
        if rx.is_moved() {
            // The writer is in the middle of its way back to TCP. It may have lost its CPU there, or its life.
            self.note_kernel(k.poll());
            let seq = rx.direction.wait.space_seq.load(Relaxed);
            let _ = k.sleep_word(&rx.direction.wait.space_seq, seq, MOVING_SLICE_US);
            return Ok(());
        }
        let quiet = self.end.rx_path() == Path::Ring && rx.readable() == Ok(0);
        if !quiet || slept > 50 * gm::clock::TICKS_PER_US {
            self.idle_wakes.store(0, Relaxed);
            return Ok(());
        }
        let wakes = self.idle_wakes.fetch_add(1, Relaxed);
        if wakes > IDLE_WAKES_TO_YIELD {
            k.yield_now();
        }
        if wakes > IDLE_WAKES_MOST {
            Err(self.corrupt())
        } else {
            Ok(())
        }
    }

    /// Has the peer asked for TCP, and is it still to be answered?
    fn is_asked_for_tcp(&self) -> bool {
        let asked = |s: &gm::Segment| s.tx().asks() & layout::PLEASE_DOWN != 0;
        self.end.tx_path() == Path::Ring && self.segment().is_some_and(asked)
    }

    /// After arming, a last look. False: there is something to look at.
    fn is_quiet(&self, rx: Rx<'_>) -> Result<bool, Fault> {
        let passed = self.passed();
        let quiet = match self.end.rx_path() {
            Path::Ring => {
                rx.readable().map_err(|Corrupt| self.corrupt())? == 0
                    && (!rx.finished() || rx.is_moved())
                    && rx.down_at(passed).is_none()
                    && !self.end.has(flag::KERNEL_EOF | flag::KERNEL_DEAD)
            }
            // The stream itself wakes us. But where the stretch ends already, another reader may take the rest of it
            // and leave the ring to us, for which nobody rings.
            Path::Tcp => {
                rx.up_at(passed).is_none()
                    || rx.readable() == Ok(0) && rx.flags() == 0 && rx.down_at(passed).is_none()
            }
        };
        // Who asks looks for sleepers then.
        Ok(quiet && !self.is_asked_for_tcp())
    }
}
