//! The second part: a Windows program under Wine. Plain is Wine's own Winsock; carried is `sgm wine`, and for the Linux
//! server `sgm run`. Each round is a fresh pair of processes that talk over one connection.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::place::{Place, Started};
use super::report::Report;
use super::servers::free_port;
use super::table::{self, Counted, Row};
use super::{Side, Steps};
use crate::proc::{run, target_dir};

/// More than this in one round is a hang: it takes about a second.
const LIMIT: Duration = Duration::from_secs(60);
/// A fresh prefix takes some seconds.
const PREPARATION: Duration = Duration::from_secs(240);
/// What the client measures for, in each round.
const SECONDS: &str = "1";

/// Who serves the Windows client.
#[derive(Clone, Copy)]
enum Peer {
    Windows,
    Linux,
}

impl Peer {
    const BOTH: [Peer; 2] = [Peer::Windows, Peer::Linux];

    fn label(self) -> &'static str {
        match self {
            Peer::Windows => "Windows client, Windows server",
            Peer::Linux => "Windows client, Linux server",
        }
    }

    fn ends(self) -> &'static str {
        match self {
            Peer::Windows => "Windows to Windows",
            Peer::Linux => "Windows to Linux",
        }
    }
}

/// The compiled echo program, and where it runs.
struct Echo<'a> {
    place: &'a Place,
    windows: PathBuf,
    linux: PathBuf,
    prefix: PathBuf,
}

/// Measures, prints the table, and fails if nothing was carried.
pub fn main(place: &Place, rounds: u32) -> Result<()> {
    let mut steps = Steps::new(1 + 2 * Peer::BOTH.len() as u32 * rounds);
    let echo = steps.run("compile an echo program, prepare Wine", || {
        Echo::prepare(place)
    })?;
    let mut rows = Vec::new();
    let mut counted = Vec::new();
    for peer in Peer::BOTH {
        let (row, reports) = measure(&echo, peer, rounds, &mut steps)?;
        rows.push(row);
        for (report, end) in reports.into_iter().zip(["client", "server"]) {
            counted.push(Counted {
                name: format!("{end}, {}", peer.ends()),
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

/// The rounds of both sides, in turns.
fn measure(echo: &Echo, peer: Peer, rounds: u32, steps: &mut Steps) -> Result<(Row, [Report; 2])> {
    let mut rates = [vec![], vec![]];
    let mut reports = [Report::default(), Report::default()];
    for round in 1..=rounds {
        for side in Side::BOTH {
            let step = format!("{}, {}, round {round}", peer.label(), label(side));
            let (rate, counters) = steps.run(&step, || echo.round(peer, side))?;
            rates[side as usize].push(rate);
            for (sum, part) in reports.iter_mut().zip(counters) {
                if let Some(part) = part {
                    sum.add(&part);
                }
            }
        }
    }
    let name = peer.label().to_owned();
    Ok((Row { name, rates }, reports))
}

fn label(side: Side) -> &'static str {
    match side {
        Side::Tcp => "plain",
        Side::Shared => "carried",
    }
}

impl Echo<'_> {
    fn prepare(place: &Place) -> Result<Echo<'_>> {
        let source = place.path("echo.c");
        std::fs::write(&source, include_str!("echo.c"))?;
        let (windows, linux) = (place.path("echo.exe"), place.path("echo"));
        let compile = |compiler: &str, program: &Path| {
            let mut command = Command::new(compiler);
            command.arg("-O2").arg("-o").arg(program).arg(&source);
            command
        };
        run(compile(crate::windows::GCC, &windows).arg("-lws2_32"))?;
        run(&mut compile("cc", &linux))?;
        let echo = Echo {
            place,
            windows,
            linux,
            // Kept from one run to the next: making it takes longest.
            prefix: target_dir().join("demo/wine"),
        };
        // The first run prepares the prefix, which is no part of a measurement.
        echo.wine(&[], Side::Shared)?.finish(PREPARATION)?;
        Ok(echo)
    }

    /// One pair of processes; gives the client's round trips per second, and the counters of client and server.
    fn round(&self, peer: Peer, side: Side) -> Result<(f64, [Option<Report>; 2])> {
        let port = free_port()?.to_string();
        let serve = ["server".to_owned(), port.clone()];
        let mut server = match peer {
            Peer::Windows => self.wine(&serve, side)?,
            Peer::Linux => self.place.start_file("echo", &self.linux, &serve, side)?,
        };
        server.wait_for_output("ready", LIMIT)?;
        let client = self.wine(&["client".to_owned(), port, SECONDS.to_owned()], side)?;
        let (output, client) = client.finish(LIMIT)?;
        let (_, server) = server.finish(LIMIT)?;
        let rate = output.trim().parse();
        Ok((
            rate.with_context(|| format!("the client printed `{output}`"))?,
            [client, server],
        ))
    }

    fn wine(&self, args: &[String], side: Side) -> Result<Started> {
        self.place
            .start_wine("echo.exe", &self.prefix, &self.windows, args, side)
    }
}
