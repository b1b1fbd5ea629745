//! The hand-over word: both ends decide an offer exactly once (INV-1).
//!
//! ```text
//!            client posts            server claims            client confirms
//!   (nothing) ───────────▶ OFFERED ───────────────▶ CLAIMED ───────────────▶ CONFIRMED: carried
//!                             │ either end             │ either end
//!                             └────────▶ WITHDRAWN ◀───┘    plain TCP, for good
//! ```
//!
//! 1. Every arrow is a compare-and-swap on one word, so two ends can't decide differently.
//! 2. The client may write into its ring only after CONFIRMED, the server only after it *saw* CONFIRMED. So a server
//!    that claims an offer whose client is gone (an address used again) never puts a byte where nobody reads.
//! 3. A server that claimed reads both paths: it must expect the client's switch from then on.

use crate::layout::{Areas, MAGIC, RING_BYTES_MAX, RING_BYTES_MIN, SegmentHeader, VERSION};
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::{Corrupt, Key};

/// Value of `SegmentHeader::decision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Decision {
    Offered = 1,
    Claimed = 2,
    Confirmed = 3,
    Withdrawn = 4,
}

impl Decision {
    fn from_word(w: u32) -> Result<Self, Corrupt> {
        Ok(match w {
            1 => Self::Offered,
            2 => Self::Claimed,
            3 => Self::Confirmed,
            4 => Self::Withdrawn,
            _ => return Err(Corrupt),
        })
    }
}

impl SegmentHeader {
    /// Fills a fresh (zeroed) segment and offers it.
    pub fn offer(&self, key: &Key, ring_bytes: u32) {
        for (slot, word) in self.key.iter().zip(key.words()) {
            slot.store(word, Relaxed);
        }
        self.version.store(VERSION, Relaxed);
        self.ring_bytes.store(ring_bytes, Relaxed);
        self.magic.store(MAGIC, Relaxed);
        self.decision.store(Decision::Offered as u32, Release);
    }

    /// Is this a segment of ours for the connection `key`, in a mapping of `mapped` bytes? Returns the ring's bytes.
    pub fn check(&self, key: &Key, mapped: usize) -> Result<usize, Corrupt> {
        let decision = self.decision.load(Acquire);
        let ring_bytes = self.ring_bytes.load(Relaxed) as usize;
        let same_key = self
            .key
            .iter()
            .zip(key.words())
            .all(|(slot, word)| slot.load(Relaxed) == word);
        let sound = self.magic.load(Relaxed) == MAGIC
            && self.version.load(Relaxed) == VERSION
            && (RING_BYTES_MIN..=RING_BYTES_MAX).contains(&ring_bytes)
            && ring_bytes.is_power_of_two()
            && Areas::new(ring_bytes, false).segment_bytes() <= mapped
            && decision != 0
            && same_key;
        if sound { Ok(ring_bytes) } else { Err(Corrupt) }
    }

    pub fn decision(&self) -> Result<Decision, Corrupt> {
        Decision::from_word(self.decision.load(Acquire))
    }

    fn decide(&self, from: Decision, to: Decision) -> bool {
        self.decision
            .compare_exchange(from as u32, to as u32, AcqRel, Acquire)
            .is_ok()
    }

    /// Server: takes the offer. False: it was withdrawn, or somebody else claimed it.
    pub fn claim(&self) -> bool {
        self.decide(Decision::Offered, Decision::Claimed)
    }

    /// Client: the claim is seen, from here on the connection is carried. False: withdrawn by the server.
    pub fn confirm(&self) -> bool {
        self.decide(Decision::Claimed, Decision::Confirmed)
    }

    /// Either end, before CONFIRMED: no. False: too late, it is carried (or was withdrawn already).
    pub fn withdraw(&self) -> bool {
        self.decide(Decision::Offered, Decision::Withdrawn)
            || self.decide(Decision::Claimed, Decision::Withdrawn)
    }
}
