//! One operation: our OVERLAPPED, and how the program's is finished.
//!
//! An [`Op`] is referred to by [`PENDING`] until the program was told, and by the packet that the base socket's completion
//! brings ([`packet`]). Who takes `held` out tells the program; the thread that starts the operation has it locked while
//! it does, so that the worker can't be first.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex};

use gm::Role;
use windows_sys::Win32::Foundation::{HANDLE, STATUS_HANDLES_CLOSED, STATUS_PENDING};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET};
use windows_sys::Win32::System::IO::{CancelIoEx, OVERLAPPED};
use windows_sys::Win32::System::Threading::{ResetEvent, SetEvent};

use super::{Request, line, port};
use crate::answer::Code;
use crate::provider::{self, upcalls};
use crate::slot::{Body, Inside, Pin, locked};

/// The operations that are not told of yet, by the program's OVERLAPPED.
pub static PENDING: Mutex<Operations> = Mutex::new(BTreeMap::new());
pub type Operations = BTreeMap<usize, Arc<Op>>;
/// One more is.
pub static DONE: Condvar = Condvar::new();

static BEGUN: AtomicU64 = AtomicU64::new(0);

/// What an operation does when it succeeds.
pub enum Kind {
    Receive,
    /// Receives no byte of the stream: MSG_PEEK, MSG_OOB.
    Look,
    Send,
    /// AcceptEx, with the socket that gets the connection.
    Accept(Option<Inside>),
    /// ConnectEx: the bytes are its first ones.
    Connect,
    /// What it returns at once and what its completion tells are two counts of bytes.
    Ioctl,
    Other,
}

impl Kind {
    pub fn receive(flags: u32) -> Self {
        if flags & (ws::MSG_PEEK | ws::MSG_OOB) as u32 != 0 {
            Kind::Look
        } else {
            Kind::Receive
        }
    }
}

impl Kind {
    /// Which of the two lines it belongs to, where each is told of after those before it.
    fn line(&self) -> Option<usize> {
        match self {
            Kind::Receive | Kind::Look => Some(0),
            Kind::Send => Some(1),
            _ => None,
        }
    }
}

/// What the lower provider is called with instead of the program's places.
pub struct Places {
    pub ov: *mut OVERLAPPED,
    pub bytes: *mut u32,
    pub flags: *mut u32,
}

/// The result of a call that succeeded at once.
pub struct Now {
    pub bytes: u32,
    pub flags: u32,
}

/// What it keeps alive, until it is told of.
struct Held {
    pin: Pin,
    /// While the lower provider works on it, the connection is not promoted.
    _inside: Option<Inside>,
    kind: Kind,
}

#[repr(C)]
pub struct Op {
    /// First, since its address is what the packet brings.
    own: UnsafeCell<OVERLAPPED>,
    bytes: UnsafeCell<u32>,
    flags: UnsafeCell<u32>,
    request: Request,
    slot: usize,
    /// Of [`Kind::line`].
    line: Option<usize>,
    /// In the order of the program's calls.
    number: u64,
    cancelled: AtomicBool,
    /// Bytes that went through the engine before the lower provider got the rest; the engine counts them itself.
    carried: AtomicU32,
    held: Mutex<Option<Held>>,
    /// For a base socket that is not on our port.
    pub substitute: Mutex<Option<port::Substitute>>,
}

// SAFETY: the pointers are the program's, good in every thread until the completion; the cells belong to the lower provider
// while it works, and then to the one thread that takes `held` out.
unsafe impl Send for Op {}
// SAFETY: as above.
unsafe impl Sync for Op {}

/// How the lower provider took a call.
pub enum Issued {
    Done(Now),
    Pending,
    /// It failed, and nobody was told.
    Failed(Code),
}

/// What operations said that ended with an error or with flags, by the program's OVERLAPPED, until that begins another one. The
/// structure itself has no place for it: which status a Winsock DLL writes for an error is not documented.
static TOLD: Mutex<BTreeMap<usize, (Code, u32)>> = Mutex::new(BTreeMap::new());
/// How many of these there are.
static TOLD_COUNT: AtomicUsize = AtomicUsize::new(0);
/// More are of structures that are gone for long.
const TOLD_MOST: usize = 1 << 16;

/// The error and the flags of this OVERLAPPED's operation; `None`: it succeeded without any, or is not one of ours.
pub fn told(ov: usize) -> Option<(Code, u32)> {
    if TOLD_COUNT.load(Acquire) == 0 {
        return None;
    }
    locked(&TOLD).get(&ov).copied()
}

fn set_told(ov: usize, what: Option<(Code, u32)>) {
    if what.is_none() && TOLD_COUNT.load(Acquire) == 0 {
        return;
    }
    let mut all = locked(&TOLD);
    match what {
        Some(what) => {
            all.insert(ov, what);
        }
        None => {
            all.remove(&ov);
        }
    }
    if all.len() > TOLD_MOST {
        all.pop_first();
    }
    TOLD_COUNT.store(all.len(), Release);
}

/// Makes an overlapped call of the lower provider. An error is what the program's call returns, WSA_IO_PENDING included.
pub fn start(
    inside: Inside,
    r: Request,
    kind: Kind,
    flags: u32,
    call: impl FnOnce(&Places) -> Result<(), Code>,
) -> Result<Now, Code> {
    // A program that wants no packet for a success at once would get one from a Winsock DLL that knows nothing of that.
    let says_done = r.routine.is_some() || provider::is_known();
    let op = Op::begin(&inside, r, kind, flags, Some(inside.clone()));
    match op.issue(call) {
        Issued::Done(now) if says_done => Ok(now),
        Issued::Done(_) | Issued::Pending => Err(ws::WSA_IO_PENDING),
        Issued::Failed(code) => {
            op.give_up();
            Err(code)
        }
    }
}

/// An operation that was done otherwise, successfully.
pub fn tell_at_once(inside: &Inside, r: Request, bytes: u32) {
    Op::begin(inside, r, Kind::Other, 0, None).finish(0, bytes, 0);
}

/// The base socket's completion: whether the packet says that all is well, and its bytes.
///
/// # Safety
/// What our completion port gave: the reference that [`Op::issue`] left to it.
pub unsafe fn packet(own: *const OVERLAPPED, good: bool, bytes: u32) {
    // SAFETY: by the caller; the OVERLAPPED is an operation's first field.
    let op = unsafe { Arc::from_raw(own.cast::<Op>()) };
    let mut held = locked(&op.held);
    if let Some(h) = held.take() {
        let (mut code, mut now) = op.outcome(h.pin.body());
        if code == ws::WSA_IO_INCOMPLETE {
            // Wine: the thread that made the call ended meanwhile, and nobody wrote our structure.
            code = if good { 0 } else { ws::WSA_OPERATION_ABORTED };
            now.bytes = bytes;
        }
        op.tell(h, code, now);
    }
}

impl Op {
    /// The program's OVERLAPPED says "pending" from here on. `keep`: stays inside until it is told of.
    pub fn begin(
        inside: &Inside,
        r: Request,
        kind: Kind,
        flags: u32,
        keep: Option<Inside>,
    ) -> Arc<Self> {
        // SAFETY: the program's structure, valid until the completion. Its event is reset as the kernel would do; with a
        // completion routine that field is the program's own.
        unsafe {
            AtomicUsize::from_ptr(&raw mut (*r.ov).InternalHigh).store(0, Relaxed);
            AtomicUsize::from_ptr(&raw mut (*r.ov).Internal)
                .store(STATUS_PENDING as usize, Release);
            let event = (*r.ov).hEvent as usize & !1;
            if r.routine.is_none() && event != 0 {
                ResetEvent(event as HANDLE);
            }
        }
        let io = &inside.body().io;
        io.pending.fetch_add(1, AcqRel);
        let line = kind.line();
        if let Some(line) = line {
            io.begun[line].fetch_add(1, AcqRel);
        }
        let key = r.ov as usize;
        set_told(key, None);
        let op = Arc::new(Self {
            own: UnsafeCell::new(OVERLAPPED::default()),
            bytes: UnsafeCell::new(0),
            flags: UnsafeCell::new(flags),
            request: r,
            slot: inside.slot.context(),
            line,
            number: BEGUN.fetch_add(1, Relaxed),
            cancelled: AtomicBool::new(false),
            carried: AtomicU32::new(0),
            held: Mutex::new(Some(Held {
                pin: inside.pin(),
                _inside: keep,
                kind,
            })),
            substitute: Mutex::new(None),
        });
        locked(&PENDING).insert(key, op.clone());
        op
    }

    pub fn own(&self) -> *mut OVERLAPPED {
        self.own.get()
    }

    fn is_of(&self, inside: &Inside) -> bool {
        self.slot == inside.slot.context()
    }

    /// Was it begun by this handle of the socket?
    pub fn is_by(&self, inside: &Inside, s: SOCKET) -> bool {
        self.is_of(inside) && self.request.s == s
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Acquire)
    }

    /// Cancels a socket's operation with this OVERLAPPED, or all of them, in the order in which they began.
    /// True: there were some.
    pub fn cancel_of(inside: &Inside, ov: *const OVERLAPPED) -> bool {
        let these = |op: &Op| ov.is_null() || op.request.ov.cast_const() == ov;
        Self::cancel_these(inside, these)
    }

    /// Cancels those that were begun by this handle.
    pub fn cancel_by(inside: &Inside, s: SOCKET) {
        Self::cancel_these(inside, |op| op.request.s == s);
    }

    fn cancel_these(inside: &Inside, these: impl Fn(&Op) -> bool) -> bool {
        // Their own references keep our structures where they are.
        let mut found: Vec<_> = locked(&PENDING)
            .values()
            .filter(|op| op.is_of(inside) && these(op))
            .cloned()
            .collect();
        found.sort_by_key(|op| op.number);
        for op in &found {
            op.cancel(inside.body().base);
            line::leave(inside, op);
        }
        !found.is_empty()
    }

    pub fn cancel(&self, base: SOCKET) {
        self.cancelled.store(true, Release);
        // SAFETY: only a value for the lower provider; the caller's reference keeps it where it is.
        unsafe { CancelIoEx(base as HANDLE, self.own()) };
    }

    /// Makes the lower provider's call.
    pub fn issue(self: &Arc<Self>, call: impl FnOnce(&Places) -> Result<(), Code>) -> Issued {
        let mut held = locked(&self.held);
        let ready = match &*held {
            Some(h) => port::prepare(self, h.pin.body()),
            None => Err(ws::WSA_OPERATION_ABORTED),
        };
        if let Err(code) = ready {
            return Issued::Failed(code);
        }
        let places = Places {
            ov: self.own(),
            bytes: self.bytes.get(),
            flags: self.flags.get(),
        };
        // The packet's reference.
        let raw = Arc::into_raw(self.clone());
        let code = match call(&places) {
            Ok(()) => 0,
            Err(ws::WSA_IO_PENDING) => {
                if let Some(h) = held.as_ref().filter(|_| self.is_cancelled()) {
                    // Asked for before the lower provider knew of it.
                    self.cancel(h.pin.body().base);
                }
                return Issued::Pending;
            }
            Err(code) => code,
        };
        // SAFETY: the lower provider has returned without keeping it, but for a warning, which it has written already.
        let status = unsafe { (*self.own()).Internal } as u32;
        let warning = status >> 30 == 2;
        if code != 0 && !warning {
            if port::withdraw(self) {
                // SAFETY: no packet comes, so this is its reference.
                drop(unsafe { Arc::from_raw(raw) });
            }
            return Issued::Failed(code);
        }
        // SAFETY: done: the lower provider writes there no more.
        let mut now = unsafe {
            Now {
                bytes: *self.bytes.get(),
                flags: *self.flags.get(),
            }
        };
        if warning {
            // SAFETY: as above.
            now.bytes = unsafe { (*self.own()).InternalHigh } as u32;
        }
        if let Some(h) = held.as_ref()
            && h.kind
                .line()
                .is_some_and(|line| h.pin.body().io.begun[line].load(Acquire) > 1)
        {
            // One that began before is not told of yet: this one's packet comes behind that one's.
            return Issued::Pending;
        }
        let (bytes, flags) = (now.bytes, now.flags);
        if matches!(held.as_ref().map(|h| &h.kind), Some(Kind::Ioctl)) {
            // SAFETY: as above.
            now.bytes = unsafe { (*self.own()).InternalHigh } as u32;
        }
        if let Some(h) = held.take() {
            self.tell(h, code, now);
        }
        match code {
            0 => Issued::Done(Now { bytes, flags }),
            // A datagram that was cut. Wine says so at once, and with a packet too unless success is to bring none (and
            // that is what programs set there). With ours they don't set it, and none expects both.
            _ => Issued::Pending,
        }
    }

    /// Tells the program, unless that was done.
    pub fn finish(&self, code: Code, bytes: u32, flags: u32) {
        let held = locked(&self.held).take();
        if let Some(h) = held {
            self.tell(h, code, Now { bytes, flags });
        }
    }

    pub fn set_carried(&self, bytes: usize) {
        self.carried.store(bytes as u32, Relaxed);
    }

    /// The call fails: nobody is told of it but by its result.
    pub fn give_up(&self) {
        let held = locked(&self.held).take();
        if let Some(h) = held {
            self.forget(h.pin.body());
        }
    }

    /// What the lower provider says of a completed operation.
    fn outcome(&self, b: &Body) -> (Code, Now) {
        let (mut bytes, mut flags, mut code) = (0, 0, 0);
        // SAFETY: our own structure, completed; out-pointers to locals.
        let ok = unsafe {
            (b.lower.get_overlapped_result)(
                b.base,
                self.own(),
                &mut bytes,
                0,
                &mut flags,
                &mut code,
            )
        };
        if ok != 0 {
            return (0, Now { bytes, flags });
        }
        // SAFETY: as above.
        let (status, high) = unsafe { ((*self.own()).Internal, (*self.own()).InternalHigh) };
        if status as i32 == STATUS_HANDLES_CLOSED {
            // Wine's word for what Windows calls cancelled.
            code = ws::WSA_OPERATION_ABORTED;
        } else if code == ws::WSAENOTSOCK || code == ws::WSANOTINITIALISED {
            // The base socket is closed already; the status is there all the same.
            code = spi::errors::to_wsa(status as i32);
            bytes = high as u32;
        }
        (code, Now { bytes, flags })
    }

    /// Counts, and finishes the program's OVERLAPPED.
    fn tell(&self, held: Held, code: Code, mut now: Now) {
        if code == 0 {
            account(&held, now.bytes);
        }
        now.bytes += self.carried.load(Relaxed);
        let r = &self.request;
        if code != 0 || now.flags != 0 {
            set_told(r.ov as usize, Some((code, now.flags)));
        }
        // SAFETY: the program's structure, valid until it is told.
        unsafe {
            match r.routine {
                Some(routine) => self.queue(routine, code, &now),
                None => self.complete(&held.pin, code, now.bytes),
            }
        }
        self.forget(held.pin.body());
    }

    /// # Safety
    /// The program's structure is valid.
    unsafe fn complete(&self, pin: &Pin, code: Code, bytes: u32) {
        let r = &self.request;
        let s = pin.slot.carrier(r.s);
        let mut error = 0;
        // SAFETY: by the caller. It writes the status, then signals.
        unsafe {
            if ws::WPUCompleteOverlappedRequest(s, r.ov, code as u32, bytes, &mut error) == 0 {
                return;
            }
            // All handles are closed: the event is all there can be.
            let event = (*r.ov).hEvent as usize & !1;
            self.write_status(code, bytes);
            if event != 0 {
                SetEvent(event as HANDLE);
            }
        }
    }

    /// # Safety
    /// The program's structure is valid.
    unsafe fn write_status(&self, code: Code, bytes: u32) {
        let ov = self.request.ov;
        let status = spi::errors::to_ntstatus(code) as u32 as usize;
        // SAFETY: by the caller. `Internal` last: waiters look at it.
        unsafe {
            AtomicUsize::from_ptr(&raw mut (*ov).InternalHigh).store(bytes as usize, Relaxed);
            AtomicUsize::from_ptr(&raw mut (*ov).Internal).store(status, Release);
        }
    }

    /// Has the completion routine run in the program's thread.
    ///
    /// # Safety
    /// The program's structure is valid.
    unsafe fn queue(&self, routine: Routine, code: Code, now: &Now) {
        let r = &self.request;
        // SAFETY: by the caller.
        unsafe { self.write_status(code, now.bytes) };
        let Some(up) = upcalls() else { return };
        let context = Box::into_raw(Box::new(Told {
            routine,
            code,
            bytes: now.bytes,
            ov: r.ov,
            flags: now.flags,
        }));
        let mut error = 0;
        // SAFETY: ws2_32's own function; the context is `run`'s.
        if unsafe { (up.queue_apc)(&r.thread, Some(run), context as usize, &mut error) } != 0 {
            // The thread has ended, and its routines with it.
            // SAFETY: nobody else has it.
            drop(unsafe { Box::from_raw(context) });
        }
    }

    /// Over. The program may have used its OVERLAPPED for another operation already.
    fn forget(&self, b: &Body) {
        let key = self.request.ov as usize;
        let mut operations = locked(&PENDING);
        let own = operations
            .get(&key)
            .is_some_and(|op| std::ptr::eq(Arc::as_ptr(op), self));
        let last = if own { operations.remove(&key) } else { None };
        if let Some(line) = self.line {
            b.io.begun[line].fetch_sub(1, AcqRel);
        }
        b.io.pending.fetch_sub(1, AcqRel);
        DONE.notify_all();
        drop(operations);
        drop(last);
    }
}

/// The engine's books.
fn account(held: &Held, bytes: u32) {
    let n = bytes as usize;
    let conn = match &held.kind {
        Kind::Accept(taken) => taken.as_ref().and_then(Inside::conn),
        _ => held.pin.body().conn.as_ref(),
    };
    let Some(conn) = conn else { return };
    match held.kind {
        Kind::Receive if n > 0 => conn.count_plain(0, n),
        Kind::Send | Kind::Connect if n > 0 => conn.count_plain(n, 0),
        Kind::Accept(_) => {
            if conn.end().role() == Role::Fresh {
                conn.end().role.store(Role::Server as u32, Relaxed);
            }
            if n > 0 {
                conn.count_plain(0, n);
            }
        }
        _ => {}
    }
}

type Routine = unsafe extern "system" fn(u32, u32, *mut OVERLAPPED, u32);

/// What a completion routine is called with.
struct Told {
    routine: Routine,
    code: Code,
    bytes: u32,
    ov: *mut OVERLAPPED,
    flags: u32,
}

unsafe extern "system" fn run(context: usize) {
    // SAFETY: made by `queue` for this call alone.
    let t = unsafe { Box::from_raw(context as *mut Told) };
    let Told {
        routine,
        code,
        bytes,
        ov,
        flags,
    } = *t;
    // SAFETY: the program's routine, in its own thread.
    unsafe { routine(code as u32, bytes, ov, flags) };
}
