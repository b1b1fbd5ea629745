//! Which end belongs to a socket: the table by which a process finds the state of a descriptor that came to it by exec,
//! from the program that started it, or in a message.
//!
//! The key is the kernel's own number of the socket (SO_COOKIE), which no other socket gets before the next boot. Who is
//! about to give a socket away posts where its end is; who gets one looks it up, once.
//!
//! Rules:
//! 1. An entry only says where to look. The end it names has the same cookie, or the entry means nothing.
//! 2. An entry is good until its end is free, and may be taken by anyone when its poster is gone, the oldest one first: whoever
//!    gets a socket from it has looked by then, or the socket is plain TCP, and stays so.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::Error;
use crate::node::{BUSY, EntryWords, FREE, LIVE, Node, take_free, take_live};
use crate::os::{self, ProcessId};

pub(crate) const HELD: usize = 4096;
const PROBE: usize = 16;

#[repr(C, align(64))]
pub struct Held {
    state: AtomicU32,
    /// Who posted it.
    pid: AtomicU32,
    start: AtomicU64,
    cookie: AtomicU64,
    /// Who made the port.
    port_start: AtomicU64,
    port_pid: AtomicU32,
    /// The end's number in it.
    index: AtomicU32,
    /// When, on the monotonic clock.
    posted_ns: AtomicU64,
}

/// Where an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The process that made the port.
    pub port: ProcessId,
    /// The end's number in it.
    pub index: u32,
}

impl Held {
    fn place(&self) -> Place {
        Place {
            port: ProcessId {
                pid: self.port_pid.load(Relaxed),
                start: self.port_start.load(Relaxed),
            },
            index: self.index.load(Relaxed),
        }
    }

    pub(crate) fn posted_ns(&self) -> u64 {
        self.posted_ns.load(Relaxed)
    }

    pub(crate) fn entry(&self) -> EntryWords<'_> {
        (&self.state, &self.pid, &self.start)
    }
}

impl Node {
    fn window(&self, cookie: u64) -> &[Held] {
        let start = (cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % (HELD - PROBE);
        self.held().get(start..start + PROBE).unwrap_or_default()
    }

    fn holding(&self, cookie: u64) -> Option<&Held> {
        self.window(cookie)
            .iter()
            .find(|h| h.cookie.load(Relaxed) == cookie && h.state.load(Acquire) == LIVE)
    }

    /// Says that the socket `cookie` has its end at `place`.
    pub fn hold(&self, cookie: u64, place: Place) -> Result<(), Error> {
        let known = self.holding(cookie);
        let taken = known.filter(|h| take_live(h.entry()));
        let entry = taken
            .or_else(|| self.window(cookie).iter().find(|h| take_free(h.entry())))
            .or_else(|| self.take_oldest(cookie));
        let h = entry.ok_or(Error::Full("sockets to be found"))?;
        h.cookie.store(cookie, Relaxed);
        h.port_pid.store(place.port.pid, Relaxed);
        h.port_start.store(place.port.start, Relaxed);
        h.index.store(place.index, Relaxed);
        h.pid.store(self.me().pid, Relaxed);
        h.start.store(self.me().start, Relaxed);
        h.posted_ns.store(os::monotonic_ns(), Relaxed);
        h.state.store(LIVE, Release);
        Ok(())
    }

    /// The entry of a poster that is gone which has been there longest.
    fn take_oldest(&self, cookie: u64) -> Option<&Held> {
        let window = self.window(cookie);
        // Others take them as well.
        for _ in 0..PROBE {
            let gone = window.iter().filter(|h| self.is_gone(h.entry()));
            let oldest = gone.min_by_key(|h| h.posted_ns())?;
            if take_live(oldest.entry()) {
                return Some(oldest);
            }
        }
        None
    }

    /// Where is the end of the socket `cookie`? To be compared with the end itself (rule 1).
    pub fn find_held(&self, cookie: u64) -> Option<Place> {
        self.holding(cookie).map(Held::place)
    }

    /// The end at `place` is free from now on.
    pub fn release_held(&self, cookie: u64, place: Place) {
        if let Some(h) = self.holding(cookie)
            && h.place() == place
            && h.state
                .compare_exchange(LIVE, BUSY, AcqRel, Relaxed)
                .is_ok()
        {
            h.cookie.store(0, Relaxed);
            h.state.store(FREE, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_found_by_its_cookie_until_it_is_released() {
        let dir = std::env::temp_dir().join(format!("sgm-held-{:016x}", crate::os::random()));
        let node = Node::open(&dir).unwrap();
        let place = |index| Place {
            port: node.me(),
            index,
        };
        // Many more than a window holds, but of live posters: the full ones say so.
        let held = |cookie: &u64| node.hold(*cookie, place(*cookie as u32)).is_ok();
        let cookies: Vec<u64> = (1..2000).filter(held).collect();
        assert!(cookies.len() > 1500, "{} of 1999", cookies.len());
        for c in &cookies {
            assert_eq!(node.find_held(*c), Some(place(*c as u32)));
        }
        // Posted again elsewhere, it is released only from there.
        let c = cookies[0];
        node.hold(c, place(77)).unwrap();
        node.release_held(c, place(c as u32));
        assert_eq!(node.find_held(c), Some(place(77)));
        node.release_held(c, place(77));
        assert_eq!(node.find_held(c), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn of_posters_that_are_gone_the_oldest_entry_goes_first() {
        let dir = std::env::temp_dir().join(format!("sgm-held-{:016x}", crate::os::random()));
        let node = Node::open(&dir).unwrap();
        let place = Place {
            port: node.me(),
            index: 0,
        };
        // One window full of entries, the first of which is posted last, and their poster gone.
        for (i, h) in node.window(1).iter().enumerate() {
            h.pid.store(node.me().pid, Relaxed);
            h.start.store(node.me().start + 1, Relaxed);
            h.cookie.store(100 + i as u64, Relaxed);
            h.posted_ns.store((PROBE - i) as u64, Relaxed);
            h.state.store(LIVE, Release);
        }
        node.hold(1, place).unwrap();
        let cookies: Vec<u64> = node
            .window(1)
            .iter()
            .map(|h| h.cookie.load(Relaxed))
            .collect();
        assert_eq!(cookies[PROBE - 1], 1, "{cookies:?}");
        assert_eq!(cookies[0], 100, "{cookies:?}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
