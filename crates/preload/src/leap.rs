//! Handlers that leave a call by `siglongjmp`, as time-outs are made with alarm(2).
//!
//! The frames of a hook hold gates, locks and counts; a connection whose call never came back would never be closed for its peer. So
//! a leap out of a sleep goes two ways: first back into the sleep, by the buffer that cancellation comes by ([`cancel`]), from where
//! the hook returns as if interrupted; and from its outermost frame, in which nothing is held any more, to where the program
//! wanted to go. A leap that stays within the handler, or comes when the hook does not sleep, is the C library's alone.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use crate::cancel;
use crate::fds::{self, Slot};
use crate::real;
use crate::thread::words;

/// A leap that is under way.
#[derive(Clone, Copy)]
pub struct Leap {
    to: *mut c_void,
    value: c_int,
}

/// A call that is inside a connection that is not carried, and in the kernel.
pub struct Plain {
    slot: &'static Slot,
    before: *const Plain,
}

#[inline]
pub fn plain(slot: &'static Slot, call: impl Fn() -> isize) -> isize {
    let at = &words().plain;
    let before = at.get();
    let me = Plain { slot, before };
    at.set(&raw const me);
    let r = call();
    at.set(before);
    r
}

/// A stack is taken to be no longer than this.
const STACK_BYTES: usize = 8 << 20;

/// Is `outer` a frame around `inner`, on the same stack?
fn is_around(outer: usize, inner: usize) -> bool {
    outer > inner && outer - inner < STACK_BYTES
}

/// The stack pointer in a jump buffer, which the C library keeps scrambled.
#[cfg(target_arch = "x86_64")]
fn stack_of(buffer: *const c_void) -> usize {
    const RSP: usize = 6;
    let guard: usize;
    // SAFETY: a jump buffer has eight words; the guard is a word of the thread's control block.
    unsafe {
        std::arch::asm!("mov {}, qword ptr fs:[0x30]", out(reg) guard, options(nostack, readonly));
        buffer.cast::<usize>().add(RSP).read().rotate_right(17) ^ guard
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn stack_of(_buffer: *const c_void) -> usize {
    0
}

/// Where a handler runs, and where it leaps to.
struct Way {
    here: usize,
    target: usize,
    /// The stack for handlers, if it runs there.
    aside: Option<(usize, usize)>,
}

impl Way {
    #[cold]
    fn new(to: *const c_void) -> Self {
        let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: asks only.
        let stack = unsafe {
            libc::sigaltstack(std::ptr::null(), stack.as_mut_ptr());
            stack.assume_init()
        };
        let low = stack.ss_sp as usize;
        Self {
            here: (&raw const stack) as usize,
            target: stack_of(to),
            aside: (stack.ss_flags & libc::SS_ONSTACK != 0).then_some((low, low + stack.ss_size)),
        }
    }

    /// Does it leave the frame at `frame`?
    fn leaves(&self, frame: usize) -> bool {
        let (here, target) = (self.here, self.target);
        let Some((low, high)) = self.aside else {
            return is_around(frame, here) && is_around(target, frame);
        };
        let is_aside = |at| (low..high).contains(&at);
        match (is_aside(frame), is_aside(target)) {
            (true, false) => frame > here,
            (true, true) => frame > here && target > frame,
            (false, true) => false,
            (false, false) => is_around(target, frame),
        }
    }
}

/// What stands in the way is put right, or gone back to: then it does not come back.
#[cold]
fn leave(to: *mut c_void, value: c_int) {
    const NEAR: usize = 4096;
    let way = Way::new(to);
    let words = words();
    let mut plain = words.plain.get();
    while !plain.is_null() && way.leaves(plain as usize) {
        // SAFETY: a frame that is still there, around the handler's.
        let left = unsafe { &*plain };
        plain = left.before;
        words.plain.set(plain);
        fds::let_go(left.slot);
    }
    let asleep = words.asleep.get();
    if asleep.is_null() || !way.leaves(asleep as usize) {
        return;
    }
    // With a C library that scrambles otherwise there is no way back.
    let depth = (asleep as usize).wrapping_sub(stack_of(asleep.cast()));
    if depth < NEAR {
        words.leap.set(Some(Leap { to, value }));
        cancel::ask();
        // SAFETY: set up by a frame that is still there.
        unsafe { real::_longjmp(asleep.cast_mut().cast(), 1) };
    }
}

impl Leap {
    /// # Safety
    /// The frame that it leaps to must be there, and those that it leaves hold nothing.
    pub unsafe fn go_on(self) {
        // SAFETY: by the caller.
        unsafe { siglongjmp(self.to, self.value) };
    }
}

macro_rules! leaps {
    ($($name:ident),*) => {$(
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(to: *mut c_void, value: c_int) {
            let words = words();
            if !words.asleep.get().is_null() || !words.plain.get().is_null() {
                leave(to, value);
            }
            // SAFETY: the caller's arguments, unchanged. It does not come back.
            unsafe { real::$name(to, value) };
        }
    )*};
}
leaps!(longjmp, _longjmp, siglongjmp, __longjmp_chk);
