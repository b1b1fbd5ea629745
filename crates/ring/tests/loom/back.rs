//! A hand-back beside everything that the peer may do meanwhile: send, ring, go down, close, die at any step, be acted for
//! by the asker. Whoever reads on gets every byte once, in order, and no doorbell; the asker's wait ends.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use loom::thread;
use sgm_ring::sync::Ordering::Relaxed;

use crate::explore;
use crate::peer::{Asker, Life, Lived, Peer, RIGHT, Rules};

/// Explores `model` with a death at its first step, its second and so on, until it lives to the end.
fn explore_deaths(preemptions: usize, model: impl Fn(u32, &AtomicBool) + Send + Sync + 'static) {
    let model = Arc::new(model);
    for step in 0.. {
        let died = Arc::new(AtomicBool::new(false));
        let (m, d) = (model.clone(), died.clone());
        explore(preemptions, move || m(step, &d));
        if !died.load(Relaxed) {
            assert!(step > 4, "it hardly lived");
            return;
        }
    }
}

/// The peer sends two bytes and closes, while this end hands the connection back.
fn sends_and_closes(rules: Rules, helps: bool) {
    let peer = Peer::on_ring(rules);
    let writer = peer.clone();
    let writer = thread::spawn(move || {
        let mut life = Life::whole();
        writer.send(&mut life, 1).unwrap();
        writer.send(&mut life, 2).unwrap();
        writer.close(&mut life).unwrap();
    });
    let mut asker = Asker::new(&peer);
    asker.read_ring(4);
    let given = asker.hand_back(&mut Life::whole(), helps).unwrap();
    asker.read_on(given);
    writer.join().unwrap();
    asker.judge();
}

#[test]
fn asked_while_the_peer_sends_and_closes() {
    explore(3, || sends_and_closes(RIGHT, false));
}

#[test]
fn asker_acts_for_its_peer() {
    explore(2, || sends_and_closes(RIGHT, true));
}

/// The peer sends two bytes, and is killed when that has returned.
fn sends_and_dies(rules: Rules) {
    let peer = Peer::on_ring(rules);
    let writer = peer.clone();
    let writer = thread::spawn(move || {
        let mut life = Life::whole();
        writer.send(&mut life, 1).unwrap();
        writer.send(&mut life, 2).unwrap();
        writer.end();
    });
    let mut asker = Asker::new(&peer);
    asker.read_ring(4);
    let given = asker.hand_back(&mut Life::whole(), false).unwrap();
    asker.read_on(given);
    writer.join().unwrap();
    asker.judge();
}

#[test]
fn asked_while_the_peer_sends_and_dies() {
    explore(3, || sends_and_dies(RIGHT));
}

/// The peer has sent, and makes no call any more.
#[test]
fn asker_acts_for_a_silent_peer() {
    explore(3, || {
        let peer = Peer::on_ring(RIGHT);
        let mut life = Life::whole();
        peer.send(&mut life, 1).unwrap();
        let writer = peer.clone();
        let writer = thread::spawn(move || writer.send(&mut Life::whole(), 2).unwrap());
        let mut asker = Asker::new(&peer);
        asker.hand_back(&mut life, true).unwrap();
        writer.join().unwrap();
        peer.end();
        asker.read_as_stranger();
        asker.judge();
        assert_eq!(asker.got, [1, 2]);
    });
}

/// A peer that lives and has nothing unread is waited for by nobody, though it makes no call and can't be acted for.
#[test]
fn nothing_unread_waits_for_nobody() {
    explore(3, || {
        let peer = Peer::on_ring(RIGHT);
        let mut asker = Asker::new(&peer);
        let writer = peer.clone();
        let writer = thread::spawn(move || writer.send(&mut Life::whole(), 1).unwrap());
        writer.join().unwrap();
        assert!(asker.read_ring(4));
        asker.hand_back(&mut Life::whole(), false).unwrap();
        let writer = peer.clone();
        let writer = thread::spawn(move || {
            writer.send(&mut Life::whole(), 2).unwrap();
            writer.close(&mut Life::whole()).unwrap();
        });
        asker.read_as_stranger();
        writer.join().unwrap();
        asker.judge();
    });
}

/// Another thread of this end reads from the ring while it is handed back.
fn reads_beside(rules: Rules) {
    let peer = Peer::on_ring(rules);
    let mut life = Life::whole();
    peer.send(&mut life, 1).unwrap();
    peer.send(&mut life, 2).unwrap();
    let reader = peer.clone();
    let reader = thread::spawn(move || {
        let bytes = reader.line.read(1);
        reader.tell();
        bytes
    });
    let mut asker = Asker::new(&peer);
    asker.hand_back(&mut life, true).unwrap();
    peer.end();
    let first = reader.join().unwrap();
    asker.read_as_stranger();
    asker.got.splice(0..0, first);
    asker.judge();
}

#[test]
fn a_reader_beside_the_asker() {
    explore(3, || reads_beside(RIGHT));
}

/// A process that holds the peer's end alone sends, answers, closes, and is killed at step `step`.
fn peer_is_killed(rules: Rules, asks: bool, helps: bool, step: u32, died: &AtomicBool) {
    let peer = Peer::on_ring(rules);
    let mut asker = Asker::new(&peer);
    let writer = peer.clone();
    let writer = thread::spawn(move || {
        let mut life = Life::of(step);
        let mut play = || -> Lived<()> {
            writer.send(&mut life, 1)?;
            writer.send(&mut life, 2)?;
            writer.close(&mut life)
        };
        let killed = play().is_err();
        writer.end();
        killed
    });
    if asks {
        let given = asker.hand_back(&mut Life::whole(), helps).unwrap();
        asker.read_on(given);
    } else {
        asker.peer.line.rx().ask(sgm_ring::layout::PLEASE_DOWN);
        asker.read_by_engine();
    }
    died.fetch_or(writer.join().unwrap(), Relaxed);
    asker.judge();
}

#[test]
fn peer_is_killed_while_it_is_asked() {
    explore_deaths(2, |step, died| {
        peer_is_killed(RIGHT, true, false, step, died)
    });
}

#[test]
fn peer_is_killed_while_it_is_acted_for() {
    explore_deaths(1, |step, died| {
        peer_is_killed(RIGHT, true, true, step, died)
    });
}

/// As `ask_for_tcp`: who asked goes on reading, and knows the ring.
#[test]
fn peer_is_killed_and_its_reader_knows_the_ring() {
    explore_deaths(2, |step, died| {
        peer_is_killed(RIGHT, false, false, step, died)
    });
}

/// Two processes hold the peer's end. One is killed at step `step`, and the other goes on.
fn holder_is_killed(rules: Rules, step: u32, died: &AtomicBool) {
    let peer = Peer::on_ring(rules);
    let mut asker = Asker::new(&peer);
    let writer = peer.clone();
    let writer = thread::spawn(move || {
        let killed = writer.send(&mut Life::of(step), 1).is_err();
        let mut life = Life::whole();
        // What the dead one published is on its way, though its send did not return.
        let next = writer.published.load(Relaxed) as u8 + 1;
        writer.send(&mut life, next).unwrap();
        writer.taken.store(next.into(), Relaxed);
        writer.close(&mut life).unwrap();
        killed
    });
    asker.read_ring(4);
    let given = asker.hand_back(&mut Life::whole(), false).unwrap();
    asker.read_on(given);
    died.fetch_or(writer.join().unwrap(), Relaxed);
    asker.judge();
}

#[test]
fn holder_is_killed_with_the_lock() {
    explore_deaths(2, |step, died| holder_is_killed(RIGHT, step, died));
}

/// Two processes hold the asker's end. One is killed at step `step`, while it acts for the peer; the other reads on. The
/// peer closes without another byte, or sends.
fn helper_is_killed(rules: Rules, sends: bool, step: u32, died: &AtomicBool) {
    let peer = Peer::on_ring(rules);
    peer.send(&mut Life::whole(), 1).unwrap();
    let mut helper = Asker::new(&peer);
    let given = helper.hand_back(&mut Life::of(step), true);
    died.fetch_or(given.is_err(), Relaxed);
    let writer = peer.clone();
    let writer = thread::spawn(move || {
        let mut life = Life::whole();
        if sends {
            writer.send(&mut life, 2).unwrap();
        }
        writer.close(&mut life).unwrap();
    });
    match given {
        Ok(given) => helper.read_on(given),
        Err(_) => helper.read_by_engine(),
    }
    writer.join().unwrap();
    helper.judge();
}

#[test]
fn helper_is_killed_with_the_lock() {
    explore_deaths(3, |step, died| helper_is_killed(RIGHT, true, step, died));
}

#[test]
fn helper_is_killed_and_the_peer_closes() {
    explore_deaths(3, |step, died| helper_is_killed(RIGHT, false, step, died));
}

#[test]
#[should_panic(expected = "lost")]
fn broken_publishing_without_a_second_look_is_caught() {
    const BROKEN: Rules = Rules {
        look_after_publishing: false,
        ..RIGHT
    };
    explore(3, || sends_and_dies(BROKEN));
}

#[test]
#[should_panic(expected = "a doorbell on a pure stream")]
fn broken_ringing_without_a_second_look_is_caught() {
    const BROKEN: Rules = Rules {
        look_after_counting: false,
        ..RIGHT
    };
    explore(3, || sends_and_closes(BROKEN, false));
}

#[test]
#[should_panic(expected = "a doorbell on a pure stream")]
fn broken_asking_after_looking_is_caught() {
    const BROKEN: Rules = Rules {
        ask_first: false,
        ..RIGHT
    };
    explore(3, || sends_and_closes(BROKEN, false));
}

#[test]
#[should_panic(expected = "not what was sent")]
fn broken_moving_beside_a_reader_is_caught() {
    const BROKEN: Rules = Rules {
        stop_reader: false,
        ..RIGHT
    };
    explore(3, || reads_beside(BROKEN));
}

#[test]
#[should_panic(expected = "lost")]
fn broken_judging_a_dead_peer_by_an_old_look_is_caught() {
    const BROKEN: Rules = Rules {
        look_after_end: false,
        ..RIGHT
    };
    explore(3, || sends_and_closes(BROKEN, false));
}

#[test]
#[should_panic(expected = "lost")]
fn broken_leaving_before_all_is_moved_is_caught() {
    const BROKEN: Rules = Rules {
        await_moved: false,
        ..RIGHT
    };
    explore_deaths(2, |step, died| {
        peer_is_killed(BROKEN, true, false, step, died)
    });
}

#[test]
#[should_panic(expected = "payload for doorbells")]
fn broken_taking_bells_by_the_count_is_caught() {
    const BROKEN: Rules = Rules {
        look_before_taking: false,
        ..RIGHT
    };
    explore(3, || sends_and_closes(BROKEN, false));
}

#[test]
#[should_panic(expected = "not what was sent")]
fn broken_going_by_a_dead_holders_notes_is_caught() {
    const BROKEN: Rules = Rules {
        count_from_switch: false,
        ..RIGHT
    };
    explore_deaths(2, |step, died| holder_is_killed(BROKEN, step, died));
}

#[test]
#[should_panic(expected = "a doorbell on a pure stream")]
fn broken_uncounting_a_bell_that_was_sent_is_caught() {
    const BROKEN: Rules = Rules {
        tell_bells: false,
        ..RIGHT
    };
    explore_deaths(2, |step, died| holder_is_killed(BROKEN, step, died));
}

#[test]
#[should_panic(expected = "not what was sent")]
fn broken_forgetting_a_dead_holder_is_caught() {
    const BROKEN: Rules = Rules {
        mend_whenever: false,
        ..RIGHT
    };
    explore_deaths(3, |step, died| helper_is_killed(BROKEN, false, step, died));
}
