//! A program that is not ours, run with a deadline: its output line by line, its end, and the front's report on it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::apps::PATIENCE;
use super::front::{Launch, Report};
use super::sys;

pub struct Program {
    name: &'static str,
    child: Child,
    /// Standard output and standard error, until both have ended.
    lines: Receiver<String>,
    report: Option<PathBuf>,
}

fn forward(stream: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        BufReader::new(stream)
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| to.send(line))
    });
}

impl Program {
    /// In a process group of its own, so that all that it starts can be ended with it.
    pub fn start(mut launch: Launch, name: &'static str) -> Result<Self> {
        let mut child = launch
            .command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (send, lines) = channel();
        forward(child.stdout.take().context("no pipe")?, send.clone());
        forward(child.stderr.take().context("no pipe")?, send);
        Ok(Self {
            name,
            child,
            lines,
            report: launch.report,
        })
    }

    /// Reads until a line contains `text`.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(left(deadline)) {
                Ok(line) if line.contains(text) => return Ok(()),
                Ok(line) => seen.push(line),
                Err(_) => bail!("{} did not say {text:?}: {}", self.name, seen.join("; ")),
            }
        }
    }

    /// Waits for the end. Returns all output since the last `wait_for`, and the report if it was carried.
    pub fn finish(mut self) -> Result<(String, Option<Report>)> {
        let deadline = Instant::now() + PATIENCE;
        let mut output = String::new();
        while let Some(line) = self.next(deadline)? {
            output.push_str(&line);
            output.push('\n');
        }
        let status = self.child.wait()?;
        ensure!(!sys::interrupted(), "interrupted");
        if !status.success() {
            return Err(anyhow!(
                "{} ended with {status}: {}",
                self.name,
                output.trim()
            ));
        }
        Ok((
            output,
            self.report.as_deref().map(Report::read).transpose()?,
        ))
    }

    fn next(&self, deadline: Instant) -> Result<Option<String>> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.lines.recv_timeout(left(deadline)) {
            Ok(line) => Ok(Some(line)),
            Err(Disconnected) => Ok(None),
            Err(Timeout) => bail!("{} hangs", self.name),
        }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended and waited for: then its number may be another's.
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}
