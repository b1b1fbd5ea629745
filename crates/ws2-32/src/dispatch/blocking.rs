//! Winsock 1.1's blocking hooks.
//!
//! Wine remembers a program's hook and never calls it; so does the builtin for its sockets. A layered provider asks for a
//! callback (WPUQueryBlockingCallback) and gets one if this thread has set a hook: it runs the hook until the hook has
//! nothing more to do, and says whether the hook cancelled the blocking call.

#![allow(clippy::missing_const_for_thread_local)] // they are const: clippy looks at what the macro makes of them

use std::cell::Cell;

use windows_sys::Win32::Foundation::{FALSE, FARPROC, TRUE};
use windows_sys::Win32::Networking::WinSock::LPBLOCKINGCALLBACK;
use windows_sys::core::BOOL;

use crate::builtin;
use crate::provider::Provider;

thread_local! {
    static HOOK: Cell<FARPROC> = const { Cell::new(None) };
    /// The provider whose blocking call runs the hook, and whether the hook cancelled it.
    static RUNNING: Cell<Option<&'static Provider>> = const { Cell::new(None) };
    static CANCELLED: Cell<bool> = const { Cell::new(false) };
}

/// For a provider that is about to block: what to call meanwhile, and with which word.
pub fn callback(of: &'static Provider) -> (LPBLOCKINGCALLBACK, usize) {
    match HOOK.get() {
        Some(_) => (Some(run), std::ptr::from_ref(of).expose_provenance()),
        None => (None, 0),
    }
}

unsafe extern "system" fn run(context: usize) -> BOOL {
    let Some(hook) = HOOK.get() else {
        return TRUE;
    };
    // SAFETY: the context is a provider's address; those are never freed. Zero is no provider.
    let provider = unsafe { std::ptr::with_exposed_provenance::<Provider>(context).as_ref() };
    let outer = RUNNING.replace(provider);
    CANCELLED.set(false);
    // SAFETY: the program's hook: no arguments, a BOOL says whether it wants to be called again at once.
    while unsafe { hook() } as BOOL != FALSE && !CANCELLED.get() {}
    RUNNING.set(outer);
    !CANCELLED.replace(false) as BOOL
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSASetBlockingHook(hook: FARPROC) -> FARPROC {
    HOOK.set(hook);
    // SAFETY: the program's own argument.
    unsafe { builtin::WSASetBlockingHook(hook) }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSAUnhookBlockingHook() -> i32 {
    HOOK.set(None);
    // SAFETY: no arguments.
    unsafe { builtin::WSAUnhookBlockingHook() }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSAIsBlocking() -> BOOL {
    if RUNNING.get().is_some() {
        return TRUE;
    }
    // SAFETY: no arguments.
    unsafe { builtin::WSAIsBlocking() }
}

#[unsafe(no_mangle)]
unsafe extern "system" fn WSACancelBlockingCall() -> i32 {
    let Some(provider) = RUNNING.get() else {
        // SAFETY: no arguments.
        return unsafe { builtin::WSACancelBlockingCall() };
    };
    CANCELLED.set(true);
    if let Some(cancel) = provider.table().lpWSPCancelBlockingCall {
        let mut error = 0;
        // SAFETY: the SPI's entry.
        unsafe { cancel(&mut error) };
    }
    0
}
