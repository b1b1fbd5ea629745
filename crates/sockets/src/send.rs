//! Sending: into the ring, onto the kernel's stream, doorbells, and the wait for room.

use std::io::IoSlice;

use gm::end::flag;
use gm::{End, Path, Reason};
use ring::sync::Ordering::Relaxed;
use ring::{Corrupt, Tx, layout};

use gm::Segment;

use crate::waiting::{Spun, Waiting};
use crate::{Conn, Fault, Kernel, Ready};

/// Flags of one sending call.
#[derive(Clone, Copy, Default)]
pub struct SendOptions {
    /// MSG_DONTWAIT, or O_NONBLOCK.
    pub dont_wait: bool,
}

/// Sends into the ring between two looks whether the peer still lives.
const CHECK_PEER_EVERY: u32 = 256;
/// What stands in their count after a bell: a dead peer's kernel has answered it with a reset, so the next send looks.
const AFTER_A_BELL: u32 = CHECK_PEER_EVERY + 1;
/// A writer that sleeps for room looks for the peer's death this often, in µs: no event says both "room" and "dead".
pub(crate) const ROOM_SLICE_US: u64 = 20_000;

/// A direction that went to TCP because its ring was full looks at every so-many-th send whether it can come back.
const COME_BACK_EVERY: u32 = 8;

/// A peer that reads nothing for so long, in µs, may never read before we have written all.
pub(crate) const STALLED_US: u64 = 50_000;

/// Where the bytes of one attempt went.
enum Put {
    Bytes(usize),
    /// The ring is full.
    RingFull,
    /// The kernel's stream is full.
    StreamFull,
}

/// Has the peer's program shut its reading and its sending?
#[inline]
pub(crate) fn has_shut_both_ways(segment: &Segment) -> bool {
    segment.tx().reading_is_shut() && segment.rx().finished()
}

impl Conn {
    /// Sends on an engaged connection; a blocking call returns when all bytes are taken.
    #[inline]
    pub fn send(
        &self,
        k: &impl Kernel,
        bufs: &[IoSlice<'_>],
        o: SendOptions,
    ) -> Result<usize, Fault> {
        let want: usize = bufs.iter().map(|b| b.len()).sum();
        let mut done = 0;
        let mut waiting = Waiting::new(k);
        // Has the ring's reader been waited for?
        let mut waited = false;
        loop {
            let fault = match self.put(k, bufs, done, o.dont_wait, waited) {
                Ok(Put::Bytes(n)) => {
                    done += n;
                    waited = false;
                    if done >= want {
                        return Ok(done);
                    }
                    continue;
                }
                Ok(Put::RingFull) if !waited => {
                    waited = true;
                    self.wait_for_reader(k, want - done)
                }
                Ok(Put::RingFull) => self.wait_room(&mut waiting, k, o, (want, done)),
                Ok(Put::StreamFull) if o.dont_wait => {
                    // The direction may be on the ring by the time there is room: an edge is owed either way.
                    self.fulls.fetch_add(1, Relaxed);
                    Err(Fault::WouldBlock)
                }
                Ok(Put::StreamFull) => self.wait_stream(&mut waiting, k, done > 0),
                Err(f) => Err(f),
            };
            if let Err(f) = fault {
                return self.so_far(done, f);
            }
        }
    }

    /// One attempt, under the sending lock.
    #[inline]
    fn put(
        &self,
        k: &impl Kernel,
        bufs: &[IoSlice<'_>],
        skip: usize,
        dont_wait: bool,
        may_overflow: bool,
    ) -> Result<Put, Fault> {
        let end = self.end;
        if end.tx_path() == Path::Tcp {
            self.see_confirmation(k);
        }
        let guard = self.lock_tx(k);
        if end.has(flag::WRITE_SHUT) {
            return Err(Fault::Pipe);
        }
        if end.tx_path() == Path::Ring || self.comes_back(k, guard.is_nested()) {
            let segment = self.rings()?;
            let tx = segment.tx();
            if guard.is_nested() {
                // A signal handler sends on the connection whose send it interrupted. Its bytes can't go between the
                // halves of that copy, and waiting would be for ever.
                return Err(Fault::WouldBlock);
            }
            if dont_wait && self.is_refused(segment) {
                return Ok(Put::RingFull);
            }
            if has_shut_both_ways(segment) {
                self.send_unheard()?;
            }
            if self.stays_on_ring(k, segment, tx, bufs)? {
                let mut n = tx
                    .write(&self.write_cache, bufs, skip)
                    .map_err(|Corrupt| self.corrupt())?;
                if n == 0 && may_overflow {
                    match self.write_beside(k, segment, bufs, skip)? {
                        Some(beside) => n = beside,
                        None => return self.put_on_stream(k, bufs, skip),
                    }
                }
                if n == 0 {
                    return Ok(if bufs.iter().all(|b| b.is_empty()) {
                        Put::Bytes(0)
                    } else {
                        Put::RingFull
                    });
                }
                End::count(&end.tx_bytes, n as u64);
                End::count(&end.tx_messages, 1);
                if tx.asks() & layout::PLEASE_DOWN != 0 {
                    // Asked since we looked: the asker sees these bytes and waits for them, or we see that it asks.
                    self.switch_down(k, tx, None);
                } else if tx.is_awaited() && self.tell(k, tx) {
                    self.unchecked_sends.store(AFTER_A_BELL, Relaxed);
                }
                return Ok(Put::Bytes(n));
            }
        }
        self.put_on_stream(k, bufs, skip)
    }

    /// The peer has shut both ways. Its kernel would answer what comes with a reset: one send is taken, and lost, others fail.
    #[cold]
    fn send_unheard(&self) -> Result<(), Fault> {
        if self.end.has(flag::UNHEARD) {
            return Err(Fault::Pipe);
        }
        self.end.set(flag::UNHEARD);
        Ok(())
    }

    /// A large non-blocking send found no room, and the peer has read nothing since: a small one finds none either, as TCP
    /// has it.
    #[inline]
    fn is_refused(&self, segment: &Segment) -> bool {
        let refused = self.refused_head.load(Relaxed);
        if refused == u64::MAX {
            return false;
        }
        let tx = segment.tx();
        // Where there is room all the same (the peer has widened the window), it is called writable.
        if tx.peer_head() == refused && tx.asks() == 0 && !self.has_room(segment) {
            return true;
        }
        self.refused_head.store(u64::MAX, Relaxed);
        false
    }

    /// Sending on TCP: now and then, is it time for the ring again? Caller holds the sending lock.
    fn comes_back(&self, k: &impl Kernel, nested: bool) -> bool {
        let turn = self.sends_on_tcp.fetch_add(1, Relaxed) % COME_BACK_EVERY;
        let due = !nested && turn == 0 && self.end.tx_switches.load(Relaxed) != 0;
        // Where the stream is full, what comes beside it would find no room there when it is moved.
        due && k.poll().intersects(Ready::OUT) && self.rings().is_ok_and(|s| self.come_back(s.tx()))
    }

    /// May these bytes go into the ring? If not, the direction has just been switched back to TCP.
    #[inline]
    fn stays_on_ring(
        &self,
        k: &impl Kernel,
        segment: &Segment,
        tx: Tx<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Result<bool, Fault> {
        let end = self.end;
        // An end of the stream that was seen while the peer's own sending was on the ring: it closed, or died.
        let gone = end.has(flag::KERNEL_EOF) && segment.rx().writer_is_on_ring();
        if tx.asks() != 0 || end.has(flag::KERNEL_DEAD) || gone {
            self.meet_reset(k, segment)?;
            self.switch_down(k, tx, None);
            return Ok(false);
        }
        let position = tx.position() as usize;
        let grown = self.grown.load(Relaxed);
        if grown < segment.ring_bytes() {
            let len: usize = bufs.iter().map(|b| b.len()).sum();
            match segment.grow(grown, position.saturating_add(len)) {
                Ok(g) => self.grown.store(g, Relaxed),
                Err(_) => {
                    self.switch_down(k, tx, Some(Reason::NoMemory));
                    return Ok(false);
                }
            }
        }
        if tx.has_overflowed() {
            let len = bufs.iter().map(|b| b.len()).sum();
            if !self.mind_overflow(k, segment, len) {
                self.switch_down(k, tx, None);
                return Ok(false);
            }
        }
        // A peer that died leaves the ring writable; the kernel's socket knows better.
        let unchecked = self.unchecked_sends.load(Relaxed);
        self.unchecked_sends.store(unchecked + 1, Relaxed);
        if unchecked >= CHECK_PEER_EVERY {
            self.unchecked_sends.store(0, Relaxed);
            // After a bell that was answered, it lives.
            let answered = unchecked == AFTER_A_BELL && !tx.bell_under_way();
            if !answered && self.peer_is_gone(k) {
                self.switch_down(k, tx, None);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a peer that is known to be gone left unread is a reset, as poll and read say. The stream may not know of it: a peer
    /// that was killed had read all there was on it.
    #[cold]
    fn meet_reset(&self, k: &impl Kernel, segment: &Segment) -> Result<(), Fault> {
        if !self.is_reset(segment) {
            return Ok(());
        }
        if self.end.has(flag::RESET_TOLD) {
            return Err(Fault::Pipe);
        }
        self.end.set(flag::RESET_TOLD | flag::KERNEL_DEAD);
        // The kernel's own error is told with this one.
        let own = k.take_error();
        Err(match self.ended_before(own) {
            true => Fault::Pipe,
            false => Fault::Reset,
        })
    }

    /// Had the peer ended before the bytes came that it left unread? The kernel calls the reset that answers those EPIPE (tcp(7) does
    /// not say so), and a reader still finds a clean end.
    pub(crate) fn ended_before(&self, own: Option<Fault>) -> bool {
        let unmoved = self.end.has(flag::UNMOVED | flag::CORRUPT);
        own == Some(Fault::Pipe) && !unmoved && !self.peer_aborted()
    }

    /// The next send asks the kernel whether the peer lives.
    pub(crate) fn check_peer_next(&self) {
        self.unchecked_sends.store(CHECK_PEER_EVERY, Relaxed);
    }

    pub(crate) fn peer_is_gone(&self, k: &impl Kernel) -> bool {
        let ready = k.poll();
        // A peer that only shut its sending side down does so in the ring, not on the stream, if its sending is there; so
        // an end of the stream means then that the socket was closed.
        let on_ring = self.rings().is_ok_and(|s| s.rx().writer_is_on_ring());
        // Of a socket whose reading the program has shut, or both ways, the kernel says the one and the other whatever the peer does.
        let says = |what| ready.intersects(what) && !self.end.has(flag::READ_SHUT);
        on_ring && (says(Ready::RDHUP) || self.end.has(flag::KERNEL_EOF))
            || says(Ready::HUP)
            || ready.intersects(Ready::ERR)
            || self.end.has(flag::KERNEL_DEAD)
    }

    #[cold]
    fn put_on_stream(
        &self,
        k: &impl Kernel,
        bufs: &[IoSlice<'_>],
        skip: usize,
    ) -> Result<Put, Fault> {
        let due = self.end.has(flag::RESET_DUE | flag::UNMOVED);
        if due && !self.end.has(flag::RESET_TOLD) {
            self.end.set(flag::RESET_TOLD);
            return Err(Fault::Reset);
        }
        self.take_late_bells(k);
        if self.owes_rest() && !self.send_rest(k, self.rings()?.tx()) {
            return self.stream_is_full();
        }
        if bufs.iter().all(|b| b.is_empty()) {
            return Ok(Put::Bytes(0));
        }
        match k.send_many(bufs, skip) {
            Ok(n) => {
                self.count_tcp(n as u64, 0);
                Ok(Put::Bytes(n))
            }
            Err(Fault::WouldBlock) => self.stream_is_full(),
            Err(f) => {
                if f == Fault::Reset {
                    self.end.set(flag::RESET_TOLD | flag::KERNEL_DEAD);
                }
                Err(f)
            }
        }
    }

    /// Of a peer that has shut both ways there is nothing to wait for: it answers the next byte with a reset. Here that byte may
    /// find no room, for ever.
    fn stream_is_full(&self) -> Result<Put, Fault> {
        match self.peer_takes_nothing() {
            true => Err(Fault::Pipe),
            false => Ok(Put::StreamFull),
        }
    }

    /// Has the peer shut both ways?
    pub(crate) fn peer_takes_nothing(&self) -> bool {
        self.segment().is_some_and(has_shut_both_ways)
    }

    /// Who asked for TCP rang as it asked. Left unread, that bell would make the death of this process a reset.
    fn take_late_bells(&self, k: &impl Kernel) {
        let bells = |s: &Segment| s.rx().bells_untaken() != 0;
        if self.end.rx_path() == Path::Ring && self.segment().is_some_and(bells) {
            self.leave_no_bell(k);
            self.advance(k);
        }
    }

    /// There is news for the peer, which is awaited: lists its end in its event queue, or rings. True: it was rung for on the
    /// stream. Caller holds the sending lock, the direction is on the ring.
    #[cold]
    pub(crate) fn tell(&self, k: &impl Kernel, tx: Tx<'_>) -> bool {
        self.list(k, tx);
        let due = tx.bell_due();
        if due {
            self.ring_bell(k);
        }
        due
    }

    /// Lists the peer's end in its event queue, if it asked for that. False: it did not, or rings from now on.
    pub(crate) fn list(&self, k: &impl Kernel, tx: Tx<'_>) -> bool {
        let Some((queue, entry)) = tx.listener() else {
            return false;
        };
        match k.list(queue, entry) {
            Some(true) => End::count(&self.end.port_bells, 1),
            Some(false) => {}
            None => {
                tx.ring_instead();
                return false;
            }
        }
        true
    }

    /// Sends one doorbell byte. Caller holds the sending lock, the direction is on the ring. If the stream takes no
    /// byte now, it is full of payload from before the switch, and that wakes the reader as well. False: not sent, for it could
    /// cost bytes of the peer's ([`Conn::peer_owes_stream`]).
    #[cold]
    pub(crate) fn ring_bell(&self, k: &impl Kernel) -> bool {
        let Ok(segment) = self.rings() else {
            return true;
        };
        let (tx, rx) = (segment.tx(), segment.rx());
        let owes = self.peer_owes_stream(k, segment);
        // Killed with payload unread, it loses them over TCP as well.
        let costs = || tx.unread() == Ok(0) && (owes || self.is_moving(rx));
        let rung = !costs() && self.ring_unless(k, costs);
        if !rung {
            tx.not_rung();
        }
        rung
    }

    /// Sends a doorbell unless `costs`, which is asked once the bell is counted: false then.
    #[cold]
    pub(crate) fn ring_unless(&self, k: &impl Kernel, costs: impl FnOnce() -> bool) -> bool {
        let Ok(segment) = self.rings() else {
            return true;
        };
        if self.end.has(flag::CLOSED_BOTH) || self.peer_is_deaf() {
            // The kernel's half is shut: that the attempt fails would say nothing of the peer. Or the peer waits for nothing.
            return true;
        }
        segment.tx().count_bell();
        // A byte for a closed socket would only make its kernel reset the connection, and one for somebody who wants
        // TCP would be taken for payload. Who asks looks at the count after asking, as we look here after counting; so
        // does who moves what is unread.
        let asked = segment.tx().asks() != 0;
        if asked || costs() {
            segment.tx().uncount_bell();
            return asked;
        }
        match k.send(&[layout::BELL]) {
            Ok(_) => {
                End::count(&self.end.bells_sent, 1);
                self.count_tcp(1, 0);
            }
            Err(f) => {
                segment.tx().uncount_bell();
                self.kernel_fault(f);
            }
        }
        true
    }

    /// The kernel's stream is full, for a call that waits.
    fn wait_stream<K: Kernel>(
        &self,
        waiting: &mut Waiting<'_, K>,
        k: &K,
        moved: bool,
    ) -> Result<(), Fault> {
        if !waiting.call.may_sleep(self, k) {
            self.fulls.fetch_add(1, Relaxed);
            return Err(Fault::WouldBlock);
        }
        waiting.begin();
        loop {
            let slept = k.sleep_writable(self.slice_us(waiting, k)?);
            if slept == Ok(()) && moved && k.poll().intersects(Ready::ERR) {
                // The part is told first; the error stays on the socket for the next call.
                return Err(Fault::Pipe);
            }
            if slept != Err(Fault::WouldBlock) {
                return waiting.after(slept, moved);
            }
            waiting.after(Ok(()), moved)?;
            if self.peer_takes_nothing() {
                return Ok(());
            }
        }
    }

    /// How long, in µs, a send may sleep before it looks again.
    fn slice_us<K: Kernel>(&self, waiting: &mut Waiting<'_, K>, k: &K) -> Result<u64, Fault> {
        let most = self.end.send_timeout_us.load(Relaxed);
        match waiting.call.left_us(most, k) {
            Some(0) => Err(Fault::WouldBlock),
            left => Ok(left.unwrap_or(u64::MAX).min(ROOM_SLICE_US)),
        }
    }

    /// Is the peer gone, or has it shut both ways?
    fn nobody_will_read(&self, k: &impl Kernel, segment: &Segment) -> bool {
        let gone = self.peer_is_gone(k);
        if gone {
            self.end.set(flag::KERNEL_DEAD);
        }
        gone || has_shut_both_ways(segment)
    }

    /// The ring is full: its reader may be about to make room for so many bytes. If it is not, the overflow area takes them.
    fn wait_for_reader(&self, k: &impl Kernel, want: usize) -> Result<(), Fault> {
        let tx = self.rings()?.tx();
        if tx.may_overflow() {
            let woken = || self.is_roomy(tx, want) || tx.asks() != 0;
            self.write_spin.wait(k.cpus(), || k.yield_now(), woken);
        }
        Ok(())
    }

    /// Is there room for a good part of what is still to be sent? Not for the first byte.
    fn is_roomy(&self, tx: Tx<'_>, want: usize) -> bool {
        self.takes(tx, want.min(tx.window() as usize / 4))
    }

    /// The ring is full: poll for room, then sleep for it.
    fn wait_room<K: Kernel>(
        &self,
        waiting: &mut Waiting<'_, K>,
        k: &K,
        o: SendOptions,
        (want, done): (usize, usize),
    ) -> Result<(), Fault> {
        let segment = self.rings()?;
        let tx = segment.tx();
        let overflows = tx.overflowed().is_some();
        if overflows {
            self.overflow_full.store(true, Relaxed);
        }
        // Once it has overflowed, a sleeper waits until nearly all is read: see `Rx::space_due`.
        let quarter = tx.window() / 4;
        let roomy = || match overflows {
            true => tx.unread().is_ok_and(|n| n <= quarter),
            false => self.is_roomy(tx, want - done),
        };
        if o.dont_wait {
            if self.nobody_will_read(k, segment) {
                // The next attempt meets the end, not the full ring.
                self.refused_head.store(u64::MAX, Relaxed);
                return Ok(());
            }
            self.mind_stall(k, segment);
            if self.end.tx_path() != Path::Ring {
                return Ok(());
            }
            // As TCP notes "no space": who polls for room after this gets a doorbell when there is some.
            tx.want_space(layout::WANT_BELL);
            self.fulls.fetch_add(1, Relaxed);
            if !self.is_refused(segment) && roomy() {
                return Ok(());
            }
            self.refused_head.store(tx.peer_head(), Relaxed);
            return Err(Fault::WouldBlock);
        }
        let woken = || roomy() || tx.asks() != 0;
        if self.write_spin.wait(k.cpus(), || k.yield_now(), woken) == Spun::Found {
            return Ok(());
        }
        if !waiting.call.may_sleep(self, k) {
            return self.wait_room(waiting, k, SendOptions { dont_wait: true }, (want, done));
        }
        waiting.begin();
        let (mut head, mut unread_since) = (tx.peer_head(), k.now_us());
        loop {
            let seq = tx.want_space(layout::WANT_FUTEX);
            if woken() {
                return Ok(());
            }
            let ended = self.end.has(flag::WRITE_SHUT);
            if ended || self.nobody_will_read(k, segment) {
                return Ok(());
            }
            let slice = self.slice_us(waiting, k)?;
            End::count(&self.end.sleeps, 1);
            let start = gm::clock::ticks();
            let slept = k.sleep_word(&tx.direction.wait.space_seq, seq, slice);
            self.write_spin.slept(start, 0);
            waiting.after(slept, done > 0)?;
            if self.has_room(segment) {
                return Ok(());
            }
            let (now, new_head) = (k.now_us(), tx.peer_head());
            if new_head != head {
                (head, unread_since) = (new_head, now);
            }
            let patience = self.stall_patience_us(segment);
            if now.saturating_sub(unread_since) >= patience && !woken() {
                // The peer does not read. It may be waiting for us just so (both write first, and read then), and TCP's
                // buffers are larger than the ring: what the ring does not hold goes there.
                self.send_over_tcp(k, None);
                return Ok(());
            }
        }
    }
}
