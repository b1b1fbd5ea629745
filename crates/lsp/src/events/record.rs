//! What is recorded of a socket's network events, by the rules of Wine's server, which programs there are used to.
//!
//! 1. An event that is found is posted once: it is `pending` until it is told of, and `posted` until its re-enabling call (a
//!    receive for FD_READ, a send that would block for FD_WRITE).
//! 2. WSAEventSelect changes who is told, and neither of the two; WSAAsyncSelect forgets both, so that it tells of all that
//!    holds. By Winsock's documentation both do.
//! 3. While FD_READ is posted, nobody looks for the end: it comes after the bytes.

use std::sync::Arc;

use gm::end::flag;
use ring::sync::Ordering::Relaxed;
use sockets::{Conn, Kernel, Ready};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET, WSANETWORKEVENTS};

use super::waits::Waits;
use super::{FD_CLOSE, FD_READ, FD_WRITE};

const FD_CLOSE_BIT: usize = ws::FD_CLOSE_BIT as usize;

/// Where the events of a socket go.
#[derive(Clone, Default)]
pub struct Events {
    /// The program's event object, as a number; 0: none.
    pub event: usize,
    /// How those find this socket who wait for the object.
    pub waits: Option<Arc<Waits>>,
    pub mask: i32,
    pub window: Option<Window>,
    pub pending: i32,
    pub posted: i32,
    close_code: i32,
    /// Bytes that had been received when FD_READ was last posted.
    received: u64,
}

/// WSAAsyncSelect's target.
#[derive(Clone, Copy)]
pub struct Window {
    pub window: usize,
    pub message: u32,
    /// The handle that the program selected: what its messages name.
    pub carrier: SOCKET,
}

fn received(conn: &Conn) -> u64 {
    conn.end().rx_bytes.load(Relaxed)
}

impl Events {
    pub fn selected(&self) -> bool {
        self.mask != 0
    }

    /// Is there anything to record, or to forget when bytes move?
    pub fn follows(&self) -> bool {
        self.mask != 0 || self.posted != 0
    }

    pub fn wants_room(&self) -> bool {
        self.mask & !self.posted & FD_WRITE != 0
    }

    /// Is there something to be told of?
    pub fn has_news(&self) -> bool {
        self.pending & self.mask != 0
    }

    /// Records what is there and enabled. True: something new that the program asked for.
    pub fn look(&mut self, conn: &Conn, k: &impl Kernel, kernel: Option<Ready>) -> bool {
        let open = self.mask & !self.posted;
        let ready = conn.ready(k, kernel);
        let unread = conn.readable_bytes(k) > 0;
        let over = ready.intersects(Ready::RDHUP | Ready::HUP) && !conn.end().has(flag::READ_SHUT);
        let reads = open & FD_READ != 0 || open & FD_CLOSE != 0 && self.posted & FD_READ == 0;
        let mut found = 0;
        if unread && reads {
            found |= FD_READ;
            self.received = received(conn);
        }
        let writable = ready.intersects(Ready::OUT) && !conn.end().has(flag::WRITE_SHUT);
        if writable && open & FD_WRITE != 0 {
            found |= FD_WRITE;
        }
        if over && !unread && (reads || open & FD_CLOSE != 0) && self.posted & FD_CLOSE == 0 {
            found |= FD_CLOSE;
            // Wine's server has taken the error off the socket by then, and tells of a plain end.
            if ready.intersects(Ready::ERR) && !gm::os::raw::is_wine() {
                self.close_code = ws::WSAECONNRESET;
            }
        }
        self.pending |= found;
        self.posted |= found;
        found & self.mask != 0
    }

    /// The re-enabling call of `event` was made. Wine forgets the event as well, if nobody was told of it yet.
    pub fn enable(&mut self, event: i32) {
        self.posted &= !event;
        if gm::os::raw::is_wine() {
            self.pending &= !event;
        }
    }

    /// As [`Events::enable`] for FD_READ, if bytes were received since it was posted by a call that did not tell us.
    pub fn mind_received(&mut self, conn: &Conn) {
        if received(conn) != self.received {
            self.enable(FD_READ);
        }
    }

    /// The lower provider has told of these, of a connection that is not carried.
    pub fn told_below(&mut self, conn: Option<&Conn>, events: i32) {
        self.posted |= events;
        if let (Some(conn), true) = (conn, events & FD_READ != 0) {
            self.received = conn.end().tcp_rx.load(Relaxed);
        }
    }

    /// The connection is carried from now on, and `below` is what the lower provider had recorded and not told of.
    pub fn move_up(&mut self, conn: &Conn, below: i32) {
        // Bytes may have been received by calls that did not tell us.
        if self.received != conn.end().tcp_rx.load(Relaxed) {
            self.enable(FD_READ);
        }
        self.received = received(conn);
        // These two the ring tells.
        let below = below & !(FD_READ | FD_CLOSE);
        self.pending |= below;
        self.posted |= below;
    }

    pub fn forget(&mut self) {
        (self.pending, self.posted) = (0, 0);
    }

    /// What is to be told, with its codes; it is pending no more.
    pub fn take(&mut self) -> WSANETWORKEVENTS {
        let mut told = WSANETWORKEVENTS {
            lNetworkEvents: self.pending & self.mask,
            ..Default::default()
        };
        if told.lNetworkEvents & FD_CLOSE != 0 {
            told.iErrorCode[FD_CLOSE_BIT] = self.close_code;
        }
        self.pending = 0;
        told
    }
}
