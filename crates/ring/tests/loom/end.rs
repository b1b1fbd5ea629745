//! The engine's steps over a [`Line`], as the crate `sockets` makes them: the receiving end with its three paths, and
//! the sending end. Broken variants are chosen by [`Rules`].

use std::sync::Arc;

use loom::sync::Mutex;
use sgm_ring::Rx;
use sgm_ring::layout::FIN;
use sgm_ring::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use sgm_ring::sync::{AtomicU32, AtomicU64};

use crate::wire::{BELL, Line, touch, touch32};

/// Where the next byte comes from: the parity of the switches passed.
const TCP: u32 = 0;
const RING: u32 = 1;

/// What the receiving end does right; each switched off in a model that must fail.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Looks at the ring again after arming.
    pub look_after_arming: bool,
    /// Arms with a full barrier.
    pub barrier: bool,
    /// Counts bells as taken before it looks at the ring for the last time, and leaves them on the stream if bytes
    /// came. Otherwise another sleeper, whom the writer left to the bell under way, is forgotten.
    pub claim_bells_first: bool,
    /// Counts bells as taken before arming.
    pub count_before_arming: bool,
    /// Looks where the ring takes over again after every recv.
    pub clip: bool,
    /// Leaves doorbells behind the payload of the TCP stretch on the stream, for the other sleepers.
    pub leave_bells_at_switch: bool,
    /// Sleeps on a TCP stretch whose end is known only while the ring is empty.
    pub mind_ring_at_switch: bool,
    /// Takes an uncounted byte for a doorbell only if the direction has not gone back to TCP.
    pub mind_down: bool,
}

pub const RIGHT: Rules = Rules {
    look_after_arming: true,
    barrier: true,
    claim_bells_first: true,
    count_before_arming: true,
    clip: true,
    leave_bells_at_switch: true,
    mind_ring_at_switch: true,
    mind_down: true,
};

/// The receiving end.
pub struct End {
    pub line: Arc<Line>,
    rules: Rules,
    lock: Mutex<()>,
    passed: AtomicU32,
    /// Bytes taken off the TCP stream, payload and bells.
    tcp_rx: AtomicU64,
}

/// Nothing to read, no end, no switch.
fn is_quiet(rx: Rx<'_>, passed: u32) -> bool {
    rx.readable() == Ok(0) && rx.flags() == 0 && rx.down_at(passed).is_none()
}

/// For broken variants: counts after taking.
fn count_taken(rx: Rx<'_>, n: usize) {
    rx.direction.wait.bells_taken.fetch_add(n as u32, AcqRel);
}

impl End {
    fn on(passed: u32, line: &Arc<Line>, rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            line: line.clone(),
            rules,
            lock: Mutex::new(()),
            passed: AtomicU32::new(passed),
            tcp_rx: AtomicU64::new(0),
        })
    }

    /// An end whose direction is on the ring from the start.
    pub fn on_ring(line: &Arc<Line>, rules: Rules) -> Arc<Self> {
        line.tx().switch_up(0);
        line.rx().pass(RING, 0);
        Self::on(RING, line, rules)
    }

    /// An end whose direction starts on the TCP stream.
    pub fn on_tcp(line: &Arc<Line>, rules: Rules) -> Arc<Self> {
        Self::on(TCP, line, rules)
    }

    /// Switches passed, and the path that makes.
    fn path(&self) -> (u32, u32) {
        let passed = self.passed.load(Acquire);
        (passed, passed % 2)
    }

    fn pass(&self, passed: u32) {
        self.passed.store(passed, Release);
        self.line.rx().pass(passed, self.tcp_rx.load(Relaxed));
    }

    /// A blocking recv of at most `max` bytes; empty: end-of-file.
    pub fn recv(&self, max: usize) -> Vec<u8> {
        loop {
            if let Some(bytes) = self.look(max) {
                return bytes;
            }
            if self.prepare_sleep(|| true) {
                self.line.stream.sleep_readable();
                self.line.rx().disarm();
                self.drop_stray_bell();
            }
        }
    }

    /// Receives `count` bytes, at most `max` with each call.
    pub fn recv_all(&self, count: usize, max: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.recv(max));
        }
        all
    }

    fn look(&self, max: usize) -> Option<Vec<u8>> {
        let rx = self.line.rx();
        loop {
            let (passed, path) = self.path();
            match path {
                TCP => match self.look_at_tcp(max) {
                    Some(bytes) if bytes.is_empty() => return None,
                    Some(bytes) => return Some(bytes),
                    None => {}
                },
                RING => {
                    let bytes = self.line.read(max);
                    if !bytes.is_empty() {
                        return Some(bytes);
                    }
                    if let Some((down, tcp)) = rx.down_at(passed) {
                        let position = rx.position();
                        if position != down && self.path().0 == passed {
                            // Left to us, and published since we looked; another reader may be at it as well.
                            assert!(rx.readable() != Ok(0) || rx.position() != position);
                            continue;
                        }
                        self.back_to_tcp(tcp);
                    } else if rx.is_moved() {
                        // The writer is about to say where the stream goes on. The engine comes by again and again, for a
                        // doorbell may lie on the stream.
                        self.line.await_switch(|| rx.down_at(passed).is_some());
                    } else if rx.flags() & FIN == 0 {
                        return None;
                    } else if rx.readable() == Ok(0) && rx.down_at(passed).is_none() {
                        return Some(Vec::new());
                    }
                }
                _ => unreachable!(),
            }
        }
    }

    /// `None`: the path has changed. Empty: nothing now.
    fn look_at_tcp(&self, max: usize) -> Option<Vec<u8>> {
        let rx = self.line.rx();
        let _guard = self.lock.lock().unwrap();
        let (passed, path) = self.path();
        if path != TCP {
            return None;
        }
        let position = self.tcp_rx.load(Relaxed);
        let to_switch = |up: u64| up.checked_sub(position).expect("read past the switch") as usize;
        let before = rx.up_at(passed).map(to_switch);
        if before == Some(0) {
            self.pass(passed + 1);
            return None;
        }
        let stream = &self.line.stream;
        let mut bytes = stream.peek(max.min(before.unwrap_or(max)));
        // The writer may have switched, and rung, since `before`.
        let payload = rx
            .up_at(passed)
            .map_or(bytes.len(), |up| bytes.len().min(to_switch(up)));
        if self.rules.clip {
            if !self.rules.leave_bells_at_switch && payload < bytes.len() {
                count_taken(rx, bytes.len() - payload);
                self.pass(passed + 1);
                stream.recv(bytes.len() - payload);
                self.tcp_rx
                    .fetch_add((bytes.len() - payload) as u64, Relaxed);
            }
            bytes.truncate(payload);
        }
        stream.recv(bytes.len());
        self.tcp_rx.fetch_add(bytes.len() as u64, Relaxed);
        // Nothing but bells: the switch is here.
        if bytes.is_empty() && payload == 0 && rx.up_at(passed) == Some(position) {
            None
        } else {
            Some(bytes)
        }
    }

    /// The direction goes back to TCP: takes the bells up to position `tcp` off the stream.
    fn back_to_tcp(&self, tcp: u64) {
        let _guard = self.lock.lock().unwrap();
        let (passed, path) = self.path();
        if path != RING {
            return;
        }
        let left = tcp
            .checked_sub(self.tcp_rx.load(Relaxed))
            .expect("read past the switch back");
        let bells = self.line.stream.recv(left as usize);
        assert_eq!(
            bells.len() as u64,
            left,
            "bells before the switch back are on the stream"
        );
        assert!(
            bells.iter().all(|&b| b == BELL),
            "payload taken for doorbells: {bells:?}"
        );
        self.tcp_rx.fetch_add(left, Relaxed);
        self.pass(passed + 1);
    }

    /// A blocking recv by way of an epoll set that waits for edges: woken only by what arrives after `seen` arrivals
    /// on the stream, whatever lies there already.
    pub fn recv_by_edge(&self, seen: &mut usize, max: usize) -> Vec<u8> {
        loop {
            if let Some(bytes) = self.look(max) {
                return bytes;
            }
            let rx = self.line.rx();
            if self.rules.barrier {
                let _ = rx.arm_edge(self.tcp_rx.load(Relaxed), 0);
            } else {
                rx.direction.wait.edge.swap(1, Relaxed);
            }
            if self.rules.look_after_arming
                && let Some(bytes) = self.look(max)
            {
                return bytes;
            }
            *seen = self.line.stream.sleep_edge(*seen);
        }
    }

    /// Bells off, armed, and a last look. False: there is something to look at (`quiet`: nor any other news).
    pub fn prepare_sleep(&self, quiet: impl Fn() -> bool) -> bool {
        let rx = self.line.rx();
        if self.rules.count_before_arming {
            self.take_bells();
        }
        if self.rules.barrier {
            rx.arm(self.tcp_rx.load(Relaxed));
        } else {
            rx.direction.wait.sleepers.fetch_add(1, Relaxed);
        }
        let (passed, path) = self.path();
        let nothing = match path {
            RING => is_quiet(rx, passed),
            // The stream wakes us, unless another reader takes the rest of the stretch and leaves us to the ring.
            TCP if self.rules.mind_ring_at_switch => {
                rx.up_at(passed).is_none() || is_quiet(rx, passed)
            }
            TCP => rx.up_at(passed) != Some(self.tcp_rx.load(Relaxed)),
            _ => true,
        };
        if !self.rules.count_before_arming {
            self.take_bells();
        }
        let sleep = (nothing || !self.rules.look_after_arming) && quiet();
        if !sleep {
            rx.disarm();
        }
        sleep
    }

    /// Takes the bells that the writer has counted off the stream, if the ring is empty.
    fn take_bells(&self) {
        let rx = self.line.rx();
        if rx.bells_untaken() == 0 || self.path().1 != RING {
            return;
        }
        let _guard = self.lock.lock().unwrap();
        let n = rx.bells_untaken();
        if n > 0 && self.path().1 == RING {
            self.take_off(n);
        }
    }

    /// Woken, with an empty ring and no bell counted: one was sent too many, for a writer that was killed.
    fn drop_stray_bell(&self) {
        let rx = self.line.rx();
        if self.path().1 != RING || rx.readable() != Ok(0) {
            return;
        }
        self.take_bells();
        let _guard = self.lock.lock().unwrap();
        if self.line.stream.peek(1).len() == 1 && self.path().1 == RING {
            self.take_off(1);
        }
    }

    /// Takes `n` bells, which are on the stream or about to be, off it; not if there is news that they announce.
    fn take_off(&self, n: usize) {
        let rx = self.line.rx();
        let (passed, _) = self.path();
        if self.rules.mind_down && !is_quiet(rx, passed) {
            return;
        }
        if self.rules.claim_bells_first && self.rules.mind_down && !rx.claim_bells(n as u32, passed)
        {
            return;
        }
        let bells = self.line.stream.recv(n);
        assert!(
            bells.iter().all(|&b| b == BELL),
            "payload taken for doorbells: {bells:?}"
        );
        self.tcp_rx.fetch_add(bells.len() as u64, Relaxed);
        if !self.rules.claim_bells_first {
            count_taken(rx, bells.len());
        } else if bells.len() < n {
            rx.unclaim_bells((n - bells.len()) as u32);
        }
    }
}

/// The sending end. One thread at a time, so no lock.
pub struct Sender {
    pub line: Arc<Line>,
    /// Bytes put on the TCP stream, payload and bells.
    tcp_tx: u64,
}

impl Sender {
    pub fn new(line: &Arc<Line>) -> Self {
        Self {
            line: line.clone(),
            tcp_tx: 0,
        }
    }

    pub fn send_tcp(&mut self, byte: u8) {
        assert_ne!(byte, BELL);
        self.line.stream.send(byte);
        self.tcp_tx += 1;
    }

    /// Writes all of `bytes` into the ring (there must be room), and rings if that is due.
    pub fn send(&mut self, bytes: &[u8]) {
        assert_eq!(
            self.line.write(bytes),
            bytes.len(),
            "the model's ring is too small"
        );
        self.ring_if_due();
    }

    pub fn ring_if_due(&mut self) {
        if self.line.tx().bell_due() {
            self.ring_bell();
        }
    }

    pub fn ring_bell(&mut self) {
        self.count_bell();
        self.line.stream.send(BELL);
        self.tcp_tx += 1;
    }

    pub fn count_bell(&self) {
        touch32(&self.line.direction.writer.bells_sent);
        self.line.tx().count_bell();
    }

    pub fn uncount_bell(&self) {
        touch32(&self.line.direction.writer.bells_sent);
        self.line.tx().uncount_bell();
    }

    /// From here on into the ring.
    pub fn switch_up(&mut self) {
        self.line.tx().switch_up(self.tcp_tx);
    }

    /// From here on over TCP, what is unread first.
    pub fn switch_down(&mut self) {
        touch(&self.line.direction.reader.head);
        let (from, to) = self.line.tx().switch_down(self.tcp_tx).unwrap();
        self.line.tell_switch();
        let mut byte = [0];
        for at in from..to {
            self.line.tx().copy(at, &mut byte);
            self.send_tcp(byte[0]);
        }
        self.line.tx().all_moved();
    }

    /// From here on over TCP; what is unread stays in the ring.
    pub fn switch_down_behind(&mut self) {
        let (from, to) = self.line.tx().switch_down_behind(self.tcp_tx);
        assert_eq!(from, to, "nothing is to be moved");
        self.line.tell_switch();
        self.line.tx().all_moved();
    }

    pub fn finish(&mut self) {
        self.line.tx().finish(false);
        self.ring_if_due();
    }
}
