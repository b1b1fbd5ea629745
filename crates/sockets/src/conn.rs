//! One socket, as this process sees it.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use gm::held::Place;
use gm::{End, Note, Segment, State};
use ring::sync::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed},
};
use ring::{ReadCache, WriteCache};

use crate::waiting::Spin;

/// Process-private part of a socket. Everything that other holders must see is in `end`.
pub struct Conn {
    pub(crate) end: &'static End,
    place: Place,
    pub(crate) segment: Note<Segment>,
    pub(crate) write_cache: WriteCache,
    pub(crate) read_cache: ReadCache,
    /// How far the sending ring's pages are known to exist.
    pub(crate) grown: AtomicUsize,
    /// Sends since the peer's life was last checked.
    pub(crate) unchecked_sends: AtomicU32,
    /// Empty reads since the kernel was last asked.
    pub(crate) empty_reads: AtomicU32,
    /// When, in ticks.
    pub(crate) kernel_asked: AtomicU64,
    /// Wake-ups in a row that brought nothing: few with an honest peer, endless with one that scribbles.
    pub(crate) idle_wakes: AtomicU32,
    /// How often a non-blocking send found no room: edges for edge-triggered waiters.
    pub(crate) fulls: AtomicU32,
    /// Since when, in µs, the ring is found full with its reader where it is: see `mind_stall`.
    pub(crate) full_since_us: AtomicU64,
    pub(crate) full_head: AtomicU64,
    /// What the peer had read when a non-blocking send was refused for want of room; MAX: none was.
    pub(crate) refused_head: AtomicU64,
    /// Was it full since it was last turned to?
    pub(crate) overflow_full: AtomicBool,
    /// Where in the direction, and when, in µs, this process last looked after the overflow area.
    pub(crate) overflow_minded: AtomicU64,
    pub(crate) overflowed_us: AtomicU64,
    /// See `adapt_receive_buffer`: as large as it may be, and where in the direction, and when, in µs, it was last looked at.
    pub(crate) receiving_most: AtomicU32,
    pub(crate) adapted_at: AtomicU64,
    pub(crate) adapted_us: AtomicU64,
    /// Sends on TCP since the ring was last thought of.
    pub(crate) sends_on_tcp: AtomicU32,
    pub(crate) offer: Note<Offer>,
    /// Client: where it connected to.
    pub(crate) server: Note<Server>,
    /// Client: by how many powers of two it must do more than usual before it is offered; see `gm::node`.
    pub(crate) thrift: AtomicU32,
    pub(crate) read_spin: Spin,
    pub(crate) write_spin: Spin,
}

/// What this end has offered.
pub(crate) struct Offer {
    pub entry: gm::node::Entry,
    /// Names the segment.
    pub id: u64,
    pub posted_us: u64,
}

/// Where a client's end connected to, and who of the node listens there.
pub(crate) struct Server {
    pub address: [u8; 16],
    pub port: u16,
    pub listener: Option<gm::node::Entry>,
}

impl Conn {
    /// A socket that has just been made, accepted or found; `end` is at `place`.
    pub fn new(end: &'static End, place: Place) -> Self {
        Self {
            end,
            place,
            segment: Note::default(),
            write_cache: WriteCache::default(),
            read_cache: ReadCache::default(),
            grown: AtomicUsize::new(0),
            unchecked_sends: AtomicU32::new(0),
            empty_reads: AtomicU32::new(0),
            kernel_asked: AtomicU64::new(0),
            idle_wakes: AtomicU32::new(0),
            fulls: AtomicU32::new(0),
            full_since_us: AtomicU64::new(0),
            full_head: AtomicU64::new(u64::MAX),
            refused_head: AtomicU64::new(u64::MAX),
            overflow_full: AtomicBool::new(false),
            overflow_minded: AtomicU64::new(0),
            overflowed_us: AtomicU64::new(0),
            receiving_most: AtomicU32::new(0),
            adapted_at: AtomicU64::new(0),
            adapted_us: AtomicU64::new(0),
            sends_on_tcp: AtomicU32::new(0),
            offer: Note::default(),
            server: Note::default(),
            thrift: AtomicU32::new(0),
            read_spin: Spin::default(),
            write_spin: Spin::default(),
        }
    }

    pub fn end(&self) -> &'static End {
        self.end
    }

    /// Where the end is: the port's maker, and the number in it.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Must calls on this socket go through the engine? False: the kernel's socket is all there is.
    #[inline]
    pub fn is_engaged(&self) -> bool {
        let s = self.end.state.load(Acquire);
        s == State::Carried as u32 || s == State::Claimed as u32
    }

    /// A call on the kernel's socket moved bytes while the connection was plain.
    #[inline]
    pub fn count_plain(&self, tx: usize, rx: usize) {
        if tx > 0 {
            self.end.tcp_tx.fetch_add(tx as u64, Relaxed);
        }
        if rx > 0 {
            self.end.tcp_rx.fetch_add(rx as u64, Relaxed);
        }
        End::count32(&self.end.plain_calls);
    }

    /// Changes of path that our receiving has passed.
    #[inline]
    pub(crate) fn passed(&self) -> u32 {
        self.end.rx_passed.load(Acquire)
    }

    /// Did our sending go back to TCP, and is all on its way there?
    pub fn sends_on_tcp(&self) -> bool {
        let end = self.end;
        let back = end.tx_path() == gm::Path::Tcp && end.tx_switches.load(Relaxed) != 0;
        back && !self.owes_rest()
    }

    #[inline]
    pub(crate) fn segment(&self) -> Option<&Segment> {
        self.segment.get()
    }

    /// The segment of an engaged connection. A process that inherited an engaged end has inherited its mapping, so
    /// without one the shared state is nonsense.
    #[inline]
    pub(crate) fn rings(&self) -> Result<&Segment, crate::Fault> {
        self.segment.get().ok_or(crate::Fault::Reset)
    }
}
