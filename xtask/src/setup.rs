//! `setup`: finds the programs that are missing, says what it would install and why, and installs it with apt.

use std::io::{BufRead, IsTerminal, Write};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::needs::{NEEDS, Need};
pub use crate::needs::{Purpose, Systems};
use crate::proc::{find_program, run};

/// Command line of `cargo xtask setup`.
#[derive(clap::Args)]
pub struct Args {
    /// Install without asking
    #[arg(long)]
    yes: bool,
    /// What the machine should be able to do; each includes the ones before it
    #[arg(long = "for", value_enum, default_value_t = Purpose::Test)]
    purpose: Purpose,
    /// With `--for build`: also what the Windows programs are built with
    #[arg(long, conflicts_with = "linux_only")]
    windows: bool,
    /// Leave out what only the Windows programs need
    #[arg(long)]
    linux_only: bool,
}

/// Runs `cargo xtask setup`.
pub fn main(args: &Args) -> Result<()> {
    let windows = args.windows || args.purpose > Purpose::Build;
    let systems = Systems::unless(args.linux_only || !windows);
    ensure_ready(args.purpose, systems, args.yes)?;
    println!(
        "setup: everything that `{}` needs is here",
        name_of(args.purpose)
    );
    Ok(())
}

/// How many packages [`ensure_ready`] would install.
pub fn missing_count(purpose: Purpose, systems: Systems) -> usize {
    missing(purpose, systems, Need::is_present).len()
}

/// Leaves the machine able to serve `purpose`, asking first unless `yes`; silent when nothing is missing.
pub fn ensure_ready(purpose: Purpose, systems: Systems, yes: bool) -> Result<()> {
    let missing = missing(purpose, systems, Need::is_present);
    if missing.is_empty() {
        return Ok(());
    }
    println!("Needed for `{}` and not found here:", name_of(purpose));
    for need in &missing {
        println!(
            "  {:<22} from {:<20} {}",
            need.probe, need.package, need.why
        );
    }
    if missing.iter().any(|need| need.compiler) {
        println!(
            "The compiler for Windows takes the place of Debian's own rustc and cargo, if those are installed; a rustup \
             toolchain stays as it is. With rustup, `rustup target add x86_64-pc-windows-gnu` does instead."
        );
    }
    if find_program("apt-get").is_none() {
        let programs: Vec<_> = missing.iter().map(|need| need.probe).collect();
        bail!(
            "this is not a Debian or Ubuntu system: install {} in your system's way, then try again",
            programs.join(", ")
        );
    }
    install(&missing, yes)?;
    let still: Vec<_> = missing
        .iter()
        .filter(|need| !need.is_present())
        .map(|need| need.probe)
        .collect();
    ensure!(
        still.is_empty(),
        "installed, but still not found: {}",
        still.join(", ")
    );
    Ok(())
}

fn install(missing: &[&Need], yes: bool) -> Result<()> {
    let packages = packages(missing);
    let services: Vec<_> = missing.iter().filter_map(|need| need.service).collect();
    let root = rustix::process::geteuid().is_root();
    println!(
        "To install, {}: apt-get update && apt-get install -y --no-install-recommends {}",
        if root { "as root" } else { "through sudo" },
        packages.join(" ").replace('/', " or ")
    );
    if !services.is_empty() {
        println!(
            "Kept from running and from starting at boot: the services {}",
            services.join(", ")
        );
    }
    if !yes && !confirmed()? {
        bail!("nothing installed");
    }
    let mut command = if root {
        Command::new("sh")
    } else {
        ensure!(
            find_program("sudo").is_some(),
            "not root and no sudo: run the command above as root, then try again"
        );
        let mut sudo = Command::new("sudo");
        sudo.arg("sh");
        sudo
    };
    command
        .args(["-c", include_str!("install.sh"), "install.sh"])
        .args(&packages)
        .arg("--")
        .args(&services);
    let status = command.status().context("cannot run the installation")?;
    ensure!(
        status.success(),
        "the installation failed ({status}); apt's own message is above. On Ubuntu some of the packages are in the \
         `universe` component"
    );
    Ok(())
}

fn confirmed() -> Result<bool> {
    let stdin = std::io::stdin();
    ensure!(
        stdin.is_terminal(),
        "not asking without a terminal: give --yes to install"
    );
    print!("Install? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn missing(
    purpose: Purpose,
    systems: Systems,
    present: impl Fn(&Need) -> bool,
) -> Vec<&'static Need> {
    let wanted = |need: &&Need| {
        need.from <= purpose && (!need.windows || systems == Systems::LinuxAndWindows)
    };
    NEEDS
        .iter()
        .filter(wanted)
        .filter(|need| !present(need))
        .collect()
}

/// What brings the missing programs, for install.sh: `this/or-this` where releases differ in the name.
fn packages(missing: &[&Need]) -> Vec<String> {
    missing
        .iter()
        .map(|need| match need.or_package {
            None => need.package.to_owned(),
            Some(other) => format!("{}/{other}", need.package),
        })
        .collect()
}

fn name_of(purpose: Purpose) -> String {
    purpose
        .to_possible_value()
        .expect("no purpose is hidden")
        .get_name()
        .to_owned()
}

/// The cargo parts that rustup leaves out of a minimal toolchain.
pub fn ensure_cargo_parts() -> Result<()> {
    for part in ["fmt", "clippy"] {
        run(crate::proc::cargo()
            .args([part, "--version"])
            .stdout(std::process::Stdio::null()))
        .with_context(|| {
            format!("`cargo {part}` is missing: `rustup component add rustfmt clippy`")
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_includes_the_ones_before_it() {
        let count = |purpose| missing(purpose, Systems::LinuxAndWindows, |_| false).len();
        assert!(0 < count(Purpose::Build));
        assert!(count(Purpose::Build) < count(Purpose::Demo));
        assert!(count(Purpose::Demo) < count(Purpose::Test));
        assert_eq!(count(Purpose::Test), NEEDS.len());
    }

    #[test]
    fn only_what_is_absent_is_installed() {
        let missing = missing(Purpose::Demo, Systems::Linux, |need| {
            need.probe != "wrk" && need.probe != "memcached"
        });
        assert_eq!(packages(&missing), ["wrk"]);
    }

    #[test]
    fn windows_costs_nothing_unless_wanted() {
        let all = missing(Purpose::Test, Systems::LinuxAndWindows, |_| false);
        let linux = missing(Purpose::Test, Systems::Linux, |_| false);
        assert!(linux.len() < all.len());
        assert!(!packages(&linux).contains(&"wine64".to_owned()));
    }

    #[test]
    fn the_rows_are_fit_for_a_shell_command_and_say_why() {
        for need in NEEDS {
            let plain = |word: &str| {
                word.chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-.+".contains(c))
            };
            assert!(
                plain(need.package)
                    && need.or_package.is_none_or(plain)
                    && need.service.is_none_or(plain),
                "{}",
                need.package
            );
            assert!(!need.why.is_empty());
        }
    }
}
