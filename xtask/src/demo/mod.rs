//! `demo`: the main job, plain and carried side by side; rounds alternate, so that a busy moment of the machine meets
//! both. First Debian's redis and nginx, loaded by redis-benchmark and wrk, over plain TCP and under `sgm run`
//! ([`linux`]); then a Windows program under Wine, on its Winsock and under `sgm wine` ([`windows`]).
//!
//! The counters of `--report` must show that shared memory carried the bytes of the second kind, or the demo fails: a
//! ratio without that proof says nothing.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::proc::{stop_on_signals, target_dir};
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
    setup::ensure_ready(Purpose::Demo, Systems::unless(args.linux_only), args.yes)?;
    if !args.no_build {
        build::release()?;
        if !args.linux_only {
            windows_build::release()?;
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
    use super::*;

    #[test]
    fn a_side_indexes_its_own_place() {
        assert_eq!(Side::BOTH.map(|side| side as usize), [0, 1]);
    }
}
