//! 64-bit code. Every stub of Wine's begins with the same three instructions, none of them dependent on its place:
//!
//! ```text
//! 4c 8b d1                    mov r10, rcx
//! b8 nr 00 00 00              mov eax, nr
//! f6 04 25 08 03 fe 7f 01     test byte [7ffe0308h], 1
//! ```
//!
//! The first becomes `jmp rel32`, whose last two bytes are the next instruction's first two: the relay is put at one of the
//! 65536 addresses for which they stay `b8 nr`. So the patch is three bytes in one aligned store, and a thread that stands
//! between any two instructions goes on undisturbed. The relay page also holds the three instructions and a jump behind them:
//! the original.
//!
//! Where that place is taken (a Java machine reserves gigabytes there), the relay lies anywhere, and a jump with the whole
//! address is put over the head in one store of 16 bytes, while the other threads are held still outside of it ([`still`]).

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::SeqCst};

use super::{relay, still, writable};

/// What a page of reserved memory begins at a multiple of.
const GRANULARITY: usize = 0x1_0000;
/// The three instructions.
pub const HEAD: usize = 16;
/// `jmp [rip]` and the address behind it.
const JUMP: usize = 14;

/// Sends callers of `stub` to `replacement`; `original` is how to call it as it was.
pub fn redirect(stub: *mut u8, replacement: *const c_void, original: &AtomicPtr<c_void>) -> bool {
    // SAFETY: a function of ntdll has at least this many bytes (a stub has 32).
    let head: [u8; HEAD] = unsafe { stub.cast::<[u8; HEAD]>().read_unaligned() };
    if !is_stub(&head) || !stub.addr().is_multiple_of(8) {
        return false;
    }
    // The jump to the replacement, then the original.
    let rest = jump_to(stub.wrapping_add(HEAD));
    let code = |_| [&jump_to(replacement.cast())[..], &head, &rest].concat();
    let near = |relay| patch(stub, relay);
    let far = |_| patch_far(stub, replacement, &head);
    relay(relay_place(stub.addr(), &head), code, JUMP, original, near)
        || stub.addr().is_multiple_of(HEAD) && relay(0, code, JUMP, original, far)
}

fn is_stub(head: &[u8; HEAD]) -> bool {
    matches!(
        head,
        [
            0x4c,
            0x8b,
            0xd1,
            0xb8,
            _,
            _,
            0,
            0,
            0xf6,
            0x04,
            0x25,
            0x08,
            0x03,
            0xfe,
            0x7f,
            0x01
        ]
    )
}

/// The one address where memory can be reserved and to which a `jmp rel32` from the stub ends with the bytes `b8 nr`.
fn relay_place(stub: usize, head: &[u8; HEAD]) -> usize {
    let lowest = i32::from_le_bytes([0, 0, head[3], head[4]]);
    stub.wrapping_add(5)
        .wrapping_add_signed(lowest as isize)
        .next_multiple_of(GRANULARITY)
}

fn jump_to(target: *const u8) -> [u8; JUMP] {
    let mut code = [0; JUMP];
    code[..2].copy_from_slice(&[0xff, 0x25]);
    code[6..].copy_from_slice(&(target.addr() as u64).to_le_bytes());
    code
}

fn patch(stub: *mut u8, relay: *const u8) -> bool {
    let distance = relay.addr().wrapping_sub(stub.addr() + 5) as i32;
    // Eight aligned bytes of ntdll's code. Only the first three change.
    writable(stub, 8, || {
        // SAFETY: aligned, and writable for as long as this runs.
        let first = unsafe { AtomicU64::from_ptr(stub.cast()) };
        let [d0, d1, d2, d3] = distance.to_le_bytes();
        let [_, _, _, b3, b4, b5, b6, b7] = first.load(SeqCst).to_le_bytes();
        let fits = [d2, d3] == [b3, b4];
        if fits {
            first.store(
                u64::from_le_bytes([0xe9, d0, d1, b3, b4, b5, b6, b7]),
                SeqCst,
            );
        }
        fits
    })
}

/// The jump to the replacement over the head, whole.
fn patch_far(stub: *mut u8, replacement: *const c_void, head: &[u8; HEAD]) -> bool {
    let mut new = *head;
    new[..JUMP].copy_from_slice(&jump_to(replacement.cast()));
    let (old, new) = (u128::from_le_bytes(*head), u128::from_le_bytes(new));
    // Sixteen aligned bytes of ntdll's code.
    writable(stub, HEAD, || {
        let code = stub.addr() + 1..stub.addr() + HEAD;
        // SAFETY: aligned, and writable for as long as this runs.
        still::with_others_outside(code, || unsafe { swap(stub.cast(), old, new) }) == Some(true)
    })
}

/// Puts `new` there in one store, if `old` is there. Every processor on which Wine runs has the instruction.
///
/// # Safety
/// Sixteen aligned bytes that may be written.
unsafe fn swap(at: *mut u128, old: u128, new: u128) -> bool {
    let done: u8;
    // SAFETY: by the caller; rbx, which the compiler keeps for itself, is as it was afterwards.
    unsafe {
        core::arch::asm!(
            "xchg {low}, rbx",
            "lock cmpxchg16b [{at}]",
            "sete {done}",
            "mov rbx, {low}",
            at = in(reg) at,
            low = inout(reg) new as u64 => _,
            done = out(reg_byte) done,
            inout("rax") old as u64 => _,
            inout("rdx") (old >> 64) as u64 => _,
            in("rcx") (new >> 64) as u64,
            options(nostack)
        );
    }
    done != 0
}
