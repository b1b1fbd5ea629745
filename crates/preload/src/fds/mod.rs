//! Which descriptors are sockets of ours: a table indexed by descriptor, and the slots it points to.
//!
//! Slots are never unmapped, only used again, so a thread that lost a race with close finds a slot, if not its own;
//! the gate and a second look at the table tell. A slot's connection lives from `track` until nobody is inside and no
//! descriptor points to it.

mod fork;
mod leave;
mod met;
mod rest;
mod slot;

use std::ffi::c_int;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicPtr, AtomicUsize};

use gm::held::Place;
use gm::{End, Port, Role};
use sockets::Conn;

use crate::adopt::Came;
use crate::arena::Arena;
use crate::ctx::{self, Ctx};
use crate::kernel::Fd;
use crate::process::vfork;
use crate::{quiet, stdio, thread};

use self::fork::Change;
pub use self::fork::{
    after_fork_in_child, after_fork_in_parent, before_fork, each_slot_once, each_slot_once_of,
    fork_over,
};
pub use self::leave::at_exit;
pub use self::rest::wake_all;
use self::rest::{ASLEEP, CLOSED, LIVE, enter_at_rest, is_in_use};
pub use self::slot::Slot;
use self::slot::new_slot;

/// Descriptors beyond this stay plain.
const FDS_MAX: usize = 1 << 20;
/// Standard input, output and error.
pub const STDIO_FDS: c_int = 3;
const NO_LISTENER: u32 = u32::MAX;

static TABLE: AtomicPtr<AtomicPtr<Slot>> = AtomicPtr::new(std::ptr::null_mut());
static SLOTS: Arena<Slot> = Arena::new();
/// One beyond the largest descriptor ever tracked.
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// The table, if there was memory for it.
#[inline]
fn table() -> Option<&'static [AtomicPtr<Slot>]> {
    let base = TABLE.load(Acquire);
    // SAFETY: mapped below with that many entries, never unmapped; zero pages are null pointers.
    (!base.is_null()).then(|| unsafe { std::slice::from_raw_parts(base, FDS_MAX) })
}

#[cold]
fn make_table() -> bool {
    use rustix::mm::{MapFlags, ProtFlags};
    let bytes = FDS_MAX * size_of::<AtomicPtr<Slot>>();
    let null = std::ptr::null_mut();
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a fresh mapping. Only touched pages take memory.
    let base = unsafe {
        rustix::mm::mmap_anonymous(null, bytes, ProtFlags::READ | ProtFlags::WRITE, flags)
    };
    let Ok(base) = base else { return false };
    if TABLE
        .compare_exchange(std::ptr::null_mut(), base.cast(), AcqRel, Relaxed)
        .is_err()
    {
        // SAFETY: mapped just now, and another thread's is the table.
        let _ = unsafe { rustix::mm::munmap(base, bytes) };
    }
    true
}

#[inline]
fn cell(fd: c_int) -> Option<&'static AtomicPtr<Slot>> {
    // Before the first tracked socket there is nothing to look up, nor a table to make.
    if fd < 0 || fd as usize >= HIGHEST.load(Relaxed) || vfork::is_child() {
        return None;
    }
    table()?.get(fd as usize)
}

/// A call that is inside a connection.
///
/// Two words, so that it is handed on in registers: stored in parts and read as one, it cost 10 ns a call.
pub struct Inside {
    pub slot: &'static Slot,
    /// The descriptor that the hook was given.
    pub number: c_int,
}

impl Inside {
    #[inline]
    pub fn fd(&self) -> Fd {
        Fd::kept_by(self.number, &self.slot.kept)
    }

    #[inline]
    pub fn conn(&self) -> &Conn {
        // SAFETY: inside, and the descriptor pointed here after we entered: the connection is initialised and is not
        // dropped before we leave.
        unsafe { (*self.slot.conn.get()).assume_init_ref() }
    }

    pub fn ctx(&self) -> &'static Ctx {
        ctx::opened().expect("a tracked socket implies an open context")
    }

    /// Is this connection carried (or about to be)? Makes the promotion step that is due, if any.
    #[inline(always)]
    pub fn engaged(&self) -> bool {
        let conn = self.conn();
        if conn.is_engaged() {
            return conn.end().tx_path() == gm::Path::Ring || conn.settle(&self.fd());
        }
        let network = || crate::kernel::network(self.number);
        conn.wants_step(&self.ctx().node, network) && self.step()
    }

    #[cold]
    fn step(&self) -> bool {
        let watched = self.slot.watches.load(Acquire) > 0;
        if crate::uring::hidden() || watched && crate::epoll::is_busy() {
            return false;
        }
        // A signal handler that used this socket while we are alone would wait for its own thread.
        let quiet = quiet::begin();
        if !self.slot.gate.try_alone() {
            return false;
        }
        let engaged = self.conn().step(&self.ctx().node, &self.fd());
        if engaged {
            crate::options::own_push(self);
        }
        self.slot.gate.not_alone();
        drop(quiet);
        if engaged && self.slot.watches.load(Acquire) > 0 {
            crate::epoll::on_engaged(self);
        }
        engaged
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        let_go(self.slot);
    }
}

#[inline]
fn go_inside(slot: &Slot) {
    match thread::has_others() {
        true => slot.gate.enter(rustix::thread::sched_yield),
        false => slot.gate.enter_single(rustix::thread::sched_yield),
    }
}

/// The slot stays what it is until [`release`]. Not by the gate: calls of a handler that count there must be over when the handler
/// is (`Gate::enter_single`).
pub fn keep(slot: &'static Slot) {
    slot.late.fetch_add(1, AcqRel);
}

pub fn release(slot: &'static Slot) {
    slot.late.fetch_sub(1, AcqRel);
    if slot.gate.is_empty() && slot.dead.load(Acquire) == CLOSED {
        slot.clean();
    }
}

#[inline]
pub fn let_go(slot: &'static Slot) {
    let empty = match thread::has_others() {
        true => slot.gate.leave(),
        false => slot.gate.leave_single(),
    };
    if empty && slot.dead.load(Acquire) == CLOSED {
        slot.clean();
    }
}

/// Is `fd` a descriptor of that slot's socket?
pub fn is_of(fd: c_int, slot: &'static Slot) -> bool {
    cell(fd).is_some_and(|c| std::ptr::eq(c.load(Acquire), slot))
}

/// Does an epoll set wait for the socket behind `fd`?
pub fn is_watched(fd: c_int) -> bool {
    // SAFETY: slots are never freed.
    let slot = cell(fd).and_then(|c| unsafe { c.load(Acquire).as_ref() });
    slot.is_none_or(|slot| slot.watches.load(Acquire) > 0)
}

/// Goes inside the socket behind `fd`. `None`: not ours.
#[inline]
pub fn enter(fd: c_int) -> Option<Inside> {
    let cell = cell(fd)?;
    loop {
        let p = cell.load(Acquire);
        if p.is_null() {
            return None;
        }
        // SAFETY: slots are never freed.
        let slot: &'static Slot = unsafe { &*p };
        go_inside(slot);
        let inside = Inside { slot, number: fd };
        if cell.load(Acquire) == p && slot.dead.load(Acquire) == LIVE {
            return Some(inside);
        }
        if cell.load(Acquire) == p {
            // Awake or not there: the slower way tells.
            drop(inside);
            return enter_asleep(fd);
        }
    }
}

/// It is asleep, or closed.
#[cold]
#[inline(never)]
fn enter_asleep(fd: c_int) -> Option<Inside> {
    enter_at_rest(fd).filter(Inside::wake)
}

/// Is `fd` one of ours? Without going inside: only a hint.
#[inline]
pub fn is_tracked(fd: c_int) -> bool {
    cell(fd).is_some_and(|c| !c.load(Relaxed).is_null())
}

/// From now on no descriptor is one of ours.
pub fn follow_nothing() {
    HIGHEST.store(0, Relaxed);
}

/// No descriptor from here on is, or was ever, one of ours.
pub fn limit() -> c_int {
    HIGHEST.load(Relaxed) as c_int
}

/// Starts following a fresh kernel socket. Does nothing if there is no node, or no room: it stays plain.
pub fn track(fd: c_int, role: Role, flags: u32) {
    if vfork::is_child() || crate::process::confine::is_confined() {
        return;
    }
    let Some(ctx) = ctx::get() else { return };
    if fd < 0 || fd as usize >= FDS_MAX {
        return;
    }
    let Some(port) = ctx.port() else { return };
    leave_behind(fd, false);
    let Some(slot) = free_slot() else { return };
    let hint = slot.hint.load(Relaxed);
    let Ok(index) = port.allocate(hint.checked_sub(1), role, ctx.node.me().pid) else {
        SLOTS.give(slot);
        return;
    };
    let end = &port.ends()[index as usize];
    end.set(flags);
    end.descriptor.store(fd as u32 + 1, Relaxed);
    if stdio::is_unseen(fd) {
        end.keep_tcp(gm::Reason::Stdio);
    }
    if ctx::looks_for_races() {
        end.keep_tcp(gm::Reason::Races);
    }
    end.seen_generation
        .store(ctx.node.offers_generation(), Relaxed);
    let place = Place {
        port: port.maker(),
        index,
    };
    slot.begin(port, Conn::new(end, place));
    vfork::note_new();
    let change = Change::begin();
    point(fd, slot);
    drop(change);
    if crate::uring::blind() {
        end.keep_tcp(gm::Reason::Unsupported);
    }
}

/// `fd` is a descriptor of the slot's socket from now on.
fn point(fd: c_int, slot: &'static Slot) {
    HIGHEST.fetch_max(fd as usize + 1, Relaxed);
    if let Some(cell) = table().and_then(|t| t.get(fd as usize)) {
        cell.store(std::ptr::from_ref(slot).cast_mut(), Release);
    }
}

/// Follows a socket that others hold, or held: `end` is in `port`, which is not this process's own, or is from before an
/// exec.
pub fn join(fd: c_int, port: &'static Port, end: &'static End, place: Place, came: Came) {
    let Some(ctx) = ctx::opened() else { return };
    if fd < 0 || fd as usize >= FDS_MAX || crate::process::confine::is_confined() {
        return;
    }
    leave_behind(fd, false);
    let Some(slot) = free_slot() else { return };
    if let Some(known) = holder_of(end, place) {
        SLOTS.give(slot);
        alias(&known, fd);
        if came == Came::Message && end.take_due() {
            end.refs.fetch_sub(1, AcqRel);
        }
        return;
    }
    // Who started this program by a call that we did not see has not counted it.
    if came == Came::Copied || !end.take_due() {
        end.refs.fetch_add(1, AcqRel);
    }
    slot.begin(port, Conn::new(end, place));
    let listens = end.role() == Role::Listener;
    if listens || end.is_promoted() {
        slot.dead.store(ASLEEP, Release);
    }
    if !listens {
        let me = ctx.node.me().pid;
        let before = end.pid.swap(me, Relaxed);
        slot.pid_before
            .store(if before == me { 0 } else { before }, Relaxed);
    }
    end.descriptor.store(fd as u32 + 1, Relaxed);
    vfork::note_new();
    let change = Change::begin();
    point(fd, slot);
    drop(change);
    let plain = match stdio::is_unseen(fd) {
        _ if listens => None,
        true => Some(gm::Reason::Stdio),
        false => ctx::looks_for_races().then_some(gm::Reason::Races),
    };
    if (plain.is_some() || !listens && !rest::may_sleep())
        && let Some(inside) = enter(fd)
        && let Some(why) = plain
    {
        crate::giving::hand_back(&inside, why);
    }
}

/// Goes inside the socket of that cookie, by a descriptor of its own numbering: for a vfork child, which has other
/// descriptors than the table's.
pub fn of_cookie(cookie: u64, fd: c_int) -> Option<Inside> {
    let table = table()?;
    let known = |cell: &AtomicPtr<Slot>| {
        // SAFETY: slots are never freed.
        let slot: &'static Slot = unsafe { cell.load(Acquire).as_ref() }?;
        go_inside(slot);
        let inside = Inside { slot, number: fd };
        let live = is_in_use(slot.dead.load(Acquire));
        (live && inside.conn().end().cookie.load(Relaxed) == cookie).then_some(inside)
    };
    let likely = table.get(fd as usize).and_then(known);
    let all = || table[..HIGHEST.load(Relaxed)].iter().find_map(known);
    likely.or_else(all).filter(|_| cookie != 0)
}

/// Has the slot a descriptor below `fd` of which `f` holds?
pub fn has_lower(fd: c_int, slot: &Slot, f: impl Fn(c_int) -> bool) -> bool {
    slot.fds.load(Acquire) > 1
        && (0..fd).any(|other| {
            let same = cell(other).is_some_and(|c| std::ptr::eq(c.load(Acquire), slot));
            same && f(other)
        })
}

/// The slot by which this process holds `end`, which is at `place`, already.
fn holder_of(end: &End, place: Place) -> Option<Inside> {
    if !met::maybe(end) {
        return None;
    }
    let likely = |fd: &c_int| {
        // SAFETY: slots are never freed.
        let slot = cell(*fd).and_then(|cell| unsafe { cell.load(Acquire).as_ref() });
        slot.is_some_and(|slot| std::ptr::eq(slot.end.load(Relaxed), end))
    };
    (0..HIGHEST.load(Relaxed) as c_int)
        .filter(likely)
        .filter_map(enter_at_rest)
        .find(|inside| inside.conn().place() == place)
}

/// A slot for one more socket, and a table to have it in. `None`: no memory.
fn free_slot() -> Option<&'static Slot> {
    let there = table().is_some() || make_table();
    there.then(|| SLOTS.take(new_slot)).flatten()
}

/// A further descriptor for the same socket.
pub fn alias(inside: &Inside, fd: c_int) {
    if fd < 0 || fd as usize >= FDS_MAX {
        // It would escape us: back to TCP while both are known.
        let why = gm::Reason::TableFull;
        crate::giving::hand_back(inside, why);
        return;
    }
    leave_behind(fd, false);
    inside.slot.fds.fetch_add(1, AcqRel);
    let end = inside.conn().end();
    // Who acts for this process wants one that stays.
    let _ = end
        .descriptor
        .compare_exchange(0, fd as u32 + 1, Relaxed, Relaxed);
    point(fd, inside.slot);
    if inside.conn().end().role() != Role::Listener && stdio::is_unseen(fd) {
        crate::giving::hand_back(inside, gm::Reason::Stdio);
    }
}

/// The descriptor is about to be closed: ends what ends with it. True: it was a socket of ours.
pub fn forget(fd: c_int) -> bool {
    leave_behind(fd, true)
}

/// The kernel just gave this number to something else: what we had under it was closed by a call that we did not see.
#[inline]
pub fn stale(fd: c_int) {
    if is_tracked(fd) {
        leave_behind(fd, false);
    }
}

/// As [`forget`]; `still_open`: the kernel's socket is still what it was, and may be used for ending well.
fn leave_behind(fd: c_int, still_open: bool) -> bool {
    let Some(inside) = enter_at_rest(fd) else {
        return false;
    };
    let Some(cell) = cell(fd) else { return false };
    let slot = std::ptr::from_ref(inside.slot).cast_mut();
    let change = Change::begin();
    if cell
        .compare_exchange(slot, std::ptr::null_mut(), AcqRel, Relaxed)
        .is_err()
    {
        return false;
    }
    let last_here = inside.slot.fds.fetch_sub(1, SeqCst) == 1;
    drop(change);
    let end = inside.conn().end();
    if !last_here && end.descriptor.load(Relaxed) == fd as u32 + 1 {
        let other = of_slot(inside.slot).next();
        end.descriptor
            .store(other.map_or(0, |o| o as u32 + 1), Relaxed);
    }
    if inside.slot.watches.load(Acquire) > 0 {
        crate::epoll::on_close(inside.slot, fd, last_here);
    }
    if last_here {
        let _whole = quiet::uncancelled();
        if !(still_open && inside.outlives_close()) {
            inside.end(still_open);
        }
        inside.slot.dead.store(CLOSED, Release);
    }
    true
}

/// The socket's end is nobody's any more, or another socket's: its descriptors are the kernel's alone from now on.
pub fn abandon(inside: &Inside) {
    let slot = inside.slot;
    for fd in of_slot(slot) {
        let Some(cell) = cell(fd) else { continue };
        let change = Change::begin();
        cell.store(std::ptr::null_mut(), Release);
        let last_here = slot.fds.fetch_sub(1, SeqCst) == 1;
        drop(change);
        if slot.watches.load(Acquire) > 0 {
            crate::epoll::on_close(slot, fd, last_here);
        }
    }
    slot.ends.store(false, Release);
    slot.dead.store(CLOSED, Release);
}

/// The descriptors of one socket.
pub fn of_slot(slot: &'static Slot) -> impl Iterator<Item = c_int> {
    let highest = HIGHEST.load(Relaxed) as c_int;
    let here = move |fd: &c_int| cell(*fd).is_some_and(|c| std::ptr::eq(c.load(Acquire), slot));
    (0..highest).filter(here)
}

/// Every tracked descriptor, with its slot once per descriptor. It may be asleep: see `rest`.
pub fn each(mut f: impl FnMut(c_int, &Inside)) {
    for fd in 0..HIGHEST.load(Relaxed) as c_int {
        if is_tracked(fd)
            && let Some(inside) = enter_at_rest(fd)
        {
            f(fd, &inside);
        }
    }
}

/// The tracked descriptors of a range, to be closed one by one.
pub fn forget_range(first: usize, last: usize) {
    for fd in first..HIGHEST.load(Relaxed).min(last.saturating_add(1)) {
        if is_tracked(fd as c_int) {
            forget(fd as c_int);
        }
    }
}
