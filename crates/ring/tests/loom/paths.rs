//! Stretches (INV-2): bytes that go over the TCP stream first, then through the ring, then over the stream again,
//! with doorbells between; the reader sees the bytes, all of them, in order, and no bell.

use std::sync::Arc;

use loom::sync::atomic::AtomicBool;
use loom::thread;
use sgm_ring::layout::RING_BYTES_MIN;
use sgm_ring::sync::Ordering::{Acquire, Release};
use sgm_ring::{Decision, Key, SegmentHeader};

use crate::end::{End, RIGHT, Rules, Sender};
use crate::explore;
use crate::wire::Line;

/// Payload 1 and 2 over TCP, then 3 and 4 through the ring.
fn up(rules: Rules, max: usize) {
    let line = Line::new(2);
    let end = End::on_tcp(&line, rules);
    let mut sender = Sender::new(&line);
    let writer = thread::spawn(move || {
        sender.send_tcp(1);
        sender.send_tcp(2);
        sender.switch_up();
        sender.send(&[3]);
        sender.send(&[4]);
    });
    assert_eq!(end.recv_all(4, max), [1, 2, 3, 4], "not what was sent");
    writer.join().unwrap();
}

#[test]
fn up_in_small_reads() {
    explore(3, || up(RIGHT, 1));
}

#[test]
fn up_in_large_reads() {
    explore(3, || up(RIGHT, 8));
}

/// Switched before a byte was sent.
#[test]
fn up_at_the_first_byte() {
    explore(3, || {
        let line = Line::new(2);
        let end = End::on_tcp(&line, RIGHT);
        let mut sender = Sender::new(&line);
        let writer = thread::spawn(move || {
            sender.switch_up();
            sender.send(&[1]);
            sender.send(&[2]);
        });
        assert_eq!(end.recv_all(2, 2), [1, 2], "not what was sent");
        writer.join().unwrap();
    });
}

/// Payload 1 and 2 through the ring, then 3 and 4 over TCP. `down` switches.
fn down(rules: Rules, max: usize, down: fn(&mut Sender)) {
    let line = Line::new(2);
    let end = End::on_ring(&line, rules);
    let mut sender = Sender::new(&line);
    let writer = thread::spawn(move || {
        sender.send(&[1]);
        sender.send(&[2]);
        down(&mut sender);
        sender.send_tcp(3);
        sender.send_tcp(4);
    });
    assert_eq!(end.recv_all(4, max), [1, 2, 3, 4], "not what was sent");
    writer.join().unwrap();
}

#[test]
fn down_in_small_reads() {
    explore(3, || down(RIGHT, 1, Sender::switch_down));
}

#[test]
fn down_in_large_reads() {
    explore(3, || down(RIGHT, 8, Sender::switch_down));
}

#[test]
fn down_behind_what_is_unread() {
    explore(3, || down(RIGHT, 1, Sender::switch_down_behind));
    explore(3, || down(RIGHT, 8, Sender::switch_down_behind));
}

/// Switched down right after another bell went out, for nothing.
#[test]
fn down_behind_a_bell() {
    explore(3, || {
        down(RIGHT, 2, |sender| {
            sender.ring_bell();
            sender.switch_down();
        });
    });
}

#[test]
fn up_and_down() {
    explore(3, || {
        let line = Line::new(2);
        let end = End::on_tcp(&line, RIGHT);
        let mut sender = Sender::new(&line);
        let writer = thread::spawn(move || {
            sender.send_tcp(1);
            sender.switch_up();
            sender.send(&[2]);
            sender.switch_down();
            sender.send_tcp(3);
        });
        assert_eq!(end.recv_all(3, 2), [1, 2, 3], "not what was sent");
        writer.join().unwrap();
    });
}

/// The whole of it: the client offers, sends, and switches when it could confirm; the server claims at any time, and
/// takes its claim back at any time. `may_write`: does the client's attempt to confirm allow it to use the ring?
fn handover(may_write: fn(&SegmentHeader) -> bool) {
    let header = Arc::new(SegmentHeader::default());
    header.offer(&Key::default(), RING_BYTES_MIN as u32);
    let line = Line::new(4);
    let mut sender = Sender::new(&line);
    let client_header = header.clone();
    let client = thread::spawn(move || {
        let mut carried = false;
        for byte in 1..=2 {
            if !carried && client_header.decision() == Ok(Decision::Claimed) {
                carried = may_write(&client_header);
                if carried {
                    sender.switch_up();
                }
            }
            if carried {
                sender.send(&[byte])
            } else {
                sender.send_tcp(byte)
            }
        }
        carried
    });
    let engaged = header.claim();
    if engaged && header.withdraw() {
        // Plain for good: reads the kernel's stream and nothing else.
        let mut got = Vec::new();
        while got.len() < 2 {
            line.stream.sleep_readable();
            got.extend(line.stream.recv(2));
        }
        assert_eq!(got, [1, 2], "not what was sent");
    } else {
        assert_eq!(
            End::on_tcp(&line, RIGHT).recv_all(2, 2),
            [1, 2],
            "not what was sent"
        );
    }
    client.join().unwrap();
}

#[test]
fn handover_against_withdrawal() {
    explore(3, || handover(SegmentHeader::confirm));
}

/// The client confirms at once, the server's direction follows when it sees that.
#[test]
fn server_follows_the_confirmation() {
    explore(3, || {
        let header = Arc::new(SegmentHeader::default());
        header.offer(&Key::default(), RING_BYTES_MIN as u32);
        let line = Line::new(4);
        let (server_header, server_line) = (header.clone(), line.clone());
        let withdrawn = Arc::new(AtomicBool::new(false));
        let client_withdrew = withdrawn.clone();
        let server = thread::spawn(move || {
            let mut sender = Sender::new(&server_line);
            let claimed = server_header.claim();
            let mut up = false;
            for byte in 1..=2 {
                if !up && claimed && server_header.decision() == Ok(Decision::Confirmed) {
                    assert!(!client_withdrew.load(Acquire), "carried though withdrawn");
                    sender.switch_up();
                    up = true;
                }
                if up {
                    sender.send(&[byte])
                } else {
                    sender.send_tcp(byte)
                }
            }
        });
        if header.decision() == Ok(Decision::Claimed) && header.confirm() {
            assert_eq!(
                End::on_tcp(&line, RIGHT).recv_all(2, 2),
                [1, 2],
                "not what was sent"
            );
        } else {
            withdrawn.store(true, Release);
            assert!(header.withdraw());
            line.stream.sleep_readable();
        }
        server.join().unwrap();
    });
}

/// A client that uses the ring because it saw the claim, without confirming: nobody reads those bytes.
#[test]
#[should_panic(expected = "deadlock")]
fn broken_writing_without_confirmation_is_caught() {
    explore(3, || handover(|_| true));
}

/// A reader that does not look again where the stretch ends takes the bells behind it for payload.
#[test]
#[should_panic(expected = "read past the switch")]
fn broken_reading_past_the_switch_is_caught() {
    explore(3, || {
        up(
            Rules {
                clip: false,
                ..RIGHT
            },
            8,
        )
    });
}

/// A writer that fills the ring before it says where the ring takes over.
#[test]
#[should_panic(expected = "not what was sent")]
fn broken_bell_before_the_switch_is_caught() {
    explore(3, || {
        let line = Line::new(2);
        let end = End::on_tcp(&line, RIGHT);
        let mut sender = Sender::new(&line);
        let writer = thread::spawn(move || {
            sender.send_tcp(1);
            let position = 1;
            sender.send(&[2]);
            sender.line.tx().switch_up(position);
        });
        assert_eq!(end.recv_all(2, 2), [1, 2], "not what was sent");
        writer.join().unwrap();
    });
}

/// A reader that takes any byte on the stream for a bell, without looking whether the direction is back on TCP.
#[test]
#[should_panic(expected = "payload taken for doorbells")]
fn broken_dropping_bells_after_the_switch_is_caught() {
    explore(3, || {
        down(
            Rules {
                mind_down: false,
                ..RIGHT
            },
            2,
            Sender::switch_down,
        )
    });
}

/// A writer that rings once more after it said from which position on the stream is payload.
#[test]
#[should_panic(expected = "not what was sent")]
fn broken_bell_behind_the_switch_is_caught() {
    explore(3, || {
        down(RIGHT, 2, |sender| {
            sender.switch_down();
            sender.ring_bell();
        });
    });
}

/// A writer that counts a bell, can't send it, and takes its count back: a reader that had seen the count takes the
/// payload that comes instead.
#[test]
#[should_panic(expected = "payload taken for doorbells")]
fn broken_taking_a_count_back_is_caught() {
    explore(3, || {
        down(RIGHT, 2, |sender| {
            sender.count_bell();
            sender.uncount_bell();
            sender.switch_down();
        });
    });
}
