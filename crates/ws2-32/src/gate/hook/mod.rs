//! Replacing a system call's stub in ntdll.
//!
//! Every stub of Wine's begins with the same three instructions, none of them dependent on its place:
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
//! If the bytes are others, somebody else has changed the function: nothing is hooked.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::atomic::{
    AtomicPtr, AtomicU64,
    Ordering::{Acquire, Release, SeqCst},
};

use super::still;
use windows_sys::Win32::Foundation::FALSE;
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_EXECUTE_READ, PAGE_EXECUTE_READWRITE, VirtualAlloc,
    VirtualFree, VirtualProtect,
};

/// What a page of reserved memory begins at a multiple of.
const GRANULARITY: usize = 0x1_0000;
const PAGE: usize = 0x1000;
/// The three instructions.
const HEAD: usize = 16;
/// `jmp [rip]` and the address behind it.
const JUMP: usize = 14;

pub struct Hook {
    module: &'static str,
    pub name: &'static CStr,
    pub replacement: *const c_void,
    /// How to call the function as it was; null until hooked.
    original: AtomicPtr<c_void>,
}

// SAFETY: the pointer is a function's.
unsafe impl Sync for Hook {}

impl Hook {
    pub const fn new(name: &'static CStr, replacement: *const c_void) -> Self {
        Self::of("ntdll.dll", name, replacement)
    }

    /// In another library that has such stubs, if it is loaded.
    pub const fn of(module: &'static str, name: &'static CStr, replacement: *const c_void) -> Self {
        Self {
            module,
            name,
            replacement,
            original: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// For the replacement, which runs only when this is set.
    pub fn original(&self) -> *mut c_void {
        self.original.load(Acquire)
    }

    pub fn is_installed(&self) -> bool {
        !self.original().is_null()
    }

    /// False: the function is left as it was.
    pub fn install(&self) -> bool {
        let module = spi::wide::wide(self.module);
        // SAFETY: zero-terminated names; a library that is not there has no such function.
        let stub =
            unsafe { GetProcAddress(GetModuleHandleW(module.as_ptr()), self.name.as_ptr().cast()) };
        let Some(stub) = stub else { return false };
        let stub = stub as *mut u8;
        // SAFETY: a function of ntdll has at least this many bytes (a stub has 32).
        let head: [u8; HEAD] = unsafe { stub.cast::<[u8; HEAD]>().read_unaligned() };
        if !is_stub(&head) || !stub.addr().is_multiple_of(8) {
            return false;
        }
        let near = |relay| patch(stub, relay);
        let far = |_| patch_far(stub, self.replacement, &head);
        self.by_relay(relay_place(stub.addr(), &head), stub, &head, near)
            || stub.addr().is_multiple_of(HEAD) && self.by_relay(0, stub, &head, far)
    }

    /// With the relay at `place`, or anywhere if that is 0.
    fn by_relay(
        &self,
        place: usize,
        stub: *mut u8,
        head: &[u8; HEAD],
        patch: impl Fn(*const u8) -> bool,
    ) -> bool {
        let Some(relay) = make_relay(place) else {
            return false;
        };
        self.original
            .store(relay.wrapping_add(JUMP).cast(), Release);
        let written = write_relay(relay, self.replacement, head, stub.wrapping_add(HEAD));
        if written && patch(relay) {
            return true;
        }
        self.original.store(ptr::null_mut(), Release);
        // SAFETY: nobody was sent there.
        unsafe { VirtualFree(relay.cast(), 0, MEM_RELEASE) };
        false
    }
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

/// At `place`, or anywhere if that is 0.
fn make_relay(place: usize) -> Option<*mut u8> {
    let at: *const c_void = ptr::without_provenance(place);
    // SAFETY: asks for free memory.
    let got = unsafe { VirtualAlloc(at, PAGE, MEM_RESERVE | MEM_COMMIT, PAGE_EXECUTE_READWRITE) };
    if got.is_null() {
        return None;
    }
    if place != 0 && got.addr() != place {
        // SAFETY: just allocated.
        unsafe { VirtualFree(got, 0, MEM_RELEASE) };
        return None;
    }
    Some(got.cast())
}

fn jump_to(target: *const u8) -> [u8; JUMP] {
    let mut code = [0; JUMP];
    code[..2].copy_from_slice(&[0xff, 0x25]);
    code[6..].copy_from_slice(&(target.addr() as u64).to_le_bytes());
    code
}

/// The jump to the replacement, then the original.
fn write_relay(
    relay: *mut u8,
    replacement: *const c_void,
    head: &[u8; HEAD],
    rest: *const u8,
) -> bool {
    let code = [&jump_to(replacement.cast())[..], head, &jump_to(rest)].concat();
    let mut old = 0;
    // SAFETY: a fresh page of ours, longer than the code.
    unsafe {
        ptr::copy_nonoverlapping(code.as_ptr(), relay, code.len());
        VirtualProtect(relay.cast(), PAGE, PAGE_EXECUTE_READ, &mut old) != FALSE
    }
}

fn patch(stub: *mut u8, relay: *const u8) -> bool {
    let distance = relay.addr().wrapping_sub(stub.addr() + 5) as i32;
    let mut old = 0;
    // SAFETY: eight aligned bytes of ntdll's code, writable for as long as we write them. Only the first three change.
    unsafe {
        if VirtualProtect(stub.cast(), 8, PAGE_EXECUTE_READWRITE, &mut old) == FALSE {
            return false;
        }
        let first = AtomicU64::from_ptr(stub.cast());
        let [d0, d1, d2, d3] = distance.to_le_bytes();
        let [_, _, _, b3, b4, b5, b6, b7] = first.load(SeqCst).to_le_bytes();
        let fits = [d2, d3] == [b3, b4];
        if fits {
            first.store(
                u64::from_le_bytes([0xe9, d0, d1, b3, b4, b5, b6, b7]),
                SeqCst,
            );
        }
        VirtualProtect(stub.cast(), 8, old, &mut old);
        fits
    }
}

/// The jump to the replacement over the head, whole.
fn patch_far(stub: *mut u8, replacement: *const c_void, head: &[u8; HEAD]) -> bool {
    let mut new = *head;
    new[..JUMP].copy_from_slice(&jump_to(replacement.cast()));
    let mut old = 0;
    // SAFETY: sixteen aligned bytes of ntdll's code, writable for as long as we write them.
    unsafe {
        if VirtualProtect(stub.cast(), HEAD, PAGE_EXECUTE_READWRITE, &mut old) == FALSE {
            return false;
        }
        let done = still::with_others_outside(stub.addr() + 1..stub.addr() + HEAD, || {
            swap(
                stub.cast(),
                u128::from_le_bytes(*head),
                u128::from_le_bytes(new),
            )
        });
        VirtualProtect(stub.cast(), HEAD, old, &mut old);
        done == Some(true)
    }
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
