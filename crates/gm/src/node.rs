//! The node directory and its registry: who listens, which connections are offered, and (see held.rs) which end belongs
//! to a socket.
//!
//! ```text
//! <dir>/node-v5            header, tables of listeners (node/listeners.rs), offers (this file) and held sockets
//! <dir>/port-<pid>-<start> one per process family (see port.rs)
//! <dir>/seg-<random>       a segment, from the offer until both ends are over (see segment.rs)
//! ```
//!
//! Rules:
//! 1. Entries are taken and given back by compare-and-swap of their `state`; an entry whose owner no longer lives may
//!    be taken by anyone.
//! 2. Nothing here decides: a stale listener costs one offer that nobody claims, a stale offer is refused by the
//!    hand-over word in its segment, a wrong hash costs a miss. So a corrupted registry means plain TCP.
//! 3. A listener's `thrift` is a hint: how little offers to it have brought lately. Nonsense in it costs speed alone.
//! 4. `offers_generation` changes whenever an offer is posted. A server looks its connections up only when it has.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use ring::Key;

use crate::held::{HELD, Held};
use crate::os::{self, Mapping, ProcessId, Realm};
use crate::port::AWAITED_NS;
use crate::{Distrust, Error};

mod listeners;

pub use listeners::ListenAddress;
use listeners::Listener;

const MAGIC: u64 = u64::from_le_bytes(*b"SGMNOD01");
const BUCKETS: usize = 256;
const BUCKET: usize = 16;
const OFFERS: usize = 8192;
/// Offers are short-lived: nearly always there is room among the first ones, and the rest of the table stays cold.
const NEAR: usize = 256;
const PROBE: usize = 16;
const LISTENERS_OFFSET: usize = 4096;
const OFFERS_OFFSET: usize = LISTENERS_OFFSET + BUCKETS * BUCKET * size_of::<Listener>();
const HELD_OFFSET: usize = OFFERS_OFFSET + OFFERS * size_of::<Offer>();
const FILE_BYTES: usize = HELD_OFFSET + HELD * size_of::<Held>();

/// States of a table entry.
pub(crate) const FREE: u32 = 0;
pub(crate) const BUSY: u32 = 1;
pub(crate) const LIVE: u32 = 2;

#[repr(C, align(128))]
pub struct NodeHeader {
    pub magic: AtomicU64,
    pub version: AtomicU32,
    _pad: AtomicU32,
    pub made: AtomicU64,
    /// When leftovers were last looked for (see sweep.rs), and where the next look starts.
    pub swept: AtomicU64,
    pub sweep_from: AtomicU32,
    _pad1: AtomicU32,
    _pad2: [AtomicU64; 11],
    /// See rule 4.
    pub offers_generation: AtomicU32,
}

/// Where an offer for `key` may be: from here on, `PROBE` entries each.
fn places_of(key: &Key) -> [usize; 2] {
    // The same whatever a program's word is.
    let place = |hash: u64, places: usize| (hash % places as u64) as usize;
    let hash = key.hash64();
    [place(hash >> 32, NEAR - PROBE), place(hash, OFFERS - PROBE)]
}

#[repr(C, align(128))]
pub struct Offer {
    state: AtomicU32,
    pid: AtomicU32,
    start: AtomicU64,
    key: [AtomicU64; 5],
    segment: AtomicU64,
}

/// An open node.
pub struct Node {
    map: Mapping,
    dir: PathBuf,
    /// Who we are: changes in a forked child.
    me_pid: AtomicU32,
    me_start: AtomicU64,
    /// Who was found alive last.
    lately: Lately,
    /// Where its processes have their numbers.
    pub realm: Realm,
}

/// A process that was just found alive is not asked after again: a full table has many entries of few processes. To take a dead one
/// for alive so long costs a refusal.
#[derive(Default)]
struct Lately {
    pid: AtomicU32,
    start: AtomicU64,
    until_ns: AtomicU64,
}

const LATELY_NS: u64 = 20_000_000;

impl Lately {
    fn lives(&self, who: ProcessId) -> bool {
        let now = os::monotonic_ns();
        if owner(&self.pid, &self.start) == who && now < self.until_ns.load(Relaxed) {
            return true;
        }
        let lives = who.alive();
        if lives {
            self.pid.store(who.pid, Relaxed);
            self.start.store(who.start, Relaxed);
            self.until_ns.store(now + LATELY_NS, Relaxed);
        }
        lives
    }
}

/// Index of an entry, to give it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u32);

impl Entry {
    /// For keeping it in an atomic word.
    pub fn number(self) -> u32 {
        self.0
    }

    pub fn numbered(number: u32) -> Self {
        Self(number)
    }
}

pub fn is_v4_mapped(address: &[u8; 16]) -> bool {
    address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
}

fn words(address: &[u8; 16]) -> [u64; 2] {
    let v = u128::from_le_bytes(*address);
    [v as u64, (v >> 64) as u64]
}

/// How many calls a connection stays plain, if the environment says it (`SGM_PROMOTE_CALLS`).
pub fn promote_calls_from_env() -> Option<u32> {
    std::env::var("SGM_PROMOTE_CALLS").ok()?.parse().ok()
}

impl Node {
    /// The directory that `SGM_DIR` names, or the default one; and in it that of the process namespace.
    pub fn dir_from_env() -> PathBuf {
        let dir = Self::outer_dir_from_env();
        match os::realm() {
            Ok(realm) => realm.directory(dir),
            Err(_) => dir,
        }
    }

    /// The same for the system's own process namespace.
    pub fn outer_dir_from_env() -> PathBuf {
        match std::env::var_os("SGM_DIR") {
            Some(d) if !d.is_empty() => os::node_dir(&d),
            _ => os::default_node_dir(),
        }
    }

    pub(crate) fn file_in(dir: &Path) -> PathBuf {
        dir.join(format!("node-v{}", ring::VERSION))
    }

    /// The registry's file.
    pub fn file(&self) -> PathBuf {
        Self::file_in(&self.dir)
    }

    /// Is there a registry in the directory, as far as we can see?
    pub(crate) fn is_in(dir: &Path) -> bool {
        Self::file_in(dir).symlink_metadata().is_ok()
    }

    /// Can its directory be reached (still)? What is mapped stays, wherever the program has gone meanwhile.
    pub fn is_within_reach(&self) -> bool {
        Self::is_in(&self.dir)
    }

    /// Opens the node, making directory and registry if they are missing.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_as(Self::identity_in(dir)?, dir)
    }

    /// The node of [`Node::dir_from_env`], made if it is missing.
    pub fn open_from_env() -> Result<Self, Error> {
        let outer = Self::outer_dir_from_env();
        let who = Self::identity_in(&outer)?;
        Self::open_as(who, &who.1.directory(outer))
    }

    fn open_as(who: (ProcessId, Realm), dir: &Path) -> Result<Self, Error> {
        let path = Self::file_in(dir);
        match Self::attach_checked(dir, who) {
            Err(Error::Os { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => return other,
        }
        os::ensure_dir(dir).map_err(|e| Error::os("node directory", dir, e))?;
        // Made under another name and then published, so nobody ever sees half a registry.
        let draft = dir.join(format!("new-{:016x}", os::random()));
        let map =
            os::create_mapped(&draft, FILE_BYTES).map_err(|e| Error::os("create", &draft, e))?;
        let filled = map.populate(0, FILE_BYTES);
        if let Err(e) = filled {
            os::remove(&draft);
            return Err(Error::os("populate", &draft, e));
        }
        let node = Self::new(map, dir, who);
        let h = node.header();
        h.version.store(ring::VERSION, Relaxed);
        h.made.store(os::monotonic_ns(), Relaxed);
        h.magic.store(MAGIC, Release);
        match os::publish(&draft, &path) {
            Ok(()) => Ok(node),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                os::remove(&draft);
                Self::attach_checked(dir, who)
            }
            Err(e) => {
                os::remove(&draft);
                Err(Error::os("publish", &path, e))
            }
        }
    }

    /// Opens an existing node; makes nothing.
    pub fn attach(dir: &Path) -> Result<Self, Error> {
        os::check_dir(dir).map_err(|e| Error::os("node directory", dir, e))?;
        Self::attach_checked(dir, Self::identity_in(dir)?)
    }

    fn identity_in(dir: &Path) -> Result<(ProcessId, Realm), Error> {
        os::identity().map_err(|e| Error::os("processes of", dir, e))
    }

    fn attach_checked(dir: &Path, who: (ProcessId, Realm)) -> Result<Self, Error> {
        let path = Self::file_in(dir);
        let map = os::open_mapped(&path, FILE_BYTES, FILE_BYTES).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidInput if Distrust::of(&e).is_none() => {
                Error::unsound(&path, "not a registry of this version")
            }
            _ => Error::os("open", &path, e),
        })?;
        let node = Self::new(map, dir, who);
        let h = node.header();
        if h.magic.load(Acquire) != MAGIC || h.version.load(Relaxed) != ring::VERSION {
            return Err(Error::unsound(&path, "not a registry of this version"));
        }
        Ok(node)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn new(map: Mapping, dir: &Path, (me, realm): (ProcessId, Realm)) -> Self {
        Self {
            map,
            dir: dir.to_owned(),
            me_pid: AtomicU32::new(me.pid),
            me_start: AtomicU64::new(me.start),
            lately: Lately::default(),
            realm,
        }
    }

    pub fn me(&self) -> ProcessId {
        ProcessId {
            pid: self.me_pid.load(Relaxed),
            start: self.me_start.load(Relaxed),
        }
    }

    /// In a forked child: from now on entries are its own.
    pub fn after_fork(&self) {
        let me = ProcessId::me();
        self.me_pid.store(me.pid, Relaxed);
        self.me_start.store(me.start, Relaxed);
    }

    pub fn header(&self) -> &NodeHeader {
        // SAFETY: the file is larger than the header, page-aligned, all atomics.
        unsafe { &*self.map.base().cast::<NodeHeader>() }
    }

    fn listeners(&self) -> &[Listener] {
        // SAFETY: `Listener` is all atomics.
        unsafe { self.map.table(LISTENERS_OFFSET, BUCKETS * BUCKET) }.unwrap_or_default()
    }

    fn offers(&self) -> &[Offer] {
        // SAFETY: `Offer` is all atomics.
        unsafe { self.map.table(OFFERS_OFFSET, OFFERS) }.unwrap_or_default()
    }

    pub(crate) fn held(&self) -> &[Held] {
        // SAFETY: `Held` is all atomics.
        unsafe { self.map.table(HELD_OFFSET, HELD) }.unwrap_or_default()
    }

    /// This generation of offers; see rule 3.
    #[inline]
    pub fn offers_generation(&self) -> u32 {
        self.header().offers_generation.load(Acquire)
    }

    fn bucket(port: u16) -> usize {
        (port as usize).wrapping_mul(0x9e37) % BUCKETS * BUCKET
    }

    /// Takes a free entry, else one whose owner is gone. The entry is left BUSY, for the caller to fill.
    fn take_entry<'a>(
        &self,
        entries: impl Iterator<Item = EntryWords<'a>> + Clone,
    ) -> Option<usize> {
        let free = entries.clone().position(take_free);
        let gone = |e| self.is_gone(e) && take_live(e);
        free.or_else(|| entries.clone().position(gone))
    }

    /// In use, by a process that lives no more? This one does.
    pub(crate) fn is_gone(&self, (state, pid, start): EntryWords<'_>) -> bool {
        let who = owner(pid, start);
        state.load(Acquire) == LIVE && who != self.me() && !self.lately.lives(who)
    }

    /// Posts an offer: segment `segment` is for connection `key`.
    pub fn offer(&self, key: &Key, segment: u64) -> Result<Entry, Error> {
        let take = |start: usize| {
            let window = self.offers()[start..start + PROBE].iter();
            Some(start + self.take_entry(window.map(|o| (&o.state, &o.pid, &o.start)))?)
        };
        let places = places_of(key);
        let i = places.into_iter().find_map(take);
        let i = i.ok_or(Error::Full("offers"))?;
        let o = &self.offers()[i];
        for (slot, w) in o.key.iter().zip(key.words()) {
            slot.store(w, Relaxed);
        }
        o.segment.store(segment, Relaxed);
        o.pid.store(self.me().pid, Relaxed);
        o.start.store(self.me().start, Relaxed);
        o.state.store(LIVE, Release);
        self.header().offers_generation.fetch_add(1, AcqRel);
        Ok(Entry(i as u32))
    }

    /// Looks for an offer for `key`. Returns the segment's id.
    pub fn find_offer(&self, key: &Key) -> Option<(Entry, u64)> {
        let words = key.words();
        let matches = |o: &Offer| {
            o.state.load(Acquire) == LIVE
                && o.key.iter().zip(words).all(|(s, w)| s.load(Relaxed) == w)
        };
        let look = |start: usize| {
            let window = &self.offers()[start..start + PROBE];
            Some(start + window.iter().position(matches)?)
        };
        let i = places_of(key).into_iter().find_map(look)?;
        let segment = self.offers()[i].segment.load(Relaxed);
        Some((Entry(i as u32), segment))
    }

    /// Gives an offer's entry back, if it still holds `segment`.
    pub fn remove_offer(&self, e: Entry, segment: u64) {
        if let Some(o) = self.offers().get(e.0 as usize)
            && o.segment.load(Relaxed) == segment
            && o.state
                .compare_exchange(LIVE, BUSY, AcqRel, Relaxed)
                .is_ok()
        {
            o.segment.store(0, Relaxed);
            o.state.store(FREE, Release);
        }
    }

    /// Live listeners and offers, and how many of them belong to processes that are gone.
    pub fn census(&self) -> Census {
        let mut c = Census::default();
        for l in self
            .listeners()
            .iter()
            .filter(|l| l.state.load(Acquire) == LIVE)
        {
            c.listeners += 1;
            c.stale += usize::from(!owner(&l.pid, &l.start).alive());
        }
        for o in self
            .offers()
            .iter()
            .filter(|o| o.state.load(Acquire) == LIVE)
        {
            c.offers += 1;
            c.stale += usize::from(!owner(&o.pid, &o.start).alive());
        }
        c
    }

    /// Where live processes accept, and which: for people.
    pub fn listening(&self) -> Vec<(ProcessId, ListenAddress)> {
        let live = |l: &&Listener| l.state.load(Acquire) == LIVE && owner(&l.pid, &l.start).alive();
        self.listeners()
            .iter()
            .filter(live)
            .map(|l| {
                let port = l.port.load(Relaxed);
                let words = [1, 0].map(|i: usize| u128::from(l.address[i].load(Relaxed)));
                let at = ListenAddress {
                    address: (words[0] << 64 | words[1]).to_le_bytes(),
                    port: port as u16,
                    netns: l.netns.load(Relaxed),
                    any_v4: port & 1 << 16 != 0,
                    any_v6: port & 1 << 17 != 0,
                };
                (owner(&l.pid, &l.start), at)
            })
            .collect()
    }

    /// Gives back all entries of processes that are gone. Returns how many.
    pub fn sweep(&self) -> usize {
        let mut n = 0;
        let listeners = self
            .listeners()
            .iter()
            .map(|l| (&l.state, &l.pid, &l.start));
        let offers = self.offers().iter().map(|o| (&o.state, &o.pid, &o.start));
        let now = os::monotonic_ns();
        let awaited = |h: &&Held| h.posted_ns().saturating_add(AWAITED_NS) > now;
        let held = self.held().iter().filter(|h| !awaited(h)).map(Held::entry);
        for (state, pid, start) in listeners.chain(offers).chain(held) {
            if self.is_gone((state, pid, start)) {
                state.store(FREE, Release);
                n += 1;
            }
        }
        n
    }
}

/// What [`Node::census`] counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Census {
    pub listeners: usize,
    pub offers: usize,
    pub stale: usize,
}

fn owner(pid: &AtomicU32, start: &AtomicU64) -> ProcessId {
    ProcessId {
        pid: pid.load(Relaxed),
        start: start.load(Relaxed),
    }
}

/// A table entry's state, and who owns it: pid and start time.
pub(crate) type EntryWords<'a> = (&'a AtomicU32, &'a AtomicU32, &'a AtomicU64);

pub(crate) fn take_free((state, _, _): EntryWords<'_>) -> bool {
    state.compare_exchange(FREE, BUSY, AcqRel, Relaxed).is_ok()
}

pub(crate) fn take_live((state, _, _): EntryWords<'_>) -> bool {
    state.compare_exchange(LIVE, BUSY, AcqRel, Relaxed).is_ok()
}
