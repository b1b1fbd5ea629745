//! Waits at sets over connections of [`crate::mock`].

use std::cell::Cell;

use self::system::{About, Event, Seat, System, Thread, told};
use super::*;
use crate::QUEUE_SLICE_US;
use crate::mock::{self, Pair};

mod system;

const LEVEL_IN: Interest = Interest {
    want: Ready::IN,
    edge: false,
    once: false,
};
const EDGE_IN: Interest = Interest {
    want: Ready::IN,
    edge: true,
    once: false,
};
const EDGES: Interest = Interest {
    want: Ready(Ready::IN.0 | Ready::OUT.0),
    edge: true,
    once: false,
};

fn bells(pair: &Pair) -> u32 {
    let sent = &pair.client.conn.end().bells_sent;
    sent.load(ring::sync::Ordering::Relaxed) as u32
}

fn fill(end: &mock::End) {
    while end.send(&[0; 4096]) > 0 {}
}

#[test]
fn a_level_is_told_until_it_is_gone() {
    let pair = Pair::carried();
    let seat = Seat::of(&pair.server);
    let system = System::of(&pair);
    system.add(seat.side(7, LEVEL_IN));
    pair.client.send(b"xy");
    for _ in 0..3 {
        assert_eq!(system.wait(None), [told(7, Ready::IN)]);
        assert!(system.slept.borrow().is_empty());
    }
    pair.server.recv(1);
    assert_eq!(system.wait(None), [told(7, Ready::IN)]);
    pair.server.recv(1);
    assert_eq!(system.wait(Some(0)), []);
}

#[test]
fn an_edge_is_told_once_and_each_kind_for_itself() {
    let pair = Pair::carried();
    let seat = Seat::of(&pair.server);
    let system = System::of(&pair);
    system.add(seat.side(7, EDGES));
    // At first, all that there is.
    assert_eq!(system.wait(None), [told(7, Ready::OUT)]);
    assert_eq!(system.wait(Some(0)), []);
    for _ in 0..2 {
        pair.client.send(b"x");
        let got = system.wait(None);
        assert!(got[0].ready.intersects(Ready::IN));
        assert_eq!(system.wait(Some(0)), []);
    }
    // Less is no news.
    pair.server.recv(1);
    assert_eq!(system.wait(Some(0)), []);
    fill(&pair.server);
    while pair.client.recv(1 << 20) > 0 {}
    let got = system.wait(None);
    assert!(got[0].ready.intersects(Ready::OUT));
    assert_eq!(system.wait(Some(0)), []);
    // Asked again, it is told again.
    system.modify(0, (EDGES, 8));
    assert_eq!(system.wait(None), [told(8, Ready::IN | Ready::OUT)]);
}

/// A reset is said in the ring first, where the last bytes may be unread still, and is in force when the kernel says so as well.
#[test]
fn a_reset_behind_the_last_bytes_is_an_edge_of_its_own() {
    for poor in [false, true] {
        let pair = Pair::carried();
        let seat = Seat::of(&pair.server);
        let system = System::poor(&pair, poor);
        system.add(seat.side(7, EDGE_IN));
        pair.client.send(b"xy");
        pair.client.conn.segment().unwrap().tx().finish(true);
        assert_eq!(system.wait(None), [told(7, Ready::IN)]);
        assert_eq!(pair.server.recv(2), 2);
        assert_eq!(system.wait(Some(0)), []);
        pair.client.socket.shutdown(false, true).unwrap();
        let got = system.wait(Some(1_000_000));
        assert!(
            got.first().is_some_and(|e| e.ready.intersects(Ready::ERR)),
            "{got:?}"
        );
        assert_eq!(system.wait(Some(0)), []);
    }
}

/// The program ends its sending when it was told of the peer's end already: then both ways are over.
#[test]
fn hanging_up_is_an_edge_of_its_own() {
    let pair = Pair::carried();
    let seat = Seat::of(&pair.server);
    let system = System::of(&pair);
    system.add(seat.side(7, EDGE_IN));
    let end = |side: &mock::End| {
        side.conn
            .shutdown(&pair.place.node, &side.socket, false, true)
    };
    end(&pair.client).unwrap();
    assert_eq!(system.wait(None), [told(7, Ready::IN)]);
    assert_eq!(system.wait(Some(0)), []);
    end(&pair.server).unwrap();
    let got = system.wait(Some(1_000_000));
    assert!(
        got.first().is_some_and(|e| e.ready.intersects(Ready::HUP)),
        "{got:?}"
    );
    assert_eq!(system.wait(Some(0)), []);
}

#[test]
fn once_is_once_until_it_is_asked_again() {
    let pair = Pair::carried();
    let seat = Seat::of(&pair.server);
    let system = System::of(&pair);
    let once = Interest {
        once: true,
        ..LEVEL_IN
    };
    let i = system.add(seat.side(7, once));
    for _ in 0..2 {
        pair.client.send(b"x");
        assert_eq!(system.wait(None), [told(7, Ready::IN)]);
        pair.client.send(b"y");
        assert_eq!(system.wait(Some(1_000_000)), []);
        system.modify(i, (once, 7));
    }
}

#[test]
fn exclusive_members_come_to_the_ring_and_wake() {
    for poor in [false, true] {
        let pair = Pair::carried();
        let seat = Seat::of(&pair.server);
        let system = System::poor(&pair, poor);
        let mut side = seat.side(7, LEVEL_IN);
        side.exclusive = true;
        let socket = pair.server.socket.clone();
        let given = About::Data(7);
        system.put(&side, given, Ready::IN, false);
        let thread = system.thread();
        assert!(add(
            &thread,
            &mut thread.members(),
            (side, false),
            &socket,
            || true
        ));
        engaged(&thread, &mut thread.members(), 0, &socket);
        assert_eq!(system.entries.borrow()[&7].about, About::Index(0));
        system.settle();
        let arrival = || assert_eq!(pair.client.send(b"x"), 1);
        assert_eq!(system.wait_while(&[&arrival]), [told(7, Ready::IN)]);
    }
}

/// Two connections of one node.
fn two_pairs() -> (Pair, Pair) {
    let pair = Pair::carried();
    let other = pair.beside();
    (pair, other)
}

/// While one thread sleeps at the set, another waits there, reads what it found, and goes on with something else.
#[test]
fn a_sleeper_hears_of_what_another_thread_leaves() {
    for poor in [false, true] {
        let (one, two) = two_pairs();
        let seats = [Seat::of(&one.server), Seat::of(&two.server)];
        let system = System::poor(&one, poor);
        system.add(seats[0].side(7, LEVEL_IN));
        system.add(seats[1].side(8, LEVEL_IN));
        system.settle();
        let second = || {
            one.client.send(b"x");
            assert_eq!(system.wait(None), [told(7, Ready::IN)]);
            one.server.recv(8);
            // Nothing is hot: its writer wakes the one that sleeps.
            one.client.send(b"y");
        };
        assert_eq!(system.wait_while(&[&second]), [told(7, Ready::IN)]);
        let third = || {
            two.client.send(b"z");
            let mut got = system.wait(None);
            got.retain(|e| e.about == About::Data(8));
            assert_eq!(got, [told(8, Ready::IN)]);
        };
        one.server.recv(8);
        // A level that the other was told of, and did not read, is this one's as well.
        assert_eq!(system.wait_while(&[&third]), [told(8, Ready::IN)]);
    }
}

/// A thread that asks the system's set may take the bell that was rung for one that sleeps there, and does not wake it.
#[test]
fn a_bell_that_another_thread_took_is_rung_again() {
    let (one, two) = two_pairs();
    let seats = [Seat::of(&one.server), Seat::of(&two.server)];
    let system = System::poor(&one, false);
    system.add(seats[0].side(7, EDGE_IN));
    system.add(seats[1].side(8, EDGE_IN));
    system.settle();
    let second = || {
        let sleeper = || system.queue.get().and_then(|q| q.words().sleeper());
        two.client.send(b"x");
        assert!(sleeper().is_none(), "it was rung for");
        assert_eq!(system.wait(None), [told(8, Ready::IN)]);
        two.server.recv(8);
        assert!(sleeper().is_some(), "the next writer does not ring");
        one.client.send(b"y");
    };
    assert_eq!(system.wait_while(&[&second]), [told(7, Ready::IN)]);
}

#[test]
fn what_is_put_in_while_another_thread_sleeps_wakes_it() {
    for poor in [false, true] {
        let (one, two) = two_pairs();
        let seats = [Seat::of(&one.server), Seat::of(&two.server)];
        let system = System::poor(&one, poor);
        system.add(seats[0].side(7, LEVEL_IN));
        system.settle();
        two.client.send(b"x");
        let second = || _ = system.add(seats[1].side(8, LEVEL_IN));
        assert_eq!(system.wait_while(&[&second]), [told(8, Ready::IN)]);
    }
}

/// It is dormant then: neither told of nor looked at, and costs no call until the system speaks of it.
#[test]
fn what_is_taken_out_while_another_thread_sleeps_is_not_told() {
    for poor in [false, true] {
        let pair = Pair::carried();
        let seat = Seat::of(&pair.server);
        let system = System::poor(&pair, poor);
        let i = system.add(seat.side(7, LEVEL_IN));
        system.settle();
        let changes = system.changes.get();
        let second = || {
            let (thread, refuse) = (system.thread(), || unreachable!("it dozes"));
            assert!(take_out(&thread, &mut thread.members(), i, refuse));
            pair.client.send(b"x");
        };
        let thread = Thread::of(&system, &[&second]);
        assert_eq!(thread.wait(8, Some(1_000_000)), []);
        assert!(system.members.borrow().is_dormant(i) || system.members.borrow().get(i).is_none());
        if system.members.borrow().is_dormant(i) {
            assert_eq!(system.changes.get(), changes);
            system.modify(i, (LEVEL_IN, 9));
            assert_eq!(system.wait(None), [told(9, Ready::IN)]);
        }
    }
}

#[test]
fn a_set_that_is_ended_while_a_thread_sleeps_tells_of_no_member() {
    for others in [vec![], vec![3]] {
        let pair = Pair::carried();
        let seat = Seat::of(&pair.server);
        let system = System::of(&pair);
        system.add(seat.side(7, LEVEL_IN));
        system.settle();
        let second = || {
            end(&system.thread());
            assert_eq!((system.given_back.get(), seat.sets.get()), (0, 0));
            // The stream's end, say, and what is the program's own.
            pair.client.socket.shutdown(false, true).unwrap();
            *system.others.borrow_mut() = others.clone();
        };
        let all: Vec<Event> = others.iter().map(|o| told(*o, Ready::IN)).collect();
        assert_eq!(system.wait_while(&[&second]), all);
        assert_eq!(system.given_back.get(), 1);
    }
}

/// The program closed what it did not open: the set gets another one, and no member stays in the old.
#[test]
fn a_queue_whose_bell_is_gone_is_left() {
    let pair = Pair::carried();
    let seat = Seat::of(&pair.server);
    let system = System::of(&pair);
    system.add(seat.side(7, LEVEL_IN));
    system.settle();
    let queue = system.queue.get().unwrap();
    queue.bell().close();
    let arrival = || assert_eq!(pair.client.send(b"x"), 1);
    assert_eq!(system.wait_while(&[&arrival]), [told(7, Ready::IN)]);
    assert_eq!((system.queue.get().is_none(), bells(&pair)), (true, 1));
    pair.server.recv(8);
    system.settle();
    assert_ne!(system.queue.get().unwrap().id(), queue.id());
}

/// Every connection is the system's alone again, registered as the program asked.
#[test]
fn what_goes_back_is_the_systems() {
    let (one, two) = two_pairs();
    let seats = [Seat::of(&one.server), Seat::of(&two.server)];
    let system = System::of(&one);
    system.add(seats[0].side(7, LEVEL_IN));
    let dormant = system.add(seats[1].side(8, EDGES));
    let thread = system.thread();
    let refuse = || unreachable!("it dozes");
    assert!(take_out(&thread, &mut thread.members(), dormant, refuse));
    system.settle();
    system.plain.set(true);
    become_plain(&thread);
    assert!(system.queue.get().is_none() && !system.state.has_carried());
    let entries = system.entries.borrow();
    let known: Vec<_> = entries.values().map(|e| (e.about, e.want)).collect();
    assert_eq!(known, [(About::Data(7), Ready::IN)]);
}

#[test]
fn one_end_in_two_sets_wakes_both() {
    for (poor, poor_too) in [(false, false), (false, true), (true, false)] {
        let pair = Pair::carried();
        let seat = Seat::of(&pair.server);
        let one = System::poor(&pair, poor);
        let two = System::poor(&pair, poor_too);
        one.add(seat.side(7, LEVEL_IN));
        one.settle();
        two.add(seat.side(8, LEVEL_IN));
        two.settle();
        one.settle();
        let arrival = || assert_eq!(pair.client.send(b"x"), 1);
        let second = || assert_eq!(two.wait_while(&[&arrival]), [told(8, Ready::IN)]);
        assert_eq!(one.wait_while(&[&second]), [told(7, Ready::IN)]);
        // Not by their queues, of which it could be in one only.
        assert!(bells(&pair) > 0);
        assert_eq!(one.clock.now_ns.get(), 0);
    }
}

#[test]
fn a_queue_wakes_without_a_doorbell_and_a_set_without_one_by_it() {
    for poor in [false, true] {
        let pair = Pair::carried();
        let seat = Seat::of(&pair.server);
        let system = System::poor(&pair, poor);
        system.add(seat.side(7, LEVEL_IN));
        system.settle();
        let arrival = || {
            pair.client.send(b"x");
            pair.client.send(b"y");
        };
        assert_eq!(system.wait_while(&[&arrival]), [told(7, Ready::IN)]);
        assert_eq!(bells(&pair), u32::from(poor));
        let slice = (!poor).then_some(QUEUE_SLICE_US * 1000);
        assert_eq!(*system.slept.borrow(), [slice]);
        // Who is awake is not rung, and what it looks at itself is not listed.
        pair.client.send(b"z");
        assert_eq!(bells(&pair), u32::from(poor));
        let listed = |queue: &EventQueue| queue.words().has_any();
        assert!(!system.queue.get().is_some_and(listed));
    }
}

/// More members than a queue has entries: the others ring for themselves.
#[test]
fn a_member_beyond_the_queue_rings() {
    let (one, two) = two_pairs();
    let seats = [Seat::of(&one.server), Seat::of(&two.server)];
    let system = System::of(&one);
    system.add(seats[0].side(7, LEVEL_IN));
    let entries = gm::events::Words::ENTRIES as usize;
    system
        .members
        .borrow_mut()
        .list
        .resize_with(entries, || None);
    assert_eq!(system.add(seats[1].side(8, LEVEL_IN)), entries);
    system.settle();
    let arrival = || assert_eq!(two.client.send(b"x"), 1);
    assert_eq!(system.wait_while(&[&arrival]), [told(8, Ready::IN)]);
    assert_eq!((bells(&one), bells(&two)), (0, 1));
}

#[test]
fn nonsense_in_the_queue_costs_looks_alone() {
    let pair = Pair::carried();
    let seat = Seat::of(&pair.server);
    let system = System::of(&pair);
    system.add(seat.side(7, LEVEL_IN));
    system.settle();
    let queue = system.queue.get().unwrap();
    let nonsense = || {
        for entry in 0..gm::events::Words::ENTRIES {
            queue.list(entry);
        }
    };
    let arrival = || assert_eq!(pair.client.send(b"x"), 1);
    assert_eq!(
        system.wait_while(&[&nonsense, &arrival]),
        [told(7, Ready::IN)]
    );
    assert_eq!(system.slept.borrow().len(), 2);
}

/// A child that uses the set which it inherited says so, and both go on with doorbells.
#[test]
fn after_a_fork_parent_and_child_are_both_woken() {
    let pair = Pair::carried();
    let (seat, childs) = (Seat::of(&pair.server), Seat::of(&pair.server));
    let (parent, child) = (System::of(&pair), System::of(&pair));
    parent.add(seat.side(7, LEVEL_IN));
    parent.settle();
    let queue = parent.queue.get().unwrap();
    // As it is found in the child's memory.
    child.add(childs.side(7, LEVEL_IN));
    child.queue.set(Some(queue));
    child.members.borrow_mut().queue = Some(queue.id());
    child
        .state
        .sleepers
        .store(1, std::sync::atomic::Ordering::Relaxed);
    pair.server
        .conn
        .end()
        .refs
        .store(2, std::sync::atomic::Ordering::Relaxed);
    let thread = child.thread();
    in_child(&thread, Some(&mut thread.members()));
    assert!(child.queue.get().is_none() && !child.state.has_sleepers());
    let arrival = || assert_eq!(pair.client.send(b"x"), 1);
    let in_child = || {
        assert_eq!(child.wait_while(&[&arrival]), [told(7, Ready::IN)]);
        assert_eq!(child.shared.get(), queue.id());
    };
    assert_eq!(parent.wait_while(&[&in_child]), [told(7, Ready::IN)]);
    pair.server.recv(8);
    // The parent has left it for good.
    assert_eq!(parent.wait_while(&[&arrival]), [told(7, Ready::IN)]);
    assert!(parent.queue.get().is_none() && bells(&pair) > 0);
}

/// A wait in which something arrives at step `at`, or else while it sleeps; by the steps of the thread, or those of its only
/// member's kernel. False: it has not so many.
fn arrives_at(at: u32, poor: bool, inside: bool) -> bool {
    let pair = Pair::carried();
    let seat = Seat::of(&pair.server);
    let happened = Cell::new(false);
    let arrival = || {
        happened.set(true);
        assert_eq!(pair.client.send(b"x"), 1);
    };
    let system = System::poor(&pair, poor);
    let i = system.add(seat.side(7, LEVEL_IN));
    system.settle();
    // As by a wait that came back: hot.
    system.modify(i, (LEVEL_IN, 7));
    let late = || {
        if !happened.get() {
            pair.client.send(b"x");
        }
    };
    let mut thread = Thread::of(&system, &[&late]);
    if inside {
        let mut members = system.members.borrow_mut();
        members.watch_mut(i).unwrap().member.happens = Some((at, &arrival));
    } else {
        thread.happens = Some((at, &arrival));
    }
    system.state.spin.tire();
    assert_eq!(thread.wait(8, None), [told(7, Ready::IN)], "at {at}");
    // Not by the end of a slice.
    assert_eq!(system.clock.now_ns.get(), 0, "at {at}");
    happened.get()
}

/// Whenever it arrives before the sleep, nobody sleeps over it.
#[test]
fn an_arrival_at_any_step_ends_the_wait() {
    for (poor, inside) in [(false, false), (false, true), (true, false), (true, true)] {
        let steps = (0..).take_while(|at| arrives_at(*at, poor, inside)).count();
        // Arming and the last look, at least.
        assert!(steps >= 2, "{steps} steps");
    }
}

#[test]
fn who_waits_for_room_sleeps_in_slices() {
    let pair = Pair::carried();
    let seat = Seat::of(&pair.server);
    let system = System::of(&pair);
    fill(&pair.server);
    let room = Interest {
        want: Ready::OUT,
        ..LEVEL_IN
    };
    system.add(seat.side(7, room));
    let read = || while pair.client.recv(1 << 20) > 0 {};
    assert_eq!(system.wait_while(&[&|| (), &read]), [told(7, Ready::OUT)]);
    let slice = Some(crate::send::ROOM_SLICE_US * 1000);
    assert_eq!(*system.slept.borrow(), [slice, slice]);
}

#[test]
fn a_time_out_lasts_as_long_as_it_was_asked_to() {
    for us in [0, 1, 70, 1_000_000] {
        let pair = Pair::carried();
        let seat = Seat::of(&pair.server);
        let system = System::of(&pair);
        system.add(seat.side(7, LEVEL_IN));
        assert_eq!(system.wait(Some(us)), []);
        assert_eq!(*system.slept.borrow(), [Some(us * 1000)]);
        assert_eq!(system.clock.now_ns.get(), us * 1000);
    }
}

/// Rings that always have something take turns with what the system knows.
#[test]
fn full_reports_leave_nobody_out() {
    let (one, two) = two_pairs();
    let seats = [Seat::of(&one.server), Seat::of(&two.server)];
    let system = System::of(&one);
    system.add(seats[0].side(7, LEVEL_IN));
    system.add(seats[1].side(8, LEVEL_IN));
    system.others.borrow_mut().push(3);
    one.client.send(b"x");
    two.client.send(b"x");
    let thread = system.thread();
    let turns: Vec<Event> = (0..6).flat_map(|_| thread.wait(1, None)).collect();
    for data in [3, 7, 8] {
        let n = turns
            .iter()
            .filter(|e| **e == told(data, Ready::IN))
            .count();
        assert!(n > 0, "{data} in {turns:?}");
    }
}

/// Many that are quiet go cold, so that a wait costs what has news.
#[test]
fn quiet_ones_go_cold_and_are_heard_of() {
    let first = Pair::carried();
    let pairs: Vec<Pair> = (0..16).map(|_| first.beside()).collect();
    let seats: Vec<Seat> = pairs.iter().map(|pair| Seat::of(&pair.server)).collect();
    let system = System::of(&first);
    for (seat, data) in seats.iter().zip(0..) {
        system.add(seat.side(data, LEVEL_IN));
    }
    system.settle();
    system.thread().members().heat_all();
    let mut colder = false;
    let busy = (0..200).map(|round| round % 2);
    for i in busy.chain(0..pairs.len()) {
        pairs[i].client.send(b"x");
        let got = system.wait(None);
        assert_eq!(got, [told(i as u64, Ready::IN)]);
        pairs[i].server.recv(8);
        colder |= system.members.borrow().hot.len() < pairs.len();
    }
    assert!(colder);
    // They were cooled, and heard of, without a sleep.
    assert!(system.slept.borrow().is_empty());
}

/// A member is reported once in a wait, also where it goes back to TCP between its ring's report and the system's.
#[test]
fn who_goes_back_to_tcp_in_a_wait_is_reported_once() {
    let both = Interest {
        want: Ready::IN | Ready::OUT,
        ..LEVEL_IN
    };
    let goes_back_at = |at| {
        let pair = Pair::carried();
        let seat = Seat::of(&pair.server);
        let system = System::of(&pair);
        system.add(seat.side(7, both));
        pair.client.send(b"x");
        let went = Cell::new(false);
        let goes = || {
            // Not while the waiting thread has the members.
            if let Ok(mut members) = system.members.try_borrow_mut() {
                system.plain.set(true);
                plain_again(&system.thread(), &mut members);
                went.set(true);
            }
        };
        let mut thread = system.thread();
        thread.happens = Some((at, &goes));
        let got = thread.wait(8, None);
        assert!(
            matches!(
                got[..],
                [Event {
                    about: About::Data(7),
                    ..
                }]
            ),
            "at {at}: {got:?}"
        );
        (went.get(), at < thread.steps.get())
    };
    let tried = (0..).map(goes_back_at).take_while(|(_, more)| *more);
    assert!(tried.filter(|(went, _)| *went).count() > 2);
}
