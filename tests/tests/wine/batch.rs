//! Many cases of the behaviour suite in one start of a server's and a client's process: a start costs up to a second.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sgm_tests::front::{Front, Report, read_report, sum};
use sgm_tests::paths::Scratch;
use sgm_tests::process::Started;
use sgm_tests::wine::{Mode, Wine};

/// The suite itself ends a case that takes longer than 40 s; a batch has a dozen cases that take a second at most.
const LIMIT: Duration = Duration::from_secs(400);

/// What the provider takes its system for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// Wine, with Linux below it.
    Wine,
    /// Wine, all of it through the lower provider.
    Lower,
    /// Windows: all of it through the lower provider, the documented answers, and a Winsock DLL that gives nothing beyond
    /// what is documented.
    Windows,
}

impl World {
    fn environment(self) -> &'static [&'static str] {
        match self {
            World::Wine => &[],
            World::Lower => &["SGM_LINUX"],
            World::Windows => &["SGM_LINUX", "SGM_WINE", "SGM_EXTRAS"],
        }
    }
}

/// How to run the cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub server: Mode,
    pub client: Mode,
    pub warm: bool,
    pub ipv6: bool,
    /// Both parts in one process, as two threads.
    pub together: bool,
    pub world: World,
}

impl Setup {
    pub const fn of(mode: Mode) -> Setup {
        Setup {
            server: mode,
            client: mode,
            warm: false,
            ipv6: false,
            together: false,
            world: World::Wine,
        }
    }

    fn word(self) -> String {
        let warm = if self.warm { "warm" } else { "cold" };
        format!("{warm}{}", if self.ipv6 { "6" } else { "" })
    }
}

/// What both parts of a case said.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Transcript {
    pub server: Vec<String>,
    pub client: Vec<String>,
}

pub struct Outcome {
    pub cases: BTreeMap<String, Transcript>,
    pub report: Report,
}

/// Runs the cases, solo ones apart from the others. One that hangs or dies is told apart; the rest is started anew.
pub fn run(wine: &Wine, cases: &[(&str, bool)], setup: Setup) -> Outcome {
    let mut outcome = Outcome {
        cases: BTreeMap::new(),
        report: Report::default(),
    };
    for solo in [false, true] {
        let names: Vec<&str> = cases
            .iter()
            .filter(|(_, alone)| *alone == solo)
            .map(|(name, _)| *name)
            .collect();
        let mut left = &names[..];
        while !left.is_empty() {
            let done = start(wine, left, setup, solo, &mut outcome);
            left = &left[done..];
        }
    }
    outcome
}

/// One start; gives the number of cases that it came through, or into: one at least.
fn start(wine: &Wine, names: &[&str], setup: Setup, solo: bool, outcome: &mut Outcome) -> usize {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (front, scratch) = (Front::new(), Scratch::new());
    let channel = format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let mut reports: Vec<PathBuf> = Vec::new();
    let mut part = |role: &str, mode: Mode| {
        let report = scratch.join(&format!("{role}.json"));
        let wanted = (mode == Mode::Carried).then_some(report.as_path());
        let mut command = wine.command(mode, &wine.suite(), &front, wanted);
        command.envs(setup.world.environment().iter().map(|name| (name, "0")));
        command.args([role, &channel, &setup.word()]).args(names);
        reports.extend(wanted.map(PathBuf::from));
        Started::new(role, scratch.path(), command)
    };
    let mut processes = if solo {
        vec![part("solo", setup.client)]
    } else if setup.together {
        vec![part("both", setup.server)]
    } else {
        vec![part("server", setup.server), part("client", setup.client)]
    };
    let deadline = Instant::now() + LIMIT;
    // All are waited for, whatever becomes of the first.
    let late = processes
        .iter_mut()
        .filter_map(|process| process.end_by(deadline).is_none().then_some(()))
        .count();
    let ended = late == 0;
    let mut server = processes[0].output_so_far();
    let mut client = match processes.get(1) {
        Some(client) => client.output_so_far(),
        // The client's part in one process with the server's.
        None if setup.together => processes[0].errors_so_far(),
        None => String::new(),
    };
    if !ended {
        // The suite's own watch did not end it, so Wine's server itself may be stuck.
        wine.restart();
        server += "\nHANGS with its whole process\n";
        client += "\nHANGS with its whole process\n";
    }
    let written: Vec<Report> = reports
        .iter()
        .filter(|file| ended || file.exists())
        .map(|file| read_report(file))
        .collect();
    outcome.report = sum([&outcome.report].into_iter().chain(&written));
    let (server, client) = (split(&server), split(&client));
    let reached = names
        .iter()
        .filter(|name| server.contains_key(**name) || client.contains_key(**name))
        .count()
        // Not even one was begun: that is the first one's fault as far as can be told.
        .max(1);
    for name in &names[..reached] {
        let of = |all: &BTreeMap<String, Vec<String>>| all.get(*name).cloned().unwrap_or_default();
        outcome.cases.insert(
            (*name).to_string(),
            Transcript {
                server: of(&server),
                client: of(&client),
            },
        );
    }
    reached
}

/// A transcript's lines by case.
fn split(output: &str) -> BTreeMap<String, Vec<String>> {
    let mut cases = BTreeMap::new();
    let mut lines: Option<&mut Vec<String>> = None;
    for line in output.lines() {
        match (line.strip_prefix("=== "), &mut lines) {
            (Some(name), _) => {
                lines = Some(cases.entry(name.to_string()).or_insert_with(Vec::new));
            }
            (None, Some(lines)) => lines.push(line.to_string()),
            // What a process says that did not even begin.
            (None, None) => {}
        }
    }
    cases
}
