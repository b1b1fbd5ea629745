//! What a call of the program's knows of itself, in however many steps it is done.

use gm::end::flag;

use crate::{Conn, Kernel};

#[derive(Default)]
pub(crate) struct Call {
    /// It has moved bytes, or looked at those that it moves: the rest is not left to the kernel's call, whatever has become of
    /// the connection.
    pub(crate) has_begun: bool,
    /// When its sleeping is over, in µs.
    over_us: Option<u64>,
    may_sleep: Option<bool>,
}

/// When the sleeping of a call without a limit is over.
const NEVER: u64 = u64::MAX;

impl Call {
    pub(crate) fn that_has_begun() -> Self {
        Self {
            has_begun: true,
            ..Self::default()
        }
    }

    /// SO_RCVTIMEO and SO_SNDTIMEO: how many µs are left of `us`, the socket's own limit (0: none). A call has one limit, however
    /// often it sleeps: what arrives meanwhile, or makes room, gives it no more time, and one that is set meanwhile is for the
    /// next call. The first question begins it. `None`: no limit.
    pub(crate) fn left_us(&mut self, us: u64, k: &impl Kernel) -> Option<u64> {
        let over = *self.over_us.get_or_insert_with(|| match us {
            0 => NEVER,
            us => k.now_us().saturating_add(us),
        });
        (over != NEVER).then(|| over.saturating_sub(k.now_us()))
    }

    /// A call that began as one that waits is about to sleep. Whether it may, the kernel's own decides as it begins: what is set
    /// meanwhile is for the next one. But the program may have set O_NONBLOCK by a way that nobody saw.
    pub(crate) fn may_sleep(&mut self, conn: &Conn, k: &impl Kernel) -> bool {
        let ask = || {
            let end = conn.end;
            let set_since = end.has(flag::NONBLOCK) && !end.has(flag::NONBLOCK_FOUND);
            if set_since || !k.is_nonblocking() {
                return true;
            }
            end.set(flag::NONBLOCK | flag::NONBLOCK_FOUND);
            false
        };
        *self.may_sleep.get_or_insert_with(ask)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, IoSliceMut};
    use std::rc::Rc;

    use ring::sync::Ordering::Relaxed;

    use crate::mock::{End, Pair};
    use crate::{Fault, RecvOptions, SendOptions};
    use gm::Path;
    use gm::end::flag;

    const LIMIT_US: u64 = 220_000;
    const STEP_US: u64 = 50_000;

    /// Both ends, where `act` is done by the server each 50 ms that the client sleeps.
    fn while_asleep(act: impl Fn(&End) + 'static) -> Rc<Pair> {
        let pair = Rc::new(Pair::carried());
        let other = Rc::downgrade(&pair);
        pair.client.socket.meanwhile(move || {
            let pair = other.upgrade().unwrap();
            pair.client.socket.pass_ns(STEP_US * 1000);
            act(&pair.server);
        });
        pair
    }

    /// Of what a peer sends each 50 ms, what came within the limit; `receive` asks for more than that.
    fn in_time(receive: impl Fn(&End, usize, RecvOptions) -> usize) {
        const PIECE: usize = 100;
        let pair = while_asleep(|server| assert_eq!(server.send(&[0; PIECE]), PIECE));
        let end = &pair.client;
        end.conn.end().receive_timeout_us.store(LIMIT_US, Relaxed);
        let options = RecvOptions {
            wait_all: true,
            ..RecvOptions::default()
        };
        let started_ns = end.socket.now_ns.get();
        let got = receive(end, 100 * PIECE, options);
        let took_us = (end.socket.now_ns.get() - started_ns) / 1000;
        assert_eq!(got as u64, took_us / STEP_US * PIECE as u64);
        assert!(
            (LIMIT_US..LIMIT_US + 2 * STEP_US).contains(&took_us),
            "{took_us}"
        );
    }

    #[test]
    fn who_waits_for_all_has_one_limit_for_all() {
        in_time(|end, most, options| {
            let mut buf = vec![0; most];
            let bufs = &mut [IoSliceMut::new(&mut buf)];
            end.conn.recv(&end.socket, bufs, options).unwrap()
        });
    }

    #[test]
    fn who_throws_away_has_one_limit_for_all() {
        in_time(|end, most, options| end.conn.skip(&end.socket, most, options).unwrap());
    }

    fn peer_shuts_while_there_is_no_room(on_tcp: bool) {
        let pair = Rc::new(Pair::carried());
        let other = Rc::downgrade(&pair);
        pair.client.socket.meanwhile(move || {
            let pair = other.upgrade().unwrap();
            let (conn, socket) = (&pair.server.conn, &pair.server.socket);
            assert!(
                pair.client.socket.now_ns.get() < 1_000_000_000 * 60,
                "for ever"
            );
            pair.client.socket.fill_up(true);
            if !conn.end().has(flag::WRITE_SHUT) {
                let waits_on_tcp = pair.client.conn.end().tx_path() == Path::Tcp;
                assert_eq!(waits_on_tcp, on_tcp);
                conn.shutdown(&pair.place.node, socket, true, true).unwrap();
            }
        });
        let (conn, socket) = (&pair.client.conn, &pair.client.socket);
        if on_tcp {
            conn.send_over_tcp(socket, None);
            assert!(pair.client.send(&[0]) == 1);
            socket.fill_up(true);
        }
        let bytes = vec![0; 20 * crate::RING_BYTES];
        let send = || conn.send(socket, &[IoSlice::new(&bytes)], SendOptions::default());
        let sent = send();
        match on_tcp {
            true => assert_eq!(sent, Err(Fault::Pipe)),
            false => assert!(sent.unwrap() < bytes.len()),
        }
        assert_eq!(send(), Err(Fault::Pipe));
    }

    #[test]
    fn who_sends_waits_for_no_peer_that_shut_both_ways() {
        peer_shuts_while_there_is_no_room(true);
    }

    #[test]
    fn nor_for_room_in_its_ring() {
        peer_shuts_while_there_is_no_room(false);
    }

    /// What came beside a full stream would find no room there when the connection is given away.
    #[test]
    fn who_has_a_full_stream_does_not_come_back_to_the_ring() {
        let pair = Pair::carried();
        let (conn, socket) = (&pair.client.conn, &pair.client.socket);
        conn.send_over_tcp(socket, None);
        let sends = || (0..20).for_each(|_| _ = pair.client.send(b"x"));
        assert_eq!(pair.client.send(b"x"), 1);
        assert_eq!(pair.server.recv(1), 1);
        socket.fill_up(true);
        sends();
        assert_eq!(conn.end().tx_path(), Path::Tcp);
        socket.fill_up(false);
        sends();
        assert_eq!(conn.end().tx_path(), Path::Ring);
    }

    #[test]
    fn who_sends_has_one_limit_for_all() {
        const PIECE: usize = 100_000;
        let pair = while_asleep(|server| {
            server.recv(PIECE);
        });
        let end = &pair.client;
        end.conn.end().send_timeout_us.store(LIMIT_US, Relaxed);
        let bytes = vec![0; 100 * PIECE];
        let started_ns = end.socket.now_ns.get();
        let bufs = [IoSlice::new(&bytes)];
        let sent = end.conn.send(&end.socket, &bufs, SendOptions::default());
        let took_us = (end.socket.now_ns.get() - started_ns) / 1000;
        assert!(sent.unwrap() < bytes.len());
        assert!((LIMIT_US..2 * LIMIT_US).contains(&took_us), "{took_us}");
    }

    /// In the middle of the client's call somebody sets O_NONBLOCK, as the front sees it, or (`found`) did before it began, as nobody
    /// saw.
    fn set_nonblocking(end: &End, found: bool) {
        end.socket.nonblocking.set(true);
        if !found {
            end.conn.end().set(flag::NONBLOCK);
        }
    }

    #[test]
    fn who_waits_for_all_goes_on_when_told_not_to_wait() {
        const PIECE: usize = 100;
        let pair = while_asleep(|server| assert_eq!(server.send(&[0; PIECE]), PIECE));
        let end = &pair.client;
        let other = Rc::downgrade(&pair);
        let act = move || {
            let pair = other.upgrade().unwrap();
            set_nonblocking(&pair.client, false);
            assert_eq!(pair.server.send(&[0; PIECE]), PIECE);
        };
        end.socket.meanwhile(act);
        let receive = |most: usize| {
            let (mut buf, wait_all) = (vec![0; most], true);
            let o = RecvOptions {
                wait_all,
                ..RecvOptions::default()
            };
            let bufs = &mut [IoSliceMut::new(&mut buf)];
            end.conn.recv(&end.socket, bufs, o)
        };
        assert_eq!(receive(10 * PIECE), Ok(10 * PIECE));
    }

    #[test]
    fn who_sends_goes_on_when_told_not_to_wait() {
        const PIECE: usize = 100_000;
        let pair = Rc::new(Pair::carried());
        let other = Rc::downgrade(&pair);
        pair.client.socket.meanwhile(move || {
            let pair = other.upgrade().unwrap();
            set_nonblocking(&pair.client, false);
            pair.server.recv(PIECE);
        });
        let (conn, socket) = (&pair.client.conn, &pair.client.socket);
        let bytes = vec![0; 4 * crate::RING_BYTES];
        let bufs = [IoSlice::new(&bytes)];
        let sent = conn.send(socket, &bufs, SendOptions::default());
        assert_eq!(sent, Ok(bytes.len()));
    }

    #[test]
    fn what_nobody_saw_being_set_holds_for_all_who_began_before_it_was_found() {
        let pair = while_asleep(|_| panic!("a sleep"));
        set_nonblocking(&pair.client, true);
        for _ in 0..2 {
            let (conn, socket) = (&pair.client.conn, &pair.client.socket);
            let mut byte = [0];
            let bufs = &mut [IoSliceMut::new(&mut byte)];
            let got = conn.recv(socket, bufs, RecvOptions::default());
            assert_eq!(got, Err(Fault::WouldBlock));
            assert!(conn.end().has(flag::NONBLOCK));
        }
    }

    #[test]
    fn a_limit_that_is_set_meanwhile_is_for_the_next_call() {
        const BYTES: usize = 10;
        let pair = Rc::new(Pair::carried());
        let receive = |wait_all| {
            let (mut buf, end) = ([0; BYTES], &pair.client);
            let o = RecvOptions {
                wait_all,
                ..RecvOptions::default()
            };
            let bufs = &mut [IoSliceMut::new(&mut buf)];
            end.conn.recv(&end.socket, bufs, o)
        };
        let other = Rc::downgrade(&pair);
        pair.client.socket.meanwhile(move || {
            let pair = other.upgrade().unwrap();
            let limit = &pair.client.conn.end().receive_timeout_us;
            pair.client.socket.pass_ns(STEP_US * 1000);
            limit.store(STEP_US / 2, Relaxed);
            assert_eq!(pair.server.send(&[0]), 1);
        });
        assert_eq!(receive(true), Ok(BYTES));
        pair.client.socket.meanwhile({
            let socket = pair.client.socket.clone();
            move || socket.pass_ns(STEP_US * 1000)
        });
        assert_eq!(receive(false), Err(Fault::WouldBlock));
    }
}
