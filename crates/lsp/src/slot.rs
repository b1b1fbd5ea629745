//! The sockets of this process: slots that are never freed, found through the context of a carrier handle.
//!
//! 1. A slot belongs to one base socket from [`make`] to the close of its last carrier. Every call goes *inside* first
//!    ([`enter`]), and what it finds there lives until it leaves.
//! 2. The last to leave a closed slot drops its body; then the slot is used again. A thread that lost a race with
//!    closesocket finds another socket's slot at most, and the list of carriers tells.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, fence};
use std::sync::{Mutex, MutexGuard, OnceLock};

use gm::end::flag;
use gm::{Path, Role};
use sockets::{Conn, Gate, Given};
use windows_sys::Win32::Networking::WinSock::{self as ws, SOCKET};
use windows_sys::Win32::System::IO::OVERLAPPED;

use crate::answer::Code;
use crate::ctx;
use crate::events::Events;
use crate::kernel::{self, Fd, Socket};
use crate::provider::{self, Layer, Lower};

/// A poisoned lock is a panic of ours elsewhere; what it protects is still sound enough to go on.
pub fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One base socket and what we know of it.
pub struct Body {
    pub base: SOCKET,
    pub layer: &'static Layer,
    pub lower: &'static Lower,
    pub family: i32,
    pub kind: i32,
    pub protocol: i32,
    /// TCP with a usable node: may be carried.
    pub conn: Option<Conn>,
    /// It never will be: the program's handle is the base socket itself.
    pub own: bool,
    /// Made with WSA_FLAG_OVERLAPPED: without it Winsock ignores OVERLAPPED structures.
    pub overlapped: bool,
    pub events: Mutex<Events>,
    pub listener: Mutex<Option<gm::node::Entry>>,
    pub io: crate::overlapped::State,
    nonblocking: AtomicBool,
    /// Network events are wanted: see `events`.
    selected: AtomicBool,
    /// They are, or some have been told of: what enables them again must be noted.
    follows: AtomicBool,
    /// The lower provider is known to signal the next arrival on the base socket.
    pub base_tells: AtomicBool,
    closing: AtomicBool,
    /// What the lower provider said once of a reset: see `kernel::base`.
    pub broken: AtomicU32,
    fd: OnceLock<Option<Fd>>,
}

impl Body {
    /// The Linux descriptor, where there is one.
    pub fn fd(&self) -> Option<&Fd> {
        self.fd
            .get_or_init(|| {
                if kernel::is_linux() {
                    Fd::of(self.base)
                } else {
                    None
                }
            })
            .as_ref()
    }

    pub fn is_nonblocking(&self) -> bool {
        self.nonblocking.load(Acquire)
    }

    pub fn set_nonblocking(&self, on: bool) {
        if let Some(conn) = &self.conn {
            if on {
                conn.end().set(flag::NONBLOCK);
            } else {
                conn.end().clear(flag::NONBLOCK);
            }
        }
        // Last: a call under way that finds this set tells by the flag that it was set since.
        self.nonblocking.store(on, Release);
    }

    pub fn is_selected(&self) -> bool {
        self.selected.load(Acquire)
    }

    pub fn set_selected(&self, on: bool) {
        self.selected.store(on, Release);
    }

    #[inline]
    pub fn follows(&self) -> bool {
        self.follows.load(Acquire)
    }

    pub fn set_follows(&self, on: bool) {
        self.follows.store(on, Release);
    }

    /// Another thread is in closesocket: calls that wait give up.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Acquire)
    }
}

pub struct Slot {
    gate: Gate,
    /// Operations that wait, and keep the body without being inside.
    pins: AtomicU32,
    /// The first carrier, and further ones (WSADuplicateSocket); 0: none.
    first: AtomicUsize,
    more: Mutex<Vec<SOCKET>>,
    /// The last carrier, when it is being closed.
    last: AtomicUsize,
    /// Carriers, and duplicates that are announced but not made yet.
    holders: AtomicU32,
    dead: AtomicU32,
    /// 1 + the end that the slot had last; 0: none yet.
    hint: AtomicU32,
    body: UnsafeCell<MaybeUninit<Body>>,
}

// SAFETY: `body` is written only while nobody is inside (see `make`, `clean`), and read only from inside.
unsafe impl Sync for Slot {}
// SAFETY: as above; a slot is not bound to a thread.
unsafe impl Send for Slot {}

static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
/// Every slot ever made.
static ALL: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
/// The sockets whose handles are the program's own, by these.
static OWN: Mutex<BTreeMap<SOCKET, &'static Slot>> = Mutex::new(BTreeMap::new());

/// A call that is inside a socket.
pub struct Inside {
    pub slot: &'static Slot,
}

impl Inside {
    pub fn body(&self) -> &Body {
        // SAFETY: inside a slot that was not dead when we entered: initialised, and not dropped before we leave.
        unsafe { (*self.slot.body.get()).assume_init_ref() }
    }

    pub fn conn(&self) -> Option<&Conn> {
        self.body().conn.as_ref()
    }

    pub fn socket(&self) -> Socket<'_> {
        Socket(self.body())
    }

    /// The connection, if it is carried (or about to be). Makes the promotion step that is due, if any.
    #[inline]
    pub fn engaged(&self) -> Option<&Conn> {
        let conn = self.conn()?;
        if conn.is_engaged() {
            let there = conn.end().tx_path() == Path::Ring || conn.settle(&self.socket());
            return there.then_some(conn);
        }
        let ctx = ctx::get()?;
        let network = || Some(gm::os::network_namespace());
        (conn.wants_step(&ctx.node, network) && self.step(conn)).then_some(conn)
    }

    #[cold]
    fn step(&self, conn: &Conn) -> bool {
        let Some(ctx) = ctx::get() else { return false };
        if !self.slot.gate.try_alone() {
            return false;
        }
        let engaged = conn.step(&ctx.node, &self.socket());
        if engaged {
            crate::options::own_push(self.body(), conn);
        }
        self.slot.gate.not_alone();
        if engaged {
            crate::overlapped::on_engaged(self);
            crate::events::on_engaged(self, conn);
        }
        engaged
    }

    /// Back to TCP for good, because of a call that is not carried.
    pub fn hand_back(&self, why: gm::Reason) {
        if let (Some(conn), Some(ctx)) = (self.conn(), ctx::get()) {
            // What is left in the ring of a peer that is gone, our own calls still read.
            let _: Given = conn.hand_back(&ctx.node, &self.socket(), why, &mut || ());
        }
    }

    /// An overlapped call on a socket that is the program's own goes to the lower provider as it is.
    #[inline]
    pub fn passes(&self, ov: *const OVERLAPPED) -> Option<&Body> {
        Some(self.body()).filter(|b| b.own && !ov.is_null())
    }

    /// Is no other call inside just now?
    pub fn is_alone(&self) -> bool {
        let alone = self.slot.gate.try_alone();
        if alone {
            self.slot.gate.not_alone();
        }
        alone
    }

    pub fn pin(&self) -> Pin {
        self.slot.pins.fetch_add(1, AcqRel);
        Pin { slot: self.slot }
    }

    /// One more carrier (or the promise of one).
    pub fn hold(&self) {
        self.slot.holders.fetch_add(1, AcqRel);
    }
}

impl Clone for Inside {
    /// Stays inside beyond the call (an overlapped operation).
    fn clone(&self) -> Self {
        self.slot.gate.enter(kernel::yield_now);
        Self { slot: self.slot }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let empty = self.slot.gate.leave();
        if empty && self.slot.dead.load(Acquire) == 1 {
            self.slot.clean();
        }
    }
}

/// Keeps a socket's body while an operation waits, without being inside: promotion needs to be alone there.
pub struct Pin {
    pub slot: &'static Slot,
}

impl Pin {
    pub fn body(&self) -> &Body {
        // SAFETY: pinned from inside, and what is pinned is not dropped.
        unsafe { (*self.slot.body.get()).assume_init_ref() }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let last = self.slot.pins.fetch_sub(1, AcqRel) == 1;
        if last && self.slot.dead.load(Acquire) == 1 {
            self.slot.clean();
        }
    }
}

impl Slot {
    /// What WPUCreateSocketHandle keeps for us.
    pub fn context(&'static self) -> usize {
        std::ptr::from_ref(self).expose_provenance()
    }

    /// # Safety
    /// What [`Slot::context`] gave.
    pub unsafe fn of(context: usize) -> &'static Self {
        // SAFETY: by the caller: an address of a slot, and those are never freed.
        unsafe { &*std::ptr::with_exposed_provenance(context) }
    }

    /// Goes inside, if it is in use.
    pub fn inside(&'static self) -> Option<Inside> {
        self.gate.enter(kernel::yield_now);
        let inside = Inside { slot: self };
        (self.dead.load(Acquire) == 0).then_some(inside)
    }

    /// A carrier that is still this socket's: `s`, or if that is closed (another may have the number by now) another one.
    pub fn carrier(&self, s: SOCKET) -> SOCKET {
        let first = || match self.first.load(Acquire) {
            0 | usize::MAX => None,
            first => Some(first),
        };
        match self.has(s) {
            true => s,
            false => first()
                .or_else(|| locked(&self.more).first().copied())
                .or_else(|| Some(self.last.load(Acquire)).filter(|last| *last != 0))
                .unwrap_or(s),
        }
    }

    fn has(&self, s: SOCKET) -> bool {
        self.first.load(Acquire) == s || locked(&self.more).contains(&s)
    }

    /// The last one is out of a closed socket's slot.
    fn clean(&'static self) {
        // The last inside and the last pin may go at once: each has counted itself out before it looks at the other.
        fence(SeqCst);
        if !self.gate.is_empty()
            || self.pins.load(Acquire) > 0
            || self.dead.compare_exchange(1, 2, AcqRel, Relaxed).is_err()
        {
            return;
        }
        // SAFETY: dead and empty: no reference to the body exists, none can be made.
        let body = unsafe { (*self.body.get()).assume_init_read() };
        if let Some(conn) = &body.conn
            && let Some(ctx) = ctx::get()
        {
            conn.release(&ctx.node);
            ctx.port.free(conn.place().index);
            // The next socket in this slot tries the same end first.
            self.hint.store(conn.place().index + 1, Relaxed);
        }
        drop(body);
        locked(&FREE).push(self);
    }
}

/// Goes inside the socket behind a carrier.
pub fn enter(s: SOCKET) -> Result<Inside, Code> {
    let mut context = 0;
    let mut code = ws::WSAENOTSOCK;
    let query = provider::upcalls()
        .ok_or(ws::WSANOTINITIALISED)?
        .query_context;
    // SAFETY: ws2_32's own function; out-pointers to locals.
    if unsafe { query(s, &mut context, &mut code) } != 0 || context == 0 {
        return by_own_handle(s).ok_or(code);
    }
    // SAFETY: what ws2_32 keeps for a handle of ours.
    let slot = unsafe { Slot::of(context) };
    slot.inside().filter(|_| slot.has(s)).ok_or(ws::WSAENOTSOCK)
}

fn by_own_handle(s: SOCKET) -> Option<Inside> {
    let slot = locked(&OWN).get(&s).copied()?;
    slot.inside().filter(|_| slot.has(s))
}

/// Before a handle is closed that is the program's own: the number may come back.
pub fn forget_own(s: SOCKET) {
    locked(&OWN).remove(&s);
}

/// Goes inside a slot whose address came back through the program's hands.
pub fn by_context(context: usize) -> Option<Inside> {
    let slot = *locked(&ALL).iter().find(|s| s.context() == context)?;
    slot.inside()
}

/// Every live socket.
pub fn each(mut f: impl FnMut(&Inside)) {
    let all: Vec<&'static Slot> = locked(&ALL).clone();
    for inside in all.into_iter().filter_map(Slot::inside) {
        f(&inside);
    }
}

/// What is known of a base socket when its slot is made.
pub struct Fresh {
    pub base: SOCKET,
    pub layer: &'static Layer,
    pub lower: &'static Lower,
    pub family: i32,
    pub kind: i32,
    pub protocol: i32,
    pub overlapped: bool,
    pub role: Role,
    pub nonblocking: bool,
    /// Never to be carried: it came from elsewhere.
    pub keep_tcp: Option<gm::Reason>,
}

impl Fresh {
    /// Of a kind that may be carried?
    pub fn is_carriable(&self) -> bool {
        can_be_carried(self.family, self.kind, self.protocol)
    }
}

/// TCP, with a usable node.
pub fn can_be_carried(family: i32, kind: i32, protocol: i32) -> bool {
    let inet = family == i32::from(ws::AF_INET) || family == i32::from(ws::AF_INET6);
    let tcp = kind == ws::SOCK_STREAM && (protocol == 0 || protocol == ws::IPPROTO_TCP);
    inet && tcp && ctx::get().is_some()
}

/// Puts a base socket into a slot. It has no carrier yet; the caller is inside.
pub fn make(f: Fresh) -> Inside {
    let slot = locked(&FREE).pop().unwrap_or_else(|| {
        let slot: &'static Slot = Box::leak(Box::new(Slot {
            gate: Gate::default(),
            pins: AtomicU32::new(0),
            first: AtomicUsize::new(0),
            more: Mutex::new(Vec::new()),
            last: AtomicUsize::new(0),
            holders: AtomicU32::new(0),
            dead: AtomicU32::new(2),
            hint: AtomicU32::new(0),
            body: UnsafeCell::new(MaybeUninit::uninit()),
        }));
        locked(&ALL).push(slot);
        slot
    });
    let own = !f.is_carriable();
    let conn = (!own).then(|| connection(slot, &f)).flatten();
    let body = Body {
        base: f.base,
        layer: f.layer,
        lower: f.lower,
        family: f.family,
        kind: f.kind,
        protocol: f.protocol,
        conn,
        own,
        overlapped: f.overlapped,
        events: Mutex::new(Events::default()),
        listener: Mutex::new(None),
        io: Default::default(),
        nonblocking: AtomicBool::new(false),
        selected: AtomicBool::new(false),
        follows: AtomicBool::new(false),
        base_tells: AtomicBool::new(false),
        closing: AtomicBool::new(false),
        broken: AtomicU32::new(0),
        fd: OnceLock::new(),
    };
    body.set_nonblocking(f.nonblocking);
    // SAFETY: the slot was free: nobody is inside, and its last body was dropped.
    unsafe { (*slot.body.get()).write(body) };
    slot.first.store(0, Relaxed);
    slot.last.store(0, Relaxed);
    locked(&slot.more).clear();
    slot.holders.store(0, Relaxed);
    slot.gate.enter(kernel::yield_now);
    slot.dead.store(0, Release);
    Inside { slot }
}

fn connection(slot: &Slot, f: &Fresh) -> Option<Conn> {
    let ctx = ctx::get()?;
    let hint = slot.hint.load(Relaxed).checked_sub(1);
    let index = ctx.port.allocate(hint, f.role, ctx.node.me().pid).ok()?;
    let end = &ctx.port.ends()[index as usize];
    end.seen_generation
        .store(ctx.node.offers_generation(), Relaxed);
    if let Some(why) = f.keep_tcp {
        end.keep_tcp(why);
    }
    let port = ctx.port.maker();
    Some(Conn::new(end, gm::held::Place { port, index }))
}

impl Inside {
    /// Makes a carrier for the program; a base socket that is the program's own is its carrier, too.
    pub fn give_carrier(&self) -> Result<SOCKET, Code> {
        if self.body().own {
            self.hold();
            let s = self.body().base;
            self.slot.first.store(s, Release);
            let stale = locked(&OWN).insert(s, self.slot);
            if let Some(stale) = stale.and_then(Slot::inside) {
                // Closed behind our back.
                stale.drop_all_carriers();
                stale.bury();
            }
            return Ok(s);
        }
        let create = provider::upcalls()
            .ok_or(ws::WSANOTINITIALISED)?
            .create_handle;
        let mut code = ws::WSAENOBUFS;
        self.hold();
        let id = self.body().layer.info.dwCatalogEntryId;
        // SAFETY: ws2_32's own function; the context is a slot's address.
        let s = unsafe { create(id, self.slot.context(), &mut code) };
        if s == ws::INVALID_SOCKET {
            self.slot.holders.fetch_sub(1, AcqRel);
            if let Some(conn) = self.conn().filter(|_| code == ws::WSAEPROVIDERFAILEDINIT) {
                // No socket can be had of us; the program gets the base provider's.
                conn.end().keep_tcp(gm::Reason::NoHooks);
            }
            return Err(code);
        }
        if self
            .slot
            .first
            .compare_exchange(0, s, AcqRel, Acquire)
            .is_err()
        {
            locked(&self.slot.more).push(s);
        }
        Ok(s)
    }

    /// A carrier is gone. True: it was the last one, and this call is the one that closes the base socket.
    pub fn drop_carrier(&self, s: SOCKET) -> bool {
        if self
            .slot
            .first
            .compare_exchange(s, usize::MAX, AcqRel, Acquire)
            .is_err()
        {
            locked(&self.slot.more).retain(|c| *c != s);
        }
        self.slot.last.store(s, Release);
        self.release()
    }

    /// Has it, or will it have, other carriers than one?
    pub fn has_twins(&self) -> bool {
        self.slot.holders.load(Acquire) > 1
    }

    /// A holder less; see [`Inside::drop_carrier`].
    pub fn release(&self) -> bool {
        let last = self.slot.holders.fetch_sub(1, AcqRel) == 1;
        if last {
            self.body().closing.store(true, Release);
        }
        last
    }

    /// No carrier leads here any more.
    pub fn drop_all_carriers(&self) {
        self.slot.first.store(usize::MAX, Release);
        locked(&self.slot.more).clear();
        self.slot.holders.store(0, Release);
        self.body().closing.store(true, Release);
    }

    /// From now on nobody comes in; the last to leave drops the body.
    pub fn bury(&self) {
        self.slot.dead.store(1, Release);
    }
}
