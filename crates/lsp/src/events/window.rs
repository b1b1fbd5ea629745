//! Window messages (WSAAsyncSelect), and connections that must be looked at: one thread, started with the first of them.
//!
//! Every socket that is selected for messages is selected below with one event object of ours. When it is signalled, the
//! thread asks each of them what happened and posts it through WPUPostMessage under the program's own handle.

use std::sync::{Mutex, OnceLock};

use windows_sys::Win32::Foundation::{HANDLE, HWND, LPARAM, WPARAM};
use windows_sys::Win32::Networking::WinSock::{self as ws, WSANETWORKEVENTS};
use windows_sys::Win32::System::Threading::{
    CreateEventW, INFINITE, SetEvent, WaitForSingleObject,
};

use super::{FD_WRITE, Window, enum_base, gather};
use crate::provider::upcalls;
use crate::slot::{self, Inside, locked};

/// How often a connection is looked at whose doorbell for room can't be heard, in ms.
const WATCH_MS: u32 = 2;

/// Contexts of the slots that the thread serves.
#[derive(Default)]
struct Served {
    windows: Vec<usize>,
    watched: Vec<usize>,
}

static SERVED: Mutex<Served> = Mutex::new(Served {
    windows: Vec::new(),
    watched: Vec::new(),
});

/// Our event object, made with the thread; 0: it can't be had.
pub fn event() -> usize {
    static EVENT: OnceLock<usize> = OnceLock::new();
    *EVENT.get_or_init(|| {
        // SAFETY: an unnamed auto-reset event of our own.
        let event = unsafe { CreateEventW(std::ptr::null(), 0, 0, std::ptr::null()) } as usize;
        let thread = std::thread::Builder::new().name("sgm-events".into());
        if event != 0 && thread.spawn(move || serve(event)).is_err() {
            return 0;
        }
        event
    })
}

fn signal() {
    // SAFETY: our own event, never closed.
    unsafe { SetEvent(event() as HANDLE) };
}

/// The socket's messages are ours to post.
pub fn add(inside: &Inside) {
    let context = inside.slot.context();
    let mut served = locked(&SERVED);
    if !served.windows.contains(&context) {
        served.windows.push(context);
    }
    drop(served);
    // It may have been signalled before we knew whose signal it is.
    signal();
}

pub fn remove(inside: &Inside) {
    let context = inside.slot.context();
    let mut served = locked(&SERVED);
    served.windows.retain(|c| *c != context);
    served.watched.retain(|c| *c != context);
}

/// Look at this connection now and then, until it is writable.
pub fn watch(inside: &Inside) {
    let context = inside.slot.context();
    let mut served = locked(&SERVED);
    if !served.watched.contains(&context) {
        served.watched.push(context);
    }
    drop(served);
    signal();
}

fn serve(event: usize) {
    loop {
        let limit = match locked(&SERVED).watched.is_empty() {
            true => INFINITE,
            false => WATCH_MS,
        };
        // SAFETY: our own event, never closed.
        unsafe { WaitForSingleObject(event as HANDLE, limit) };
        let windows = locked(&SERVED).windows.clone();
        for inside in windows.into_iter().filter_map(slot::by_context) {
            tell_window(&inside);
        }
        let watched = locked(&SERVED).watched.clone();
        for inside in watched.into_iter().filter_map(slot::by_context) {
            look_again(&inside);
        }
    }
}

fn tell_window(inside: &Inside) {
    let b = inside.body();
    // Under one lock: what is taken for a window is posted to that window, and nobody closes the socket meanwhile.
    let mut events = locked(&b.events);
    let Some(window) = events.window else { return };
    let Ok(below) = enum_base(b, 0) else { return };
    let told = match b.conn.as_ref().filter(|c| c.is_engaged()) {
        Some(conn) => gather(inside, conn, &below, &mut events),
        None => {
            events.told_below(b.conn.as_ref(), below.lNetworkEvents);
            b.set_follows(events.follows());
            below
        }
    };
    post(&window, &told);
}

/// Has room come for a writer that could not be rung for?
fn look_again(inside: &Inside) {
    let b = inside.body();
    let conn = b.conn.as_ref().filter(|c| c.is_engaged());
    let mut events = locked(&b.events);
    if let Some(conn) = conn
        && events.selected()
        && events.posted & FD_WRITE == 0
    {
        super::look_and_tell(inside, conn, &mut events);
        if events.posted & FD_WRITE == 0 {
            return;
        }
    }
    drop(events);
    let context = inside.slot.context();
    locked(&SERVED).watched.retain(|c| *c != context);
}

/// One message for each event, as WSAAsyncSelect has it: the error above, the event below.
pub fn post(w: &Window, told: &WSANETWORKEVENTS) {
    let Some(upcalls) = upcalls() else { return };
    // A program that is told of a connection first knows what the rest is about; Wine's order.
    const ORDER: [u32; 6] = [
        ws::FD_CONNECT_BIT,
        ws::FD_ACCEPT_BIT,
        ws::FD_OOB_BIT,
        ws::FD_READ_BIT,
        ws::FD_WRITE_BIT,
        ws::FD_CLOSE_BIT,
    ];
    for bit in ORDER {
        let code = told.iErrorCode[bit as usize];
        let event = 1 << bit;
        if told.lNetworkEvents & event != 0 {
            let both = (code as u32) << 16 | event as u32;
            // SAFETY: ws2_32's own function; a window that is gone is no error of ours.
            unsafe {
                (upcalls.post_message)(
                    w.window as HWND,
                    w.message,
                    w.carrier as WPARAM,
                    both as LPARAM,
                )
            };
        }
    }
}
