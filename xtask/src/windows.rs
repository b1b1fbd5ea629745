//! The Windows programs: which compiler makes them on this machine, their build, their lints, and the examples.
//!
//! A rustup toolchain with the target `x86_64-pc-windows-gnu` is the first choice. Debian packages no standard library for
//! Windows of this age, but the library's sources: its cargo then builds that too, for `x86_64-win7-windows-gnu`, which
//! takes a minute more the first time. `-Zbuild-std` is one of cargo's unstable options, hence RUSTC_BOOTSTRAP.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::proc::{cargo, find_program, root, run, target_dir};

/// What Windows programs are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    X64,
    /// 32-bit programs have DLLs of their own.
    X86,
}

impl Machine {
    fn name(self) -> &'static str {
        match self {
            Machine::X64 => "x86_64",
            Machine::X86 => "i686",
        }
    }

    /// A program of mingw-w64: its C compiler and linker is `gcc`.
    fn tool(self, name: &str) -> String {
        format!("{}-w64-mingw32-{name}", self.name())
    }

    /// Where the finished programs lie, and where `sgm wine` looks for them.
    fn release_dir(self) -> PathBuf {
        match self {
            Machine::X64 => release_dir(),
            Machine::X86 => release_dir().join("x86"),
        }
    }
}

/// What is built: package and file.
const PROGRAMS: &[(&str, &str)] = &[
    ("sgm-ws2-32", "ws2_32.dll"),
    ("sgm-lsp", "lsp.dll"),
    ("sgm-plain-lsp", "plain_lsp.dll"),
    ("sgm-inst-lsp", "inst_lsp.exe"),
    ("sgm-gm-set-name", "gm_set_name.exe"),
];

/// What has code of its own for Windows besides.
const LIBRARIES: &[&str] = &["sgm-spi", "sgm-gm"];

/// The measuring program of `sgm bench --wine`.
const BENCH: &str = "crates/sgm/src/bench/wine/sgm_bench.c";

/// A way to compile Rust for Windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The cargo that runs us has a standard library for the target.
    Installed,
    /// Debian's cargo in /usr/bin builds the standard library as well.
    FromSources,
}

impl Toolchain {
    /// The one to use here. `None`: there is none yet.
    pub fn find() -> Option<Toolchain> {
        if Toolchain::Installed.is_for(Machine::X64) {
            return Some(Toolchain::Installed);
        }
        let sources = "lib/rustlib/src/rust/library/std/Cargo.toml";
        let usable = Path::new("/usr/bin/cargo").exists()
            && sysroot("/usr/bin/rustc").is_some_and(|dir| dir.join(sources).exists())
            && version("/usr/bin/rustc").is_some_and(|v| Some(v) >= numbers(NEEDED));
        usable.then_some(Toolchain::FromSources)
    }

    fn target(self, machine: Machine) -> String {
        let vendor = match self {
            Toolchain::Installed => "pc",
            Toolchain::FromSources => "win7",
        };
        format!("{}-{vendor}-windows-gnu", machine.name())
    }

    /// Is all there that compiling for this takes?
    fn is_for(self, machine: Machine) -> bool {
        let target = Path::new("lib/rustlib").join(self.target(machine));
        let has_library = || match self {
            Toolchain::Installed => sysroot("rustc").is_some_and(|dir| dir.join(target).is_dir()),
            Toolchain::FromSources => true,
        };
        (machine == Machine::X64 || find_program(&machine.tool("gcc")).is_some()) && has_library()
    }

    /// `cargo VERB` for Windows. Its build directory is its own: two versions of cargo would build everything anew in turns.
    fn cargo(self, verb: &str, machine: Machine) -> Command {
        let mut command = match self {
            Toolchain::Installed => cargo(),
            Toolchain::FromSources => {
                let mut command = Command::new("/usr/bin/cargo");
                let path = std::env::var_os("PATH").unwrap_or_default();
                let dirs = std::env::split_paths(&path);
                let first = std::iter::once(PathBuf::from("/usr/bin"));
                if let Ok(path) = std::env::join_paths(first.chain(dirs)) {
                    command.env("PATH", path);
                }
                command
                    .current_dir(root())
                    .env("RUSTC_BOOTSTRAP", "1")
                    // What the cargo that runs us has set for its own compiler.
                    .env_remove("CARGO")
                    .env_remove("RUSTC")
                    .env_remove("LD_LIBRARY_PATH")
                    .env_remove("RUSTUP_TOOLCHAIN");
                command
            }
        };
        command.args([verb, "--release", "--target", &self.target(machine)]);
        if self == Toolchain::FromSources {
            command.arg("-Zbuild-std=std,panic_abort");
        }
        command.arg("--target-dir").arg(build_dir());
        command
    }
}

/// The oldest rustc that this repository compiles with.
const NEEDED: &str = env!("CARGO_PKG_RUST_VERSION");

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().into())
}

fn version(rustc: &str) -> Option<(u32, u32)> {
    let output = Command::new(rustc).arg("--version").output().ok()?;
    numbers(
        String::from_utf8(output.stdout)
            .ok()?
            .split_whitespace()
            .nth(1)?,
    )
}

/// `1.96.0` to (1, 96).
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn build_dir() -> PathBuf {
    target_dir().join("windows")
}

/// Where the finished programs lie, and where `sgm wine` looks for them.
pub fn release_dir() -> PathBuf {
    target_dir().join("release/windows")
}

fn toolchain() -> Result<Toolchain> {
    let gcc = Machine::X64.tool("gcc");
    ensure!(
        find_program(&gcc).is_some(),
        "no {gcc}, which links for Windows: install mingw-w64 (Debian: gcc-mingw-w64-x86-64; `cargo xtask setup` does)"
    );
    Toolchain::find().context(
        "no Rust compiler for Windows here: `rustup target add x86_64-pc-windows-gnu`, or on Debian `cargo xtask setup`, \
         which installs a compiler with the sources of its standard library",
    )
}

/// Builds the DLLs, the programs, the examples and the measuring program, and puts them into `target/release/windows`; those for 32-bit
/// programs into `x86` there, if there are compilers for them.
pub fn release() -> Result<()> {
    let toolchain = toolchain()?;
    release_for(toolchain, Machine::X64)?;
    if toolchain.is_for(Machine::X86) {
        release_for(toolchain, Machine::X86)
    } else {
        let (gcc, target) = (Machine::X86.tool("gcc"), toolchain.target(Machine::X86));
        println!(
            "nothing for 32-bit Windows programs: that takes {gcc} and Rust's target {target}"
        );
        Ok(())
    }
}

/// What the demo and the measurements run: 64-bit programs alone.
pub fn release_64() -> Result<()> {
    release_for(toolchain()?, Machine::X64)
}

fn release_for(toolchain: Toolchain, machine: Machine) -> Result<()> {
    let mut build = toolchain.cargo("build", machine);
    for (package, _) in PROGRAMS {
        build.args(["-p", package]);
    }
    run(&mut build)?;
    let from = build_dir().join(toolchain.target(machine)).join("release");
    let to = machine.release_dir();
    std::fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    for (_, file) in PROGRAMS {
        let built = from.join(file);
        ensure!(
            built.is_file(),
            "the build ended well but there is no {}",
            built.display()
        );
        // Without the line tables of the standard library, nine tenths of a file that goes into every prefix.
        let draft = to.join(format!("{file}.new"));
        run(Command::new(machine.tool("strip"))
            .args(["--strip-debug", "-o"])
            .arg(&draft)
            .arg(&built))?;
        place(&draft, &to.join(file))?;
    }
    for source in examples()?.iter().chain([&root().join(BENCH)]) {
        compile(source, machine, &to)?;
    }
    Ok(())
}

/// Puts a finished draft in its place, in one step for whoever runs the old one; when nothing has changed, the old one stays.
fn place(draft: &Path, to: &Path) -> Result<()> {
    let new = std::fs::read(draft).with_context(|| format!("no {}", draft.display()))?;
    let done = if std::fs::read(to).is_ok_and(|old| old == new) {
        std::fs::remove_file(draft)
    } else {
        std::fs::rename(draft, to)
    };
    done.with_context(|| format!("cannot write {}", to.display()))
}

/// The C sources of `examples/`.
fn examples() -> Result<Vec<PathBuf>> {
    let dir = root().join("examples");
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut sources = Vec::new();
    for entry in dir.read_dir()? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("c")) {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}

/// As a programmer of its time would: a Winsock 1.1 program with that header and library, a Winsock 2 one with those.
fn compile(source: &Path, machine: Machine, to: &Path) -> Result<()> {
    let text = std::fs::read_to_string(source)?;
    let library = if text.contains("<winsock.h>") {
        "-lwsock32"
    } else {
        "-lws2_32"
    };
    let program = to
        .join(source.file_stem().unwrap_or_default())
        .with_extension("exe");
    run(Command::new(machine.tool("gcc"))
        .args(["-O2", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(source)
        .arg(library))
}

/// Clippy over what is compiled for Windows only, which the workspace's clippy on Linux does not see.
pub fn clippy() -> Result<()> {
    let toolchain = toolchain()?;
    if toolchain == Toolchain::FromSources && !Path::new("/usr/bin/cargo-clippy").exists() {
        bail!(
            "no /usr/bin/cargo-clippy: install Debian's rust-web-clippy (`cargo xtask setup` does)"
        );
    }
    for machine in [Machine::X64, Machine::X86] {
        if !toolchain.is_for(machine) {
            continue;
        }
        let mut clippy = toolchain.cargo("clippy", machine);
        let packages = PROGRAMS.iter().map(|(package, _)| package);
        for package in packages.chain(LIBRARIES) {
            clippy.args(["-p", package]);
        }
        run(clippy.args(["--", "-D", "warnings"]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(numbers("1.96.0"), Some((1, 96)));
        assert!(numbers("1.100.0-nightly") > numbers("1.96.0"));
        assert_eq!(numbers("web"), None);
        assert!(numbers(NEEDED).is_some());
    }

    #[test]
    fn a_draft_is_placed_whole_and_an_equal_one_changes_nothing() {
        let dir = std::env::temp_dir().join(format!("sgm-place-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (draft, to) = (dir.join("draft"), dir.join("to"));
        let modified = || to.metadata().unwrap().modified().unwrap();
        std::fs::write(&draft, "one").unwrap();
        place(&draft, &to).unwrap();
        let first = modified();
        std::fs::write(&draft, "one").unwrap();
        place(&draft, &to).unwrap();
        assert_eq!(modified(), first);
        std::fs::write(&draft, "two").unwrap();
        place(&draft, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"two");
        assert!(!draft.exists());
        assert!(place(&draft, &to).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
