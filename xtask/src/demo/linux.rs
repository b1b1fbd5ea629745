//! The first part: redis and nginx under their own load generators.

use anyhow::Result;

use super::loads::{self, Load, Size};
use super::place::Place;
use super::report::Report;
use super::servers::{Server, ServerKind};
use super::table::{self, Counted, Row};
use super::{Side, Steps};

/// What all rounds of one load gave.
struct Outcome {
    load: Load,
    /// For each series of the load (redis has SET and GET), the rates of every round, by side.
    rates: Vec<[Vec<f64>; 2]>,
    /// The client's counters, summed over the measured rounds under `sgm run`.
    client: Report,
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

/// Measures, prints the table, and fails if nothing was carried.
pub fn main(place: &Place, rounds: u32) -> Result<()> {
    let mut steps = Steps::new(step_count(rounds));
    let mut rows = Vec::new();
    let mut clients = Vec::new();
    let mut servers = Vec::new();
    for (kind, loads) in LOADS {
        let (outcomes, report) = measure_server(place, kind, &loads, rounds, &mut steps)?;
        for outcome in outcomes {
            let width = outcome.load.width();
            let series = outcome.load.series().iter().zip(outcome.rates);
            rows.extend(series.map(|(series, rates)| Row {
                name: format!("{series}, {width}"),
                rates,
            }));
            clients.push(Counted {
                name: outcome.load.label(),
                report: outcome.client,
            });
        }
        servers.push(Counted {
            name: kind.label().to_owned(),
            report,
        });
    }
    let counted: Vec<Counted> = clients.into_iter().chain(servers).collect();
    table::print(
        Side::Tcp.label(),
        "requests per second",
        &rows,
        &counted,
        rounds,
    );
    table::ensure_carried(&counted)
}

/// Each server is started and stopped; each load has a warm-up and the rounds, of both sides.
fn step_count(rounds: u32) -> u32 {
    let loads: u32 = LOADS.iter().map(|(_, loads)| loads.len() as u32).sum();
    2 * LOADS.len() as u32 + loads * 2 * (1 + rounds)
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
