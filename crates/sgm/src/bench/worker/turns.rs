//! Many connections of one epoll server, all of them used, one at a time: what a message costs when it might have come from
//! any of them.

use anyhow::{Context, Result};

use super::super::role::{Outcome, Wait};
use super::crowd;
use super::paced;
use super::roundtrip::{Caller, Channel};
use super::timing::{self, Meter};

/// The connections after their first trips, in the order of events that `crowd` describes.
struct Callers {
    active: Caller,
    many: Vec<Caller>,
    next: usize,
    /// What the first trips sent.
    sent_bytes: u64,
}

impl Callers {
    fn make(port: u16, connections: usize, trips: u64) -> Result<(Self, f64)> {
        let (active, guess_ns) = crowd::active(port)?;
        let made = crowd::make_idle(port, connections, trips)?;
        let caller = |stream| {
            Ok(Caller::new(
                Channel::new(stream, Wait::Blocking)?,
                crowd::SIZE,
            ))
        };
        let callers = Self {
            active,
            many: made.into_iter().map(caller).collect::<Result<_>>()?,
            next: 0,
            sent_bytes: connections as u64 * trips * crowd::SIZE as u64,
        };
        Ok((callers, guess_ns))
    }

    /// One trip on a connection that nobody could foresee.
    fn any(&mut self) -> Result<()> {
        // The high bits of Knuth's MMIX generator.
        const FACTOR: usize = 6_364_136_223_846_793_005;
        const TERM: usize = 1_442_695_040_888_963_407;
        self.next = self.next.wrapping_mul(FACTOR).wrapping_add(TERM);
        let at = (self.next >> 33) % self.many.len();
        self.many[at].trip()
    }

    /// One trip on the next connection.
    fn each(&mut self) -> Result<()> {
        let at = self.next % self.many.len();
        self.next += 1;
        self.many[at].trip()
    }

    fn finish(mut self, outcome: &mut Outcome) -> Result<()> {
        let last = self.many.last_mut().context("no connection")?;
        last.trip_checked_whole()?;
        let callers = std::iter::once(&self.active).chain(&self.many);
        outcome.sent_bytes = self.sent_bytes + callers.map(Caller::sent_bytes).sum::<u64>();
        outcome.connections = self.many.len() as u64 + 1;
        self.active.close()
    }
}

pub fn client(port: u16, connections: usize, trips: u64, passes_ms: (u64, u64)) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let (mut callers, guess_ns) = Callers::make(port, connections, trips)?;
    let meter = Meter::start();
    timing::both_passes(&mut outcome, passes_ms, guess_ns, || callers.any())?;
    meter.stop(&mut outcome);
    callers.finish(&mut outcome)?;
    Ok(outcome)
}

/// Each connection makes one trip a second.
pub fn beat(port: u16, connections: usize, trips: u64, ms: u64) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let (mut callers, _) = Callers::make(port, connections, trips)?;
    paced::on_beat(&mut outcome, connections as u64, ms, || callers.each())?;
    callers.finish(&mut outcome)?;
    Ok(outcome)
}
