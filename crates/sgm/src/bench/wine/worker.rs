//! A Windows process that takes orders: sgm_bench.exe, told over a TCP connection what to measure.
//!
//! Its output goes to a file: some Windows programs fail on a pipe under Wine, and a child that holds one keeps its reader
//! waiting. It is in a process group of its own, which is killed if it does not end by itself.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::super::pair::PATIENCE;
use super::super::role::{Line, Outcome};

/// How long a worker gets to end by itself.
const FAREWELL: Duration = Duration::from_secs(5);

pub struct Worker {
    name: &'static str,
    process: Process,
    control: BufReader<TcpStream>,
    log: PathBuf,
}

/// A process that does not outlive us.
struct Process {
    child: Child,
    handle: OwnedFd,
    /// It does as told, so it will end by itself.
    sound: bool,
}

impl Worker {
    /// Starts `command`, Wine with the program's name, and waits until it calls back.
    pub fn start(mut command: Command, name: &'static str, cpu: usize, log: &Path) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let output = File::create(log)?;
        let child = command
            .arg(listener.local_addr()?.port().to_string())
            .arg(cpu.to_string())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start the Windows {name}"))?;
        let mut process = Process::new(child)?;
        let waiting = [
            PollFd::new(&listener, PollFlags::IN),
            PollFd::new(&process.handle, PollFlags::IN),
        ];
        if !first_is_ready(waiting, PATIENCE) {
            drop(process);
            bail!("the Windows {name} does not start{}", tail(log));
        }
        let (control, _) = listener.accept()?;
        control.set_nodelay(true)?;
        process.sound = true;
        Ok(Self {
            name,
            process,
            control: BufReader::new(control),
            log: log.to_owned(),
        })
    }

    pub fn process(&self) -> u32 {
        self.process.child.id()
    }

    pub fn order(&mut self, line: &str) -> Result<()> {
        // Until the outcome is known.
        self.process.sound = false;
        let sent = self.control.get_mut().write_all(line.as_bytes());
        sent.map_err(|e| self.failure(&e.to_string()))
    }

    /// The port on which it listens, or word that its connections are idle.
    pub fn ready(&mut self, deadline: Instant) -> Result<u16> {
        match self.line(deadline)? {
            Line::Ready { port } => Ok(port),
            Line::Failed { error } => Err(self.failure(&error)),
            Line::Done(_) => Err(self.failure("was done before it began")),
        }
    }

    pub fn outcome(&mut self, deadline: Instant) -> Result<Outcome> {
        match self.line(deadline)? {
            Line::Done(outcome) => {
                self.process.sound = true;
                Ok(outcome)
            }
            Line::Failed { error } => Err(self.failure(&error)),
            Line::Ready { .. } => Err(self.failure("is ready twice")),
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<Line> {
        let left = deadline.saturating_duration_since(Instant::now());
        let stream = self.control.get_mut();
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut line = String::new();
        match self.control.read_line(&mut line) {
            Ok(0) => Err(self.failure("ended")),
            Ok(_) => serde_json::from_str(&line)
                .with_context(|| format!("the Windows {} said {line:?}", self.name)),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Err(self.failure("hangs")),
            Err(e) => Err(self.failure(&e.to_string())),
        }
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        anyhow!("the Windows {}: {what}{}", self.name, tail(&self.log))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // To a sound one this is the end of its orders.
        let _ = self.control.get_ref().shutdown(Shutdown::Both);
    }
}

impl Process {
    fn new(mut child: Child) -> Result<Self> {
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(handle) => Ok(Self {
                child,
                handle,
                sound: false,
            }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e).context("cannot watch a process")
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = || [PollFd::new(&self.handle, PollFlags::IN)];
        if !self.sound || !first_is_ready(ended(), FAREWELL) {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Waits for the first of these, unless another is first.
fn first_is_ready<const N: usize>(mut these: [PollFd; N], limit: Duration) -> bool {
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: limit.subsec_nanos().into(),
    };
    poll(&mut these, Some(&limit)).is_ok() && !these[0].revents().is_empty()
}

/// What it printed, if anything, to be put behind an error.
fn tail(log: &Path) -> String {
    let said = std::fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let last: Vec<&str> = said.lines().rev().take(5).collect();
    last.iter()
        .rev()
        .map(|line| format!("\n  | {line}"))
        .collect()
}

/// CPU time, user and system, of a process's threads. The kernel's own count, which /proc's utime and stime give in
/// hundredths of a second only.
pub fn cpu_ns(process: u32) -> Result<u64> {
    let tasks = PathBuf::from(format!("/proc/{process}/task"));
    let mut sum = 0;
    let mut seen = false;
    for task in std::fs::read_dir(&tasks).with_context(|| format!("no {}", tasks.display()))? {
        // One that ends meanwhile is no error.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let ns = text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
        sum += ns.with_context(|| format!("schedstat says {text:?}"))?;
        seen = true;
    }
    ensure!(seen, "no schedstat in {}", tasks.display());
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_cpu_time() {
        let me = std::process::id();
        let before = cpu_ns(me).unwrap();
        let start = Instant::now();
        // The kernel may count by ticks, and others may have the CPU meanwhile.
        while cpu_ns(me).unwrap() <= before {
            assert!(start.elapsed() < Duration::from_secs(30));
        }
        assert!(cpu_ns(u32::MAX).is_err());
    }
}
