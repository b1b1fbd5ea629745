//! Child processes: cargo, plain commands, and groups that never outlive us.
//!
//! 1. A [`Group`] is a child in its own process group; dropping it kills the whole group, so that an early return,
//!    an error or a panic leaves nothing behind.
//! 2. [`stop_on_signals`] turns Ctrl-C, SIGTERM and SIGHUP into "kill every live group and remember it": whoever waits
//!    for a child then sees it end, [`Group::wait`] returns an error, and the destructors run as on any other error.
//!    A second signal ends the process at once.
//! 3. Waiting is on the child's pidfd, with a time limit: no polling.
//! 4. Within [`recorded`], what the commands of [`run`] say is passed on and kept, for whoever tells of a failure later.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, PipeReader};
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The repository's root: the directory above this crate.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// Where cargo builds: CARGO_TARGET_DIR, or `target` in the repository.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that runs us, in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs to the end; anything but success is an error that names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let words = describe(command);
    let status = if RECORD.with_borrow(Option::is_some) {
        run_recorded(command)
    } else {
        command.status().map_err(anyhow::Error::from)
    }
    .with_context(|| format!("cannot run `{words}`"))?;
    ensure!(status.success(), "`{words}` failed: {status}");
    Ok(())
}

thread_local! {
    static RECORD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Does the work; gives also what the commands that it [`run`]s said on both streams, line by line.
pub fn recorded<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    RECORD.set(Some(Vec::new()));
    let result = work();
    (result, RECORD.take().unwrap_or_default())
}

fn run_recorded(command: &mut Command) -> Result<ExitStatus> {
    let output = one_pipe(command)?;
    let mut child = command.spawn()?;
    close_pipe(command);
    pass_on(output, |line| {
        RECORD.with_borrow_mut(|record| record.get_or_insert_default().push(line.to_owned()));
    });
    Ok(child.wait()?)
}

/// Both streams of the command into one pipe, whose reading end this gives. After the start: [`close_pipe`].
pub fn one_pipe(command: &mut Command) -> Result<PipeReader> {
    let (reader, writer) = std::io::pipe().context("no pipe")?;
    command.stdout(writer.try_clone()?).stderr(writer);
    Ok(reader)
}

/// Closes our own copies of the writing end, or the reader would never see the end.
pub fn close_pipe(command: &mut Command) {
    command.stdout(Stdio::null()).stderr(Stdio::null());
}

/// Prints what comes until the end, and shows each line to `look`.
pub fn pass_on(output: PipeReader, mut look: impl FnMut(&str)) {
    // Bytes, not text: a program may print anything.
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        look(&line);
    }
}

/// The command as a reader would type it.
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![
        program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy()
            .into_owned(),
    ];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// Where a program lies: PATH, then the directories for system programs that a user's PATH may leave out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static LIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// From now on a terminating signal kills the groups and lets the main thread clean up. See rule 2 above.
pub fn stop_on_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(128 + signal);
            }
            for group in LIVE.lock().expect("nobody panics with it").iter() {
                // A group that has just ended is no error.
                let _ = kill_process_group(*group, Signal::KILL);
            }
        }
    });
    Ok(())
}

/// An error when a terminating signal has come; for loops that are not waiting for a child.
pub fn check_interrupted() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
    Ok(())
}

/// A child in a process group of its own, killed with everything in it when dropped.
pub struct Group {
    child: Child,
    pid: Pid,
    words: String,
}

impl Group {
    /// Starts the command as leader of a new process group.
    pub fn spawn(command: &mut Command) -> Result<Group> {
        let words = describe(command);
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run `{words}`"))?;
        let pid = Pid::from_child(&child);
        LIVE.lock().expect("nobody panics with it").push(pid);
        let group = Group { child, pid, words };
        // The signal may have come between the last check and the line above, and missed this group.
        check_interrupted()?;
        Ok(group)
    }

    /// The child, for its pipes.
    #[cfg(test)]
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the child to end. An error when it takes longer than `limit`, or when we were told to stop.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let handle = pidfd_open(self.pid, PidfdFlags::empty())
            .context("cannot watch a child process (pidfd_open needs Linux 5.3)")?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => bail!("`{}` did not end within {} s", self.words, limit.as_secs()),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("poll on a child process"),
            }
        }
        let status = self.child.wait()?;
        check_interrupted()?;
        Ok(status)
    }

    /// Whether the child still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The leader may be gone while others of its group live; ESRCH says that nobody is left.
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = self.child.wait();
        LIVE.lock()
            .expect("nobody panics with it")
            .retain(|pid| *pid != self.pid);
    }
}

/// Tries until `attempt` breaks with a value, the time is over, or we are told to stop. For conditions that
/// nobody announces, such as a foreign server that starts to listen.
pub fn retry<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<ControlFlow<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        check_interrupted()?;
        if let ControlFlow::Break(value) = attempt()? {
            return Ok(value);
        }
        ensure!(
            Instant::now() < deadline,
            "{what}: not within {} s",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_both_streams_in_order() {
        let script = "echo one; echo two >&2; echo three";
        let (result, lines) = recorded(|| run(Command::new("sh").args(["-c", script])));
        result.unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn a_dropped_group_takes_its_grandchildren_with_it() {
        let mut group = Group::spawn(
            Command::new("sh")
                .args(["-c", "sleep 600 & echo $!; wait"])
                .stdout(Stdio::piped()),
        )
        .unwrap();
        let mut line = String::new();
        BufReader::new(group.child().stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let grandchild = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let watch = pidfd_open(grandchild, PidfdFlags::empty()).unwrap();
        drop(group);
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ended, 1, "the grandchild outlived its group");
    }

    #[test]
    fn wait_reports_the_status_and_the_time_limit() {
        let mut quick = Group::spawn(Command::new("sh").args(["-c", "exit 3"])).unwrap();
        assert_eq!(quick.wait(Duration::from_secs(10)).unwrap().code(), Some(3));
        let mut slow = Group::spawn(Command::new("sleep").arg("600")).unwrap();
        let error = slow.wait(Duration::from_millis(20)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
    }

    #[test]
    fn programs_are_found_by_name_only_if_executable() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-here").is_none());
    }
}
