//! WSATHREADID: how a provider names the thread in which a completion routine must run.
//!
//! `ThreadHandle` is a real handle, `Reserved` the thread's id, by which a handle that outlived its thread is recognised.

#![allow(clippy::missing_const_for_thread_local)] // they are const: clippy looks at what the macro makes of them

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::ptr;

use windows_sys::Win32::Foundation::{
    CloseHandle, DUPLICATE_SAME_ACCESS, DuplicateHandle, GetLastError, HANDLE,
};
use windows_sys::Win32::Networking::WinSock::{LPWSAUSERAPC, WSAEFAULT, WSAEINVAL, WSATHREADID};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetCurrentThread, GetCurrentThreadId, GetThreadId, QueueUserAPC,
};

/// The calling thread by a fresh handle, or an error.
pub fn open_current() -> Result<WSATHREADID, i32> {
    let mut handle: HANDLE = ptr::null_mut();
    // SAFETY: pseudo-handles of this process and thread, and a place for the result.
    unsafe {
        let this = GetCurrentProcess();
        if DuplicateHandle(
            this,
            GetCurrentThread(),
            this,
            &mut handle,
            0,
            0,
            DUPLICATE_SAME_ACCESS,
        ) == 0
        {
            return Err(GetLastError() as i32);
        }
        Ok(WSATHREADID {
            ThreadHandle: handle,
            Reserved: GetCurrentThreadId() as usize,
        })
    }
}

pub fn close(id: &WSATHREADID) {
    // SAFETY: closing a handle that is none is an error and no more.
    unsafe { CloseHandle(id.ThreadHandle) };
}

/// Runs `f(context)` in that thread when it next waits alertably.
pub fn queue(id: &WSATHREADID, f: LPWSAUSERAPC, context: usize) -> Result<(), i32> {
    if f.is_none() {
        return Err(WSAEFAULT);
    }
    // SAFETY: always valid to call.
    let own = unsafe { GetCurrentThreadId() } as usize == id.Reserved;
    if own && LOOKING.get() {
        DUE.with_borrow_mut(|due| due.push_back((f, context)));
        return Ok(());
    }
    // SAFETY: checked to be that very thread's handle; a user APC is called as a Winsock one is: with one word.
    let queued = unsafe {
        (own || GetThreadId(id.ThreadHandle) as usize == id.Reserved)
            && QueueUserAPC(f, id.ThreadHandle, context) != 0
    };
    if queued { Ok(()) } else { Err(WSAEINVAL) }
}

struct Own(WSATHREADID);

impl Drop for Own {
    fn drop(&mut self) {
        close(&self.0);
    }
}

thread_local! {
    /// This thread is about to sleep alertably, and has the provider look: what is queued to it meanwhile it runs itself.
    static LOOKING: Cell<bool> = const { Cell::new(false) };
    static DUE: RefCell<VecDeque<(LPWSAUSERAPC, usize)>> = const { RefCell::new(VecDeque::new()) };
}

/// Looks for news in a thread that may run completion routines now. True: some were due, and have run.
pub fn ran_routines(look: impl FnOnce()) -> bool {
    let outer = LOOKING.replace(true);
    look();
    LOOKING.set(outer);
    let mut ran = false;
    // A routine may sleep alertably itself.
    while let Some((f, context)) = DUE.with_borrow_mut(VecDeque::pop_front) {
        if let Some(f) = f {
            // SAFETY: the provider's function, in the thread that it named.
            unsafe { f(context) };
        }
        ran = true;
    }
    ran
}

thread_local! {
    static OWN: OnceCell<Own> = const { OnceCell::new() };
}

/// The calling thread for a call with a completion routine: the handle is the same in all its calls, and lives as long as
/// the thread. `None` if there is none to be had: the provider then refuses the routine.
pub fn current() -> Option<WSATHREADID> {
    let id = OWN.try_with(|own| {
        if own.get().is_none() {
            own.set(Own(open_current().ok()?)).ok();
        }
        own.get().map(|o| o.0)
    });
    id.ok().flatten()
}
