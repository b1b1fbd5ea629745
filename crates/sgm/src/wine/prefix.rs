//! A Wine prefix, and what of ours is in it.
//!
//! ```text
//! <prefix>/sockets-gm.stamp                    which files we put in; the first line says how far we got
//! drive_c/windows/spi/ws2_32.dll               Wine's own Winsock DLL, for ours to call
//! drive_c/windows/system32/ws2_32.dll          ours, in place of a copy of Wine's
//! drive_c/Program Files/Sockets-GM/            providers, installer, gm_set_name
//! drive_c/windows/system32/lsp.dll             by inst_lsp.exe, as on Windows
//! ```
//!
//! Where Wine has a 32-bit part, that has its own: `spi32`, `syswow64`, `Program Files (x86)`, and a catalog beside the other.
//!
//! Rules:
//! 1. The stamp is there before anything else of ours and goes last, so what a dead preparation left can be told from
//!    what others put into the prefix.
//! 2. A prefix is ready when stamp, files and sources agree; then nothing is started and nothing is written.
//! 3. One process at a time prepares or removes: the prefix's stamp is locked meanwhile.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::places::{Programs, Width, Wine};
use super::{files, registry};

/// Far more than any step takes: a first start is the longest, about ten seconds on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

const STAMP: &str = "sockets-gm.stamp";

/// Where the programs of one width find things.
struct Half {
    width: Width,
    winsock: &'static str,
    builtin: &'static str,
    in_use: &'static str,
    ours: &'static str,
}

const WIDE: Half = Half {
    width: Width::Bits64,
    winsock: "drive_c/windows/system32/ws2_32.dll",
    builtin: "drive_c/windows/spi/ws2_32.dll",
    in_use: "drive_c/windows/system32/lsp.dll",
    ours: "drive_c/Program Files/Sockets-GM",
};
const NARROW: Half = Half {
    width: Width::Bits32,
    winsock: "drive_c/windows/syswow64/ws2_32.dll",
    builtin: "drive_c/windows/spi32/ws2_32.dll",
    in_use: "drive_c/windows/syswow64/lsp.dll",
    ours: "drive_c/Program Files (x86)/Sockets-GM",
};
static HALVES: [Half; 2] = [WIDE, NARROW];

/// First lines of a stamp: Wine's own part is being made; our part is being changed.
const MAKING: &str = "making\n";
const UNFINISHED: &str = "unfinished\n";

/// Exit codes of inst_lsp.exe, as its help lists them.
const DONE: i32 = 0;
const NOTHING_TO_DO: i32 = 3;
const IN_THE_WAY: i32 = 5;

pub struct Prefix {
    dir: PathBuf,
    /// Nobody but us uses it.
    own: bool,
}

/// How a prefix stands to the files that it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Absent,
    /// There, with nothing of ours.
    Untouched,
    /// Ours, but of other versions or not finished.
    Outdated,
    Ready,
}

impl Prefix {
    /// The given one, else the one in WINEPREFIX, else our own.
    pub fn choose(given: Option<&Path>) -> Result<Prefix> {
        let from_env = || std::env::var_os("WINEPREFIX").filter(|dir| !dir.is_empty());
        match given
            .map(PathBuf::from)
            .or_else(|| from_env().map(PathBuf::from))
        {
            Some(dir) => Ok(Prefix {
                dir: std::path::absolute(dir)?,
                own: false,
            }),
            None => Ok(Prefix {
                dir: own_dir()
                    .context("HOME is not set: name a prefix with --prefix or WINEPREFIX")?,
                own: true,
            }),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Is Wine's part of the prefix there, whole? The registry's files are no sign: the server writes them late.
    fn exists(&self) -> bool {
        self.path(".update-timestamp").exists()
            && self.path(WIDE.winsock).exists()
            && !self.broke_off()
    }

    /// Did we begin to make it and not end?
    fn broke_off(&self) -> bool {
        std::fs::read_to_string(self.path(STAMP)).is_ok_and(|stamp| stamp == MAKING)
    }

    /// How the prefix stands to these files.
    pub fn standing(&self, wine: &Wine, programs: &Programs) -> Result<Standing> {
        if !self.exists() {
            return Ok(Standing::Absent);
        }
        let Ok(stamp) = std::fs::read_to_string(self.path(STAMP)) else {
            return Ok(Standing::Untouched);
        };
        let wanted = self.wanted(wine, programs)?;
        let present = |(_, to): &(PathBuf, String)| files::fingerprint(&self.path(to));
        let mut halves = self.halves(wine, programs);
        let same = stamp == text(&wanted, |(from, _)| files::fingerprint(from))
            && stamp == text(&wanted, present)
            && halves.all(|half| self.path(half.in_use).exists());
        Ok(if same {
            Standing::Ready
        } else {
            Standing::Outdated
        })
    }

    /// What of it gets our files: the 32-bit part only where Wine, the prefix and our build have it.
    fn halves(&self, wine: &Wine, programs: &Programs) -> impl Iterator<Item = &'static Half> {
        let has = |half: &&Half| {
            half.width == Width::Bits64
                || self.path(half.winsock).exists()
                    && wine.winsock(half.width).is_ok()
                    && programs.are_for(half.width)
        };
        HALVES.iter().filter(has)
    }

    /// Are there providers for programs of this width?
    pub fn serves(&self, width: Width, wine: &Wine, programs: &Programs) -> bool {
        self.halves(wine, programs).any(|half| half.width == width)
    }

    /// What a prefix gets: source, and place below the prefix.
    fn wanted(&self, wine: &Wine, programs: &Programs) -> Result<Vec<(PathBuf, String)>> {
        let mut files = Vec::new();
        for half in self.halves(wine, programs) {
            files.push((wine.winsock(half.width)?, half.builtin.to_owned()));
            for name in Programs::FILES {
                let to = match name {
                    "ws2_32.dll" => half.winsock.to_owned(),
                    _ => format!("{}/{name}", half.ours),
                };
                files.push((programs.file(half.width, name), to));
            }
        }
        Ok(files)
    }

    /// Makes the prefix if need be, and puts into it what is not there or not of this version.
    pub fn prepare(&self, wine: &Wine, programs: &Programs) -> Result<()> {
        if self.standing(wine, programs)? == Standing::Ready {
            return Ok(());
        }
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("can't make {}", self.dir.display()))?;
        if self.exists() {
            self.ensure_not_taken(wine)?;
        }
        let lock = self.lock()?;
        if !self.exists() {
            self.make(wine)?;
        }
        // Another one may have done it while we waited.
        if self.standing(wine, programs)? == Standing::Ready {
            return Ok(());
        }
        eprintln!("sgm: putting the providers into {}", self.dir.display());
        std::fs::write(self.path(STAMP), UNFINISHED)?;
        let wanted = self.wanted(wine, programs)?;
        for (from, to) in &wanted {
            files::place(from, &self.path(to))?;
        }
        self.import(wine, "override", registry::PUT_IN)?;
        for half in self.halves(wine, programs) {
            self.install(wine, half)?;
        }
        std::fs::write(
            self.path(STAMP),
            text(&wanted, |(from, _)| files::fingerprint(from)),
        )?;
        drop(lock);
        Ok(())
    }

    /// A fresh prefix.
    fn make(&self, wine: &Wine) -> Result<()> {
        eprintln!(
            "sgm: making the Wine prefix {} (once; some seconds)",
            self.dir.display()
        );
        if self.broke_off() {
            self.clear(wine)?;
        }
        std::fs::write(self.path(STAMP), MAKING)?;
        let boot = || {
            let mut boot = wine.command(&self.dir);
            // No offers to download Mono and Gecko, no entries in the desktop's menu.
            boot.env("WINEDLLOVERRIDES", "mscoree,mshtml,winemenubuilder.exe=");
            self.finish(wine, boot.args(["wineboot.exe", "-i"]), "make the prefix")
        };
        // Nothing of ours is in the prefix yet: a failure is plain Wine's own, seen now and then on busy machines.
        if let Err(error) = boot() {
            eprintln!("sgm: {error:#}\nsgm: once more, from nothing");
            self.clear(wine)?;
            boot()?;
        }
        if self.own {
            // Wine 8 begins as Windows 7; programs of today ask for 10.
            self.finish(
                wine,
                wine.command(&self.dir).args(["winecfg.exe", "-v", "win10"]),
                "set the Windows version",
            )?;
            self.import(wine, "display", registry::NO_DISPLAY)?;
        }
        std::fs::write(self.path(STAMP), UNFINISHED)?;
        Ok(())
    }

    /// Takes a half-made prefix away. What has not been used yet holds nothing of anybody's.
    fn clear(&self, wine: &Wine) -> Result<()> {
        self.stop(wine);
        for name in ["drive_c", "dosdevices"] {
            gone(std::fs::remove_dir_all(self.path(name)), &self.path(name))?;
        }
        for name in [".update-timestamp", "system.reg", "user.reg", "userdef.reg"] {
            gone(std::fs::remove_file(self.path(name)), &self.path(name))?;
        }
        Ok(())
    }

    /// Refuses a prefix in which somebody else already replaced Winsock.
    fn ensure_not_taken(&self, wine: &Wine) -> Result<()> {
        if self.path(STAMP).exists() {
            return Ok(());
        }
        for half in &HALVES {
            let dll = self.path(half.winsock);
            if half.width == Width::Bits32 && !dll.exists() {
                continue;
            }
            let image =
                std::fs::read(&dll).with_context(|| format!("can't read {}", dll.display()))?;
            ensure!(
                files::is_wines(&image),
                "{} is not Wine's own: take it out, or use another prefix (--prefix DIR)",
                dll.display()
            );
        }
        for name in ["ws2_32", "*ws2_32"] {
            let mut query = wine.command(&self.dir);
            query.args(["reg.exe", "query", registry::OVERRIDES, "/v", name]);
            ensure!(
                self.outcome(wine, &mut query, "ask the registry", &[0, 1])? == 1,
                "{} already overrides {name}: remove that in winecfg, or use another prefix (--prefix DIR)",
                self.dir.display()
            );
        }
        Ok(())
    }

    /// Puts the provider into the catalog, and mends an installation that is of another version or not whole.
    fn install(&self, wine: &Wine, half: &Half) -> Result<()> {
        let outcome = self.inst_lsp(wine, half, "install", &[DONE, NOTHING_TO_DO, IN_THE_WAY])?;
        if outcome == IN_THE_WAY {
            self.inst_lsp(wine, half, "repair", &[DONE, NOTHING_TO_DO])?;
            // Of half an installation it may have removed the rest.
            self.inst_lsp(wine, half, "install", &[DONE, NOTHING_TO_DO])?;
        }
        Ok(())
    }

    /// Runs our installer in the prefix; gives its exit code, which must be one of `fine`.
    fn inst_lsp(&self, wine: &Wine, half: &Half, verb: &str, fine: &[i32]) -> Result<i32> {
        let mut command = wine.command(&self.dir);
        command
            .arg(self.path(half.ours).join("inst_lsp.exe"))
            .arg(verb);
        self.outcome(wine, &mut command, &format!("{verb} the provider"), fine)
    }

    /// Takes everything of ours out.
    pub fn remove(&self, wine: &Wine) -> Result<()> {
        if !self.path(STAMP).exists() {
            println!("{}: nothing of ours is in it", self.dir.display());
            return Ok(());
        }
        let lock = self.lock()?;
        std::fs::write(self.path(STAMP), UNFINISHED)?;
        let begun =
            |half: &&Half| self.path(half.builtin).exists() || self.path(half.ours).exists();
        let halves: Vec<&Half> = HALVES.iter().filter(begun).collect();
        for half in &halves {
            // On Wine's own Winsock, where a removal that broke off may have got to, there is no catalog to ask.
            let ours =
                std::fs::read(self.path(half.winsock)).is_ok_and(|image| !files::is_wines(&image));
            if ours && self.path(half.ours).join("inst_lsp.exe").exists() {
                self.inst_lsp(wine, half, "remove", &[DONE, NOTHING_TO_DO])?;
            }
        }
        self.import(wine, "override", registry::TAKE_OUT)?;
        for half in &halves {
            let spi = self.path(half.builtin);
            // Wine's 32-bit part may be gone by now.
            let builtin = wine.winsock(half.width).unwrap_or_else(|_| spi.clone());
            files::place(&builtin, &self.path(half.winsock))?;
            for file in [&spi, &self.path(half.in_use)] {
                gone(std::fs::remove_file(file), file)?;
            }
            // Others may have a provider there, too.
            let _ = std::fs::remove_dir(spi.parent().unwrap_or(&spi));
            let ours = self.path(half.ours);
            gone(std::fs::remove_dir_all(&ours), &ours)?;
        }
        let stamp = self.path(STAMP);
        gone(std::fs::remove_file(&stamp), &stamp)?;
        drop(lock);
        println!("{}: everything of ours is out again", self.dir.display());
        if self.own {
            println!(
                "The prefix itself was made by sgm: rm -r {}",
                self.dir.display()
            );
        }
        Ok(())
    }

    /// Held while the prefix is changed. Opening makes the stamp, as rule 1 wants it.
    fn lock(&self) -> Result<File> {
        let path = self.path(STAMP);
        let open = || -> std::io::Result<File> {
            let file = File::options().create(true).append(true).open(&path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        open().with_context(|| format!("can't lock {}", path.display()))
    }

    /// Starts Wine's server and services, unless they run: begun by the program itself they would keep its standard error
    /// open after its end, and who reads that through a pipe would wait for them.
    pub fn boot(&self, wine: &Wine) -> Result<()> {
        if self.server().is_some() {
            return Ok(());
        }
        self.finish(
            wine,
            wine.command(&self.dir).arg("wineboot.exe"),
            "start Wine",
        )
    }

    /// Ends every program of the prefix, as far as they can be reached.
    pub fn stop(&self, wine: &Wine) {
        if let Some(server) = wine.server() {
            let mut command = Command::new(server);
            command.arg("-k").env("WINEPREFIX", &self.dir);
            // Without a server there is nothing to end, which counts as a failure there.
            let _ = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }

    /// The process number of the prefix's server. A server works in a directory named after the prefix's device and inode,
    /// wherever distributions put that.
    pub fn server(&self) -> Option<u32> {
        use std::os::unix::fs::MetadataExt;
        let meta = self.dir.metadata().ok()?;
        let name = format!("server-{:x}-{:x}", meta.dev(), meta.ino());
        let is_ours = |process: &Path| {
            std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.ends_with(&name))
                && std::fs::read_to_string(process.join("comm"))
                    .is_ok_and(|comm| comm.starts_with("wineserver"))
        };
        let processes = std::fs::read_dir("/proc").ok()?.flatten();
        let ours = processes.map(|p| p.path()).find(|p| is_ours(p))?;
        ours.file_name()?.to_str()?.parse().ok()
    }

    fn import(&self, wine: &Wine, name: &str, reg: &str) -> Result<()> {
        let file = self.path(&format!("sockets-gm-{name}.reg"));
        std::fs::write(&file, reg.replace('\n', "\r\n"))?;
        let mut command = wine.command(&self.dir);
        let done = self.finish(
            wine,
            command.args(["regedit.exe", "/S"]).arg(&file),
            "change the registry",
        );
        let _ = std::fs::remove_file(&file);
        done
    }

    /// Runs a program that must succeed.
    fn finish(&self, wine: &Wine, command: &mut Command, what: &str) -> Result<()> {
        self.outcome(wine, command, what, &[0]).map(drop)
    }

    /// Runs a program of the preparation to its end, its output into a file; gives its exit code, one of `fine`.
    fn outcome(&self, wine: &Wine, command: &mut Command, what: &str, fine: &[i32]) -> Result<i32> {
        let mut log = scratch().context("can't make a temporary file")?;
        let output = log.try_clone()?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("can't run {}", command.get_program().display()))?;
        let handle = Pid::from_child(&child);
        let handle = pidfd_open(handle, PidfdFlags::empty()).context("can't watch Wine")?;
        let limit = Timespec {
            tv_sec: LIMIT.as_secs() as i64,
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit));
        if ended == Ok(0) {
            let _ = child.kill();
            let _ = child.wait();
            self.stop(wine);
            bail!("can't {what}: it did not end within {} s", LIMIT.as_secs());
        }
        let status = child.wait()?;
        if let Some(code) = status.code().filter(|code| fine.contains(code)) {
            return Ok(code);
        }
        let mut said = Vec::new();
        let _ = log.rewind().and_then(|()| log.read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said);
        let last: Vec<&str> = said.lines().rev().take(8).collect();
        let last: String = last
            .iter()
            .rev()
            .map(|line| format!("\n  | {line}"))
            .collect();
        bail!("can't {what} ({status}); WINEDEBUG=err+all shows more{last}")
    }
}

/// A file without a name, for output: Windows programs are not used to pipes, and what stays behind may hold it open.
fn scratch() -> std::io::Result<File> {
    let path = std::env::temp_dir().join(format!("sgm-{:016x}", gm::os::random()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Where our own prefix lies (XDG Base Directory Specification).
fn own_dir() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
    };
    let data = set("XDG_DATA_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))?;
    Some(data.join("sockets-gm/wine"))
}

/// The stamp for these files; one that can't be read makes it like no other.
fn text(
    wanted: &[(PathBuf, String)],
    fingerprint: impl Fn(&(PathBuf, String)) -> Option<u64>,
) -> String {
    let mut text = format!("sockets-gm {}\n", env!("CARGO_PKG_VERSION"));
    for file in wanted {
        match fingerprint(file) {
            Some(number) => text += &format!("{number:016x} {}\n", file.1),
            None => text += &format!("missing {}\n", file.1),
        }
    }
    text
}

/// What is not there need not be removed.
fn gone(result: std::io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("can't remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
