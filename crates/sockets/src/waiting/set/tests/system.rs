//! A system's set whose sleeps are a script, over connections of [`crate::mock`].

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use super::super::*;
use crate::Deadline;
use crate::mock::{self, NodeDir, Pair};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// A carried member, by its index.
    Index(usize),
    Bell,
    /// What the program gave.
    Data(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub about: About,
    pub ready: Ready,
}

/// What the program has of a report: data and readiness.
pub(super) fn told(data: u64, ready: Ready) -> Event {
    let about = About::Data(data);
    Event { about, ready }
}

/// A member's socket; something may happen when its kernel is used the nth time.
pub(super) struct Side<'a> {
    pub end: &'a mock::End,
    pub number: i32,
    /// In so many sets.
    pub sets: &'a Cell<u32>,
    pub asked: (Interest, u64),
    pub exclusive: bool,
    pub uses: Cell<u32>,
    pub happens: Option<(u32, &'a dyn Fn())>,
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        self.sets.set(self.sets.get() - 1);
    }
}

impl<'a> Member for Side<'a> {
    type Kernel<'k>
        = mock::Socket
    where
        Self: 'k;
    type Asked = (Interest, u64);
    type Event = Event;

    fn number(&self) -> i32 {
        self.number
    }

    fn conn(&self) -> &Conn {
        &self.end.conn
    }

    fn kernel(&self) -> mock::Socket {
        if let Some((at, event)) = self.happens
            && self.uses.replace(self.uses.get() + 1) == at
        {
            event();
        }
        self.end.socket.clone()
    }

    fn is_alone(&self) -> bool {
        self.sets.get() == 1
    }

    fn ask(&mut self, asked: (Interest, u64)) {
        self.asked = asked;
    }

    fn interest(&self) -> Interest {
        self.asked.0
    }

    fn event(&self, due: Ready) -> Event {
        told(self.asked.1, due)
    }

    fn merge(event: &mut Event, more: &Event) -> bool {
        let alike = event.about == more.about;
        event.ready |= if alike { more.ready } else { Ready::NONE };
        alike
    }
}

/// What the system's set knows of one socket.
pub(super) struct Entry {
    pub socket: mock::Socket,
    pub about: About,
    pub want: Ready,
    pub edge: bool,
    /// The edges of each kind that it told of.
    pub told: (Option<u64>, bool),
}

impl Entry {
    pub fn take(&mut self) -> Option<Event> {
        let mut ready = self.socket.poll() & (self.want | Ready::ERR | Ready::HUP);
        if self.edge {
            let came = self.socket.came();
            if self.told == (Some(came), true) {
                return None;
            }
            if self.told.0 == Some(came) {
                ready = ready & Ready::OUT;
            }
            self.told = (Some(came), true);
        }
        let about = self.about;
        (ready != Ready::NONE).then_some(Event { about, ready })
    }
}

/// A set and the system's below it.
pub(super) struct System<'a> {
    pub place: &'a NodeDir,
    pub clock: &'a mock::Socket,
    pub state: State,
    pub members: RefCell<Members<Side<'a>>>,
    pub entries: RefCell<BTreeMap<i32, Entry>>,
    /// Sockets that are not members at all, and have something.
    pub others: RefCell<Vec<u64>>,
    pub queue: Cell<Option<&'static EventQueue>>,
    /// It can have no queue.
    pub poor: bool,
    /// No member is followed.
    pub plain: Cell<bool>,
    pub shared: Cell<u64>,
    pub given_back: Cell<u32>,
    /// How long each sleep was allowed to be.
    pub slept: RefCell<Vec<Option<u64>>>,
    /// Calls that changed the system's set.
    pub changes: Cell<u32>,
}

impl<'a> System<'a> {
    pub fn of(pair: &'a Pair) -> Self {
        Self {
            place: &pair.place,
            clock: &pair.client.socket,
            state: State::default(),
            members: RefCell::default(),
            entries: RefCell::default(),
            others: RefCell::default(),
            queue: Cell::default(),
            poor: false,
            plain: Cell::default(),
            shared: Cell::default(),
            given_back: Cell::default(),
            slept: RefCell::default(),
            changes: Cell::default(),
        }
    }

    /// `poor`: it can have no queue.
    pub fn poor(pair: &'a Pair, poor: bool) -> Self {
        let mut system = Self::of(pair);
        system.poor = poor;
        system
    }

    pub fn put(&self, member: &Side<'a>, about: About, want: Ready, edge: bool) {
        self.changes.set(self.changes.get() + 1);
        let entry = Entry {
            socket: member.end.socket.clone(),
            about,
            want,
            edge,
            told: (None, !want.intersects(Ready::OUT)),
        };
        self.entries.borrow_mut().insert(member.number, entry);
    }

    pub fn thread(&self) -> Thread<'_, 'a> {
        Thread::of(self, &[])
    }

    /// The program puts it in.
    pub fn add(&self, side: Side<'a>) -> usize {
        let mut members = self.members.borrow_mut();
        let (number, socket) = (side.number, side.end.socket.clone());
        assert!(add(
            &self.thread(),
            &mut members,
            (side, true),
            &socket,
            || false
        ));
        members.position(number, |_| true).unwrap()
    }

    pub fn modify(&self, i: usize, asked: (Interest, u64)) {
        let mut members = self.members.borrow_mut();
        let socket = members.get(i).unwrap().end.socket.clone();
        assert!(modify(
            &self.thread(),
            &mut members,
            i,
            asked,
            &socket,
            || false
        ));
    }

    /// What a wait of the program gives.
    pub fn wait(&self, limit_us: Option<u64>) -> Vec<Event> {
        self.thread().wait(8, limit_us)
    }

    /// The same, where this happens in its sleeps.
    pub fn wait_while(&self, sleeps: &[&dyn Fn()]) -> Vec<Event> {
        Thread::of(self, sleeps).wait(8, None)
    }

    /// Sleeps so often that it has a queue, if it can have one.
    pub fn settle(&self) {
        for _ in 0..=queue::SLEEPS {
            assert_eq!(self.wait(Some(0)), []);
        }
        assert_eq!(self.queue.get().is_none(), self.poor);
        self.slept.borrow_mut().clear();
    }

    pub fn take_told(&self, out: &mut [Event], rung: bool) -> usize {
        let bell = rung.then_some(Event {
            about: About::Bell,
            ready: Ready::IN,
        });
        let others = self.others.borrow();
        let others = others.iter().map(|data| told(*data, Ready::IN));
        let mut entries = self.entries.borrow_mut();
        let known = entries.values_mut().filter_map(Entry::take);
        let all = bell.into_iter().chain(others).chain(known).zip(out);
        all.map(|(event, place)| *place = event).count()
    }
}

/// A thread that waits at the set, and what happens in its sleeps, one after the other; after that, nothing.
pub(super) struct Thread<'s, 'a> {
    pub system: &'s System<'a>,
    pub sleeps: RefCell<Vec<&'s dyn Fn()>>,
    /// Steps: where others may do something in between.
    pub steps: Cell<u32>,
    /// What happens at the nth.
    pub happens: Option<(u32, &'s dyn Fn())>,
}

/// The members, locked; to give them back is a step.
pub(super) struct Held<'h, 's, 'a> {
    thread: &'h Thread<'s, 'a>,
    members: Option<RefMut<'h, Members<Side<'a>>>>,
}

impl<'a> Deref for Held<'_, '_, 'a> {
    type Target = Members<Side<'a>>;

    fn deref(&self) -> &Members<Side<'a>> {
        self.members.as_ref().unwrap()
    }
}

impl<'a> DerefMut for Held<'_, '_, 'a> {
    fn deref_mut(&mut self) -> &mut Members<Side<'a>> {
        self.members.as_mut().unwrap()
    }
}

impl Drop for Held<'_, '_, '_> {
    fn drop(&mut self) {
        self.members = None;
        self.thread.step();
    }
}

impl<'s, 'a> Thread<'s, 'a> {
    pub fn of(system: &'s System<'a>, sleeps: &[&'s dyn Fn()]) -> Self {
        Self {
            system,
            sleeps: RefCell::new(sleeps.iter().rev().copied().collect()),
            steps: Cell::new(0),
            happens: None,
        }
    }

    fn step(&self) {
        if let Some((at, event)) = self.happens
            && self.steps.replace(self.steps.get() + 1) == at
        {
            event();
        }
    }

    pub fn wait(&self, most: usize, limit_us: Option<u64>) -> Vec<Event> {
        let mut out = vec![told(0, Ready::NONE); most];
        let deadline = limit_us.map_or(Deadline::NEVER, |us| {
            Deadline::after_us(us, || self.host().now_ns())
        });
        let n = wait(self, &mut out, deadline).unwrap();
        out.truncate(n.expect("the set is there"));
        out
    }
}

impl Drop for System<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.get() {
            queue.bell().close();
        }
    }
}

impl<'s, 'a> Below for Thread<'s, 'a> {
    type Member = Side<'a>;
    type Held<'h>
        = Held<'h, 's, 'a>
    where
        Self: 'h;
    type Fault = ();
    type Host = mock::Socket;

    fn state(&self) -> &State {
        &self.system.state
    }

    fn members(&self) -> Held<'_, 's, 'a> {
        self.step();
        Held {
            thread: self,
            members: Some(self.system.members.borrow_mut()),
        }
    }

    fn give_back(&self) {
        self.system.given_back.set(self.system.given_back.get() + 1);
    }

    fn is_there(&self) -> bool {
        true
    }

    fn follows_none(&self) -> bool {
        self.system.plain.get()
    }

    fn register(&self, how: Put, member: &Side<'a>, index: usize, out: bool) -> bool {
        let known = self.system.entries.borrow().contains_key(&member.number);
        assert_eq!(known, how == Put::Change);
        if how == Put::Change && member.exclusive {
            return false;
        }
        let out = if out { Ready::OUT } else { Ready::NONE };
        let want = Ready::IN | Ready::RDHUP | out;
        self.system.put(member, About::Index(index), want, true);
        true
    }

    fn unregister(&self, member: &Side<'a>) {
        let changes = &self.system.changes;
        changes.set(changes.get() + 1);
        assert!(
            self.system
                .entries
                .borrow_mut()
                .remove(&member.number)
                .is_some()
        );
    }

    fn restore(&self, _how: Put, member: &Side<'a>, spent: bool) {
        let (interest, data) = member.asked;
        let want = if spent { Ready::NONE } else { interest.want };
        self.system
            .put(member, About::Data(data), want, interest.edge);
    }

    fn is_spent(&self, member: &Side<'a>) -> bool {
        self.system.entries.borrow()[&member.number].want == Ready::NONE
    }

    fn ask(&self, out: &mut [Event], how: Ask) -> Result<usize, ()> {
        let Ask::Sleep(limit) = how else {
            return Ok(self.system.take_told(out, false));
        };
        const MOST: usize = 10_000;
        assert!(
            self.system.slept.borrow().len() < MOST,
            "it sleeps for ever"
        );
        self.step();
        let system = self.system;
        system.slept.borrow_mut().push(limit);
        let queue = || system.queue.get();
        let is_asleep = |q: &EventQueue| q.words().sleeper().is_some();
        let was_asleep = queue().is_some_and(is_asleep);
        // Another thread may use the set meanwhile.
        let event = self.sleeps.borrow_mut().pop();
        event.into_iter().for_each(|event| event());
        let rung =
            queue().is_some_and(|q| system.place.hear(q.id()) || was_asleep && !is_asleep(q));
        let n = self.system.take_told(out, rung);
        if n == 0 {
            self.system
                .clock
                .pass_ns(limit.expect("a sleep that nothing ends"));
        }
        Ok(n)
    }

    fn told(event: &Event) -> Told {
        match event.about {
            About::Index(i) => Told::Member(i, event.ready),
            About::Bell => Told::Bell,
            About::Data(_) => Told::Other,
        }
    }

    fn queue(&self) -> Option<&'static EventQueue> {
        self.step();
        self.system.queue.get()
    }

    fn take_queue(&self) -> Option<&'static EventQueue> {
        if self.system.poor {
            return None;
        }
        let node = &self.system.place.node;
        let queue = EventQueue::create(node.dir(), node.me()).unwrap();
        self.system.queue.set(Some(Box::leak(Box::new(queue))));
        self.system.queue.get()
    }

    fn take_bell_out(&self, _queue: &EventQueue) {}

    fn drop_queue(&self, _reuse: bool) {
        self.system.queue.set(None);
    }

    fn share_queue(&self, id: u64) {
        self.system.shared.set(id);
        EventQueue::share(self.system.place.node.dir(), id);
    }

    fn host(&self) -> mock::Socket {
        self.system.clock.clone()
    }
}

/// One end's place in sets.
pub(super) struct Seat<'a> {
    pub end: &'a mock::End,
    pub sets: Cell<u32>,
}

impl<'a> Seat<'a> {
    pub fn of(end: &'a mock::End) -> Self {
        let sets = Cell::new(0);
        Self { end, sets }
    }

    pub fn side(&'a self, data: u64, interest: Interest) -> Side<'a> {
        self.sets.set(self.sets.get() + 1);
        Side {
            end: self.end,
            number: data as i32,
            sets: &self.sets,
            asked: (interest, data),
            exclusive: false,
            uses: Cell::new(0),
            happens: None,
        }
    }
}
