//! Replacing a system call's stub in ntdll. How a stub begins, and what is put there, depends on the processor: [`amd64`],
//! [`i386`]. If the bytes are others, somebody else has changed the function: nothing is hooked.

#[cfg(target_arch = "x86_64")]
mod amd64;
#[cfg(target_arch = "x86")]
mod i386;
#[cfg(target_arch = "x86_64")]
mod still;

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::atomic::{
    AtomicPtr,
    Ordering::{Acquire, Release},
};

#[cfg(target_arch = "x86_64")]
use self::amd64::redirect;
#[cfg(target_arch = "x86")]
use self::i386::redirect;
use windows_sys::Win32::Foundation::FALSE;
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_EXECUTE_READ, PAGE_EXECUTE_READWRITE, VirtualAlloc,
    VirtualFree, VirtualProtect,
};

const PAGE: usize = 0x1000;

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
        stub.is_some_and(|stub| redirect(stub as *mut u8, self.replacement, &self.original))
    }
}

/// Puts the code for a relay at `place`, or anywhere if that is 0, and has `patch` send callers there. The original begins at
/// `begins` of it.
fn relay(
    place: usize,
    code: impl Fn(usize) -> Vec<u8>,
    begins: usize,
    original: &AtomicPtr<c_void>,
    patch: impl Fn(*const u8) -> bool,
) -> bool {
    let Some(relay) = make_relay(place) else {
        return false;
    };
    original.store(relay.wrapping_add(begins).cast(), Release);
    if write_relay(relay, &code(relay.addr())) && patch(relay) {
        return true;
    }
    original.store(ptr::null_mut(), Release);
    // SAFETY: nobody was sent there.
    unsafe { VirtualFree(relay.cast(), 0, MEM_RELEASE) };
    false
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

fn write_relay(relay: *mut u8, code: &[u8]) -> bool {
    let mut old = 0;
    // SAFETY: a fresh page of ours, longer than the code.
    unsafe {
        ptr::copy_nonoverlapping(code.as_ptr(), relay, code.len());
        VirtualProtect(relay.cast(), PAGE, PAGE_EXECUTE_READ, &mut old) != FALSE
    }
}

/// Runs `change` while so many bytes of code may be written.
fn writable(code: *mut u8, bytes: usize, change: impl FnOnce() -> bool) -> bool {
    let mut old = 0;
    // SAFETY: code of ntdll's, which stays, and is executable as before afterwards.
    unsafe {
        if VirtualProtect(code.cast(), bytes, PAGE_EXECUTE_READWRITE, &mut old) == FALSE {
            return false;
        }
        let done = change();
        VirtualProtect(code.cast(), bytes, old, &mut old);
        done
    }
}
