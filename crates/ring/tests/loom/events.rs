//! Sleep and wake by an event queue (INV-5a): several writers, one waiter, one bell.
//!
//! In every model the waiter waits for all that the writers send, and nothing else would wake it.

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
use loom::thread;
use sgm_ring::events::Words;
use sgm_ring::sync::AtomicU32;
use sgm_ring::sync::Ordering::{AcqRel, Acquire};

use crate::explore;
use crate::wire::Line;

/// Few words, for loom looks at all of them.
type Queue = Words<1, 1>;
const QUEUE: u64 = 7;

/// A FIFO in a set that waits for edges: each ring wakes one thread that sleeps, or the next that comes.
#[derive(Default)]
struct Bell {
    /// Rings that woke nobody yet, as an edge: one at most.
    rung: Mutex<bool>,
    woken: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.woken.notify_one();
    }

    fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.woken.wait(rung).unwrap();
        }
        *rung = false;
    }
}

#[derive(Clone, Copy)]
struct Rules {
    look_after_falling_asleep: bool,
    look_after_listening: bool,
    ring_first: bool,
}

const RIGHT: Rules = Rules {
    look_after_falling_asleep: true,
    look_after_listening: true,
    ring_first: true,
};

struct Node {
    queue: Queue,
    bell: Bell,
    lines: Vec<Arc<Line>>,
    /// Bytes that waiters have taken.
    taken: AtomicU32,
    rules: Rules,
}

/// How far a writer comes before it is killed.
#[derive(Clone, Copy, PartialEq)]
enum Dies {
    Never,
    Published,
    Listed,
    Rang,
}

impl Node {
    fn new(lines: usize, rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            queue: Queue::default(),
            bell: Bell::default(),
            lines: (0..lines).map(|_| Line::new(2)).collect(),
            taken: AtomicU32::new(0),
            rules,
        })
    }

    fn send(&self, at: usize, dies: Dies) {
        let line = &self.lines[at];
        assert_eq!(line.write(&[1]), 1);
        if dies == Dies::Published || !line.tx().is_awaited() {
            return;
        }
        let Some((queue, entry)) = line.tx().listener() else {
            return;
        };
        assert_eq!((queue, entry), (QUEUE, at as u32));
        self.queue.list(entry);
        if dies == Dies::Listed {
            return;
        }
        let Some(seen) = self.queue.sleeper() else {
            return;
        };
        if !self.rules.ring_first {
            self.queue.rung(seen);
            if dies == Dies::Rang {
                return;
            }
        }
        self.bell.ring();
        if dies != Dies::Rang {
            self.queue.rung(seen);
        }
    }

    /// Takes what is in the rings of all ends that are listed, or all (`all`). True: there was something.
    fn collect(&self, all: bool) -> bool {
        let mut hot = Vec::new();
        self.queue.take(|entry| hot.push(entry as usize));
        if all {
            hot = (0..self.lines.len()).collect();
        }
        let mut found = false;
        for at in hot {
            let line = &self.lines[at];
            line.rx().look_yourself();
            let got = line.read(2).len() as u32;
            self.taken.fetch_add(got, AcqRel);
            found |= got > 0;
            // Cold again at once; news that came before is seen now.
            line.rx().listen(QUEUE, at as u32, 0);
            if self.rules.look_after_listening {
                let more = line.read(2).len() as u32;
                self.taken.fetch_add(more, AcqRel);
                found |= more > 0;
            }
        }
        found
    }

    /// Waits until `want` bytes were taken.
    fn wait(&self, want: u32) {
        self.collect(true);
        while self.taken.load(Acquire) < want {
            self.queue.fall_asleep();
            if !self.rules.look_after_falling_asleep || !self.queue.has_any() {
                self.bell.sleep();
            }
            let seen = self.queue.sleep();
            self.queue.wake_up(seen);
            self.collect(false);
        }
    }
}

/// `lines[i]` are the messages of one writer each.
fn run(rules: Rules, writers: &'static [&'static [(usize, Dies)]], lines: usize) {
    let node = Node::new(lines, rules);
    let threads: Vec<_> = writers
        .iter()
        .map(|messages| {
            let node = node.clone();
            thread::spawn(move || messages.iter().for_each(|(at, dies)| node.send(*at, *dies)))
        })
        .collect();
    node.wait(writers.iter().map(|m| m.len() as u32).sum());
    for t in threads {
        t.join().unwrap();
    }
}

const FINE: Dies = Dies::Never;

#[test]
fn no_wake_up_is_lost() {
    explore(3, || run(RIGHT, &[&[(0, FINE), (0, FINE)]], 1));
}

#[test]
fn two_writers_one_bell() {
    explore(2, || run(RIGHT, &[&[(0, FINE)], &[(1, FINE)]], 2));
}

/// Another holder of the writer's socket goes on where it was killed.
#[test]
fn a_writer_dies_anywhere() {
    explore(3, || run(RIGHT, &[&[(0, Dies::Published), (0, FINE)]], 1));
    explore(3, || run(RIGHT, &[&[(0, Dies::Listed), (0, FINE)]], 1));
    explore(3, || run(RIGHT, &[&[(0, Dies::Rang), (0, FINE)]], 1));
}

/// Its death is no obstacle for writers of other connections.
#[test]
fn a_dead_writer_holds_nobody_up() {
    explore(2, || {
        let node = Node::new(2, RIGHT);
        let (dead, other) = (node.clone(), node.clone());
        let first = thread::spawn(move || dead.send(0, Dies::Rang));
        let second = thread::spawn(move || other.send(1, FINE));
        node.collect(true);
        while node.lines[1].rx().position() == 0 {
            node.queue.fall_asleep();
            if !node.queue.has_any() {
                node.bell.sleep();
            }
            node.queue.wake_up(node.queue.sleep());
            node.collect(false);
        }
        first.join().unwrap();
        second.join().unwrap();
    });
}

/// Two threads sleep on the same set. Who wakes says that the other sleeps on, takes, and rings again for what is left.
#[test]
fn two_threads_of_a_waiter() {
    explore(2, || {
        let node = Node::new(1, RIGHT);
        node.collect(true);
        let asleep = Arc::new(AtomicU32::new(0));
        let wait = |node: Arc<Node>, asleep: Arc<AtomicU32>| {
            move || {
                while node.taken.load(Acquire) < 2 {
                    asleep.fetch_add(1, AcqRel);
                    node.queue.fall_asleep();
                    if !node.queue.has_any() && node.taken.load(Acquire) < 2 {
                        node.bell.sleep();
                    }
                    let seen = node.queue.sleep();
                    match asleep.fetch_sub(1, AcqRel) > 1 {
                        true => _ = node.queue.fall_asleep(),
                        false => node.queue.wake_up(seen),
                    }
                    node.collect(false);
                    if node.queue.has_any() && node.queue.sleeper().is_some() {
                        node.bell.ring();
                    }
                }
                // For the model's end alone: the other one need not sleep on.
                node.bell.ring();
            }
        };
        let other = thread::spawn(wait(node.clone(), asleep.clone()));
        let writer = {
            let node = node.clone();
            thread::spawn(move || {
                node.send(0, FINE);
                node.send(0, FINE);
            })
        };
        wait(node.clone(), asleep)();
        other.join().unwrap();
        writer.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_no_look_after_falling_asleep_is_caught() {
    let rules = Rules {
        look_after_falling_asleep: false,
        ..RIGHT
    };
    explore(3, move || run(rules, &[&[(0, FINE), (0, FINE)]], 1));
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_no_look_after_listening_is_caught() {
    let rules = Rules {
        look_after_listening: false,
        ..RIGHT
    };
    explore(3, move || run(rules, &[&[(0, FINE), (0, FINE)]], 1));
}

/// Says that it rang, and is killed before it does.
#[test]
#[should_panic(expected = "deadlock")]
fn broken_saying_before_ringing_is_caught() {
    let rules = Rules {
        ring_first: false,
        ..RIGHT
    };
    explore(3, move || run(rules, &[&[(0, Dies::Rang), (0, FINE)]], 1));
}
