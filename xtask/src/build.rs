//! `build` and `bench`: the release programs that the demo, the tests and a user run.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::proc::{cargo, run, target_dir};

/// Command line of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Passed to `sgm bench` as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Builds `sgm` and `libsockets_gm.so`, and checks that both are where `sgm run` looks for them.
pub fn release() -> Result<()> {
    run(cargo().args(["build", "--release", "-p", "sgm", "-p", "sgm-preload"]))?;
    for name in ["sgm", "libsockets_gm.so"] {
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
