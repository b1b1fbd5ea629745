//! `cargo xtask`: every command that the README names. Each subcommand is a module; this file only parses and dispatches.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod build;
mod demo;
mod needs;
mod proc;
mod results;
mod setup;
mod test;
mod tidy;
mod windows;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "The commands of the Sockets-GM repository"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the programs that building, the demo or the tests need (Debian, Ubuntu)
    Setup(setup::Args),
    /// Build target/release/sgm, gm_set_name and libsockets_gm.so; with --windows also target/release/windows
    Build(build::Args),
    /// Run real programs over plain TCP and under Sockets-GM, side by side
    Demo(demo::Args),
    /// Run every check and every test; the last line is `N passed, N failed`
    Test(test::Args),
    /// Build, then run `sgm bench` with the arguments given
    Bench(build::BenchArgs),
    /// Check what the compiler does not: file sizes, layering, links, words, permissions to use unsafe
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(args) => setup::main(&args).map(|()| ExitCode::SUCCESS),
        Command::Build(args) => build::main(&args).map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::main(&args).map(|()| ExitCode::SUCCESS),
        Command::Test(args) => Ok(test::main(&args)),
        Command::Bench(args) => build::bench(&args),
        Command::Tidy => tidy::main(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
