//! Two threads read one end, each with blocking calls. What TCP promises: while bytes are there, nobody sleeps.
//!
//! Each of two readers takes a given number of bytes, together all that is sent. A byte that lies in the ring while a
//! reader sleeps for ever is loom's deadlock.

use std::sync::Arc;

use loom::thread;

use crate::end::{End, RIGHT, Rules, Sender};
use crate::explore;
use crate::wire::Line;

fn read_together(end: &Arc<End>, counts: [usize; 2], max: usize, expected: usize) {
    let other = end.clone();
    let other = thread::spawn(move || other.recv_all(counts[1], max));
    let mut all = end.recv_all(counts[0], max);
    assert!(all.is_sorted());
    all.extend(other.join().unwrap());
    all.sort_unstable();
    assert_eq!(all, (1..=expected as u8).collect::<Vec<_>>());
}

/// A message that one reader takes, then one that is for both.
fn on_the_ring(rules: Rules) {
    let line = Line::new(4);
    let end = End::on_ring(&line, rules);
    let mut sender = Sender::new(&line);
    let writer = thread::spawn(move || {
        sender.send(&[1]);
        sender.send(&[2, 3]);
    });
    read_together(&end, [2, 1], 1, 3);
    writer.join().unwrap();
}

#[test]
fn two_sleepers_one_message() {
    explore(3, || {
        let line = Line::new(2);
        let end = End::on_ring(&line, RIGHT);
        let mut sender = Sender::new(&line);
        let writer = thread::spawn(move || sender.send(&[1, 2]));
        read_together(&end, [1, 1], 1, 2);
        writer.join().unwrap();
    });
}

#[test]
fn two_sleepers_two_messages() {
    explore(2, || on_the_ring(RIGHT));
}

/// One byte over TCP, then one through the ring.
fn at_the_switch(rules: Rules) {
    let line = Line::new(2);
    let end = End::on_tcp(&line, rules);
    let mut sender = Sender::new(&line);
    let writer = thread::spawn(move || {
        sender.send_tcp(1);
        sender.switch_up();
        sender.send(&[2]);
    });
    read_together(&end, [1, 1], 8, 2);
    writer.join().unwrap();
}

#[test]
fn two_sleepers_at_the_switch() {
    explore(3, || at_the_switch(RIGHT));
}

/// One byte through the ring, then one over TCP.
#[test]
fn two_sleepers_at_the_switch_back() {
    explore(2, || {
        let line = Line::new(2);
        let end = End::on_ring(&line, RIGHT);
        let mut sender = Sender::new(&line);
        let writer = thread::spawn(move || {
            sender.send(&[1]);
            sender.switch_down();
            sender.send_tcp(2);
        });
        read_together(&end, [1, 1], 1, 2);
        writer.join().unwrap();
    });
}

/// The end is for both.
fn end_of_file(rules: Rules) {
    let line = Line::new(2);
    let end = End::on_ring(&line, rules);
    let mut sender = Sender::new(&line);
    let writer = thread::spawn(move || {
        sender.send(&[1]);
        sender.finish();
    });
    let to_the_end = |end: &End| {
        let mut all = Vec::new();
        loop {
            let bytes = end.recv(1);
            if bytes.is_empty() {
                return all;
            }
            all.extend(bytes);
        }
    };
    let other = end.clone();
    let other = thread::spawn(move || to_the_end(&other));
    let mut all = to_the_end(&end);
    all.extend(other.join().unwrap());
    assert_eq!(all, [1]);
    writer.join().unwrap();
}

#[test]
fn two_sleepers_end_of_file() {
    explore(2, || end_of_file(RIGHT));
}

/// A blocking reader beside an epoll set that waits for edges.
#[test]
fn sleeper_and_edge() {
    explore(2, || {
        let line = Line::new(2);
        let end = End::on_ring(&line, RIGHT);
        let mut sender = Sender::new(&line);
        let writer = thread::spawn(move || {
            sender.send(&[1]);
            sender.send(&[2]);
        });
        let other = end.clone();
        let other = thread::spawn(move || other.recv(1));
        let mut all = end.recv_by_edge(&mut 0, 1);
        all.extend(other.join().unwrap());
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
        writer.join().unwrap();
    });
}

/// A reader that sees the ring empty, takes the bell and then counts it. In between a message came that the writer left
/// to that bell: this reader finds the message, takes a part of it, and the other sleeps on.
#[test]
#[should_panic(expected = "deadlock")]
fn broken_taking_bells_before_counting_them_is_caught() {
    explore(2, || {
        on_the_ring(Rules {
            claim_bells_first: false,
            ..RIGHT
        })
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_taking_bells_beside_the_end_is_caught() {
    explore(2, || {
        end_of_file(Rules {
            claim_bells_first: false,
            ..RIGHT
        })
    });
}

/// A reader that takes payload and the bell behind it with one recv, and leaves the ring's bytes to the other.
#[test]
#[should_panic(expected = "deadlock")]
fn broken_taking_bells_at_the_switch_is_caught() {
    explore(2, || {
        at_the_switch(Rules {
            leave_bells_at_switch: false,
            ..RIGHT
        })
    });
}

/// A reader that sleeps because payload is on the stream before the switch, while the other takes that payload.
#[test]
#[should_panic(expected = "deadlock")]
fn broken_sleeping_on_an_ended_stretch_is_caught() {
    explore(2, || {
        at_the_switch(Rules {
            mind_ring_at_switch: false,
            ..RIGHT
        })
    });
}
