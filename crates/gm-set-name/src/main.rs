//! `gm_set_name --host-name=NAME`: gives this node its name, as GM's tool of that name did. `sgm node` shows it.

use std::process::ExitCode;

use clap::Parser;
use gm::Node;

#[derive(Parser)]
#[command(
    name = "gm_set_name",
    version,
    about = "Give this node its name, which `sgm node` shows",
    arg_required_else_help = true
)]
struct Args {
    /// The name: a host name or an IP address
    #[arg(long, value_name = "NAME-or-IP")]
    host_name: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let dir = Node::dir_from_env();
    match gm::name::set(&dir, &args.host_name) {
        Ok(()) => {
            println!("{}: {}", dir.display(), args.host_name);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("gm_set_name: {e}");
            ExitCode::FAILURE
        }
    }
}
