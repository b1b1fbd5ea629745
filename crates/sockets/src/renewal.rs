//! Another peer for the kernel's socket.
//!
//! A peer that is gone may have left bytes that are in the ring alone, or that the ring alone tells payload from doorbells of
//! ([`crate::Given::Orphaned`]). Nobody can put them on the stream any more, so somebody who needs them there takes all that is
//! left, dissolves the kernel's connection, and connects the same socket to a helper that sends these bytes and ends. Whoever
//! holds the socket, in whatever process, reads on where the last one stopped, and the engine is out of it.

use std::io::IoSliceMut;

use gm::end::flag;
use gm::{End, State};
use ring::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use ring::{Corrupt, Rx};

use crate::lock::Guard;
use crate::recv::{Look, first_room};
use crate::{Conn, Fault, Kernel, RecvOptions};

/// Longer, in µs, no renewal takes. The word that tells of one is in shared memory, where anything may be written.
const PATIENCE_US: u64 = 5_000_000;
/// How often its end is looked for, in µs.
const SLICE_US: u64 = 500;

/// The caller's right to take what is left. Unless it is done, the connection is reset for all who hold it.
pub struct Renewal<'a> {
    conn: &'a Conn,
    /// The renewer's number.
    me: u32,
    done: bool,
    /// Nobody takes doorbells off the stream.
    locked: Option<Guard<'a>>,
}

impl Renewal<'_> {
    /// All is taken. From here on the kernel's stream is another one, without doorbells. False: that took so long that the others were
    /// told of a reset.
    #[must_use]
    pub fn reconnect(&mut self, k: &impl Kernel) -> bool {
        self.locked = Some(self.conn.lock_rx(k));
        if let Some(segment) = self.conn.segment() {
            let rx = segment.rx();
            rx.count_taken(u32::try_from(rx.bells_untaken()).unwrap_or(0));
        }
        self.is_ours()
    }

    fn is_ours(&self) -> bool {
        self.conn.end.renewer.load(Relaxed) == self.me
    }

    /// The kernel's socket has all that is to be read.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Renewal<'_> {
    fn drop(&mut self) {
        match self.done && self.is_ours() {
            true => self.conn.end.set_state(State::Back),
            false => _ = self.conn.corrupt(),
        }
        let word = &self.conn.end.renewer;
        let _ = word.compare_exchange(self.me, 0, AcqRel, Relaxed);
    }
}

impl Conn {
    /// From here on nobody else takes bytes, nor the ring's end for the stream's. `None`: another was quicker; the kernel's socket has
    /// all, or the connection is reset.
    pub fn begin_renewal(&self, k: &impl Kernel) -> Option<Renewal<'_>> {
        loop {
            if !self.is_engaged() {
                return None;
            }
            let renewer = &self.end.renewer;
            let taken = renewer.compare_exchange(0, k.thread(), AcqRel, Relaxed);
            if taken.is_ok() {
                let begun = self.end.has(flag::RENEWED);
                if !begun {
                    self.freeze(k);
                }
                // Another's was not done, and what it took nobody has; or all came to be on the stream just then.
                if begun || !self.is_engaged() {
                    renewer.store(0, Release);
                    return None;
                }
                return Some(Renewal {
                    conn: self,
                    me: k.thread(),
                    done: false,
                    locked: None,
                });
            }
            if !self.await_renewal(k) {
                return None;
            }
        }
    }

    /// Nobody else takes what is unread: in the ring from here on, on the stream whoever gets the receiving lock after us.
    fn freeze(&self, k: &impl Kernel) {
        self.end.set(flag::RENEWED);
        let _rx = self.lock_rx(k);
        if let Some(segment) = self.segment()
            && segment.rx().freeze()
        {
            self.end.set(flag::FROZEN);
        }
    }

    /// Does the writer move what is unread to the stream, or has it?
    #[inline]
    pub(crate) fn is_moved(&self, rx: Rx<'_>) -> bool {
        rx.is_moved() && !self.end.has(flag::FROZEN)
    }

    /// Is the caller the one that renews it?
    pub(crate) fn renews(&self, k: &impl Kernel) -> bool {
        self.end.renewer.load(Relaxed) == k.thread()
    }

    /// Does somebody else renew it, or has he? What is to be read then [`Conn::after_renewal`] tells.
    pub(crate) fn renewed_elsewhere(&self, k: &impl Kernel) -> bool {
        self.end.has(flag::RENEWED) && !self.renews(k)
    }

    /// The kernel's socket has the rest, or it is lost: a reset, and no byte of what followed.
    #[cold]
    pub(crate) fn after_renewal(&self, k: &impl Kernel) -> Result<Look, Fault> {
        self.await_renewal(k);
        if !self.is_engaged() {
            return Err(Fault::UseKernel);
        }
        if self.end.has(flag::RESET_TOLD) {
            return Ok(Look::EndOfFile);
        }
        self.end.set(flag::RESET_TOLD);
        Err(self.corrupt())
    }

    /// The rest of a call that began before another one renewed the connection: its bytes are with the kernel, or on their way.
    #[cold]
    pub(crate) fn recv_renewed(
        &self,
        k: &impl Kernel,
        bufs: &mut [IoSliceMut<'_>],
        mut done: usize,
        o: RecvOptions,
    ) -> Result<usize, Fault> {
        let mut patient = !o.dont_wait || done == 0;
        while let Some(buf) = first_room(bufs, done) {
            match k.recv(buf, false) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Fault::WouldBlock) if patient => match k.sleep_readable(PATIENCE_US) {
                    Ok(_) => {}
                    Err(Fault::WouldBlock) => patient = !o.dont_wait,
                    Err(f) => return self.so_far(done, f),
                },
                Err(f) => return self.so_far(done, f),
            }
        }
        Ok(done)
    }

    /// The caller renews it: takes of the frozen ring.
    pub(crate) fn take_frozen(
        &self,
        rx: Rx<'_>,
        bufs: &mut [IoSliceMut<'_>],
        skip: usize,
        o: RecvOptions,
    ) -> Result<usize, Fault> {
        if !self.end.has(flag::FROZEN) {
            return Ok(0);
        }
        let n = rx.read_frozen(bufs, skip, o.peek);
        let n = n.map_err(|Corrupt| self.corrupt())?;
        End::count(&self.end.rx_bytes, n as u64);
        Ok(n)
    }

    /// Is another thread at a renewal? That the ring is empty tells nothing then; who has the receiving lock, and finds none, knows
    /// that none goes further than to take what is left.
    pub(crate) fn is_being_renewed(&self, k: &impl Kernel) -> bool {
        let renewer = self.end.renewer.load(Acquire);
        renewer != 0 && renewer != k.thread()
    }

    /// What was taken for the end may be a renewal's work: then the kernel's socket is to be asked.
    pub(crate) fn end_is_real(&self, k: &impl Kernel) -> Result<(), Fault> {
        if self.is_being_renewed(k) {
            self.await_renewal(k);
        }
        match self.is_engaged() {
            true => Ok(()),
            false => Err(Fault::UseKernel),
        }
    }

    /// Until nobody is at one any more. False: that took too long, or he died; the connection is reset.
    #[cold]
    pub(crate) fn await_renewal(&self, k: &impl Kernel) -> bool {
        let mut since = k.now_us();
        loop {
            let renewer = self.end.renewer.load(Acquire);
            if renewer == 0 {
                return true;
            }
            if k.thread_stopped(renewer) {
                // It goes on when it is told to.
                since = k.now_us();
            }
            let _ = k.sleep_word(&self.end.renewer, renewer, SLICE_US);
            let lost = k.thread_gone(renewer) || k.now_us().saturating_sub(since) > PATIENCE_US;
            let word = &self.end.renewer;
            // Unless it was done just now.
            if lost && word.compare_exchange(renewer, 0, AcqRel, Relaxed).is_ok() {
                if !self.end.has(flag::RENEWED) {
                    // It had not begun to take.
                    return true;
                }
                self.corrupt();
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Pair;

    const OTHER_THREAD: u32 = u32::MAX;

    /// All is read, the peer has closed, and another process is at a renewal, which becomes of it what it does while we wait.
    fn read_at_the_end(meanwhile: impl Fn(&Pair) + 'static) -> (Result<usize, Fault>, bool) {
        let pair = std::rc::Rc::new(Pair::carried());
        let close = || pair.client.conn.end().refs.fetch_sub(1, AcqRel) == 1;
        let socket = &pair.client.socket;
        assert!(pair.client.conn.leave(&pair.place.node, socket, close));
        let (conn, socket) = (&pair.server.conn, &pair.server.socket);
        conn.end.set(flag::KERNEL_EOF | flag::RENEWED);
        conn.end.renewer.store(OTHER_THREAD, Relaxed);
        let shared = pair.clone();
        socket.meanwhile(move || meanwhile(&shared));
        let mut byte = [0];
        let o = RecvOptions {
            dont_wait: true,
            ..Default::default()
        };
        let got = conn.recv(socket, &mut [IoSliceMut::new(&mut byte)], o);
        let free = conn.end.renewer.load(Relaxed) == 0;
        // What happens holds the pair.
        socket.meanwhile(|| {});
        (got, free)
    }

    #[test]
    fn the_rings_end_is_not_the_streams() {
        let renewed = |pair: &Pair| {
            let end = pair.server.conn.end;
            end.set_state(State::Back);
            end.renewer.store(0, Relaxed);
        };
        assert_eq!(read_at_the_end(renewed), (Err(Fault::UseKernel), true));
    }

    #[test]
    fn what_a_renewal_lost_is_no_clean_end() {
        let for_ever = |pair: &Pair| pair.server.socket.pass_ns(1_000_000_000);
        assert_eq!(read_at_the_end(for_ever), (Err(Fault::Reset), true));
    }

    #[test]
    fn a_renewal_that_is_not_done_resets() {
        let pair = Pair::carried();
        let (conn, socket) = (&pair.server.conn, &pair.server.socket);
        drop(conn.begin_renewal(socket));
        assert!(conn.end.has(flag::CORRUPT) && conn.is_engaged());
        assert!(conn.begin_renewal(socket).is_none(), "what it took is lost");
    }

    /// A renewal in the middle of a call that has begun: the rest is on the kernel's new stream, from where it stopped.
    fn renewed() -> Pair {
        let pair = Pair::carried();
        let (client, server) = (&pair.client, &pair.server);
        let sent = client.conn.send(
            &client.socket,
            &[std::io::IoSlice::new(b"abcdef")],
            Default::default(),
        );
        assert_eq!(sent, Ok(6));
        let mut renewal = server.conn.begin_renewal(&server.socket).unwrap();
        let mut left = [0; 6];
        let o = RecvOptions {
            dont_wait: true,
            ..Default::default()
        };
        let bufs = &mut [IoSliceMut::new(&mut left)];
        let n = server.conn.recv(&server.socket, bufs, o).unwrap();
        assert!(renewal.reconnect(&server.socket));
        assert_eq!(client.socket.send(&left[..n]), Ok(n));
        renewal.done();
        pair
    }

    #[test]
    fn what_a_peek_has_shown_is_taken_of_the_new_stream() {
        let pair = renewed();
        let (conn, socket) = (&pair.server.conn, &pair.server.socket);
        assert!(conn.begin_renewal(socket).is_none());
        let mut taken = [0; 4];
        let got = conn.take(socket, &mut [IoSliceMut::new(&mut taken)]);
        assert_eq!((got, &taken), (Ok(4), b"abcd"));
        assert_eq!(socket.recv(&mut taken, false), Ok(2));
        assert_eq!(&taken[..2], b"ef");
    }
}
