//! WSPEventSelect, WSPEnumNetworkEvents, WSPAsyncSelect: network events of carried connections.
//!
//! The base socket stays selected with the program's own event object, so that a doorbell, which is a byte on it, signals
//! the object with nobody of ours awake. What the events *are* is worked out from the ring when the program asks ([`record`]).
//!
//! 1. The lower provider signals FD_READ once, until somebody receives through it. So doorbells of a selected socket are
//!    taken through it and not past it (`kernel::Socket::recv`), and it is armed whenever the ring has been emptied, or where
//!    all waits for the object are seen ([`waits`]), before one that sleeps.
//! 2. The event object is signalled by us only for what we find ourselves (bytes left after a receive).
//! 3. The events' lock is held by whoever calls the lower provider for a socket outside the program's own calls, and taken
//!    before the socket is closed: Wine's server does not survive a call that overlaps the close.

mod record;
mod waits;
mod window;

use gm::clock::{TICKS_PER_US, ticks};
use ring::sync::Ordering::Relaxed;
use sockets::{Conn, Fault, Kernel};
use windows_sys::Win32::Foundation::{HANDLE, HWND};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET, WSANETWORKEVENTS};
use windows_sys::Win32::System::Threading::SetEvent;

use crate::answer::{Code, done, lower};
use crate::slot::{Body, Inside, enter, locked};

pub use record::{Events, Window};
use waits::Waits;

const FD_READ: i32 = ws::FD_READ as i32;
const FD_WRITE: i32 = ws::FD_WRITE as i32;
const FD_OOB: i32 = ws::FD_OOB as i32;
const FD_CLOSE: i32 = ws::FD_CLOSE as i32;

/// What the base socket is selected for, when the program wants `mask` of a carried connection: doorbells and the end.
fn carried_mask(mask: i32) -> i32 {
    let of_ring = mask & (FD_READ | FD_WRITE | FD_CLOSE) != 0;
    let doorbells = if of_ring { FD_READ | FD_CLOSE } else { 0 };
    doorbells | mask & FD_OOB
}

fn select_base(b: &Body, event: usize, mask: i32) -> Result<(), Code> {
    // SAFETY: the program's event object, or ours; the lower provider checks it.
    lower(|code| unsafe { (b.lower.event_select)(b.base, event as ws::WSAEVENT, mask, code) })
}

/// Takes what the base socket has recorded, resets `event` (0: none).
fn enum_base(b: &Body, event: usize) -> Result<WSANETWORKEVENTS, Code> {
    let mut told = WSANETWORKEVENTS::default();
    // SAFETY: as above; an out-pointer to a local.
    lower(|code| unsafe {
        (b.lower.enum_network_events)(b.base, event as HANDLE, &mut told, code)
    })?;
    if told.lNetworkEvents & FD_READ != 0 {
        b.base_tells.store(false, Relaxed);
    }
    Ok(told)
}

/// As [`enum_base`], but not before a doorbell whose news is known has been heard below: it would signal `event` once more.
fn enum_rung(b: &Body, conn: &Conn, event: usize) -> Result<WSANETWORKEVENTS, Code> {
    /// Its writer, or Wine's server, may have to wait for a CPU.
    const LATE_BELL: u64 = 100_000 * TICKS_PER_US;
    let mut told = enum_base(b, event)?;
    let mut since = None;
    while event != 0 && conn.bell_is_due() && b.base_tells.load(Relaxed) {
        if ticks().wrapping_sub(*since.get_or_insert_with(ticks)) > LATE_BELL {
            b.base_tells.store(false, Relaxed);
            break;
        }
        crate::kernel::yield_now();
        told.lNetworkEvents |= enum_base(b, event)?.lNetworkEvents;
    }
    Ok(told)
}

pub unsafe extern "system" fn event_select(
    s: SOCKET,
    event: ws::WSAEVENT,
    mask: i32,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        window::remove(&inside);
        // Winsock tells anew what holds already; Wine does not.
        choose(&inside, event as usize, mask, None, !gm::os::raw::is_wine())
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// A new association; the old one is over. `anew`: what was told of counts no more.
fn choose(
    inside: &Inside,
    event: usize,
    mask: i32,
    window: Option<Window>,
    anew: bool,
) -> Result<(), Code> {
    let b = inside.body();
    let conn = b.conn.as_ref().filter(|c| c.is_engaged());
    let below = if conn.is_some() {
        carried_mask(mask)
    } else {
        mask
    };
    if let Some(conn) = conn {
        // Old doorbells would signal the object with nothing to tell, and so would an event that was recorded below for
        // bytes that were then taken past the lower provider.
        conn.arm_edge_clean(&inside.socket());
        if mask != 0 && !b.is_selected() {
            crate::kernel::enable_read(b);
        }
    }
    // What was recorded below is of doorbells, and would signal the new object at once.
    let urgent = conn.map_or(0, |_| {
        enum_base(b, 0).map_or(0, |e| e.lNetworkEvents) & FD_OOB
    });
    select_base(b, event, below)?;
    b.set_nonblocking(true);
    let mut events = locked(&b.events);
    events.pending |= urgent;
    if anew {
        events.forget();
    } else if let Some(conn) = conn {
        events.mind_received(conn);
    }
    let own = mask != 0 && window.is_none();
    let old = events.waits.take();
    events.waits = own.then(|| Waits::of(event, inside.slot)).flatten();
    events.event = if mask == 0 { 0 } else { event };
    events.mask = mask;
    events.window = window;
    b.set_selected(mask != 0);
    b.set_follows(events.follows());
    if let Some(old) = old {
        old.leave(inside.slot, events.waits.as_ref());
    }
    if let Some(conn) = conn
        && mask != 0
    {
        let k = inside.socket();
        conn.arm_edge_clean(&k);
        events.look(conn, &k, Some(k.poll()));
        // What nobody was told of yet belongs to the new object.
        if events.has_news() {
            tell(&mut events);
        }
    }
    Ok(())
}

/// Arms the ring where somebody may sleep, looks once more, and tells what is new. The caller holds the events' lock.
fn look_and_tell(inside: &Inside, conn: &Conn, events: &mut Events) {
    prepare(inside, conn, events);
    if events.look(conn, &inside.socket(), None) {
        tell(events);
    }
}

/// Before a look: what comes after it must wake whoever sleeps.
fn prepare(inside: &Inside, conn: &Conn, events: &Events) {
    if events.waits.as_ref().is_some_and(|w| w.nobody_sleeps()) {
        conn.stay_awake(&inside.socket());
    } else {
        conn.arm_edge_clean(&inside.socket());
    }
}

/// Something was recorded: the program is woken, or gets its messages.
fn tell(events: &mut Events) {
    match (events.window, &events.waits) {
        (None, Some(waits)) => waits.signal(),
        (None, None) => {
            // SAFETY: the program's event object; a closed one is an error that concerns nobody.
            unsafe { SetEvent(events.event as HANDLE) };
        }
        (Some(w), _) => {
            let told = events.take();
            window::post(&w, &told);
        }
    }
}

pub unsafe extern "system" fn enum_network_events(
    s: SOCKET,
    event: HANDLE,
    out: *mut WSANETWORKEVENTS,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        let b = inside.body();
        let Some(conn) = b
            .conn
            .as_ref()
            .filter(|c| c.is_engaged() && b.is_selected())
        else {
            // SAFETY: the caller's arguments, unchanged.
            lower(|code| unsafe { (b.lower.enum_network_events)(b.base, event, out, code) })?;
            // SAFETY: filled in by the lower provider.
            if let Some(told) = unsafe { out.as_ref() } {
                let mut events = locked(&b.events);
                if let Some(waits) = &events.waits {
                    waits.reset(event as usize);
                }
                events.told_below(b.conn.as_ref(), told.lNetworkEvents);
                b.set_follows(events.follows());
            }
            return Ok(());
        };
        if out.is_null() {
            return Err(ws::WSAEFAULT);
        }
        // SAFETY: the caller's place for the answer.
        unsafe { *out = carried_events(&inside, conn, event as usize)? };
        Ok(())
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// What happened on a carried connection since the last time. `event` is reset first: what comes later signals it anew.
fn carried_events(inside: &Inside, conn: &Conn, event: usize) -> Result<WSANETWORKEVENTS, Code> {
    let b = inside.body();
    {
        let mut events = locked(&b.events);
        if events.waits.as_ref().is_some_and(|w| w.nobody_sleeps()) {
            // A writer whose news we have seen already may not have come to its look yet.
            conn.spare_bell();
        }
        // Nobody but us has signalled the object, and that not in earnest: the lower provider has nothing to say.
        let untouched = |w: &Waits| w.was_ours(event) && !conn.bell_is_due();
        if events.mask & FD_OOB == 0 && events.waits.as_deref().is_some_and(untouched) {
            events.look(conn, &inside.socket(), None);
            return Ok(events.take());
        }
    }
    let below = enum_rung(b, conn, event)?;
    let mut events = locked(&b.events);
    if let Some(waits) = &events.waits {
        waits.reset(event);
    }
    Ok(gather(inside, conn, &below, &mut events))
}

/// What there is to be told of, `below` being what the base socket had recorded.
fn gather(
    inside: &Inside,
    conn: &Conn,
    below: &WSANETWORKEVENTS,
    events: &mut Events,
) -> WSANETWORKEVENTS {
    let k = inside.socket();
    prepare(inside, conn, events);
    events.look(conn, &k, Some(k.poll()));
    let mut told = events.take();
    told.lNetworkEvents |= below.lNetworkEvents & events.mask & FD_OOB;
    told
}

/// The connection has just been promoted: from now on events come from the ring.
pub fn on_engaged(inside: &Inside, conn: &Conn) {
    let b = inside.body();
    let mut events = locked(&b.events);
    if !events.selected() {
        return;
    }
    // Recorded below, and not asked for yet.
    let below = enum_base(b, 0).map_or(0, |e| e.lNetworkEvents);
    events.move_up(conn, below);
    let event = match events.window {
        Some(_) => window::event(),
        None => events.event,
    };
    let _ = select_base(b, event, carried_mask(events.mask));
    if events.has_news() {
        tell(&mut events);
    }
    conn.arm_edge_clean(&inside.socket());
    look_and_tell(inside, conn, &mut events);
}

/// A receive was made on a carried connection: it enables FD_READ again.
#[inline]
pub fn after_recv(inside: &Inside, conn: &Conn) {
    let b = inside.body();
    if !b.follows() {
        return;
    }
    let mut events = locked(&b.events);
    events.enable(FD_READ);
    if events.selected() {
        look_and_tell(inside, conn, &mut events);
    }
    b.set_follows(events.follows());
}

/// A receive was made through the lower provider, which has enabled FD_READ there.
#[inline]
pub fn after_plain_recv(inside: &Inside) {
    after_plain(inside, FD_READ);
}

/// A send through the lower provider failed, which has enabled FD_WRITE there.
pub fn after_plain_block(inside: &Inside) {
    after_plain(inside, FD_WRITE);
}

#[inline]
fn after_plain(inside: &Inside, event: i32) {
    if inside.body().follows() {
        locked(&inside.body().events).enable(event);
    }
}

/// A send was made: one that would block enables FD_WRITE again.
pub fn after_send(inside: &Inside, conn: &Conn, sent: Result<usize, Fault>) {
    if sent != Err(Fault::WouldBlock) {
        return;
    }
    let mut events = locked(&inside.body().events);
    events.enable(FD_WRITE);
    if events.selected() {
        look_and_tell(inside, conn, &mut events);
        // The doorbell for room can't be told from those of unread bytes: somebody has to look.
        if conn.readable_bytes(&inside.socket()) > 0 {
            window::watch(inside);
        }
    }
}

/// An accepted socket has its listener's association.
pub fn inherit(listener: &Inside, new: &Inside, carrier: SOCKET) {
    let from = locked(&listener.body().events).clone();
    if !from.selected() {
        return;
    }
    let window = from.window.map(|w| Window { carrier, ..w });
    new.body().set_selected(true);
    new.body().set_follows(true);
    let mut events = locked(&new.body().events);
    events.waits = from.waits.and_then(|_| Waits::of(from.event, new.slot));
    (events.event, events.mask, events.window) = (from.event, from.mask, window);
    drop(events);
    if window.is_some() {
        window::add(new);
    }
}

/// The socket is being closed: no more messages, and no more calls of ours on the base socket (rule 3).
pub fn forget(inside: &Inside) {
    window::remove(inside);
    let b = inside.body();
    let mut events = locked(&b.events);
    b.set_selected(false);
    b.set_follows(false);
    (events.mask, events.window) = (0, None);
    if let Some(waits) = events.waits.take() {
        waits.leave(inside.slot, None);
    }
}

pub unsafe extern "system" fn async_select(
    s: SOCKET,
    hwnd: HWND,
    message: u32,
    mask: i32,
    errno: *mut i32,
) -> i32 {
    let call = || {
        let inside = enter(s)?;
        let b = inside.body();
        if b.own {
            // Its messages name the program's handle: the lower provider's to send.
            forget(&inside);
            // SAFETY: the caller's arguments, unchanged.
            return lower(|code| unsafe {
                (b.lower.async_select)(b.base, hwnd, message, mask, code)
            });
        }
        // Ends the old association below, and has Wine's server forget what it has told of, so that it is told anew.
        // SAFETY: the caller's arguments, but for the mask; no message is asked for.
        lower(|code| unsafe { (b.lower.async_select)(b.base, hwnd, message, 0, code) })?;
        let anew = !hwnd.is_null() || !gm::os::raw::is_wine();
        if mask == 0 {
            window::remove(&inside);
            return choose(&inside, 0, 0, None, anew);
        }
        let event = window::event();
        if event == 0 {
            return Err(ws::WSAENOBUFS);
        }
        let window = Window {
            window: hwnd as usize,
            message,
            carrier: s,
        };
        choose(&inside, event, mask, Some(window), anew)?;
        window::add(&inside);
        Ok(())
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}
