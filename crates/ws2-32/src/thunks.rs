//! Exports that have nothing to do with providers (names, addresses, byte order ...): each jumps to Wine's own function.
//!
//! The jump leaves registers and stack as they are, so no signature is needed. Which functions: `exports.def`.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

static TARGETS: [AtomicPtr<c_void>; NAMES.len()] =
    [const { AtomicPtr::new(ptr::null_mut()) }; NAMES.len()];

include!(concat!(env!("OUT_DIR"), "/thunks.rs"));

/// Called once, by DllMain, after the builtin is loaded. `false`: the builtin lacks one of them.
pub fn fill() -> bool {
    TARGETS
        .iter()
        .zip(NAMES)
        .all(|(target, name)| match crate::builtin::address(name) {
            Some(f) => {
                target.store(f as *mut c_void, Relaxed);
                true
            }
            None => false,
        })
}
