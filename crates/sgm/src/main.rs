//! `sgm`: the user's words for Sockets-GM. Each subcommand is a module; this file only parses and dispatches.

use clap::{Parser, Subcommand};

#[macro_use]
mod out;

mod addresses;
mod bench;
mod compat;
mod doctor;
mod node;
mod report;
mod run;
mod status;
mod supervise;
mod wine;

const HELP: &str = "\
Examples:
  sgm run -- redis-server --port 7777                      one side
  sgm run --explain -- redis-benchmark -p 7777 -t get      the other; says at the end what was carried
  sgm status                                               while they run: what is carried, and why the rest is not
  sgm wine -- program.exe its arguments                    a Windows program
  sgm doctor                                               when nothing is carried

Environment:
  SGM_DIR            node directory, where the two sides meet [default: /dev/shm/sockets-gm-<uid>]; yours alone, mode 700
  SGM_DISABLE=1      the program and its children stay on plain TCP
  SGM_PROMOTE_CALLS  calls that move bytes before a connection is promoted [default: 6; 0: at once, for tests]
  SGM_STDIO=0        connections that FILE streams use go back to TCP
  SGM_LSP=0, =1      a Windows program opts out of, or into, being carried
  SGM_LINUX=0        a Windows program under Wine goes through Winsock alone, as on Windows
";

#[derive(Parser)]
#[command(
    name = "sgm",
    version,
    about = "Run unmodified socket programs over shared memory",
    after_help = HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a program with Sockets-GM; its exit status is the program's
    Run(run::Args),
    /// Start a Windows program under Wine with Sockets-GM; its exit status is the program's
    Wine(wine::Args),
    /// Show every live socket that Sockets-GM sees on this node
    Status(status::Args),
    /// Show this node: its name, directory, listeners, ports and live processes
    Node(node::Args),
    /// Check the node directory, permissions, space, stale state, versions and kernel features
    Doctor(doctor::Args),
    /// Measure round trips, messages, bytes and connections, plain TCP beside carried
    Bench(bench::Args),
    /// Print docs/compatibility.md, from the table of interposed functions
    #[command(hide = true)]
    Compat,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let code = match Cli::parse().command {
        Command::Run(args) => run::main(args),
        Command::Wine(args) => wine::main(args),
        Command::Status(args) => status::main(args),
        Command::Node(args) => node::main(args),
        Command::Doctor(args) => doctor::main(args),
        Command::Bench(args) => bench::main(args),
        Command::Compat => compat::main(),
    }?;
    Ok(out::finish(code))
}
