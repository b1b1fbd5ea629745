//! `sgm`: the user's words for Sockets-GM. Each subcommand is a module; this file only parses and dispatches.

use clap::{Parser, Subcommand};

mod bench;

#[derive(Parser)]
#[command(name = "sgm", version, about = "Run unmodified socket programs over shared memory")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure round trips, messages, bytes and connections, plain TCP beside carried
    Bench(bench::Args),
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    match Cli::parse().command {
        Command::Bench(args) => bench::main(args),
    }
}
