//! `sgm`: the user's words for Sockets-GM. Each subcommand is a module; this file only parses and dispatches.

use clap::{Parser, Subcommand};

mod addresses;
mod bench;
mod compat;
mod doctor;
mod node;
mod report;
mod run;
mod status;
mod wine;

#[derive(Parser)]
#[command(
    name = "sgm",
    version,
    about = "Run unmodified socket programs over shared memory"
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
    match Cli::parse().command {
        Command::Run(args) => run::main(args),
        Command::Wine(args) => wine::main(args),
        Command::Status(args) => status::main(args),
        Command::Node(args) => node::main(args),
        Command::Doctor(args) => doctor::main(args),
        Command::Bench(args) => bench::main(args),
        Command::Compat => compat::main(),
    }
}
