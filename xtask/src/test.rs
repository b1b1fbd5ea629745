//! `test`: every check of this repository, one stage after the other, stopping at the first that fails.
//!
//! The last line on stdout is always `N passed, N failed`: the sums over all `cargo test` runs. A stage that fails
//! without a failed test to show for it (a lint, a test program that died) counts as one failure, so that the line
//! never says `0 failed` about a run that did.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::proc::{Group, cargo, check_interrupted, root, run, stop_on_signals, target_dir};
use crate::results::{Failures, Tally};
use crate::setup::{self, Purpose, Systems};
use crate::{build, tidy, windows};

/// Command line of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave out the loom models, which take minutes
    #[arg(long)]
    quick: bool,
    /// Leave out all that is for Windows: its build, its lints and the tests under Wine
    #[arg(long)]
    linux_only: bool,
    /// Install missing packages without asking
    #[arg(long)]
    yes: bool,
}

/// A stage gives the tests that it ran, and whether it failed.
type Outcome = (Tally, Result<()>);
type Stage<'a> = (&'static str, Box<dyn Fn() -> Outcome + 'a>);

/// More than this in one `cargo test` is a hang: the whole run takes minutes.
const TEST_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs the stages; success only when every one did.
pub fn main(args: &Args) -> ExitCode {
    let mut stages: Vec<Stage> = vec![
        (
            "setup",
            plain(|| ready(Systems::unless(args.linux_only), args.yes)),
        ),
        (
            "fmt",
            plain(|| run(cargo().args(["fmt", "--all", "--check"]))),
        ),
        ("clippy", plain(clippy)),
        ("tidy", plain(|| ensure_success(tidy::main()?))),
        ("release build", plain(build::release)),
    ];
    if !args.linux_only {
        stages.push(("windows build", plain(windows::release)));
        stages.push(("windows clippy", plain(windows::clippy)));
    }
    stages.push(("tests", Box::new(|| tests(args.linux_only))));
    if !args.quick {
        stages.push(("loom models", Box::new(loom)));
    }
    let (tally, failed) = run_stages(&stages);
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn run_stages(stages: &[Stage]) -> (Tally, bool) {
    let mut sum = Tally::default();
    let mut lines = Vec::new();
    let mut failed = false;
    for (index, (name, stage)) in stages.iter().enumerate() {
        println!("==> [{}/{}] {name}", index + 1, stages.len());
        let start = Instant::now();
        let (tally, result) = stage();
        sum.add(tally);
        let counts = if tally.programs > 0 {
            format!("  {} passed", tally.passed)
        } else {
            String::new()
        };
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        lines.push(format!(
            "{name:<14} {word:<6} {:>7.1} s{counts}",
            start.elapsed().as_secs_f64()
        ));
        if let Err(error) = result {
            if tally.failed == 0 {
                sum.failed += 1;
            }
            lines.push(format!("stopped at stage `{name}`: {error:#}"));
            failed = true;
            break;
        }
    }
    println!();
    for line in lines {
        println!("{line}");
    }
    (sum, failed)
}

/// A stage without tests of its own.
fn plain<'a>(work: impl Fn() -> Result<()> + 'a) -> Box<dyn Fn() -> Outcome + 'a> {
    Box::new(move || (Tally::default(), work().and_then(|()| check_interrupted())))
}

fn ready(systems: Systems, yes: bool) -> Result<()> {
    setup::ensure_ready(Purpose::Test, systems, yes)?;
    setup::ensure_cargo_parts()?;
    // Only now: apt must see the terminal's own Ctrl-C.
    stop_on_signals()
}

fn clippy() -> Result<()> {
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// All unit and integration tests.
fn tests(linux_only: bool) -> Outcome {
    let test = || {
        let mut command = cargo();
        command.args(["test", "--no-fail-fast"]);
        command
    };
    if !linux_only {
        return tested(test().arg("--workspace"));
    }
    let (mut tally, result) = tested(test().args(["--workspace", "--exclude", "sgm-tests"]));
    let driving = linux_tests().and_then(|names| {
        let mut command = test();
        command.args(["-p", "sgm-tests", "--lib"]);
        for name in names {
            command.args(["--test", &name]);
        }
        let (more, result) = tested(&mut command);
        tally.add(more);
        result
    });
    (tally, result.and(driving))
}

/// The test programs of `tests/` that need no Wine: those whose name does not begin with it.
fn linux_tests() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in root().join("tests/tests").read_dir()? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if !name.starts_with("wine") {
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The memory-order models of the ring. They are compiled only with `cfg(loom)`, so a run that silently ran none
/// is the failure to guard against.
fn loom() -> Outcome {
    let flags = format!(
        "{} --cfg loom",
        std::env::var("RUSTFLAGS").unwrap_or_default()
    );
    let mut command = cargo();
    command
        .args([
            "test",
            "--release",
            "-p",
            "sgm-ring",
            "--test",
            "loom",
            "--target-dir",
        ])
        .arg(target_dir().join("loom"))
        .env("RUSTFLAGS", flags.trim());
    let (tally, result) = tested(&mut command);
    println!("loom models run: {}", tally.passed + tally.failed);
    let result = result.and_then(|()| {
        ensure!(tally.passed > 0, "no loom model ran");
        Ok(())
    });
    (tally, result)
}

/// Runs a `cargo test` command, passing its output on line by line and counting the results.
fn tested(command: &mut Command) -> Outcome {
    let mut tally = Tally::default();
    let result = count_results(command, TEST_LIMIT, &mut tally);
    (tally, result)
}

fn count_results(command: &mut Command, limit: Duration, tally: &mut Tally) -> Result<()> {
    let mut group = Group::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let output = BufReader::new(
        group
            .child()
            .stdout
            .take()
            .context("no pipe to the child")?,
    );
    let reader = std::thread::spawn(move || {
        let (mut tally, mut failures) = (Tally::default(), Failures::default());
        // Bytes, not text: a test may print anything.
        for line in output.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.take(&line);
            failures.take(&line);
        }
        (tally, failures)
    });
    let waited = group.wait(limit);
    // A process that escaped from the group could hold the pipe open: kill the group before joining.
    drop(group);
    let failures;
    (*tally, failures) = reader.join().unwrap_or_default();
    if !failures.text.is_empty() {
        println!(
            "\nWhat the failed tests said, once more:\n{}",
            failures.text
        );
    }
    let status = waited?;
    if !status.success() {
        bail!(
            "{} failed tests in {} test programs ({status})",
            tally.failed,
            tally.programs
        );
    }
    ensure!(
        tally.failed == 0,
        "the run ended well but {} tests failed",
        tally.failed
    );
    ensure!(tally.programs > 0, "no test program ran");
    Ok(())
}

fn ensure_success(code: ExitCode) -> Result<()> {
    ensure!(code == ExitCode::SUCCESS, "see the messages above");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_OK: &str =
        "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";

    fn shell(script: &str) -> Outcome {
        tested(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn results_are_counted_from_the_stream() {
        let (tally, result) = shell(&format!("echo '{ONE_OK}'; echo noise; echo '{ONE_OK}'"));
        assert_eq!((tally.passed, tally.programs), (2, 2));
        result.unwrap();
    }

    #[test]
    fn what_needs_wine_is_told_by_its_name() {
        let names = linux_tests().unwrap();
        assert!(names.iter().any(|name| name == "twins"));
        assert!(!names.iter().any(|name| name.contains("wine")), "{names:?}");
    }

    #[test]
    fn a_run_without_tests_or_with_a_bad_exit_is_a_failure() {
        assert!(shell("true").1.is_err());
        assert!(shell(&format!("echo '{ONE_OK}'; exit 101")).1.is_err());
        assert!(
            shell("echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored'")
                .1
                .is_err()
        );
    }

    #[test]
    fn a_hang_ends_at_the_limit() {
        let mut tally = Tally::default();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo '{ONE_OK}'; sleep 600")]);
        let error =
            count_results(&mut command, Duration::from_millis(300), &mut tally).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        assert_eq!(tally.passed, 1);
    }

    #[test]
    fn a_failing_stage_counts_once_and_stops_the_run() {
        let stages: Vec<Stage> = vec![
            (
                "good",
                Box::new(|| {
                    (
                        Tally {
                            passed: 2,
                            failed: 0,
                            programs: 1,
                        },
                        Ok(()),
                    )
                }),
            ),
            ("bad", plain(|| bail!("a lint"))),
            ("never", plain(|| panic!("ran after a failure"))),
        ];
        let (tally, failed) = run_stages(&stages);
        assert!(failed);
        assert_eq!((tally.passed, tally.failed), (2, 1));
    }
}
