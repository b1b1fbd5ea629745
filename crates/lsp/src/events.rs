//! WSPEventSelect, WSPEnumNetworkEvents, WSPAsyncSelect: network events of carried connections.
//!
//! The base socket stays selected with the program's own event object, so that a doorbell, which is a byte on it, signals
//! the object with nobody of ours awake. What the events *are* is worked out from the ring when the program asks.
//!
//! 1. `pending`: recorded, to be told by the next WSPEnumNetworkEvents (or message). `disabled`: told or recorded, and not
//!    recorded again before its re-enabling call (recv for FD_READ, a send that would block for FD_WRITE).
//! 2. The lower provider signals FD_READ once, until somebody receives through it. So doorbells of a selected socket are
//!    taken through it and not past it (`kernel::Socket::recv`), and it is armed whenever the ring has been emptied.
//! 3. The event object is signalled by us only for what we find ourselves (bytes left after a receive).

mod window;

use gm::end::flag;
use ring::sync::Ordering::Relaxed;
use sockets::{Conn, Fault, Kernel, Ready};
use windows_sys::Win32::Foundation::{HANDLE, HWND};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET, WSANETWORKEVENTS};
use windows_sys::Win32::System::Threading::SetEvent;

use crate::answer::{Code, done, lower};
use crate::slot::{Body, Inside, enter, locked};

const FD_READ: i32 = ws::FD_READ as i32;
const FD_WRITE: i32 = ws::FD_WRITE as i32;
const FD_OOB: i32 = ws::FD_OOB as i32;
const FD_CLOSE: i32 = ws::FD_CLOSE as i32;
const FD_CLOSE_BIT: usize = ws::FD_CLOSE_BIT as usize;

/// Where the events of a socket go.
#[derive(Clone, Copy, Default)]
pub struct Events {
    /// The program's event object, as a number; 0: none.
    event: usize,
    mask: i32,
    window: Option<Window>,
    pending: i32,
    disabled: i32,
    close_code: i32,
    /// Carried bytes that had been received when FD_READ was last told of.
    received: u64,
}

/// WSAAsyncSelect's target.
#[derive(Clone, Copy)]
pub struct Window {
    window: usize,
    message: u32,
    /// The handle that the program selected: what its messages name.
    carrier: SOCKET,
}

impl Events {
    fn selected(&self) -> bool {
        self.mask != 0
    }

    /// Records what is there and enabled. True: something new.
    fn look(&mut self, conn: &Conn, k: &impl Kernel, kernel: Option<Ready>) -> bool {
        let ready = conn.ready(k, kernel);
        let unread = conn.readable_bytes(k) > 0;
        let over = ready.intersects(Ready::RDHUP | Ready::HUP) && !conn.end().has(flag::READ_SHUT);
        let mut found = 0;
        if unread {
            found |= FD_READ;
        }
        if ready.intersects(Ready::OUT) {
            found |= FD_WRITE;
        }
        if over && !unread {
            found |= FD_CLOSE;
            // Wine's server has taken the error off the socket by then, and tells of a plain end.
            if ready.intersects(Ready::ERR) && !gm::os::raw::is_wine() {
                self.close_code = ws::WSAECONNRESET;
            }
        }
        let new = found & self.mask & !self.disabled;
        self.pending |= new;
        self.disabled |= new;
        if new & FD_READ != 0 {
            self.received = received(conn);
        }
        new != 0
    }

    /// What is to be told, with its codes; forgets it.
    fn take(&mut self) -> WSANETWORKEVENTS {
        let mut told = WSANETWORKEVENTS {
            lNetworkEvents: self.pending & self.mask,
            ..Default::default()
        };
        if told.lNetworkEvents & FD_CLOSE != 0 {
            told.iErrorCode[FD_CLOSE_BIT] = self.close_code;
        }
        self.pending = 0;
        told
    }
}

fn received(conn: &Conn) -> u64 {
    conn.end().rx_bytes.load(Relaxed)
}

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
        choose(&inside, event as usize, mask, None)
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}

/// A new association; the old one is over.
fn choose(inside: &Inside, event: usize, mask: i32, window: Option<Window>) -> Result<(), Code> {
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
    select_base(b, event, below)?;
    b.set_nonblocking(true);
    let mut events = locked(&b.events);
    b.set_selected(mask != 0);
    // Winsock tells anew what holds already. Wine's server does not tell again of bytes and ends that it has told of.
    let mut told = 0;
    if let Some(conn) = conn
        && gm::os::raw::is_wine()
    {
        told = events.disabled & (FD_READ | FD_CLOSE);
        if received(conn) != events.received {
            told &= !FD_READ;
        }
    }
    *events = Events {
        disabled: told,
        received: events.received,
        event: if mask == 0 { 0 } else { event },
        mask,
        window,
        ..Default::default()
    };
    if let Some(conn) = conn
        && mask != 0
    {
        look_and_tell(inside, conn, &mut events);
    }
    Ok(())
}

/// Arms the ring, looks once more, and tells what is new. The caller holds the events' lock.
fn look_and_tell(inside: &Inside, conn: &Conn, events: &mut Events) {
    let k = inside.socket();
    conn.arm_edge_clean(&k);
    if events.look(conn, &k, None) {
        tell(events);
    }
}

/// Something was recorded: the program is woken, or gets its messages.
fn tell(events: &mut Events) {
    match events.window {
        None => {
            // SAFETY: the program's event object; a closed one is an error that concerns nobody.
            unsafe { SetEvent(events.event as HANDLE) };
        }
        Some(w) => {
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
            return lower(|code| unsafe {
                (b.lower.enum_network_events)(b.base, event, out, code)
            });
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
    let below = enum_base(b, event)?;
    Ok(gather(inside, conn, &below, &mut locked(&b.events)))
}

/// What there is to be told of, `below` being what the base socket had recorded.
fn gather(
    inside: &Inside,
    conn: &Conn,
    below: &WSANETWORKEVENTS,
    events: &mut Events,
) -> WSANETWORKEVENTS {
    let k = inside.socket();
    conn.arm_edge_clean(&k);
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
    events.pending = enum_base(b, 0).map_or(0, |e| e.lNetworkEvents) & !(FD_READ | FD_CLOSE);
    // Told when the connection came about; after that only a full ring enables it.
    events.disabled = FD_WRITE;
    let event = match events.window {
        Some(_) => window::event(),
        None => events.event,
    };
    let _ = select_base(b, event, carried_mask(events.mask));
    if events.pending != 0 {
        tell(&mut events);
    }
    look_and_tell(inside, conn, &mut events);
}

/// A receive was made on a carried connection: it enables FD_READ again.
#[inline]
pub fn after_recv(inside: &Inside, conn: &Conn) {
    if !inside.body().is_selected() {
        return;
    }
    let mut events = locked(&inside.body().events);
    if events.selected() {
        events.disabled &= !FD_READ;
        look_and_tell(inside, conn, &mut events);
    }
}

/// A send was made: one that would block enables FD_WRITE again.
pub fn after_send(inside: &Inside, conn: &Conn, sent: Result<usize, Fault>) {
    if sent != Err(Fault::WouldBlock) {
        return;
    }
    let mut events = locked(&inside.body().events);
    if events.selected() {
        events.disabled &= !FD_WRITE;
        look_and_tell(inside, conn, &mut events);
        // The doorbell for room can't be told from those of unread bytes: somebody has to look.
        if conn.readable_bytes(&inside.socket()) > 0 {
            window::watch(inside);
        }
    }
}

/// An accepted socket has its listener's association.
pub fn inherit(listener: &Inside, new: &Inside, carrier: SOCKET) {
    let from = *locked(&listener.body().events);
    if !from.selected() {
        return;
    }
    let window = from.window.map(|w| Window { carrier, ..w });
    new.body().set_selected(true);
    *locked(&new.body().events) = Events {
        event: from.event,
        mask: from.mask,
        window,
        ..Default::default()
    };
    if window.is_some() {
        window::add(new);
    }
}

/// The socket is being closed: no more messages.
pub fn forget(inside: &Inside) {
    window::remove(inside);
    inside.body().set_selected(false);
    locked(&inside.body().events).mask = 0;
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
        if mask == 0 {
            window::remove(&inside);
            return choose(&inside, 0, 0, None);
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
        choose(&inside, event, mask, Some(window))?;
        window::add(&inside);
        Ok(())
    };
    // SAFETY: the caller's place for the code.
    unsafe { done(call(), errno) }
}
