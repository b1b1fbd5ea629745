//! `test`: every check of this repository, one stage after the other. A stage that fails does not keep the others from
//! running; at the end each failure is told with the lines that say why.
//!
//! The last line on stdout is always `N passed, N failed`: the sums over all `cargo test` runs. A stage that fails
//! without a failed test to show for it (a lint, a test program that died) counts as one failure, so that the line
//! never says `0 failed` about a run that did.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::proc::{
    self, Group, cargo, check_interrupted, recorded, root, run, stop_on_signals, target_dir,
};
use crate::results::{Failures, Tally, relevant};
use crate::setup::{self, Purpose, Systems};
use crate::{build, windows};

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

/// What a stage gives.
struct Outcome {
    /// The tests that it ran.
    tally: Tally,
    /// Whether it failed.
    result: Result<()>,
    /// What it said that tells why.
    said: String,
}

type Stage<'a> = (&'static str, Box<dyn Fn() -> Outcome + 'a>);

/// More than this in one `cargo test` is a hang: the whole run takes minutes, on a busy machine some times as many.
const TEST_LIMIT: Duration = Duration::from_secs(40 * 60);

/// Runs the stages; success only when every one did.
pub fn main(args: &Args) -> ExitCode {
    let mut stages: Vec<Stage> = vec![
        (
            "setup",
            talking(|| ready(Systems::unless(args.linux_only), args.yes)),
        ),
        (
            "fmt",
            plain(|| run(cargo().args(["fmt", "--all", "--check"]))),
        ),
        ("clippy", plain(clippy)),
        ("tidy", plain(tidy)),
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
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    for (index, (name, stage)) in stages.iter().enumerate() {
        println!("==> [{}/{}] {name}", index + 1, stages.len());
        let start = Instant::now();
        let Outcome {
            tally,
            result,
            said,
        } = stage();
        sum.add(tally);
        let counts = if tally.programs > 0 {
            format!("  {} passed, {} failed", tally.passed, tally.failed)
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
            println!("stage `{name}` failed: {error:#}");
            failures.push(format!("==> stage `{name}` failed: {error:#}\n{said}"));
            if check_interrupted().is_err() {
                lines.push("interrupted: the stages after this one did not run".to_owned());
                break;
            }
        }
    }
    for failure in &failures {
        println!("\n{}", failure.trim_end());
    }
    println!();
    for line in lines {
        println!("{line}");
    }
    (sum, !failures.is_empty())
}

/// A stage without tests of its own; what its commands say is kept.
fn plain<'a>(work: impl Fn() -> Result<()> + 'a) -> Box<dyn Fn() -> Outcome + 'a> {
    Box::new(move || {
        let (result, lines) = recorded(&work);
        Outcome {
            tally: Tally::default(),
            result: result.and_then(|()| check_interrupted()),
            said: relevant(&lines).join("\n"),
        }
    })
}

/// A stage that may ask, so that its commands need the terminal; its error says all.
fn talking<'a>(work: impl Fn() -> Result<()> + 'a) -> Box<dyn Fn() -> Outcome + 'a> {
    Box::new(move || Outcome {
        tally: Tally::default(),
        result: work().and_then(|()| check_interrupted()),
        said: String::new(),
    })
}

fn ready(systems: Systems, yes: bool) -> Result<()> {
    let ready = setup::ensure_ready(Purpose::Test, systems, yes);
    let parts = setup::ensure_cargo_parts();
    // Only now: apt must see the terminal's own Ctrl-C.
    stop_on_signals()?;
    ready.and(parts)
}

/// As a command of its own, for the record of what it says.
fn tidy() -> Result<()> {
    run(Command::new(std::env::current_exe()?).arg("tidy"))
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
    let mut outcome = tested(test().args(["--workspace", "--exclude", "sgm-tests"]));
    let names = match linux_tests() {
        Ok(names) => names,
        Err(error) => {
            outcome.result = outcome.result.and(Err(error));
            return outcome;
        }
    };
    let mut command = test();
    command.args(["-p", "sgm-tests", "--lib"]);
    for name in names {
        command.args(["--test", &name]);
    }
    let driving = tested(&mut command);
    outcome.tally.add(driving.tally);
    outcome.result = outcome.result.and(driving.result);
    outcome.said += &driving.said;
    outcome
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
    let mut outcome = tested(&mut command);
    let tally = outcome.tally;
    println!("loom models run: {}", tally.passed + tally.failed);
    outcome.result = outcome.result.and_then(|()| {
        ensure!(tally.passed > 0, "no loom model ran");
        Ok(())
    });
    outcome
}

/// Runs a `cargo test` command, passing its output on line by line and counting the results.
fn tested(command: &mut Command) -> Outcome {
    tested_within(command, TEST_LIMIT)
}

fn tested_within(command: &mut Command, limit: Duration) -> Outcome {
    let mut outcome = Outcome {
        tally: Tally::default(),
        result: Ok(()),
        said: String::new(),
    };
    outcome.result = count_results(command, limit, &mut outcome.tally, &mut outcome.said);
    outcome
}

fn count_results(
    command: &mut Command,
    limit: Duration,
    tally: &mut Tally,
    said: &mut String,
) -> Result<()> {
    let output = proc::one_pipe(command)?;
    let mut group = Group::spawn(command.stdin(Stdio::null()))?;
    proc::close_pipe(command);
    let reader = std::thread::spawn(move || {
        let (mut tally, mut failures) = (Tally::default(), Failures::default());
        let mut lines = Vec::new();
        proc::pass_on(output, |line| {
            tally.take(line);
            failures.take(line);
            lines.push(line.to_owned());
        });
        (tally, failures, lines)
    });
    let waited = group.wait(limit);
    // A process that escaped from the group could hold the pipe open: kill the group before joining.
    drop(group);
    let (counted, failures, lines) = reader.join().unwrap_or_default();
    *tally = counted;
    // What failed tests said, and then cargo's own errors: which test programs failed, died or did not compile.
    let end = lines
        .iter()
        .rposition(|line| line.starts_with("error: ") && line.ends_with(" failed:"));
    let errors = relevant(&lines[end.unwrap_or(0)..]);
    *said = format!("{}{}\n", failures.text, errors.join("\n"));
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
        let outcome = shell(&format!("echo '{ONE_OK}'; echo noise >&2; echo '{ONE_OK}'"));
        assert_eq!((outcome.tally.passed, outcome.tally.programs), (2, 2));
        outcome.result.unwrap();
    }

    #[test]
    fn what_needs_wine_is_told_by_its_name() {
        let names = linux_tests().unwrap();
        assert!(names.iter().any(|name| name == "twins"));
        assert!(!names.iter().any(|name| name.contains("wine")), "{names:?}");
    }

    #[test]
    fn a_run_without_tests_or_with_a_bad_exit_is_a_failure() {
        assert!(shell("true").result.is_err());
        assert!(shell(&format!("echo '{ONE_OK}'; exit 101")).result.is_err());
        let failed = shell("echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored'");
        assert!(failed.result.is_err());
    }

    #[test]
    fn what_failed_tests_and_cargo_said_is_kept() {
        let outcome = shell(&format!(
            "echo '---- one stdout ----'; echo why; echo 'failures:'; echo '{ONE_OK}'; \
             echo 'error: 1 target failed:' >&2; echo '    `-p sgm-ring --test loom`' >&2; exit 101"
        ));
        let said =
            "---- one stdout ----\nwhy\nerror: 1 target failed:\n    `-p sgm-ring --test loom`\n";
        assert_eq!(outcome.said, said);
    }

    #[test]
    fn a_hang_ends_at_the_limit() {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo '{ONE_OK}'; sleep 600")]);
        let outcome = tested_within(&mut command, Duration::from_millis(300));
        let error = outcome.result.unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        assert_eq!(outcome.tally.passed, 1);
    }

    #[test]
    fn a_failing_stage_counts_once_and_the_others_run() {
        let good = || Outcome {
            tally: Tally {
                passed: 2,
                failed: 0,
                programs: 1,
            },
            result: Ok(()),
            said: String::new(),
        };
        let stages: Vec<Stage> = vec![
            ("bad", plain(|| bail!("a lint"))),
            ("good", Box::new(good)),
            (
                "worse",
                plain(|| run(Command::new("sh").args(["-c", "echo error: of mine; exit 3"]))),
            ),
            ("good too", Box::new(good)),
        ];
        let (tally, failed) = run_stages(&stages);
        assert!(failed);
        assert_eq!((tally.passed, tally.failed), (4, 2));
        let worse = stages[2].1();
        assert_eq!(worse.said, "error: of mine");
        assert!(worse.result.is_err());
    }
}
