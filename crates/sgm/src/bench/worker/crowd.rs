//! One epoll server with many connections: what the idle ones cost the active one, and what memory they hold.
//!
//! The order of events, which server and client both rely on: (1) the active connection is made and used; (2) the
//! server notes its memory before it accepts anything more; (3) the idle ones are made, and each exchanges a few
//! messages; (4) a connection that closes at once tells the server to look again; (5) round trips on the active
//! one; (6) it closes, and the server ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use anyhow::{Context, Result, bail, ensure};

use super::super::role::{Outcome, Wait};
use super::super::sys::{Epoll, NO_EVENT};
use super::content::{Checker, Pattern};
use super::roundtrip::{Caller, Channel};
use super::timing::{self, Meter};

pub const SIZE: usize = 64;
/// Round trips on the active connection before the others are made.
pub const ACTIVE_WARM: u64 = 1000;
const LISTENER: u64 = u64::MAX;
/// Connections set up at a time: well under any listen backlog.
const BATCH: usize = 64;

struct Peer {
    stream: TcpStream,
    message: [u8; SIZE],
    have: usize,
}

enum News {
    /// So many messages were echoed.
    Echoed(u64),
    Closed,
}

impl Peer {
    /// Level-triggered: one `recv` per event.
    fn on_readable(&mut self) -> Result<News> {
        match self.stream.read(&mut self.message[self.have..]) {
            Ok(0) if self.have == 0 => Ok(News::Closed),
            Ok(0) => bail!("a client closed within a message"),
            Ok(n) => {
                self.have += n;
                if self.have < SIZE {
                    return Ok(News::Echoed(0));
                }
                self.have = 0;
                self.stream.write_all(&self.message).context("send")?;
                Ok(News::Echoed(1))
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(News::Echoed(0)),
            Err(e) => Err(e).context("recv"),
        }
    }
}

struct Server<'a> {
    listener: &'a TcpListener,
    epoll: Epoll,
    peers: Vec<Option<Peer>>,
    pss_before: i64,
}

impl Server<'_> {
    fn accept_all(&mut self) -> Result<()> {
        loop {
            // Step 2; the queue may already hold the first idle one.
            if self.peers.len() == 1 {
                self.pss_before = pss_bytes()?;
            }
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e).context("accept"),
            };
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            self.epoll.add(&stream, self.peers.len() as u64)?;
            self.peers.push(Some(Peer {
                stream,
                message: [0; SIZE],
                have: 0,
            }));
        }
    }
}

/// `idle` connections of `trips` round trips each are expected; from the last of them on, CPU time is counted.
pub fn server(listener: &TcpListener, idle: usize, trips: u64) -> Result<Outcome> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new()?;
    epoll.add(listener, LISTENER)?;
    let mut server = Server {
        listener,
        epoll,
        peers: Vec::with_capacity(idle + 2),
        pss_before: 0,
    };
    let mut outcome = Outcome::default();
    let mut meter = Meter::start();
    let settled = ACTIVE_WARM + idle as u64 * trips;
    let mut echoed = 0;
    let mut events = vec![NO_EVENT; 256];
    loop {
        let n = server.epoll.wait(&mut events, None)?;
        for event in &events[..n] {
            let token = event.u64;
            if token == LISTENER {
                server.accept_all()?;
                continue;
            }
            let slot = server
                .peers
                .get_mut(token as usize)
                .context("an event for no connection")?;
            let peer = slot.as_mut().context("an event for a closed connection")?;
            match peer.on_readable()? {
                News::Echoed(count) => {
                    echoed += count;
                    if count > 0 && echoed == settled {
                        meter = Meter::start();
                    }
                }
                News::Closed if token == 0 => {
                    meter.stop(&mut outcome);
                    outcome.connections = server.peers.len() as u64;
                    outcome.messages = echoed.saturating_sub(settled);
                    outcome.sent_bytes = echoed * SIZE as u64;
                    return Ok(outcome);
                }
                News::Closed => {
                    outcome.pss_growth_bytes = pss_bytes()? - server.pss_before;
                    *slot = None;
                }
            }
        }
    }
}

/// Makes `idle` connections and exchanges `trips` messages on each.
pub fn make_idle(port: u16, idle: usize, trips: u64) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(idle);
    let mut answer = [0; SIZE];
    while streams.len() < idle {
        let first = streams.len();
        for _ in first..idle.min(first + BATCH) {
            streams.push(super::connect(port)?);
        }
        let patterns: Vec<Pattern> = (first..streams.len())
            .map(|i| Pattern::new(SIZE, i as u64 + 1))
            .collect();
        let mut checkers: Vec<Checker> = patterns.iter().copied().map(Checker::new).collect();
        for trip in 0..trips {
            for (stream, pattern) in streams[first..].iter_mut().zip(&patterns) {
                let mut message = pattern.message();
                pattern.stamp(&mut message, trip);
                stream
                    .write_all(&message)
                    .context("send on an idle connection")?;
            }
            for (stream, checker) in streams[first..].iter_mut().zip(&mut checkers) {
                stream
                    .read_exact(&mut answer)
                    .context("recv on an idle connection")?;
                checker.whole(&answer)?;
            }
        }
    }
    Ok(streams)
}

/// The active connection, used as long as step 1 says.
pub fn active(port: u16) -> Result<(Caller, f64)> {
    let mut caller = Caller::new(Channel::new(super::connect(port)?, Wait::Blocking)?, SIZE);
    let guess_ns = timing::warm(ACTIVE_WARM, || caller.trip_checked_whole())?;
    Ok((caller, guess_ns))
}

pub fn client(port: u16, idle: usize, trips: u64, passes_ms: (u64, u64)) -> Result<Outcome> {
    let mut outcome = Outcome {
        connections: idle as u64 + 1,
        ..Outcome::default()
    };
    let (mut caller, guess_ns) = active(port)?;
    let before = pss_bytes()?;
    let held = make_idle(port, idle, trips)?;
    outcome.pss_growth_bytes = pss_bytes()? - before;

    let mut signal = super::connect(port)?;
    signal.shutdown(Shutdown::Write)?;
    ensure!(
        signal.read(&mut [0])? == 0,
        "an answer on a connection without a question"
    );

    let meter = Meter::start();
    timing::both_passes(&mut outcome, passes_ms, guess_ns, || caller.trip())?;
    meter.stop(&mut outcome);
    outcome.sent_bytes = caller.sent_bytes() + idle as u64 * trips * SIZE as u64;
    caller.close()?;
    drop(held);
    Ok(outcome)
}

/// The proportional set size of this process: private pages, and its share of those that it has in common with others.
fn pss_bytes() -> Result<i64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").context("smaps_rollup")?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("Pss:"))
        .context("no Pss in smaps_rollup")?;
    let kib: i64 = line
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .context("Pss")?;
    Ok(kib << 10)
}
