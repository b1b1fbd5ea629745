//! SIO_EXT_POLL: what ws2_32 makes of WSAPoll when a socket of ours is in it.

use core::ffi::c_void;
use core::mem::offset_of;

use sockets::Ready;
use spi::types::{SIO_EXT_POLL, WSAPOLLDATA};
use windows_sys::Win32::Networking::WinSock::{self as ws, WSAPOLLFD};

use crate::answer::{Code, lower};
use crate::select;
use crate::slot::{Body, enter};
use crate::wait::{self, Member};

const OUT: i16 = ws::POLLWRNORM;
const IN: i16 = ws::POLLRDNORM;

/// Answers how many have events; fills `revents` in. `timeout_ms` below zero is for ever.
pub fn poll(fds: &mut [WSAPOLLFD], timeout_ms: i32) -> Result<i32, Code> {
    let limit = u64::try_from(timeout_ms).ok().map(|ms| ms * 1000);
    let mut members = Vec::with_capacity(fds.len());
    let mut at = Vec::with_capacity(fds.len());
    for (i, p) in fds.iter_mut().enumerate() {
        p.revents = 0;
        // A handle that is not a socket: the lower provider's own answer is POLLNVAL.
        match enter(p.fd) {
            Ok(inside) => {
                members.push(wait::member(inside, wanted(p.events)));
                at.push(i);
            }
            Err(_) => p.revents = ws::POLLNVAL,
        }
    }
    if members.iter().any(Member::is_carried) {
        wait::wait(&mut members, wait::after_us(limit), &mut ask_base)?;
        for (m, i) in members.iter().zip(&at) {
            fds[*i].revents = match m.socket.body().is_closing() {
                // By another thread, meanwhile.
                true => ws::POLLNVAL,
                false => reported(m, fds[*i].events),
            };
        }
    } else {
        ask_base_exactly(fds, &members, &at, timeout_ms)?;
    }
    // A handle that was no socket is marked, but neither counted nor a reason to return. One that was closed meanwhile is both.
    Ok(at.iter().filter(|i| fds[**i].revents != 0).count() as i32)
}

fn wanted(events: i16) -> Ready {
    let mut want = Ready::NONE;
    if events & (IN | ws::POLLRDBAND) != 0 {
        want |= Ready::IN;
    }
    if events & OUT != 0 {
        want |= Ready::OUT;
    }
    if events & ws::POLLRDBAND != 0 {
        want |= Ready::PRI;
    }
    want
}

/// Is nothing left to read?
fn is_drained(m: &Member) -> bool {
    let conn = m.socket.conn();
    conn.is_some_and(|c| c.readable_bytes(&m.socket.socket()) == 0)
}

fn reported(m: &Member, events: i16) -> i16 {
    let got = m.got;
    let mut r = 0;
    // The end of the stream is POLLHUP alone, unless bytes are before it.
    let over = got.intersects(Ready::RDHUP | Ready::HUP);
    if got.intersects(Ready::IN) && !(over && is_drained(m)) {
        r |= events & IN;
    }
    if got.intersects(Ready::OUT) {
        r |= events & OUT;
    }
    if got.intersects(Ready::PRI) {
        r |= events & ws::POLLRDBAND;
    }
    // Winsock says POLLHUP already when the peer's half is over.
    if got.intersects(Ready::HUP | Ready::RDHUP) {
        r |= ws::POLLHUP;
    }
    if got.intersects(Ready::ERR) {
        r |= ws::POLLERR;
    }
    r
}

/// Nobody is carried: the base sockets, asked with the program's own events.
fn ask_base_exactly(
    fds: &mut [WSAPOLLFD],
    members: &[Member],
    at: &[usize],
    timeout_ms: i32,
) -> Result<(), Code> {
    let mut below: Vec<WSAPOLLFD> = members
        .iter()
        .zip(at)
        .map(|(m, i)| WSAPOLLFD {
            fd: m.socket.body().base,
            events: fds[*i].events,
            revents: 0,
        })
        .collect();
    call(&mut below, own(members), timeout_ms)?;
    for (p, i) in below.iter().zip(at) {
        fds[*i].revents = p.revents;
    }
    Ok(())
}

/// For `wait`: what each member asks, of its base socket.
pub fn ask_base(members: &mut [Member], limit_us: Option<u64>) -> Result<(), Code> {
    let mut below: Vec<WSAPOLLFD> = members
        .iter()
        .map(|m| {
            let mut events = 0;
            if m.ask.intersects(Ready::IN | Ready::RDHUP) {
                events |= IN;
            }
            if m.ask.intersects(Ready::OUT) {
                events |= OUT;
            }
            if m.ask.intersects(Ready::PRI) {
                events |= ws::POLLRDBAND;
            }
            WSAPOLLFD {
                fd: m.socket.body().base,
                events,
                revents: 0,
            }
        })
        .collect();
    let ms = limit_us.map_or(-1, |us| us.div_ceil(1000).min(i32::MAX as u64) as i32);
    match (call(&mut below, own(members), ms), own(members)) {
        (Err(NO_POLL), Some(b)) => return select::ask_lower(b.lower, members, limit_us),
        (result, _) => result?,
    }
    for (m, p) in members.iter_mut().zip(&below) {
        let is = |bit: i16| p.revents & bit != 0;
        for (bit, ready) in [
            (IN, Ready::IN),
            (OUT, Ready::OUT),
            (ws::POLLRDBAND, Ready::PRI),
            (ws::POLLHUP, Ready::HUP),
            (ws::POLLERR, Ready::ERR),
        ] {
            if is(bit) {
                m.below |= ready;
            }
        }
    }
    Ok(())
}

/// A member whose handle is the program's own, for which ws2_32 would come back to us.
fn own(members: &[Member]) -> Option<&Body> {
    let mut bodies = members.iter().map(|m| m.socket.body());
    bodies.find(|b| b.own)
}

/// A lower provider without SIO_EXT_POLL.
const NO_POLL: Code = ws::WSAEOPNOTSUPP;

/// WSAPoll of base sockets, which ws2_32 takes to their own provider; with one in it that is `own`, the lower provider itself.
fn call(fds: &mut [WSAPOLLFD], own: Option<&Body>, timeout_ms: i32) -> Result<(), Code> {
    let Some(b) = own else {
        // SAFETY: an array of the length given.
        let n = unsafe { ws::WSAPoll(fds.as_mut_ptr(), fds.len() as u32, timeout_ms) };
        if n < 0 {
            // SAFETY: always valid to call.
            return Err(unsafe { ws::WSAGetLastError() });
        }
        return Ok(());
    };
    // A WSAPOLLDATA: result, count and time-out, and the array behind them.
    const HEAD: usize = offset_of!(WSAPOLLDATA, fdArray);
    let len = HEAD + size_of_val(fds);
    let mut words = vec![0_u64; len.div_ceil(8)];
    let data = words.as_mut_ptr().cast::<u8>();
    let mut returned = 0;
    // SAFETY: `words` is as long as the structure with this many members, and aligned for it.
    let result = unsafe {
        let head = [0, fds.len() as u32, timeout_ms as u32];
        data.cast::<[u32; 3]>().write(head);
        let array = data.add(HEAD).cast::<WSAPOLLFD>();
        array.copy_from_nonoverlapping(fds.as_ptr(), fds.len());
        let asked = lower(|code| {
            let (data, len) = (data.cast::<c_void>(), len as u32);
            let none = (std::ptr::null_mut(), None, std::ptr::null());
            (b.lower.ioctl)(
                b.base,
                SIO_EXT_POLL,
                data,
                len,
                data,
                len,
                &mut returned,
                none.0,
                none.1,
                none.2,
                code,
            )
        });
        array.copy_to_nonoverlapping(fds.as_mut_ptr(), fds.len());
        asked
    };
    result.map_err(|code| match code {
        ws::WSAEINVAL | ws::WSAEFAULT => NO_POLL,
        code => code,
    })
}
