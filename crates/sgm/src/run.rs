//! `sgm run`: a program with the front loaded.

use std::ffi::OsString;
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context, Result, bail};
use gm::Node;

use crate::report;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reporting: Reporting,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<OsString>,
}

/// What the user wants to know after a run.
#[derive(clap::Args)]
pub struct Reporting {
    /// Say at the end what was carried, and what went over plain TCP and why
    #[arg(long)]
    explain: bool,
    /// Write the same as JSON to a file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Finds libsockets_gm.so: beside this program, or in the lib directory next to its bin directory.
pub fn library() -> Result<PathBuf> {
    const NAME: &str = "libsockets_gm.so";
    let exe = std::env::current_exe().context("where am I?")?;
    let dir = exe.parent().unwrap_or(Path::new("."));
    let places = [
        dir.join(NAME),
        dir.join("../lib").join(NAME),
        dir.join("../lib/sockets-gm").join(NAME),
    ];
    match places.iter().find(|p| p.is_file()) {
        Some(p) => Ok(p.canonicalize()?),
        None => bail!(
            "{NAME} is not beside {} (build it with `cargo xtask build`)",
            exe.display()
        ),
    }
}

/// The loader takes spaces and colons in LD_PRELOAD for separators, and has words of its own after a dollar sign.
fn is_loadable(path: &Path) -> bool {
    !path
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|b| b" :$\t\n".contains(b))
}

/// The library under a name that the loader can take: its own, or that of a link in the node directory, where nobody else
/// can put another in its place.
fn loadable(library: PathBuf) -> Result<PathBuf> {
    if is_loadable(&library) {
        return Ok(library);
    }
    let mut hasher = std::hash::DefaultHasher::new();
    library.hash(&mut hasher);
    let name = format!("front-{:016x}.so", hasher.finish());
    let made = |dir: PathBuf| {
        let link = dir.join(&name);
        let there = is_loadable(&link)
            && gm::os::ensure_dir(&dir).is_ok()
            && (std::os::unix::fs::symlink(&library, &link).is_ok()
                || std::fs::read_link(&link).is_ok_and(|to| to == library));
        there.then_some(link)
    };
    match made(node_dir()?).or_else(|| made(gm::os::default_node_dir())) {
        Some(link) => Ok(link),
        None => bail!(
            "the loader can't take {} (a space, colon or dollar sign is in the path), and no link to it can be \
             made in the node directory: put sgm and its library into another directory",
            library.display()
        ),
    }
}

/// The node directory by a name that holds wherever the program goes.
pub fn node_dir() -> Result<PathBuf> {
    Ok(std::path::absolute(Node::dir_from_env())?)
}

/// LD_PRELOAD with our library first, and whatever was there after it.
fn preload(library: &Path) -> OsString {
    let mut value = library.as_os_str().to_owned();
    if let Some(old) = std::env::var_os("LD_PRELOAD").filter(|v| !v.is_empty()) {
        value.push(":");
        value.push(old);
    }
    value
}

pub fn main(args: Args) -> Result<ExitCode> {
    let library = loadable(library()?)?;
    let (program, rest) = args.command.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(rest);
    // Another C library's loader would give up over ours.
    if !is_foreign(Path::new(program)) {
        command.env("LD_PRELOAD", preload(&library));
    }
    execute(command, Path::new(program), &args.reporting, cannot_load)
}

/// Becomes the prepared command, or runs it to its end and then reports as the user wants. `cannot_load` says why a program
/// that opened no socket under us could not be reached.
pub fn execute(
    mut command: Command,
    program: &Path,
    wanted: &Reporting,
    cannot_load: impl Fn(&Path) -> Option<&'static str>,
) -> Result<ExitCode> {
    if std::env::var_os("SGM_DIR").is_some_and(|dir| !dir.is_empty()) {
        command.env("SGM_DIR", node_dir()?);
    }
    keep_signals(&mut command);
    if !wanted.explain && wanted.report.is_none() {
        let error = command.exec();
        ignore_closed_pipes();
        return Ok(cannot_run(program, &error));
    }
    let run = gm::sweep::run_of(std::process::id());
    command.env("SGM_RUN", format!("{run:x}"));
    let status = match crate::supervise::to_its_end(&mut command) {
        Ok(status) => status,
        Err(e) => return Ok(cannot_run(program, &e)),
    };
    let report = report::gather(&Node::dir_from_env(), run);
    if let Some(file) = &wanted.report {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        // The program ran: its exit status counts, whatever becomes of the report.
        if let Err(e) = std::fs::write(file, text) {
            eprintln!("sgm: can't write {}: {e}", file.display());
        }
    }
    if wanted.explain {
        eprint!("{}", report.explain());
        if report.ports == 0
            && let Some(why) = cannot_load(program).map(Into::into).or_else(not_followed)
        {
            eprintln!("sgm: {}: {why}", program.display());
        }
    }
    let code = status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(1);
    Ok(ExitCode::from(code as u8))
}

/// Was SIGPIPE ignored when we were started? The standard library ignores it before `main`.
static PIPES_WERE_IGNORED: AtomicBool = AtomicBool::new(false);

#[allow(unsafe_code)] // The only place before the standard library's own beginning.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = note_signals;

#[allow(unsafe_code)] // sigaction(2), which the standard library has no name for.
extern "C" fn note_signals() {
    let mut old = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only; zeros are a valid answer, if there is none.
    let old = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), old.as_mut_ptr());
        old.assume_init()
    };
    PIPES_WERE_IGNORED.store(old.sa_sigaction == libc::SIG_IGN, Relaxed);
}

/// A program inherits what is ignored and blocked, and some rely on it; the standard library would reset both.
#[allow(unsafe_code)] // Between fork and exec: async-signal-safe calls alone.
fn keep_signals(command: &mut Command) {
    let mut blocked = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: asks only; zeros are an empty set.
    let blocked = unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), blocked.as_mut_ptr());
        blocked.assume_init()
    };
    let put_back = move || {
        // SAFETY: a set that the kernel gave us, and no handler.
        unsafe {
            if PIPES_WERE_IGNORED.load(Relaxed) {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const blocked, std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: async-signal-safe, as above.
    unsafe { command.pre_exec(put_back) };
}

/// As it was before an attempt to exec, which gives the program SIGPIPE back.
#[allow(unsafe_code)] // signal(2), which the standard library has no name for.
fn ignore_closed_pipes() {
    // SAFETY: no handler; affects later writes of this process alone.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Exit codes as a shell's and env(1)'s: 127 not found, 126 found and not to be run.
fn cannot_run(program: &Path, e: &std::io::Error) -> ExitCode {
    eprintln!("sgm: can't run {}: {e}", program.display());
    ExitCode::from(if e.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        126
    })
}

/// Why the front followed no socket of a program into which it was loaded.
fn not_followed() -> Option<String> {
    let why = if std::env::var_os("SGM_DISABLE").is_some_and(|v| v != "0" && !v.is_empty()) {
        gm::Reason::Disabled
    } else if Node::open(&Node::dir_from_env()).is_err() {
        gm::Reason::NoNode
    } else {
        return None;
    };
    Some(format!("{}: {}", why.word(), why.text()))
}

/// The file that a program's name leads to, as a shell looks for it.
fn found(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    let dirs = std::env::var_os("PATH")?;
    std::env::split_paths(&dirs)
        .map(|d| d.join(program))
        .find(|p| p.is_file())
}

/// What of a program's file tells its loader; of none that can be read, nothing.
fn beginning(path: &Path) -> Vec<u8> {
    use std::io::Read;
    const ENOUGH: u64 = 64 * 1024;
    let mut image = Vec::new();
    let read = std::fs::File::open(path).map(|f| f.take(ENOUGH).read_to_end(&mut image));
    match read {
        Ok(Ok(_)) => image,
        _ => Vec::new(),
    }
}

/// Is it, or what its `#!` line names, for another loader than the one that this library is for?
fn is_foreign(program: &Path) -> bool {
    let mut head = found(program).map(|p| beginning(&p)).unwrap_or_default();
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|c| *c == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let name = line.split_whitespace().next().unwrap_or_default();
        head = beginning(Path::new(name));
    }
    asks_for(&head) == Loader::Another
}

/// Why the dynamic loader would not preload anything into this program.
fn cannot_load(program: &Path) -> Option<&'static str> {
    use std::os::unix::fs::PermissionsExt;
    let path = found(program)?;
    let mode = std::fs::metadata(&path).ok()?.permissions().mode();
    if mode & 0o6000 != 0 {
        return Some("set-uid or set-gid: the loader ignores LD_PRELOAD, so it ran on plain TCP");
    }
    if is_foreign(program) {
        return Some(
            "built for another C library (or 32 bits), whose loader can't load Sockets-GM, so it ran on plain TCP",
        );
    }
    let image = beginning(&path);
    (image.starts_with(b"\x7fELF") && asks_for(&image) == Loader::None).then_some(
        "statically linked: there is no loader to preload anything, so it ran on plain TCP",
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loader {
    /// As this library's.
    Ours,
    Another,
    None,
}

/// Which dynamic loader does an ELF image ask for (PT_INTERP)?
fn asks_for(image: &[u8]) -> Loader {
    const PT_INTERP: u32 = 3;
    const NAME: &[u8] = b"/ld-linux-x86-64.so.2\0";
    let word = |at: usize, n: usize| -> Option<u64> {
        let bytes = image.get(at..at.checked_add(n)?)?;
        Some(bytes.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)))
    };
    if image.starts_with(b"\x7fELF") && !image.starts_with(b"\x7fELF\x02\x01") {
        return Loader::Another;
    }
    let (Some(table), Some(size), Some(count)) = (word(32, 8), word(54, 2), word(56, 2)) else {
        return Loader::None;
    };
    let entry = |i: u64| table.saturating_add(i * size) as usize;
    let Some(at) = (0..count)
        .map(entry)
        .find(|at| word(*at, 4) == Some(u64::from(PT_INTERP)))
    else {
        return Loader::None;
    };
    let name = word(at + 8, 8).zip(word(at + 32, 8)).and_then(|(at, n)| {
        image.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(n)?).ok()?)
    });
    match name {
        Some(name) if cfg!(target_arch = "x86_64") && !name.ends_with(NAME) => Loader::Another,
        Some(_) => Loader::Ours,
        None => Loader::None,
    }
}
