//! Operations of one connection, in line: those that receive and those that send, each in their own. So bytes keep their order.
//!
//! An operation whose turn it is at once is carried out by the call that begins it. What has to wait is carried out by whoever
//! has news of the connection, under the line's lock: [`super::progress`], or, where there is none (on Windows), a thread
//! of the line's own, until the connection is plain and the base socket does the rest.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::ops::{Deref, DerefMut};
use std::ptr::{null, null_mut};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard};

use gm::end::flag;
use sockets::{Conn, Fault, Kernel, Ready, RecvOptions, SendOptions};
use windows_sys::Win32::Networking::WinSock as ws;

use super::op::{DONE, Issued, Kind, Now, Op, PENDING};
use super::way::Way;
use super::{Request, base_recv, base_send, port, progress, send_is_plain, wait_a_while};
use crate::answer::{Code, code_of, reset_answer};
use crate::kernel::Fd;
use crate::slot::{Inside, Pin, locked};
use crate::{events, life, provider};

/// Who waits. The lock is held while operations are told of; whether there are some can be asked without it.
#[derive(Default)]
pub struct Line {
    queue: Mutex<Queue>,
    taken: AtomicBool,
    busy: AtomicBool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Late>,
    /// A thread of its own serves it.
    busy: bool,
    /// shutdown(2)'s word for when all are done that were sent before it.
    shut: Option<i32>,
}

impl Queue {
    fn is_taken(&self) -> bool {
        self.busy || !self.waiting.is_empty()
    }
}

impl Line {
    /// Does anybody wait?
    pub fn is_taken(&self) -> bool {
        self.taken.load(Acquire)
    }

    pub fn is_busy(&self) -> bool {
        self.busy.load(Acquire)
    }

    fn lock(&self) -> Held<'_> {
        Held {
            line: self,
            queue: locked(&self.queue),
        }
    }
}

/// A line's queue, locked.
struct Held<'a> {
    line: &'a Line,
    queue: MutexGuard<'a, Queue>,
}

impl Held<'_> {
    /// Before anybody is told: what changed is seen without the lock.
    fn note(&self) {
        self.line.taken.store(self.queue.is_taken(), Release);
        self.line.busy.store(self.queue.busy, Release);
    }

    fn set_busy(&mut self, busy: bool) {
        self.queue.busy = busy;
        self.note();
    }

    fn push(&mut self, late: Late) {
        self.queue.waiting.push_back(late);
        self.note();
    }

    fn take(&mut self, at: usize) -> Option<Late> {
        let late = self.queue.waiting.remove(at);
        self.note();
        late
    }
}

impl Deref for Held<'_> {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Queue {
        &mut self.queue
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

    fn abort(self) {
        // What was moved can't be taken back, so it is told.
        let told = self.way.moved() > 0 && !self.way.is_file();
        self.end(if told { 0 } else { ws::WSA_OPERATION_ABORTED });
    }

    /// Done, one way or the other: nothing is left of it.
    fn end(self, code: Code) {
        self.op.set_carried(self.way.moved());
        self.op.finish(code, 0, 0);
    }
}

// SAFETY: the buffers are the program's, good in every thread until the completion.
unsafe impl Send for Late {}

fn line_of(inside: &Inside, sends: bool) -> &Line {
    let io = &inside.body().io;
    if sends { &io.sending } else { &io.receiving }
}

/// Carries an operation out, or puts it into its line: WSA_IO_PENDING.
pub fn join(inside: Inside, r: Request, mut way: Way) -> Result<Now, Code> {
    let sends = way.sends;
    let mut queue = line_of(&inside, sends).lock();
    if queue.shut.is_some() {
        return Err(ws::WSAESHUTDOWN);
    }
    if !queue.is_taken() {
        match step(&inside, &mut way, false) {
            Step::Done => {
                // A program that wants no packet for a success at once would get one from a Winsock DLL that knows
                // nothing of that.
                let says_done = r.routine.is_some() || provider::is_known();
                let bytes = way.moved() as u32;
                let op = Op::begin(&inside, r, Kind::Other, 0, None);
                op.finish(0, bytes, 0);
                return match says_done {
                    true => Ok(Now { bytes, flags: 0 }),
                    false => Err(ws::WSA_IO_PENDING),
                };
            }
            Step::Failed(code) => return Err(code),
            Step::NotYet | Step::ForBase => {}
        }
    }
    let kind = if sends {
        Kind::Send
    } else {
        Kind::receive(way.flags)
    };
    let op = Op::begin(&inside, r, kind, way.flags, None);
    let driven = match way.is_file() {
        // Reads the file, and sends for long.
        true => drive_alone(&inside, sends, &mut queue),
        false => drive(&inside, sends, &mut queue),
    };
    if !driven {
        drop(queue);
        op.give_up();
        return Err(ws::WSAENOBUFS);
    }
    queue.push(Late { op, way });
    Err(ws::WSA_IO_PENDING)
}

/// Sees to it that the line is served when there is news. False: that can't be.
fn drive(inside: &Inside, sends: bool, queue: &mut Held<'_>) -> bool {
    queue.busy || progress::watch(inside, sends) || drive_alone(inside, sends, queue)
}

/// By a thread of the line's own.
fn drive_alone(inside: &Inside, sends: bool, queue: &mut Held<'_>) -> bool {
    if queue.busy {
        return true;
    }
    let thread = std::thread::Builder::new().name("sgm-line".into());
    let pin = inside.pin();
    queue.set_busy(thread.spawn(move || serve_alone(&pin, sends)).is_ok());
    queue.busy
}

/// A cancelled operation leaves.
pub fn leave(inside: &Inside, op: &Arc<Op>) {
    for sends in [false, true] {
        let mut queue = line_of(inside, sends).lock();
        let at = queue.waiting.iter().position(|l| Arc::ptr_eq(&l.op, op));
        if let Some(late) = at.and_then(|at| queue.take(at)) {
            late.abort();
        }
        drop(queue);
    }
}

/// shutdown, while operations wait that send: it takes effect after them. False: there are none.
pub fn shut_later(inside: &Inside, how: i32) -> bool {
    let mut queue = line_of(inside, true).lock();
    let later = !queue.waiting.is_empty();
    if later {
        queue.shut = Some(how);
    }
    later
}

/// There is news of the connection.
pub fn serve(inside: &Inside) {
    for sends in [false, true] {
        let line = line_of(inside, sends);
        let mut queue = line.lock();
        if queue.busy {
            continue;
        }
        match advance(inside, &mut queue) {
            After::NotYet => {}
            After::ForBase => hand_over(inside, sends, &mut queue),
            After::Empty => {
                if sends {
                    progress::rest(inside);
                }
                shut_now(inside, queue);
            }
        }
    }
}

/// In a thread of the line's own: until nobody is left, or the connection is plain. Each round comes inside for itself, and makes the
/// step of promotion that is due: that needs to be alone there.
fn serve_alone(pin: &Pin, sends: bool) {
    // The close waits until the line is not busy.
    while let Some(inside) = pin.slot.inside() {
        inside.engaged();
        let mut queue = line_of(&inside, sends).lock();
        match advance(&inside, &mut queue) {
            After::NotYet => {
                drop(queue);
                wait_a_while(&inside, if sends { Ready::OUT } else { Ready::IN });
            }
            After::ForBase => return hand_over(&inside, sends, &mut queue),
            After::Empty => {
                queue.set_busy(false);
                free();
                return shut_now(&inside, queue);
            }
        }
    }
}

/// Nobody is left in line: the shutdown that waited for that, if there is one. The program was told that it is done.
fn shut_now(inside: &Inside, mut queue: Held<'_>) {
    let shut = queue.shut.take();
    drop(queue);
    if let Some(how) = shut {
        let _ = life::shut_down(inside, how);
    }
}

/// A line is not busy any more.
fn free() {
    let _operations = locked(&PENDING);
    DONE.notify_all();
}

/// The worker gives the rest to the base socket.
fn hand_over(inside: &Inside, sends: bool, queue: &mut Held<'_>) {
    queue.set_busy(true);
    let i = inside.clone();
    port::run(move || pass_on(&i, sends));
}

fn pass_on(inside: &Inside, sends: bool) {
    loop {
        let mut queue = line_of(inside, sends).lock();
        let late = match advance(inside, &mut queue) {
            After::ForBase => queue.take(0),
            After::NotYet | After::Empty => None,
        };
        let Some(late) = late else {
            queue.set_busy(false);
            if !queue.waiting.is_empty() && !drive(inside, sends, &mut queue) {
                // No threads: as a refusal at once, but for the time.
                while let Some(late) = queue.take(0) {
                    late.end(ws::WSAENOBUFS);
                }
            }
            free();
            if !queue.is_taken() {
                shut_now(inside, queue);
            }
            return;
        };
        drop(queue);
        to_base(inside, late);
    }
}

/// How far a line came.
enum After {
    Empty,
    NotYet,
    /// The base socket must do the first one.
    ForBase,
}

/// Carries out all that can be.
fn advance(inside: &Inside, queue: &mut Held<'_>) -> After {
    while let Some(first) = queue.waiting.front_mut() {
        let step = match first.is_over(inside) {
            true => Step::Done,
            false => step(inside, &mut first.way, true),
        };
        match step {
            Step::NotYet => return After::NotYet,
            Step::ForBase => return After::ForBase,
            Step::Done | Step::Failed(_) => {}
        }
        let Some(late) = queue.take(0) else {
            break;
        };
        match step {
            // Our own close ends the stream: no end for the program to be told of.
            _ if late.is_over(inside) => late.abort(),
            Step::Failed(code) if late.way.moved() == 0 || late.way.is_file() => late.end(code),
            _ => late.end(0),
        }
    }
    After::Empty
}

enum Step {
    Done,
    NotYet,
    Failed(Code),
    ForBase,
}

/// Without waiting: as much of an operation as can be done now. `waited`: it was begun before.
fn step(inside: &Inside, way: &mut Way, waited: bool) -> Step {
    let Some(conn) = inside.conn() else {
        return Step::ForBase;
    };
    if way.is_urgent() {
        return match send_is_plain(inside) {
            true => Step::ForBase,
            false => Step::NotYet,
        };
    }
    let descriptor = inside.body().fd();
    loop {
        let result = match conn.is_engaged() {
            true => match carried(inside, conn, way) {
                Err(Fault::UseKernel) => {
                    conn.settle(&inside.socket());
                    match descriptor {
                        Some(fd) => plain(inside, fd, conn, way),
                        None if conn.is_engaged() => Err(Fault::WouldBlock),
                        None => return after_reset(inside, way),
                    }
                }
                Err(Fault::WouldBlock) => {
                    match conn.settle(&inside.socket()) {
                        true => return Step::NotYet,
                        // It is plain by now.
                        false => continue,
                    }
                }
                other => other,
            },
            false => match descriptor {
                Some(fd) => plain(inside, fd, conn, way),
                None => return after_reset(inside, way),
            },
        };
        return match result {
            // wineserver may have taken the error off the socket.
            Ok(true) if waited && is_at_end(inside, conn, way) && was_reset(inside, conn) => {
                reset(inside, true)
            }
            Ok(true) if way.pauses() => Step::NotYet,
            Ok(true) => match way.goes_on() {
                Ok(true) => continue,
                Ok(false) => Step::Done,
                Err(code) => Step::Failed(code),
            },
            Ok(false) => continue,
            Err(Fault::WouldBlock) => Step::NotYet,
            Err(Fault::Interrupted) => continue,
            Err(_) if way.moved() > 0 && !way.is_file() => Step::Done,
            Err(Fault::Reset) if !way.sends && !conn.end().has(flag::CORRUPT) => {
                reset(inside, waited)
            }
            Err(fault) => Step::Failed(code_of(fault, false)),
        };
    }
}

/// Did a receive come to the end of the stream? One without room has nothing to show for it.
fn is_at_end(inside: &Inside, conn: &Conn, way: &Way) -> bool {
    let unread = || match conn.is_engaged() {
        true => conn.readable_bytes(&inside.socket()),
        false => inside.socket().queued(),
    };
    way.is_end() || way.is_without_room() && unread() == 0
}

/// A reset is told to one receive; for those after it the stream is at its end.
fn reset(inside: &Inside, waited: bool) -> Step {
    let told = inside.body().io.reset_told.swap(true, AcqRel);
    match reset_answer(waited) {
        Err(code) if !told => Step::Failed(code),
        _ => Step::Done,
    }
}

/// Was the end of the stream a reset? The kernel knows of no other end both ways, if this one has not shut its own.
fn was_reset(inside: &Inside, conn: &Conn) -> bool {
    let shut = conn.end().has(flag::WRITE_SHUT) || inside.body().io.has_shut.load(Acquire);
    match conn.is_engaged() {
        true => conn.peer_aborted(),
        false => !shut && inside.socket().poll().intersects(Ready::HUP),
    }
}

/// Without a descriptor, the base socket does it now. A reset that came meanwhile is this operation's to tell: Wine reads
/// it as end-of-file for calls that are made after it.
fn after_reset(inside: &Inside, way: &Way) -> Step {
    let now = inside.socket().poll();
    // wineserver may have taken the error off the socket.
    let was_reset = now.intersects(Ready::ERR)
        || now.intersects(Ready::HUP | Ready::RDHUP)
            && inside.conn().is_some_and(Conn::peer_aborted);
    if way.sends || !was_reset {
        return Step::ForBase;
    }
    inside.socket().take_error();
    reset(inside, true)
}

/// Through the engine. True: all that the program wants.
fn carried(inside: &Inside, conn: &Conn, way: &mut Way) -> Result<bool, Fault> {
    let shut = if way.sends {
        flag::WRITE_SHUT
    } else {
        flag::READ_SHUT
    };
    if conn.end().has(shut) {
        return Err(Fault::Other(ws::WSAESHUTDOWN));
    }
    let k = inside.socket();
    let mut rest = way.rest();
    let (at, len) = (rest.as_mut_ptr(), rest.len());
    if way.sends {
        // SAFETY: the program's buffers, checked; `IoSlice` is promised to have WSABUF's layout.
        let bufs = unsafe { std::slice::from_raw_parts(at.cast::<IoSlice>(), len) };
        let sent = conn.send(&k, bufs, SendOptions { dont_wait: true });
        events::after_send(inside, conn, sent);
        way.done += sent?;
        return Ok(way.done == way.total());
    }
    if way.total() == 0 {
        return way.waits_for(|kernel| conn.ready(&k, kernel.then(|| k.poll())));
    }
    let o = RecvOptions {
        dont_wait: true,
        peek: way.peeks(),
        wait_all: way.waits_for_all(),
    };
    // SAFETY: as above; only this operation writes there.
    let bufs = unsafe { std::slice::from_raw_parts_mut(at.cast::<IoSliceMut>(), len) };
    let got = conn.recv(&k, bufs, o)?;
    events::after_recv(inside, conn);
    way.done += got;
    Ok(got == 0 || way.is_enough())
}

/// On the stream, by its descriptor. True: all that the program wants.
fn plain(inside: &Inside, fd: &Fd, conn: &Conn, way: &mut Way) -> Result<bool, Fault> {
    let rest = way.rest();
    if way.sends {
        // SAFETY: the program's buffers, checked.
        let sent = unsafe { fd.send_many(&rest) };
        if sent == Err(Fault::WouldBlock) {
            events::after_plain_block(inside);
        }
        let sent = sent?;
        conn.count_plain(sent, 0);
        way.done += sent;
        return Ok(way.done == way.total());
    }
    if way.total() == 0 {
        return way.waits_for(|_| fd.poll());
    }
    let got = match rest.iter().find(|b| b.len > 0) {
        // Only what is received through the lower provider lets it signal the next arrival.
        Some(b) if inside.body().is_selected() => {
            // SAFETY: the program's buffer, checked.
            let buf = unsafe { std::slice::from_raw_parts_mut(b.buf, b.len as usize) };
            inside.socket().recv(buf, way.peeks())
        }
        // SAFETY: as above.
        _ => unsafe { fd.recv_many(&rest, way.peeks()) },
    };
    events::after_plain_recv(inside);
    let got = got?;
    if !way.peeks() {
        conn.count_plain(0, got);
    }
    way.done += got;
    Ok(got == 0 || way.is_enough())
}

/// The base socket does the rest.
fn to_base(inside: &Inside, late: Late) {
    if late.is_over(inside) {
        return late.abort();
    }
    if late.way.done > 0 && !late.way.sends {
        return late.end(0);
    }
    if late.way.is_file() {
        // Its connection had a descriptor.
        return late.end(ws::WSAECONNABORTED);
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
