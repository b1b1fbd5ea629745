//! A segment: the shared memory of one promoted connection. Created by the client's end under a random name, opened by the
//! server's end when it claims the offer, and by whoever comes to hold one of the ends later. Its name goes with the second
//! end that is over; what killed programs leave is swept (sweep.rs).

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use ring::bytes::Bytes;
use ring::layout::{self, DATA_OFFSET, SegmentHeader, segment_bytes};
use ring::{Corrupt, Key, Rx, Tx};

use crate::held::Place;
use crate::os::{self, Mapping};
use crate::port::Port;
use crate::{Error, Node};

const CHUNK_MIN: usize = 4096;
/// So much of each ring exists from the start: up to the end of the page that it begins on, which for the first one is the
/// header's. So a quiet connection has two pages; others come as the rings are first passed through (see [`Segment::grow`]).
const FIRST: usize = CHUNK_MIN - DATA_OFFSET;
const CHUNK_MAX: usize = 64 * 1024;

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

fn index(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Server => 1,
    }
}

/// Did the end at `at` die with the segment `id` open? `port` is its port, as it could be opened, or not.
pub(crate) fn is_gone(port: &Result<Port, Error>, at: Place, id: u64) -> bool {
    match port {
        Ok(port) => {
            let end = port.ends().get(at.index as usize);
            end.is_none_or(|e| e.segment.load(Relaxed) != id || e.is_deserted()) || port.is_dead()
        }
        Err(e) => e.is_missing() && !at.port.alive(),
    }
}

/// The port of `maker`. Where this process can't get at the node directory any more (it went into another root, became another
/// user), that is no sign of its being missing.
pub(crate) fn port_of(dir: &Path, maker: os::ProcessId) -> Result<Port, Error> {
    let port = Port::open_of(dir, maker);
    match port {
        Err(e) if e.is_missing() && !Node::is_in(dir) => Err(Error::OutOfReach),
        port => port,
    }
}

/// A mapped segment, checked but for the moments between [`Segment::find`] and [`Segment::check`].
pub struct Segment {
    map: Mapping,
    /// As its size says; `check` compares.
    ring_bytes: usize,
    side: Side,
}

fn file_name(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("seg-{id:016x}"))
}

impl Segment {
    /// Client: makes a segment for the connection `key` and offers it under `id`.
    pub fn create(dir: &Path, id: u64, key: &Key, ring_bytes: usize) -> Result<Self, Error> {
        let path = file_name(dir, id);
        let bytes = segment_bytes(ring_bytes);
        let map = os::create_mapped(&path, bytes).map_err(|e| Error::os("create", &path, e))?;
        let me = Self {
            map,
            ring_bytes,
            side: Side::Client,
        };
        let first = me
            .map
            .populate(0, DATA_OFFSET + FIRST)
            .and_then(|()| me.map.populate(DATA_OFFSET + ring_bytes, FIRST));
        if let Err(e) = first {
            os::remove(&path);
            return Err(Error::os("populate", &path, e));
        }
        me.header().offer(key, ring_bytes as u32);
        Ok(me)
    }

    /// Opens the segment `id` for one of its ends and checks that it is for the connection `key`.
    pub fn open(dir: &Path, id: u64, key: &Key, side: Side) -> Result<Self, Error> {
        let me = Self::find(dir, id, side)?;
        me.check(key).map_err(|Corrupt| {
            Error::unsound(&file_name(dir, id), "not a segment of this version")
        })?;
        Ok(me)
    }

    /// As [`Segment::open`], but looks at nothing in it: that is to be done before it is used.
    pub fn find(dir: &Path, id: u64, side: Side) -> Result<Self, Error> {
        let mut me = Self::look(dir, id)?;
        me.side = side;
        Ok(me)
    }

    /// Is it for the connection `key`?
    pub fn check(&self, key: &Key) -> Result<(), Corrupt> {
        let told = self.header().check(key, self.map.bytes())?;
        if told == self.ring_bytes {
            Ok(())
        } else {
            Err(Corrupt)
        }
    }

    /// For its header alone, which is not checked.
    pub(crate) fn look(dir: &Path, id: u64) -> Result<Self, Error> {
        let path = file_name(dir, id);
        let limits = (
            segment_bytes(layout::RING_BYTES_MIN),
            segment_bytes(layout::RING_BYTES_MAX),
        );
        let map =
            os::open_mapped(&path, limits.0, limits.1).map_err(|e| Error::os("open", &path, e))?;
        let room = (map.bytes() - DATA_OFFSET) / 2;
        Ok(Self {
            ring_bytes: 1 << room.ilog2(),
            map,
            side: Side::Server,
        })
    }

    /// Puts down where the end of this side is.
    pub fn own(&self, place: Place) {
        let [who, start] = &self.header().owners[self.tx_index()];
        start.store(place.port.start, Relaxed);
        let pid = u64::from(place.port.pid);
        who.store(pid | u64::from(place.index) << 32, Release);
    }

    /// Is the other end closed by its last holder, or did that die?
    pub fn peer_is_over(&self, dir: &Path, id: u64) -> bool {
        self.is_over(dir, id, self.side.other())
    }

    fn is_over(&self, dir: &Path, id: u64, side: Side) -> bool {
        self.outstanding(side)
            .is_none_or(|at| is_gone(&port_of(dir, at.port), at, id))
    }

    /// Where the other end is, as far as that one says.
    pub fn peer(&self) -> Option<Place> {
        self.outstanding(self.side.other())
    }

    pub(crate) fn owner(&self, side: Side) -> Option<Place> {
        let [who, start] = &self.header().owners[index(side)];
        let who = who.load(Acquire);
        let port = os::ProcessId {
            pid: who as u32,
            start: start.load(Relaxed),
        };
        (port.pid != 0).then_some(Place {
            port,
            index: (who >> 32) as u32,
        })
    }

    /// The end of this side is closed by its last holder: with the second one the name goes. `bereaved`: the kernel said
    /// that the peer is gone; if it died, this one is the second.
    pub fn end_side(&self, dir: &Path, id: u64, side: Side, bereaved: bool) {
        let mine = 1_u32 << index(side);
        let before = self.header().over.fetch_or(mine, AcqRel);
        if before & !mine != 0 || bereaved && self.is_over(dir, id, side.other()) {
            os::remove(&file_name(dir, id));
        }
    }

    /// Where the end of that side is, unless it is over or nobody has claimed it: then all depends on the other one.
    pub(crate) fn outstanding(&self, side: Side) -> Option<Place> {
        let over = self.header().over.load(Acquire) & 1 << index(side) != 0;
        self.owner(side).filter(|_| !over)
    }

    /// Takes the name away. Both ends keep their mappings.
    pub fn unlink(dir: &Path, id: u64) {
        os::remove(&file_name(dir, id));
    }

    pub fn header(&self) -> &SegmentHeader {
        // SAFETY: every mapping made above is larger than the header, page-aligned, and the header is all atomics.
        unsafe { &*self.map.base().cast::<SegmentHeader>() }
    }

    fn bytes_of(&self, direction: usize) -> Bytes<'_> {
        // SAFETY: `segment_bytes(ring_bytes)` fits the mapping (made so, or checked in `open`); a power of two.
        unsafe {
            let base = self
                .map
                .base()
                .add(DATA_OFFSET + direction * self.ring_bytes());
            Bytes::new(base, self.ring_bytes())
        }
    }

    fn tx_index(&self) -> usize {
        index(self.side)
    }

    #[inline]
    pub fn tx(&self) -> Tx<'_> {
        let i = self.tx_index();
        Tx {
            direction: &self.header().directions[i],
            bytes: self.bytes_of(i),
        }
    }

    #[inline]
    pub fn rx(&self) -> Rx<'_> {
        let i = 1 - self.tx_index();
        Rx {
            direction: &self.header().directions[i],
            bytes: self.bytes_of(i),
        }
    }

    pub fn side(&self) -> Side {
        self.side
    }

    #[inline]
    pub fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// Before the first lap's write to `upto` (a position): makes the pages exist. `grown` is the caller's note of how
    /// far they do; returns the new value. Pages come in growing chunks, so that a quiet connection has few.
    pub fn grow(&self, grown: usize, upto: usize) -> Result<usize, Error> {
        let target = upto.min(self.ring_bytes());
        let mut grown = grown.max(FIRST);
        while grown < target {
            let chunk = (grown + DATA_OFFSET)
                .clamp(CHUNK_MIN, CHUNK_MAX)
                .min(self.ring_bytes() - grown);
            let offset = DATA_OFFSET + self.tx_index() * self.ring_bytes() + grown;
            self.map
                .populate(offset, chunk)
                .map_err(|e| Error::os("populate", Path::new("segment"), e))?;
            grown += chunk;
        }
        Ok(grown)
    }
}
