//! A row's rounds, plain and carried in turn, and what they come to.

use anyhow::{Result, ensure};
use serde::Serialize;

use super::figure::{
    BELLS, BYTES, CLIENT_CPU_PERCENT, CONNECTIONS, CPU_PER_MESSAGE, CPU_PERCENT, Figure, MEAN,
    MEMORY, MESSAGES, Metric, P50, P99, Target,
};
use super::front::{Carriage, Front, Mode, Report};
use super::machine::{self, Machine};
use super::pair::{self, Pair};
use super::progress::Progress;
use super::role::Work;
use super::rows::{RAW, Row};
use super::sys::{self, SharedWords};

/// Everything that the measurements have in common.
pub struct Session {
    pub front: Front,
    pub machine: Machine,
    pub rounds: usize,
    pub progress: Progress,
    /// Mean of the raw row, once it has been measured.
    pub raw_ns: Option<f64>,
}

/// One run of one side.
pub struct Sample {
    pub values: Vec<(Metric, f64)>,
    pub carriage: Option<Carriage>,
}

/// A finished row.
#[derive(Debug, Serialize)]
pub struct RowResult {
    pub name: String,
    pub group: &'static str,
    pub title: String,
    pub figures: Vec<Figure>,
    pub carriage: Option<Carriage>,
    /// The row could not be measured, or something it measured was wrong.
    pub error: Option<String>,
    /// The row cannot be measured here.
    pub skipped: Option<String>,
}

impl RowResult {
    fn empty(name: &str, group: &'static str, title: &str) -> Self {
        let (name, title) = (name.to_owned(), title.to_owned());
        Self {
            name,
            group,
            title,
            figures: Vec::new(),
            carriage: None,
            error: None,
            skipped: None,
        }
    }

    pub fn skipped(name: &str, group: &'static str, title: &str, why: String) -> Self {
        Self {
            skipped: Some(why),
            ..Self::empty(name, group, title)
        }
    }

    pub fn failed(&self) -> bool {
        self.error.is_some() || self.carriage.as_ref().is_some_and(|c| !c.ok)
    }
}

impl Session {
    /// Measures one row.
    pub fn row(&self, row: &Row) -> RowResult {
        if let Some(why) = self.impossible(row) {
            return RowResult::skipped(&row.name, row.group, row.title, why);
        }
        let modes = if row.name == RAW {
            &[Mode::Plain][..]
        } else {
            self.modes()
        };
        let rounds = (self.rounds * row.times_rounds).min(row.max_rounds);
        self.alternate(
            (&row.name, row.group, row.title),
            modes,
            rounds,
            &row.targets,
            |mode| self.sample(row, mode),
        )
    }

    /// The first measurements after a pause come out slower (sleeping CPUs, cold caches, a node not yet made), and
    /// the very first would always be a plain one: a few are thrown away. An error will show up again.
    pub fn warm_up(&self) {
        self.progress.show("warming up");
        let cpus = (self.machine.server_cpu, self.machine.client_cpu);
        for &mode in self.modes() {
            let _ = pair::run(&self.front, mode, &Work::Connections { ms: 100 }, cpus);
        }
    }

    /// Plain, and carried if we can.
    pub fn modes(&self) -> &'static [Mode] {
        if self.front.library.is_some() {
            &[Mode::Plain, Mode::Carried]
        } else {
            &[Mode::Plain]
        }
    }

    /// Runs `sample` for each mode in turn, `rounds` times; the first failure ends the row.
    pub fn alternate(
        &self,
        (name, group, title): (&str, &'static str, &str),
        modes: &[Mode],
        rounds: usize,
        targets: &[(Metric, Target)],
        mut sample: impl FnMut(Mode) -> Result<Sample>,
    ) -> RowResult {
        let mut result = RowResult::empty(name, group, title);
        let mut rounds_of: Vec<(Metric, [Vec<f64>; 2])> = Vec::new();
        'rounds: for round in 1..=rounds {
            for &mode in modes {
                self.progress.show(&format!(
                    "{name}: round {round} of {rounds}, {}",
                    mode.name()
                ));
                match sample(mode) {
                    Ok(sample) => {
                        note(&mut rounds_of, mode, sample.values);
                        match (&mut result.carriage, sample.carriage) {
                            (Some(all), Some(this)) => all.merge(this),
                            (all, this) => *all = all.take().or(this),
                        }
                    }
                    Err(error) => {
                        result.error = Some(format!("{}, round {round}: {error:#}", mode.name()));
                        break 'rounds;
                    }
                }
            }
        }
        for (metric, [plain, carried]) in rounds_of {
            let wanted: Vec<Target> = targets
                .iter()
                .filter(|(m, _)| *m == metric)
                .map(|(_, t)| *t)
                .collect();
            result
                .figures
                .push(Figure::new(metric, plain, carried, self.raw_ns, &wanted));
        }
        if result.failed() {
            // Figures of something else than what the targets are about.
            result
                .figures
                .iter_mut()
                .flat_map(|f| &mut f.targets)
                .for_each(|target| target.met = None);
        }
        result
    }

    fn impossible(&self, row: &Row) -> Option<String> {
        if row.needs_two_cpus && self.machine.cpus < 2 {
            return Some("needs two CPUs".to_owned());
        }
        let many = match row.work {
            Work::Crowd { idle, .. } => Some(idle),
            Work::Turns { connections, .. } | Work::Beat { connections, .. } => Some(connections),
            _ => None,
        };
        if let Some(many) = many {
            // One descriptor for each connection at least; the front may need more.
            let (wanted, needed) = (3 * many as u64 + 1024, many as u64 + 256);
            let limit = machine::raise_open_files(wanted);
            if limit < needed {
                return Some(format!(
                    "needs {needed} open files, the limit is {limit} (raise it with `ulimit -n`)"
                ));
            }
        }
        None
    }

    fn sample(&self, row: &Row, mode: Mode) -> Result<Sample> {
        ensure!(!sys::interrupted(), "interrupted");
        if let Work::CacheLine { path, .. } = &row.work {
            // Fresh, so that both words are zero.
            let _ = std::fs::remove_file(path);
            std::fs::File::create_new(path)?.set_len(SharedWords::FILE_BYTES)?;
        }
        let client_cpu = if row.same_cpu {
            self.machine.server_cpu
        } else {
            self.machine.client_cpu
        };
        let pair = pair::run(
            &self.front,
            mode,
            &row.work,
            (self.machine.server_cpu, client_cpu),
        )?;
        let carriage = (mode == Mode::Carried).then(|| {
            let sent_bytes = pair.server.sent_bytes + pair.client.sent_bytes;
            let connections = pair.server.connections + pair.client.connections;
            Carriage::of(row.check, sent_bytes, connections, &pair.reports)
        });
        let bells = Report::bells_per_message(&pair.reports).map(|bells| (BELLS, bells));
        let values = values(&row.work, &pair).into_iter().chain(bells).collect();
        Ok(Sample { values, carriage })
    }
}

fn note(rounds_of: &mut Vec<(Metric, [Vec<f64>; 2])>, mode: Mode, values: Vec<(Metric, f64)>) {
    for (metric, value) in values {
        let at = rounds_of
            .iter()
            .position(|(m, _)| *m == metric)
            .unwrap_or_else(|| {
                rounds_of.push((metric, [Vec::new(), Vec::new()]));
                rounds_of.len() - 1
            });
        rounds_of[at].1[mode as usize].push(value);
    }
}

/// The figures of one measurement, from what both ends say.
fn values(work: &Work, Pair { server, client, .. }: &Pair) -> Vec<(Metric, f64)> {
    let per_second = |count: u64| count as f64 * 1e9 / client.wall_ns as f64;
    let latency = || {
        vec![
            (MEAN, client.mean_ns),
            (P50, client.p50_ns),
            (P99, client.p99_ns),
        ]
    };
    // A round trip is two messages.
    let cpu_per_message =
        (server.cpu_ns + client.cpu_ns) as f64 / (2 * client.messages).max(1) as f64;
    let percent = |cpu_ns: u64, wall_ns: u64| cpu_ns as f64 * 100.0 / wall_ns.max(1) as f64;
    match *work {
        Work::CacheLine { .. } => vec![(MEAN, client.mean_ns)],
        Work::RoundTrip { .. } | Work::Turns { .. } => {
            [latency(), vec![(CPU_PER_MESSAGE, cpu_per_message)]].concat()
        }
        Work::Paced { .. } | Work::Beat { .. } => {
            let cpu = percent(server.cpu_ns + client.cpu_ns, client.wall_ns);
            [
                latency(),
                vec![(CPU_PER_MESSAGE, cpu_per_message), (CPU_PERCENT, cpu)],
            ]
            .concat()
        }
        Work::Stream { size, .. } => {
            let bytes = per_second(client.messages * size as u64);
            // Whichever of the two the row is about comes first.
            if size <= 4096 {
                vec![(MESSAGES, per_second(client.messages)), (BYTES, bytes)]
            } else {
                vec![(BYTES, bytes), (MESSAGES, per_second(client.messages))]
            }
        }
        Work::Connections { .. } => vec![(CONNECTIONS, per_second(client.messages))],
        Work::Crowd { idle, .. } => {
            let grown = (server.pss_growth_bytes + client.pss_growth_bytes) as f64;
            [latency(), vec![(MEMORY, grown / idle as f64)]].concat()
        }
        Work::Idle { .. } => vec![
            (CPU_PERCENT, percent(server.cpu_ns, server.wall_ns)),
            (CLIENT_CPU_PERCENT, percent(client.cpu_ns, client.wall_ns)),
        ],
    }
}
