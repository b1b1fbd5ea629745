//! Two Wine prefixes for all tests of a run: one as Wine makes it, and a copy into which `sgm wine` puts the providers.
//!
//! The plain one is kept in `target/suites` for the next run, for making it takes ten seconds. The other begins as a fresh
//! copy. Tests share a prefix; the last one that lets go of it stops its Wine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};
use std::{env, fs};

use sgm_tests::paths::Scratch;
use sgm_tests::process::Started;

use crate::things::{cache, item};

const LIMIT: Duration = Duration::from_secs(180);

/// A prefix in use.
pub struct Prefix {
    directory: PathBuf,
}

static PLAIN: Mutex<Weak<Prefix>> = Mutex::new(Weak::new());
static PROVIDER: Mutex<Weak<Prefix>> = Mutex::new(Weak::new());

impl Prefix {
    /// Wine's own Winsock and nothing of ours.
    pub fn plain() -> Arc<Prefix> {
        Prefix::shared(&PLAIN, || {
            static MADE: OnceLock<PathBuf> = OnceLock::new();
            MADE.get_or_init(made).clone()
        })
    }

    /// To be used through `sgm wine` alone.
    pub fn provider() -> Arc<Prefix> {
        Prefix::shared(&PROVIDER, || {
            static COPIED: OnceLock<PathBuf> = OnceLock::new();
            COPIED.get_or_init(copied).clone()
        })
    }

    fn shared(place: &Mutex<Weak<Prefix>>, directory: impl Fn() -> PathBuf) -> Arc<Prefix> {
        // A test that failed while it held the lock left the place as it was.
        let mut place = place.lock().unwrap_or_else(|broken| broken.into_inner());
        place.upgrade().unwrap_or_else(|| {
            let prefix = Arc::new(Prefix {
                directory: directory(),
            });
            *place = Arc::downgrade(&prefix);
            prefix
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Wine with this prefix, nothing else set.
    pub fn wine(&self) -> Command {
        wine(&self.directory)
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        stop(&self.directory);
    }
}

/// A file of Debian's Wine. WINELOADER names another loader, as for Wine itself.
fn loader() -> PathBuf {
    let loader = env::var_os("WINELOADER").map_or("/usr/lib/wine/wine64".into(), PathBuf::from);
    assert!(
        loader.is_file(),
        "{} is missing: install the Debian package wine64",
        loader.display()
    );
    loader
}

fn wine(prefix: &Path) -> Command {
    let mut command = Started::command(loader());
    command
        .env("WINEPREFIX", prefix)
        .env("WINEDEBUG", "-all")
        // No offers to download Mono and Gecko, no entries in the desktop's menu.
        .env("WINEDLLOVERRIDES", "mscoree,mshtml,winemenubuilder.exe=");
    command
}

fn server(prefix: &Path, argument: &str) {
    let loader = loader();
    let server = ["wineserver64", "wineserver"]
        .map(|name| loader.with_file_name(name))
        .into_iter()
        .find(|file| file.is_file())
        .expect("a wineserver beside Wine's loader");
    // Failure means that none runs.
    let _ = Started::command(server)
        .arg(argument)
        .env("WINEPREFIX", prefix)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Ends all that runs in the prefix, and waits until the registry is on disk.
fn stop(prefix: &Path) {
    server(prefix, "-k");
    server(prefix, "-w");
}

fn made() -> PathBuf {
    let directory = cache().join("prefix-plain");
    let ready = directory.join("ready");
    if ready.exists() {
        return directory;
    }
    // What is left of one whose making broke off.
    stop(&directory);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let steps: [&[&str]; 3] = [
        &["wineboot.exe", "-i"],
        // Wine 8 begins as Windows 7; programs of today ask for 10.
        &["winecfg.exe", "-v", "win10"],
        // Windows without a display: WSAAsyncSelect needs some.
        &[
            "reg.exe",
            "add",
            r"HKCU\Software\Wine\Drivers",
            "/v",
            "Graphics",
            "/d",
            "null",
            "/f",
        ],
    ];
    let scratch = Scratch::new();
    for step in steps {
        let mut command = wine(&directory);
        command.args(step);
        let ended = Started::new(step[0], scratch.path(), command).end_by(Instant::now() + LIMIT);
        let ended = ended.unwrap_or_else(|| panic!("{step:?} does not end"));
        assert_eq!(ended.code, 0, "{step:?}\n{}", ended.errors);
    }
    let dll = "bcryptprimitives.dll";
    let system = directory.join("drive_c/windows/system32");
    fs::copy(item("shim").join(dll), system.join(dll)).unwrap();
    stop(&directory);
    fs::write(&ready, "").unwrap();
    directory
}

fn copied() -> PathBuf {
    let plain = made();
    let directory = cache().join("prefix-provider");
    stop(&directory);
    let _ = fs::remove_dir_all(&directory);
    let status = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .args([&plain, &directory])
        .status();
    assert!(status.unwrap().success(), "cp -a {}", plain.display());
    directory
}
