//! A doorbell beside a way back: who moves unread bytes to the stream, and is killed then, has left no bell unread, or its
//! kernel would drop what it has not delivered.

use std::sync::Arc;

use loom::thread;

use crate::explore;
use crate::wire::{BELL, Line, touch, touch32};

/// What both ends do right; each switched off in a model that must fail.
#[derive(Clone, Copy)]
struct Rules {
    /// Who rings looks whether the peer moves after it has counted the bell, not before.
    count_first: bool,
    /// Who moves says so first, and looks for bells then.
    move_first: bool,
    /// A bell that was counted is waited for.
    await_counted: bool,
}

const RIGHT: Rules = Rules {
    count_first: true,
    move_first: true,
    await_counted: true,
};

/// `Conn::ring_bell`, towards the end that writes `moving`.
fn ring(moving: &Line, bells: &Line, rules: Rules) {
    let moves = || moving.rx().is_moved() || moving.rx().down_at(1).is_some();
    let before = moves();
    touch32(&bells.direction.writer.bells_sent);
    bells.tx().count_bell();
    if if rules.count_first { moves() } else { before } {
        touch32(&bells.direction.writer.bells_sent);
        bells.tx().uncount_bell();
    } else {
        bells.stream.send(BELL);
    }
    bells.tell_switch();
}

/// `Conn::await_no_bell`.
fn leave_no_bell(bells: &Line, rules: Rules) {
    let rx = bells.rx();
    while rx.bells_untaken() > 0 {
        let seen = bells.stream.peek(2).len();
        if seen == 0 && !rules.await_counted {
            return;
        }
        if seen > 0 && rx.claim_bells(seen as u32, 1) {
            assert_eq!(bells.stream.recv(seen).len(), seen);
        }
        bells.await_switch(|| rx.bells_untaken() == 0 || !bells.stream.peek(1).is_empty());
    }
}

/// One end moves its unread byte and is killed; the other rings for it meanwhile.
fn moves_and_dies(rules: Rules) {
    let line = || -> Arc<Line> {
        let line = Line::new(2);
        line.tx().switch_up(0);
        line.rx().pass(1, 0);
        line
    };
    let (moving, bells) = (line(), line());
    moving.write(&[1]);
    let (m, b) = (moving.clone(), bells.clone());
    let ringer = thread::spawn(move || ring(&m, &b, rules));
    if !rules.move_first {
        leave_no_bell(&bells, rules);
    }
    touch(&moving.direction.reader.head);
    let (from, to) = moving.tx().switch_down(0).unwrap();
    assert_eq!(to - from, 1);
    if rules.move_first {
        leave_no_bell(&bells, rules);
    }
    moving.stream.send(1);
    ringer.join().unwrap();
    assert!(bells.stream.peek(1).is_empty(), "a bell is left unread");
}

#[test]
fn no_bell_is_left_to_who_moves() {
    explore(3, || moves_and_dies(RIGHT));
}

#[test]
#[should_panic(expected = "a bell is left unread")]
fn broken_look_before_counting() {
    let rules = Rules {
        count_first: false,
        ..RIGHT
    };
    explore(3, move || moves_and_dies(rules));
}

#[test]
#[should_panic(expected = "a bell is left unread")]
fn broken_bells_taken_before_moving() {
    let rules = Rules {
        move_first: false,
        ..RIGHT
    };
    explore(3, move || moves_and_dies(rules));
}

#[test]
#[should_panic(expected = "a bell is left unread")]
fn broken_counted_bell_not_awaited() {
    let rules = Rules {
        await_counted: false,
        ..RIGHT
    };
    explore(3, move || moves_and_dies(rules));
}
