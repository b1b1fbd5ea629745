//! Who is who: processes by pid and start time, and the namespaces in which such names mean something.
//!
//! Where /proc can't be read (it was unmounted, the program went into another root), a process that exists counts as alive: to
//! take a live one for dead loses bytes, the other way round costs a file that stays.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::os::Realm;

/// A process for certain: its pid may be used again, with another start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ProcessId {
    pub pid: u32,
    /// Clock ticks after boot (field 22 of /proc/PID/stat); 0: it could not tell, so the pid alone counts.
    pub start: u64,
}

impl ProcessId {
    pub fn me() -> Self {
        let pid = rustix::process::getpid().as_raw_nonzero().get() as u32;
        Self {
            pid,
            start: my_start(pid).unwrap_or(0),
        }
    }

    /// The live process of that number.
    pub fn of(pid: u32) -> Option<Self> {
        match look(pid) {
            Look::Lives(start) => Some(Self { pid, start }),
            Look::Hidden => Some(Self { pid, start: 0 }),
            Look::Gone => None,
        }
    }

    /// Does it live? A zombie does not.
    pub fn alive(self) -> bool {
        self.pid != 0
            && match look(self.pid) {
                Look::Lives(start) => start == self.start || self.start == 0,
                Look::Hidden => true,
                Look::Gone => false,
            }
    }
}

/// What can be told of a task.
enum Look {
    /// Since this start time.
    Lives(u64),
    /// It exists, and /proc does not tell more.
    Hidden,
    Gone,
}

fn look(pid: u32) -> Look {
    match read_stat(format!("/proc/{pid}/stat")) {
        Some(Stat {
            lives: true, start, ..
        }) => Look::Lives(start),
        Some(_) => Look::Gone,
        None if process_exists(pid) && !has_ended(pid) => Look::Hidden,
        None => Look::Gone,
    }
}

/// Without /proc: has the process ended, and waits for its parent? Not to be told of a thread, which goes at once.
fn has_ended(pid: u32) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let open = |pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    pid.and_then(|pid| open(pid).ok()).is_some_and(|fd| {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&now)) == Ok(1)
    })
}

/// The fields of /proc/PID/stat that are needed.
struct Stat {
    pid: u32,
    lives: bool,
    stopped: bool,
    start: u64,
}

/// Takes no memory but for the path's sake.
fn read_stat(path: impl rustix::path::Arg) -> Option<Stat> {
    let mut room = [0_u8; 1024];
    let text = read_into(path, &mut room)?;
    // The name in parentheses may hold anything, even parentheses: count fields after the last one.
    let name_end = text.iter().rposition(|c| *c == b')')?;
    let number = |bytes: &[u8]| -> Option<u64> { std::str::from_utf8(bytes).ok()?.parse().ok() };
    let mut fields = text[name_end + 1..]
        .split(u8::is_ascii_whitespace)
        .filter(|f| !f.is_empty());
    let state = fields.next()?;
    Some(Stat {
        pid: number(text.split(|c| *c == b' ').next()?)? as u32,
        lives: !matches!(state, b"Z" | b"X"),
        stopped: matches!(state, b"T" | b"t"),
        start: number(fields.nth(18)?)?,
    })
}

fn read_into(path: impl rustix::path::Arg, room: &mut [u8]) -> Option<&[u8]> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let n = rustix::io::read(&fd, &mut *room).ok()?;
    room.get(..n)
}

/// Has a seccomp filter been installed for this thread, by whomever? It may kill for calls that few programs make. False where
/// /proc does not tell.
pub fn is_filtered() -> bool {
    const NAME: &[u8] = b"\nSeccomp:\t";
    let mut room = [0_u8; 4096];
    let Some(text) = read_into(c"/proc/thread-self/status", &mut room) else {
        return false;
    };
    let at = text.windows(NAME.len()).position(|w| w == NAME);
    at.and_then(|at| text.get(at + NAME.len()))
        .is_some_and(|mode| *mode != b'0')
}

/// This process's start time, if /proc is there, and the one of this process's namespace.
fn my_start(me: u32) -> Option<u64> {
    let stat = read_stat(c"/proc/self/stat")?;
    (stat.pid == me).then_some(stat.start)
}

/// Is there a live task (process or thread) of this number?
pub fn task_alive(tid: u32) -> bool {
    !matches!(look(tid), Look::Gone)
}

/// Is this task stopped, by a signal or a debugger? Where /proc does not tell, it may be.
pub fn task_stopped(tid: u32) -> bool {
    read_stat(format!("/proc/{tid}/stat")).is_none_or(|stat| stat.stopped)
}

/// Is there a process of this number, whoever it is? Cheaper than [`ProcessId::alive`], and may say yes of a stranger.
pub fn process_exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|p| rustix::process::test_kill_process(p) != Err(Errno::SRCH))
}

/// Name of a process, as in /proc/PID/comm.
pub fn process_name(pid: u32) -> Option<String> {
    Some(
        read_small(&format!("/proc/{pid}/comm"))?
            .trim_end()
            .to_owned(),
    )
}

pub(super) fn read_small(path: &str) -> Option<String> {
    let mut room = [0_u8; 1024];
    Some(String::from_utf8_lossy(read_into(path, &mut room)?).into_owned())
}

/// In which namespaces this process has its pid and its start time: in others the same numbers mean other processes. An
/// error: it can't be told, for there is no /proc, or it is another namespace's.
pub fn realm() -> io::Result<Realm> {
    identity().map(|(_, realm)| realm)
}

/// The realms that have processes. Only the system's own sees them all; `None`: it can't be told, also where one is hidden from us that
/// could use what is ours.
pub fn realms_in_use() -> Option<Vec<Realm>> {
    if realm_of("self").ok()? != Realm::FIRST {
        return None;
    }
    let me = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let number = |n: &&str| n.bytes().all(|b| b.is_ascii_digit());
        // The first of all is where it began.
        let Some(name) = name.to_str().filter(number).filter(|n| *n != "1") else {
            continue;
        };
        match realm_of(name) {
            Ok(realm) if found.contains(&realm) => {}
            Ok(realm) => found.push(realm),
            // It ended meanwhile, or may not be looked at.
            Err(_) if entry.metadata().is_ok_and(|m| m.uid() == me) => return None,
            Err(_) => {}
        }
    }
    Some(found)
}

/// `process`: as in /proc.
fn realm_of(process: &str) -> io::Result<Realm> {
    realm_at(["pid", "time", "user"].map(|space| format!("/proc/{process}/ns/{space}")))
}

fn realm_at<P: rustix::path::Arg>([processes, times, users]: [P; 3]) -> io::Result<Realm> {
    let inode = |path| rustix::fs::stat(path).map(|s| s.st_ino);
    Ok(Realm {
        processes: inode(processes)?,
        // Linux 5.6 and later.
        times: inode(times).unwrap_or(Realm::FIRST.times),
        users: inode(users).unwrap_or(Realm::FIRST.users),
    })
}

/// Who this process is, and its realm: asked for at once, for the kernel makes up /proc for each process anew.
pub fn identity() -> io::Result<(ProcessId, Realm)> {
    let pid = rustix::process::getpid().as_raw_nonzero().get() as u32;
    let Some(start) = my_start(pid) else {
        return Err(io::Error::other(
            "/proc is missing, or another process namespace's",
        ));
    };
    let realm = realm_at([
        c"/proc/self/ns/pid",
        c"/proc/self/ns/time",
        c"/proc/self/ns/user",
    ])?;
    Ok((ProcessId { pid, start }, realm))
}

/// Does this number stand for all users who have none in this user namespace? Where that can't be told, it may. Asked of root
/// and most others, it costs a comparison.
pub(super) fn is_anybody(uid: u32) -> bool {
    uid == overflow_uid()
        && !read_small("/proc/self/uid_map").is_some_and(|map| crate::trust::maps_all(&map))
}

/// The number that the kernel shows for users without one: user_namespaces(7).
fn overflow_uid() -> u32 {
    const DEFAULT: u32 = 65534;
    const UNKNOWN: u32 = u32::MAX;
    static KNOWN: AtomicU32 = AtomicU32::new(UNKNOWN);
    let known = KNOWN.load(Relaxed);
    if known != UNKNOWN {
        return known;
    }
    let Some(text) = read_small("/proc/sys/kernel/overflowuid") else {
        return DEFAULT;
    };
    let uid = text.trim_end().parse().unwrap_or(DEFAULT);
    KNOWN.store(uid, Relaxed);
    uid
}

/// The number that a user of this user namespace has in the one around it; itself where that can't be told.
pub(super) fn uid_outside(uid: u32) -> u32 {
    let Some(text) = read_small("/proc/self/uid_map") else {
        return uid;
    };
    let range = |line: &str| {
        let mut words = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (
            words.next()?.ok()?,
            words.next()?.ok()?,
            words.next()?.ok()?,
        );
        let at = uid.checked_sub(inside).filter(|at| *at < count)?;
        outside.checked_add(at)
    };
    text.lines().find_map(range).unwrap_or(uid)
}
