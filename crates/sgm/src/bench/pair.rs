//! One measurement: a server and a client process, started, listened to, and never left behind.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::front::{Front, Mode, Report};
use super::role::{self, Line, Outcome, Role, Side, Work};
use super::sys;

/// Beyond its own length, a measurement may take so long; one that takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long one end gets to finish after the other has failed.
pub const AFTERMATH: Duration = Duration::from_secs(1);

/// What came out of one measurement.
pub struct Pair {
    pub server: Outcome,
    pub client: Outcome,
    /// One per worker, if carried.
    pub reports: Vec<Report>,
}

/// Runs `work` once. `cpus` are the server's and the client's.
pub fn run(front: &Front, mode: Mode, work: &Work, cpus: (usize, usize)) -> Result<Pair> {
    let deadline = Instant::now() + PATIENCE + Duration::from_millis(length_ms(work));
    let server = Worker::start(
        front,
        mode,
        "server",
        &Role {
            side: Side::Server,
            cpu: cpus.0,
            work: work.clone(),
        },
    )?;
    let port = server.ready(deadline)?;
    let side = Side::Client { port };
    let client = Worker::start(
        front,
        mode,
        "client",
        &Role {
            side,
            cpu: cpus.1,
            work: work.clone(),
        },
    )?;
    let client = client.finish(deadline);
    let server = server.finish(if client.is_ok() {
        deadline
    } else {
        deadline.min(Instant::now() + AFTERMATH)
    });
    ensure!(!sys::interrupted(), "interrupted");
    let ((server, server_report), (client, client_report)) = match (server, client) {
        (Ok(server), Ok(client)) => (server, client),
        (server, client) => {
            let errors: Vec<String> = [server.err(), client.err()]
                .into_iter()
                .flatten()
                .map(|e| format!("{e:#}"))
                .collect();
            bail!("{}", errors.join("; "));
        }
    };
    let reports = [server_report, client_report]
        .into_iter()
        .flatten()
        .collect();
    let pair = Pair {
        server,
        client,
        reports,
    };
    cross_check(work, &pair)?;
    Ok(pair)
}

fn length_ms(work: &Work) -> u64 {
    match *work {
        Work::RoundTrip {
            mean_ms, timed_ms, ..
        }
        | Work::Crowd {
            mean_ms, timed_ms, ..
        }
        | Work::Turns {
            mean_ms, timed_ms, ..
        } => mean_ms + timed_ms,
        Work::CacheLine { ms, .. }
        | Work::Paced { ms, .. }
        | Work::Stream { ms, .. }
        | Work::Connections { ms }
        | Work::Beat { ms, .. }
        | Work::Idle { ms, .. } => ms,
    }
}

/// Both ends must have seen the same conversation.
fn cross_check(work: &Work, Pair { server, client, .. }: &Pair) -> Result<()> {
    let (there, back) = match work {
        Work::CacheLine { .. } | Work::Stream { .. } => return Ok(()), // checked by the client itself
        Work::Connections { .. } => (client.connections, server.connections),
        _ => (client.sent_bytes, server.sent_bytes),
    };
    ensure!(
        there == back && there > 0,
        "the client counts {there}, the server {back} (bytes or connections)"
    );
    Ok(())
}

/// A worker process, under the front if it is to be carried.
pub struct Worker {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    report: Option<PathBuf>,
}

impl Worker {
    pub fn start(front: &Front, mode: Mode, name: &'static str, role: &Role) -> Result<Self> {
        let mut launch = front.launch(mode, &front.sgm);
        let mut child = launch
            .command
            .arg("bench")
            .env(role::ENV, serde_json::to_string(role)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let mut errors = child.stderr.take().context("no pipe")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            // The receiver may have given up; then nobody wants the rest.
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| send.send(line))
        });
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        Ok(Self {
            name,
            child,
            lines,
            stderr: Some(stderr),
            report: launch.report,
        })
    }

    /// The next line, or None when the worker (and `sgm run` around it) has ended.
    fn line(&self, deadline: Instant) -> Result<Option<Line>> {
        match self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(line) => {
                Ok(Some(serde_json::from_str(&line).with_context(|| {
                    format!("the {} said {line:?}", self.name)
                })?))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("the {} hangs", self.name),
        }
    }

    /// The port on which the server listens.
    pub fn ready(&self, deadline: Instant) -> Result<u16> {
        match self.line(deadline)? {
            Some(Line::Ready { port }) => Ok(port),
            Some(Line::Failed { error }) => bail!("the server: {error}"),
            Some(Line::Done(_)) => bail!("the server was done before it began"),
            None => bail!("the server ended before it listened"),
        }
    }

    pub fn finish(mut self, deadline: Instant) -> Result<(Outcome, Option<Report>)> {
        let last = self.line(deadline)?;
        if last.is_some() {
            ensure!(
                self.line(deadline)?.is_none(),
                "the {} said more than its outcome",
                self.name
            );
        }
        let status = self.child.wait()?;
        let stderr = self
            .stderr
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        let failure =
            |what: &str| anyhow!("the {}: {what} ({status}) {}", self.name, stderr.trim());
        match last {
            Some(Line::Done(outcome)) if status.success() => Ok((
                outcome,
                self.report.as_deref().map(Report::read).transpose()?,
            )),
            Some(Line::Failed { error }) => Err(failure(&error)),
            Some(_) => Err(failure("ended badly")),
            None => Err(failure("ended without an outcome")),
        }
    }
}

impl Drop for Worker {
    /// The worker asked to die with its parent, so this reaches it through `sgm run` too.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
