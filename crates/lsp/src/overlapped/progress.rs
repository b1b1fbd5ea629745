//! Who has news for operations that wait: one set of the engine's ([`sockets::set`]) with all sockets that have, or had,
//! some, on an epoll set of Linux's kernel. One thread sleeps there, started with the first operation that has to wait. Only under Wine.
//!
//! Members tell of edges. So a line is served by the call that adds to it, and again whenever its socket has news.

use std::convert::Infallible;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::*};
use std::sync::{Mutex, MutexGuard, OnceLock};

use gm::EventQueue;
use gm::os::ProcessId;
use sockets::set::{self, Below, Interest, Put, State, Told};
use sockets::{Ask, Conn, Deadline, Ready};

use spi::ports::{How, Progress};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};

use super::line;
use crate::ctx::{self, Ctx};
use crate::kernel::epoll::{Epoll, Event};
use crate::kernel::{self, Fd, Socket};
use crate::provider;
use crate::slot::{Inside, Pin, Slot, locked};
use crate::wait::Here;

/// Upper half of our tags; the lower half is the member's index, or [`BELL`]. Other words are a slot's address.
const TAG: u64 = 0x5347_4d21 << 32;
const BELL: u64 = u32::MAX as u64;
const HALF: u64 = 0xffff_ffff;

/// A socket's part of this: what it is a member for.
pub mod watched {
    pub const NOTHING: u32 = 0;
    pub const ARRIVALS: u32 = 1;
    pub const ROOM_TOO: u32 = 2;
}

/// One socket.
pub struct Member {
    pin: Pin,
    fd: i32,
    room: bool,
}

impl Member {
    fn is_of(&self, slot: &Slot) -> bool {
        std::ptr::eq(self.pin.slot, slot)
    }

    fn body(&self) -> &crate::slot::Body {
        self.pin.body()
    }
}

impl set::Member for Member {
    type Kernel<'a> = Socket<'a>;
    /// Is room wanted too?
    type Asked = bool;
    type Event = Event;

    fn number(&self) -> i32 {
        self.fd
    }

    fn conn(&self) -> &Conn {
        self.body()
            .conn
            .as_ref()
            .expect("only connections are members")
    }

    fn kernel(&self) -> Socket<'_> {
        Socket(self.body())
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn ask(&mut self, room: bool) {
        self.room = room;
    }

    fn interest(&self) -> Interest {
        let room = if self.room { Ready::OUT } else { Ready::NONE };
        Interest {
            want: Ready::IN | Ready::RDHUP | room,
            edge: true,
            once: false,
        }
    }

    fn event(&self, due: Ready) -> Event {
        Event::of(due, self.pin.slot.context() as u64)
    }

    fn merge(event: &mut Event, more: &Event) -> bool {
        let alike = { event.data } == { more.data };
        event.ready |= if alike { more.ready } else { 0 };
        alike
    }
}

struct Waiter {
    epoll: Epoll,
    state: State,
    members: Mutex<set::Members<Member>>,
    queue: AtomicPtr<EventQueue>,
}

/// The number of the queue that this process made last; 0: none.
static QUEUE: AtomicU64 = AtomicU64::new(0);

fn progress() -> Option<&'static Waiter> {
    static ONE: OnceLock<Option<Waiter>> = OnceLock::new();
    let make = || {
        if !kernel::is_linux() {
            return None;
        }
        let epoll = Epoll::new(TAG | BELL)?;
        let thread = std::thread::Builder::new().name("sgm-progress".into());
        thread.spawn(run).ok()?;
        Some(Waiter {
            epoll,
            state: State::default(),
            members: Mutex::default(),
            queue: AtomicPtr::default(),
        })
    };
    ONE.get_or_init(make).as_ref()
}

/// The process ends: takes the queue's files along. Takes no locks.
pub fn at_exit(ctx: &Ctx) {
    if let id @ 1.. = QUEUE.load(Acquire) {
        EventQueue::remove(ctx.node.dir(), id);
    }
}

/// Taken from the set at once.
const AT_ONCE: usize = 64;

/// 1: a thread of the program's looks, so ours stays away from the set, and nothing is armed.
static LENT: ring::sync::AtomicU32 = ring::sync::AtomicU32::new(0);
/// How often one has looked.
static LOOKS: AtomicU64 = AtomicU64::new(0);

/// While the program looks: until it goes to sleep itself, or has not looked for a while.
fn stay_away() {
    const SLICE_US: u64 = 1000;
    let mut looks = LOOKS.load(SeqCst);
    while LENT.load(Acquire) == 1 {
        kernel::futex_wait(&LENT, 1, SLICE_US);
        let now = LOOKS.load(SeqCst);
        if std::mem::replace(&mut looks, now) == now {
            LENT.store(0, SeqCst);
            // One that began to look just now may have taken it for lent still: it counts itself first, and asks then.
            if LOOKS.load(SeqCst) != now {
                LENT.store(1, SeqCst);
            }
        }
    }
}

unsafe extern "C" fn look(how: How) -> i32 {
    let Some(p) = progress() else { return 0 };
    if how.has(How::OTHERS_SLEEP) {
        // They count on our thread, whose bell is not to be taken from it.
        return 0;
    }
    LOOKS.fetch_add(1, SeqCst);
    if LENT.swap(1, SeqCst) == 0 {
        p.epoll.wake();
    }
    let mut out = [Event::default(); AT_ONCE];
    let n = set::look(&p, &mut out, how.has(How::PATIENT));
    serve(&out[..n]);
    n as i32
}

unsafe extern "C" fn sleep() {
    if LENT.swap(0, AcqRel) == 1 {
        kernel::futex_wake(&LENT);
    }
}

/// Where the runtime sees the program wait at completion ports, it has us look.
fn look_for_waiters() {
    static TABLE: Progress = Progress { look, sleep };
    let module: Vec<u16> = "ws2_32.dll\0".encode_utf16().collect();
    // SAFETY: zero-terminated names. A function of this name is our Winsock DLL's and has this signature.
    unsafe {
        let module = GetModuleHandleW(module.as_ptr());
        if let Some(show) = GetProcAddress(module, c"SgmShowPorts".as_ptr().cast()) {
            let show: spi::ports::Show = std::mem::transmute(show);
            show(&TABLE);
        }
    }
}

fn run() {
    let Some(p) = progress() else { return };
    if provider::is_known() {
        look_for_waiters();
    }
    let mut out = [Event::default(); AT_ONCE];
    loop {
        stay_away();
        p.epoll.hush();
        if LENT.load(Acquire) == 1 {
            // Its word was in what was hushed.
            continue;
        }
        match set::wait(&p, &mut out, Deadline::NEVER) {
            Ok(n) => serve(&out[..n.unwrap_or(0)]),
            Err(never) => match never {},
        }
    }
}

fn serve(news: &[Event]) {
    for event in news {
        // SAFETY: what `Member::event` or `put` gave: a slot's address.
        let slot = unsafe { Slot::of({ event.data } as usize) };
        if let Some(inside) = slot.inside() {
            line::serve(&inside);
        }
    }
}

/// A member that is not carried, in the kernel's set.
fn put(p: &Waiter, how: Put, slot: &'static Slot, fd: &Fd, room: bool) -> bool {
    p.epoll.put(how, fd.number(), room, slot.context() as u64)
}

/// From now on the lines of this socket are served when it has news; of room only if it `sends`. False: they can't be.
pub fn watch(inside: &Inside, sends: bool) -> bool {
    let (Some(p), Some(fd), Some(conn)) = (progress(), inside.body().fd(), inside.conn()) else {
        return false;
    };
    let watched = &inside.body().io.watched;
    let want = if sends {
        watched::ROOM_TOO
    } else {
        watched::ARRIVALS
    };
    if watched.load(Acquire) >= want {
        return true;
    }
    let mut members = locked(&p.members);
    if watched.load(Acquire) >= want {
        // The other line was quicker.
        return true;
    }
    let at = members.position(fd.number(), |m| m.is_of(inside.slot));
    let k = inside.socket();
    let put = |how| put(p, how, inside.slot, fd, sends);
    let done = match at {
        Some(i) => set::modify(&p, &mut members, i, sends, &k, || put(Put::Change)),
        None => {
            let member = Member {
                pin: inside.pin(),
                fd: fd.number(),
                room: sends,
            };
            let carried = conn.is_engaged();
            set::add(&p, &mut members, (member, carried), &k, || put(Put::Add))
        }
    };
    if done {
        watched.store(want, Release);
    }
    done
}

/// Nothing waits for room any more.
pub fn rest(inside: &Inside) {
    let watched = &inside.body().io.watched;
    if watched.load(Acquire) != watched::ROOM_TOO {
        return;
    }
    with_member(inside, |p, fd, members, i| {
        let put = || put(p, Put::Change, inside.slot, fd, false);
        set::modify(&p, members, i, false, &inside.socket(), put);
        watched.store(watched::ARRIVALS, Release);
    });
}

/// The connection was promoted.
pub fn on_engaged(inside: &Inside) {
    with_member(inside, |p, _, members, i| {
        set::engaged(&p, members, i, &inside.socket());
    });
}

/// The socket is being closed.
pub fn forget(inside: &Inside) {
    with_member(inside, |p, _, members, i| set::forget(&p, members, i));
    inside.body().io.watched.store(watched::NOTHING, Release);
}

fn with_member(
    inside: &Inside,
    f: impl FnOnce(&'static Waiter, &Fd, &mut set::Members<Member>, usize),
) {
    if inside.body().io.watched.load(Acquire) == watched::NOTHING {
        return;
    }
    let (Some(p), Some(fd)) = (progress(), inside.body().fd()) else {
        return;
    };
    let mut members = locked(&p.members);
    if let Some(i) = members.position(fd.number(), |m| m.is_of(inside.slot)) {
        f(p, fd, &mut members, i);
    }
}

impl Below for &'static Waiter {
    type Member = Member;
    type Held<'a> = MutexGuard<'a, set::Members<Member>>;
    type Fault = Infallible;
    type Host = Here;

    fn state(&self) -> &State {
        &self.state
    }

    fn members(&self) -> MutexGuard<'_, set::Members<Member>> {
        locked(&self.members)
    }

    fn give_back(&self) {}

    fn is_there(&self) -> bool {
        LENT.load(Acquire) == 0
    }

    fn register(&self, how: Put, member: &Member, index: usize, out: bool) -> bool {
        self.epoll.put(how, member.fd, out, TAG | index as u64)
    }

    fn unregister(&self, member: &Member) {
        self.epoll.take_out(member.fd);
    }

    fn restore(&self, how: Put, member: &Member, _spent: bool) {
        let data = member.pin.slot.context() as u64;
        self.epoll.put(how, member.fd, member.room, data);
    }

    fn is_spent(&self, _member: &Member) -> bool {
        false
    }

    fn ask(&self, out: &mut [Event], how: Ask) -> Result<usize, Infallible> {
        let limit_ns = match how {
            Ask::Look => Some(0),
            Ask::Sleep(limit_ns) => limit_ns,
        };
        Ok(self.epoll.wait(out, limit_ns))
    }

    fn told(event: &Event) -> Told {
        match ({ event.data } & !HALF, { event.data } & HALF) {
            (TAG, BELL) => Told::Bell,
            (TAG, index) => Told::Member(index as usize, Ready({ event.ready } & 0xffff)),
            _ => Told::Other,
        }
    }

    fn queue(&self) -> Option<&'static EventQueue> {
        // SAFETY: never freed.
        unsafe { self.queue.load(Acquire).as_ref() }
    }

    fn take_queue(&self) -> Option<&'static EventQueue> {
        let queue = EventQueue::create(ctx::get()?.node.dir(), ProcessId::me()).ok()?;
        QUEUE.store(queue.id(), Release);
        let bell = queue.bell().descriptor();
        self.epoll.put(Put::Add, bell, false, TAG | BELL).then(|| {
            let queue: &'static EventQueue = Box::leak(Box::new(queue));
            let at = std::ptr::from_ref(queue).cast_mut();
            self.queue.store(at, Release);
            queue
        })
    }

    fn take_bell_out(&self, queue: &EventQueue) {
        self.epoll.take_out(queue.bell().descriptor());
    }

    fn drop_queue(&self, _reuse: bool) {
        self.queue.store(std::ptr::null_mut(), Release);
    }

    fn share_queue(&self, _id: u64) {}

    fn host(&self) -> Here {
        Here
    }
}
