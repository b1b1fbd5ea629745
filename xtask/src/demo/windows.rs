//! The second part: the programs of `examples/` under Wine. Plain is Wine's own Winsock; carried is `sgm wine`, and for the
//! Linux server `sgm run`. Each round is a fresh pair of processes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::place::{Place, Started};
use super::report::Report;
use super::servers::free_port;
use super::table::{self, Counted, Row};
use super::{Side, Steps};
use crate::proc::{run, target_dir};
use crate::windows;

/// More than this in one round is a hang: it takes a second or two.
const LIMIT: Duration = Duration::from_secs(60);
/// A fresh prefix takes some seconds.
const PREPARATION: Duration = Duration::from_secs(240);

/// Who serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    /// The same program.
    Windows,
    /// `echo.c`.
    Linux,
}

/// A pair of programs.
struct Case {
    name: &'static str,
    program: &'static str,
    connections: u64,
    /// Round trips in a round of each side: half a second or so.
    round_trips: [u64; 2],
    server: Server,
}

const fn case(name: &'static str, program: &'static str) -> Case {
    Case {
        name,
        program,
        connections: 1,
        round_trips: [2_000, 50_000],
        server: Server::Windows,
    }
}

const CASES: [Case; 5] = [
    case("Winsock 1.1, select", "echo11.exe"),
    Case {
        // Its server waits for each message through Wine's own events.
        round_trips: [2_000, 5_000],
        ..case("Winsock 2, events", "echo2.exe")
    },
    case("Winsock 1 and 2 in turns", "mixed.exe"),
    Case {
        connections: 100,
        ..case("100 connections, select", "many.exe")
    },
    Case {
        server: Server::Linux,
        ..case("Winsock 2 to a Linux server", "echo2.exe")
    },
];

/// Measures, prints the table, and fails if nothing was carried.
pub fn main(place: &Place, rounds: u32) -> Result<()> {
    let mut steps = Steps::new(1 + 2 * CASES.len() as u32 * rounds);
    let bench = steps.run("prepare Wine", || Bench::prepare(place))?;
    let mut rows = Vec::new();
    let mut counted = Vec::new();
    for case in &CASES {
        let (row, reports) = bench.measure(case, rounds, &mut steps)?;
        rows.push(row);
        for (report, end) in reports.into_iter().zip(["client", "server"]) {
            counted.push(Counted {
                name: format!("{}: {end}", case.name),
                report,
            });
        }
    }
    table::print(
        "plain Wine",
        "round trips of 64 bytes per second",
        &rows,
        &counted,
        rounds,
    );
    table::ensure_carried(&counted)
}

/// The Wine prefix; kept from one run to the next.
pub fn prefix() -> PathBuf {
    target_dir().join("demo/wine")
}

/// Where the programs run.
struct Bench<'a> {
    place: &'a Place,
    linux_server: PathBuf,
    prefix: PathBuf,
}

impl Bench<'_> {
    fn prepare(place: &Place) -> Result<Bench<'_>> {
        let source = place.path("echo.c");
        std::fs::write(&source, include_str!("echo.c"))?;
        let linux_server = place.path("echo");
        run(Command::new("cc")
            .arg("-O2")
            .arg("-o")
            .arg(&linux_server)
            .arg(&source))?;
        let bench = Bench {
            place,
            linux_server,
            prefix: prefix(),
        };
        // The first run prepares the prefix, which is no part of a measurement.
        let args = ["/c", "exit"].map(str::to_owned);
        bench
            .wine("cmd.exe", "cmd.exe".into(), &args, Side::Shared)?
            .finish(PREPARATION)?;
        Ok(bench)
    }

    /// The rounds of both sides, in turns. Gives the counters of client and server, too.
    fn measure(&self, case: &Case, rounds: u32, steps: &mut Steps) -> Result<(Row, [Report; 2])> {
        let mut rates = [vec![], vec![]];
        let mut reports = [Report::default(), Report::default()];
        for round in 1..=rounds {
            for side in Side::BOTH {
                let step = format!("{}, {}, round {round}", case.name, label(side));
                let round = || self.round(case, side);
                let (rate, counters) = match side {
                    Side::Tcp => steps.run_plain_wine(&step, round)?,
                    Side::Shared => steps.run(&step, round)?,
                };
                rates[side as usize].push(rate);
                for (sum, part) in reports.iter_mut().zip(counters) {
                    if let Some(part) = part {
                        sum.add(&part);
                    }
                }
            }
        }
        let name = case.name.to_owned();
        Ok((Row { name, rates }, reports))
    }

    /// One pair of processes; gives the client's round trips per second, and the counters of client and server.
    fn round(&self, case: &Case, side: Side) -> Result<(f64, [Option<Report>; 2])> {
        let port = free_port()?.to_string();
        let example = windows::release_dir().join(case.program);
        ensure!(
            example.is_file(),
            "there is no {}: run `cargo xtask build --windows`",
            example.display()
        );
        let mut server = match case.server {
            Server::Windows => {
                let connections = case.connections.to_string();
                let args = ["server".into(), port.clone(), connections];
                self.wine(case.program, example.clone(), &args, side)?
            }
            Server::Linux => {
                let args = [port.clone()];
                self.place
                    .start_file("echo", &self.linux_server, &args, side)?
            }
        };
        server.wait_for_output("listening", LIMIT)?;
        let client = self.wine(case.program, example, &client_args(case, port, side), side)?;
        let (output, client) = client.finish(LIMIT)?;
        let (_, server) = server.finish(LIMIT)?;
        let rate = rate(&output).with_context(|| format!("the client printed:\n{output}"))?;
        Ok((rate, [client, server]))
    }

    fn wine(
        &self,
        program: &'static str,
        path: PathBuf,
        args: &[String],
        side: Side,
    ) -> Result<Started> {
        self.place
            .start_wine(program, &self.prefix, &path, args, side)
    }
}

fn label(side: Side) -> &'static str {
    match side {
        Side::Tcp => "plain",
        Side::Shared => "carried",
    }
}

/// `client HOST PORT COUNT BYTES`; with many connections COUNT is theirs, and the round trips of each follow.
fn client_args(case: &Case, port: String, side: Side) -> Vec<String> {
    let round_trips = case.round_trips[side as usize];
    let mut args = vec!["client".to_owned(), "127.0.0.1".to_owned(), port];
    if case.connections == 1 {
        args.extend([round_trips.to_string(), "64".to_owned()]);
    } else {
        let each = round_trips / case.connections;
        args.extend([case.connections, 64, each].map(|number| number.to_string()));
    }
    args
}

/// From the line `12.3 us each`.
fn rate(output: &str) -> Result<f64> {
    let line = output
        .lines()
        .find_map(|line| line.trim().strip_suffix(" us each"));
    let us: f64 = line.context("no line `... us each`")?.parse()?;
    ensure!(us > 0.0, "a round trip of {us} us");
    Ok(1e6 / us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_from_the_line_that_says_so() {
        let output = "2000 round trips of 64 bytes, every byte right\r\n250.0 us each\r\n";
        assert_eq!(rate(output).unwrap(), 4000.0);
        assert!(rate("2000 round trips\n").is_err());
        assert!(rate("0.0 us each\n").is_err());
    }

    #[test]
    fn many_connections_share_the_round_trips() {
        let args = |case| client_args(case, "7".into(), Side::Tcp)[3..].join(" ");
        assert_eq!(args(&CASES[0]), "2000 64");
        assert_eq!(args(&CASES[3]), "100 64 20");
    }
}
