//! Our completion port and its worker, started with the first overlapped call.
//!
//! A base socket that came from another process may be bound to a port there. Its completions are then signalled by an event
//! whose lowest bit says "no packet", and the packet is posted by whoever waits for the event.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, OnceLock};

use windows_sys::Win32::Foundation::{
    CloseHandle, ERROR_ABANDONED_WAIT_0, GetLastError, HANDLE, INVALID_HANDLE_VALUE,
};
use windows_sys::Win32::Networking::WinSock as ws;
use windows_sys::Win32::System::IO::{
    CreateIoCompletionPort, GetQueuedCompletionStatus, OVERLAPPED, PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Threading::{
    CreateEventW, INFINITE, RegisterWaitForSingleObject, UnregisterWaitEx, WT_EXECUTEONLYONCE,
};

use super::op::{self, Op};
use crate::answer::Code;
use crate::slot::{Body, locked};

/// The port, as a number; 0: it can't be had.
fn port() -> usize {
    static PORT: OnceLock<usize> = OnceLock::new();
    *PORT.get_or_init(|| {
        // SAFETY: a port of our own, never closed.
        let port = unsafe {
            CreateIoCompletionPort(INVALID_HANDLE_VALUE, std::ptr::null_mut(), 0, 0) as usize
        };
        let thread = std::thread::Builder::new().name("sgm-overlapped".into());
        if port != 0 && thread.spawn(move || serve(port)).is_err() {
            return 0;
        }
        port
    })
}

type Job = Box<dyn FnOnce() + Send>;
/// Key of the packets that are jobs.
const JOB: usize = 1;

/// Has the worker do something: a thread that ends may take the calls with it that it made (Wine loses their results).
pub fn run(job: impl FnOnce() + Send + 'static) {
    let job: Box<Job> = Box::new(Box::new(job));
    let job = Box::into_raw(job);
    // SAFETY: our own port; the pointer is a value that `serve` takes back.
    let posted = unsafe { PostQueuedCompletionStatus(port() as HANDLE, 0, JOB, job.cast()) };
    if posted == 0 {
        // SAFETY: nobody else has it.
        unsafe { Box::from_raw(job)() };
    }
}

fn serve(port: usize) {
    loop {
        let (mut bytes, mut key) = (0, 0);
        let mut own: *mut OVERLAPPED = std::ptr::null_mut();
        // SAFETY: our own port, out-pointers to locals.
        let ok = unsafe {
            GetQueuedCompletionStatus(port as HANDLE, &mut bytes, &mut key, &mut own, INFINITE)
        };
        if key == JOB {
            // SAFETY: made by `run` for this.
            let job = unsafe { Box::from_raw(own.cast::<Job>()) };
            job();
        } else if !own.is_null() {
            // SAFETY: nothing else comes to this port but operations.
            unsafe { op::packet(own, ok != 0, bytes) };
        // SAFETY: always valid to call.
        } else if ok == 0 && unsafe { GetLastError() } == ERROR_ABANDONED_WAIT_0 {
            return;
        }
    }
}

/// Stands in for the port.
pub struct Substitute {
    event: usize,
    wait: usize,
    posted: AtomicBool,
}

impl Drop for Substitute {
    fn drop(&mut self) {
        // SAFETY: our own handles. The callback has run, or never will (see `withdraw`).
        unsafe {
            UnregisterWaitEx(self.wait as HANDLE, std::ptr::null_mut());
            CloseHandle(self.event as HANDLE);
        }
    }
}

/// Makes sure that the operation's packet will come.
pub fn prepare(op: &Arc<Op>, b: &Body) -> Result<(), Code> {
    let port = port();
    if port == 0 {
        return Err(ws::WSAENOBUFS);
    }
    let attached = b.io.attached.get_or_init(|| {
        // SAFETY: our base socket and port.
        let p = unsafe { CreateIoCompletionPort(b.base as HANDLE, port as HANDLE, 0, 0) };
        !p.is_null()
    });
    if *attached { Ok(()) } else { substitute(op) }
}

fn substitute(op: &Arc<Op>) -> Result<(), Code> {
    // SAFETY: an unnamed manual-reset event of our own.
    let event = unsafe { CreateEventW(std::ptr::null(), 1, 0, std::ptr::null()) } as usize;
    if event == 0 {
        return Err(ws::WSAENOBUFS);
    }
    let mut place = locked(&op.substitute);
    let s = place.insert(Substitute {
        event,
        wait: 0,
        posted: AtomicBool::new(false),
    });
    let mut wait = std::ptr::null_mut();
    let context = Arc::as_ptr(op).cast::<c_void>();
    // SAFETY: our own event; the operation lives until its packet has come, or until `withdraw` has seen the wait off.
    let ok = unsafe {
        (*op.own()).hEvent = (event | 1) as HANDLE;
        let event = event as HANDLE;
        RegisterWaitForSingleObject(
            &mut wait,
            event,
            Some(post),
            context,
            INFINITE,
            WT_EXECUTEONLYONCE,
        )
    };
    s.wait = wait as usize;
    if ok == 0 {
        *place = None;
        return Err(ws::WSAENOBUFS);
    }
    Ok(())
}

unsafe extern "system" fn post(context: *mut c_void, _timed_out: bool) {
    // SAFETY: by `substitute`.
    let op = unsafe { &*context.cast::<Op>() };
    if let Some(s) = &*locked(&op.substitute) {
        s.posted.store(true, Release);
    }
    // SAFETY: our own port; the packet is the operation's.
    unsafe { PostQueuedCompletionStatus(port() as HANDLE, 0, 0, op.own()) };
}

/// The call failed at once. True: its packet will certainly not come.
pub fn withdraw(op: &Op) -> bool {
    let wait = match &*locked(&op.substitute) {
        Some(s) => s.wait,
        None => return true,
    };
    // SAFETY: our own wait; this waits for a callback that runs.
    unsafe { UnregisterWaitEx(wait as HANDLE, INVALID_HANDLE_VALUE) };
    let mut place = locked(&op.substitute);
    let posted = place.as_ref().is_some_and(|s| s.posted.load(Acquire));
    if let Some(s) = &mut *place {
        s.wait = 0;
    }
    !posted
}
