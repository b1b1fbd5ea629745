//! Compiles the C programs of `programs/`, each once and only when a source is newer than the result.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use crate::paths;

/// How a program is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Build {
    /// As a beginner does: `-O1`.
    Plain,
    /// As distributions do: `__read_chk` and its like, and the names with `64` (`fcntl64`, `sendfile64`).
    Fortified,
    /// Without a dynamic linker: the front cannot enter, everything must stay on TCP.
    Static,
}

impl Build {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Build::Plain => &["-O1"],
            Build::Fortified => &["-O2", "-D_FORTIFY_SOURCE=2", "-D_FILE_OFFSET_BITS=64"],
            Build::Static => &["-O1", "-static"],
        }
    }
}

const SHARED: [&str; 4] = ["common.c", "stream.c", "common.h", "epoll_common.h"];

/// The other sources of a program that has several, and its header.
fn parts(program: &str) -> &'static [&'static str] {
    match program {
        "fuzz" => &[
            "fuzz_script.c",
            "fuzz_ops.c",
            "fuzz_wait.c",
            "fuzz_leave.c",
            "fuzz.h",
        ],
        _ => &[],
    }
}

/// The compiled program; every (program, build) is compiled at most once in a process.
pub fn compiled(program: &str, build: Build) -> PathBuf {
    type Cell = &'static OnceLock<PathBuf>;
    static CELLS: Mutex<BTreeMap<(String, Build), Cell>> = Mutex::new(BTreeMap::new());
    let cell = *CELLS
        .lock()
        .expect("no test panics while it holds this lock")
        .entry((program.to_string(), build))
        .or_insert_with(|| Box::leak(Box::default()));
    cell.get_or_init(|| compile(program, build)).clone()
}

fn compile(program: &str, build: Build) -> PathBuf {
    let sources = paths::program_sources();
    let directory = paths::target_dir()
        .join("tmp")
        .join(format!("programs-{build:?}").to_lowercase());
    fs::create_dir_all(&directory).unwrap();
    let result = directory.join(program);
    let source = sources.join(format!("{program}.c"));
    let modified = |path: &PathBuf| fs::metadata(path).and_then(|data| data.modified()).ok();
    let newest = SHARED
        .iter()
        .chain(parts(program))
        .map(|name| sources.join(name))
        .chain([source.clone()])
        .filter_map(|path| modified(&path))
        .max();
    if modified(&result) > newest {
        return result;
    }
    // Into a name of its own and then renamed: another test binary may be compiling the same program.
    let draft = directory.join(format!("{program}.{}", std::process::id()));
    let mut gcc = Command::new(paths::installed("gcc", "gcc"));
    gcc.args([
        "-D_GNU_SOURCE",
        "-std=gnu17",
        "-Wall",
        "-Werror",
        "-g",
        "-pthread",
    ])
    .args(build.flags());
    gcc.arg("-o")
        .arg(&draft)
        .arg(&source)
        .arg(sources.join("stream.c"))
        .args(
            parts(program)
                .iter()
                .filter(|name| name.ends_with(".c"))
                .map(|name| sources.join(name)),
        );
    // These take common.c in, to give themselves a main of their own.
    if ![
        "kill", "perish", "bequest", "luck", "hostile", "attack", "peer", "fuzz", "hooks", "soak",
    ]
    .contains(&program)
    {
        gcc.arg(sources.join("common.c"));
    }
    let output = gcc.output().unwrap();
    assert!(
        output.status.success(),
        "{program} does not compile:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(&draft, &result).unwrap();
    result
}
