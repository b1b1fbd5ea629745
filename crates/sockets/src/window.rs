//! The sizes of a connection's buffers, where the sending program has chosen one: as much may be unread in its ring as TCP would take.

use std::sync::atomic::Ordering::Relaxed;

use gm::Segment;

use crate::{Conn, Kernel};

/// TCP's receiver makes its buffer twice as large as what it reads in a round trip. This is the shortest that it can measure.
const ROUND_TRIP_US: u64 = 1000;
/// Less than this is not looked at.
const NOTICED: u64 = 16 * 1024;

impl Conn {
    /// As the kernel has them.
    pub(crate) fn note_buffers(&self, segment: &Segment, k: &impl Kernel) {
        let buffers = k.buffers();
        segment.tx().set_send_buffer(buffers.sending);
        // What the connection has made of one that adapts is kept.
        let adapted = match buffers.receiving_most {
            0 => 0,
            _ => segment.rx().receive_buffer(),
        };
        segment
            .rx()
            .set_receive_buffer(buffers.receiving.max(adapted));
        self.receiving_most.store(buffers.receiving_most, Relaxed);
    }

    /// The program has changed the size of a buffer.
    pub fn on_buffers(&self, k: &impl Kernel) {
        if let Some(segment) = self.segment() {
            self.note_buffers(segment, k);
        }
    }

    /// Bytes were read from the ring of a program that chose its send buffer. TCP makes the receive buffer larger for who reads
    /// much at once, so that megabytes find room in it all the same; so does this. Caller holds the receiving lock.
    #[cold]
    pub(crate) fn adapt_receive_buffer(&self, k: &impl Kernel, segment: &Segment) {
        let rx = segment.rx();
        let at = rx.position();
        let read = at.wrapping_sub(self.adapted_at.load(Relaxed));
        if read < NOTICED {
            return;
        }
        let most = self.receiving_most.load(Relaxed);
        let wants = u64::from(most).min(2 * read) as u32;
        if wants > rx.receive_buffer() {
            rx.set_receive_buffer(wants);
        }
        let now = k.now_us();
        if now.saturating_sub(self.adapted_us.load(Relaxed)) >= ROUND_TRIP_US {
            self.adapted_at.store(at, Relaxed);
            self.adapted_us.store(now, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Buffers;
    use crate::mock::Pair;

    const KIB: usize = 1024;
    const PIECE: usize = 64 * KIB;

    /// A client that chose a send buffer of 64 KiB, and a server whose receive buffer has 128.
    fn chosen(receiving_most: usize) -> Pair {
        let pair = Pair::carried();
        let ends = [(&pair.client, 64 * KIB), (&pair.server, 0)];
        for (end, sending) in ends {
            end.socket.buffers.set(Buffers {
                sending: sending as u32,
                receiving: 128 * KIB as u32,
                receiving_most: receiving_most as u32,
            });
            end.conn.on_buffers(&end.socket);
        }
        pair
    }

    /// Reads `pieces`, one in so many ns.
    fn read(pair: &Pair, pieces: usize, each_ns: u64) {
        for _ in 0..pieces {
            assert_eq!(pair.client.send(&[1; PIECE]), PIECE);
            assert_eq!(pair.server.recv(PIECE), PIECE);
            pair.server.socket.pass_ns(each_ns);
        }
    }

    /// What the client can have on its way.
    fn in_flight(pair: &Pair) -> usize {
        let sent = |_| pair.client.send(&[1; PIECE]);
        (0..1000).map(sent).take_while(|n| *n > 0).sum()
    }

    #[test]
    fn is_what_both_buffers_hold() {
        let most = in_flight(&chosen(6 << 20));
        assert!((192 * KIB..256 * KIB).contains(&most), "{most}");
    }

    #[test]
    fn grows_for_who_reads_much_at_once() {
        let pair = chosen(6 << 20);
        read(&pair, 8, 20_000);
        let most = in_flight(&pair);
        assert!((1000 * KIB..1500 * KIB).contains(&most), "{most}");
        assert!(pair.server.recv(2000 * KIB) >= 1000 * KIB);
        // The other side's own choice changes nothing of that.
        pair.server.conn.on_buffers(&pair.server.socket);
        assert!(in_flight(&pair) >= 1000 * KIB);
    }

    #[test]
    fn does_not_grow_for_a_slow_reader() {
        let pair = chosen(6 << 20);
        read(&pair, 40, 2_000_000);
        let most = in_flight(&pair);
        assert!(most < 512 * KIB, "{most}");
    }

    #[test]
    fn does_not_grow_beyond_what_the_reader_chose() {
        let pair = chosen(0);
        read(&pair, 40, 20_000);
        let most = in_flight(&pair);
        assert!(most < 256 * KIB, "{most}");
    }
}
