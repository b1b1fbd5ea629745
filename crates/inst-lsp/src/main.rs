//! `inst_lsp`: installs, removes, lists and repairs the layered service provider.
//!
//! [`plan`] decides from the catalog alone what is there and what is to be done; `system` makes the calls (documented
//! WSC* functions, one file, one registry key); `run` puts them in order and undoes what it did when a step fails.

#![cfg_attr(not(windows), allow(dead_code))] // elsewhere only the pure parts are compiled, for their tests
#![allow(unsafe_code)] // calls ws2_32's WSC* functions

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

mod plan;
#[cfg(windows)]
mod run;
#[cfg(windows)]
mod system;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; what was done before the failure has been undone
  2  wrong arguments
  3  nothing to do: already installed, not installed, nothing to repair
  4  no rights: run it as administrator
  5  the catalog is in the way: half an installation (see `repair`), or another
     provider's chain goes through this one (remove that provider first)

The 64-bit catalog alone is covered: 32-bit programs run without the provider.";

#[derive(Parser)]
#[command(name = "inst_lsp", version, about = "Installs the Sockets-GM layered service provider", after_help = EXIT_CODES)]
struct Args {
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put the provider's chains before the base protocols, and the fall-through DLL into the system directory
    Install {
        /// Directory of lsp.dll [default: that of inst_lsp itself]
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Take everything out that `install` put in
    Remove,
    /// Show the catalog and the state of the installation
    List,
    /// Find half an installation, a wrong order or a missing file, and mend it
    Repair,
}

/// How a command ended, for scripts; the numbers are in the help and do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Exit {
    Done = 0,
    Failed = 1,
    NothingToDo = 3,
    NoRights = 4,
    InTheWay = 5,
}

/// What a command has to say.
#[derive(Serialize)]
struct Report {
    exit: Exit,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<Box<plan::Listing>>,
}

impl Report {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            list: None,
        }
    }

    fn print(&self, json: bool) {
        match (json, &self.list) {
            (true, _) => match serde_json::to_string_pretty(self) {
                Ok(text) => println!("{text}"),
                Err(error) => eprintln!("inst_lsp: {error}"),
            },
            (false, Some(list)) => print!("{list}"),
            (false, None) if self.exit == Exit::Done => println!("{}", self.message),
            (false, None) => eprintln!("inst_lsp: {}", self.message),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let report = run(args.command);
    report.print(args.json);
    ExitCode::from(report.exit as u8)
}

#[cfg(windows)]
fn run(command: Command) -> Report {
    let done = match command {
        Command::Install { dir } => run::install(dir),
        Command::Remove => run::remove(),
        Command::List => run::list(),
        Command::Repair => run::repair(),
    };
    done.unwrap_or_else(|refusal| refusal)
}

#[cfg(not(windows))]
fn run(_: Command) -> Report {
    Report::new(Exit::Failed, "this program is for Windows and for Wine")
}
