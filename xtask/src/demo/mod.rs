//! `demo`: the main job, plain and carried side by side; rounds alternate, so that a busy moment of the machine meets
//! both. First Debian's redis and nginx, loaded by redis-benchmark and wrk, over plain TCP and under `sgm run`
//! ([`linux`]); then a Windows program under Wine, on its Winsock and under `sgm wine` ([`windows`]).
//!
//! The counters of `--report` must show that shared memory carried the bytes of the second kind, or the demo fails: a
//! ratio without that proof says nothing.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::proc::{check_interrupted, stop_on_signals, target_dir};
use crate::setup::{self, Purpose, Systems};
use crate::{build, windows as windows_build};

mod linux;
mod loads;
mod place;
mod report;
mod servers;
mod table;
mod windows;

use place::Place;

/// Command line of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Install missing packages without asking
    #[arg(long)]
    yes: bool,
    /// Use target/release as it is
    #[arg(long)]
    no_build: bool,
    /// Leave out the Windows part, which needs Wine and a compiler for Windows
    #[arg(long, conflicts_with = "windows_only")]
    linux_only: bool,
    /// Leave out redis and nginx
    #[arg(long)]
    windows_only: bool,
    /// Measured rounds of each side; the table shows their medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
}

/// How a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// As it is.
    Tcp,
    /// Under `sgm run`.
    Shared,
}

impl Side {
    const BOTH: [Side; 2] = [Side::Tcp, Side::Shared];

    fn label(self) -> &'static str {
        match self {
            Side::Tcp => "plain TCP",
            Side::Shared => "Sockets-GM",
        }
    }
}

/// Runs `cargo xtask demo`.
pub fn main(args: &Args) -> Result<()> {
    announce(args);
    setup::ensure_ready(Purpose::Demo, Systems::unless(args.linux_only), args.yes)?;
    if !args.no_build {
        build::release()?;
        if !args.linux_only {
            windows_build::release_64()?;
        }
    }
    let sgm = target_dir().join("release/sgm");
    for file in [&sgm, &target_dir().join("release/libsockets_gm.so")] {
        ensure!(
            file.is_file(),
            "there is no {}: run `cargo xtask build`",
            file.display()
        );
    }
    stop_on_signals()?;
    let place = Place::create(sgm)?;
    if !args.windows_only {
        linux::main(&place, args.rounds)?;
    }
    if !args.linux_only {
        windows::main(&place, args.rounds)?;
    }
    Ok(())
}

/// How long a part takes on two CPUs, roughly, in seconds: what it is done for, and how often the figure counts.
const PACKAGES_S: u64 = 150;
const LINUX_BUILD_S: u64 = 50;
const WINDOWS_BUILD_S: u64 = 140;
const PREFIX_S: u64 = 10;
const LINUX_ROUND_S: u64 = 18;
const WINDOWS_ROUND_S: u64 = 12;

/// Says beforehand how long all this takes, and what takes the time.
fn announce(args: &Args) {
    let systems = Systems::unless(args.linux_only);
    let mut parts = Vec::new();
    let packages = setup::missing_count(Purpose::Demo, systems);
    if packages > 0 {
        parts.push((format!("installing {packages} packages"), PACKAGES_S));
    }
    let built = |file: &str| target_dir().join("release").join(file).exists();
    if !args.no_build && !built("sgm") {
        parts.push(("the first build".to_owned(), LINUX_BUILD_S));
    }
    if !args.no_build && !args.linux_only && !built("windows/lsp.dll") {
        let text = "the first build for Windows, standard library included";
        parts.push((text.to_owned(), WINDOWS_BUILD_S));
    }
    let rounds = u64::from(args.rounds);
    if !args.windows_only {
        // A warm-up is half a round.
        let seconds = LINUX_ROUND_S * (2 * rounds + 1) / 2;
        parts.push(("redis and nginx".to_owned(), seconds));
    }
    if !args.linux_only {
        if !windows::prefix().exists() {
            parts.push(("making a Wine prefix".to_owned(), PREFIX_S));
        }
        let seconds = WINDOWS_ROUND_S * rounds;
        parts.push(("the programs under Wine".to_owned(), seconds));
    }
    println!("{}", plan(&parts));
}

/// `This takes about 3 minutes: 2 min one thing, 50 s another`.
fn plan(parts: &[(String, u64)]) -> String {
    let rough = |seconds: u64| match seconds {
        0..90 => format!("{} s", seconds.div_ceil(10) * 10),
        _ => format!("{} min", (seconds + 30) / 60),
    };
    let all = rough(parts.iter().map(|(_, seconds)| seconds).sum());
    let parts: Vec<String> = parts
        .iter()
        .map(|(what, seconds)| format!("{} for {what}", rough(*seconds)))
        .collect();
    format!(
        "This takes about {all} on two idle CPUs: {}.",
        parts.join(", ")
    )
}

/// The progress lines.
struct Steps {
    done: u32,
    all: u32,
}

impl Steps {
    fn new(all: u32) -> Steps {
        Steps { done: 0, all }
    }

    fn run<T>(&mut self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.done += 1;
        print!("[{:>2}/{}] {what:<52}", self.done, self.all);
        std::io::stdout().flush()?;
        Self::timed(work)
    }

    /// As [`Steps::run`], for what is plain Wine's alone: a failure may be a hiccup of it (a process that it could not start, a
    /// server that was busy ending), so it is said, and tried once more.
    fn run_plain_wine<T>(&mut self, what: &str, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let first = match self.run(what, &mut work) {
            Err(error) if check_interrupted().is_ok() => error,
            done => return done,
        };
        println!("{first:#}");
        print!("        plain Wine failed, with nothing of Sockets-GM in it; once more   ");
        std::io::stdout().flush()?;
        Self::timed(work)
    }

    fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work();
        match &result {
            Ok(_) => println!(" {:>4.1} s", start.elapsed().as_secs_f64()),
            Err(_) => println!(" failed"),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_side_indexes_its_own_place() {
        assert_eq!(Side::BOTH.map(|side| side as usize), [0, 1]);
    }

    #[test]
    fn plain_wine_has_a_second_try_and_no_third() {
        let mut steps = Steps::new(3);
        let mut tries = 0;
        let second = steps.run_plain_wine("hiccup", || {
            tries += 1;
            if tries == 1 {
                bail!("error 1359")
            } else {
                Ok(tries)
            }
        });
        assert_eq!(second.unwrap(), 2);
        let mut tries = 0;
        let never: Result<()> = steps.run_plain_wine("broken", || {
            tries += 1;
            bail!("always")
        });
        assert!(never.is_err());
        assert_eq!((tries, steps.done), (2, 2));
    }

    #[test]
    fn the_plan_is_in_rough_times() {
        let parts = [("builds".to_owned(), 190), ("loads".to_owned(), 63)];
        let text = "This takes about 4 min on two idle CPUs: 3 min for builds, 70 s for loads.";
        assert_eq!(plan(&parts), text);
    }
}
