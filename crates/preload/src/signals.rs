//! Signals while a send waits (see the engine's `waiting::signals`): which have handlers, and which of those end a blocked call.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use libc::size_t;

use crate::{cancel, real, thread};

/// Handlers do not change often, and we see most of their changes: what was seen holds for so long, in µs.
const HOLDS_US: u64 = 10_000;

/// Signals with a handler, one bit each.
#[derive(Clone, Copy)]
struct Handlers {
    all: u64,
    /// Those whose handler ends a blocked call.
    ending: u64,
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

static SEEN_AT: AtomicU64 = AtomicU64::new(0);

fn look() -> Handlers {
    static ALL: AtomicU64 = AtomicU64::new(0);
    static ENDING: AtomicU64 = AtomicU64::new(0);
    let now = gm::os::monotonic_ns() / 1000;
    if now.saturating_sub(SEEN_AT.load(Relaxed)) < HOLDS_US {
        return Handlers {
            all: ALL.load(Relaxed),
            ending: ENDING.load(Relaxed),
        };
    }
    let saved = crate::errno();
    let mut found = Handlers { all: 0, ending: 0 };
    for signal in 1..=64 {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: asks only; the C library refuses the numbers that it keeps for itself.
        let (r, action) = unsafe {
            let at = action.as_mut_ptr().cast();
            let r = real::sigaction(signal, std::ptr::null(), at);
            (r, action.assume_init())
        };
        if r == 0 && ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction) {
            found.all |= bit(signal);
            if action.sa_flags & libc::SA_RESTART == 0 {
                found.ending |= bit(signal);
            }
        }
    }
    crate::set_errno(saved);
    ALL.store(found.all, Relaxed);
    ENDING.store(found.ending, Relaxed);
    SEEN_AT.store(now, Relaxed);
    found
}

/// Holds back the signals that have handlers. Gives the mask as it was.
pub fn hold() -> Option<u64> {
    let handlers = look();
    (handlers.all != 0 && single_threaded()).then(|| hold_back(handlers.all))
}

/// Lets the handlers run that were held back, or (`None`) one has just run. Does it end a call that has moved bytes or
/// not? If nothing was held back and there are handlers of both kinds, it is not known which ran: who has one that ends
/// calls is ready for that.
pub fn end_call(held: Option<u64>, moved: bool) -> bool {
    let Some(mask) = held else {
        return moved || look().ending != 0;
    };
    let came = pending() & !mask;
    if came == 0 {
        return false;
    }
    let handlers = look();
    cancel::sleep(|| {
        set_mask(mask);
        0
    });
    if cancel::is_on() {
        // One of them left the call.
        return true;
    }
    hold_back(handlers.all);
    came & if moved { handlers.all } else { handlers.ending } != 0
}

/// Do all handlers do the same to a call that sleeps (end it, or let it go on)?
pub fn are_alike() -> bool {
    let handlers = look();
    handlers.ending == 0 || handlers.ending == handlers.all
}

/// A handler has just run in a sleep. Does it end the call? Handlers are looked at anew, for they may be new.
pub fn ended_sleep() -> bool {
    SEEN_AT.store(0, Relaxed);
    look().ending != 0
}

/// A signal to the process that this thread holds back goes to another thread, if there is one.
pub fn single_threaded() -> bool {
    !thread::has_others()
}

/// Blocks these signals as well; gives the mask as it was.
fn hold_back(signals: u64) -> u64 {
    change_mask(libc::SIG_BLOCK, signals)
}

pub fn set_mask(mask: u64) {
    change_mask(libc::SIG_SETMASK, mask);
}

/// Masks as the kernel has them, one word: the C library's type is larger and of no use for computing.
fn change_mask(how: i32, mask: u64) -> u64 {
    let mut old = 0_u64;
    let (new, was) = (&raw const mask as usize, &raw mut old as usize);
    let word = size_of::<u64>();
    // SAFETY: the kernel reads and writes one word. It fails for no valid `how`, so errno stays.
    unsafe { real::syscall(libc::SYS_rt_sigprocmask, how as usize, new, was, word, 0, 0) };
    old
}

fn pending() -> u64 {
    let mut set = 0_u64;
    // SAFETY: the kernel writes one word.
    unsafe {
        let at = &raw mut set as usize;
        real::syscall(libc::SYS_rt_sigpending, at, size_of::<u64>(), 0, 0, 0, 0)
    };
    set
}

macro_rules! changes {
    ($($name:ident($($arg:ident: $t:ty),*) -> $r:ty;)*) => {$(
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name($($arg: $t),*) -> $r {
            // SAFETY: the caller's arguments, unchanged.
            let r = unsafe { real::$name($($arg),*) };
            SEEN_AT.store(0, Relaxed);
            r
        }
    )*};
}
changes! {
    sigaction(signal: c_int, action: *const c_void, before: *mut c_void) -> c_int;
    signal(signal: c_int, handler: size_t) -> size_t;
    sigset(signal: c_int, handler: size_t) -> size_t;
    sysv_signal(signal: c_int, handler: size_t) -> size_t;
    __sysv_signal(signal: c_int, handler: size_t) -> size_t;
    bsd_signal(signal: c_int, handler: size_t) -> size_t;
    siginterrupt(signal: c_int, ends: c_int) -> c_int;
}
