//! Event queues: GM's one place where a port hears of news. Each belongs to one waiter of a process (an epoll set, say), and is
//! two files of the node: `queue-<id>` with the words of [`ring::events`], which every writer of the node maps that has news for
//! the waiter, and `bell-<id>` to wake it with.
//!
//! Rules:
//! 1. Only the process that made a queue takes from it and sleeps on it; a forked child has none.
//! 2. A writer that can't reach a queue (no descriptor left, the file gone) rings the connection's own doorbell: see
//!    [`crate::events::tell`].
//! 3. What is listed is a hint, so a queue that somebody fills with nonsense costs its waiter looks, and nothing else.

use std::cell::UnsafeCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::Error;
use crate::clock::ticks;
use crate::os::{self, Bell, Mapping, ProcessId};

const MAGIC: u64 = u64::from_le_bytes(*b"SGMEVQ01");
/// As many entries as a port has ends.
pub type Words = ring::events::Words<16, 1024>;

#[repr(C, align(128))]
struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    pid: AtomicU32,
    start: AtomicU64,
    /// Somebody else waits with the same waiter (a forked child): its maker must leave the queue.
    shared: AtomicU32,
    /// When its bell was rung last, in ticks; 0 if by who does not say.
    rung_at: AtomicU64,
}

const WORDS_OFFSET: usize = size_of::<Header>();
const FILE_BYTES: usize = (WORDS_OFFSET + size_of::<Words>()).next_multiple_of(4096);

/// An open queue: our own, or one that we list in.
pub struct EventQueue {
    map: Mapping,
    bell: Bell,
    id: u64,
}

fn file(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("queue-{id:016x}"))
}

/// Of a queue's file, which was made, or opened, with `FILE_BYTES`.
fn header_of(map: &Mapping) -> &Header {
    // SAFETY: the file is larger than the header, page-aligned, all atomics.
    unsafe { &*map.base().cast::<Header>() }
}

fn bell_file(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("bell-{id:016x}"))
}

impl EventQueue {
    /// Makes one for a waiter of this process.
    pub fn create(dir: &Path, me: ProcessId) -> Result<Self, Error> {
        // Neither of the words that mean something else.
        let id = os::random().clamp(1, u64::MAX - 1);
        let (path, bell_path) = (file(dir, id), bell_file(dir, id));
        let map =
            os::create_mapped(&path, FILE_BYTES).map_err(|e| Error::os("create", &path, e))?;
        let bell = map.populate(0, FILE_BYTES).and_then(|()| {
            let h = header_of(&map);
            h.version.store(ring::VERSION, Relaxed);
            h.start.store(me.start, Relaxed);
            // From here on it is known whose it is, should that be killed.
            h.pid.store(me.pid, Release);
            // Named before anybody can want it.
            Bell::make(&bell_path)
        });
        let bell = bell.map_err(|e| {
            os::remove(&path);
            Error::os("make a bell", &bell_path, e)
        })?;
        let queue = Self { map, bell, id };
        queue.header().magic.store(MAGIC, Release);
        Ok(queue)
    }

    /// Opens another's, to list in.
    fn open(dir: &Path, id: u64) -> Result<Self, Error> {
        let path = file(dir, id);
        let map = os::open_mapped(&path, FILE_BYTES, FILE_BYTES)
            .map_err(|e| Error::os("open", &path, e))?;
        let bell = Bell::open(&bell_file(dir, id)).map_err(|e| Error::os("open", &path, e))?;
        let queue = Self { map, bell, id };
        let h = queue.header();
        let sound = h.magic.load(Acquire) == MAGIC && h.version.load(Relaxed) == ring::VERSION;
        match sound {
            true => Ok(queue),
            false => Err(Error::unsound(&path, "not an event queue of this version")),
        }
    }

    /// Takes the names away. Whoever has it open goes on using it.
    pub fn remove(dir: &Path, id: u64) {
        // Whose it was stands in the other one.
        os::remove(&bell_file(dir, id));
        os::remove(&file(dir, id));
    }

    fn header(&self) -> &Header {
        header_of(&self.map)
    }

    #[inline]
    pub fn words(&self) -> &Words {
        // SAFETY: as for the header; the words follow it at a multiple of their alignment.
        unsafe { &*self.map.base().add(WORDS_OFFSET).cast::<Words>() }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Rings if the waiter sleeps: true. `None`: that can't be done.
    pub fn wake(&self) -> Option<bool> {
        let Some(seen) = self.words().sleeper() else {
            return Some(false);
        };
        self.header().rung_at.store(ticks(), Relaxed);
        let rung = self.bell.ring();
        if rung {
            self.words().rung(seen);
        }
        rung.then_some(true)
    }

    /// Lists `entry`, and rings if the waiter sleeps, as [`EventQueue::wake`] says.
    pub fn list(&self, entry: u32) -> Option<bool> {
        self.words().list(entry);
        self.wake()
    }

    /// For a child that uses the waiter which its parent made: the parent must leave the queue `id`.
    pub fn share(dir: &Path, id: u64) {
        if let Ok(queue) = Self::open(dir, id) {
            queue.header().shared.store(1, Release);
            queue.bell.ring();
        }
    }

    /// When its bell was rung last, in ticks. Anybody who can list may write anything.
    #[inline]
    pub fn rung_at(&self) -> u64 {
        self.header().rung_at.load(Relaxed)
    }

    #[inline]
    pub fn is_shared(&self) -> bool {
        self.header().shared.load(Acquire) != 0
    }
}

const _: () = assert!(WORDS_OFFSET.is_multiple_of(align_of::<Words>()));

/// Is the maker of this queue gone? Also of its bell.
pub(crate) fn is_left(dir: &Path, id: u64) -> Option<bool> {
    let map = os::open_mapped(&file(dir, id), FILE_BYTES, FILE_BYTES).ok()?;
    let h = header_of(&map);
    let pid = h.pid.load(Acquire);
    let sound = match h.magic.load(Acquire) {
        // It is being made, or its maker was killed meanwhile.
        0 => pid != 0,
        magic => magic == MAGIC,
    };
    let start = h.start.load(Relaxed);
    sound.then(|| !ProcessId { pid, start }.alive())
}

/// Queues of others that this process lists in, at most [`PEERS`] at a time.
const PEERS: usize = 64;
const PROBES: usize = 8;
/// In `Peer::users`: being changed.
const CHANGING: u32 = 1 << 31;

struct Peer {
    users: AtomicU32,
    /// Which queue; 0: none.
    id: AtomicU64,
    queue: UnsafeCell<Option<EventQueue>>,
}

// SAFETY: the queue changes only by who made `users` `CHANGING` from zero, and is used only by those who are counted there.
unsafe impl Sync for Peer {}

static TABLE: [Peer; PEERS] = [const {
    Peer {
        users: AtomicU32::new(0),
        id: AtomicU64::new(0),
        queue: UnsafeCell::new(None),
    }
}; PEERS];
/// The last one that could not be opened: asked for again and again, it would cost more than doorbells.
static REFUSED: AtomicU64 = AtomicU64::new(0);

struct Inside<'a>(&'a Peer);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Release);
    }
}

impl Peer {
    fn enter(&self) -> Option<Inside<'_>> {
        let before = self.users.fetch_add(1, Acquire);
        let inside = Inside(self);
        (before & CHANGING == 0).then_some(inside)
    }

    /// Puts another queue here, unless somebody is at this one.
    fn change(&self, queue: Option<EventQueue>) -> Result<(), Option<EventQueue>> {
        if self
            .users
            .compare_exchange(0, CHANGING, AcqRel, Relaxed)
            .is_err()
        {
            return Err(queue);
        }
        self.id.store(queue.as_ref().map_or(0, |q| q.id), Relaxed);
        // SAFETY: `CHANGING` keeps all others out.
        let before = unsafe { std::mem::replace(&mut *self.queue.get(), queue) };
        self.users.fetch_sub(CHANGING, Release);
        drop(before);
        Ok(())
    }
}

fn places(id: u64) -> impl Iterator<Item = &'static Peer> {
    let start = id as usize;
    (0..PROBES).map(move |i| &TABLE[(start + i) % PEERS])
}

/// Lists `entry` in the event queue `id` of the node at `dir`, and rings for its waiter if that sleeps: true. `None`: it
/// can't be reached from here. `may_open`: new descriptors may be opened.
pub fn tell(dir: &Path, id: u64, entry: u32, may_open: bool) -> Option<bool> {
    for peer in places(id) {
        if peer.id.load(Relaxed) != id {
            continue;
        }
        let Some(inside) = peer.enter() else { continue };
        // SAFETY: counted in `users`, so it does not change.
        let queue = unsafe { (*peer.queue.get()).as_ref() };
        if let Some(queue) = queue.filter(|q| q.id == id) {
            let told = queue.list(entry);
            if told.is_some() {
                return told;
            }
            // The program closed its bell.
            drop(inside);
            let _ = peer.change(None);
        }
    }
    let may_open = may_open && id != REFUSED.load(Relaxed);
    may_open.then(|| open_and_tell(dir, id, entry)).flatten()
}

#[cold]
fn open_and_tell(dir: &Path, id: u64, entry: u32) -> Option<bool> {
    let Ok(queue) = EventQueue::open(dir, id) else {
        REFUSED.store(id, Relaxed);
        return None;
    };
    let told = queue.list(entry);
    // A free place, or one whose waiter has gone.
    let vacant = |p: &&Peer| match p.id.load(Relaxed) {
        0 => true,
        other => is_left(dir, other) != Some(false),
    };
    let mut queue = Some(queue);
    for peer in places(id).filter(vacant) {
        match peer.change(queue.take()) {
            Ok(()) => return told,
            Err(back) => queue = back,
        }
    }
    // No place: the oldest guess goes. It is opened again when it is wanted.
    if let Some(peer) = places(id).next() {
        let _ = peer.change(queue);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_dir() -> PathBuf {
        let dir = std::env::temp_dir().join(format!("sgm-events-{:016x}", os::random()));
        os::ensure_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn told_once_asleep_and_listed() {
        let dir = a_dir();
        let queue = EventQueue::create(&dir, ProcessId::me()).unwrap();
        assert_eq!(tell(&dir, queue.id(), 7, true), Some(false));
        let mut taken = Vec::new();
        queue.words().take(|e| taken.push(e));
        assert_eq!(taken, [7]);
        queue.words().fall_asleep();
        assert_eq!(tell(&dir, queue.id(), 8, true), Some(true));
        assert_eq!(tell(&dir, queue.id(), 9, true), Some(false));
        assert_eq!(is_left(&dir, queue.id()), Some(false));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_a_dead_maker_leaves_goes_whole_and_half_made() {
        let dir = a_dir();
        let mut maker = ProcessId::me();
        maker.start += 1;
        for i in 0..32 {
            let queue = EventQueue::create(&dir, maker).unwrap();
            if i % 2 == 0 {
                queue.header().magic.store(0, Relaxed);
            }
        }
        crate::sweep::sweep_all(&dir);
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn more_queues_than_places() {
        let dir = a_dir();
        let queues: Vec<_> = (0..PEERS + 10)
            .map(|_| EventQueue::create(&dir, ProcessId::me()).unwrap())
            .collect();
        for round in 0..3 {
            for q in &queues {
                assert_eq!(tell(&dir, q.id(), round, true), Some(false));
            }
        }
        for q in &queues {
            let mut taken = Vec::new();
            q.words().take(|e| taken.push(e));
            assert_eq!(taken, [0, 1, 2]);
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn one_that_is_gone_is_not_told() {
        let dir = a_dir();
        for _ in 0..2 {
            assert_eq!(tell(&dir, 12345, 1, true), None);
        }
        let queue = EventQueue::create(&dir, ProcessId::me()).unwrap();
        assert_eq!(tell(&dir, queue.id(), 1, false), None);
        EventQueue::remove(&dir, queue.id());
        assert_eq!(tell(&dir, queue.id(), 1, true), None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
