//! The registry's listeners: who accepts connections where.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::{BUCKET, BUSY, Entry, FREE, LIVE, Node, is_v4_mapped, owner, words};
use crate::Error;

/// Of a listener: who listed it has closed it, and others hold it, who may not have listed it yet.
const LEFT: u32 = 3;

/// What an offer that brought nothing adds to a listener's `thrift`, and one that paid takes from it: wasted offers are not
/// more than half of those that pay, whatever the mixture of connections.
const WASTED: u32 = 4;
const PAID: u32 = 2;
/// So much of it asks a connection for twice as much before it is offered; and the most that it comes to.
const THRIFT_STEP: u32 = 4 * WASTED;
const THRIFT_MOST: u32 = 10 * THRIFT_STEP - 1;

#[repr(C, align(64))]
pub struct Listener {
    pub(super) state: AtomicU32,
    pub(super) netns: AtomicU32,
    /// Port, and above it 1 if an unspecified IPv6 address also takes IPv4 (dual stack).
    pub(super) port: AtomicU32,
    pub(super) pid: AtomicU32,
    pub(super) start: AtomicU64,
    pub(super) address: [AtomicU64; 2],
    /// See rule 3; a new listener begins at 0.
    pub(super) thrift: AtomicU32,
}

const _: () = assert!(size_of::<Listener>() == 64);

impl Listener {
    /// False: it is not one that was left.
    fn take_left(&self, to: u32) -> bool {
        let state = &self.state;
        state.compare_exchange(LEFT, to, AcqRel, Relaxed).is_ok()
    }

    /// Does it listen where `other` does?
    fn is_at(&self, other: &Self) -> bool {
        let words = |l: &Self| {
            let [a, b] = &l.address;
            let words = [l.netns.load(Relaxed), l.port.load(Relaxed)];
            (words, a.load(Relaxed), b.load(Relaxed))
        };
        words(self) == words(other)
    }
}

/// Where a listener accepts: addresses as in [`Key`] (IPv4 mapped), all zero with `any` set for a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    pub address: [u8; 16],
    pub port: u16,
    pub netns: u32,
    /// Also takes IPv4 peers (an IPv4 wildcard, or `::` without IPV6_V6ONLY).
    pub any_v4: bool,
    /// Also takes IPv6 peers (`::`).
    pub any_v6: bool,
}

impl Node {
    /// Says that this process accepts connections at `at`.
    pub fn listen(&self, at: &ListenAddress) -> Result<Entry, Error> {
        let start = Self::bucket(at.port);
        let bucket = &self.listeners()[start..start + BUCKET];
        let i = self
            .take_entry(bucket.iter().map(|l| (&l.state, &l.pid, &l.start)))
            .or_else(|| bucket.iter().position(|l| l.take_left(BUSY)))
            .ok_or(Error::Full("listeners"))?;
        let l = &bucket[i];
        let any = u32::from(at.any_v4) << 16 | u32::from(at.any_v6) << 17;
        l.netns.store(at.netns, Relaxed);
        l.port.store(u32::from(at.port) | any, Relaxed);
        for (slot, w) in l.address.iter().zip(words(&at.address)) {
            slot.store(w, Relaxed);
        }
        l.thrift.store(0, Relaxed);
        l.pid.store(self.me().pid, Relaxed);
        l.start.store(self.me().start, Relaxed);
        l.state.store(LIVE, Release);
        // Held by us now, or by nobody.
        for other in bucket.iter().filter(|other| other.is_at(l)) {
            other.take_left(FREE);
        }
        Ok(Entry((start + i) as u32))
    }

    /// This process has closed it, and others hold it: what connects meanwhile is offered to them.
    pub fn leave_listener(&self, e: Entry) {
        if let Some(l) = self.listeners().get(e.0 as usize) {
            let _ = l.state.compare_exchange(LIVE, LEFT, AcqRel, Relaxed);
        }
    }

    pub fn unlisten(&self, e: Entry) {
        if let Some(l) = self.listeners().get(e.0 as usize) {
            l.state.store(FREE, Release);
        }
    }

    /// After an exec of this process: what it listened at before it lists anew.
    pub fn unlisten_mine(&self) {
        let me = self.me();
        let mine = |l: &&Listener| owner(&l.pid, &l.start) == me;
        for l in self.listeners().iter().filter(mine) {
            let _ = l.state.compare_exchange(LIVE, FREE, AcqRel, Relaxed);
            l.take_left(FREE);
        }
    }

    /// Who of this node listens where a connection to `address`:`port` would arrive? In which network namespace, is asked
    /// only if somebody does.
    pub fn listener(
        &self,
        address: &[u8; 16],
        port: u16,
        netns: impl Fn() -> Option<u32>,
    ) -> Option<Entry> {
        let start = Self::bucket(port);
        let v4 = is_v4_mapped(address);
        let serves = |l: &Listener| {
            if !matches!(l.state.load(Acquire), LIVE | LEFT) {
                return false;
            }
            let at = l.port.load(Relaxed);
            let any = at & (if v4 { 1 << 16 } else { 1 << 17 }) != 0;
            let same = l
                .address
                .iter()
                .zip(words(address))
                .all(|(s, w)| s.load(Relaxed) == w);
            at as u16 == port && (any || same) && netns() == Some(l.netns.load(Relaxed))
        };
        let i = self.listeners()[start..start + BUCKET]
            .iter()
            .position(serves)?;
        Some(Entry((start + i) as u32))
    }

    /// By how many powers of two a connection to this listener must have done more than usual before it is offered.
    pub fn thrift(&self, listener: Entry) -> u32 {
        let word = self.listeners().get(listener.0 as usize);
        word.map_or(0, |l| l.thrift.load(Relaxed).min(THRIFT_MOST) / THRIFT_STEP)
    }

    /// An offer to this listener came to its end: did it bring more than it cost?
    pub fn note_offer(&self, listener: Entry, paid: bool) {
        if let Some(l) = self.listeners().get(listener.0 as usize) {
            let before = l.thrift.load(Relaxed).min(THRIFT_MOST);
            let after = if paid {
                before.saturating_sub(PAID)
            } else {
                (before + WASTED).min(THRIFT_MOST)
            };
            // Two at once may count as one: it is a hint.
            if after != before {
                l.thrift.store(after, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_hold_is_found_until_one_of_them_lists_it() {
        let dir = std::env::temp_dir().join(format!("sgm-listen-{:016x}", crate::os::random()));
        let node = Node::open(&dir).unwrap();
        let at = |port| ListenAddress {
            address: [0; 16],
            port,
            netns: 7,
            any_v4: true,
            any_v6: true,
        };
        let found = || node.listener(&[1; 16], 80, || Some(7));
        let first = node.listen(&at(80)).unwrap();
        node.leave_listener(first);
        assert!(found().is_some(), "nobody is offered anything meanwhile");
        let second = node.listen(&at(80)).unwrap();
        node.unlisten(second);
        assert!(found().is_none(), "the first is still there");
        // More of them than there is room for: nobody is refused.
        for _ in 0..3 * BUCKET as u16 {
            let entry = node.listen(&at(80)).unwrap();
            node.leave_listener(entry);
        }
        for port in (0..u16::MAX).filter(|p| Node::bucket(*p) == Node::bucket(80)) {
            let entry = node.listen(&at(port)).unwrap();
            node.leave_listener(entry);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
