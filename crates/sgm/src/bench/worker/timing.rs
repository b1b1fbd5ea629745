//! Clocks, CPU time, and the two passes of a latency measurement.

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

use super::super::stats::Histogram;
use super::Outcome;

/// Wall and CPU time since a moment. The process's CPU clock is user plus system time of all its threads, as `getrusage`
/// gives it, but not rounded to microseconds.
pub struct Meter {
    wall: Instant,
    cpu_ns: u64,
}

impl Meter {
    pub fn start() -> Self {
        Self {
            wall: Instant::now(),
            cpu_ns: cpu_ns(),
        }
    }

    pub fn stop(&self, outcome: &mut Outcome) {
        outcome.wall_ns = self.wall.elapsed().as_nanos() as u64;
        outcome.cpu_ns = cpu_ns() - self.cpu_ns;
    }
}

fn cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Repeats `trip` for `ms` and returns (repetitions, mean in ns). The clock is read once per batch of about half a
/// millisecond, judged by `guess_ns`, so that reading it does not show in the figure.
pub fn mean(ms: u64, guess_ns: f64, mut trip: impl FnMut() -> Result<()>) -> Result<(u64, f64)> {
    let batch = (500_000.0 / guess_ns.max(1.0)).max(1.0) as u64;
    let limit = Duration::from_millis(ms);
    let start = Instant::now();
    let mut count = 0;
    loop {
        for _ in 0..batch {
            trip()?;
        }
        count += batch;
        let elapsed = start.elapsed();
        if elapsed >= limit {
            return Ok((count, elapsed.as_nanos() as f64 / count as f64));
        }
    }
}

/// Repeats `trip` for `ms`, each repetition timed by itself (which adds one clock reading, some 25 ns, to each).
pub fn each(ms: u64, mut trip: impl FnMut() -> Result<()>) -> Result<Histogram> {
    let limit = Duration::from_millis(ms);
    let start = Instant::now();
    let mut histogram = Histogram::default();
    let mut last = start;
    while last - start < limit {
        trip()?;
        let now = Instant::now();
        histogram.add((now - last).as_nanos() as u64);
        last = now;
    }
    Ok(histogram)
}

/// Runs `trip` `count` times and returns the mean in ns: the warm-up, and the guess for `mean`.
pub fn warm(count: u64, mut trip: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..count {
        trip()?;
    }
    Ok(start.elapsed().as_nanos() as f64 / count.max(1) as f64)
}

/// Both passes over `trip`, into `outcome`.
pub fn both_passes(
    outcome: &mut Outcome,
    (mean_ms, timed_ms): (u64, u64),
    guess_ns: f64,
    mut trip: impl FnMut() -> Result<()>,
) -> Result<()> {
    let (count, mean_ns) = mean(mean_ms, guess_ns, &mut trip)?;
    let histogram = each(timed_ms, &mut trip)?;
    outcome.messages = count + histogram.count();
    outcome.mean_ns = mean_ns;
    outcome.p50_ns = histogram.quantile(0.50);
    outcome.p99_ns = histogram.quantile(0.99);
    Ok(())
}
