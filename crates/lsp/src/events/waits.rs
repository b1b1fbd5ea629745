//! Waits for the program's event objects, where the runtime shows them to us: our Winsock DLL for Wine does, which sees them
//! in ntdll. Elsewhere nothing of this is used, and event objects are signalled as ever.
//!
//! Under Wine each call that touches an event object costs 10 to 20 µs. So before a thread enters Wine's server to wait, it
//! looks at the rings of the sockets that are selected with the object, polls for as long as polling pays, and if there is
//! news the wait is over without the object: it is signalled *in word* ([`Waits::word`]).
//!
//! 1. Whoever may look at the object itself must find it signalled: before such a call the word is made true
//!    ([`Waits::settle`]). An object that others can wait for (another process, a second handle, a name) is never signalled in
//!    word.
//! 2. A sleeper counts itself, then arms the rings and looks once more under each socket's lock of events, then settles the
//!    word, then sleeps. Who records news does so under that lock: with a sleeper counted the object itself is signalled.
//! 3. So rings need no arming while nobody sleeps, and their writers ring no doorbells.
//! 4. A way through Wine's server and back takes longer than the rest of a conversation. So a wait for nothing but carried
//!    sockets takes a nap first, on their descriptors and for a millisecond at most, and looks now and then whether the object
//!    was set by the program.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock};

use gm::clock::ticks;
use sockets::{Ready, Spin, Spun};
use spi::waits::{How, NOBODY, NOTHING, Touch, Waits as Table};
use windows_sys::Win32::Foundation::{GetHandleInformation, HANDLE, HANDLE_FLAG_INHERIT};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
use windows_sys::Win32::System::Threading::SetEvent;

use super::FD_READ;
use crate::kernel;
use crate::slot::{Inside, Slot, locked};

/// An event object of the program's with which sockets are selected.
pub struct Waits {
    event: usize,
    manual: bool,
    /// Others may see it: it is always signalled itself.
    shared: AtomicBool,
    closed: AtomicBool,
    /// Signalled in word.
    word: AtomicBool,
    /// The object itself may be signalled.
    touched: AtomicBool,
    /// How often the program has set it.
    sets: AtomicU32,
    /// A wait was ended by the word since the events were last asked for.
    ended: AtomicBool,
    /// Threads that sleep, or are about to.
    sleepers: AtomicU32,
    sockets: Mutex<Vec<&'static Slot>>,
}

static OBJECTS: Mutex<BTreeMap<usize, Arc<Waits>>> = Mutex::new(BTreeMap::new());
/// How many there are.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// A doorbell, and the calls through the server that follow it.
static SPIN: Spin = Spin::up_to(200);
const NAPS: u32 = 4;
const NAP_US: u64 = 250;

static TABLE: Table = Table {
    find,
    look,
    sleep,
    wake,
    release,
    touch,
};

fn ntdll(name: &std::ffi::CStr) -> Option<unsafe extern "system" fn() -> isize> {
    let module: Vec<u16> = "ntdll.dll\0".encode_utf16().collect();
    // SAFETY: zero-terminated names; ntdll stays loaded.
    unsafe { GetProcAddress(GetModuleHandleW(module.as_ptr()), name.as_ptr().cast()) }
}

/// Does the runtime show us the waits of this process? Asked once.
fn are_shown() -> bool {
    static SHOWN: OnceLock<bool> = OnceLock::new();
    *SHOWN.get_or_init(|| {
        let module: Vec<u16> = "ws2_32.dll\0".encode_utf16().collect();
        // SAFETY: zero-terminated names. A function of this name is our Winsock DLL's and has this signature.
        unsafe {
            let module = GetModuleHandleW(module.as_ptr());
            let show = GetProcAddress(module, c"SgmShowWaits".as_ptr().cast());
            show.is_some_and(|show| {
                let show: spi::waits::Show = std::mem::transmute(show);
                show(&TABLE) != 0
            })
        }
    })
}

/// Is it of the manual-reset kind? `None`: it is no event object.
fn is_manual(event: usize) -> Option<bool> {
    type QueryEvent = unsafe extern "system" fn(HANDLE, i32, *mut [i32; 2], u32, *mut u32) -> i32;
    const BASIC: i32 = 0;
    const NOTIFICATION: i32 = 0;
    let query = ntdll(c"NtQueryEvent")?;
    let mut told = [0; 2];
    // SAFETY: the function of this name has this signature; EVENT_BASIC_INFORMATION is two ints, kind and state.
    let status = unsafe {
        let query: QueryEvent = std::mem::transmute(query);
        query(event as HANDLE, BASIC, &mut told, 8, std::ptr::null_mut())
    };
    (status >= 0).then_some(told[0] == NOTIFICATION)
}

/// Has it one handle, this one, and no name by which there could be more?
fn is_private(event: usize) -> bool {
    type QueryObject = unsafe extern "system" fn(HANDLE, i32, *mut c_void, u32, *mut u32) -> i32;
    const BASIC: i32 = 0;
    const NAME: i32 = 1;
    /// Of OBJECT_BASIC_INFORMATION, in words: attributes, access, handles.
    const HANDLES: usize = 2;
    let Some(query) = ntdll(c"NtQueryObject") else {
        return false;
    };
    let (mut basic, mut name) = ([0_u32; 14], [0_u64; 66]);
    let (mut flags, none) = (0, std::ptr::null_mut());
    // SAFETY: the function of this name has this signature; buffers of the lengths given.
    unsafe {
        let query: QueryObject = std::mem::transmute(query);
        let handle = event as HANDLE;
        GetHandleInformation(handle, &mut flags) != 0
            && flags & HANDLE_FLAG_INHERIT == 0
            && query(handle, BASIC, basic.as_mut_ptr().cast(), 56, none) >= 0
            && basic[HANDLES] == 1
            && query(handle, NAME, name.as_mut_ptr().cast(), 528, none) >= 0
            // A UNICODE_STRING, whose first half-word is its length.
            && name[0] & 0xffff == 0
    }
}

impl Waits {
    fn new(event: usize, manual: bool, shared: bool) -> Self {
        Waits {
            event,
            manual,
            shared: AtomicBool::new(shared),
            closed: AtomicBool::new(false),
            word: AtomicBool::new(false),
            touched: AtomicBool::new(true),
            sets: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            sleepers: AtomicU32::new(0),
            sockets: Mutex::new(Vec::new()),
        }
    }

    /// For a socket that is being selected with `event`. `None`: the waits for it are not seen.
    pub fn of(event: usize, slot: &'static Slot) -> Option<Arc<Waits>> {
        if !are_shown() {
            return None;
        }
        let known = locked(&OBJECTS).get(&event).map(Arc::clone);
        let waits = match known {
            Some(known) => known,
            None => {
                let fresh = Arc::new(Waits::new(event, is_manual(event)?, !is_private(event)));
                let mut objects = locked(&OBJECTS);
                let listed = Arc::clone(objects.entry(event).or_insert(fresh));
                COUNT.store(objects.len(), SeqCst);
                listed
            }
        };
        let mut sockets = locked(&waits.sockets);
        if !sockets.iter().any(|s| std::ptr::eq(*s, slot)) {
            sockets.push(slot);
        }
        drop(sockets);
        Some(waits)
    }

    /// A socket is selected with this object no more, but with that of `now`.
    pub fn leave(self: &Arc<Self>, slot: &'static Slot, now: Option<&Arc<Self>>) {
        if now.is_some_and(|now| Arc::ptr_eq(now, self)) {
            return;
        }
        let mut objects = locked(&OBJECTS);
        let mut sockets = locked(&self.sockets);
        sockets.retain(|s| !std::ptr::eq(*s, slot));
        let last = sockets.is_empty() && self.is_listed(&objects);
        if last {
            objects.remove(&self.event);
            COUNT.store(objects.len(), SeqCst);
        }
        drop((objects, sockets));
        if last {
            // From now on nobody looks at the word.
            self.settle();
        }
    }

    fn is_listed(self: &Arc<Self>, objects: &BTreeMap<usize, Arc<Waits>>) -> bool {
        objects
            .get(&self.event)
            .is_some_and(|known| Arc::ptr_eq(known, self))
    }

    /// Would a signal in word be seen by everybody? To be asked under the lock of a socket's events.
    pub fn nobody_sleeps(&self) -> bool {
        !self.shared.load(SeqCst) && self.sleepers.load(SeqCst) == 0
    }

    /// News was recorded. The caller holds the lock of its socket's events.
    pub fn signal(&self) {
        if self.nobody_sleeps() {
            self.word.store(true, SeqCst);
        } else {
            self.set();
        }
    }

    fn set(&self) {
        self.touched.store(true, SeqCst);
        if !self.closed.load(SeqCst) {
            // SAFETY: the program's event object.
            unsafe { SetEvent(self.event as HANDLE) };
        }
    }

    /// What was said in word is made true.
    fn settle(&self) {
        if self.word.swap(false, SeqCst) {
            self.set();
        }
    }

    /// Ends a wait, if it is signalled in word.
    fn end_wait(&self) -> bool {
        let ends = match self.manual {
            true => self.word.load(SeqCst),
            false => self.word.swap(false, SeqCst),
        };
        if ends {
            self.ended.store(true, SeqCst);
        }
        ends
    }

    /// The program asks for events and resets `event`, 0 for none. True: they were told of in word alone, and it is reset.
    pub fn was_ours(&self, event: usize) -> bool {
        // One that resets itself needs no reset by the lower provider.
        let as_it_was = |touched: bool| !touched || !self.manual && event == 0;
        let ours = self.ended.swap(false, SeqCst)
            && (event == 0 || event == self.event)
            && as_it_was(self.touched.load(SeqCst))
            && !self.shared.load(SeqCst);
        if ours && event != 0 {
            self.word.store(false, SeqCst);
        }
        ours
    }

    /// `event` was reset; 0: none was.
    pub fn reset(&self, event: usize) {
        if event == self.event {
            self.word.store(false, SeqCst);
            self.touched.store(false, SeqCst);
        }
    }
}

/// A wait of the program's that concerns objects of ours: each with its place among the wait's handles.
struct Wait {
    objects: Vec<(usize, Arc<Waits>)>,
    asleep: Option<u64>,
}

/// A carried socket of a wait.
struct Member {
    inside: Inside,
    waits: Arc<Waits>,
    wants_room: bool,
}

impl Member {
    /// True: there was something new.
    fn look(&self, arm: bool) -> bool {
        let mut events = locked(&self.inside.body().events);
        let here = events.waits.as_ref();
        let (true, Some(conn)) = (
            here.is_some_and(|w| Arc::ptr_eq(w, &self.waits)),
            self.inside.conn(),
        ) else {
            return false;
        };
        let k = self.inside.socket();
        if arm {
            conn.arm_edge_clean(&k);
        }
        // Its doorbell signals the object, or has done so, which must not be signalled twice.
        let rung = conn.bell_is_due();
        let before = events.pending;
        let new = events.look(conn, &k, None);
        let by_bell = rung && events.pending & !before == FD_READ;
        if new && !by_bell {
            self.waits.signal();
        }
        new
    }

    fn has_news(&self) -> bool {
        let news = |c: &sockets::Conn| c.has_news(self.wants_room);
        self.inside.conn().is_some_and(news) && self.look(false)
    }
}

/// True: there was something new.
fn look_at_all(members: &[Member], arm: bool) -> bool {
    let mut any = false;
    for m in members {
        any |= m.look(arm);
    }
    any
}

impl Wait {
    fn members(&self) -> Vec<Member> {
        let mut members = Vec::new();
        for (_, waits) in &self.objects {
            let slots = locked(&waits.sockets).clone();
            for slot in slots {
                let inside = slot.inside();
                let Some(inside) = inside.filter(|i| i.conn().is_some_and(|c| c.is_engaged()))
                else {
                    continue;
                };
                let wants_room = locked(&inside.body().events).wants_room();
                members.push(Member {
                    inside,
                    waits: Arc::clone(waits),
                    wants_room,
                });
            }
        }
        members
    }

    /// The first object that is signalled in word.
    fn ended(&self) -> Option<usize> {
        let ends = self.objects.iter().find(|(_, w)| w.end_wait());
        ends.map(|(at, _)| *at)
    }

    fn look(&self, poll: bool, nap: bool) -> Option<usize> {
        let sets = self.sets();
        let ended = self.ended();
        if ended.is_some() {
            return ended;
        }
        let members = self.members();
        if members.is_empty() {
            return None;
        }
        let any = look_at_all(&members, false);
        let in_word = || self.objects.iter().any(|(_, w)| w.word.load(Relaxed));
        let news = || in_word() || members.iter().any(Member::has_news);
        let found =
            any || poll && SPIN.wait(kernel::cpus(), kernel::yield_now, news) == Spun::Found;
        if !found && nap {
            self.nap(&members, sets);
        }
        self.ended()
    }

    fn sets(&self) -> u32 {
        let all = self.objects.iter().map(|(_, w)| w.sets.load(SeqCst));
        all.fold(0, u32::wrapping_add)
    }

    /// Rule 4. `sets`: when this wait began.
    fn nap(&self, members: &[Member], sets: u32) {
        let sockets: usize = self
            .objects
            .iter()
            .map(|(_, w)| locked(&w.sockets).len())
            .sum();
        let shared = self.objects.iter().any(|(_, w)| w.shared.load(SeqCst));
        let fds: Vec<_> = members
            .iter()
            .filter_map(|m| m.inside.body().fd())
            .collect();
        if fds.len() != sockets || shared {
            return;
        }
        let start = ticks();
        for _ in 0..NAPS {
            let any = look_at_all(members, true);
            let in_word = self.objects.iter().any(|(_, w)| w.word.load(SeqCst));
            if any || in_word || self.sets() != sets {
                return;
            }
            let mut asked: Vec<_> = fds
                .iter()
                .map(|fd| (*fd, Ready::IN | Ready::RDHUP))
                .collect();
            if kernel::poll_many(&mut asked, Some(NAP_US)) > 0 {
                SPIN.slept(start, 0);
                members.iter().for_each(|m| {
                    m.look(false);
                });
                return;
            }
        }
    }

    fn sleep(&mut self, how: How) {
        let lasts = how == How::SLEEP;
        if lasts {
            for (_, waits) in &self.objects {
                waits.sleepers.fetch_add(1, SeqCst);
            }
            self.asleep = Some(ticks());
        }
        if how != How::SETTLE {
            for m in self.members() {
                m.look(lasts);
            }
        }
        self.objects.iter().for_each(|(_, w)| w.settle());
    }

    fn wake(&mut self) {
        let slept = self.asleep.take();
        for (_, waits) in &self.objects {
            // Whoever ended it may have signalled the object.
            waits.touched.store(true, SeqCst);
            if slept.is_some() {
                waits.sleepers.fetch_sub(1, SeqCst);
            }
        }
        if let Some(start) = slept {
            SPIN.slept(start, 0);
        }
    }
}

/// # Safety
/// `handles` are `count` handles.
unsafe extern "C" fn find(handles: *const HANDLE, count: u32) -> *mut c_void {
    if COUNT.load(Relaxed) == 0 {
        return std::ptr::null_mut();
    }
    // SAFETY: by the caller.
    let handles = unsafe { std::slice::from_raw_parts(handles, count as usize) };
    let known = locked(&OBJECTS);
    let found = handles.iter().enumerate().filter_map(|(at, handle)| {
        let waits = known.get(&(*handle as usize))?;
        Some((at, Arc::clone(waits)))
    });
    let objects: Vec<_> = found.collect();
    drop(known);
    if objects.is_empty() {
        return std::ptr::null_mut();
    }
    let asleep = None;
    Box::into_raw(Box::new(Wait { objects, asleep })).cast()
}

/// # Safety
/// `wait` is from `find`, and not released.
unsafe extern "C" fn look(wait: *mut c_void, poll: i32) -> i32 {
    // SAFETY: by the caller.
    let wait = unsafe { &*wait.cast::<Wait>() };
    match wait.look(poll > 0, poll > 1) {
        Some(at) => at as i32,
        None => NOTHING,
    }
}

/// # Safety
/// As for [`look`].
unsafe extern "C" fn sleep(wait: *mut c_void, how: How) {
    // SAFETY: by the caller, who is the only one that has it.
    unsafe { (*wait.cast::<Wait>()).sleep(how) };
}

/// # Safety
/// As for [`look`].
unsafe extern "C" fn wake(wait: *mut c_void) {
    // SAFETY: by the caller, who is the only one that has it.
    unsafe { (*wait.cast::<Wait>()).wake() };
}

/// # Safety
/// As for [`look`]; it is not used again.
unsafe extern "C" fn release(wait: *mut c_void) {
    // SAFETY: by the caller.
    drop(unsafe { Box::from_raw(wait.cast::<Wait>()) });
}

/// # Safety
/// None: a handle is compared.
unsafe extern "C" fn touch(handle: HANDLE, how: Touch) -> i32 {
    if COUNT.load(Relaxed) == 0 {
        return NOBODY;
    }
    let mut objects = locked(&OBJECTS);
    let Some(waits) = objects.get(&(handle as usize)).map(Arc::clone) else {
        return NOBODY;
    };
    if how == Touch::CLOSE {
        waits.closed.store(true, SeqCst);
        objects.remove(&waits.event);
        COUNT.store(objects.len(), SeqCst);
    }
    drop(objects);
    match how {
        Touch::SET => {
            waits.touched.store(true, SeqCst);
            waits.sets.fetch_add(1, SeqCst);
        }
        Touch::RESET => waits.reset(waits.event),
        Touch::SHARE => {
            waits.shared.store(true, SeqCst);
            for m in (Wait {
                objects: vec![(0, Arc::clone(&waits))],
                asleep: None,
            })
            .members()
            {
                m.look(true);
            }
            waits.settle();
        }
        _ => {}
    }
    NOTHING
}
