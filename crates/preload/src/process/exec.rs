//! Another program is about to start, and gets what stays open. If it will load the front (`target`), nothing is taken
//! back: the ends are posted in the node (`gm::held`), each with one holder more (or, for exec, with the one that this
//! process was), and the new program joins them as it starts (`adopt`). Else connections go back to TCP.
//!
//! What is on descriptor 2 has gone back already (`stdio`).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use gm::os::ProcessId;
use gm::{End, Port, Reason, Role, State};

use super::target::{
    ENTRIES, Environment, Lighter, Target, Verdict, environment, judge, reaches, restored,
};
use super::{give_away, vfork};
use crate::ctx::{self, Ctx};
use crate::fds::{self, Inside};
use crate::{adopt, cancel, real, stdio};

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// Ends that are remembered, to be taken back when the call fails. If there were more, those keep a holder too many.
const MOST: usize = 32;

/// What a program that is about to start was given.
struct Given {
    list: [Option<(&'static End, &'static Port)>; MOST],
    n: usize,
    /// Each has a holder more: the new program is a process of its own.
    added: bool,
}

/// How the new program comes to its descriptors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It takes this process's place.
    Exec,
    /// It takes the place of a child that shares our memory or is unknown to the tables, and so has no holder's part yet.
    Guest,
    /// It is a new process.
    Spawn,
}

fn stays_open(fd: c_int) -> bool {
    // SAFETY: F_GETFD takes no argument.
    let flags = unsafe { real::fcntl(fd, libc::F_GETFD, 0) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

fn way_of_exec(ctx: &Ctx) -> Way {
    match vfork::is_guest(ctx) {
        true => Way::Guest,
        false => Way::Exec,
    }
}

/// Will the new program have the socket behind `fd`? Not in a guest.
fn stays(way: Way, fd: c_int, slot: &fds::Slot) -> bool {
    stays_open(fd) || way == Way::Spawn && slot.spawn_copy.load(Relaxed)
}

/// Will it have any?
fn any_stays(way: Way) -> bool {
    let mut any = false;
    match way {
        Way::Guest => each_of_guest(|_| {
            any = true;
            ControlFlow::Break(())
        }),
        _ => fds::each(|fd, inside| any = any || stays(way, fd, inside.slot)),
    }
    any
}

/// Each socket that the new program will have, once (in a guest, once per descriptor).
fn each_staying(way: Way, mut f: impl FnMut(&Inside)) {
    let stays = |fd: c_int, slot: &fds::Slot| stays(way, fd, slot);
    match way {
        Way::Guest => each_of_guest(|inside| {
            f(inside);
            ControlFlow::Continue(())
        }),
        _ => fds::each_slot_once_of(stays, f),
    }
}

/// The known sockets among the descriptors of a child that shares our memory, whose numbers are not ours; until `f` breaks.
fn each_of_guest(mut f: impl FnMut(&Inside) -> ControlFlow<()>) {
    adopt::each_tcp(|fd| {
        if stays_open(fd)
            && let Some(inside) = fds::of_cookie(adopt::cookie(fd), fd)
        {
            return f(&inside);
        }
        ControlFlow::Continue(())
    });
}

impl Given {
    fn new() -> Self {
        Self {
            list: [None; MOST],
            n: 0,
            added: false,
        }
    }

    /// Posts the end, or hands the connection back where that can't be done.
    fn give(&mut self, ctx: &Ctx, inside: &Inside) {
        let conn = inside.conn();
        let end = conn.end();
        if self.ends().any(|(known, _)| std::ptr::eq(known, end)) {
            return;
        }
        if end.cookie.load(Relaxed) == 0 {
            end.cookie.store(adopt::cookie(inside.number), Relaxed);
        }
        let cookie = end.cookie.load(Relaxed);
        if cookie == 0 || ctx.node.hold(cookie, conn.place()).is_err() {
            return crate::giving::hand_back(inside, Reason::Handed);
        }
        if self.added {
            end.refs.fetch_add(1, AcqRel);
        }
        end.due.fetch_add(1, AcqRel);
        if let (Some(place), Some(port)) = (self.list.get_mut(self.n), inside.slot.port()) {
            *place = Some((end, port));
            self.n += 1;
        }
    }

    fn ends(&self) -> impl Iterator<Item = (&'static End, &'static Port)> {
        self.list[..self.n].iter().flatten().copied()
    }

    /// The ports live as long as the new process, even if it has not looked yet when all others are gone.
    fn settle(&self, child: ProcessId) {
        let mut last = std::ptr::null();
        for (_, port) in self.ends() {
            if !std::ptr::eq(port, last) {
                port.join(child);
            }
            last = port;
        }
    }

    /// There is no new program.
    fn take_back(&self, way: Way) {
        for (end, port) in self.ends() {
            if end.take_due() && self.added {
                end.refs.fetch_sub(1, AcqRel);
            }
            if way == Way::Guest {
                port.leave(ProcessId::me());
            }
        }
    }
}

/// Before a program starts with environment `env`. Returns the environment that it shall have, perhaps in `room`.
///
/// # Safety
/// `env` is null or a list as for execve.
unsafe fn before(
    ctx: &'static Ctx,
    way: Way,
    judge: impl FnOnce() -> Verdict,
    env: *const *const c_char,
    room: Option<&mut [*const c_char; ENTRIES]>,
    given: &mut Given,
) -> *const *const c_char {
    if !any_stays(way) {
        return env;
    }
    // SAFETY: by the caller.
    let keeps = unsafe { environment(ctx, env) };
    let verdict = match keeps {
        Environment::Refuses => Verdict::Stranger,
        _ => judge(),
    };
    if verdict == Verdict::Missing {
        return env;
    }
    let mut passed = env;
    // SAFETY: by the caller.
    let mut carry = verdict == Verdict::Loads && unsafe { reaches(ctx, env, way == Way::Guest) };
    if carry && keeps == Environment::Lost {
        carry = room.is_some_and(|room| {
            passed = room.as_ptr();
            // SAFETY: by the caller; ours live as long as the process.
            unsafe { restored(ctx, env, room) }
        });
        if !carry {
            passed = env;
        }
    }
    given.added = way != Way::Exec;
    each_staying(way, |inside| {
        let stdio = way == Way::Guest && stdio::is_unseen(inside.number);
        if carry && !(stdio && inside.conn().end().role() != Role::Listener) {
            given.give(ctx, inside);
        } else {
            let why = if stdio { Reason::Stdio } else { Reason::Handed };
            crate::giving::hand_back(inside, why);
        }
    });
    match way {
        Way::Guest => given.settle(ProcessId::me()),
        // Whatever file actions were made are used up; a program that joins with none counted adds itself.
        Way::Spawn => fds::each(|_, inside| inside.slot.spawn_copy.store(false, Relaxed)),
        Way::Exec => {}
    }
    passed
}

/// What closes on exec has a holder less.
fn leave_closing() {
    fds::each(|fd, inside| {
        if stays_open(fd) {
            inside.slot.stays.store(1, Relaxed);
        }
    });
    fds::each_slot_once(|inside| {
        let mut left = 0;
        if inside.slot.stays.swap(0, Relaxed) == 0 {
            inside.wake();
            let (conn, end) = (inside.conn(), inside.conn().end());
            conn.before_closing_exec(&inside.fd());
            if end.refs.load(Relaxed) > 1 && end.cookie.load(Relaxed) == 0 {
                end.cookie.store(adopt::cookie(inside.number), Relaxed);
            }
            let carried = if conn.is_engaged() { CARRIED } else { 0 };
            let last = if inside.leave_end() { LAST } else { 0 };
            left = LEFT | carried | last;
        }
        inside.slot.left_by_exec.store(left, Relaxed);
    });
}

/// In `Slot::left_by_exec`: its end has a holder less, which was the last one, and it was carried.
const LEFT: u32 = 1;
const LAST: u32 = 2;
const CARRIED: u32 = 4;

/// Exec failed: the holders are all here still. But where all others have closed the socket meanwhile, it is over for the ring.
fn return_to_closing() {
    fds::each_slot_once(|inside| {
        let left = inside.slot.left_by_exec.swap(0, Relaxed);
        if left == 0 || inside.return_to_end(left & LAST != 0) {
            return;
        }
        fds::abandon(inside);
        if left & CARRIED != 0 {
            // What the peer was told can't be taken back: an error at both ends, no hang.
            crate::giving::disconnect(inside.number);
        }
    });
}

/// One call of the exec family.
///
/// # Safety
/// `env` is null or a list as for execve.
unsafe fn exec(
    target: Target<'_>,
    env: *const *const c_char,
    call: impl FnOnce(*const *const c_char) -> c_int,
) -> c_int {
    let saved = crate::errno();
    let mut lighter = Lighter::new();
    // SAFETY: by the caller.
    let env = unsafe { lighter.fit(target, env) };
    let Some(ctx) = ctx::opened() else {
        crate::set_errno(saved);
        return call(env);
    };
    let way = way_of_exec(ctx);
    let mut room = [std::ptr::null(); ENTRIES];
    let mut given = Given::new();
    let verdict = || lighter.verdict.unwrap_or_else(|| judge(target));
    // SAFETY: by the caller.
    let env = unsafe { before(ctx, way, verdict, env, Some(&mut room), &mut given) };
    // A call that is going to fail changes nothing.
    let leaves = way == Way::Exec && lighter.verdict != Some(Verdict::Missing);
    if leaves {
        leave_closing();
    }
    crate::set_errno(saved);
    let r = call(env);
    let saved = crate::errno();
    given.take_back(way);
    if leaves {
        return_to_closing();
    }
    crate::set_errno(saved);
    r
}

/// # Safety
/// Null or a C string.
unsafe fn text<'a>(s: *const c_char) -> Option<&'a CStr> {
    // SAFETY: by the caller.
    (!s.is_null()).then(|| unsafe { CStr::from_ptr(s) })
}

/// The front's call of a function of the exec family. `$path`: its text, which may be null: the kernel refuses that.
macro_rules! exec_path {
    ($kind:ident($path:ident), $env:expr, |$new:ident| $call:expr) => {
        // SAFETY: the caller's arguments; the environment is theirs or one made of it.
        unsafe {
            let call = |$new: *const *const c_char| $call;
            match text($path) {
                Some(path) => exec(Target::$kind(path), $env, call),
                None => call($env),
            }
        }
    };
}

/// # Safety
/// As execve(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execve(
    path: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
) -> c_int {
    exec_path!(Path(path), env, |new| real::execve(path, argv, new))
}

/// # Safety
/// As execv(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execv(path: *const c_char, argv: *const *const c_char) -> c_int {
    exec_path!(Path(path), environ, |new| real::execve(path, argv, new))
}

/// # Safety
/// As execvp(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvp(file: *const c_char, argv: *const *const c_char) -> c_int {
    exec_path!(File(file), environ, |new| real::execvpe(file, argv, new))
}

/// # Safety
/// As execvpe(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvpe(
    file: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
) -> c_int {
    exec_path!(File(file), env, |new| real::execvpe(file, argv, new))
}

/// # Safety
/// As fexecve(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fexecve(
    fd: c_int,
    argv: *const *const c_char,
    env: *const *const c_char,
) -> c_int {
    // SAFETY: the caller's arguments; the environment is theirs or one made of it.
    unsafe { exec(Target::Open(fd), env, |new| real::fexecve(fd, argv, new)) }
}

/// # Safety
/// As execveat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execveat(
    dir: c_int,
    path: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's arguments; the environment is theirs or one made of it.
    unsafe {
        let call = |new: *const *const c_char| real::execveat(dir, path, argv, new, flags);
        match text(path) {
            Some(path) => exec(Target::At(dir, path, flags), env, call),
            None => call(env),
        }
    }
}

/// One call that starts a program in a new process. `call` gives the child, if it is known; `None`: it failed.
///
/// # Safety
/// `env` is null or a list as for execve.
unsafe fn spawn<T>(
    target: Target<'_>,
    env: *const *const c_char,
    room: Option<&mut [*const c_char; ENTRIES]>,
    call: impl FnOnce(*const *const c_char) -> (T, Option<u32>),
) -> T {
    let saved = crate::errno();
    let mut lighter = Lighter::new();
    // SAFETY: by the caller.
    let env = unsafe { lighter.fit(target, env) };
    let Some(ctx) = ctx::opened() else {
        crate::set_errno(saved);
        return call(env).0;
    };
    // In a guest, `mark` must look at the guest's own descriptors.
    let way = match way_of_exec(ctx) {
        Way::Guest => Way::Guest,
        _ => Way::Spawn,
    };
    let mut given = Given::new();
    let verdict = || lighter.verdict.unwrap_or_else(|| judge(target));
    // SAFETY: by the caller.
    let env = unsafe { before(ctx, way, verdict, env, room, &mut given) };
    crate::set_errno(saved);
    let (r, child) = call(env);
    if given.n > 0 {
        let saved = crate::errno();
        match child {
            None => given.take_back(way),
            Some(0) => {}
            Some(pid) => ProcessId::of(pid).into_iter().for_each(|c| given.settle(c)),
        }
        crate::set_errno(saved);
    }
    r
}

macro_rules! posix_spawns {
    ($($name:ident: $kind:ident;)*) => {$(
        /// # Safety
        /// As posix_spawn(3).
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(
            pid: *mut c_int,
            path: *const c_char,
            actions: *const c_void,
            attributes: *const c_void,
            argv: *const *const c_char,
            env: *const *const c_char,
        ) -> c_int {
            let mut room = [std::ptr::null(); ENTRIES];
            // SAFETY: the caller's arguments; the environment is theirs or one made of it.
            unsafe {
                let call = |new: *const *const c_char| {
                    let mut child = 0;
                    let r = real::$name(&mut child, path, actions, attributes, argv, new);
                    if r == 0 && !pid.is_null() {
                        *pid = child;
                    }
                    (r, (r == 0).then_some(child as u32))
                };
                match text(path) {
                    Some(path) => {
                        // Where a relative path leads, the file actions may change.
                        let fixed = actions.is_null()
                            || path.to_bytes().starts_with(b"/")
                            || !path.to_bytes().contains(&b'/');
                        let target = if fixed { Target::$kind(path) } else { Target::Unsure };
                        spawn(target, env, Some(&mut room), call)
                    }
                    None => call(env).0,
                }
            }
        }
    )*};
}
posix_spawns! {
    posix_spawn: Path;
    posix_spawnp: File;
}

/// What system and popen start.
const SHELL: Target<'_> = Target::Path(c"/bin/sh");

/// # Safety
/// As system(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn system(command: *const c_char) -> c_int {
    // SAFETY: the caller's argument; the program's own environment.
    unsafe {
        if command.is_null() {
            return real::system(command);
        }
        let r = spawn(SHELL, environ, None, |_| {
            let r = cancel::sleep(|| real::system(command) as isize) as c_int;
            (r, (r != -1).then_some(0))
        });
        cancel::end();
        r
    }
}

/// # Safety
/// As popen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn popen(command: *const c_char, mode: *const c_char) -> *mut c_void {
    // SAFETY: the caller's arguments; the program's own environment.
    unsafe {
        spawn(SHELL, environ, None, |_| {
            let stream = real::popen(command, mode);
            (stream, (!stream.is_null()).then_some(0))
        })
    }
}

/// # Safety
/// As posix_spawn_file_actions_adddup2(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawn_file_actions_adddup2(
    actions: *mut c_void,
    fd: c_int,
    to: c_int,
) -> c_int {
    if stdio::is_unseen(to) {
        give_away(fd, Reason::Handed);
    } else if let Some(inside) = fds::enter(fd) {
        // The copy stays open in the new program, even if `fd` closes on exec.
        inside.slot.spawn_copy.store(true, Relaxed);
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::posix_spawn_file_actions_adddup2(actions, fd, to) }
}

/// A descriptor goes into a message. True: its end was posted, and the message is one of the holders.
pub fn pass(fd: c_int) -> bool {
    let Some(inside) = fds::enter(fd) else {
        return false;
    };
    let saved = crate::errno();
    let mut given = Given::new();
    if inside.conn().end().state() == State::Plain {
        given.added = true;
        given.give(inside.ctx(), &inside);
    } else {
        give_away(fd, Reason::Handed);
    }
    crate::set_errno(saved);
    given.n > 0
}

/// The message was not sent.
pub fn not_passed(fd: c_int) {
    if let Some(inside) = fds::enter(fd) {
        let end = inside.conn().end();
        if end.take_due() {
            end.refs.fetch_sub(1, AcqRel);
        }
    }
}
