//! A segment: the shared memory of one promoted connection. Created by the client's end under a random name, opened by the
//! server's end when it claims the offer, and by whoever comes to hold one of the ends later. Its name goes with the second
//! end that is over; what killed programs leave is swept (sweep.rs).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use ring::bytes::{Area, Bytes};
use ring::layout::{self, Areas, DATA_OFFSET, SegmentHeader};
use ring::{Corrupt, Key, Rx, Tx};

use crate::held::Place;
use crate::os::{self, Mapping};
use crate::port::Port;
use crate::{Asked, Error, Node};

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
    areas: Areas,
    side: Side,
    /// Of each direction; they live as long as the mapping.
    bytes: [Bytes<'static>; 2],
    /// Bytes of the overflow area that this process made.
    overflow_made: AtomicUsize,
}

/// Bytes of overflow areas that this process made, of all its segments.
static OVERFLOW_MADE: AtomicUsize = AtomicUsize::new(0);

/// No more than that, for it is memory: else many peers that read slowly would have all of the machine's. TCP's part of it is of this
/// order (tcp_mem of tcp(7)).
fn overflow_most() -> usize {
    const MOST: u64 = 1 << 30;
    const PART: u64 = 16;
    static FOUND: Asked = Asked::new();
    FOUND.get(|| MOST.min(os::memory_limit() / PART)) as usize
}

fn file_name(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("seg-{id:016x}"))
}

impl Segment {
    /// Client: makes a segment for the connection `key` and offers it under `id`.
    pub fn create(dir: &Path, id: u64, key: &Key, ring_bytes: usize) -> Result<Self, Error> {
        let path = file_name(dir, id);
        let make = |overflows| {
            let areas = Areas::new(ring_bytes, overflows);
            os::create_mapped(&path, areas.segment_bytes()).map(|map| (map, areas))
        };
        // The program's limits (RLIMIT_FSIZE, RLIMIT_AS) may allow the smaller one.
        let (map, areas) = match os::makes_pages_late() {
            true => make(true).or_else(|_| make(false)),
            false => make(false),
        }
        .map_err(|e| Error::os("create", &path, e))?;
        let me = Self::new(map, areas, Side::Client);
        let first = me
            .map
            .populate(0, DATA_OFFSET + FIRST)
            .and_then(|()| me.map.populate(areas.ring_at(1), FIRST));
        if let Err(e) = first {
            os::remove(&path);
            return Err(Error::os("populate", &path, e));
        }
        me.header().offer(key, ring_bytes as u32);
        Ok(me)
    }

    fn new(map: Mapping, areas: Areas, side: Side) -> Self {
        // SAFETY: the areas fit the mapping (made so, or told from its size); powers of two. Who gets a copy borrows the segment.
        let area = |at, len| unsafe { Area::new(map.base().add(at), len) };
        let bytes = [0, 1].map(|direction| {
            let overflow = match areas.overflow {
                0 => None,
                bytes => Some(area(areas.overflow_at(direction), bytes)),
            };
            Bytes::new(area(areas.ring_at(direction), areas.ring), overflow)
        });
        let overflow_made = AtomicUsize::new(0);
        Self {
            map,
            areas,
            side,
            bytes,
            overflow_made,
        }
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
        if told == self.areas.ring {
            Ok(())
        } else {
            Err(Corrupt)
        }
    }

    /// For its header alone, which is not checked.
    pub(crate) fn look(dir: &Path, id: u64) -> Result<Self, Error> {
        let path = file_name(dir, id);
        let least = Areas::new(layout::RING_BYTES_MIN, false).segment_bytes();
        let most = Areas::new(layout::RING_BYTES_MAX, true).segment_bytes();
        let map = os::open_mapped(&path, least, most).map_err(|e| Error::os("open", &path, e))?;
        let areas = Areas::of(map.bytes())
            .ok_or_else(|| Error::unsound(&path, "not of a segment's size"))?;
        Ok(Self::new(map, areas, Side::Server))
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

    fn tx_index(&self) -> usize {
        index(self.side)
    }

    #[inline]
    pub fn tx(&self) -> Tx<'_> {
        let i = self.tx_index();
        Tx {
            direction: &self.header().directions[i],
            bytes: &self.bytes[i],
        }
    }

    #[inline]
    pub fn rx(&self) -> Rx<'_> {
        let i = 1 - self.tx_index();
        Rx {
            direction: &self.header().directions[i],
            bytes: &self.bytes[i],
        }
    }

    pub fn side(&self) -> Side {
        self.side
    }

    #[inline]
    pub fn ring_bytes(&self) -> usize {
        self.areas.ring
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
            let offset = self.areas.ring_at(self.tx_index()) + grown;
            self.map
                .populate(offset, chunk)
                .map_err(|e| Error::os("populate", Path::new("segment"), e))?;
            grown += chunk;
        }
        Ok(grown)
    }
    /// Makes the first `bytes` of the sending overflow area exist. Caller holds the sending lock.
    pub fn make_overflow(&self, bytes: u64) -> Result<(), Error> {
        let (area, w) = (self.areas.overflow, &self.tx().direction.writer);
        let target = usize::try_from(bytes).unwrap_or(area).min(area);
        // Whatever the peer makes of this word, what is made lies in the area.
        let made = w.overflow_made.load(Relaxed).min(area as u64) as usize;
        if made >= target {
            return Ok(());
        }
        let more = (target - made).next_multiple_of(CHUNK_MAX).min(area - made);
        let at = self.areas.overflow_at(self.tx_index()) + made;
        let populated = match OVERFLOW_MADE.fetch_add(more, Relaxed) + more > overflow_most() {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.map.populate(at, more),
        };
        if let Err(e) = populated {
            OVERFLOW_MADE.fetch_sub(more, Relaxed);
            return Err(Error::os("populate", Path::new("segment"), e));
        }
        self.overflow_made.fetch_add(more, Relaxed);
        w.overflow_made.store((made + more) as u64, Relaxed);
        Ok(())
    }

    /// The sending overflow area is read out, and not written to: gives its pages back. Caller holds the sending lock.
    pub fn drop_overflow(&self) {
        let made = &self.tx().direction.writer.overflow_made;
        let bytes = (made.swap(0, Relaxed) as usize).min(self.areas.overflow);
        let _ = self
            .map
            .drop_pages(self.areas.overflow_at(self.tx_index()), bytes);
        self.uncount_overflow();
    }

    fn uncount_overflow(&self) {
        OVERFLOW_MADE.fetch_sub(self.overflow_made.swap(0, Relaxed), Relaxed);
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.uncount_overflow();
    }
}
