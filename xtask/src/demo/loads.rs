//! The loads: redis-benchmark and wrk, how they are called and how their output is read.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Side;
use super::place::Place;
use super::report::Report;
use super::servers::Server;

/// More than this in one run is a hang: a round is sized to about two seconds.
const LIMIT: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    Redis { clients: u32 },
    Wrk { connections: u32 },
}

impl Load {
    /// For progress and tables.
    pub fn label(self) -> String {
        match self {
            Load::Redis { clients } => {
                format!("redis-benchmark, {clients} {}", plural(clients, "client"))
            }
            Load::Wrk { connections } => {
                format!("wrk, {connections} {}", plural(connections, "connection"))
            }
        }
    }

    /// What one run measures, in the order of its rates.
    pub fn series(self) -> &'static [&'static str] {
        match self {
            Load::Redis { .. } => &["redis SET", "redis GET"],
            Load::Wrk { .. } => &["nginx, 1 KiB page"],
        }
    }

    /// How many connections share the load, with the word for them.
    pub fn width(self) -> String {
        match self {
            Load::Redis { clients } => format!("{clients} {}", plural(clients, "client")),
            Load::Wrk { connections } => {
                format!("{connections} {}", plural(connections, "connection"))
            }
        }
    }
}

fn plural(count: u32, word: &str) -> String {
    if count == 1 {
        word.to_owned()
    } else {
        format!("{word}s")
    }
}

/// How much work one run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    WarmUp,
    /// redis-benchmark counts requests (of each command), wrk seconds.
    Round {
        requests: u64,
    },
}

impl Size {
    /// The round for both sides alike: about a second for each series on the faster side, by the warm-ups' rates, and
    /// at most three on the slower one.
    pub fn after(warm_ups: &[Vec<f64>; 2]) -> Size {
        let [a, b] = warm_ups
            .each_ref()
            .map(|rates| rates.iter().copied().fold(f64::INFINITY, f64::min));
        let requests = f64::max(a, b).min(3.0 * f64::min(a, b));
        Size::Round {
            requests: (requests as u64).clamp(1_000, 5_000_000),
        }
    }
}

/// Runs the load once; gives requests per second of each series, and the client's counters if it ran under `sgm run`.
pub fn run(
    place: &Place,
    load: Load,
    server: &Server,
    side: Side,
    size: Size,
) -> Result<(Vec<f64>, Option<Report>)> {
    let (program, args) = command(load, server.port, size);
    let (output, report) = place.start(program, &args, side)?.finish(LIMIT)?;
    let rates = match load {
        Load::Redis { .. } => redis_rates(&output),
        Load::Wrk { .. } => wrk_rate(&output).map(|rate| vec![rate]),
    };
    Ok((
        rates.with_context(|| format!("{program} printed:\n{output}"))?,
        report,
    ))
}

fn command(load: Load, port: u16, size: Size) -> (&'static str, Vec<String>) {
    match load {
        Load::Redis { clients } => {
            let requests = match size {
                Size::WarmUp => 10_000 * u64::from(clients.min(5)),
                Size::Round { requests } => requests,
            };
            let args =
                format!("-h 127.0.0.1 -p {port} -t set,get -c {clients} -n {requests} --csv");
            ("redis-benchmark", words(&args))
        }
        Load::Wrk { connections } => {
            let seconds = if size == Size::WarmUp { 1 } else { 2 };
            let args =
                format!("-t 1 -c {connections} -d {seconds}s http://127.0.0.1:{port}/index.html");
            ("wrk", words(&args))
        }
    }
}

fn words(args: &str) -> Vec<String> {
    args.split(' ').map(str::to_owned).collect()
}

/// SET and GET from `--csv` lines: `"SET","81433.22",...`. Older versions print no heading and no more columns.
fn redis_rates(output: &str) -> Result<Vec<f64>> {
    ["SET", "GET"]
        .iter()
        .map(|command| {
            let fields = |line: &str| {
                line.split(',')
                    .map(|field| field.trim_matches('"').to_owned())
                    .collect::<Vec<_>>()
            };
            let row = output
                .lines()
                .map(fields)
                .find(|row| row.first().is_some_and(|name| name == command));
            let rate = row
                .as_ref()
                .and_then(|row| row.get(1))
                .with_context(|| format!("no line for {command}"))?;
            positive(rate)
        })
        .collect()
}

/// The line `Requests/sec:  12345.67`; lines about errors make the figure worthless.
fn wrk_rate(output: &str) -> Result<f64> {
    let after = |name: &str| {
        output
            .lines()
            .find_map(|line| line.trim().strip_prefix(name))
            .map(str::trim)
    };
    for complaint in ["Socket errors:", "Non-2xx or 3xx responses:"] {
        if let Some(what) = after(complaint) {
            bail!("{complaint} {what}");
        }
    }
    positive(after("Requests/sec:").context("no line `Requests/sec:`")?)
}

fn positive(number: &str) -> Result<f64> {
    let rate: f64 = number
        .parse()
        .with_context(|| format!("`{number}` is no number"))?;
    ensure!(rate.is_finite() && rate > 0.0, "a rate of {number}");
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_output_of_new_and_old_versions() {
        let new = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"100.50\",\"0.08\"\n\"GET\",\"200.00\",\"0.08\"\n";
        assert_eq!(redis_rates(new).unwrap(), [100.5, 200.0]);
        assert_eq!(
            redis_rates("\"SET\",\"1.00\"\n\"GET\",\"2.00\"\n").unwrap(),
            [1.0, 2.0]
        );
        assert!(redis_rates("\"SET\",\"1.00\"\n").is_err());
        assert!(redis_rates("\"SET\",\"0.00\"\n\"GET\",\"inf\"\n").is_err());
    }

    #[test]
    fn wrk_output_and_its_complaints() {
        let good = "Running 2s test @ http://127.0.0.1:1/\n  100 requests in 2.00s\nRequests/sec:  12345.67\nTransfer/sec: 1MB\n";
        assert_eq!(wrk_rate(good).unwrap(), 12345.67);
        assert!(wrk_rate("Requests/sec: 0.00\n").is_err());
        let errors = format!("  Socket errors: connect 0, read 3, write 0, timeout 0\n{good}");
        assert!(
            wrk_rate(&errors)
                .unwrap_err()
                .to_string()
                .contains("read 3")
        );
    }

    #[test]
    fn a_round_fills_a_second_of_the_faster_side_within_bounds() {
        let after = |a: f64, b: f64| Size::after(&[vec![a + 1.0, a], vec![b, b + 1.0]]);
        assert_eq!(after(20_000.0, 50_000.0), Size::Round { requests: 50_000 });
        assert_eq!(after(90_000.0, 20_000.0), Size::Round { requests: 60_000 });
        assert_eq!(after(3.0, 3.0), Size::Round { requests: 1_000 });
        assert_eq!(
            after(1e12, 1e12),
            Size::Round {
                requests: 5_000_000
            }
        );
    }
}
