//! Receiving: from the ring, from the kernel's stream, and the wait between.

use std::io::IoSliceMut;

use gm::end::flag;
use gm::{End, Path, Reason};
use ring::layout;
use ring::sync::Ordering::Relaxed;
use ring::{Corrupt, Rx};

use crate::call::Call;
use crate::{Conn, Fault, Kernel};

/// Flags of one receiving call.
#[derive(Clone, Copy, Default)]
pub struct RecvOptions {
    /// MSG_DONTWAIT, or O_NONBLOCK.
    pub dont_wait: bool,
    pub peek: bool,
    pub wait_all: bool,
}

/// What one look at the stream gave.
pub(crate) enum Look {
    Bytes(usize),
    /// Bytes from the kernel's stream; there may be more, there or behind it in the ring.
    Stream(usize),
    Empty,
    EndOfFile,
}

/// Looks in a row that may find the path changed, or bytes that another reader takes. More is a peer that scribbles.
const LOOKS: u32 = 10_000;

impl Conn {
    /// Receives on an engaged connection. `Ok(0)` with room in `bufs` is end-of-file.
    #[inline]
    pub fn recv(
        &self,
        k: &impl Kernel,
        bufs: &mut [IoSliceMut<'_>],
        o: RecvOptions,
    ) -> Result<usize, Fault> {
        self.recv_within(k, bufs, o, &mut Call::default())
    }

    /// Takes what a peek of the same call has shown, without waiting.
    pub fn take(&self, k: &impl Kernel, bufs: &mut [IoSliceMut<'_>]) -> Result<usize, Fault> {
        let o = RecvOptions {
            dont_wait: true,
            wait_all: true,
            peek: false,
        };
        self.recv_within(k, bufs, o, &mut Call::that_has_begun())
    }

    #[inline]
    fn recv_within(
        &self,
        k: &impl Kernel,
        bufs: &mut [IoSliceMut<'_>],
        o: RecvOptions,
        call: &mut Call,
    ) -> Result<usize, Fault> {
        let want: usize = bufs.iter().map(|b| b.len()).sum();
        if want == 0 {
            return self.recv_nothing(k, o);
        }
        let mut done = 0;
        let mut slept = false;
        let mut moving_until = None;
        loop {
            match self.look(k, bufs, done, o, call.has_begun) {
                Ok(Look::Bytes(n)) => {
                    done += n;
                    call.has_begun = true;
                    if done == want || !o.wait_all && !self.goes_on_elsewhere() || o.peek {
                        if slept {
                            let _ = self.take_bells(k);
                        }
                        if self.has_bells_and_debts() {
                            self.await_no_bell(k);
                        }
                        return Ok(done);
                    }
                }
                Ok(Look::Stream(n)) => {
                    done += n;
                    call.has_begun = true;
                    if o.peek {
                        done += self.peek_behind(bufs, done)?;
                    }
                    if done == want || o.peek {
                        if !o.peek && (slept || self.has_bells_and_debts()) {
                            self.advance(k);
                            let _ = self.take_bells(k);
                        }
                        return Ok(done);
                    }
                }
                Ok(Look::EndOfFile) => {
                    if self.has_bells_and_debts() {
                        self.leave_no_bell(k);
                    }
                    return Ok(done);
                }
                Ok(Look::Empty)
                    if (done > 0 || o.dont_wait) && self.await_moved(k, &mut moving_until) => {}
                // What was received is reported first; the fault comes again with the next call.
                Ok(Look::Empty) if done > 0 && (o.dont_wait || !o.wait_all) => return Ok(done),
                Ok(Look::Empty) => match self.wait_readable(k, o.dont_wait, call) {
                    Ok(was_asleep) => slept |= was_asleep,
                    Err(f) => return self.so_far(done, f),
                },
                Err(Fault::UseKernel)
                    if call.has_begun && !o.peek && self.end.has(flag::RENEWED) =>
                {
                    return self.recv_renewed(k, bufs, done, o);
                }
                Err(f) => return self.so_far(done, f),
            }
        }
    }

    /// Did the writer take what was unread from under the call, to the stream? A program that asked how much there is, and receives
    /// as much, gets it from TCP at once.
    fn goes_on_elsewhere(&self) -> bool {
        self.rings().is_ok_and(|s| self.is_moving(s.rx()))
    }

    /// The stream is empty, but its writer is just putting there what was unread in the ring. True: there may be more now. `until`:
    /// when, in µs, the call has waited long enough for that.
    #[inline]
    fn await_moved(&self, k: &impl Kernel, until: &mut Option<u64>) -> bool {
        let passed = self.passed();
        let left_ring = |rx: Rx<'_>| match self.end.rx_path() {
            Path::Ring => rx.is_moved(),
            Path::Tcp => passed != 0 && rx.up_at(passed).is_none(),
        };
        let at_it = |rx| left_ring(rx) && !rx.all_moved();
        self.rings().is_ok_and(|s| at_it(s.rx())) && self.await_step(k, until)
    }

    #[cold]
    fn await_step(&self, k: &impl Kernel, until: &mut Option<u64>) -> bool {
        /// A writer that finds no room, or is gone, is not waited for.
        const MOVING_US: u64 = 200;
        let now = k.now_us();
        let in_time = now <= *until.get_or_insert(now + MOVING_US);
        if in_time {
            k.yield_now();
        }
        in_time
    }

    /// A doorbell left unread makes this process's death a reset, and the kernel drops then what it has not delivered. Is
    /// there one, and something of ours that the peer has not read from the stream?
    #[inline]
    fn has_bells_and_debts(&self) -> bool {
        self.rings()
            .is_ok_and(|s| s.rx().bells_untaken() != 0 && self.may_owe_stream(s))
    }

    /// May the kernel hold bytes of ours that the peer has not read? Those before the last switch to the ring count as well.
    #[cold]
    pub(crate) fn may_owe_stream(&self, segment: &gm::Segment) -> bool {
        self.end.tx_path() == Path::Tcp || !segment.tx().all_passed()
    }

    /// A fault after so many bytes: those are told first, and a reset then, as it is not found a second time.
    #[cold]
    pub fn so_far(&self, done: usize, f: Fault) -> Result<usize, Fault> {
        if done == 0 {
            return Err(f);
        }
        if f == Fault::Reset {
            self.end.set(flag::RESET_DUE);
            self.end.clear(flag::RESET_TOLD);
        }
        Ok(done)
    }

    /// A call with no room waits for something to read all the same.
    #[cold]
    fn recv_nothing(&self, k: &impl Kernel, o: RecvOptions) -> Result<usize, Fault> {
        let peek = RecvOptions {
            peek: true,
            wait_all: false,
            ..o
        };
        self.recv(k, &mut [IoSliceMut::new(&mut [0])], peek)
            .map(|_| 0)
    }

    /// Receives up to `want` bytes and throws them away (MSG_TRUNC); with `o.peek` leaves them.
    pub fn skip(&self, k: &impl Kernel, want: usize, o: RecvOptions) -> Result<usize, Fault> {
        const PIECE: usize = 2048;
        let mut scratch = [0_u8; PIECE];
        let (mut done, mut call) = (0, Call::default());
        if o.peek {
            self.recv_nothing(k, o)?;
            return Ok(self.readable_bytes(k).min(want));
        }
        while done < want {
            let n = PIECE.min(want - done);
            let later = RecvOptions {
                dont_wait: o.dont_wait || (done > 0 && !o.wait_all),
                ..o
            };
            let bufs = &mut [IoSliceMut::new(&mut scratch[..n])];
            match self.recv_within(k, bufs, later, &mut call) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(f) => return self.so_far(done, f),
            }
        }
        Ok(done)
    }

    /// A peek that has `done` bytes of the stream: if these are all before the switch, the ring's follow.
    #[cold]
    fn peek_behind(&self, bufs: &mut [IoSliceMut<'_>], done: usize) -> Result<usize, Fault> {
        let rx = self.rings()?.rx();
        let switch = self.end.tcp_rx.load(Relaxed).wrapping_add(done as u64);
        if self.end.rx_path() != Path::Tcp || rx.up_at(self.passed()) != Some(switch) {
            return Ok(0);
        }
        rx.read(&self.read_cache, bufs, done, true)
            .map_err(|Corrupt| self.corrupt())
    }

    #[inline]
    fn look(
        &self,
        k: &impl Kernel,
        bufs: &mut [IoSliceMut<'_>],
        skip: usize,
        o: RecvOptions,
        has_begun: bool,
    ) -> Result<Look, Fault> {
        for _ in 0..LOOKS {
            match self.end.rx_path() {
                Path::Ring => {
                    let rx = self.rings()?.rx();
                    let n = self.take_from_ring(k, rx, bufs, skip, o)?;
                    if n > 0 {
                        return Ok(Look::Bytes(n));
                    }
                    if self.end.has(flag::RENEWED) {
                        if !self.renews(k) {
                            return self.after_renewal(k);
                        }
                        match self.take_frozen(rx, bufs, skip, o)? {
                            0 => {}
                            n => return Ok(Look::Bytes(n)),
                        }
                    }
                    match self.ring_is_empty(k, rx)? {
                        Some(look) => return Ok(look),
                        None => continue,
                    }
                }
                // Both directions are on TCP: the kernel does the whole call, with all that it knows.
                Path::Tcp if !has_begun && !self.is_engaged() => return Err(Fault::UseKernel),
                Path::Tcp => match self.look_at_tcp(k, bufs, skip, o)? {
                    Some(look) => return Ok(look),
                    None => continue,
                },
            }
        }
        Err(self.corrupt())
    }

    #[inline]
    fn take_from_ring(
        &self,
        k: &impl Kernel,
        rx: Rx<'_>,
        bufs: &mut [IoSliceMut<'_>],
        skip: usize,
        o: RecvOptions,
    ) -> Result<usize, Fault> {
        let cache = &self.read_cache;
        let most = match o.peek {
            true => u64::MAX,
            false => ring::part_bytes(rx.bytes.capacity()) as u64,
        };
        let mut part = rx
            .read_part(cache, bufs, skip, o.peek, None, most)
            .map_err(|Corrupt| self.corrupt())?;
        let mut done = part.bytes;
        if done == 0 || o.peek {
            return Ok(done);
        }
        End::count(&self.end.rx_messages, 1);
        self.took(k, done);
        while part.bytes as u64 == most {
            // Nonsense shows again with the next call.
            match rx.read_part(cache, bufs, skip + done, false, Some(part.next), most) {
                Ok(next) if next.bytes > 0 => part = next,
                _ => break,
            }
            done += part.bytes;
            self.took(k, part.bytes);
        }
        Ok(done)
    }

    /// Bytes were taken off the ring: count them, wake a writer that waits for room.
    #[inline]
    fn took(&self, k: &impl Kernel, n: usize) {
        End::count(&self.end.rx_bytes, n as u64);
        if let Ok(segment) = self.rings() {
            if segment.rx().has_chosen_window() {
                self.adapt_receive_buffer(k, segment);
            }
            let wanted = segment.rx().space_due();
            if wanted != 0 {
                self.wake_writer(k, wanted);
            }
        }
    }

    /// The peer's writer waits for room: a futex, or a doorbell on our half of the stream.
    #[cold]
    pub(crate) fn wake_writer(&self, k: &impl Kernel, wanted: u32) {
        let Ok(segment) = self.rings() else { return };
        if wanted & layout::WANT_FUTEX != 0 {
            k.wake_word(&segment.rx().direction.wait.space_seq);
        }
        if wanted & layout::WANT_BELL != 0 {
            self.see_confirmation(k);
            let _tx = self.lock_tx(k);
            self.ring_for_room(k, segment);
        }
    }

    /// The peer's writer waits for room, and a bell is what tells it; before the switch it knows that none can come
    /// ([`Conn::room_slice_us`]). One that has ended its sending needs none, and a byte for a socket that is shut both ways
    /// resets it. Caller holds the sending lock.
    pub(crate) fn ring_for_room(&self, k: &impl Kernel, segment: &gm::Segment) {
        let tx = segment.tx();
        let listed = self.list(k, tx) && !tx.has_sleepers();
        let hears = !tx.reader_is_before_switch() && segment.rx().flags() == 0;
        if !listed && self.end.tx_path() == Path::Ring && hears {
            self.ring_bell(k);
        }
    }

    /// The ring was empty a moment ago. `None`: look again, the path has changed or bytes came.
    fn ring_is_empty(&self, k: &impl Kernel, rx: Rx<'_>) -> Result<Option<Look>, Fault> {
        let end = self.end;
        if !self.is_engaged() {
            // The kernel's socket was given another peer, which has the rest.
            return Err(Fault::UseKernel);
        }
        let passed = self.passed();
        // Before the look where the stream goes on: what a peer that is gone said is all there then.
        let gone = end.has(flag::KERNEL_EOF | flag::KERNEL_DEAD);
        if let Some((down, _)) = rx.down_at(passed) {
            let position = rx.position();
            if position != down && self.passed() == passed {
                let more = rx.readable().map_err(|Corrupt| self.corrupt())? > 0;
                if more || rx.position() != position {
                    // It is left to us, and was published since we looked; another reader may be at it as well.
                    return Ok(None);
                }
                // The writer says where it stopped us, and it was not here.
                return Err(self.corrupt());
            }
            self.receive_from_tcp_again(k, rx)?;
            return Ok(None);
        }
        if self.is_moved(rx) && self.passed() == passed {
            // The writer is about to say where the stream goes on; unless it died just then.
            return match gone {
                false => Ok(Some(Look::Empty)),
                true if self.takes_back(k) => Ok(None),
                true => Err(self.corrupt()),
            };
        }
        // A reset is in force when the kernel says so, or its own error would be told a second time.
        if rx.finished() || gone {
            // Bytes may have come between the first look and the flag; after the flag none can.
            let more = rx.readable().map_err(|Corrupt| self.corrupt())? > 0;
            if more || self.is_moved(rx) || rx.down_at(passed).is_some() {
                return Ok(None);
            }
            return self.over(k, rx).map(Some);
        }
        if end.has(flag::READ_SHUT) {
            if end.has(flag::UNMOVED) {
                // What was unread went to another process's socket.
                return self.over(k, rx).map(Some);
            }
            return Ok(Some(Look::EndOfFile));
        }
        Ok(Some(Look::Empty))
    }

    /// All bytes are read and no more will come: end-of-file, or (once) ECONNRESET, as TCP would say it.
    fn over(&self, k: &impl Kernel, rx: Rx<'_>) -> Result<Look, Fault> {
        self.end_is_real(k)?;
        let end = self.end;
        let aborted = rx.flags() & layout::RESET != 0;
        // A process that dies with unread bytes resets its connection; the kernel could not see that the bytes in
        // our sending ring were unread.
        let died_unread = self.died_unread(self.rings()?) || end.has(flag::UNMOVED);
        // The stream broke with bytes on it that the ring still had; what followed them is lost. Or somebody wrote on it past us.
        let broke = end.has(flag::TAKEN_BACK) && end.has(flag::RESET_DUE) || end.has(flag::CORRUPT);
        if (aborted || died_unread || broke) && !end.has(flag::RESET_TOLD) {
            end.set(flag::RESET_TOLD | flag::KERNEL_DEAD);
            // The kernel's own error is told with this one.
            let own = k.take_error();
            return match !broke && self.ended_before(own) {
                true => Ok(Look::EndOfFile),
                false => Err(Fault::Reset),
            };
        }
        if end.has(flag::KERNEL_DEAD) && !rx.finished() {
            match k.take_error() {
                // A time-out, or the host is out of reach.
                Some(f @ Fault::Other(_)) => return Err(f),
                // It may be about a doorbell. Who sends is told.
                Some(Fault::Reset) => end.set(flag::RESET_DUE),
                _ => {}
            }
        }
        if end.has(flag::WRITE_SHUT) && self.shuts_kernel_half(rx) {
            let _ = k.shutdown(false, true);
        }
        Ok(Look::EndOfFile)
    }

    /// Did the peer's process die without reading what we sent? A doorbell under way will tell: its kernel answers it, or has.
    pub(crate) fn died_unread(&self, segment: &gm::Segment) -> bool {
        let told = self.end.has(flag::KERNEL_EOF) && !segment.tx().bell_under_way();
        (told || self.end.has(flag::KERNEL_DEAD))
            && segment.rx().flags() & layout::FIN == 0
            && segment.tx().unread().is_ok_and(|n| n > 0)
    }

    /// Did the peer end with a reset? In force when the kernel's stream is over.
    pub fn peer_aborted(&self) -> bool {
        self.segment()
            .is_some_and(|s| s.rx().flags() & layout::RESET != 0)
    }

    /// The kernel's stream gives end-of-file: the peer's doing, unless we shut our reading.
    pub(crate) fn stream_ended(&self) {
        if !self.end.has(flag::READ_SHUT) {
            self.end.set(flag::KERNEL_EOF);
        }
    }

    /// A call of our own on the kernel's socket failed.
    pub(crate) fn kernel_fault(&self, f: Fault) {
        match f {
            Fault::WouldBlock | Fault::Interrupted => {}
            Fault::Reset => self.end.set(flag::KERNEL_DEAD | flag::RESET_DUE),
            _ => self.end.set(flag::KERNEL_DEAD),
        }
    }

    /// The shared words are nonsense: this connection is reset, the process lives.
    #[cold]
    pub(crate) fn corrupt(&self) -> Fault {
        self.end.set(flag::CORRUPT | flag::KERNEL_DEAD);
        self.end.reason.store(Reason::Corrupt as u32, Relaxed);
        Fault::Reset
    }
}

/// The first buffer with room after `skip` bytes.
pub(crate) fn first_room<'b>(
    bufs: &'b mut [IoSliceMut<'_>],
    mut skip: usize,
) -> Option<&'b mut [u8]> {
    for buf in bufs {
        if skip < buf.len() {
            return Some(&mut buf[skip..]);
        }
        skip -= buf.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::mock::Pair;

    /// The writer has stopped the ring's reader, and puts what was unread on the stream as that one looks, if `goes_on`.
    fn received_in_a_move(goes_on: bool) -> Result<usize, Fault> {
        let pair = std::rc::Rc::new(Pair::carried());
        let (client, server) = (&pair.client, &pair.server);
        let sent = client.conn.send(
            &client.socket,
            &[IoSlice::new(b"abcdef")],
            Default::default(),
        );
        assert_eq!(sent, Ok(6));
        client.socket.fill_up(true);
        client.conn.send_over_tcp(&client.socket, None);
        let shared = pair.clone();
        server.socket.as_it_yields(move || {
            shared.server.socket.pass_ns(1_000);
            if goes_on {
                shared.client.socket.fill_up(false);
                shared.client.conn.mind_asks(&shared.client.socket);
            }
        });
        let mut bytes = [0; 6];
        let o = RecvOptions {
            dont_wait: true,
            ..Default::default()
        };
        let got = server
            .conn
            .recv(&server.socket, &mut [IoSliceMut::new(&mut bytes)], o);
        assert!(got.is_err() || &bytes == b"abcdef");
        // What happens holds the pair.
        server.socket.as_it_yields(|| {});
        got
    }

    #[test]
    fn what_is_being_moved_is_there() {
        assert_eq!(received_in_a_move(true), Ok(6));
        assert_eq!(received_in_a_move(false), Err(Fault::WouldBlock));
    }
}
