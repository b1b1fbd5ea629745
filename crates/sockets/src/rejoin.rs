//! An end that other processes hold, or held: what this one needs to be one more holder, and what the last one leaves.

use gm::end::flag;
use gm::held::Place;
use gm::segment::Side;
use gm::{Node, Reason, Role, Segment, State};
use ring::Key;
use ring::sync::Ordering::Relaxed;

use crate::conn::Offer;
use crate::{Conn, Kernel};

impl Conn {
    fn side(&self) -> Side {
        match self.end.role() {
            Role::Server => Side::Server,
            _ => Side::Client,
        }
    }

    /// The connection's name, as the end noted it when it was promoted.
    fn noted_key(&self) -> Key {
        let w: [u64; 5] = std::array::from_fn(|i| self.end.address[i].load(Relaxed));
        let address =
            |low: u64, high: u64| ((u128::from(high) << 64) | u128::from(low)).to_le_bytes();
        let local = (address(w[0], w[1]), w[4] as u16);
        let peer = (address(w[2], w[3]), (w[4] >> 16) as u16);
        let (client, server) = match self.side() {
            Side::Client => (local, peer),
            Side::Server => (peer, local),
        };
        Key {
            client_addr: client.0,
            server_addr: server.0,
            client_port: client.1,
            server_port: server.1,
            netns: (w[4] >> 32) as u32,
        }
    }

    /// Before the first call on an end that this process has just come to hold: opens what the others have open. False: it is
    /// engaged, and can't be used.
    pub fn rejoin(&self, node: &Node, k: &impl Kernel) -> bool {
        self.find_again(node, k) && self.is_sound()
    }

    /// The second half of [`Conn::rejoin`]. False: what was found is no segment of this connection.
    pub fn is_sound(&self) -> bool {
        let sound = |s: &Segment| s.check(&self.noted_key()).is_ok();
        let sound = self.segment().is_none_or(sound);
        if !sound {
            self.corrupt();
        }
        sound
    }

    /// The first half of [`Conn::rejoin`], which needs the node, and looks at nothing.
    pub fn find_again(&self, node: &Node, k: &impl Kernel) -> bool {
        let end = self.end;
        if !end.is_promoted() || self.segment().is_some() {
            return true;
        }
        let id = end.segment.load(Relaxed);
        let key = self.noted_key();
        let segment = match Segment::find(node.dir(), id, self.side()) {
            Ok(segment) => segment,
            Err(e) if e.is_missing() && end.state() == State::Claimed => {
                // It has no name any more: the client took its offer back, and nothing was ever in the ring.
                end.keep_tcp(Reason::Withdrawn);
                end.set_state(State::Plain);
                return false;
            }
            Err(_) => return false,
        };
        if end.state() == State::Offered
            && let Some((entry, at)) = node.find_offer(&key)
            && at == id
        {
            let posted_us = k.now_us();
            let _ = self.offer.set(Offer {
                entry,
                id,
                posted_us,
            });
        }
        self.segment.set(segment).is_ok()
    }

    /// Is nobody left who holds the peer's end? For who can't be told by the kernel.
    pub fn peer_is_over(&self, node: &Node) -> bool {
        let id = self.end.segment.load(Relaxed);
        self.segment()
            .is_some_and(|s| s.peer_is_over(node.dir(), id))
    }

    /// Where the peer's end is, as far as it says.
    pub fn peer_place(&self) -> Option<Place> {
        self.segment()?.peer()
    }

    /// After the last holder's close: the segment's name goes, if the peer's end is over too.
    pub fn release(&self, node: &Node) {
        let id = self.end.segment.load(Relaxed);
        if id != 0
            && let Some(segment) = self.segment()
        {
            let bereaved = self.end.has(flag::KERNEL_EOF | flag::KERNEL_DEAD);
            segment.end_side(node.dir(), id, self.side(), bereaved);
        }
        let cookie = self.end.cookie.load(Relaxed);
        if cookie != 0 {
            node.release_held(cookie, self.place());
        }
    }
}
