//! Round trips on a fixed beat: what a request costs when both ends sleep in between, in latency and in CPU time.

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::thread::{ClockId, Timespec, clock_nanosleep_absolute};

use super::super::role::{Outcome, Wait};
use super::super::stats::Histogram;
use super::roundtrip::{Caller, Channel};
use super::timing::{self, Meter};

pub fn client(port: u16, size: usize, warm: u64, per_s: u64, ms: u64) -> Result<Outcome> {
    let mut caller = Caller::new(Channel::new(super::connect(port)?, Wait::Blocking)?, size);
    timing::warm(warm, || caller.trip_checked_whole())?;

    let mut outcome = Outcome {
        connections: 1,
        ..Outcome::default()
    };
    on_beat(&mut outcome, per_s, ms, || caller.trip())?;
    caller.trip_checked_whole()?;
    outcome.sent_bytes = caller.sent_bytes();
    caller.close()?;
    Ok(outcome)
}

/// Makes `per_s` trips a second for `ms`, each timed, into `outcome`.
pub fn on_beat(
    outcome: &mut Outcome,
    per_s: u64,
    ms: u64,
    mut trip: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut histogram = Histogram::default();
    let mut total = Duration::ZERO;
    let requests = (per_s * ms / 1000).max(1);
    let step_ns = 1_000_000_000 / per_s as i64;
    let mut due = rustix::time::clock_gettime(ClockId::Monotonic);
    let meter = Meter::start();
    for _ in 0..requests {
        due = later(due, step_ns);
        while clock_nanosleep_absolute(ClockId::Monotonic, &due) == Err(rustix::io::Errno::INTR) {}
        let start = Instant::now();
        trip()?;
        let taken = start.elapsed();
        total += taken;
        histogram.add(taken.as_nanos() as u64);
    }
    meter.stop(outcome);
    outcome.messages = requests;
    outcome.mean_ns = total.as_nanos() as f64 / requests as f64;
    outcome.p50_ns = histogram.quantile(0.50);
    outcome.p99_ns = histogram.quantile(0.99);
    Ok(())
}

fn later(time: Timespec, by_ns: i64) -> Timespec {
    let ns = time.tv_nsec + by_ns;
    Timespec {
        tv_sec: time.tv_sec + ns / 1_000_000_000,
        tv_nsec: ns % 1_000_000_000,
    }
}
