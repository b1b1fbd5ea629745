//! Wine with its 32-bit part, in a root directory of its own: beside the packages of a machine it can't always be installed.
//!
//! The root is made once, with debootstrap, and used again. It is the same system as the machine's, so that programs built outside run
//! inside; what runs inside sees the machine's /proc, /dev, /tmp and this repository's target directory in their places.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::pair::tails;
use crate::paths;
use crate::process::Started;

/// Mostly other people's servers: some 400 packages.
const LIMIT: Duration = Duration::from_secs(900);
/// Inside: the machine's directories in their places, then the program, where it was started.
const ENTER: &str = r#"
    root=$1 target=$2 here=$(pwd); shift 2
    for directory in /proc /sys /dev /tmp "$target"; do
        mkdir -p "$root$directory" && mount --rbind "$directory" "$root$directory" || exit 120
    done
    test -d "$root$here" || here=/
    exec chroot "$root" env -C "$here" "$@"
"#;
/// What the root gets: Wine for both widths, from where debootstrap had the rest, by the machine's own way there.
const INSTALL: &str = r#"
    set -e
    root=$1
    cp /etc/resolv.conf "$root/etc/"
    cp -r /etc/apt/apt.conf.d "$root/etc/apt/"
    chroot "$root" dpkg --add-architecture i386
    chroot "$root" apt-get update -q
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -q -y --no-install-recommends wine32:i386 wine64
    chroot "$root" apt-get clean
"#;

static ROOT: OnceLock<Result<Root, String>> = OnceLock::new();

pub struct Root {
    path: PathBuf,
    _lock: File,
}

impl Root {
    /// `None`, and why, where there can't be one.
    pub fn find() -> Option<&'static Root> {
        let root = ROOT.get_or_init(Root::make);
        root.as_ref()
            .inspect_err(|why| crate::not_run(&format!("no 32-bit Wine: {why}")))
            .ok()
    }

    /// Ends what runs in a prefix.
    pub fn stop(&self, prefix: &str) {
        let mut server = Started::command("/usr/lib/wine/wineserver64");
        server.arg("-k").env("WINEPREFIX", self.prefix(prefix));
        // It says 1 when there is none to end.
        let _ = self.inside(&server).output();
    }

    fn make() -> Result<Root, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("making a root directory takes root's rights".into());
        }
        let directory = paths::target_dir().join("tmp/wine32");
        fs::create_dir_all(&directory).unwrap();
        let lock = File::create(directory.join("lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let path = directory.join("root");
        let made = directory.join("made");
        if !made.exists() {
            let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
            let word = |name: &str| {
                let line = release.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.trim_matches('"').to_owned())
            };
            let (Some("debian"), Some(suite)) = (word("ID=").as_deref(), word("VERSION_CODENAME="))
            else {
                return Err("only on Debian is it known how to make a root directory".into());
            };
            if path.exists() {
                fs::remove_dir_all(&path).unwrap();
            }
            let mut bootstrap = Started::command("debootstrap");
            bootstrap
                .args(["--variant=minbase", "--include=ca-certificates", &suite])
                .arg(&path);
            done("debootstrap", &directory, bootstrap)?;
            let mut install = Started::command("sh");
            install.args(["-c", INSTALL, "sh"]).arg(&path);
            done("installing Wine", &directory, install)?;
            File::create(&made).unwrap();
        }
        Ok(Root { path, _lock: lock })
    }

    /// `command`, run inside.
    pub fn inside(&self, command: &Command) -> Command {
        let mut inside = Started::command("unshare");
        inside
            .args(["--mount", "sh", "-c", ENTER, "sh"])
            .arg(&self.path)
            .arg(paths::target_dir())
            .arg(command.get_program());
        Started::pass_on(command, &mut inside);
        inside.env("HOME", "/root");
        inside
    }

    pub fn prefix(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }
}

fn done(what: &str, directory: &Path, command: Command) -> Result<(), String> {
    let mut process = Started::new("root", directory, command);
    match process.end_by(Instant::now() + LIMIT) {
        Some(ended) if ended.code == 0 => Ok(()),
        ended => Err(format!(
            "{what} fails ({:?})\n{}",
            ended.map(|ended| ended.code),
            tails(&process.output_so_far(), &process.errors_so_far())
        )),
    }
}
