//! Holding this process's other threads still for a moment, outside of some code that is about to change.
//!
//! Between the first thread's halt and the last one's release nothing is allocated and no lock is taken: a thread that is held
//! may have any of them. One that is born meanwhile is not held; it would have to lose its CPU inside the code.

use std::ops::Range;

use windows_sys::Win32::Foundation::{CloseHandle, FALSE, HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::System::Diagnostics::Debug::{CONTEXT, GetThreadContext};
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcessId, GetCurrentThreadId, OpenThread, ResumeThread, Sleep, SuspendThread,
    THREAD_GET_CONTEXT, THREAD_SUSPEND_RESUME,
};

const TRIES: u32 = 100;
const CONTEXT_CONTROL_AMD64: u32 = 0x10_0001;
/// What SuspendThread says when it fails.
const FAILED: u32 = u32::MAX;

/// As the system wants it aligned.
#[repr(align(16))]
#[derive(Default)]
struct Registers(CONTEXT);

/// Runs `change` while every other thread is held outside of `code`. `None`: one could not be had there.
pub fn with_others_outside<R>(code: Range<usize>, change: impl FnOnce() -> R) -> Option<R> {
    let mut registers = Box::<Registers>::default();
    for _ in 0..TRIES {
        let threads = others();
        let held = threads
            .iter()
            // SAFETY: our own handle, with that right. A thread that has ended is not in the way.
            .map(|thread| unsafe { SuspendThread(*thread) } != FAILED);
        // `map` is lazy, and this allocates nothing: each thread is held, and asked where it stands.
        let mut outside = true;
        for (thread, held) in threads.iter().zip(held) {
            outside &= !held || stands_outside(*thread, &code, &mut registers);
        }
        if outside {
            let result = change();
            release(&threads);
            return Some(result);
        }
        release(&threads);
        // SAFETY: always valid to call.
        unsafe { Sleep(1) };
    }
    None
}

fn stands_outside(thread: HANDLE, code: &Range<usize>, registers: &mut Registers) -> bool {
    registers.0.ContextFlags = CONTEXT_CONTROL_AMD64;
    // SAFETY: a held thread, and a place of the size and alignment that are wanted. One that ends meanwhile has no registers.
    let ended = unsafe { GetThreadContext(thread, &mut registers.0) == FALSE };
    ended || !code.contains(&(registers.0.Rip as usize))
}

/// Lets them go, and gives their handles back. One that could not be held counts no halt, so this is none the worse for it.
fn release(threads: &[HANDLE]) {
    for thread in threads {
        // SAFETY: our own handles.
        unsafe {
            ResumeThread(*thread);
            CloseHandle(*thread);
        }
    }
}

/// Handles of this process's other threads.
fn others() -> Vec<HANDLE> {
    let mut found = Vec::new();
    // SAFETY: a snapshot of our own, an entry of the size that it says.
    unsafe {
        let snapshot = CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0);
        if snapshot == INVALID_HANDLE_VALUE {
            return found;
        }
        let mut entry = THREADENTRY32 {
            dwSize: size_of::<THREADENTRY32>() as u32,
            ..Default::default()
        };
        let (process, thread) = (GetCurrentProcessId(), GetCurrentThreadId());
        let mut more = Thread32First(snapshot, &mut entry) != FALSE;
        while more {
            if entry.th32OwnerProcessID == process && entry.th32ThreadID != thread {
                let rights = THREAD_SUSPEND_RESUME | THREAD_GET_CONTEXT;
                let handle = OpenThread(rights, FALSE, entry.th32ThreadID);
                if !handle.is_null() {
                    found.push(handle);
                }
            }
            more = Thread32Next(snapshot, &mut entry) != FALSE;
        }
        CloseHandle(snapshot);
    }
    found
}
