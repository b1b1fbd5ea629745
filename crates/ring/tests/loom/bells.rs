//! Sleep and wake with the doorbell on the TCP stream (INV-5): one reader, one writer.
//!
//! In every model the reader waits for all that the writer sends. If a wake-up could be lost, some run would end with
//! the reader asleep for ever.

use loom::thread;
use sgm_ring::sync::Ordering::{Relaxed, Release};

use crate::end::{End, RIGHT, Rules, Sender};
use crate::explore;
use crate::wire::Line;

/// Two messages to a reader that sleeps between them.
fn two_messages(rules: Rules, send: fn(&mut Sender, u8)) {
    let line = Line::new(2);
    let end = End::on_ring(&line, rules);
    let mut sender = Sender::new(&line);
    let writer = thread::spawn(move || {
        send(&mut sender, 1);
        send(&mut sender, 2);
    });
    assert_eq!(end.recv_all(2, 2), [1, 2]);
    writer.join().unwrap();
}

fn right_send(sender: &mut Sender, byte: u8) {
    sender.send(&[byte]);
}

#[test]
fn no_wake_up_is_lost() {
    explore(3, || two_messages(RIGHT, right_send));
}

/// The writer is killed between counting a bell and sending it; another process that holds the socket takes its lock
/// over, and rings once more.
#[test]
fn writer_dies_while_ringing() {
    explore(3, || {
        two_messages(RIGHT, |sender, byte| {
            if byte == 1 {
                assert_eq!(sender.line.write(&[1]), 1);
                if sender.line.tx().bell_due() {
                    sender.count_bell();
                }
            } else {
                sender.uncount_bell();
                sender.ring_bell();
                sender.send(&[2]);
            }
        });
    });
}

/// As above, but it was killed after it had sent the bell: there is one more on the stream than was counted.
#[test]
fn writer_dies_after_ringing() {
    explore(3, || {
        two_messages(RIGHT, |sender, byte| {
            sender.send(&[byte]);
            if byte == 1 {
                sender.uncount_bell();
                sender.ring_bell();
            }
        });
    });
}

/// More bells than are needed do no harm.
#[test]
fn bell_for_nothing() {
    explore(3, || {
        two_messages(RIGHT, |sender, byte| {
            sender.ring_bell();
            sender.send(&[byte]);
        });
    });
}

#[test]
fn end_of_file_wakes_after_the_last_byte() {
    explore(3, || {
        let line = Line::new(2);
        let end = End::on_ring(&line, RIGHT);
        let mut sender = Sender::new(&line);
        let writer = thread::spawn(move || {
            sender.send(&[1]);
            sender.finish();
        });
        assert_eq!(end.recv(2), [1]);
        assert_eq!(end.recv(2), [], "end-of-file");
        writer.join().unwrap();
    });
}

/// Three messages, one by one, through a reader that is asleep before each or not.
#[test]
fn three_messages() {
    explore(3, || {
        let line = Line::new(4);
        let end = End::on_ring(&line, RIGHT);
        let mut sender = Sender::new(&line);
        let writer = thread::spawn(move || (1..=3).for_each(|byte| sender.send(&[byte])));
        assert_eq!(end.recv_all(3, 1), [1, 2, 3]);
        writer.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_no_look_after_arming_is_caught() {
    explore(3, || {
        two_messages(
            Rules {
                look_after_arming: false,
                ..RIGHT
            },
            right_send,
        )
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_arming_without_barrier_is_caught() {
    explore(3, || {
        two_messages(
            Rules {
                barrier: false,
                ..RIGHT
            },
            right_send,
        )
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_publishing_without_barrier_is_caught() {
    explore(3, || {
        two_messages(RIGHT, |sender, byte| {
            let tx = sender.line.tx();
            let tail = tx.position();
            tx.bytes.put(Default::default(), tail, &[byte]);
            tx.direction.writer.tail.store(tail + 1, Release);
            sender.ring_if_due();
        });
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_looking_for_sleepers_before_publishing_is_caught() {
    explore(3, || {
        two_messages(RIGHT, |sender, byte| {
            let asleep = sender.line.direction.wait.sleepers.load(Relaxed) != 0;
            assert_eq!(sender.line.write(&[byte]), 1);
            if asleep {
                sender.ring_if_due();
            }
        });
    });
}

/// A reader that takes bells only after its last look at the ring: the writer believed a bell under way.
#[test]
#[should_panic(expected = "deadlock")]
fn broken_taking_after_arming_is_caught() {
    let rules = Rules {
        count_before_arming: false,
        claim_bells_first: false,
        ..RIGHT
    };
    explore(3, move || two_messages(rules, right_send));
}

/// Two messages to a member of an epoll set that waits for edges, and leaves bells on the stream.
fn two_edges(rules: Rules) {
    let line = Line::new(2);
    let end = End::on_ring(&line, rules);
    let mut sender = Sender::new(&line);
    let writer = thread::spawn(move || {
        sender.send(&[1]);
        sender.send(&[2]);
    });
    let mut seen = 0;
    let mut all = Vec::new();
    while all.len() < 2 {
        all.extend(end.recv_by_edge(&mut seen, 2));
    }
    assert_eq!(all, [1, 2]);
    writer.join().unwrap();
}

#[test]
fn no_edge_is_lost() {
    explore(3, || two_edges(RIGHT));
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_edge_without_a_second_look_is_caught() {
    explore(3, || {
        two_edges(Rules {
            look_after_arming: false,
            ..RIGHT
        })
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_edge_without_barrier_is_caught() {
    explore(3, || {
        two_edges(Rules {
            barrier: false,
            ..RIGHT
        })
    });
}
