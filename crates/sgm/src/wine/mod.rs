//! `sgm wine`: a Windows program under Wine, with the provider catalog and the providers in its prefix.
//!
//! A prefix of our own is made on first use; one that the user names is only added to. What is put there, and how it is
//! taken out again, is in [`prefix`]; where Wine and our DLLs lie, in [`places`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::run::{self, Reporting};

mod files;
mod places;
mod prefix;
mod registry;
mod state;

pub use state::checks;

use places::{Programs, Wine};
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
    #[arg(
        trailing_var_arg = true,
        required_unless_present = "remove",
        allow_hyphen_values = true
    )]
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
    prefix.prepare(&wine, &Programs::find()?)?;
    prefix.boot(&wine)?;
    let mut command = wine.command(prefix.dir());
    command.arg(program).args(rest);
    if args.plain {
        command
            .env("WINEDLLOVERRIDES", builtin_only())
            .env_remove("SGM_LSP");
    } else {
        command.env("SGM_LSP", "1");
    }
    // Under Wine a relative name would be one of drive C's.
    if let Some(dir) = std::env::var_os("SGM_DIR").filter(|dir| !dir.is_empty()) {
        command.env("SGM_DIR", std::path::absolute(dir)?);
    }
    run::execute(command, program, &args.reporting, |program| {
        if args.plain {
            return Some("run with --plain, on Wine's own Winsock");
        }
        cannot_carry(program)
    })
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

/// Why no provider can be in this program.
fn cannot_carry(program: &Path) -> Option<&'static str> {
    let image = std::fs::read(program).ok()?;
    (files::machine(&image) == Some(files::I386))
        .then_some("a 32-bit program: the providers are 64-bit, so it ran on plain TCP")
}

/// An error with what to do about it.
fn missing<T>(what: &str, next: &str) -> Result<T> {
    bail!("{what}: {next}")
}
