//! `build` and `bench`: the release programs that the demo, the tests and a user run.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::proc::{cargo, run, target_dir};
use crate::windows;

/// Command line of `cargo xtask build`.
#[derive(clap::Args)]
pub struct Args {
    /// Also build the Windows programs and the examples, into target/release/windows
    #[arg(long)]
    windows: bool,
}

/// Command line of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Passed to `sgm bench` as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Runs `cargo xtask build`.
pub fn main(args: &Args) -> Result<()> {
    release()?;
    if args.windows {
        windows::release()?;
    }
    Ok(())
}

/// Builds the programs for this system, and checks that they are where `sgm run` looks for them.
pub fn release() -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--release"]);
    for package in ["sgm", "sgm-preload", "sgm-gm-set-name"] {
        build.args(["-p", package]);
    }
    run(&mut build)?;
    for name in ["sgm", "libsockets_gm.so", "gm_set_name"] {
        let path = target_dir().join("release").join(name);
        ensure!(
            path.is_file(),
            "the build ended well but there is no {}",
            path.display()
        );
    }
    Ok(())
}

/// Builds, then hands over to `sgm bench`; its exit status is ours.
pub fn bench(args: &BenchArgs) -> Result<ExitCode> {
    release()?;
    if args.args.iter().any(|arg| arg.contains("wine")) {
        windows::release_64()?;
    }
    let sgm = target_dir().join("release/sgm");
    let status = std::process::Command::new(&sgm)
        .arg("bench")
        .args(&args.args)
        .status()
        .with_context(|| format!("cannot run {}", sgm.display()))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
