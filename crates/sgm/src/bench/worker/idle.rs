//! Connections that have been used and now are not: both ends sit in `epoll_wait`, and should cost no CPU time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::super::role::Outcome;
use super::super::sys::{Epoll, NO_EVENT};
use super::crowd;
use super::timing::Meter;

pub fn client(port: u16, idle: usize, trips: u64, ms: u64) -> Result<Outcome> {
    let (caller, _) = crowd::active(port)?;
    let held = crowd::make_idle(port, idle, trips)?;
    let epoll = Epoll::new()?;
    for (stream, token) in held.iter().zip(0..) {
        epoll.add(stream, token)?;
    }

    let mut outcome = Outcome {
        connections: idle as u64 + 1,
        ..Outcome::default()
    };
    let end = Instant::now() + Duration::from_millis(ms);
    let meter = Meter::start();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        // Rounded up to whole milliseconds, or the last one would be a busy loop.
        let ready = epoll.wait(&mut [NO_EVENT; 64], Some(left + Duration::from_millis(1)))?;
        ensure!(ready == 0, "{ready} events on idle connections");
    }
    meter.stop(&mut outcome);
    outcome.sent_bytes = caller.sent_bytes() + idle as u64 * trips * crowd::SIZE as u64;
    caller.close()?;
    Ok(outcome)
}
