//! The engine's steps of a hand-back over a [`Line`], as `sockets/back.rs` makes them: the sending end with its lock, which
//! several may use and die with, and the asker. Broken variants are chosen by [`Rules`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32 as Word, AtomicU64 as Wide};

use loom::sync::{Condvar, Mutex};
use sgm_ring::layout::{FIN, MOVED, PLEASE_DOWN};
use sgm_ring::sync::Ordering::{AcqRel, Acquire, Relaxed};
use sgm_ring::sync::barrier_after_rmw;

use crate::wire::{BELL, Line, touch, touch32};

/// What both ends do right; each switched off in a model that must fail.
#[derive(Clone, Copy)]
pub struct Rules {
    /// The sender looks whether it is asked after it has published.
    pub look_after_publishing: bool,
    /// The sender looks whether it is asked after it has counted a bell.
    pub look_after_counting: bool,
    /// The asker asks first and looks second.
    pub ask_first: bool,
    /// Who takes a lock over from a dead holder puts right what that one left, whatever it wants the lock for.
    pub mend_whenever: bool,
    /// A switch down stops the ring's reader.
    pub stop_reader: bool,
    /// Whether a dead holder sent the bell that it counted is told, not assumed.
    pub tell_bells: bool,
    /// What a dead holder has moved is told by the stream's position since the switch, not by its own notes.
    pub count_from_switch: bool,
    /// The asker takes no more bells than it has seen on the stream.
    pub look_before_taking: bool,
    /// The asker leaves the ring when all is moved.
    pub await_moved: bool,
    /// A peer's end is judged by a look at the ring after it, not before.
    pub look_after_end: bool,
}

pub const RIGHT: Rules = Rules {
    look_after_publishing: true,
    look_after_counting: true,
    ask_first: true,
    mend_whenever: true,
    stop_reader: true,
    tell_bells: true,
    count_from_switch: true,
    look_before_taking: true,
    await_moved: true,
    look_after_end: true,
};

/// The thread was killed.
#[derive(Debug)]
pub struct Dead;
pub type Lived<T> = Result<T, Dead>;

/// How far a thread lives.
pub struct Life {
    left: Option<u32>,
}

impl Life {
    pub fn whole() -> Self {
        Self { left: None }
    }

    /// Dies at step `n` of its life.
    pub fn of(n: u32) -> Self {
        Self { left: Some(n) }
    }

    fn step(&mut self) -> Lived<()> {
        match self.left.as_mut() {
            Some(0) => return Err(Dead),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }
}

/// The sending end of the direction, as all that hold it share it. The words below the lock are the end's own: changed under
/// the lock, so that the model need not try what a load of them may see.
pub struct Peer {
    pub line: Arc<Line>,
    pub rules: Rules,
    /// True: somebody holds it, or died with it.
    lock: Mutex<bool>,
    tcp_tx: Wide,
    /// Bells sent.
    bells: Word,
    switches: Word,
    resend: Wide,
    resend_to: Wide,
    /// Bytes that a send has returned for.
    pub taken: Word,
    /// The last byte that is in the ring or was on the stream.
    pub published: Word,
    news: (Mutex<u32>, Condvar),
}

impl Peer {
    /// A direction on the ring, with a reader that counts as asleep: publications ring.
    pub fn on_ring(rules: Rules) -> Arc<Self> {
        let line = Line::new(4);
        line.tx().switch_up(0);
        line.rx().pass(1, 0);
        line.rx().arm(0);
        Arc::new(Self {
            line,
            rules,
            lock: Mutex::new(false),
            tcp_tx: Wide::new(0),
            bells: Word::new(0),
            switches: Word::new(1),
            resend: Wide::new(0),
            resend_to: Wide::new(0),
            taken: Word::new(0),
            published: Word::new(0),
            news: Default::default(),
        })
    }

    /// Something may have changed for who waits.
    pub fn tell(&self) {
        *self.news.0.lock().unwrap() += 1;
        self.news.1.notify_all();
    }

    fn news(&self) -> u32 {
        *self.news.0.lock().unwrap()
    }

    fn await_news(&self, seen: u32) {
        let mut news = self.news.0.lock().unwrap();
        while *news == seen {
            news = self.news.1.wait(news).unwrap();
        }
    }

    /// Runs `f` with the lock. `mends`: puts right what a holder that died with it left half done.
    fn locked(
        &self,
        life: &mut Life,
        mends: bool,
        f: impl FnOnce(&mut Life) -> Lived<()>,
    ) -> Lived<()> {
        let mut held = self.lock.lock().unwrap();
        let inherited = std::mem::replace(&mut *held, true);
        if inherited && mends {
            self.after_dead_holder(life)?;
        }
        f(life)?;
        life.step()?;
        *held = false;
        Ok(())
    }

    fn is_on_ring(&self) -> bool {
        self.switches.load(Relaxed) % 2 == 1
    }

    fn is_asked(&self) -> bool {
        self.line.tx().asks() & PLEASE_DOWN != 0
    }

    /// Puts a byte on the stream, and counts it.
    fn put(&self, life: &mut Life, byte: u8) -> Lived<()> {
        self.line.stream.send(byte);
        self.published.fetch_max(byte.into(), Relaxed);
        life.step()?;
        if byte == BELL {
            self.bells.fetch_add(1, Relaxed);
            life.step()?;
        }
        self.tcp_tx.fetch_add(1, Relaxed);
        life.step()
    }

    /// `Conn::put`, for one byte.
    pub fn send(&self, life: &mut Life, byte: u8) -> Lived<()> {
        self.locked(life, true, |life| {
            if self.is_on_ring() && self.is_asked() {
                self.switch_down(life)?;
            }
            if !self.is_on_ring() {
                self.send_rest(life)?;
                return self.put(life, byte);
            }
            assert_eq!(self.line.write(&[byte]), 1, "the model's ring is too small");
            self.published.store(byte.into(), Relaxed);
            life.step()?;
            if self.rules.look_after_publishing && self.is_asked() {
                return self.switch_down(life);
            }
            if self.line.tx().bell_due() {
                self.ring_bell(life)?;
            }
            Ok(())
        })?;
        self.taken.fetch_add(1, Relaxed);
        self.tell();
        Ok(())
    }

    /// `Conn::ring_bell`. Caller holds the lock.
    fn ring_bell(&self, life: &mut Life) -> Lived<()> {
        let tx = self.line.tx();
        touch32(&self.line.direction.writer.bells_sent);
        tx.count_bell();
        life.step()?;
        if self.rules.look_after_counting && tx.asks() != 0 {
            tx.uncount_bell();
            return Ok(());
        }
        self.put(life, BELL)
    }

    /// `Conn::switch_down`. Caller holds the lock.
    fn switch_down(&self, life: &mut Life) -> Lived<()> {
        let (line, tcp) = (&self.line, self.tcp_tx.load(Relaxed));
        touch(&line.direction.reader.head);
        if life.left == Some(0) {
            // Killed within `Tx::switch_down`.
            line.direction.reader.head.fetch_or(MOVED, AcqRel);
            return Err(Dead);
        }
        life.step()?;
        let (from, to) = match self.rules.stop_reader {
            true => line.tx().switch_down(tcp).unwrap(),
            false => self.switch_beside_reader(tcp),
        };
        life.step()?;
        self.resend_to.store(to, Relaxed);
        life.step()?;
        self.resend.store(from + 1, Relaxed);
        life.step()?;
        self.switches.fetch_add(1, Relaxed);
        self.tell();
        life.step()?;
        self.send_rest(life)
    }

    /// Broken: the ring's reader is not stopped.
    fn switch_beside_reader(&self, tcp: u64) -> (u64, u64) {
        let direction = &self.line.direction;
        let head = direction.reader.head.load(Acquire);
        direction.writer.down_tcp.store(tcp, Relaxed);
        direction.writer.down.store(head, Relaxed);
        direction.writer.switches.fetch_add(1, AcqRel);
        barrier_after_rmw();
        (head, self.line.tx().position())
    }

    /// `Conn::send_rest`. Caller holds the lock.
    fn send_rest(&self, life: &mut Life) -> Lived<()> {
        while let Some(at) = self.resend.load(Relaxed).checked_sub(1) {
            if at == self.resend_to.load(Relaxed) {
                self.line.tx().all_moved();
                self.tell();
                life.step()?;
                self.resend.store(0, Relaxed);
                break;
            }
            let mut byte = [0];
            self.line.tx().copy(at, &mut byte);
            self.put(life, byte[0])?;
            self.resend.store(at + 2, Relaxed);
            life.step()?;
        }
        Ok(())
    }

    /// `Conn::after_dead_holder`. Caller holds the lock.
    fn after_dead_holder(&self, life: &mut Life) -> Lived<()> {
        let tx = self.line.tx();
        let sent = self.line.stream.sent();
        let uncounted = sent - self.tcp_tx.load(Relaxed);
        let at = self.resend.load(Relaxed);
        if at != 0 && self.rules.count_from_switch {
            let (ring, tcp) = tx.direction.last_down();
            self.resend.store(ring + (sent - tcp) + 1, Relaxed);
        } else if at != 0 && self.resend_to.load(Relaxed) - (at - 1) >= uncounted {
            self.resend.store(at + uncounted, Relaxed);
        }
        self.tcp_tx.store(sent, Relaxed);
        if tx.switches() != self.switches.load(Relaxed) {
            self.resend_to.store(tx.position(), Relaxed);
            self.resend.store(tx.direction.last_down().0 + 1, Relaxed);
            self.switches.store(tx.switches(), Relaxed);
        } else if self.is_on_ring() && tx.is_moved() {
            self.switch_down(life)?;
        } else if self.is_on_ring() {
            let counted = self.line.direction.writer.bells_sent.load(Relaxed);
            let noted = counted == self.bells.load(Relaxed);
            touch32(&self.line.direction.writer.bells_sent);
            if !self.rules.tell_bells || !noted && uncounted == 0 {
                tx.uncount_bell();
            }
            let counted = self.line.direction.writer.bells_sent.load(Relaxed);
            self.bells.store(counted, Relaxed);
            // It may have published, and not have rung.
            self.ring_bell(life)?;
        }
        Ok(())
    }

    /// `Conn::mind_asks`: in any call, or by somebody else's hand.
    pub fn mind_asks(&self, life: &mut Life) -> Lived<()> {
        self.locked(life, self.rules.mend_whenever, |life| {
            match self.is_on_ring() && self.is_asked() {
                true => self.switch_down(life),
                false => self.send_rest(life),
            }
        })?;
        self.tell();
        Ok(())
    }

    /// `Conn::close`, and the kernel's.
    pub fn close(&self, life: &mut Life) -> Lived<()> {
        self.mind_asks(life)?;
        self.locked(life, self.rules.mend_whenever, |_| {
            self.line.tx().finish(false);
            Ok(())
        })?;
        self.end();
        Ok(())
    }

    /// The process is gone, in good order or not.
    pub fn end(&self) {
        self.line.stream.end();
        self.tell();
    }
}

/// What a hand-back comes to: see `sockets::Given`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    Stream,
    Orphaned,
}

/// The receiving end.
pub struct Asker {
    pub peer: Arc<Peer>,
    passed: u32,
    tcp_rx: u64,
    taken_back: bool,
    pub got: Vec<u8>,
}

impl Asker {
    pub fn new(peer: &Arc<Peer>) -> Self {
        Self {
            peer: peer.clone(),
            passed: 1,
            tcp_rx: 0,
            taken_back: false,
            got: Vec::new(),
        }
    }

    fn is_on_ring(&self) -> bool {
        self.passed % 2 == 1
    }

    /// Takes what is in the ring.
    pub fn read_ring(&mut self, max: usize) -> bool {
        let bytes = self.peer.line.read(max);
        self.got.extend(&bytes);
        !bytes.is_empty()
    }

    /// `Conn::hand_back`. `helps`: may it act for the peer?
    pub fn hand_back(&mut self, life: &mut Life, helps: bool) -> Lived<Given> {
        let peer = self.peer.clone();
        let rx = peer.line.rx();
        if peer.rules.ask_first {
            rx.ask(PLEASE_DOWN);
        }
        loop {
            let news = peer.news();
            if self.is_settled() || self.is_pure() {
                break;
            }
            if peer.line.stream.is_ended() {
                return Ok(self.without_peer());
            }
            life.step()?;
            if helps {
                peer.mind_asks(life)?;
            } else {
                peer.await_news(news);
            }
        }
        if !peer.rules.ask_first {
            rx.ask(PLEASE_DOWN);
        }
        Ok(Given::Stream)
    }

    /// `Conn::settle`: is the kernel's stream all there is?
    fn is_settled(&mut self) -> bool {
        if self.is_on_ring()
            && let Some((down, tcp)) = self.peer.line.rx().down_at(self.passed)
        {
            assert!(!self.peer.rules.stop_reader || self.peer.line.rx().position() == down);
            self.back_to_tcp(tcp);
        }
        let moved = !self.peer.rules.await_moved || self.peer.line.rx().all_moved();
        !self.is_on_ring() && moved
    }

    /// `Conn::receive_from_tcp_again`. The bells before the switch are on the stream, unless it broke off before.
    fn back_to_tcp(&mut self, tcp: u64) {
        let rx = self.peer.line.rx();
        let left = tcp.checked_sub(self.tcp_rx).expect("past the switch back");
        let bells = self.peer.line.stream.recv(left as usize);
        assert_eq!(bells.len() as u64, left, "bells before the switch");
        assert!(bells.iter().all(|&b| b == BELL), "payload for doorbells");
        self.tcp_rx += left;
        rx.count_taken(left as u32);
        self.passed += 1;
        rx.pass(self.passed, self.tcp_rx);
    }

    fn is_pure(&mut self) -> bool {
        let peer = self.peer.clone();
        let rx = peer.line.rx();
        let passed = self.passed;
        let quiet = rx.readable() == Ok(0) && rx.flags() == 0 && rx.down_at(passed).is_none();
        if !self.is_on_ring() || !quiet || rx.is_moved() {
            return false;
        }
        self.take_bells(rx.bells_untaken());
        rx.bells_untaken() == 0 && rx.readable() == Ok(0) && rx.down_at(passed).is_none()
    }

    fn take_bells(&mut self, n: usize) {
        let peer = self.peer.clone();
        let rx = peer.line.rx();
        // Once asked, the sender may take a count back, and send payload then.
        let n = match self.peer.rules.look_before_taking {
            true => self.peer.line.stream.peek(n).len(),
            false => n,
        };
        if n == 0 || !rx.claim_bells(n as u32, self.passed) {
            return;
        }
        let bells = self.peer.line.stream.recv(n);
        assert!(bells.iter().all(|&b| b == BELL), "payload for doorbells");
        self.tcp_rx += bells.len() as u64;
        rx.unclaim_bells((n - bells.len()) as u32);
    }

    /// `Conn::without_peer`: its end is known now, so what a look finds from here on is all there will be.
    fn without_peer(&mut self) -> Given {
        if self.peer.rules.look_after_end && self.is_settled() {
            return Given::Stream;
        }
        let peer = self.peer.clone();
        let rx = peer.line.rx();
        if rx.readable() != Ok(0) || self.takes_back() {
            return Given::Orphaned;
        }
        while self.is_on_ring() && rx.bells_untaken() > 0 {
            let bells = self.peer.line.stream.recv(rx.bells_untaken());
            if bells.is_empty() {
                break;
            }
            self.tcp_rx += bells.len() as u64;
            rx.count_taken(bells.len() as u32);
        }
        Given::Stream
    }

    /// `Conn::takes_back`.
    fn takes_back(&mut self) -> bool {
        let peer = self.peer.clone();
        let rx = peer.line.rx();
        if !rx.is_moved() || self.taken_back {
            return false;
        }
        let from = if self.is_on_ring() {
            rx.position()
        } else {
            let (ring, tcp) = rx.direction.last_down();
            let came = self.tcp_rx - tcp;
            match (rx.published() - ring).checked_sub(came) {
                Some(1..) => ring + came,
                _ => return false,
            }
        };
        self.passed -= u32::from(!self.is_on_ring());
        self.taken_back = true;
        rx.move_back(from, self.passed, false);
        true
    }

    /// A reader that knows the ring, to the end.
    pub fn read_by_engine(&mut self) {
        let peer = self.peer.clone();
        let rx = peer.line.rx();
        loop {
            let news = peer.news();
            let ended = peer.line.stream.is_ended();
            if self.is_on_ring() {
                if self.read_ring(4) {
                    continue;
                }
                if let Some((_, tcp)) = rx.down_at(self.passed) {
                    self.back_to_tcp(tcp);
                    continue;
                }
                if rx.is_moved() && ended && self.takes_back() {
                    continue;
                }
                let last_look = || rx.readable() == Ok(0) && rx.down_at(self.passed).is_none();
                let over = ended || rx.flags() & FIN != 0;
                if over && last_look() && !rx.is_moved() {
                    return;
                }
                if over && !last_look() {
                    continue;
                }
            } else {
                let bytes = peer.line.stream.recv(4);
                self.tcp_rx += bytes.len() as u64;
                self.got.extend(&bytes);
                if !bytes.is_empty() || ended && self.takes_back() {
                    continue;
                }
                if ended {
                    return;
                }
            }
            peer.await_news(news);
        }
    }

    /// A reader that knows nothing but the stream, to the end.
    pub fn read_as_stranger(&mut self) {
        let stream = &self.peer.line.stream;
        loop {
            stream.sleep_readable();
            let bytes = stream.recv(4);
            if bytes.is_empty() {
                return;
            }
            assert!(!bytes.contains(&BELL), "a doorbell on a pure stream");
            self.got.extend(bytes);
        }
    }

    /// Whoever is to read now, to the end.
    pub fn read_on(&mut self, given: Given) {
        match given {
            Given::Stream => self.read_as_stranger(),
            Given::Orphaned => self.read_by_engine(),
        }
    }

    /// Everything that a send has returned for is there, in order, once.
    pub fn judge(&self) {
        let right: Vec<u8> = (1..=self.got.len() as u8).collect();
        assert_eq!(self.got, right, "not what was sent");
        let taken = self.peer.taken.load(Relaxed) as usize;
        assert!(self.got.len() >= taken, "lost: {taken} were taken");
    }
}
