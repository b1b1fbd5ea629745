//! Sleeping for room, and signals. A blocking send of which nothing was taken yet is ended by a handler without
//! `SA_RESTART` (EINTR), and goes on after one with it. (If a part was taken, any handler ends it.) The calls that we
//! sleep in instead tell only that some handler ran.
//!
//! So the handlers are looked at. If they are all of one kind, that is the answer. If not, signals are held back while
//! a slice is slept, those that came are looked up, and then let through.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sockets::Fault;

use crate::real;

/// Handlers do not change often: what was seen holds for so long, in µs.
const HOLDS_US: u64 = 10_000;
/// The longest sleep while signals are held back, in µs.
const SLICE_US: u64 = 20_000;

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

fn look() -> Handlers {
    static SEEN_AT: AtomicU64 = AtomicU64::new(0);
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
            let r = libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
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

/// Sleeps by `f` at most so many µs (`None`: no limit); `f` may end early. `Err(Interrupted)`: the call is to end.
/// `Err(WouldBlock)`: the time is over, if `f` says so.
pub fn sleep(
    limit_us: Option<u64>,
    f: impl Fn(Option<u64>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let handlers = look();
    match handlers.ending {
        0 => match f(limit_us) {
            Err(Fault::Interrupted) => Ok(()),
            other => other,
        },
        ending if ending == handlers.all => f(limit_us),
        _ => in_slices(limit_us, handlers, f),
    }
}

fn in_slices(
    limit_us: Option<u64>,
    handlers: Handlers,
    f: impl Fn(Option<u64>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut left = limit_us.unwrap_or(u64::MAX);
    loop {
        let slice = left.min(SLICE_US);
        let before = hold_back(handlers.all);
        let r = f(Some(slice));
        let came = pending() & !before;
        // Their handlers run in here.
        set_mask(before);
        left -= slice;
        match r {
            _ if came & handlers.ending != 0 => return Err(Fault::Interrupted),
            Err(Fault::Interrupted) => return Ok(()),
            Err(Fault::WouldBlock) if left > 0 => {}
            other => return other,
        }
    }
}

/// Blocks these signals as well; gives the mask as it was.
fn hold_back(signals: u64) -> u64 {
    change_mask(libc::SIG_BLOCK, signals)
}

fn set_mask(mask: u64) {
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
