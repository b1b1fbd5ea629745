//! Memory layout of a segment. Fixed-width words, no pointers, one writer per cache line where it is hot.

use crate::bytes::Turns;
use crate::sync::Ordering::{Acquire, Relaxed};
use crate::sync::{AtomicU32, AtomicU64};

/// `"SGMSEG01"`, little-endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"SGMSEG01");
/// Layout version: two builds talk to each other only if it is equal. It is part of the node directory's file names.
pub const VERSION: u32 = 5;

/// The header of a segment is before; the rings' bytes follow, on the same page.
pub const DATA_OFFSET: usize = 1024;
/// Bounds for the size of one ring, in bytes; always a power of two.
pub const RING_BYTES_MIN: usize = 4096;
pub const RING_BYTES_MAX: usize = 1 << 26;

/// An overflow area holds so many rings: with the usual one what TCP takes over loopback while nobody reads, 4.2 MB, as measured.
const OVERFLOW_RINGS: usize = 16;
/// Where an area may begin, on any machine's pages: the pages of an overflow area are given back.
const AREA_ALIGN: usize = 64 * 1024;

/// The sizes of a segment's areas, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// Each ring; a power of two.
    pub ring: usize,
    /// Each overflow area; 0: there is none.
    pub overflow: usize,
}

impl Areas {
    pub const fn new(ring: usize, overflows: bool) -> Self {
        let overflow = if overflows { OVERFLOW_RINGS * ring } else { 0 };
        Self { ring, overflow }
    }

    /// Those of a segment of so many bytes.
    pub fn of(segment_bytes: usize) -> Option<Self> {
        let sizes = RING_BYTES_MIN.ilog2()..=RING_BYTES_MAX.ilog2();
        sizes
            .flat_map(|log2| [false, true].map(|overflows| Self::new(1 << log2, overflows)))
            .find(|areas| areas.segment_bytes() == segment_bytes)
    }

    /// Where the ring of a direction begins.
    pub const fn ring_at(self, direction: usize) -> usize {
        DATA_OFFSET + direction * self.ring
    }

    /// Where its overflow area begins.
    pub const fn overflow_at(self, direction: usize) -> usize {
        self.ring_at(2).next_multiple_of(AREA_ALIGN) + direction * self.overflow
    }

    /// Bytes of the segment.
    pub const fn segment_bytes(self) -> usize {
        match self.overflow {
            0 => self.ring_at(2),
            _ => self.overflow_at(2),
        }
    }
}

/// A connection's name, the same at both ends: addresses and ports as the client sees them, and the network
/// namespace. IPv4 is written as IPv4-mapped IPv6, so that a dual-stack listener finds its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Key {
    pub client_addr: [u8; 16],
    pub server_addr: [u8; 16],
    pub client_port: u16,
    pub server_port: u16,
    pub netns: u32,
}

impl Key {
    /// Words of a key, for tables in shared memory (compared word by word, never borrowed).
    pub fn words(&self) -> [u64; 5] {
        let half = |a: &[u8; 16], i: usize| {
            u64::from_le_bytes([
                a[i],
                a[i + 1],
                a[i + 2],
                a[i + 3],
                a[i + 4],
                a[i + 5],
                a[i + 6],
                a[i + 7],
            ])
        };
        [
            half(&self.client_addr, 0),
            half(&self.client_addr, 8),
            half(&self.server_addr, 0),
            half(&self.server_addr, 8),
            u64::from(self.client_port)
                | u64::from(self.server_port) << 16
                | u64::from(self.netns) << 32,
        ]
    }

    /// A 64-bit hash for placing a key in a table (FNV-1a over the words).
    pub fn hash64(&self) -> u64 {
        self.words().iter().fold(0xcbf2_9ce4_8422_2325, |h, w| {
            let mixed = (h ^ w).wrapping_mul(0x0000_0100_0000_01b3);
            mixed ^ (mixed >> 29)
        })
    }
}

/// First page of a segment.
#[repr(C, align(128))]
pub struct SegmentHeader {
    pub magic: AtomicU64,
    pub version: AtomicU32,
    /// Bytes of each ring.
    pub ring_bytes: AtomicU32,
    /// See [`crate::handover`].
    pub decision: AtomicU32,
    /// Which ends are over: 1 the client's, 2 the server's. With both the file's name goes.
    pub over: AtomicU32,
    pub key: [AtomicU64; 5],
    /// Of each end, the client's first: its entry's number over the pid of its port's maker, and that one's start time; 0: not
    /// known yet.
    pub owners: [[AtomicU64; 2]; 2],
    _pad: [AtomicU64; 4],
    /// 0: client to server, 1: server to client.
    pub directions: [Direction; 2],
}

/// One direction of a connection.
#[repr(C, align(128))]
pub struct Direction {
    pub writer: WriterLine,
    pub reader: ReaderLine,
    pub wait: WaitLine,
}

/// Stored to by the writing end only.
#[repr(C, align(128))]
pub struct WriterLine {
    /// Bytes published.
    pub tail: AtomicU64,
    /// Position on the TCP stream where the ring takes over; valid from the odd `switches` on.
    pub up: AtomicU64,
    /// Position in the ring where the TCP stream takes over again; valid from the even `switches` on.
    pub down: AtomicU64,
    /// Position on the TCP stream of the first payload byte after `down` (everything between is doorbells).
    pub down_tcp: AtomicU64,
    /// How often this direction has changed its path: even, bytes written now go over TCP; odd, into the ring.
    pub switches: AtomicU32,
    /// The last even `switches` whose moved bytes are all with the kernel.
    pub moved: AtomicU32,
    /// [`FIN`] and [`RESET`].
    pub flags: AtomicU32,
    /// Doorbell bytes sent for this direction's reader.
    pub bells_sent: AtomicU32,
    /// The size of the sending socket's buffer, if the program has set one; 0: TCP adapts it. See [`Direction::window`].
    pub send_buffer: AtomicU32,
    /// 1 from the first turn to overflow on; before, the two words below need no look.
    pub turned: AtomicU32,
    /// [`Turns`]: the positions at which the areas were last begun.
    pub ring_from: AtomicU64,
    pub overflow_from: AtomicU64,
    /// So much of the overflow area has its pages.
    pub overflow_made: AtomicU64,
}

/// Stored to by the reading end only, but for [`MOVED`].
#[repr(C, align(128))]
pub struct ReaderLine {
    /// Bytes taken, and [`MOVED`].
    pub head: AtomicU64,
}

/// Words that change only when somebody sleeps: while both ends are busy this line stays shared in both caches.
#[repr(C, align(128))]
pub struct WaitLine {
    /// How many wait in the kernel for this direction's bytes. Stored to by the reading end.
    pub sleepers: AtomicU32,
    /// Doorbell bytes the reading end has taken off the TCP stream. Stored to by the reading end.
    pub bells_taken: AtomicU32,
    /// [`READ_CLOSED`], [`PLEASE_DOWN`], [`READ_SHUT`]. Stored to by the reading end.
    pub asks: AtomicU32,
    /// Who waits for room: [`WANT_FUTEX`], [`WANT_BELL`]. Set by the writing end, taken by the reading end.
    pub space_wanted: AtomicU32,
    /// Ring at the next publication, whatever bells are under way: for edge-triggered waiters, whom a bell that lies on
    /// the stream already does not wake. [`EDGE_ARMED`] and [`EDGE_LISTENS`] by the reading end, [`EDGE_RUNG`] by the writing end.
    pub edge: AtomicU32,
    /// Futex word: bumped by the reading end when it made room for somebody.
    pub space_seq: AtomicU32,
    /// How many of the writer's `switches` the reading end has passed.
    pub passed: AtomicU32,
    /// The size of the receiving socket's buffer. Stored to by the reading end.
    pub receive_buffer: AtomicU32,
    /// Position on the TCP stream that the reading end had come to when it last went to sleep, or passed a switch.
    pub at: AtomicU64,
    /// Names the event queue in which the reading end wants to be listed while `edge` is [`EDGE_LISTENS`]; 0: none,
    /// [`MANY_QUEUES`]: several. Stored to by the reading end.
    pub queue: AtomicU64,
    /// As which entry.
    pub entry: AtomicU32,
}

impl Direction {
    /// Where the last switch down was, in the ring and on the stream.
    #[inline]
    pub fn last_down(&self) -> (u64, u64) {
        let w = &self.writer;
        (w.down.load(Relaxed), w.down_tcp.load(Relaxed))
    }

    #[inline]
    pub fn turns(&self) -> Turns {
        let w = &self.writer;
        match w.turned.load(Acquire) {
            0 => Turns::default(),
            // In this order, and after the look at `tail`: see `Tx::overflow`.
            _ => Turns {
                ring: w.ring_from.load(Acquire),
                overflow: w.overflow_from.load(Acquire),
            },
        }
    }

    /// So many bytes may be unread where `capacity` bytes have room: all of them, or what TCP's buffers hold at most if the sending
    /// program has chosen a small one.
    #[inline]
    pub fn window(&self, capacity: u64) -> u64 {
        match self.writer.send_buffer.load(Relaxed) {
            0 => capacity,
            bytes => self.narrow(capacity, bytes),
        }
    }

    /// What TCP takes over loopback at most, as measured: up to four thirds of the receive buffer (a large one grows), and
    /// somewhat less than the send buffer. Never less than TCP, or programs that write first and read then would hang.
    #[cold]
    fn narrow(&self, capacity: u64, sending: u32) -> u64 {
        let receiving = self.wait.receive_buffer.load(Relaxed);
        let both = u64::from(sending) + u64::from(receiving) / 3 * 4;
        both.clamp(WINDOW_MIN.min(capacity), capacity)
    }
}

/// The smallest window: a page.
const WINDOW_MIN: u64 = 4096;

/// The doorbell byte (ASCII BEL). Anything else where only bells can be is payload that came by a call we did not see.
pub const BELL: u8 = 7;
/// `ReaderLine::head`: the writing end moves what is unread to the TCP stream, so nothing is taken here any more.
pub const MOVED: u64 = 1 << 63;
/// `WriterLine::flags`: nothing follows `tail`.
pub const FIN: u32 = 1;
/// `WriterLine::flags`: the connection was aborted (SO_LINGER 0, or closed with unread data).
pub const RESET: u32 = 2;
/// `WaitLine::asks`: nobody will read any more.
pub const READ_CLOSED: u32 = 1;
/// `WaitLine::asks`: the reading end asks to be served over TCP again.
pub const PLEASE_DOWN: u32 = 2;
/// `WaitLine::asks`: the reading program has shut its reading, and reads what is there already. Asks for nothing.
pub const READ_SHUT: u32 = 4;
/// `WaitLine::edge`: ring at the next publication.
pub const EDGE_ARMED: u32 = 1;
/// `WaitLine::edge`: that was done.
pub const EDGE_RUNG: u32 = 2;
/// `WaitLine::edge`: list the end in its event queue at every publication, instead of ringing.
pub const EDGE_LISTENS: u32 = 3;
/// `WaitLine::queue`: several waiters want to hear of this end, so it rings for itself.
pub const MANY_QUEUES: u64 = u64::MAX;
/// `WaitLine::space_wanted`: a thread sleeps on `space_seq`.
pub const WANT_FUTEX: u32 = 1;
/// `WaitLine::space_wanted`: somebody polls for room and wants a doorbell.
pub const WANT_BELL: u32 = 2;

#[cfg(not(loom))]
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<SegmentHeader>() == 896 && size_of::<SegmentHeader>() <= DATA_OFFSET);
    assert!(offset_of!(SegmentHeader, directions) == 128);
    assert!(size_of::<Direction>() == 384);
    assert!(offset_of!(Direction, reader) == 128 && offset_of!(Direction, wait) == 256);
};

macro_rules! zeroed {
    ($($t:ident { $($f:ident),* }),*) => {$(
        impl Default for $t {
            fn default() -> Self {
                Self { $($f: Default::default()),* }
            }
        }
    )*};
}
zeroed!(
    Direction {
        writer,
        reader,
        wait
    },
    WriterLine {
        tail,
        up,
        down,
        down_tcp,
        switches,
        moved,
        flags,
        bells_sent,
        send_buffer,
        turned,
        ring_from,
        overflow_from,
        overflow_made
    },
    ReaderLine { head },
    WaitLine {
        sleepers,
        bells_taken,
        asks,
        space_wanted,
        edge,
        space_seq,
        passed,
        receive_buffer,
        at,
        queue,
        entry
    }
);

impl Default for SegmentHeader {
    fn default() -> Self {
        Self {
            magic: AtomicU64::new(0),
            version: AtomicU32::new(0),
            ring_bytes: AtomicU32::new(0),
            decision: AtomicU32::new(0),
            over: AtomicU32::new(0),
            key: Default::default(),
            owners: Default::default(),
            _pad: Default::default(),
            directions: Default::default(),
        }
    }
}
