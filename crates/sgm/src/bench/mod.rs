//! `sgm bench`: every figure for plain TCP and for carried connections, side by side in the same run.
//!
//! The driver (this file, `measure`, `pair`) starts two processes per measurement, plain and under `sgm run` in turn, and
//! takes medians over the rounds. The processes are this same binary in the part of a `worker`: ordinary socket
//! programs. The front's own counters must show that the carried rounds were carried, else the run fails.

mod apps;
mod figure;
mod front;
mod machine;
mod measure;
mod pair;
mod program;
mod progress;
mod role;
mod rows;
mod stats;
mod sys;
mod table;
mod wine;
mod worker;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use serde::Serialize;

use front::Front;
use machine::Machine;
use measure::{RowResult, Session};
use progress::Progress;
use rows::Row;
use table::Table;
use wine::Windows;

/// Exit status: 0 when everything was measured and the carried rows were carried (targets met or not); 1 otherwise.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON document instead of the table
    #[arg(long)]
    json: bool,

    /// Shorter measurements, 3 rounds, 1,000 idle connections instead of 10,000
    #[arg(long)]
    quick: bool,

    /// Rounds of plain and carried in turn [default: 5, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,

    /// Only these rows, by name or by group (raw, rtt, stream, connections, many, cpu, wine, apps)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,

    /// Only the Windows programs, under Wine, in the prefix that `sgm wine` uses (about a minute)
    #[arg(long)]
    wine: bool,

    /// Also redis, nginx and node, where they are installed
    #[arg(long)]
    apps: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    sgm: &'static str,
    machine: &'a Machine,
    rounds: usize,
    quick: bool,
    ok: bool,
    rows: &'a [RowResult],
    warnings: &'a [String],
}

pub fn main(args: Args) -> Result<ExitCode> {
    if let Ok(role) = std::env::var(role::ENV) {
        return worker::main(&role);
    }
    let front = Front::find()?;
    let scale = if args.quick { rows::QUICK } else { rows::FULL };
    let asked = select(rows::all(&scale, front.scratch.path("words")), &args)?;
    let default_rounds = if args.quick { 3 } else { 5 };
    let mut session = Session {
        front,
        machine: Machine::look()?,
        rounds: args.rounds.map_or(default_rounds, usize::from),
        progress: Progress::new(),
        raw_ns: None,
    };
    let windows = match asked.wine.as_slice() {
        [] => None,
        _ => Some(Windows::open(&session)?),
    };
    let mut output = Output::begin(&session, args.json);
    session.warm_up();
    for row in &asked.rows {
        let result = session.row(row);
        if row.name == rows::RAW {
            let plain = result.figures.first().and_then(|f| f.plain.as_ref());
            session.raw_ns = plain.map(|raw| raw.median);
        }
        output.row(&session, result);
        ensure!(!sys::interrupted(), "interrupted");
    }
    for (row, windows) in asked.wine.iter().zip(windows.iter().cycle()) {
        output.row(&session, windows.row(&session, row, &scale));
        ensure!(!sys::interrupted(), "interrupted");
    }
    for name in asked.apps {
        output.row(&session, apps::row(&session, name, args.quick));
        ensure!(!sys::interrupted(), "interrupted");
    }
    // Without the front's library half of what was asked for is missing, so that is no success either.
    let ok = session.front.library.is_some() && !output.rows.iter().any(RowResult::failed);
    output.end(&session, args.quick, ok)?;
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The table as it grows, or the JSON at the end.
struct Output {
    json: bool,
    table: Table,
    rows: Vec<RowResult>,
    warnings: Vec<String>,
}

impl Output {
    fn begin(session: &Session, json: bool) -> Self {
        if !json {
            println!("{}", table::header(&session.machine, session.rounds));
        }
        let warnings = preliminary_warnings(session);
        Self {
            json,
            table: Table::default(),
            rows: Vec::new(),
            warnings,
        }
    }

    fn row(&mut self, session: &Session, row: RowResult) {
        session.progress.clear();
        // Of the figure that the row is about; its details vary as it does.
        if let Some(figure) = row.figures.first() {
            self.warnings.extend(figure.warnings(&row.name));
        }
        if !self.json {
            println!("{}", self.table.row(&row));
        }
        self.rows.push(row);
    }

    fn end(&self, session: &Session, quick: bool, ok: bool) -> Result<()> {
        if !self.json {
            conclude(&self.rows, &self.warnings);
            return Ok(());
        }
        let document = Document {
            sgm: env!("CARGO_PKG_VERSION"),
            machine: &session.machine,
            rounds: session.rounds,
            quick,
            ok,
            rows: &self.rows,
            warnings: &self.warnings,
        };
        println!("{}", serde_json::to_string_pretty(&document)?);
        Ok(())
    }
}

/// What the arguments ask for.
struct Asked {
    rows: Vec<Row>,
    wine: Vec<wine::Row>,
    apps: Vec<&'static str>,
}

/// Everything but Windows and apps, unless the arguments say otherwise. Latencies come with the raw row that they are
/// compared with.
fn select(all: Vec<Row>, args: &Args) -> Result<Asked> {
    let wine = wine::rows();
    let mut known: Vec<(&str, &str)> = all.iter().map(|r| (r.name.as_str(), r.group)).collect();
    known.extend(wine.iter().map(|r| (r.name, wine::GROUP)));
    known.extend(apps::NAMES.map(|name| (name, "apps")));
    let is = |only: &str, (name, group): (&str, &str)| only == name || only == group;
    if let Some(unknown) = args
        .only
        .iter()
        .find(|only| !known.iter().any(|row| is(only, *row)))
    {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        anyhow::bail!(
            "there is no row {unknown:?}; the rows are {}",
            names.join(", ")
        );
    }
    let everything = args.only.is_empty() && !args.wine;
    let named = |name: &str, group: &str| {
        args.only
            .iter()
            .any(|only| is(only.as_str(), (name, group)))
    };
    let wine: Vec<wine::Row> = wine
        .into_iter()
        .filter(|r| named(r.name, wine::GROUP) || (args.wine && args.only.is_empty()))
        .collect();
    let apps: Vec<&str> = apps::NAMES
        .into_iter()
        .filter(|name| named(name, "apps") || (args.apps && args.only.is_empty()))
        .collect();
    let latencies = !wine.is_empty()
        || all
            .iter()
            .any(|r| matches!(r.group, "rtt" | "many") && named(&r.name, r.group));
    let rows = all
        .into_iter()
        .filter(|r| everything || named(&r.name, r.group) || (latencies && r.name == rows::RAW))
        .collect();
    Ok(Asked { rows, wine, apps })
}

fn preliminary_warnings(session: &Session) -> Vec<String> {
    let mut warnings = Vec::new();
    if session.front.library.is_none() {
        warnings.push("libsockets_gm.so is not beside sgm: only plain TCP was measured".to_owned());
    }
    let Machine { load, cpus, .. } = session.machine;
    if load > cpus as f64 * 0.5 {
        warnings.push(format!(
            "the machine was busy already (load {load} on {cpus} CPUs)"
        ));
    }
    warnings
}

fn conclude(results: &[RowResult], warnings: &[String]) {
    let verdicts = || {
        results
            .iter()
            .flat_map(|r| &r.figures)
            .flat_map(|f| &f.targets)
            .filter_map(|v| v.met)
    };
    println!(
        "\n{} of {} targets met",
        verdicts().filter(|met| *met).count(),
        verdicts().count()
    );
    for warning in warnings {
        println!("warning: {warning}");
    }
    let failed: Vec<&str> = results
        .iter()
        .filter(|r| r.failed())
        .map(|r| r.name.as_str())
        .collect();
    if !failed.is_empty() {
        println!("FAILED: {}", failed.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// Names of the rows that a command line asks for: ours, Windows, apps.
    fn asked(line: &str) -> [String; 3] {
        let line = Line::parse_from(format!("bench {line}").split_whitespace());
        let asked = select(rows::all(&rows::QUICK, "words".into()), &line.args).unwrap();
        let ours: Vec<&str> = asked.rows.iter().map(|r| r.name.as_str()).collect();
        let wine: Vec<&str> = asked.wine.iter().map(|r| r.name).collect();
        [ours.join(" "), wine.join(" "), asked.apps.join(" ")]
    }

    #[test]
    fn windows_and_apps_are_measured_only_when_asked_for() {
        let [ours, wine, apps] = asked("");
        assert!(ours.starts_with("raw rtt-1 ") && wine.is_empty() && apps.is_empty());
        let [ours, wine, apps] = asked("--wine");
        assert!(wine.starts_with("wine-rtt-64 "), "{wine}");
        assert_eq!([ours.as_str(), apps.as_str()], ["raw", ""]);
        assert_eq!(asked("--only wine"), asked("--wine"));
        assert_eq!(asked("--wine --apps")[2], "redis nginx node");
        assert_eq!(
            asked("--only paced,wine-idle,nginx"),
            ["raw paced", "wine-idle", "nginx"]
        );
        assert_eq!(asked("--only rtt-64"), ["raw rtt-64", "", ""]);
    }
}
