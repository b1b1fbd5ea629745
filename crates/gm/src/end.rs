//! One end of one socket, in the port's file: state that all holders of the descriptor share (threads, forked
//! children), and counters that `sgm status` reads.
//!
//! ```text
//!                 client: offer                     client: sees CLAIMED
//!   Plain ──────────────────────────▶ Offered ─────────────────────────────▶ Carried ──▶ Back
//!     │           server: claim                     server: sees CONFIRMED      ▲    both directions on TCP again
//!     └─────────────────────────────▶ Claimed ──────────────────────────────────┘
//! ```
//!
//! Rules:
//! 1. `state` leaves `Plain`, `Offered` or `Claimed` only by a thread that is alone on this end (the engine's gate).
//! 2. `tx_switches` changes under `tx_lock`, `rx_passed` under `rx_lock`. Even: the direction is on the kernel's stream, odd:
//!    on the ring. They are this side's own copies of what the ring's words say to the peer.
//! 3. `tcp_tx` and `tcp_rx` count every byte of the kernel's stream, payload and doorbells, from the first on.
//! 4. Counters are for people: they may lag, they never steer.

use ring::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Value of `End::state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    Free = 0,
    Plain = 1,
    Offered = 2,
    Claimed = 3,
    Carried = 4,
    Back = 5,
    /// Between an owner that left it and the next: nobody's business but of who set this.
    Taken = 6,
}

/// Where a direction's next byte goes or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Tcp,
    Ring,
}

/// Value of `End::role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    Fresh = 0,
    Client = 1,
    Server = 2,
    Listener = 3,
}

/// Bits of `End::flags`.
pub mod flag {
    /// O_NONBLOCK, as last seen.
    pub const NONBLOCK: u32 = 1;
    /// Nobody saw it being set: it was found on the kernel's socket.
    pub const NONBLOCK_FOUND: u32 = 256;
    /// The program shut its sending side down.
    pub const WRITE_SHUT: u32 = 2;
    /// The program shut its receiving side down.
    pub const READ_SHUT: u32 = 4;
    /// The kernel said end-of-file on the stream.
    pub const KERNEL_EOF: u32 = 8;
    /// The kernel reported an error on the stream that is still to be delivered or was delivered.
    pub const KERNEL_DEAD: u32 = 16;
    /// SO_LINGER with zero time: close aborts.
    pub const LINGER_ZERO: u32 = 32;
    /// Never promote (again); `reason` says why.
    pub const KEEP_TCP: u32 = 64;
    /// The shared words were nonsense: reads and writes give ECONNRESET.
    pub const CORRUPT: u32 = 128;
    /// ECONNRESET was reported; what follows is end-of-file.
    pub const RESET_TOLD: u32 = 512;
    /// Was promoted at some time.
    pub const WAS_CARRIED: u32 = 1024;
    /// An internal call took ECONNRESET off the kernel's socket; the next call of the program gets it.
    pub const RESET_DUE: u32 = 2048;
    /// What a writer that died had not moved to TCP was taken back into the ring.
    pub const TAKEN_BACK: u32 = 262_144;
    /// It was given to somebody who does not know of ends, and who counts as a holder for ever.
    pub const GIVEN: u32 = 524_288;
    /// Something was sent to a peer that had shut both ways: what follows is refused.
    pub const UNHEARD: u32 = 1_048_576;
    /// What the peer had not read could not be moved to the stream, for it was gone: a reset, though the stream may not say so.
    pub const UNMOVED: u32 = 2_097_152;
    /// Both halves were shut, and the kernel's as well.
    pub const CLOSED_BOTH: u32 = 8192;
    /// Somebody has begun to renew the connection: what was unread then is that one's to take.
    pub const RENEWED: u32 = 4_194_304;
    /// It is that one who has marked the ring's head, and no writer.
    pub const FROZEN: u32 = 8_388_608;
    /// Somebody of this node listened at the peer's address when we connected.
    pub const LISTENED: u32 = 4096;
    /// The kernel's TCP_NODELAY and TCP_CORK are ours, for the doorbells' sake; the program's are the next two bits.
    pub const OWN_PUSH: u32 = 16384;
    pub const NODELAY: u32 = 32768;
    pub const CORK: u32 = 65536;
    /// A listener: an option was set that the sockets accepted from it inherit, and that the ring must know of.
    pub const PASSES_OPTIONS: u32 = 131_072;
    /// What ends reading.
    pub const KERNEL_ENDS: u32 = KERNEL_EOF | KERNEL_DEAD | READ_SHUT;
}

/// See the module header.
#[repr(C, align(128))]
pub struct End {
    pub state: AtomicU32,
    pub role: AtomicU32,
    /// Changes of path that this end's sending has made, and that its receiving has passed.
    pub tx_switches: AtomicU32,
    pub rx_passed: AtomicU32,
    pub flags: AtomicU32,
    pub reason: AtomicU32,
    /// Holders of the socket: processes, whatever number of descriptors each has on it, messages on their way to one, and
    /// somebody unknown ([`flag::GIVEN`]).
    pub refs: AtomicU32,
    /// Process that came to hold it last; 0: gone, and another holds it.
    pub pid: AtomicU32,
    /// Thread id of the holder; 0: free.
    pub tx_lock: AtomicU32,
    pub rx_lock: AtomicU32,
    /// Calls that moved bytes while on plain TCP: what promotion is decided by.
    pub plain_calls: AtomicU32,
    /// `node::offers_generation` when this end last looked for an offer.
    pub seen_generation: AtomicU32,
    pub tcp_tx: AtomicU64,
    pub tcp_rx: AtomicU64,
    /// SO_RCVTIMEO and SO_SNDTIMEO in µs; 0: none.
    pub receive_timeout_us: AtomicU64,
    pub send_timeout_us: AtomicU64,
    /// Local and peer address: [`ring::Key`]'s words from this end's view; word 4 has the ports.
    pub address: [AtomicU64; 5],
    /// Carried bytes and messages, doorbells sent, sleeps in the kernel.
    pub tx_bytes: AtomicU64,
    pub rx_bytes: AtomicU64,
    pub tx_messages: AtomicU64,
    pub rx_messages: AtomicU64,
    pub bells_sent: AtomicU64,
    pub sleeps: AtomicU64,
    /// 1 + position in our sending ring of the next byte that moves to TCP; 0: none. And where that ends.
    pub resend: AtomicU64,
    pub resend_to: AtomicU64,
    /// 1 + a descriptor that process `pid` has (or had) on this socket; 0: not known. For `sgm status` alone.
    pub descriptor: AtomicU32,
    /// Holders that were counted in `refs` and have not come yet: programs just started, messages on their way.
    pub due: AtomicU32,
    /// The kernel's own number of the socket (SO_COOKIE), once somebody may have to find this end by it; 0: not yet.
    pub cookie: AtomicU64,
    /// Names the segment of an offered or engaged connection; 0: none.
    pub segment: AtomicU64,
    /// Rings of the bell of the peer's event queue.
    pub port_bells: AtomicU64,
    /// Thread that gives the kernel's socket another peer (the engine's `renewal`); 0: none.
    pub renewer: AtomicU32,
    _pad: u32,
}

const _: () = assert!(size_of::<End>() == 256);

impl End {
    #[inline]
    pub fn state(&self) -> State {
        match self.state.load(ring::sync::Ordering::Acquire) {
            1 => State::Plain,
            2 => State::Offered,
            3 => State::Claimed,
            4 => State::Carried,
            5 => State::Back,
            6 => State::Taken,
            _ => State::Free,
        }
    }

    /// Is it some socket's?
    pub fn is_used(&self) -> bool {
        !matches!(self.state(), State::Free | State::Taken)
    }

    /// Has it a segment?
    pub fn is_promoted(&self) -> bool {
        matches!(
            self.state(),
            State::Offered | State::Claimed | State::Carried
        )
    }

    /// From `state`, as it was read, to [`State::Taken`]. False: somebody else was quicker.
    pub(crate) fn take_from(&self, state: u32) -> bool {
        use ring::sync::Ordering::AcqRel;
        let taken = State::Taken as u32;
        state != taken
            && self
                .state
                .compare_exchange(state, taken, AcqRel, Relaxed)
                .is_ok()
    }

    pub fn set_state(&self, s: State) {
        self.state.store(s as u32, ring::sync::Ordering::Release);
    }

    #[inline]
    pub fn tx_path(&self) -> Path {
        path(&self.tx_switches)
    }

    #[inline]
    pub fn rx_path(&self) -> Path {
        path(&self.rx_passed)
    }

    pub fn role(&self) -> Role {
        match self.role.load(Relaxed) {
            1 => Role::Client,
            2 => Role::Server,
            3 => Role::Listener,
            _ => Role::Fresh,
        }
    }

    #[inline]
    pub fn has(&self, flags: u32) -> bool {
        self.flags.load(Relaxed) & flags != 0
    }

    pub fn set(&self, flags: u32) {
        self.flags.fetch_or(flags, Relaxed);
    }

    pub fn clear(&self, flags: u32) {
        self.flags.fetch_and(!flags, Relaxed);
    }

    /// The caller is a holder that was counted. False: nobody is due.
    pub fn take_due(&self) -> bool {
        self.due
            .fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1))
            .is_ok()
    }

    /// Is a holder on its way?
    pub fn is_awaited(&self) -> bool {
        self.due.load(Relaxed) != 0 && self.is_used()
    }

    /// Is its only holder gone, without a close?
    pub fn is_deserted(&self) -> bool {
        let pid = self.pid.load(Relaxed);
        let alone = self.refs.load(ring::sync::Ordering::Acquire) <= 1;
        alone && !self.is_awaited() && pid != 0 && !crate::os::process_exists(pid)
    }

    pub fn reason(&self) -> crate::Reason {
        crate::Reason::from_number(self.reason.load(Relaxed)).unwrap_or(crate::Reason::None)
    }

    /// Stays on TCP (or goes back to it), and says why. The first reason is the one that counts.
    pub fn keep_tcp(&self, why: crate::Reason) {
        if self.flags.fetch_or(flag::KEEP_TCP, Relaxed) & flag::KEEP_TCP == 0 {
            self.reason.store(why as u32, Relaxed);
        }
    }

    /// Adds to a counter that only this end's side stores to: a plain load and store, since lagging is allowed.
    #[inline]
    pub fn count(counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// As [`End::count`], by one, for the 32-bit counters; stops at the top.
    #[inline]
    pub fn count32(counter: &AtomicU32) {
        counter.store(counter.load(Relaxed).saturating_add(1), Relaxed);
    }

    /// Makes a free entry a fresh one. The caller owns it (its state was just swapped from Free).
    pub fn reset(&self, role: Role, pid: u32) {
        for w in [
            &self.tx_switches,
            &self.rx_passed,
            &self.flags,
            &self.reason,
            &self.tx_lock,
            &self.rx_lock,
            &self.plain_calls,
            &self.seen_generation,
            &self.descriptor,
            &self.due,
            &self.renewer,
        ] {
            w.store(0, Relaxed);
        }
        for w in [
            &self.tcp_tx,
            &self.tcp_rx,
            &self.receive_timeout_us,
            &self.send_timeout_us,
            &self.tx_bytes,
            &self.rx_bytes,
            &self.tx_messages,
            &self.rx_messages,
            &self.bells_sent,
            &self.sleeps,
            &self.port_bells,
            &self.resend,
            &self.resend_to,
            &self.cookie,
            &self.segment,
        ]
        .into_iter()
        .chain(&self.address)
        {
            w.store(0, Relaxed);
        }
        self.role.store(role as u32, Relaxed);
        self.refs.store(1, Relaxed);
        self.pid.store(pid, Relaxed);
    }
}

#[inline]
fn path(word: &AtomicU32) -> Path {
    match word.load(ring::sync::Ordering::Acquire) % 2 {
        0 => Path::Tcp,
        _ => Path::Ring,
    }
}
