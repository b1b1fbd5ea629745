//! Operations on a connection that is still engaged: bytes lie in the ring, or the peer has yet to take some of ours.
//!
//! They stand in line, those that receive and those that send each in their own. A thread serves the line while somebody is
//! in it: it carries out the first one through the engine. As soon as the connection is plain, the worker gives all that
//! stand there to the base socket. So bytes keep their order. This is the exception: it ends with the peer's next call.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex};

use gm::end::flag;
use sockets::{Conn, Fault, Kernel, Ready, RecvOptions, SendOptions};
use windows_sys::Win32::Networking::WinSock::{self as ws, WSABUF};

use super::op::{DONE, Issued, Kind, Op, PENDING};
use super::{Request, base_recv, base_send, port, send_is_plain, wait_a_while};
use crate::answer::{Code, code_of};
use crate::events;
use crate::slot::{Inside, locked};

/// Who waits. Served by a thread while it is busy.
#[derive(Default)]
pub struct Line(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Late>,
    busy: bool,
}

impl Line {
    pub fn is_busy(&self) -> bool {
        locked(&self.0).busy
    }
}

/// What is to be done.
pub struct Way {
    sends: bool,
    flags: u32,
    bufs: Vec<WSABUF>,
    /// So many bytes are done.
    done: usize,
}

impl Way {
    /// # Safety
    /// `count` descriptions of buffers that stay until the completion; the array need not.
    pub unsafe fn receive(bufs: *const WSABUF, count: u32, flags: u32) -> Result<Self, Code> {
        // SAFETY: by the caller.
        unsafe { Self::new(bufs, count, flags, false) }
    }

    /// # Safety
    /// As for [`Way::receive`].
    pub unsafe fn send(bufs: *const WSABUF, count: u32, flags: u32) -> Result<Self, Code> {
        // SAFETY: by the caller.
        unsafe { Self::new(bufs, count, flags, true) }
    }

    /// # Safety
    /// As for [`Way::receive`].
    unsafe fn new(bufs: *const WSABUF, count: u32, flags: u32, sends: bool) -> Result<Self, Code> {
        let bufs = match (bufs.is_null(), count) {
            (_, 0) => Vec::new(),
            (true, _) => return Err(ws::WSAEFAULT),
            // SAFETY: by the caller.
            (false, n) => unsafe { std::slice::from_raw_parts(bufs, n as usize) }.to_vec(),
        };
        if bufs.iter().any(|b| b.buf.is_null() && b.len > 0) {
            return Err(ws::WSAEFAULT);
        }
        Ok(Self {
            sends,
            flags,
            bufs,
            done: 0,
        })
    }

    fn total(&self) -> usize {
        self.bufs.iter().map(|b| b.len as usize).sum()
    }

    /// MSG_OOB: the kernel's to send.
    fn is_urgent(&self) -> bool {
        self.sends && self.flags & ws::MSG_OOB as u32 != 0
    }

    /// What is left of the buffers after the bytes that are done.
    fn rest(&self) -> Vec<WSABUF> {
        let mut skip = self.done;
        let mut rest = Vec::with_capacity(self.bufs.len());
        for b in &self.bufs {
            let n = skip.min(b.len as usize);
            skip -= n;
            if n < b.len as usize || b.len == 0 {
                rest.push(WSABUF {
                    len: b.len - n as u32,
                    buf: b.buf.wrapping_add(n),
                });
            }
        }
        rest
    }
}

struct Late {
    op: Arc<Op>,
    way: Way,
}

impl Late {
    /// Cancelled, or its socket is being closed.
    fn is_over(&self, inside: &Inside) -> bool {
        self.op.is_cancelled() || inside.body().is_closing()
    }

    fn abort<T>(self) -> Option<T> {
        // What was moved can't be taken back, so it is told.
        let moved = self.way.done > 0;
        self.end(if moved { 0 } else { ws::WSA_OPERATION_ABORTED })
    }

    /// Done, one way or the other: nothing is left of it.
    fn end<T>(self, code: Code) -> Option<T> {
        self.op.set_carried(self.way.done);
        self.op.finish(code, 0, 0);
        None
    }
}

// SAFETY: the buffers are the program's, good in every thread until the completion.
unsafe impl Send for Late {}

fn line_of(inside: &Inside, sends: bool) -> &Line {
    let io = &inside.body().io;
    if sends { &io.sending } else { &io.receiving }
}

/// Puts an operation into its line: always WSA_IO_PENDING, or the reason why not.
pub fn join(inside: Inside, r: Request, way: Way) -> Result<(), Code> {
    let sends = way.sends;
    let kind = if sends {
        Kind::Send
    } else {
        Kind::receive(way.flags)
    };
    let op = Op::begin(inside.clone(), r, kind, way.flags);
    let mut queue = locked(&line_of(&inside, sends).0);
    if !queue.busy {
        let thread = std::thread::Builder::new().name("sgm-line".into());
        let i = inside.clone();
        if thread.spawn(move || serve(i, sends)).is_err() {
            drop(queue);
            op.give_up();
            return Err(ws::WSAENOBUFS);
        }
        queue.busy = true;
    }
    queue.waiting.push_back(Late { op, way });
    Err(ws::WSA_IO_PENDING)
}

/// A cancelled operation whose turn has not come. The one whose turn it is sees that itself.
pub fn leave(inside: &Inside, op: &Arc<Op>) {
    for sends in [false, true] {
        let mut queue = locked(&line_of(inside, sends).0);
        let at = queue.waiting.iter().position(|l| Arc::ptr_eq(&l.op, op));
        let late = at.and_then(|at| queue.waiting.remove(at));
        drop(queue);
        if let Some(late) = late {
            late.end::<()>(ws::WSA_OPERATION_ABORTED);
        }
    }
}

/// In a thread of the line's own: until nobody is left, or the connection is plain.
fn serve(inside: Inside, sends: bool) {
    while let Some(late) = next(&inside, sends) {
        if let Some(late) = carry_out(&inside, late) {
            // The worker gives the rest to the base socket.
            return port::run(move || pass_on(inside, late));
        }
    }
}

/// The first in line; if there is none, the line ends.
fn next(inside: &Inside, sends: bool) -> Option<Late> {
    let mut queue = locked(&line_of(inside, sends).0);
    let first = queue.waiting.pop_front();
    queue.busy = first.is_some();
    drop(queue);
    if first.is_none() {
        let _operations = locked(&PENDING);
        DONE.notify_all();
    }
    first
}

fn pass_on(inside: Inside, late: Late) {
    let sends = late.way.sends;
    to_base(&inside, late);
    while let Some(late) = next(&inside, sends) {
        if !is_for_base(&inside, &late) {
            // One that was urgent came first.
            locked(&line_of(&inside, sends).0).waiting.push_front(late);
            let i = inside.clone();
            let thread = std::thread::Builder::new().name("sgm-line".into());
            if thread.spawn(move || serve(i, sends)).is_ok() {
                return;
            }
            // No threads: as a refusal at once, but for the time.
            if let Some(late) = next(&inside, sends) {
                late.end::<()>(ws::WSAENOBUFS);
            }
            continue;
        }
        to_base(&inside, late);
    }
}

/// Plain by now, or urgent with nothing before it.
fn is_for_base(inside: &Inside, late: &Late) -> bool {
    let engaged = inside.conn().is_some_and(Conn::is_engaged);
    !engaged || late.way.is_urgent() && send_is_plain(inside)
}

/// Through the engine. Some: the base socket must do it.
fn carry_out(inside: &Inside, mut late: Late) -> Option<Late> {
    let conn = match inside.conn() {
        Some(conn) if !is_for_base(inside, &late) => conn,
        _ => return Some(late),
    };
    loop {
        if late.is_over(inside) {
            return late.abort();
        }
        if is_for_base(inside, &late) {
            return after_reset(inside, late);
        }
        let sends = late.way.sends;
        let shut = if sends {
            flag::WRITE_SHUT
        } else {
            flag::READ_SHUT
        };
        if conn.end().has(shut) {
            return late.end(ws::WSAESHUTDOWN);
        }
        let step = match sends {
            true if late.way.is_urgent() => Err(Fault::WouldBlock),
            true => send(inside, conn, &mut late.way),
            false => receive(inside, conn, &mut late.way),
        };
        match step {
            // Our own close ends the stream: no end for the program to be told of.
            Ok(true) if late.way.done == 0 && late.is_over(inside) => {}
            Ok(true) => return late.end(0),
            Ok(false) => {}
            Err(Fault::WouldBlock | Fault::Interrupted) => {
                wait_a_while(inside, if sends { Ready::OUT } else { Ready::IN });
                conn.settle(&inside.socket());
            }
            // Plain now.
            Err(Fault::UseKernel) => {
                conn.settle(&inside.socket());
            }
            Err(_) if late.way.done > 0 => return late.end(0),
            // Told of the close instead.
            Err(_) if late.is_over(inside) => {}
            Err(f) => return late.end(code_of(f, false)),
        }
    }
}

/// The connection went back to TCP while the call was pending. A reset that came meanwhile is this call's to tell: Wine reads
/// it as end-of-file for calls that are made after it.
fn after_reset(inside: &Inside, late: Late) -> Option<Late> {
    let now = inside.socket().poll();
    // wineserver may have taken the error off the socket.
    let reset = now.intersects(Ready::ERR)
        || now.intersects(Ready::HUP) && inside.conn().is_some_and(Conn::peer_aborted);
    if late.way.sends || !reset {
        return Some(late);
    }
    inside.socket().take_error();
    late.end(ws::WSAECONNRESET)
}

/// True: all that the program wants.
fn receive(inside: &Inside, conn: &Conn, way: &mut Way) -> Result<bool, Fault> {
    let wait_all = way.flags & ws::MSG_WAITALL as u32 != 0;
    let o = RecvOptions {
        dont_wait: true,
        peek: way.flags & ws::MSG_PEEK as u32 != 0,
        wait_all,
    };
    let mut rest = way.rest();
    let (at, len) = (rest.as_mut_ptr(), rest.len());
    // SAFETY: the program's buffers, checked; `IoSliceMut` is promised to have WSABUF's layout.
    let bufs = unsafe { std::slice::from_raw_parts_mut(at.cast::<IoSliceMut>(), len) };
    let got = conn.recv(&inside.socket(), bufs, o)?;
    events::after_recv(inside, conn);
    way.done += got;
    Ok(got == 0 || !wait_all || o.peek || way.done == way.total())
}

/// True: all bytes are sent.
fn send(inside: &Inside, conn: &Conn, way: &mut Way) -> Result<bool, Fault> {
    let rest = way.rest();
    // SAFETY: as for `receive`; only read.
    let bufs = unsafe { std::slice::from_raw_parts(rest.as_ptr().cast::<IoSlice>(), rest.len()) };
    way.done += conn.send(&inside.socket(), bufs, SendOptions { dont_wait: true })?;
    Ok(way.done == way.total())
}

/// The base socket does the rest.
fn to_base(inside: &Inside, late: Late) {
    if late.is_over(inside) {
        late.abort::<()>();
        return;
    }
    if late.way.done > 0 && !late.way.sends {
        late.end::<()>(0);
        return;
    }
    let Late { op, way } = late;
    let rest = way.rest();
    let bufs = (rest.as_ptr(), rest.len() as u32);
    op.set_carried(way.done);
    // SAFETY: the program's buffers, which stay until the completion; the array is read during the call only.
    let issued = op.issue(|p| unsafe {
        if way.sends {
            base_send(inside.body(), p, bufs, way.flags, (null(), 0))
        } else {
            base_recv(inside.body(), p, bufs, (null_mut(), null_mut()))
        }
    });
    // The program was told "pending", so an error is a completion now.
    if let Issued::Failed(code) = issued {
        op.finish(code, 0, 0);
    }
}
