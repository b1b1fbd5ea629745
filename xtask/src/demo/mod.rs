//! `demo`: the main job on real programs. Debian's redis and nginx, unmodified, are loaded by redis-benchmark and wrk,
//! once over plain TCP and once with both sides under `sgm run`; rounds alternate, so that a busy moment of the
//! machine meets both. The counters of `sgm run --report` must show that shared memory carried the bytes of the
//! second kind, or the demo fails: a ratio without that proof says nothing.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::build;
use crate::proc::{stop_on_signals, target_dir};
use crate::setup::{self, Purpose, Systems};

mod loads;
mod place;
mod report;
mod servers;
mod table;

use loads::{Load, Size};
use place::Place;
use report::Report;
use servers::{Server, ServerKind};

/// Command line of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Install missing packages without asking
    #[arg(long)]
    yes: bool,
    /// Use target/release as it is
    #[arg(long)]
    no_build: bool,
    /// Measured rounds of each side; the table shows their medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
}

/// How a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// As it is.
    Tcp,
    /// Under `sgm run`.
    Shared,
}

impl Side {
    const BOTH: [Side; 2] = [Side::Tcp, Side::Shared];

    fn label(self) -> &'static str {
        match self {
            Side::Tcp => "plain TCP",
            Side::Shared => "Sockets-GM",
        }
    }
}

/// What all rounds of one load gave.
pub struct Outcome {
    pub load: Load,
    /// For each series of the load (redis has SET and GET), the rates of every round, by side.
    pub rates: Vec<[Vec<f64>; 2]>,
    /// The client's counters, summed over the measured rounds under `sgm run`.
    pub client: Report,
}

/// The loads, each server's beside each other.
const LOADS: [(ServerKind, [Load; 2]); 2] = [
    (
        ServerKind::Redis,
        [Load::Redis { clients: 1 }, Load::Redis { clients: 50 }],
    ),
    (
        ServerKind::Nginx,
        [Load::Wrk { connections: 1 }, Load::Wrk { connections: 64 }],
    ),
];

/// Runs `cargo xtask demo`.
pub fn main(args: &Args) -> Result<()> {
    setup::ensure_ready(Purpose::Demo, Systems::Linux, args.yes)?;
    if !args.no_build {
        build::release()?;
    }
    let sgm = target_dir().join("release/sgm");
    for file in [&sgm, &target_dir().join("release/libsockets_gm.so")] {
        ensure!(
            file.is_file(),
            "there is no {}: run `cargo xtask build`",
            file.display()
        );
    }
    stop_on_signals()?;
    let place = Place::create(sgm)?;
    let mut steps = Steps::new(args.rounds);
    let mut outcomes = Vec::new();
    let mut servers = Vec::new();
    for (kind, loads) in LOADS {
        let (measured, counters) = measure_server(&place, kind, &loads, args.rounds, &mut steps)?;
        outcomes.extend(measured);
        servers.push((kind, counters));
    }
    table::print(&outcomes, &servers, args.rounds);
    table::ensure_carried(&outcomes, &servers)
}

/// Starts the server twice, once for each side, and runs all its loads; gives the outcomes, and the counters of the
/// server under `sgm run`.
fn measure_server(
    place: &Place,
    kind: ServerKind,
    loads: &[Load],
    rounds: u32,
    steps: &mut Steps,
) -> Result<(Vec<Outcome>, Report)> {
    let start = |side| Server::start(place, kind, side);
    let [tcp, shared] = steps.run(&format!("start {} for both sides", kind.label()), || {
        Ok([start(Side::Tcp)?, start(Side::Shared)?])
    })?;
    let mut outcomes = Vec::new();
    for &load in loads {
        outcomes.push(measure_load(place, load, [&tcp, &shared], rounds, steps)?);
    }
    let counters = steps.run(&format!("stop {}, read its counters", kind.label()), || {
        tcp.stop()?;
        shared.stop()
    })?;
    Ok((
        outcomes,
        counters.expect("the side under sgm run has a report"),
    ))
}

/// A warm-up of each side, which also says how much work fills a round, then the rounds.
fn measure_load(
    place: &Place,
    load: Load,
    servers: [&Server; 2],
    rounds: u32,
    steps: &mut Steps,
) -> Result<Outcome> {
    let mut warm_ups = [vec![], vec![]];
    for side in Side::BOTH {
        let step = format!("{}, {}, warm-up", load.label(), side.label());
        let server = servers[side as usize];
        warm_ups[side as usize] = steps.run(&step, || {
            Ok(loads::run(place, load, server, side, Size::WarmUp)?.0)
        })?;
    }
    let size = Size::after(&warm_ups);
    let mut outcome = Outcome {
        load,
        rates: load.series().iter().map(|_| [vec![], vec![]]).collect(),
        client: Report::default(),
    };
    for round in 1..=rounds {
        for side in Side::BOTH {
            let step = format!("{}, {}, round {round}", load.label(), side.label());
            let server = servers[side as usize];
            let (rates, counters) =
                steps.run(&step, || loads::run(place, load, server, side, size))?;
            for (series, rate) in outcome.rates.iter_mut().zip(rates) {
                series[side as usize].push(rate);
            }
            if let Some(counters) = counters {
                outcome.client.add(&counters);
            }
        }
    }
    Ok(outcome)
}

/// The progress lines.
struct Steps {
    done: u32,
    all: u32,
}

impl Steps {
    fn new(rounds: u32) -> Steps {
        let loads: u32 = LOADS.iter().map(|(_, loads)| loads.len() as u32).sum();
        Steps {
            done: 0,
            all: 2 * LOADS.len() as u32 + loads * 2 * (1 + rounds),
        }
    }

    fn run<T>(&mut self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.done += 1;
        print!("[{:>2}/{}] {what:<52}", self.done, self.all);
        std::io::stdout().flush()?;
        let start = Instant::now();
        let result = work();
        match &result {
            Ok(_) => println!(" {:>4.1} s", start.elapsed().as_secs_f64()),
            Err(_) => println!(" failed"),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_count_is_what_the_plan_takes() {
        // Two servers started and stopped; four loads, each with a warm-up and three rounds of both sides.
        assert_eq!(Steps::new(3).all, 4 + 4 * 8);
    }

    #[test]
    fn a_side_indexes_its_own_place() {
        assert_eq!(Side::BOTH.map(|side| side as usize), [0, 1]);
    }
}
