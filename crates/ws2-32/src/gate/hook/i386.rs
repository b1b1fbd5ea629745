//! 32-bit code. Every stub of Wine's begins with
//!
//! ```text
//! b8 nr 00 00 00              mov eax, nr
//! ba xx xx xx xx              mov edx, dispatcher
//! ```
//!
//! The first becomes `jmp rel32`, which is as long and reaches every address, in one aligned store; a thread that stands behind it goes on
//! undisturbed. The relay has the jump to the replacement, and the first instruction with a jump to the second: the original.

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::SeqCst};

use super::{relay, writable};

/// `mov eax, nr`, and as long as that, a jump.
const HEAD: usize = 5;

/// Sends callers of `stub` to `replacement`; `original` is how to call it as it was.
pub fn redirect(stub: *mut u8, replacement: *const c_void, original: &AtomicPtr<c_void>) -> bool {
    // SAFETY: a function of ntdll has at least this many bytes (a stub has 15).
    let head: [u8; 8] = unsafe { stub.cast::<[u8; 8]>().read_unaligned() };
    if !matches!(head, [0xb8, _, _, 0, 0, 0xba, ..]) || !stub.addr().is_multiple_of(8) {
        return false;
    }
    let code = |relay: usize| {
        let to_rest = jump(relay + 2 * HEAD, stub.addr() + HEAD);
        [
            &jump(relay, replacement.addr())[..],
            &head[..HEAD],
            &to_rest,
        ]
        .concat()
    };
    relay(0, code, HEAD, original, |relay| {
        let mut new = head;
        new[..HEAD].copy_from_slice(&jump(stub.addr(), relay.addr()));
        let (old, new) = (u64::from_le_bytes(head), u64::from_le_bytes(new));
        writable(stub, head.len(), || {
            // SAFETY: aligned, and writable for as long as this runs.
            let first = unsafe { AtomicU64::from_ptr(stub.cast()) };
            first.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
        })
    })
}

fn jump(from: usize, to: usize) -> [u8; HEAD] {
    let [d0, d1, d2, d3] = to.wrapping_sub(from + HEAD).to_le_bytes();
    [0xe9, d0, d1, d2, d3]
}
