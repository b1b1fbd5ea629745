//! Waits over connections of [`crate::mock`], and a system whose sleeps are a script.

use std::cell::{Cell, RefCell};

use ring::sync::Ordering::Relaxed;

use super::*;
use crate::mock::{self, Pair};

/// A member's socket; something may happen when its kernel is used the nth time.
struct Side<'a> {
    end: &'a mock::End,
    uses: Cell<u32>,
    happens: Option<(u32, &'a dyn Fn())>,
}

impl<'a> Side<'a> {
    fn of(end: &'a mock::End) -> Self {
        Self {
            end,
            uses: Cell::new(0),
            happens: None,
        }
    }
}

impl Socket for Side<'_> {
    type Kernel<'k>
        = mock::Socket
    where
        Self: 'k;

    fn conn(&self) -> Option<&Conn> {
        Some(&self.end.conn)
    }

    fn kernel(&self) -> mock::Socket {
        if let Some((at, event)) = self.happens
            && self.uses.replace(self.uses.get() + 1) == at
        {
            event();
        }
        self.end.socket.clone()
    }
}

/// A system: what happens in its sleeps, one after the other; after that, nothing.
struct System<'a> {
    clock: &'a mock::Socket,
    others: bool,
    others_ready: bool,
    fails: bool,
    says: Ready,
    sleeps: RefCell<Vec<&'a dyn Fn()>>,
    asked: Vec<Ask>,
    due: bool,
}

impl<'a> System<'a> {
    fn of(pair: &'a Pair) -> Self {
        Self {
            clock: &pair.client.socket,
            others: false,
            others_ready: false,
            fails: false,
            says: Ready::NONE,
            sleeps: RefCell::default(),
            asked: Vec::new(),
            due: false,
        }
    }
}

impl<'a> Below<Side<'a>> for System<'_> {
    type Fault = ();
    type Host = mock::Socket;

    fn ask(&mut self, members: &mut [Member<Side<'a>>], how: Ask) -> Result<bool, ()> {
        const MOST: usize = 10_000;
        assert!(
            self.asked.len() < MOST,
            "it asks for ever: {:?}",
            self.asked[0]
        );
        self.asked.push(how);
        if self.fails {
            return Err(());
        }
        if let Some(event) = self.sleeps.borrow_mut().pop().filter(|_| how != Ask::Look) {
            event();
        }
        for m in members.iter_mut() {
            let ended = Ready::ERR | Ready::HUP;
            m.below = m.socket.end.socket.poll() & (m.ask | ended) | self.says;
        }
        let quiet = !self.others_ready && members.iter().all(|m| m.below == Ready::NONE);
        if let (Ask::Sleep(limit), true) = (how, quiet) {
            self.clock
                .pass_ns(limit.expect("a sleep that nothing ends"));
        }
        Ok(self.others_ready)
    }

    fn has_others(&self) -> bool {
        self.others
    }

    fn is_due(&self, _members: usize) -> bool {
        self.due
    }

    fn looks_fast(&self) -> bool {
        true
    }

    fn host(&self) -> mock::Socket {
        self.clock.clone()
    }
}

/// A wait of the server's end alone; what it got.
fn wait_for(pair: &Pair, want: Ready, limit_us: Option<u64>, system: &mut System) -> Ready {
    let mut members = [Member::new(Side::of(&pair.server), want, true)];
    let deadline = limit_us.map_or(Deadline::NEVER, |us| {
        Deadline::after_us(us, || system.clock.now_ns())
    });
    assert_eq!(wait(&mut members, deadline, system), Ok(()));
    members[0].got
}

#[test]
fn what_a_ring_has_needs_no_system() {
    let pair = Pair::carried();
    let mut system = System::of(&pair);
    pair.client.send(b"x");
    let got = wait_for(&pair, Ready::IN, None, &mut system);
    assert!(got.intersects(Ready::IN));
    assert_eq!(system.asked, []);
}

#[test]
fn who_is_always_answered_hears_of_a_peer_that_is_gone() {
    let pair = Pair::carried();
    let mut system = System::of(&pair);
    // As the kernel does for one that was killed.
    pair.client.socket.shutdown(false, true).unwrap();
    let want = Ready::IN | Ready::OUT;
    assert_eq!(wait_for(&pair, want, None, &mut system), Ready::OUT);
    system.due = true;
    assert!(wait_for(&pair, want, None, &mut system).intersects(Ready::IN));
    assert_eq!(system.asked, [Ask::Look]);
}

#[test]
fn what_the_others_have_is_told_with_it() {
    let pair = Pair::carried();
    let mut system = System::of(&pair);
    (system.others, system.others_ready) = (true, true);
    pair.client.send(b"x");
    wait_for(&pair, Ready::IN, None, &mut system);
    assert_eq!(system.asked, [Ask::Look]);
}

#[test]
fn others_end_a_wait_by_themselves_and_are_asked_once() {
    let pair = Pair::carried();
    let mut system = System::of(&pair);
    (system.others, system.others_ready) = (true, true);
    let got = wait_for(&pair, Ready::IN, None, &mut system);
    assert!(!got.intersects(Ready::IN));
    // While polling, or by the sleep if polling is too short for it.
    assert_eq!(system.asked.len(), 1);
}

#[test]
fn a_time_out_lasts_as_long_as_it_was_asked_to() {
    for us in [0, 1, 70, 1_000_000] {
        let pair = Pair::carried();
        let mut system = System::of(&pair);
        let got = wait_for(&pair, Ready::IN, Some(us), &mut system);
        assert!(!got.intersects(Ready::IN));
        assert_eq!(system.clock.now_ns(), us * 1000);
        assert_eq!(system.asked, [Ask::Sleep(Some(us * 1000))]);
    }
}

#[test]
fn a_sleeper_is_armed_and_rung_once_and_disarmed_then() {
    let pair = Pair::carried();
    let mut system = System::of(&pair);
    let arrival = || {
        assert_eq!(pair.client.send(b"x"), 1);
        assert_eq!(pair.client.send(b"y"), 1);
    };
    *system.sleeps.borrow_mut() = vec![&arrival];
    let got = wait_for(&pair, Ready::IN, None, &mut system);
    assert!(got.intersects(Ready::IN));
    assert_eq!(system.asked, [Ask::Sleep(None)]);
    let bells = || pair.client.conn.end().bells_sent.load(Relaxed);
    assert_eq!(bells(), 1);
    pair.client.send(b"z");
    assert_eq!(bells(), 1);
    assert_eq!(pair.server.recv(16), 3);
}

/// Whenever it arrives before the sleep, nobody sleeps without limit over it: the system would say that nothing ends the sleep.
#[test]
fn an_arrival_at_any_step_ends_the_wait() {
    for at in 0.. {
        let pair = Pair::carried();
        let mut system = System::of(&pair);
        let happened = Cell::new(false);
        let arrival = || {
            happened.set(true);
            assert_eq!(pair.client.send(b"x"), 1);
        };
        let late = || {
            if !happened.get() {
                pair.client.send(b"x");
            }
        };
        *system.sleeps.borrow_mut() = vec![&late];
        let side = Side {
            happens: Some((at, &arrival)),
            ..Side::of(&pair.server)
        };
        let mut members = [Member::new(side, Ready::IN, true)];
        assert_eq!(wait(&mut members, Deadline::NEVER, &mut system), Ok(()));
        assert!(members[0].got.intersects(Ready::IN));
        if !happened.get() {
            // Steps of a wait: the look, arming, what to ask, the last look.
            assert!(at >= 4, "{at} steps");
            break;
        }
    }
}

#[test]
fn where_the_bell_is_hidden_the_sleep_is_in_slices() {
    let cases = [
        (Ready::OUT, BLIND_FOR_ROOM_NS),
        (Ready::RDHUP, BLIND_FOR_END_NS),
        (Ready::OUT | Ready::RDHUP, BLIND_FOR_ROOM_NS),
    ];
    for (want, slice) in cases {
        let pair = Pair::carried();
        while pair.server.send(&[0; 4096]) > 0 {}
        // Unread, and not asked for.
        pair.client.send(b"x");
        let mut system = System::of(&pair);
        let us = 2 * slice / 1000;
        let got = wait_for(&pair, want, Some(us), &mut system);
        assert!(!got.intersects(want));
        assert_eq!(system.asked, [Ask::Sleep(Some(slice)); 2]);
    }
}

#[test]
fn room_is_told_of_by_a_bell() {
    let pair = Pair::carried();
    while pair.server.send(&[0; 4096]) > 0 {}
    let mut system = System::of(&pair);
    let read = || while pair.client.recv(1 << 20) > 0 {};
    *system.sleeps.borrow_mut() = vec![&read];
    let got = wait_for(&pair, Ready::OUT, None, &mut system);
    assert!(got.intersects(Ready::OUT));
}

/// The doorbell of the peer's end lies on the stream: who waits for room does not go round for ever.
#[test]
fn an_end_that_was_told_ends_no_wait_for_room() {
    let pair = Pair::carried();
    while pair.server.send(&[0; 4096]) > 0 {}
    let shut = || {
        let (conn, socket) = (&pair.client.conn, &pair.client.socket);
        conn.shutdown(&pair.place.node, socket, false, true)
            .unwrap();
    };
    let mut system = System::of(&pair);
    *system.sleeps.borrow_mut() = vec![&shut];
    let end = wait_for(&pair, Ready::IN, None, &mut system);
    assert!(end.intersects(Ready::RDHUP) && pair.server.conn.is_at_rings_end());
    assert_eq!(pair.server.socket.poll(), Ready::IN | Ready::OUT, "no bell");

    let mut system = System::of(&pair);
    let us = 2 * BLIND_FOR_ROOM_NS / 1000;
    let got = wait_for(&pair, Ready::OUT, Some(us), &mut system);
    assert!(!got.intersects(Ready::OUT));
    assert_eq!(system.asked, [Ask::Sleep(Some(BLIND_FOR_ROOM_NS)); 2]);
}

#[test]
fn an_end_that_the_system_alone_knows_is_found_by_a_look() {
    let pair = Pair::carried();
    let mut system = System::of(&pair);
    pair.client.socket.shutdown(false, true).unwrap();
    let got = wait_for(&pair, Ready::IN | Ready::RDHUP, Some(0), &mut system);
    assert!(got.intersects(Ready::IN) && got.intersects(Ready::RDHUP));
}

#[test]
fn urgent_data_and_bad_sockets_are_the_systems_word() {
    let pair = Pair::carried();
    let mut system = System::of(&pair);
    system.says = Ready::PRI;
    let got = wait_for(&pair, Ready::PRI, None, &mut system);
    assert_eq!(got & Ready::PRI, Ready::PRI);
    system.says = Ready::NVAL;
    let got = wait_for(&pair, Ready::IN, None, &mut system);
    assert_eq!(got, Ready::NVAL);
}

#[test]
fn a_sleep_that_fails_leaves_nothing_armed() {
    let pair = Pair::carried();
    let mut system = System::of(&pair);
    (system.fails, system.others) = (true, true);
    let mut members = [Member::new(Side::of(&pair.server), Ready::IN, true)];
    assert_eq!(wait(&mut members, Deadline::NEVER, &mut system), Err(()));
    pair.client.send(b"x");
    assert_eq!(pair.client.conn.end().bells_sent.load(Relaxed), 0);
}
