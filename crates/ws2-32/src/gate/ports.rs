//! Completion ports of the program's, at which our packets wait without Wine's server.
//!
//! 1. A port is known from its making on, if that came through here, and so is every thread that sleeps at it. While there is
//!    none, a packet is put into the port's queue here: whoever comes to wait takes it from there first. With a sleeper it
//!    is posted to the port itself.
//! 2. A thread that comes to wait has the provider look, polls, and only then enters the server, counted as a sleeper.
//! 3. What came to the port itself is looked for whenever this process has posted something there, and once in about a
//!    millisecond. Else busy sockets would keep it waiting for ever.
//!    What was posted there for a sleeper came before what waits here since: so the port itself is asked until it is empty.
//! 4. A thread that sleeps alertably has the provider look as well, once there are completion routines: one that becomes due by
//!    that is run at once, and ends the sleep.
//! 5. A port that is waited at by another handle, or has been closed, is the server's alone.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use spi::ports::{How, Progress};
use windows_sys::Win32::Foundation::{
    HANDLE, NTSTATUS, STATUS_SUCCESS, STATUS_TIMEOUT, STATUS_USER_APC,
};
use windows_sys::Win32::System::IO::IO_STATUS_BLOCK;

use super::calls::original;
use super::hook::Hook;
use super::waits::{keep_error, lasts, ticks};
use crate::complete::Packet;
use crate::extras;
use crate::lock::lock;
use crate::thread;

type Create = unsafe extern "system" fn(*mut HANDLE, u32, *const c_void, u32) -> NTSTATUS;
type Remove = unsafe extern "system" fn(
    HANDLE,
    *mut usize,
    *mut usize,
    *mut IO_STATUS_BLOCK,
    *const i64,
) -> NTSTATUS;
type RemoveSeveral =
    unsafe extern "system" fn(HANDLE, *mut Entry, u32, *mut u32, *const i64, u8) -> NTSTATUS;
type Set = unsafe extern "system" fn(HANDLE, usize, *mut c_void, NTSTATUS, usize) -> NTSTATUS;

type Delay = unsafe extern "system" fn(u8, *const i64) -> NTSTATUS;

/// FILE_IO_COMPLETION_INFORMATION.
#[repr(C)]
pub struct Entry {
    key: usize,
    value: usize,
    block: IO_STATUS_BLOCK,
}

static CREATE: Hook = Hook::new(c"NtCreateIoCompletion", create as Create as *const c_void);
static REMOVE: Hook = Hook::new(c"NtRemoveIoCompletion", remove as Remove as *const c_void);
static REMOVE_SEVERAL: Hook = Hook::new(
    c"NtRemoveIoCompletionEx",
    remove_several as RemoveSeveral as *const c_void,
);
static SET: Hook = Hook::new(c"NtSetIoCompletion", set as Set as *const c_void);

static DELAY: Hook = Hook::new(c"NtDelayExecution", delay as Delay as *const c_void);

/// A call on one of the provider's sockets had a completion routine.
static ROUTINES: AtomicBool = AtomicBool::new(false);

/// About a millisecond, in ticks of the processor.
const SERVER_TICKS: u64 = 2_500_000;

/// The provider that looks; null: none.
static PROGRESS: AtomicPtr<Progress> = AtomicPtr::new(ptr::null_mut());
/// Threads asleep at ports that have sockets of the provider's.
static ASLEEP: AtomicU32 = AtomicU32::new(0);

/// A port of the program's. Never freed.
#[derive(Default)]
pub struct Known {
    /// It has sockets.
    ours: AtomicBool,
    /// Rule 5.
    left: AtomicBool,
    /// There may be something in the port itself.
    posted: AtomicBool,
    /// When, in ticks, that was last looked at.
    looked: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    packets: VecDeque<Packet>,
    sleepers: u32,
}

// SAFETY: a packet's pointers are the program's, and only values here.
unsafe impl Send for State {}

static ALL: Mutex<BTreeMap<usize, &'static Known>> = Mutex::new(BTreeMap::new());

/// Sees ports from now on, if all of it can be seen.
pub fn install() {
    let hooks = [&REMOVE, &REMOVE_SEVERAL, &SET];
    let seen = super::waits::sees_duplicates() && hooks.iter().all(|hook| hook.install());
    if seen {
        // Last: what is not seen being made is not known.
        CREATE.install();
    }
}

/// A call with a completion routine is made.
pub fn has_routine() {
    if !ROUTINES.load(Relaxed) && !ROUTINES.swap(true, SeqCst) && extras::are_on() {
        DELAY.install();
    }
}

/// From now on this provider looks for who waits. 0: another one does.
#[unsafe(no_mangle)]
unsafe extern "C" fn SgmShowPorts(progress: &'static Progress) -> i32 {
    let new = ptr::from_ref(progress).cast_mut();
    let known = PROGRESS.compare_exchange(ptr::null_mut(), new, SeqCst, SeqCst);
    i32::from(known.is_ok() || known == Err(new))
}

fn progress() -> Option<&'static Progress> {
    // SAFETY: null, or a provider's table, which stays as long as its DLL: to the end of the process.
    unsafe { PROGRESS.load(Acquire).as_ref() }
}

#[allow(clippy::missing_const_for_thread_local)] // it is const: clippy looks at what the macro makes of it
mod own {
    use std::cell::Cell;
    thread_local! {
        /// This thread copies a handle for us.
        pub static COPYING: Cell<bool> = const { Cell::new(false) };
    }
}

/// Copies a port's handle: one at which nobody waits.
pub fn copying<T>(copy: impl FnOnce() -> T) -> T {
    own::COPYING.set(true);
    let result = copy();
    own::COPYING.set(false);
    result
}

pub fn is_own_copy() -> bool {
    own::COPYING.get()
}

fn find(port: HANDLE) -> Option<&'static Known> {
    lock(&ALL).get(&port.addr()).copied()
}

/// A socket is associated with this port.
pub fn associate(port: HANDLE) -> Option<&'static Known> {
    let known = find(port)?;
    known.ours.store(true, SeqCst);
    Some(known)
}

/// The handle is about to be closed, or to have a twin.
pub fn leave(port: HANDLE) {
    let known = lock(&ALL).remove(&port.addr());
    if let Some(known) = known {
        let mut state = lock(&known.state);
        known.left.store(true, SeqCst);
        for packet in state.packets.drain(..) {
            post_itself(&packet);
        }
    }
}

/// To the port itself.
pub fn post_itself(packet: &Packet) {
    let (port, value) = (packet.port, packet.ov.cast());
    // SAFETY: our own handle of the port; the OVERLAPPED is only a value here.
    unsafe {
        if SET.is_installed() {
            original!(SET: Set)(port.handle, port.key, value, packet.status, packet.bytes);
        } else {
            NtSetIoCompletion(port.handle, port.key, value, packet.status, packet.bytes);
        }
    }
}

#[link(name = "ntdll")]
unsafe extern "system" {
    fn NtSetIoCompletion(
        port: HANDLE,
        key: usize,
        value: *mut c_void,
        status: NTSTATUS,
        bytes: usize,
    ) -> NTSTATUS;
}

impl Known {
    pub fn post(&self, packet: Packet) {
        let mut state = lock(&self.state);
        if state.sleepers == 0 && progress().is_some() && !self.left.load(SeqCst) {
            state.packets.push_back(packet);
        } else {
            self.posted.store(true, SeqCst);
            drop(state);
            post_itself(&packet);
        }
    }

    fn pop(&self) -> Option<Packet> {
        lock(&self.state).packets.pop_front()
    }

    /// Is it time to look at the port itself (rule 3)?
    fn is_due(&self) -> bool {
        let now = ticks();
        let posted = self.posted.swap(false, SeqCst);
        let due = posted || now.wrapping_sub(self.looked.load(Relaxed)) > SERVER_TICKS;
        if due {
            self.looked.store(now, Relaxed);
        }
        due
    }

    /// In the server, counted; not if a packet came meanwhile.
    fn sleep(&self, server: impl FnOnce() -> NTSTATUS) -> Option<NTSTATUS> {
        let mut state = lock(&self.state);
        if !state.packets.is_empty() {
            return None;
        }
        state.sleepers += 1;
        drop(state);
        let result = match progress().filter(|_| self.ours.load(SeqCst)) {
            Some(progress) => asleep(progress, server),
            None => server(),
        };
        lock(&self.state).sleepers -= 1;
        Some(result)
    }

    /// A wait at the port: our packets by `take`, which says whether there was one; its own by `server`, with the whole time-out
    /// or none.
    fn wait(
        &self,
        lasts: bool,
        mut take: impl FnMut() -> bool,
        mut server: impl FnMut(bool) -> NTSTATUS,
    ) -> NTSTATUS {
        /// Looks in a row that brought nothing for this port.
        const LOOKS: u32 = 16;
        let looks = progress().filter(|_| self.ours.load(SeqCst));
        let Some(progress) = looks else {
            return self.sleep(|| server(true)).unwrap_or_else(|| match take() {
                true => STATUS_SUCCESS,
                false => server(true),
            });
        };
        let due = self.is_due();
        if due {
            let got = server(false);
            if got != STATUS_TIMEOUT {
                self.posted.store(true, SeqCst);
                return got;
            }
        }
        loop {
            for _ in 0..LOOKS {
                if take() {
                    return STATUS_SUCCESS;
                }
                if look(progress, lasts) == 0 {
                    break;
                }
            }
            if take() {
                return STATUS_SUCCESS;
            }
            if !lasts {
                return match due {
                    true => STATUS_TIMEOUT,
                    false => server(true),
                };
            }
            if let Some(got) = self.sleep(|| server(true)) {
                return got;
            }
        }
    }
}

unsafe extern "system" fn create(
    port: *mut HANDLE,
    access: u32,
    attributes: *const c_void,
    threads: u32,
) -> NTSTATUS {
    // SAFETY: the caller's own arguments.
    let result = unsafe { original!(CREATE: Create)(port, access, attributes, threads) };
    if result == STATUS_SUCCESS && attributes.is_null() {
        // SAFETY: written by the call that succeeded.
        let handle = unsafe { *port };
        let known: &'static Known = Box::leak(Box::default());
        keep_error(|| lock(&ALL).insert(handle.addr(), known));
    }
    result
}

unsafe extern "system" fn remove(
    port: HANDLE,
    key: *mut usize,
    value: *mut usize,
    block: *mut IO_STATUS_BLOCK,
    timeout: *const i64,
) -> NTSTATUS {
    // SAFETY: the caller's own arguments.
    unsafe {
        let server = |whole| {
            let timeout = if whole { timeout } else { &0 };
            original!(REMOVE: Remove)(port, key, value, block, timeout)
        };
        let Some(known) = find(port) else {
            return server(true);
        };
        let take = || {
            let packet = known.pop();
            if let Some(packet) = &packet {
                *key = packet.port.key;
                *value = packet.ov.addr();
                (*block).Anonymous.Status = packet.status;
                (*block).Information = packet.bytes;
            }
            packet.is_some()
        };
        known.wait(lasts(timeout), take, server)
    }
}

unsafe extern "system" fn remove_several(
    port: HANDLE,
    entries: *mut Entry,
    count: u32,
    written: *mut u32,
    timeout: *const i64,
    alertable: u8,
) -> NTSTATUS {
    // SAFETY: the caller's own arguments.
    unsafe {
        let server = |whole| {
            let timeout = if whole { timeout } else { &0 };
            original!(REMOVE_SEVERAL: RemoveSeveral)(
                port, entries, count, written, timeout, alertable,
            )
        };
        // An APC is the server's to deliver.
        let Some(known) = find(port).filter(|_| alertable == 0 && count > 0) else {
            return counted(find(port), || server(true));
        };
        let take = || {
            let mut state = lock(&known.state);
            let n = state.packets.len().min(count as usize);
            for (i, packet) in state.packets.drain(..n).enumerate() {
                let entry = &mut *entries.add(i);
                entry.key = packet.port.key;
                entry.value = packet.ov.addr();
                entry.block.Anonymous.Status = packet.status;
                entry.block.Information = packet.bytes;
            }
            if n > 0 {
                *written = n as u32;
            }
            n > 0
        };
        known.wait(lasts(timeout), take, server)
    }
}

/// A wait in the server, with our packets moved there before it.
fn counted(known: Option<&'static Known>, mut server: impl FnMut() -> NTSTATUS) -> NTSTATUS {
    let Some(known) = known else { return server() };
    loop {
        while let Some(packet) = known.pop() {
            post_itself(&packet);
        }
        if let Some(got) = known.sleep(&mut server) {
            return got;
        }
    }
}

/// Has the provider look, `patient` or once. How many sockets had news.
fn look(progress: &Progress, patient: bool) -> i32 {
    let mut how = if patient { How::PATIENT } else { 0 };
    if ASLEEP.load(SeqCst) > 0 {
        how |= How::OTHERS_SLEEP;
    }
    // SAFETY: the provider's function.
    keep_error(|| unsafe { (progress.look)(How(how)) })
}

/// In the server, counted among those for whom the provider must stay awake.
fn asleep<T>(progress: &Progress, server: impl FnOnce() -> T) -> T {
    ASLEEP.fetch_add(1, SeqCst);
    // SAFETY: the provider's function.
    keep_error(|| unsafe { (progress.sleep)() });
    let result = server();
    ASLEEP.fetch_sub(1, SeqCst);
    result
}

unsafe extern "system" fn delay(alertable: u8, timeout: *const i64) -> NTSTATUS {
    // SAFETY: the caller's own arguments.
    unsafe {
        let server = || original!(DELAY: Delay)(alertable, timeout);
        let looks = progress().filter(|_| alertable != 0 && lasts(timeout));
        let Some(progress) = looks else {
            return server();
        };
        // What the routines leave as the last error is theirs.
        let ran = thread::ran_routines(|| _ = look(progress, true));
        if ran {
            STATUS_USER_APC
        } else {
            asleep(progress, server)
        }
    }
}

unsafe extern "system" fn set(
    port: HANDLE,
    key: usize,
    value: *mut c_void,
    status: NTSTATUS,
    bytes: usize,
) -> NTSTATUS {
    // SAFETY: the caller's own arguments.
    let result = unsafe { original!(SET: Set)(port, key, value, status, bytes) };
    if let Some(known) = find(port) {
        known.posted.store(true, Release);
    }
    result
}
