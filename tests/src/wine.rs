//! Windows programs under Wine: the prefixes, the ways to run a program in them, compiling with mingw.
//!
//! Two prefixes in the target directory are made once and used again: one in which `sgm wine` has put the providers, and a
//! copy of it from which `inst_lsp.exe remove` has taken them out of the catalog. One test process at a time uses them.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::front::Front;
use crate::pair::tails;
use crate::paths;
use crate::process::{Ended, Started};
use crate::wine32::Root;

const SETUP: &str = "cargo xtask setup, then cargo xtask build --windows";
/// Making a prefix takes a quarter of a minute when nothing else runs.
const PREFIX_LIMIT: Duration = Duration::from_secs(400);

/// What a Windows program runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Wine's own ws2_32: the reference.
    Plain,
    /// Our ws2_32 with nothing but base providers in the catalog.
    Base,
    /// Our provider is installed, and the program is not opted in: `plain_lsp.dll`.
    FallThrough,
    /// Opted in: `lsp.dll`.
    Carried,
}

/// The prefixes, for as long as somebody has one of these. The last one ends what Wine left running.
pub struct Wine {
    places: &'static Places,
    /// Its programs are 32-bit ones, and run in here, in a prefix of this name.
    narrow: Option<(&'static Root, &'static str)>,
}

struct Places {
    loader: PathBuf,
    /// With the providers installed.
    installed: PathBuf,
    /// With our ws2_32 alone.
    base: PathBuf,
    _lock: File,
}

static USERS: Mutex<u32> = Mutex::new(0);

impl Wine {
    /// Makes the prefixes, if nobody has yet. Fails when anything is missing: tests that silently run nothing prove nothing.
    pub fn new() -> Wine {
        static PLACES: OnceLock<Places> = OnceLock::new();
        *USERS.lock().expect("nobody panics with it") += 1;
        Wine {
            places: PLACES.get_or_init(Places::make),
            narrow: None,
        }
    }

    /// One that runs 32-bit programs, on a prefix of its own; [`Mode::Plain`] and [`Mode::Carried`] alone. `None`, where there can't be one,
    /// which is told.
    pub fn narrow() -> Option<Wine> {
        Wine::narrow_in("prefix")
    }

    /// The same, in a prefix that others use or don't.
    pub fn narrow_in(name: &'static str) -> Option<Wine> {
        let root = Root::find()?;
        let mut wine = Wine::new();
        wine.narrow = Some((root, name));
        Some(wine)
    }

    fn width(&self) -> Width {
        match self.narrow {
            Some(_) => Width::Bits32,
            None => Width::Bits64,
        }
    }

    /// A program of `examples/`.
    pub fn example(&self, name: &str) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../examples/{name}.c"));
        let text = fs::read_to_string(&source).unwrap();
        let library = if text.contains("<winsock.h>") {
            "-lwsock32"
        } else {
            "-lws2_32"
        };
        compiled(self.width(), name, &[source], &[], &[library])
    }

    /// The behaviour suite of `windows/`.
    pub fn suite(&self) -> PathBuf {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("windows");
        let (mut sources, headers): (Vec<PathBuf>, Vec<PathBuf>) = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .partition(|path| path.extension().is_some_and(|e| e == "c"));
        sources.sort();
        compiled(
            self.width(),
            "suite",
            &sources,
            &headers,
            &["-lws2_32", "-lmswsock"],
        )
    }

    /// The command that runs `program` (a Unix path of an exe) in `mode`. With `report`, what was carried goes there.
    pub fn command(
        &self,
        mode: Mode,
        program: &Path,
        front: &Front,
        report: Option<&Path>,
    ) -> Command {
        let base = &self.places.base;
        let installed = &self.prefix();
        let mut command = match mode {
            Mode::Base => self.places.wine(base),
            Mode::FallThrough => self.places.wine(installed),
            Mode::Plain | Mode::Carried => {
                let mut command = front.sgm(&["wine", "--prefix"]);
                command.arg(installed).env("WINEDEBUG", "-all");
                if mode == Mode::Plain {
                    command.arg("--plain");
                }
                if let Some(report) = report {
                    command.arg("--report").arg(report);
                }
                command.arg("--");
                command
            }
        };
        command.arg(program).env("SGM_DIR", front.node());
        self.placed(command)
    }

    /// Run where this Wine is.
    fn placed(&self, command: Command) -> Command {
        match self.narrow {
            Some((root, _)) => root.inside(&command),
            None => command,
        }
    }

    fn prefix(&self) -> PathBuf {
        match self.narrow {
            Some((root, name)) => root.prefix(name),
            None => self.places.installed.clone(),
        }
    }

    /// Takes everything of ours out of the prefix.
    pub fn removal(&self, front: &Front) -> Command {
        let mut command = front.sgm(&["wine", "--remove", "--prefix"]);
        command.arg(self.prefix());
        self.placed(command)
    }

    /// A file of the prefix.
    pub fn file(&self, name: &str) -> PathBuf {
        self.prefix().join(name)
    }

    /// For when Wine's server is stuck: the next program starts another one.
    pub fn restart(&self) {
        match self.narrow {
            Some((root, name)) => root.stop(name),
            None => self.places.stop(),
        }
    }

    /// Where the real providers lie in the prefix.
    pub fn providers(&self) -> PathBuf {
        self.places
            .installed
            .join("drive_c/Program Files/Sockets-GM")
    }
}

impl Default for Wine {
    fn default() -> Wine {
        Wine::new()
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        let mut users = USERS.lock().expect("nobody panics with it");
        *users -= 1;
        if *users == 0 {
            self.places.stop();
        }
        if let Some((root, name)) = self.narrow
            && *users == 0
        {
            root.stop(name);
        }
    }
}

impl Places {
    fn make() -> Places {
        let directory = paths::target_dir().join("tmp/wine");
        fs::create_dir_all(&directory).unwrap();
        let lock = File::create(directory.join("lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let places = Places {
            loader: loader(),
            installed: directory.join("installed"),
            base: directory.join("base"),
            _lock: lock,
        };
        // What a run that was killed may have left.
        places.stop();
        places.install(&directory);
        places.copy_base(&directory);
        places
    }

    fn wine(&self, prefix: &Path) -> Command {
        let mut command = Started::command(&self.loader);
        command
            .env("WINEPREFIX", prefix)
            .env("WINEDEBUG", "-all")
            .env_remove("SGM_LSP");
        command
    }

    /// `sgm wine` makes a prefix on first use, with all of our files.
    fn install(&self, directory: &Path) {
        let front = Front::new();
        let mut command = front.sgm(&["wine", "--prefix"]);
        command
            .arg(&self.installed)
            .args(["--", "reg.exe", "add"])
            // Windows that nobody looks at need no X server.
            .args([r"HKCU\Software\Wine\Drivers", "/v", "Graphics"])
            .args(["/d", "null", "/f"])
            .env("WINEDEBUG", "-all");
        done("making the prefix", directory, command);
    }

    fn copy_base(&self, directory: &Path) {
        self.stop();
        if self.base.exists() {
            fs::remove_dir_all(&self.base).unwrap();
        }
        copy(&self.installed, &self.base);
        let mut command = self.wine(&self.base);
        command.args([r"C:\Program Files\Sockets-GM\inst_lsp.exe", "remove"]);
        done("taking the provider out", directory, command);
    }

    /// Ends what runs in the prefixes.
    fn stop(&self) {
        for prefix in [&self.installed, &self.base] {
            if prefix.exists() {
                let server = self.loader.with_file_name("wineserver64");
                let server = if server.exists() {
                    server
                } else {
                    paths::installed("wineserver", "wine64")
                };
                let mut command = Started::command(server);
                command.arg("-k").env("WINEPREFIX", prefix);
                // It says 1 when there is none to end.
                let _ = command.output();
            }
        }
    }
}

fn loader() -> PathBuf {
    let named = std::env::var_os("WINELOADER").map(PathBuf::from);
    named
        .into_iter()
        .chain([PathBuf::from("/usr/lib/wine/wine64")])
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("no Wine: {SETUP}"))
}

/// A preparing command must end well.
fn done(what: &str, directory: &Path, command: Command) {
    let mut process = Started::new("prepare", directory, command);
    let ended = process.end_by(Instant::now() + PREFIX_LIMIT);
    let good = ended.as_ref().is_some_and(|ended| ended.code == 0);
    assert!(
        good,
        "{what} fails ({:?})\n{}\nIs everything there? {SETUP}",
        ended.map(|ended| ended.code),
        tails(&process.output_so_far(), &process.errors_so_far())
    );
}

/// A prefix has 700 MB of Wine's own files, which nobody writes in place: they become links. What may be written is copied.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&source, &target);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source).unwrap(), &target).unwrap();
        } else if source.extension().is_some_and(|e| e == "dll" || e == "exe") {
            fs::hard_link(&source, &target).unwrap();
        } else {
            fs::copy(&source, &target).unwrap();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits64,
    Bits32,
}

/// Compiles C sources for Windows into the target directory, if one of them or `headers` is newer than the result.
fn compiled(
    width: Width,
    name: &str,
    sources: &[PathBuf],
    headers: &[PathBuf],
    libraries: &[&str],
) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let (subdirectory, gcc, package) = match width {
        Width::Bits64 => (
            "tmp/programs-windows",
            "x86_64-w64-mingw32-gcc",
            "gcc-mingw-w64-x86-64",
        ),
        Width::Bits32 => (
            "tmp/programs-windows-32",
            "i686-w64-mingw32-gcc",
            "gcc-mingw-w64-i686",
        ),
    };
    let directory = paths::target_dir().join(subdirectory);
    fs::create_dir_all(&directory).unwrap();
    let result = directory.join(format!("{name}.exe"));
    let modified = |path: &PathBuf| fs::metadata(path).and_then(|data| data.modified()).ok();
    if modified(&result) > sources.iter().chain(headers).filter_map(modified).max() {
        return result;
    }
    let draft = directory.join(format!("{name}.{}", std::process::id()));
    let mut gcc = Command::new(paths::installed(gcc, package));
    gcc.args([
        "-std=gnu17",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-D_WIN32_WINNT=0x0601",
    ])
    .arg("-o")
    .arg(&draft)
    .args(sources)
    .args(libraries);
    let output = gcc.output().unwrap();
    assert!(
        output.status.success(),
        "{name} does not compile:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(&draft, &result).unwrap();
    result
}

/// All programs share one wineserver, its descriptors and its time.
static SERVER: RwLock<()> = RwLock::new(());

/// For what opens sockets by the thousand, or keeps the server busy: nothing else runs meanwhile.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    SERVER.write().unwrap_or_else(PoisonError::into_inner)
}

pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    SERVER.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for its end; at the limit it is killed, and what it said so far is the message.
pub fn ends(process: &mut Started, limit: Duration) -> Ended {
    process.end_by(Instant::now() + limit).unwrap_or_else(|| {
        panic!(
            "{} does not end\n{}",
            process.name,
            tails(&process.output_so_far(), &process.errors_so_far())
        )
    })
}
