//! `sgm wine`: a Windows program under Wine, with the provider catalog and the providers in its prefix.
//!
//! A prefix of our own is made on first use; one that the user names is only added to. What is put there, and how it is
//! taken out again, is in [`prefix`]; where Wine and our DLLs lie, in [`places`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::run::{self, Reporting};

mod files;
mod places;
mod prefix;
mod registry;
mod state;

pub use state::checks;

use places::{Programs, Width, Wine};
use prefix::Prefix;

#[derive(clap::Args)]
pub struct Args {
    /// The Wine prefix to use, instead of WINEPREFIX or one of our own
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
    #[command(flatten)]
    reporting: Reporting,
    /// Run in the same prefix, but on Wine's own Winsock: for comparison
    #[arg(long)]
    plain: bool,
    /// Take everything of ours out of the prefix again, and run nothing
    #[arg(long, conflicts_with_all = ["plain", "explain", "report", "command"])]
    remove: bool,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, required_unless_present = "remove")]
    command: Vec<OsString>,
}

pub fn main(args: Args) -> Result<ExitCode> {
    let wine = Wine::find()?;
    let prefix = Prefix::choose(args.prefix.as_deref())?;
    if args.remove {
        return prefix.remove(&wine).map(|()| ExitCode::SUCCESS);
    }
    let (program, rest) = args.command.split_first().context("no program")?;
    let program = Path::new(program);
    if let Some(why) = unfit(program) {
        eprintln!("sgm: can't run {}: {why}", program.display());
        return Ok(ExitCode::from(if program.exists() { 126 } else { 127 }));
    }
    let programs = Programs::find()?;
    prefix.prepare(&wine, &programs)?;
    prefix.boot(&wine)?;
    let winsock = if args.plain {
        Winsock::Wines
    } else {
        Winsock::Carrying
    };
    let mut command = command(&wine, &prefix, winsock);
    command.arg(program).args(rest);
    run::execute(command, program, &args.reporting, |program| {
        if args.plain {
            return Some("run with --plain, on Wine's own Winsock");
        }
        let narrow = std::fs::read(program).is_ok_and(|i| files::machine(&i) == Some(files::I386));
        (narrow && !prefix.serves(Width::Bits32, &wine, &programs))
            .then_some("a 32-bit program, and there are no 32-bit providers in the prefix, so it ran on plain TCP")
    })
}

/// Whose Winsock a program gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winsock {
    /// Wine's own, as without us.
    Wines,
    /// Ours, and the program has not opted in: the fall-through provider.
    FallThrough,
    /// Ours, and the provider that carries.
    Carrying,
}

/// Wine on a prepared prefix, its program to be added.
fn command(wine: &Wine, prefix: &Prefix, winsock: Winsock) -> Command {
    let mut command = wine.command(prefix.dir());
    match winsock {
        Winsock::Wines => command
            .env("WINEDLLOVERRIDES", builtin_only())
            .env_remove("SGM_LSP"),
        Winsock::FallThrough => command.env("SGM_LSP", "0"),
        Winsock::Carrying => command.env("SGM_LSP", "1"),
    };
    command
}

/// A prefix in use by a series of programs. What was not running before ends with it.
pub struct Installed {
    wine: Wine,
    prefix: Prefix,
    programs: Programs,
    ran_before: bool,
}

impl Installed {
    /// The prefix that `sgm wine` would use without options, prepared and started.
    pub fn open() -> Result<Installed> {
        let wine = Wine::find()?;
        let prefix = Prefix::choose(None)?;
        let programs = Programs::find()?;
        let ran_before = prefix.server().is_some();
        let this = Installed {
            wine,
            prefix,
            programs,
            ran_before,
        };
        this.prefix.prepare(&this.wine, &this.programs)?;
        this.prefix.boot(&this.wine)?;
        Ok(this)
    }

    /// A command for a Windows program, which is still to be named.
    pub fn command(&self, winsock: Winsock) -> Command {
        command(&self.wine, &self.prefix, winsock)
    }

    /// Where a Windows program of this project was built to.
    pub fn built(&self, name: &str) -> Result<PathBuf> {
        let file = self.programs.file(Width::Bits64, name);
        if file.is_file() {
            return Ok(file);
        }
        missing(
            &format!("there is no {}", file.display()),
            "build it with `cargo xtask build --windows`",
        )
    }

    /// Process number of the prefix's wineserver.
    pub fn server(&self) -> Option<u32> {
        self.prefix.server()
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if !self.ran_before {
            self.prefix.stop(&self.wine);
        }
    }
}

/// WINEDLLOVERRIDES that keeps our Winsock DLL out; the rest of the variable stays.
fn builtin_only() -> OsString {
    let mut value = std::env::var_os("WINEDLLOVERRIDES").unwrap_or_default();
    if !value.is_empty() {
        value.push(";");
    }
    value.push("ws2_32=b");
    value
}

/// Why Wine could not start this, as far as its Unix name tells. Other names are Wine's to look up.
fn unfit(program: &Path) -> Option<&'static str> {
    if program.components().count() > 1 && !program.to_string_lossy().contains(['\\', ':']) {
        if !program.exists() {
            return Some("no such file");
        }
        if program.is_dir() {
            return Some("it is a directory");
        }
    }
    None
}

/// An error with what to do about it.
fn missing<T>(what: &str, next: &str) -> Result<T> {
    bail!("{what}: {next}")
}
