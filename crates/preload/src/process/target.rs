//! Will the program that is about to start load the front? Asked before exec, because what is carried can stay carried only
//! then. Whatever is in doubt means no.
//!
//! Nothing here takes memory: exec is called between fork and exec of programs with threads, where that is not safe.

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::ctx::Ctx;

/// How a call names the program.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    Path(&'a CStr),
    /// To be looked for in PATH, unless there is a slash in it.
    File(&'a CStr),
    At(c_int, &'a CStr, c_int),
    Open(c_int),
    /// It can't be told from here.
    Unsure,
}

/// What will become of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The loader will load the front, if the environment says so.
    Loads,
    /// It won't, or that can't be told.
    Stranger,
    /// Its loader is another's, which can't load the front: it complains, or gives up (musl's).
    Foreign,
    /// There is no program: the call will fail.
    Missing,
}

/// File name of this library.
const LIBRARY: &[u8] = b"libsockets_gm.so";
/// File name of the C library's loader, whose LD_PRELOAD it is: another C library's can't load us.
#[cfg(target_arch = "x86_64")]
const LOADER: &[u8] = b"ld-linux-x86-64.so.2";
#[cfg(not(target_arch = "x86_64"))]
const LOADER: &[u8] = b"";
/// Scripts whose interpreter is a script.
const SCRIPTS: usize = 2;

/// The name by which a value of LD_PRELOAD names this library, if it does.
fn library_in(value: &[u8]) -> Option<&[u8]> {
    value
        .split(|c| *c == b':' || *c == b' ')
        .find(|name| name.rsplit(|c| *c == b'/').next() == Some(LIBRARY))
}

/// Is this library among those that a value of LD_PRELOAD names?
pub fn names_library(value: &[u8]) -> bool {
    library_in(value).is_some()
}

/// Tells a file's content from another's, unless somebody takes pains.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileId([u64; 5]);

impl FileId {
    /// Takes no memory. `None`: there is no such file, or the name is too long.
    pub fn of(path: &[u8]) -> Option<Self> {
        let mut room = [0_u8; 1024];
        room.get_mut(..path.len())?.copy_from_slice(path);
        let path = CStr::from_bytes_until_nul(&room).ok()?;
        let s = rustix::fs::stat(path).ok()?;
        Some(Self([
            s.st_dev as u64,
            s.st_ino as u64,
            s.st_size as u64,
            s.st_mtime as u64,
            s.st_mtime_nsec as u64,
        ]))
    }
}

fn open_at(dir: BorrowedFd<'_>, path: &CStr, nofollow: bool) -> Result<OwnedFd, Errno> {
    let follow = if nofollow {
        OFlags::NOFOLLOW
    } else {
        OFlags::empty()
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | follow;
    rustix::fs::openat(dir, path, flags, Mode::empty())
}

fn open(path: &CStr) -> Result<OwnedFd, Errno> {
    open_at(rustix::fs::CWD, path, false)
}

/// As execvp: the first file of that name in PATH that may be executed.
fn search(file: &CStr) -> Result<OwnedFd, Errno> {
    const DEFAULT: &[u8] = b"/bin:/usr/bin";
    if file.to_bytes().contains(&b'/') {
        return open(file);
    }
    // SAFETY: getenv has no precondition but that nobody changes the environment meanwhile, as for execvp itself.
    let path = unsafe {
        let value = libc::getenv(c"PATH".as_ptr());
        if value.is_null() {
            DEFAULT
        } else {
            CStr::from_ptr(value).to_bytes()
        }
    };
    let mut room = [0_u8; 1024];
    for dir in path.split(|c| *c == b':') {
        let name = file.to_bytes_with_nul();
        let n = dir.len() + 1;
        if n + name.len() > room.len() {
            return Err(Errno::NAMETOOLONG);
        }
        room[..dir.len()].copy_from_slice(dir);
        room[dir.len()] = b'/';
        room[n..n + name.len()].copy_from_slice(name);
        // An empty entry is the current directory.
        let from = usize::from(dir.is_empty());
        let Ok(path) = CStr::from_bytes_until_nul(&room[from..]) else {
            continue;
        };
        let may = rustix::fs::accessat(
            rustix::fs::CWD,
            path,
            rustix::fs::Access::EXEC_OK,
            AtFlags::EACCESS,
        );
        if may.is_ok() {
            return open(path);
        }
    }
    Err(Errno::NOENT)
}

/// What will become of the program that a call names?
pub fn judge(target: Target<'_>) -> Verdict {
    let opened = match target {
        Target::Path(path) => open(path),
        Target::File(file) => search(file),
        Target::At(dir, path, flags) => {
            // SAFETY: the caller's descriptor, or AT_FDCWD.
            let dir = unsafe { crate::kernel::borrow(dir) };
            if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
                return of_file(dir, SCRIPTS);
            }
            open_at(dir, path, flags & libc::AT_SYMLINK_NOFOLLOW != 0)
        }
        Target::Unsure => return Verdict::Stranger,
        // SAFETY: the caller's descriptor.
        Target::Open(fd) => return of_file(unsafe { crate::kernel::borrow(fd) }, SCRIPTS),
    };
    match opened {
        Ok(fd) => {
            use std::os::fd::AsFd;
            of_file(fd.as_fd(), SCRIPTS)
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::BADF) => {
            Verdict::Missing
        }
        Err(_) => Verdict::Stranger,
    }
}

fn of_file(fd: BorrowedFd<'_>, scripts: usize) -> Verdict {
    // SAFETY: no arguments; what the kernel noted when this program began.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    let same = rustix::process::getuid() == rustix::process::geteuid()
        && rustix::process::getgid() == rustix::process::getegid();
    let stat = match rustix::fs::fstat(fd) {
        Ok(stat) => stat,
        Err(Errno::BADF) => return Verdict::Missing,
        Err(_) => return Verdict::Stranger,
    };
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() || stat.st_mode & 0o111 == 0 {
        return Verdict::Missing;
    }
    let plain = stat.st_mode & 0o6000 == 0
        && rustix::fs::fgetxattr(fd, c"security.capability", &mut [0_u8; 0]).is_err();
    if secure || !same || !plain {
        return Verdict::Stranger;
    }
    let mut head = [0_u8; 256];
    let Ok(n) = rustix::io::pread(fd, &mut head, 0) else {
        return Verdict::Stranger;
    };
    let head = &head[..n];
    if let Some(line) = head.strip_prefix(b"#!") {
        let end = line.iter().position(|c| *c == b'\n').unwrap_or(line.len());
        return of_script(&line[..end], scripts);
    }
    loader_of(fd, head).unwrap_or(Verdict::Stranger)
}

/// The interpreter that a script's first line names.
fn of_script(line: &[u8], scripts: usize) -> Verdict {
    let blank = |c: &u8| *c == b' ' || *c == b'\t';
    let from = line.iter().position(|c| !blank(c)).unwrap_or(line.len());
    let line = &line[from..];
    let name = &line[..line.iter().position(blank).unwrap_or(line.len())];
    let mut room = [0_u8; 256];
    if scripts == 0 || name.is_empty() || name.len() >= room.len() {
        return Verdict::Stranger;
    }
    room[..name.len()].copy_from_slice(name);
    let opened = CStr::from_bytes_until_nul(&room).ok().map(open);
    match opened {
        Some(Ok(fd)) => {
            use std::os::fd::AsFd;
            of_file(fd.as_fd(), scripts - 1)
        }
        _ => Verdict::Stranger,
    }
}

/// Which loader does it ask for? A static one asks for none.
fn loader_of(fd: BorrowedFd<'_>, head: &[u8]) -> Option<Verdict> {
    const PT_INTERP: u64 = 3;
    const HEADERS: u64 = 64;
    /// ELF, 64 bits, in this machine's order of bytes.
    const KIND: &[u8] = if cfg!(target_endian = "little") {
        b"\x7fELF\x02\x01"
    } else {
        b"\x7fELF\x02\x02"
    };
    let machine = if cfg!(target_arch = "x86_64") { 62 } else { 0 };
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    if !head.starts_with(KIND) || word(head, 18, 2)? != machine {
        return Some(Verdict::Foreign);
    }
    let (table, size, count) = (word(head, 32, 8)?, word(head, 54, 2)?, word(head, 56, 2)?);
    let mut entry = [0_u8; 56];
    for i in 0..count.min(HEADERS) {
        let at = table.checked_add(i * size)?;
        if rustix::io::pread(fd, &mut entry, at).ok()? < entry.len() {
            return None;
        }
        if word(&entry, 0, 4)? == PT_INTERP {
            let mut name = [0_u8; 256];
            let n = rustix::io::pread(fd, &mut name, word(&entry, 8, 8)?).ok()?;
            let name = CStr::from_bytes_until_nul(&name[..n]).ok()?.to_bytes();
            let ours = name.rsplit(|c| *c == b'/').next() == Some(LOADER);
            return Some(if ours {
                Verdict::Loads
            } else {
                Verdict::Foreign
            });
        }
    }
    None
}

fn word(bytes: &[u8], at: usize, n: usize) -> Option<u64> {
    let mut all = [0_u8; 8];
    all[..n].copy_from_slice(bytes.get(at..at + n)?);
    Some(u64::from_le_bytes(all))
}

/// What an environment does with the front.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    Keeps,
    /// It has nothing of ours: somebody cleared it.
    Lost,
    /// It says otherwise.
    Refuses,
}

/// The value of `name` (with its `=`) in an environment.
///
/// # Safety
/// `env` is null or a list as for execve.
unsafe fn value<'a>(env: *const *const c_char, name: &[u8]) -> Option<&'a [u8]> {
    // SAFETY: by the caller.
    unsafe {
        let mut at = env;
        while !at.is_null() && !(*at).is_null() {
            if let Some(v) = CStr::from_ptr(*at).to_bytes().strip_prefix(name) {
                return Some(v);
            }
            at = at.add(1);
        }
    }
    None
}

/// # Safety
/// `env` is null or a list as for execve.
pub unsafe fn environment(ctx: &Ctx, env: *const *const c_char) -> Environment {
    // SAFETY: by the caller.
    let (preload, dir, disable) = unsafe {
        (
            value(env, b"LD_PRELOAD="),
            value(env, b"SGM_DIR="),
            value(env, b"SGM_DISABLE="),
        )
    };
    let ours = ctx
        .kept
        .dir
        .as_ref()
        .map(|d| &d.to_bytes()[b"SGM_DIR=".len()..]);
    if disable.is_some_and(|v| v != b"0" && !v.is_empty())
        || preload.is_some_and(|v| !names_library(v))
        || dir.is_some() && dir != ours
    {
        Environment::Refuses
    } else if preload.is_none() || dir != ours {
        Environment::Lost
    } else {
        Environment::Keeps
    }
}

/// Will the new program open what we have open? Not in another root, or as another user; and a library that was replaced
/// meanwhile may be of another version. `guest`: this is not the process that opened the node, and may be in another realm.
///
/// # Safety
/// `env` is null or a list as for execve.
pub unsafe fn reaches(ctx: &Ctx, env: *const *const c_char, guest: bool) -> bool {
    // SAFETY: by the caller.
    let preload = unsafe { value(env, b"LD_PRELOAD=") };
    let library =
        library_in(preload.unwrap_or(&ctx.kept.preload.to_bytes()[b"LD_PRELOAD=".len()..]));
    let how = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    let registry = &ctx.registry;
    library.and_then(FileId::of) == Some(ctx.library)
        && (!guest || gm::os::realm().is_ok_and(|realm| realm == ctx.node.realm))
        && rustix::fs::accessat(rustix::fs::CWD, registry, how, AtFlags::EACCESS).is_ok()
}

/// The most entries of an environment that is given ours in addition.
pub const ENTRIES: usize = 200;

/// An environment without this library, for a program that could not load it.
pub struct Lighter {
    env: [*const c_char; ENTRIES],
    /// `LD_PRELOAD=` and the other libraries.
    others: [u8; 512],
    /// What was found out of the program on the way.
    pub verdict: Option<Verdict>,
}

impl Lighter {
    pub fn new() -> Self {
        Self {
            env: [std::ptr::null(); ENTRIES],
            others: [0; 512],
            verdict: None,
        }
    }

    /// `env` as it is, or without this library where the program would only complain of it: another loader's, and one in
    /// another root, where the library is not.
    ///
    /// # Safety
    /// `env` is null or a list as for execve, whose strings live as long as this is used.
    pub unsafe fn fit(
        &mut self,
        target: Target<'_>,
        env: *const *const c_char,
    ) -> *const *const c_char {
        const NAME: &[u8] = b"LD_PRELOAD=";
        // SAFETY: by the caller.
        let Some(value) = (unsafe { value(env, NAME) }) else {
            return env;
        };
        let Some(ours) = library_in(value) else {
            return env;
        };
        if FileId::of(ours).is_some() {
            let verdict = judge(target);
            self.verdict = Some(verdict);
            if verdict != Verdict::Foreign {
                return env;
            }
        }
        let mut n = NAME.len();
        self.others[..n].copy_from_slice(NAME);
        for other in value
            .split(|c| *c == b':' || *c == b' ')
            .filter(|o| *o != ours)
        {
            // With a separator, and a zero at the end.
            let Some(room) = self.others.get_mut(n..n + other.len() + 2) else {
                return env;
            };
            room[..other.len()].copy_from_slice(other);
            room[other.len()] = b':';
            n += other.len() + 1;
        }
        let mut to = 0;
        // SAFETY: by the caller.
        unsafe {
            let mut at = env;
            while !(*at).is_null() {
                let preload = CStr::from_ptr(*at).to_bytes().starts_with(NAME);
                if to + 1 == ENTRIES {
                    return env;
                }
                if !preload || n > NAME.len() {
                    self.env[to] = if preload {
                        self.others.as_ptr().cast()
                    } else {
                        *at
                    };
                    to += 1;
                }
                at = at.add(1);
            }
        }
        self.env[to] = std::ptr::null();
        self.env.as_ptr()
    }
}

/// `env` with what brought the front here. `None`: too long.
///
/// # Safety
/// `env` is null or a list as for execve, whose strings live as long as `room` is used.
pub unsafe fn restored(
    ctx: &'static Ctx,
    env: *const *const c_char,
    room: &mut [*const c_char; ENTRIES],
) -> bool {
    let kept = &ctx.kept;
    let all = [
        Some(&kept.preload),
        kept.dir.as_ref(),
        kept.run.as_ref(),
        kept.calls.as_ref(),
    ];
    let mut n = 0;
    // SAFETY: by the caller.
    unsafe {
        while !env.is_null() && !(*env.add(n)).is_null() {
            if n + all.len() >= ENTRIES {
                return false;
            }
            room[n] = *env.add(n);
            n += 1;
        }
        for ours in all.into_iter().flatten() {
            let name = ours.to_bytes().split_inclusive(|c| *c == b'=').next();
            if value(env, name.unwrap_or_default()).is_none() {
                room[n] = ours.as_ptr();
                n += 1;
            }
        }
    }
    room[n] = std::ptr::null();
    true
}
