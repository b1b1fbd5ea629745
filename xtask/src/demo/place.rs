//! Where the demo happens: a temporary directory for files, a node directory of its own in shared memory, and the
//! two ways to run a program there. Both directories are removed on drop.

use std::fs::{DirBuilder, File};
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Side;
use super::report::Report;
use crate::proc::{Group, check_interrupted, find_program, retry};

/// The directories and the `sgm` to use.
pub struct Place {
    sgm: PathBuf,
    files: PathBuf,
    node: PathBuf,
    started: AtomicU32,
}

/// A program that was started in the place, and where its output and counters go.
pub struct Started {
    pub group: Group,
    program: &'static str,
    log: PathBuf,
    report: Option<PathBuf>,
}

impl Place {
    /// Makes both directories, readable by this user only.
    pub fn create(sgm: PathBuf) -> Result<Place> {
        let name = format!("sgm-demo-{}", std::process::id());
        let files = std::env::temp_dir().join(&name);
        let node = Path::new("/dev/shm").join(&name);
        let place = Place {
            sgm,
            files,
            node,
            started: AtomicU32::new(0),
        };
        for dir in [&place.files, &place.node] {
            DirBuilder::new()
                .mode(0o700)
                .create(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(place)
    }

    /// A path for a file or directory of that name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// Starts a program of the system.
    pub fn start(&self, program: &'static str, args: &[String], side: Side) -> Result<Started> {
        let path = find_program(program)
            .with_context(|| format!("there is no {program}: run `cargo xtask setup`"))?;
        self.start_file(program, &path, args, side)
    }

    /// Starts a program, as it is or under `sgm run`.
    pub fn start_file(
        &self,
        program: &'static str,
        path: &Path,
        args: &[String],
        side: Side,
    ) -> Result<Started> {
        let report = self.report(side);
        let mut command = match &report {
            None => Command::new(path),
            Some(report) => {
                let mut command = Command::new(&self.sgm);
                command.args(["run", "--report"]).arg(report);
                command.arg("--").arg(path);
                command
            }
        };
        command.args(args);
        self.launch(program, command, report)
    }

    /// Starts a Windows program, on Wine's own Winsock or with the providers.
    pub fn start_wine(
        &self,
        program: &'static str,
        prefix: &Path,
        path: &Path,
        args: &[String],
        side: Side,
    ) -> Result<Started> {
        let report = self.report(side);
        let mut command = Command::new(&self.sgm);
        command.args(["wine", "--prefix"]).arg(prefix);
        match &report {
            None => command.arg("--plain"),
            Some(report) => command.arg("--report").arg(report),
        };
        command.arg("--").arg(path).args(args);
        self.launch(program, command, report)
    }

    /// A file for the counters of the next program.
    fn report(&self, side: Side) -> Option<PathBuf> {
        let number = self.started.load(Ordering::Relaxed);
        (side == Side::Shared).then(|| self.path(&format!("{number}.report.json")))
    }

    /// Standard output and error go to files of their own.
    fn launch(
        &self,
        program: &'static str,
        mut command: Command,
        report: Option<PathBuf>,
    ) -> Result<Started> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.path(&format!("{number}.{program}.log"));
        let file = |path: &Path| {
            File::create(path).with_context(|| format!("cannot write {}", path.display()))
        };
        command
            .env("SGM_DIR", &self.node)
            .env_remove("LD_PRELOAD") // the caller's must not reach the plain side
            .current_dir(&self.files)
            .stdin(Stdio::null())
            .stdout(file(&log)?)
            .stderr(file(&log.with_extension("err"))?);
        Ok(Started {
            group: Group::spawn(&mut command)?,
            program,
            log,
            report,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for dir in [&self.files, &self.node] {
            if let Err(error) = std::fs::remove_dir_all(dir)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("cannot remove {}: {error}", dir.display());
            }
        }
    }
}

impl Started {
    /// Waits until standard output has this in it.
    pub fn wait_for_output(&mut self, text: &str, limit: Duration) -> Result<()> {
        let found = retry(limit, "the program does not get ready", || {
            if std::fs::read_to_string(&self.log)?.contains(text) {
                return Ok(ControlFlow::Break(()));
            }
            ensure!(self.group.is_alive(), "the program ended at once");
            Ok(ControlFlow::Continue(()))
        });
        found.map_err(|error| self.explain(error))
    }

    /// Waits for the end, and gives standard output and, under `sgm run`, the counters.
    pub fn finish(mut self, limit: Duration) -> Result<(String, Option<Report>)> {
        let status = match self.group.wait(limit) {
            Ok(status) => status,
            Err(error) => return Err(self.explain(error)),
        };
        self.ensure_success(status)?;
        let output = std::fs::read_to_string(&self.log)?;
        let report = self
            .report
            .as_deref()
            .map(Report::read)
            .transpose()
            .map_err(|error| self.explain(error))?;
        Ok((output, report))
    }

    fn ensure_success(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        bail!(self.explain(anyhow::anyhow!("{status}")))
    }

    /// The error with what the program said last.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if check_interrupted().is_err() {
            return error; // it is our own doing: its last words explain nothing
        }
        let side = if self.report.is_some() {
            "under Sockets-GM"
        } else {
            "over plain TCP"
        };
        let mut text = format!("{} {side}", self.program);
        for file in [self.log.clone(), self.log.with_extension("err")] {
            let said = std::fs::read(&file).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<&str> = said.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(8)) {
                text.push_str("\n    | ");
                text.push_str(line);
            }
        }
        error.context(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        // A stand-in that writes counters and runs the program, as the contract of `sgm run --report` says.
        let script = std::env::temp_dir().join(format!(
            "sgm-stand-in-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let text =
            "#!/bin/sh\necho '{\"carried\":{\"tx_bytes\":7}}' >\"$3\"\nshift 4\nexec \"$@\"\n";
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let node = script.with_extension("node");
        let files = script.with_extension("files");
        for dir in [&node, &files] {
            std::fs::create_dir(dir).unwrap();
        }
        Place {
            sgm: script,
            files,
            node,
            started: AtomicU32::new(0),
        }
    }

    #[test]
    fn both_sides_run_the_same_program_and_one_has_counters() {
        let place = place();
        let args = ["-c".to_owned(), "echo $SGM_DIR".to_owned()];
        let (plain, none) = place
            .start("sh", &args, Side::Tcp)
            .unwrap()
            .finish(Duration::from_secs(10))
            .unwrap();
        let (under, some) = place
            .start("sh", &args, Side::Shared)
            .unwrap()
            .finish(Duration::from_secs(10))
            .unwrap();
        assert_eq!(plain.trim(), place.node.to_str().unwrap());
        assert_eq!(plain, under);
        assert_eq!(none, None);
        assert_eq!(some.unwrap().carried.tx_bytes, 7);
        std::fs::remove_file(&place.sgm).unwrap();
        let (files, node) = (place.files.clone(), place.node.clone());
        drop(place);
        assert!(
            !files.exists() && !node.exists(),
            "the place leaves nothing behind"
        );
    }

    #[test]
    fn a_failing_program_is_an_error_with_its_last_words() {
        let place = place();
        let args = ["-c".to_owned(), "echo last words >&2; exit 4".to_owned()];
        let error = place
            .start("sh", &args, Side::Tcp)
            .unwrap()
            .finish(Duration::from_secs(10))
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("last words") && text.contains('4'), "{text}");
        std::fs::remove_file(&place.sgm).unwrap();
    }
}
