//! Waits for event objects, shown to the provider that asked for it: one that knows of news without asking Wine's server may
//! end a wait before the server is entered.
//!
//! 1. The provider's objects may be signalled in its word alone. So everything through which somebody could see the object
//!    itself is hooked, and says so first ([`Touch`]); if one of these hooks can't be had, no wait is shown.
//! 2. A wait for other things besides (more handles, APCs, messages) looks at them as well, in the server, whenever this
//!    process has set something since, and once in about a millisecond. Else busy sockets would keep them waiting for ever.
//! 3. Waits for all of several objects are the server's alone.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicPtr, AtomicU32,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use spi::waits::{How, NOBODY, NOTHING, Touch, Waits};
use windows_sys::Win32::Foundation::{
    GetLastError, HANDLE, NTSTATUS, STATUS_TIMEOUT, STATUS_WAIT_0, SetLastError, WAIT_TIMEOUT,
};
use windows_sys::Win32::System::LibraryLoader::LoadLibraryW;

use super::calls::original;
use super::hook::Hook;
use super::ports;
use crate::lock::lock;

type WaitOne = unsafe extern "system" fn(HANDLE, u8, *const i64) -> NTSTATUS;
type WaitSeveral = unsafe extern "system" fn(u32, *const HANDLE, i32, u8, *const i64) -> NTSTATUS;
type SignalAndWait = unsafe extern "system" fn(HANDLE, HANDLE, u8, *const i64) -> NTSTATUS;
type OfEvent = unsafe extern "system" fn(HANDLE, *mut i32) -> NTSTATUS;
type OfHandle = unsafe extern "system" fn(HANDLE) -> NTSTATUS;
type Query = unsafe extern "system" fn(HANDLE, i32, *mut c_void, u32, *mut u32) -> NTSTATUS;
type Duplicate =
    unsafe extern "system" fn(HANDLE, HANDLE, HANDLE, *mut HANDLE, u32, u32, u32) -> NTSTATUS;
type QueueApc = unsafe extern "system" fn(HANDLE, usize, usize, usize, usize) -> NTSTATUS;
type WaitForMessages = unsafe extern "system" fn(u32, *const HANDLE, u32, u32, u32) -> u32;

/// WaitForMultipleObjects' third argument in ntdll.
const WAIT_ALL: i32 = 0;
const MWMO_WAITALL: u32 = 1;
/// About a millisecond, in ticks of the processor.
const OTHERS_TICKS: u64 = 2_500_000;

static ONE: Hook = Hook::new(
    c"NtWaitForSingleObject",
    wait_one as WaitOne as *const c_void,
);
static SEVERAL: Hook = Hook::new(
    c"NtWaitForMultipleObjects",
    wait_several as WaitSeveral as *const c_void,
);
static SIGNAL: Hook = Hook::new(
    c"NtSignalAndWaitForSingleObject",
    signal_and_wait as SignalAndWait as *const c_void,
);
static SET: Hook = Hook::new(c"NtSetEvent", set as OfEvent as *const c_void);
static RESET: Hook = Hook::new(c"NtResetEvent", reset as OfEvent as *const c_void);
static CLEAR: Hook = Hook::new(c"NtClearEvent", clear as OfHandle as *const c_void);
static PULSE: Hook = Hook::new(c"NtPulseEvent", pulse as OfEvent as *const c_void);
static QUERY: Hook = Hook::new(c"NtQueryEvent", query as Query as *const c_void);
static DUPLICATE: Hook = Hook::new(
    c"NtDuplicateObject",
    duplicate as Duplicate as *const c_void,
);
static APC: Hook = Hook::new(c"NtQueueApcThread", queue_apc as QueueApc as *const c_void);
static MESSAGES: Hook = Hook::of(
    "win32u.dll",
    c"NtUserMsgWaitForMultipleObjectsEx",
    wait_for_messages as WaitForMessages as *const c_void,
);
static HOOKS: [&Hook; 11] = [
    &ONE, &SEVERAL, &SIGNAL, &SET, &RESET, &CLEAR, &PULSE, &QUERY, &DUPLICATE, &APC, &MESSAGES,
];

/// The provider that waits are shown to; null: none.
static SHOWN_TO: AtomicPtr<Waits> = AtomicPtr::new(ptr::null_mut());

/// How often something was set, or an APC queued, by this process.
static SETS: AtomicU32 = AtomicU32::new(0);

#[allow(clippy::missing_const_for_thread_local)] // it is const: clippy looks at what the macro makes of it
mod last {
    use super::Cell;
    thread_local! {
        /// When this thread last looked at what else it waits for, by kind, and `SETS` then.
        pub static LOOKED: [Cell<(u64, u32)>; 2] = const { [const { Cell::new((0, 0)) }; 2] };
    }
}

/// What a wait is for besides objects of the provider's: other objects or messages, APCs.
type Others = [bool; 2];
const NO_OTHERS: Others = [false; 2];

fn shown_to() -> Option<&'static Waits> {
    // SAFETY: null, or a provider's table, which stays as long as its DLL: to the end of the process.
    unsafe { SHOWN_TO.load(Acquire).as_ref() }
}

/// From now on all waits are shown to this provider. 0: they can't be, or are shown to another one.
#[unsafe(no_mangle)]
unsafe extern "C" fn SgmShowWaits(to: &'static Waits) -> i32 {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = lock(&ONE_AT_A_TIME);
    if let Some(known) = shown_to() {
        return i32::from(ptr::eq(known, to));
    }
    // Not every program has it; one that waits for messages loads it, maybe later.
    let library = spi::wide::wide("win32u.dll");
    // SAFETY: a zero-terminated name.
    unsafe { LoadLibraryW(library.as_ptr()) };
    super::install();
    let all = HOOKS.iter().all(|hook| {
        if !hook.is_installed() {
            hook.install();
        }
        hook.is_installed()
    });
    if all && super::calls::sees_closes() {
        SHOWN_TO.store(ptr::from_ref(to).cast_mut(), Release);
    }
    i32::from(shown_to().is_some())
}

/// Tells the provider. False: it is no object of its sockets.
pub fn touch(handle: HANDLE, how: Touch) -> bool {
    // SAFETY: the provider only compares the handle.
    shown_to().is_some_and(|to| unsafe { (to.touch)(handle, how) } != NOBODY)
}

/// What the program sees of the thread's last error is the call's own business.
pub fn keep_error<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: the thread's own word.
    let error = unsafe { GetLastError() };
    let result = f();
    // SAFETY: as above.
    unsafe { SetLastError(error) };
    result
}

/// A wait that concerns the provider.
struct Wait {
    to: &'static Waits,
    it: *mut c_void,
}

impl Wait {
    /// # Safety
    /// `handles` are `count` handles.
    #[inline]
    unsafe fn of(handles: *const HANDLE, count: u32) -> Option<Wait> {
        let to = shown_to()?;
        if count == 0 || handles.is_null() {
            return None;
        }
        // SAFETY: by the caller.
        let it = keep_error(|| unsafe { (to.find)(handles, count) });
        (!it.is_null()).then(|| Wait { to, it })
    }

    fn look(&self, patience: i32) -> Option<i32> {
        // SAFETY: ours until it is dropped.
        let at = keep_error(|| unsafe { (self.to.look)(self.it, patience) });
        (at != NOTHING).then_some(at)
    }

    /// The wait itself, in the server.
    fn sleep<T>(&self, how: How, server: impl FnOnce() -> T) -> T {
        // SAFETY: as above.
        keep_error(|| unsafe { (self.to.sleep)(self.it, how) });
        let result = server();
        // SAFETY: as above.
        keep_error(|| unsafe { (self.to.wake)(self.it) });
        result
    }

    /// Any of the objects, or what else there is. `server` waits there, if told so only for as long as a look takes; `none`
    /// is its answer if nothing came.
    fn any<T: PartialEq>(
        &self,
        others: Others,
        lasts: bool,
        none: T,
        ended: impl Fn(i32) -> T,
        server: impl Fn(bool) -> T,
    ) -> T {
        if is_due(others) {
            let got = self.sleep(How::SETTLE, || server(false));
            if got != none || !lasts {
                return got;
            }
        }
        let patience = match (lasts, others) {
            (false, _) => 0,
            (true, NO_OTHERS) => 2,
            (true, _) => 1,
        };
        match self.look(patience) {
            Some(at) => ended(at),
            None => self.sleep(how(lasts), || {
                let got = server(true);
                keep_error(|| looked(others));
                got
            }),
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        // SAFETY: given by `find`, and not used again.
        keep_error(|| unsafe { (self.to.release)(self.it) });
    }
}

pub fn ticks() -> u64 {
    // SAFETY: every processor that this is compiled for has it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    // SAFETY: as above.
    #[cfg(target_arch = "x86")]
    unsafe {
        core::arch::x86::_rdtsc()
    }
}

fn now() -> (u64, u32) {
    (ticks(), SETS.load(SeqCst))
}

/// From now on, do duplicates of handles come through here?
pub fn sees_duplicates() -> bool {
    DUPLICATE.is_installed() || DUPLICATE.install()
}

fn looked(others: Others) {
    let now = now();
    last::LOOKED.with(|all| {
        for (looked, kind) in all.iter().zip(others) {
            if kind {
                looked.set(now);
            }
        }
    });
}

/// Is it time to look at the other things (rule 2)? It is done, then.
fn is_due(others: Others) -> bool {
    if others == NO_OTHERS {
        return false;
    }
    keep_error(|| {
        let (ticks, sets) = now();
        let due = last::LOOKED.with(|all| {
            all.iter().zip(others).any(|(looked, kind)| {
                let (then, sets_then) = looked.get();
                kind && (sets != sets_then || ticks.wrapping_sub(then) > OTHERS_TICKS)
            })
        });
        if due {
            looked(others);
        }
        due
    })
}

fn how(lasts: bool) -> How {
    if lasts { How::SLEEP } else { How::LOOK }
}

/// A time-out of ntdll's: null is for ever, zero not at all.
///
/// # Safety
/// Null or readable.
pub unsafe fn lasts(timeout: *const i64) -> bool {
    // SAFETY: by the caller.
    unsafe { timeout.as_ref() }.is_none_or(|t| *t != 0)
}

unsafe extern "system" fn wait_one(handle: HANDLE, alertable: u8, timeout: *const i64) -> NTSTATUS {
    // SAFETY: the caller's own arguments, and a local handle.
    unsafe {
        let server = |whole| {
            let timeout = if whole { timeout } else { &0 };
            original!(ONE: WaitOne)(handle, alertable, timeout)
        };
        match Wait::of(&handle, 1) {
            None => server(true),
            Some(wait) => wait.any(
                [false, alertable != 0],
                lasts(timeout),
                STATUS_TIMEOUT,
                |at| STATUS_WAIT_0 + at,
                server,
            ),
        }
    }
}

unsafe extern "system" fn wait_several(
    count: u32,
    handles: *const HANDLE,
    any: i32,
    alertable: u8,
    timeout: *const i64,
) -> NTSTATUS {
    // SAFETY: the caller's own arguments.
    unsafe {
        let server = |whole| {
            let timeout = if whole { timeout } else { &0 };
            original!(SEVERAL: WaitSeveral)(count, handles, any, alertable, timeout)
        };
        match Wait::of(handles, count) {
            None => server(true),
            Some(wait) if any == WAIT_ALL && count > 1 => {
                wait.sleep(how(lasts(timeout)), || server(true))
            }
            Some(wait) => wait.any(
                [count > 1, alertable != 0],
                lasts(timeout),
                STATUS_TIMEOUT,
                |at| STATUS_WAIT_0 + at,
                server,
            ),
        }
    }
}

unsafe extern "system" fn wait_for_messages(
    count: u32,
    handles: *const HANDLE,
    timeout_ms: u32,
    mask: u32,
    flags: u32,
) -> u32 {
    // SAFETY: the caller's own arguments.
    unsafe {
        let server = |whole| {
            let timeout_ms = if whole { timeout_ms } else { 0 };
            original!(MESSAGES: WaitForMessages)(count, handles, timeout_ms, mask, flags)
        };
        match Wait::of(handles, count) {
            None => server(true),
            Some(wait) if flags & MWMO_WAITALL != 0 => {
                wait.sleep(how(timeout_ms != 0), || server(true))
            }
            Some(wait) => wait.any(
                [true, false],
                timeout_ms != 0,
                WAIT_TIMEOUT,
                |at| at as u32,
                server,
            ),
        }
    }
}

unsafe extern "system" fn signal_and_wait(
    signal: HANDLE,
    handle: HANDLE,
    alertable: u8,
    timeout: *const i64,
) -> NTSTATUS {
    SETS.fetch_add(1, SeqCst);
    // SAFETY: the caller's own arguments, and a local handle.
    unsafe {
        keep_error(|| touch(signal, Touch::SET));
        let server = || original!(SIGNAL: SignalAndWait)(signal, handle, alertable, timeout);
        match Wait::of(&handle, 1) {
            None => server(),
            Some(wait) => wait.sleep(how(lasts(timeout)), server),
        }
    }
}

unsafe extern "system" fn set(event: HANDLE, state: *mut i32) -> NTSTATUS {
    let ours = keep_error(|| touch(event, Touch::SET));
    if !ours {
        SETS.fetch_add(1, SeqCst);
    }
    // SAFETY: the caller's own arguments.
    unsafe { original!(SET: OfEvent)(event, state) }
}

unsafe extern "system" fn reset(event: HANDLE, state: *mut i32) -> NTSTATUS {
    // SAFETY: the caller's own arguments.
    let result = unsafe { original!(RESET: OfEvent)(event, state) };
    keep_error(|| touch(event, Touch::RESET));
    result
}

unsafe extern "system" fn clear(event: HANDLE) -> NTSTATUS {
    // SAFETY: the caller's own argument.
    let result = unsafe { original!(CLEAR: OfHandle)(event) };
    keep_error(|| touch(event, Touch::RESET));
    result
}

unsafe extern "system" fn pulse(event: HANDLE, state: *mut i32) -> NTSTATUS {
    SETS.fetch_add(1, SeqCst);
    // SAFETY: the caller's own arguments.
    let result = unsafe { original!(PULSE: OfEvent)(event, state) };
    keep_error(|| touch(event, Touch::RESET));
    result
}

unsafe extern "system" fn query(
    event: HANDLE,
    class: i32,
    info: *mut c_void,
    len: u32,
    needed: *mut u32,
) -> NTSTATUS {
    keep_error(|| touch(event, Touch::SHARE));
    // SAFETY: the caller's own arguments.
    unsafe { original!(QUERY: Query)(event, class, info, len, needed) }
}

unsafe extern "system" fn duplicate(
    from: HANDLE,
    handle: HANDLE,
    to: HANDLE,
    copy: *mut HANDLE,
    access: u32,
    attributes: u32,
    options: u32,
) -> NTSTATUS {
    // Of whatever process: another's number may be the number of one of ours, which costs that one its speed.
    keep_error(|| {
        touch(handle, Touch::SHARE);
        if !ports::is_own_copy() {
            ports::leave(handle);
        }
    });
    // SAFETY: the caller's own arguments.
    unsafe { original!(DUPLICATE: Duplicate)(from, handle, to, copy, access, attributes, options) }
}

unsafe extern "system" fn queue_apc(
    thread: HANDLE,
    routine: usize,
    one: usize,
    two: usize,
    three: usize,
) -> NTSTATUS {
    SETS.fetch_add(1, Relaxed);
    // SAFETY: the caller's own arguments.
    unsafe { original!(APC: QueueApc)(thread, routine, one, two, three) }
}
