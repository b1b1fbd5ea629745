//! `tidy`: rules of this repository that no compiler checks. Each rule is a function from file contents to findings,
//! so that its unit test needs no repository; this file holds the rules' settings and feeds them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::proc::{cargo, root};

mod docs;
mod source;

/// Directories that hold nothing of ours.
const SKIPPED_DIRS: &[&str] = &[".git", "target"];

/// Words that may not stand in any file, each with the reason. `concat!` keeps this list out of its own way.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/Us", "ers/"), "a path of one machine"),
    (concat!("/wo", "rk/"), "a path of one machine"),
    (
        concat!("crates", ".io"),
        "a registry's host: builds may use a mirror",
    ),
    (
        concat!("npmjs", ".org"),
        "a registry's host: builds may use a mirror",
    ),
    (
        concat!("pypi", ".org"),
        "a registry's host: builds may use a mirror",
    ),
    (
        concat!("proxy.golang", ".org"),
        "a registry's host: builds may use a mirror",
    ),
];

/// Files that FORBIDDEN leaves alone: cargo writes the registry's name into its lock file.
const WORDS_UNCHECKED: &[&str] = &["Cargo.lock"];

/// Lines of a Rust file: above the first number a warning, above the second a failure.
const LONG_FILE: usize = 600;
const TOO_LONG_FILE: usize = 700;

/// Lines of README.md.
const README_LIMIT: usize = 150;

/// Files that other files take in with `include!`, where `//!` is no legal syntax: `//` text heads them.
const INCLUDED: &[&str] = &["crates/preload/src/table.rs"];

/// The layers that must not know the operating system.
const NEUTRAL: &[&str] = &["crates/ring/", "crates/sockets/"];

/// Where `unsafe_code` may be allowed, and why: a file, or a directory with its slash. A `lib.rs` allows it for its
/// crate. Everywhere else the workspace's `deny` stands.
const UNSAFE_ALLOWED: &[(&str, &str)] = &[
    (
        "crates/ring/src/lib.rs",
        "lays types over memory that another process shares, copies in and out of it",
    ),
    ("crates/ring/tests/", "lays rings over ordinary memory"),
    (
        "crates/gm/src/lib.rs",
        "maps the node's files and lays types over them",
    ),
    (
        "crates/preload/src/",
        "replaces C functions: raw pointers come in, raw pointers go out",
    ),
    (
        "crates/spi/src/",
        "Winsock's structures and tables, which are raw pointers",
    ),
    (
        "crates/ws2-32/src/",
        "replaces a DLL of C functions, and calls the one it replaces by pointers",
    ),
    (
        "crates/lsp/src/",
        "a table of C functions: raw pointers come in, raw pointers go to the lower provider",
    ),
    (
        "crates/plain-lsp/src/",
        "hands a table of C functions through",
    ),
    (
        "crates/inst-lsp/src/",
        "calls Winsock's and Windows' C functions",
    ),
    (
        "crates/sgm/src/run.rs",
        "gives the program the signals that were ignored and blocked when we were started",
    ),
    (
        "crates/sgm/src/supervise.rs",
        "passes signals on to the program from a signal handler, without a thread",
    ),
    (
        "crates/sgm/src/bench/sys.rs",
        "plain libc calls and one shared mapping for the measuring processes",
    ),
];

const LICENSES: &[&str] = &["LICENSE-APACHE", "LICENSE-MIT"];

/// What a rule has to say about a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    Failure(String),
    Warning(String),
}

/// A failure at a line; `line` counts from 1.
fn failure(file: &str, line: usize, text: impl std::fmt::Display) -> Finding {
    Finding::Failure(format!("{file}:{line}: {text}"))
}

/// A text file of the repository.
pub struct File {
    /// Relative to the root, with slashes.
    pub name: String,
    pub text: String,
}

/// Runs every rule; fails when one does.
pub fn main() -> Result<ExitCode> {
    let files = read_all(root())?;
    let mut findings: Vec<Finding> = files.iter().flat_map(check_file).collect();
    findings.extend(check_whole(&files));
    findings.extend(check_generated(&files)?);
    let mut failures = 0;
    for finding in &findings {
        match finding {
            Finding::Failure(text) => {
                failures += 1;
                println!("tidy: {text}");
            }
            Finding::Warning(text) => println!("tidy: warning: {text}"),
        }
    }
    let rust = files
        .iter()
        .filter(|file| file.name.ends_with(".rs"))
        .count();
    println!(
        "tidy: {} files ({rust} Rust), {failures} failures, {} warnings",
        files.len(),
        findings.len() - failures
    );
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The rules that look at one file.
fn check_file(file: &File) -> Vec<Finding> {
    let name = file.name.as_str();
    let mut findings = Vec::new();
    if !WORDS_UNCHECKED.contains(&name) {
        findings.extend(source::forbidden_words(file, FORBIDDEN));
    }
    if name.ends_with(".rs") {
        findings.extend(source::length(file, LONG_FILE, TOO_LONG_FILE));
        findings.extend(source::header(file, INCLUDED.contains(&name)));
        findings.extend(source::unsafe_permission(file, UNSAFE_ALLOWED));
    }
    if name.ends_with("Cargo.toml") {
        findings.extend(source::manifest(file));
    }
    if NEUTRAL.iter().any(|layer| name.starts_with(layer))
        && (name.ends_with(".rs") || name.ends_with("Cargo.toml"))
    {
        findings.extend(source::os_conditions(file));
    }
    if name == "README.md" && file.text.lines().count() > README_LIMIT {
        findings.push(failure(
            name,
            README_LIMIT + 1,
            format!("more than {README_LIMIT} lines"),
        ));
    }
    findings
}

/// The rules that look at the repository as a whole.
fn check_whole(files: &[File]) -> Vec<Finding> {
    let mut findings = docs::links(files, |path| root().join(path).exists());
    for license in LICENSES {
        if !files
            .iter()
            .any(|file| file.name == *license && !file.text.trim().is_empty())
        {
            findings.push(Finding::Failure(format!("{license} is missing or empty")));
        }
    }
    for (place, _) in UNSAFE_ALLOWED {
        let used = files.iter().any(|file| {
            file.name.starts_with(place) && source::allows_unsafe(file).next().is_some()
        });
        if !used {
            findings.push(Finding::Warning(format!(
                "{place} may use unsafe code but does not: drop it from tidy's list"
            )));
        }
    }
    findings
}

/// docs/compatibility.md, once its first lines say that `sgm compat` writes it, must be what `sgm compat` prints.
fn check_generated(files: &[File]) -> Result<Vec<Finding>> {
    let name = "docs/compatibility.md";
    let Some(committed) = files.iter().find(|file| file.name == name) else {
        return Ok(Vec::new());
    };
    let mut first_lines = committed.text.lines().take(5);
    if !first_lines.any(|line| line.contains("sgm compat") || line.contains("sgm -- compat")) {
        return Ok(vec![Finding::Warning(format!(
            "{name} is not generated by `sgm compat` yet: not compared"
        ))]);
    }
    let output = cargo()
        .args(["run", "--quiet", "--release", "-p", "sgm", "--", "compat"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run `sgm compat`")?;
    if output.status.success() && output.stdout == committed.text.as_bytes() {
        return Ok(Vec::new());
    }
    Ok(vec![Finding::Failure(format!(
        "{name} is not what `cargo run -p sgm -- compat` prints: write it anew"
    ))])
}

/// Every text file under `dir` except SKIPPED_DIRS, sorted by name.
fn read_all(dir: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(current) = pending.pop() {
        for entry in current
            .read_dir()
            .with_context(|| format!("cannot list {}", current.display()))?
        {
            let entry = entry?;
            let path: PathBuf = entry.path();
            let kind = entry.file_type()?;
            // A second worktree has a file for `.git`.
            if SKIPPED_DIRS
                .iter()
                .any(|skipped| entry.file_name() == *skipped)
            {
                continue;
            }
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(dir)?.to_string_lossy().into_owned();
                let bytes = std::fs::read(&path).with_context(|| format!("cannot read {name}"))?;
                // What is not UTF-8 is no text of ours: an image, a fuzz corpus entry.
                if let Ok(text) = String::from_utf8(bytes) {
                    files.push(File { name, text });
                }
            }
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> File {
        File {
            name: name.into(),
            text: text.into(),
        }
    }

    fn failures(file: &File) -> usize {
        check_file(file)
            .iter()
            .filter(|finding| matches!(finding, Finding::Failure(_)))
            .count()
    }

    #[test]
    fn each_rule_reaches_the_files_it_is_for() {
        let conditional = "//! Header.\n#[cfg(unix)]\nfn f() {}\n";
        assert_eq!(failures(&file("crates/ring/src/a.rs", conditional)), 1);
        assert_eq!(failures(&file("crates/gm/src/a.rs", conditional)), 0);
        assert_eq!(failures(&file("crates/gm/src/a.rs", "fn f() {}\n")), 1);
        let home = concat!("see /ho", "me/someone/notes\n");
        assert_eq!(failures(&file("docs/a.md", home)), 1);
        assert_eq!(failures(&file("Cargo.lock", home)), 0);
    }

    #[test]
    fn readme_has_a_limit_of_its_own() {
        assert_eq!(
            failures(&file("README.md", &"line\n".repeat(README_LIMIT))),
            0
        );
        assert_eq!(
            failures(&file("README.md", &"line\n".repeat(README_LIMIT + 1))),
            1
        );
        assert_eq!(
            failures(&file("docs/long.md", &"line\n".repeat(README_LIMIT + 1))),
            0
        );
    }

    #[test]
    fn a_missing_license_is_a_failure() {
        let only_one = [file("LICENSE-MIT", "text")];
        let missing = check_whole(&only_one);
        assert!(missing.contains(&Finding::Failure(
            "LICENSE-APACHE is missing or empty".into()
        )));
        assert!(!missing.contains(&Finding::Failure("LICENSE-MIT is missing or empty".into())));
    }

    #[test]
    fn this_repository_is_read_without_its_build_output() {
        let files = read_all(root()).unwrap();
        assert!(
            files
                .iter()
                .any(|file| file.name == "xtask/src/tidy/mod.rs")
        );
        assert!(
            !files
                .iter()
                .any(|file| file.name.starts_with("target/") || file.name.starts_with(".git/"))
        );
    }
}
