//! SIO_EXT_POLL: what ws2_32 makes of WSAPoll when a socket of ours is in it.

use sockets::Ready;
use windows_sys::Win32::Networking::WinSock::{self as ws, WSAPOLLFD};

use crate::answer::Code;
use crate::slot::enter;
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
    call(&mut below, timeout_ms)?;
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
    call(&mut below, ms)?;
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

/// WSAPoll of base sockets, which ws2_32 takes to their own provider.
fn call(fds: &mut [WSAPOLLFD], timeout_ms: i32) -> Result<(), Code> {
    // SAFETY: an array of the length given.
    let n = unsafe { ws::WSAPoll(fds.as_mut_ptr(), fds.len() as u32, timeout_ms) };
    if n < 0 {
        // SAFETY: always valid to call.
        return Err(unsafe { ws::WSAGetLastError() });
    }
    Ok(())
}
