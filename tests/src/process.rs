//! A started program: a process group of its own, output in files, an end in bounded time, nothing left behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

/// A running process group. Whatever is left of it when this is dropped is killed.
pub struct Started {
    pub name: String,
    child: Child,
    alive: OwnedFd,
    ended: bool,
    output: PathBuf,
    errors: PathBuf,
}

/// What a program left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub output: String,
    pub errors: String,
    /// As a shell says it: the exit code, or 128 and the signal. `sgm run` passes it on so.
    pub code: i32,
}

impl Started {
    /// Starts `command` with its output in `<directory>/<name>.{out,err}`.
    pub fn new(name: &str, directory: &Path, mut command: Command) -> Started {
        let output = directory.join(format!("{name}.out"));
        let errors = directory.join(format!("{name}.err"));
        command
            .stdout(File::create(&output).unwrap())
            .stderr(File::create(&errors).unwrap())
            .process_group(0);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        let alive = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        Started {
            name: name.to_string(),
            child,
            alive,
            ended: false,
            output,
            errors,
        }
    }

    /// With no input and a fixed locale.
    pub fn command(program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("LC_ALL", "C");
        command
    }

    /// Gives `wrapper` what `command` is to be run with: arguments, environment, directory.
    pub fn pass_on(command: &Command, wrapper: &mut Command) {
        wrapper.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapper.env(name, value),
                None => wrapper.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            wrapper.current_dir(directory);
        }
    }

    /// The number of the program itself: of the child, where `sgm run` waits for one.
    pub fn program_id(&self) -> Option<u32> {
        let id = self.child.id();
        let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
        if name.trim_end() != "sgm" {
            return Some(id);
        }
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("started with a pipe")
    }

    /// Whether it is still running after at most `limit`.
    pub fn runs_after(&self, limit: Duration) -> bool {
        Started::first_to_end(&[self], limit).is_none()
    }

    /// The place of the first of `processes` that ends within `limit`.
    pub fn first_to_end(processes: &[&Started], limit: Duration) -> Option<usize> {
        let mut entries: Vec<PollFd> = processes
            .iter()
            .map(|one| PollFd::new(&one.alive, PollFlags::IN))
            .collect();
        poll(&mut entries, Some(&Timespec::try_from(limit).unwrap())).unwrap();
        entries.iter().position(|entry| !entry.revents().is_empty())
    }

    /// Sends a signal to the leading process alone.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself; then there is nobody to tell.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// What it has written so far.
    pub fn output_so_far(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap()).into_owned()
    }

    pub fn errors_so_far(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.errors).unwrap()).into_owned()
    }

    /// Where each of its processes is, if it still runs: for the message of a test that hangs.
    pub fn whereabouts(&self) -> String {
        if self.runs_after(Duration::ZERO) {
            describe_group(Pid::from_child(&self.child))
        } else {
            String::new()
        }
    }

    /// Waits for its end; at `deadline` its whole group is killed and `None` is the answer.
    pub fn end_by(&mut self, deadline: Instant) -> Option<Ended> {
        let in_time = !self.runs_after(deadline.saturating_duration_since(Instant::now()));
        let status = self.finish();
        in_time.then(|| Ended {
            output: self.output_so_far(),
            errors: self.errors_so_far(),
            code: code_of(status),
        })
    }

    fn finish(&mut self) -> ExitStatus {
        // Before the leader is reaped: until then its number, and so the group's, cannot belong to anybody else.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        self.ended = true;
        self.child.wait().unwrap()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.ended {
            self.finish();
        }
    }
}

fn code_of(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A line for each process of the group: its state, and what each of its threads waits in.
fn describe_group(group: Pid) -> String {
    let group = group.as_raw_nonzero().get();
    let mut text = String::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        // After the name in brackets: state, parent, group.
        let Some(fields) = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.split(' ').collect::<Vec<_>>())
        else {
            continue;
        };
        if fields.get(2).and_then(|field| field.parse().ok()) != Some(group) {
            continue;
        }
        let command = read("cmdline").replace('\0', " ");
        if command.contains(" run --report ") {
            continue; // `sgm run` only waits for the program
        }
        text += &format!("[still running: {command}: state {}", fields[0]);
        for task in fs::read_dir(entry.path().join("task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let call = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
            let sleeping_in = fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
            text += &format!(
                "; thread in {sleeping_in} (system call {})",
                call.split(' ').take(3).collect::<Vec<_>>().join(" ")
            );
        }
        text += "]\n";
    }
    text
}
