//! Programs that confine themselves: a seccomp filter knows the program's own system calls, not ours, and kills for others. So
//! before one is installed everything goes back to TCP, and from then on the front makes no call of its own.

use std::ffi::c_int;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use gm::Reason;

use crate::{ctx, fds, giving, real};

static CONFINED: AtomicBool = AtomicBool::new(false);

/// Is a filter in force, or about to be?
#[inline]
pub fn is_confined() -> bool {
    CONFINED.load(Relaxed)
}

/// A filter is about to be installed.
#[cold]
pub fn confine() {
    if CONFINED.swap(true, AcqRel) || ctx::opened().is_none() {
        return;
    }
    let saved = crate::errno();
    fds::each_slot_once(|inside| {
        if inside.conn().end().role() != gm::Role::Listener {
            giving::hand_back(inside, Reason::Unsupported);
        }
    });
    fds::follow_nothing();
    crate::set_errno(saved);
}

/// # Safety
/// As prctl(2). Unused arguments are whatever the registers hold, and are passed on as they are.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn prctl(
    option: c_int,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
) -> c_int {
    if option == libc::PR_SET_SECCOMP {
        confine();
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::prctl(option, a, b, c, d) }
}
