//! Promotion: the steps that take a connection from plain TCP to the ring. Each is made by a thread that is alone on
//! this end ([`crate::Gate`]), with signals blocked, so the stream's positions stand still.

use gm::end::flag;
use gm::segment::Side;
use gm::{End, Node, Reason, Role, Segment, State};
use ring::sync::Ordering::{Acquire, Relaxed};
use ring::{Decision, Key};

use crate::conn::{Offer, Server};
use crate::{
    Conn, Kernel, OFFER_PATIENCE_CALLS, OFFER_PATIENCE_US, PAID_AFTER_MESSAGES, PROMOTE_AFTER,
    PROMOTE_BYTES, RING_BYTES,
};

impl Conn {
    /// Is a step due? Called at the start of every call while the connection is plain, so a few loads at most.
    #[inline]
    pub fn wants_step(&self, node: &Node, network: impl Fn() -> Option<u32>) -> bool {
        let end = self.end;
        if end.has(flag::KEEP_TCP) {
            return false;
        }
        let promote_after = PROMOTE_AFTER.load(Relaxed);
        match end.state() {
            State::Plain => match end.role() {
                Role::Client => {
                    let thrift = self.thrift.load(Relaxed);
                    let moved = end.tcp_tx.load(Relaxed) + end.tcp_rx.load(Relaxed);
                    let busy = u64::from(end.plain_calls.load(Relaxed))
                        >= u64::from(promote_after) << thrift
                        || moved >= PROMOTE_BYTES << thrift;
                    busy && self.has_a_server(node, network)
                }
                // An offer may be older than our accept: look once more when the connection has proved busy.
                Role::Server => {
                    node.offers_generation() != end.seen_generation.load(Relaxed)
                        || end.plain_calls.load(Relaxed) == promote_after
                }
                _ => false,
            },
            State::Offered => {
                let decided = |s: &Segment| s.header().decision() != Ok(Decision::Offered);
                self.segment().is_none_or(decided)
                    || end.plain_calls.load(Relaxed) >= promote_after + OFFER_PATIENCE_CALLS
            }
            _ => false,
        }
    }

    /// Client: it is about to connect to `port` at `address`. Looks the listener up while that is certainly there; it may be
    /// gone when promotion is due.
    pub fn connecting(
        &self,
        node: &Node,
        network: impl Fn() -> Option<u32>,
        address: [u8; 16],
        port: u16,
    ) {
        let address = where_it_leads(address);
        let listener = node.listener(&address, port, network);
        if let Some(listener) = listener {
            self.end.set(flag::LISTENED);
            self.be_thrifty(node, listener);
        }
        let server = Server {
            address,
            port,
            listener,
        };
        let _ = self.server.set(server);
    }

    fn be_thrifty(&self, node: &Node, listener: gm::node::Entry) {
        let thrift = node.thrift(listener);
        // With 0 calls asked for, twice as many are none.
        if thrift > 0 && PROMOTE_AFTER.load(Relaxed) > 0 {
            self.thrift.store(thrift, Relaxed);
            self.end.reason.store(Reason::HeldBack as u32, Relaxed);
        }
    }

    /// Client: is somebody of the node known to listen at the peer's address? Asked before anything is done for a step, since
    /// servers without Sockets-GM are the rule in many places.
    #[cold]
    fn has_a_server(&self, node: &Node, network: impl Fn() -> Option<u32>) -> bool {
        let Some(server) = self.server.get() else {
            return true;
        };
        let known = self.end.has(flag::LISTENED) || !is_loopback(&server.address);
        let listener = || node.listener(&server.address, server.port, network);
        if known || listener().is_some() {
            return true;
        }
        self.end.keep_tcp(Reason::PeerNotOurs);
        false
    }

    /// Client: what it offered has come to its end.
    pub(crate) fn note_offer(&self, node: &Node, paid: bool) {
        if let Some(listener) = self.server.get().and_then(|s| s.listener) {
            node.note_offer(listener, paid);
        }
    }

    /// A carried connection closes: did it pay to promote it?
    pub(crate) fn note_use(&self, node: &Node) {
        let end = self.end;
        let messages = end.tx_messages.load(Relaxed) + end.rx_messages.load(Relaxed);
        let bytes = end.tx_bytes.load(Relaxed) + end.rx_bytes.load(Relaxed);
        self.note_offer(
            node,
            messages >= PAID_AFTER_MESSAGES || bytes >= PROMOTE_BYTES,
        );
    }

    /// Makes the step that is due. True: the connection is engaged now. The caller is alone on this end.
    pub fn step(&self, node: &Node, k: &impl Kernel) -> bool {
        match (self.end.state(), self.end.role()) {
            (State::Plain, Role::Client) => self.post_offer(node, k),
            (State::Plain, Role::Server) => self.claim_offer(node, k),
            (State::Offered, _) => self.conclude_offer(node, k),
            _ => {}
        }
        self.is_engaged()
    }

    /// The connection's name, from this end's addresses.
    pub(crate) fn key(&self, k: &impl Kernel) -> Option<Key> {
        let s = k.stream()?;
        let netns = k.network()?;
        let mine = Key {
            client_addr: s.local.0,
            server_addr: s.peer.0,
            client_port: s.local.1,
            server_port: s.peer.1,
            netns,
        };
        for (slot, w) in self.end.address.iter().zip(mine.words()) {
            slot.store(w, Relaxed);
        }
        Some(match self.end.role() {
            Role::Server => Key {
                client_addr: s.peer.0,
                server_addr: s.local.0,
                client_port: s.peer.1,
                server_port: s.local.1,
                netns,
            },
            _ => mine,
        })
    }

    /// Did all bytes go through calls that we saw? The kernel counts for itself. `None`: can't be told now.
    fn positions_agree(&self, k: &impl Kernel) -> Option<bool> {
        let (sent, read) = k.positions()?;
        let (tx, rx) = (self.end.tcp_tx.load(Relaxed), self.end.tcp_rx.load(Relaxed));
        // The peer's FIN counts as a byte: a connection that is about to end is not worth a step.
        if read == rx + 1 {
            return None;
        }
        Some(sent == tx && read == rx)
    }

    /// Not now; the client looks again after some more calls.
    fn try_later(&self) {
        self.end.plain_calls.store(0, Relaxed);
    }

    fn post_offer(&self, node: &Node, k: &impl Kernel) {
        let end = self.end;
        if end.refs.load(Acquire) != 1 {
            end.reason.store(Reason::Shared as u32, Relaxed);
            return self.try_later();
        }
        let Some(key) = self.key(k) else {
            return end.keep_tcp(Reason::Unsupported);
        };
        if !same_host(&key) {
            return end.keep_tcp(Reason::PeerNotLocal);
        }
        let listener = || node.listener(&key.server_addr, key.server_port, || Some(key.netns));
        if !end.has(flag::LISTENED) && listener().is_none() {
            return end.keep_tcp(Reason::PeerNotOurs);
        }
        match self.positions_agree(k) {
            Some(true) => {}
            Some(false) => return end.keep_tcp(Reason::UnseenCalls),
            None => return self.try_later(),
        }
        let id = gm::os::random();
        let segment = match Segment::create(node.dir(), id, &key, RING_BYTES) {
            Ok(segment) => segment,
            Err(e) => return end.keep_tcp(e.reason()),
        };
        segment.own(self.place());
        self.note_buffers(&segment, k);
        match node.offer(&key, id) {
            Ok(entry) => {
                let _ = self.segment.set(segment);
                let _ = self.offer.set(Offer {
                    entry,
                    id,
                    posted_us: k.now_us(),
                });
                end.reason.store(Reason::Offered as u32, Relaxed);
                end.segment.store(id, Relaxed);
                end.set_state(State::Offered);
            }
            Err(_) => {
                Segment::unlink(node.dir(), id);
                end.keep_tcp(Reason::TableFull);
            }
        }
    }

    fn claim_offer(&self, node: &Node, k: &impl Kernel) {
        let end = self.end;
        let generation = node.offers_generation();
        if end.refs.load(Acquire) != 1 {
            end.reason.store(Reason::Shared as u32, Relaxed);
            return;
        }
        end.seen_generation.store(generation, Relaxed);
        End::count32(&end.plain_calls);
        let Some(key) = self.key(k) else {
            return end.keep_tcp(Reason::Unsupported);
        };
        let Some((entry, id)) = node.find_offer(&key) else {
            // Before this end has done as much itself it was not to be expected.
            if end.plain_calls.load(Relaxed) > PROMOTE_AFTER.load(Relaxed) {
                end.reason.store(Reason::NotOffered as u32, Relaxed);
            }
            return;
        };
        match self.positions_agree(k) {
            Some(true) => {}
            Some(false) => return end.keep_tcp(Reason::UnseenCalls),
            // The next call looks again.
            None => {
                return end
                    .seen_generation
                    .store(generation.wrapping_sub(1), Relaxed);
            }
        }
        let segment = match Segment::open(node.dir(), id, &key, Side::Server) {
            Ok(segment) => segment,
            // The node's memory was opened before the program became another user, or went into another root; what is made
            // since is not for it.
            Err(e) if e.reason() == Reason::NoNode && !node.is_within_reach() => {
                return end.keep_tcp(Reason::NoNode);
            }
            Err(e) if e.reason() == Reason::Limit => {
                return end.reason.store(Reason::Limit as u32, Relaxed);
            }
            // It was withdrawn this moment.
            Err(_) => return,
        };
        self.note_buffers(&segment, k);
        let claimed = segment.header().claim();
        node.remove_offer(entry, id);
        if claimed {
            segment.own(self.place());
            let _ = self.segment.set(segment);
            end.segment.store(id, Relaxed);
            end.reason.store(Reason::None as u32, Relaxed);
            end.set_state(State::Claimed);
        }
    }

    /// Client: the offer was claimed, or has waited long enough.
    fn conclude_offer(&self, node: &Node, k: &impl Kernel) {
        let end = self.end;
        let Some(segment) = self.segment() else {
            return end.keep_tcp(Reason::NotClaimed);
        };
        let decision = segment.header().decision();
        let mut why = Reason::NotClaimed;
        // Since the offer others may have come to hold the socket, and be asleep in the kernel's own receive.
        let shared = end.refs.load(Acquire) != 1;
        if shared {
            why = Reason::Shared;
        }
        if decision == Ok(Decision::Claimed) && !shared {
            let _tx = self.lock(&self.end.tx_lock, k);
            let agree = self.positions_agree(k);
            if agree.is_none() {
                return;
            }
            if agree == Some(true) && segment.header().confirm() {
                segment.tx().switch_up(end.tcp_tx.load(Relaxed));
                end.tx_switches.store(1, ring::sync::Ordering::Release);
                end.reason.store(Reason::None as u32, Relaxed);
                end.set(flag::WAS_CARRIED);
                end.set_state(State::Carried);
                return;
            }
            why = match agree {
                Some(true) => Reason::Withdrawn,
                _ => Reason::UnseenCalls,
            };
        }
        if decision == Ok(Decision::Withdrawn) {
            why = Reason::Withdrawn;
        }
        let young = || self.offer.get().is_some_and(|o| is_young(o, k));
        if decision == Ok(Decision::Offered) && !shared && young() {
            return self.try_later();
        }
        self.withdraw(node);
        if !shared {
            // That this program forked meanwhile says nothing of the server.
            self.note_offer(node, false);
        }
        end.keep_tcp(why);
        end.set_state(State::Plain);
    }

    /// Takes an offer back; no harm if it was decided already.
    pub fn withdraw(&self, node: &Node) {
        if let (Some(segment), Some(offer)) = (self.segment(), self.offer.get()) {
            segment.header().withdraw();
            Segment::unlink(node.dir(), offer.id);
            node.remove_offer(offer.entry, offer.id);
        }
    }

    /// Server, engaged but not confirmed when last seen: has the client confirmed? Then this end's direction moves to
    /// the ring as well.
    pub(crate) fn see_confirmation(&self, k: &impl Kernel) {
        let end = self.end;
        if end.state() != State::Claimed {
            return;
        }
        let Some(segment) = self.segment() else {
            return;
        };
        match segment.header().decision() {
            Ok(Decision::Confirmed) => {
                let tx = self.lock(&self.end.tx_lock, k);
                // A handler that interrupted a send does not know how much of that is counted.
                if end.state() == State::Claimed && !tx.is_nested() {
                    let tx = segment.tx();
                    // Else its holder died just here, or has shut its sending, and the kernel's half with it.
                    if tx.switches() == 0 && !end.has(flag::WRITE_SHUT) {
                        tx.switch_up(end.tcp_tx.load(Relaxed));
                    }
                    let up = u32::from(tx.switches() != 0);
                    end.tx_switches.store(up, ring::sync::Ordering::Release);
                    end.set(flag::WAS_CARRIED);
                    end.set_state(State::Carried);
                }
            }
            Ok(Decision::Withdrawn) => {
                let tx = self.lock(&self.end.tx_lock, k);
                let rx = self.lock_rx(k);
                if !tx.is_nested() && !rx.is_nested() {
                    end.keep_tcp(Reason::Withdrawn);
                    end.set_state(State::Plain);
                }
            }
            _ => {}
        }
    }

    /// Bytes moved by an engaged connection while a direction is still on TCP.
    pub(crate) fn count_tcp(&self, tx: u64, rx: u64) {
        // Each under its own lock: a store to the other, even of what it was, would undo what its holder counts meanwhile.
        if tx > 0 {
            End::count(&self.end.tcp_tx, tx);
        }
        if rx > 0 {
            End::count(&self.end.tcp_rx, rx);
        }
    }
}

fn is_young(offer: &Offer, k: &impl Kernel) -> bool {
    k.now_us().saturating_sub(offer.posted_us) < OFFER_PATIENCE_US
}

/// Loopback, or from an address to itself: nothing else is this host for certain.
fn same_host(key: &Key) -> bool {
    key.client_addr == key.server_addr
        || (is_loopback(&key.client_addr) && is_loopback(&key.server_addr))
}

/// To connect to no address in particular means the loopback (ip(7), ipv6(7)).
fn where_it_leads(mut address: [u8; 16]) -> [u8; 16] {
    if gm::node::is_v4_mapped(&address) && address[12..] == [0; 4] {
        address[12..].copy_from_slice(&[127, 0, 0, 1]);
    } else if address == [0; 16] {
        address[15] = 1;
    }
    address
}

fn is_loopback(address: &[u8; 16]) -> bool {
    let v4 = gm::node::is_v4_mapped(address) && address[12] == 127;
    v4 || u128::from_be_bytes(*address) == 1
}
