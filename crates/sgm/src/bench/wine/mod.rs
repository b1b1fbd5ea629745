//! Windows programs under Wine: plain Wine beside carried, in the same prefix.
//!
//! A start of a Windows program takes half a second, so there is one pair of processes for each Winsock (Wine's own, ours,
//! ours without opting in), started when it is first needed, and the driver sends orders to it, row by row. What a carried row
//! carried is told by the counters in the node's files, read before and after while the processes live.

mod rows;
mod worker;

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::figure::{
    BYTES, CLIENT_CPU_PERCENT, CONNECTIONS, CPU_PERCENT, MEAN, MESSAGES, Metric, P50, P99,
    WINESERVER_CPU_PERCENT,
};
use super::front::{Carriage, Mode, Report};
use super::measure::{RowResult, Sample, Session};
use super::pair::{self, AFTERMATH, PATIENCE};
use super::role::{self, Outcome, Side};
use super::rows::Scale;
use super::sys;
use crate::wine::{Installed, Winsock};

use rows::{Ends, Wait, Work};
pub use rows::{GROUP, Row, all as rows};
use worker::Worker;

const PROGRAM: &str = "sgm_bench.exe";
const SIZE: usize = 64;
/// Before idle CPU time is counted, and after: for what the last messages left to do.
const SETTLE: Duration = Duration::from_millis(300);

/// Wine, and the Windows processes that are running.
pub struct Windows {
    // Dropped first: the programs end before their prefix does.
    pairs: RefCell<Vec<(Winsock, Pair)>>,
    installed: Installed,
    program: PathBuf,
    node: PathBuf,
}

struct Pair {
    server: Worker,
    client: Worker,
}

/// Both ends of one measurement.
struct Measured {
    server: Outcome,
    client: Outcome,
    /// CPU time in ns of the server, the client and wineserver, and how long they were watched; of idle connections only.
    cpu: Option<([u64; 3], Duration)>,
    /// Of a Linux server under the front.
    report: Option<Report>,
}

impl Windows {
    pub fn open(session: &Session) -> Result<Self> {
        session.progress.show("starting Wine");
        let installed = Installed::open()?;
        // Away from our DLLs: a program that has lsp.dll beside it has opted in by that.
        let program = session.front.scratch.path(PROGRAM);
        let built = installed.built(PROGRAM)?;
        std::fs::copy(&built, &program)
            .with_context(|| format!("cannot copy {}", built.display()))?;
        Ok(Self {
            pairs: RefCell::default(),
            installed,
            program,
            node: session.front.scratch.path("node"),
        })
    }

    /// Measures one row.
    pub fn row(&self, session: &Session, row: &Row, scale: &Scale) -> RowResult {
        if row.ends == Ends::LinuxServer && session.front.library.is_none() {
            let why = "libsockets_gm.so is not beside sgm".to_owned();
            return RowResult::skipped(row.name, GROUP, row.title, why);
        }
        let rounds = match row.work {
            Work::Idle => session.rounds.min(scale.slow_rounds),
            _ => session.rounds * row.times_rounds,
        };
        session.alternate(
            (row.name, GROUP, row.title),
            &[Mode::Plain, Mode::Carried],
            rounds,
            &row.targets,
            |mode| self.sample(session, row, mode, scale),
        )
    }

    fn sample(&self, session: &Session, row: &Row, mode: Mode, scale: &Scale) -> Result<Sample> {
        ensure!(!sys::interrupted(), "interrupted");
        let winsock = match (mode, row.ends) {
            (Mode::Plain, _) => Winsock::Wines,
            (Mode::Carried, Ends::NotOptedIn) => Winsock::FallThrough,
            (Mode::Carried, _) => Winsock::Carrying,
        };
        let mut pair = self.take(session, winsock)?;
        let before = Report::live(&self.node);
        // After a failure the pair is not used again.
        let measured = match row.ends {
            Ends::LinuxServer => self.with_linux(session, &mut pair.client, mode, row, scale)?,
            _ => self.among_windows(&mut pair, row, scale)?,
        };
        self.pairs.borrow_mut().push((winsock, pair));
        let live = Report::live(&self.node).since(&before);
        let (server, client) = (&measured.server, &measured.client);
        let sent_bytes = server.sent_bytes + client.sent_bytes;
        let connections = server.connections + client.connections;
        if winsock != Winsock::Carrying {
            let carried = live.carried_bytes();
            ensure!(carried == 0, "{carried} bytes were carried");
        }
        let carriage = (winsock == Winsock::Carrying).then(|| {
            let reports: Vec<Report> = [Some(live), measured.report.clone()]
                .into_iter()
                .flatten()
                .collect();
            Carriage::of(row.check, sent_bytes, connections, &reports)
        });
        Ok(Sample {
            values: values(row.work, &measured)?,
            carriage,
        })
    }

    /// The pair on this Winsock, started and warmed up if need be.
    fn take(&self, session: &Session, winsock: Winsock) -> Result<Pair> {
        let mut pairs = self.pairs.borrow_mut();
        if let Some(at) = pairs.iter().position(|(of, _)| *of == winsock) {
            return Ok(pairs.swap_remove(at).1);
        }
        let start = |name, cpu| {
            let mut command = self.installed.command(winsock);
            command
                .arg(&self.program)
                .env("SGM_DIR", &self.node)
                .env_remove("LD_PRELOAD");
            let log = format!("{winsock:?}-{name}.log");
            Worker::start(command, name, cpu, &session.front.scratch.path(&log))
        };
        let mut pair = Pair {
            server: start("server", session.machine.server_cpu)?,
            client: start("client", session.machine.client_cpu)?,
        };
        // The first round of a process is slower than the rest.
        for work in [Work::RoundTrip(Wait::Blocking), Work::Connections] {
            pair.talk(&order(work, 50), |_| Ok(()))?;
        }
        Ok(pair)
    }

    fn among_windows(&self, pair: &mut Pair, row: &Row, scale: &Scale) -> Result<Measured> {
        if row.work != Work::Idle {
            let (server, client) = pair.talk(&order_at(row.work, scale), |_| Ok(()))?;
            return Ok(Measured {
                server,
                client,
                cpu: None,
                report: None,
            });
        }
        let length = Duration::from_millis(scale.idle_ms);
        let mut cpu = None;
        let (server, client) = pair.talk(&order_at(row.work, scale), |pair| {
            pair.client.ready(Instant::now() + PATIENCE)?;
            std::thread::sleep(SETTLE);
            let before = self.cpu_ns(pair)?;
            let start = Instant::now();
            std::thread::sleep(length);
            let after = self.cpu_ns(pair)?;
            let used = std::array::from_fn(|i| after[i].saturating_sub(before[i]));
            cpu = Some((used, start.elapsed()));
            Ok(())
        })?;
        Ok(Measured {
            server,
            client,
            cpu,
            report: None,
        })
    }

    /// Of the server, the client and wineserver.
    fn cpu_ns(&self, pair: &Pair) -> Result<[u64; 3]> {
        let wineserver = self.installed.server().context("no wineserver runs")?;
        let of = |process| worker::cpu_ns(process);
        Ok([
            of(pair.server.process())?,
            of(pair.client.process())?,
            of(wineserver)?,
        ])
    }

    /// The Windows client calls a Linux worker, plain or under the front.
    fn with_linux(
        &self,
        session: &Session,
        client: &mut Worker,
        mode: Mode,
        row: &Row,
        scale: &Scale,
    ) -> Result<Measured> {
        let order = order_at(row.work, scale);
        let deadline = Instant::now() + PATIENCE;
        let role = role::Role {
            side: Side::Server,
            cpu: session.machine.server_cpu,
            work: role::Work::RoundTrip {
                size: order.size,
                wait: role::Wait::Blocking,
                warm: order.count,
                mean_ms: order.ms,
                timed_ms: order.timed_ms,
            },
        };
        let server = pair::Worker::start(&session.front, mode, "Linux server", &role)?;
        let port = server.ready(deadline)?;
        client.order(&order.line("client", port))?;
        let client = client.outcome(deadline);
        let server = server.finish(if client.is_ok() {
            deadline
        } else {
            Instant::now() + AFTERMATH
        });
        let ((server, report), client) = both(server, client)?;
        ensure!(
            server.sent_bytes == client.sent_bytes,
            "the client counts {} bytes, the server {}",
            client.sent_bytes,
            server.sent_bytes
        );
        Ok(Measured {
            server,
            client,
            cpu: None,
            report,
        })
    }
}

impl Pair {
    /// One measurement; `meanwhile` runs when both ends have their orders.
    fn talk(
        &mut self,
        order: &Order,
        meanwhile: impl FnOnce(&mut Pair) -> Result<()>,
    ) -> Result<(Outcome, Outcome)> {
        let deadline = Instant::now() + PATIENCE;
        self.server.order(&order.line("server", 0))?;
        let port = self.server.ready(deadline)?;
        self.client.order(&order.line("client", port))?;
        let client = meanwhile(self).and_then(|()| self.client.outcome(deadline));
        let server = self.server.outcome(if client.is_ok() {
            deadline
        } else {
            Instant::now() + AFTERMATH
        });
        let (server, client) = both(server, client)?;
        let agree = client.connections == server.connections && client.connections > 0;
        ensure!(
            agree,
            "the client counts {} connections, the server {}",
            client.connections,
            server.connections
        );
        Ok((server, client))
    }
}

/// Both outcomes, or all that went wrong.
fn both<S, C>(server: Result<S>, client: Result<C>) -> Result<(S, C)> {
    match (server, client) {
        (Ok(server), Ok(client)) => Ok((server, client)),
        (server, client) => {
            let errors: Vec<String> = [server.err(), client.err()]
                .into_iter()
                .flatten()
                .map(|e| format!("{e:#}"))
                .collect();
            bail!("{}", errors.join("; "))
        }
    }
}

/// What sgm_bench is told; its source says what the words mean.
struct Order {
    work: &'static str,
    wait: &'static str,
    size: usize,
    count: u64,
    ms: u64,
    timed_ms: u64,
}

impl Order {
    fn line(&self, side: &str, port: u16) -> String {
        let Self {
            work,
            wait,
            size,
            count,
            ms,
            timed_ms,
        } = self;
        format!("{side} {work} {wait} {size} {port} {count} {ms} {timed_ms}\n")
    }
}

fn order_at(work: Work, scale: &Scale) -> Order {
    let ms = match work {
        Work::RoundTrip(_) => scale.mean_ms,
        Work::Stream { .. } => scale.stream_ms,
        Work::Connections => scale.connections_ms,
        Work::Idle => scale.idle_ms + 2 * SETTLE.as_millis() as u64,
    };
    Order {
        timed_ms: scale.timed_ms,
        ..order(work, ms)
    }
}

fn order(work: Work, ms: u64) -> Order {
    let (word, wait, size, count) = match work {
        Work::RoundTrip(wait) => ("rtt", wait.word(), SIZE, 500),
        Work::Stream { size } => ("stream", "blocking", size, (4 << 20) / size.max(1024)),
        Work::Connections => ("connections", "blocking", SIZE, 32),
        Work::Idle => ("idle", "blocking", SIZE, super::rows::IDLE_CONNECTIONS),
    };
    Order {
        work: word,
        wait,
        size,
        count: count as u64,
        ms,
        timed_ms: ms / 2,
    }
}

fn values(work: Work, measured: &Measured) -> Result<Vec<(Metric, f64)>> {
    let client = &measured.client;
    let per_second = client.messages as f64 * 1e9 / client.wall_ns.max(1) as f64;
    Ok(match work {
        Work::RoundTrip(_) => vec![
            (MEAN, client.mean_ns),
            (P50, client.p50_ns),
            (P99, client.p99_ns),
        ],
        // Of the two the one that the row is about.
        Work::Stream { size } if size > 4096 => vec![(BYTES, per_second * size as f64)],
        Work::Stream { .. } => vec![(MESSAGES, per_second)],
        Work::Connections => vec![(CONNECTIONS, per_second)],
        Work::Idle => {
            let (used, length) = measured.cpu.context("nobody watched the CPU time")?;
            let percent = |ns: u64| ns as f64 * 100.0 / length.as_nanos() as f64;
            let [server, client, wineserver] = used.map(percent);
            vec![
                (CPU_PERCENT, server),
                (CLIENT_CPU_PERCENT, client),
                (WINESERVER_CPU_PERCENT, wineserver),
            ]
        }
    })
}
