//! The rings of this process, by descriptor, each with a mapping of ours of its submission queue.
//!
//! Rules:
//! 1. A ring's memory is looked at and unmapped by its owner alone: the thread whose id is in `owner`. Nobody owns a ring
//!    while it sleeps in the kernel for the program.
//! 2. A signal handler may come while its own thread owns the ring. It looks at the queue as well (`looked` moves before
//!    a submission is dealt with, so none is dealt with twice), but leaves unmapping to the owner.
//! 3. A mapping keeps the ring alive, so it goes before the descriptor is closed.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize};

use sockets::Kernel;

use super::sqe::Sqe;
use crate::kernel::Fd;

/// `struct io_sqring_offsets`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    resv1: u32,
    user_addr: u64,
}

/// `struct io_uring_params`, io_uring_setup(2).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Params {
    sq_entries: u32,
    cq_entries: u32,
    pub flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    sq_off: SqOffsets,
    cq_off: [u64; 5],
}
const _: () = assert!(size_of::<Params>() == 120);

pub mod setup {
    pub const IOPOLL: u32 = 1 << 0;
    pub const SQPOLL: u32 = 1 << 1;
    pub const SQE128: u32 = 1 << 10;
    pub const NO_MMAP: u32 = 1 << 14;
    pub const NO_SQARRAY: u32 = 1 << 16;
    /// Flags that don't change how the submission queue is read, or as is known here: up to CQE_MIXED.
    pub const KNOWN: u32 = (1 << 19) - 1;
}
const OFF_SQ_RING: u64 = 0;
const OFF_SQES: u64 = 0x1000_0000;

/// A submission queue in memory.
#[derive(Clone, Copy)]
struct Queue {
    head: *const AtomicU32,
    tail: *const AtomicU32,
    entries: u32,
    /// Null: a position is its own index.
    array: *const AtomicU32,
    sqes: *mut u8,
    /// Bytes of a submission.
    stride: usize,
    maps: [(*mut std::ffi::c_void, usize); 2],
}

pub struct Ring {
    fd: AtomicI32,
    /// Rule 1; 0: nobody.
    owner: AtomicU32,
    /// The position up to which the queue was looked at.
    looked: AtomicU32,
    /// `None`: there is nothing to look at by this way.
    queue: UnsafeCell<Option<Queue>>,
    params: UnsafeCell<Option<Params>>,
}

// SAFETY: `queue` and `params` are written by the owner alone, while `fd` says that the ring is free.
unsafe impl Sync for Ring {}

const FREE: c_int = -1;
const RINGS: usize = 64;
static ALL: [Ring; RINGS] = [const {
    Ring {
        fd: AtomicI32::new(FREE),
        owner: AtomicU32::new(0),
        looked: AtomicU32::new(0),
        queue: UnsafeCell::new(None),
        params: UnsafeCell::new(None),
    }
}; RINGS];
/// One beyond the last entry ever used.
static USED: AtomicUsize = AtomicUsize::new(0);

fn used() -> &'static [Ring] {
    &ALL[..USED.load(Acquire).min(RINGS)]
}

fn find(fd: c_int) -> Option<&'static Ring> {
    used().iter().find(|r| fd >= 0 && r.fd.load(Relaxed) == fd)
}

/// Is this a ring that we know of?
pub fn is_known(fd: c_int) -> bool {
    find(fd).is_some()
}

/// A ring was made. `params`: as the kernel filled them in; without them, it is looked at in another way. False: no
/// room, or no memory for looking at it.
pub fn remember(fd: c_int, params: Option<&Params>) -> bool {
    forget(fd);
    let queue = match params {
        Some(p) if p.flags & setup::IOPOLL == 0 => match map(fd, p) {
            Some(q) => Some(q),
            None => return false,
        },
        // IOPOLL: not for sockets.
        _ => None,
    };
    for (i, r) in ALL.iter().enumerate() {
        if r.fd.load(Relaxed) != FREE {
            continue;
        }
        let Some(_owned) = r.own() else { continue };
        if r.fd.load(Relaxed) != FREE {
            continue;
        }
        // SAFETY: the owner's, and nobody finds it before `fd` is there.
        unsafe {
            *r.queue.get() = queue;
            *r.params.get() = params.copied();
        }
        let head = queue.map_or(0, |q| q.head().load(Acquire));
        r.looked.store(head, Relaxed);
        r.fd.store(fd, Release);
        USED.fetch_max(i + 1, Release);
        return true;
    }
    if let Some(q) = queue {
        q.unmap();
    }
    false
}

/// `new` is another descriptor of the ring `old`, or of something else. False: as for [`remember`].
#[inline]
pub fn alias(old: c_int, new: c_int) -> bool {
    if USED.load(Relaxed) == 0 {
        return true;
    }
    forget(new);
    let Some(r) = find(old) else { return true };
    let owned = r.own();
    // SAFETY: owned, by this call or by the one that it interrupted.
    let params = unsafe { *r.params.get() };
    drop(owned);
    remember(new, params.as_ref())
}

/// The descriptor is about to be closed, or names something else now.
#[inline]
pub fn forget(fd: c_int) {
    if USED.load(Relaxed) > 0 && fd >= 0 {
        forget_range(fd as usize, fd as usize);
    }
}

/// As [`forget`], for a range.
pub fn forget_range(first: usize, last: usize) {
    for r in used() {
        let fd = r.fd.load(Relaxed);
        if fd < 0 || !(first..=last).contains(&(fd as usize)) {
            continue;
        }
        let owned = r.own();
        let _ = r.fd.compare_exchange(fd, FREE, Release, Relaxed);
        // Here, or by whom this signal handler has interrupted.
        drop(owned);
    }
}

/// In a forked child: owners stayed behind.
pub fn in_child() {
    for r in used() {
        r.owner.store(0, Relaxed);
    }
}

/// Looks at what `submit` submissions of a ring will be, before the kernel takes them. False: no ring of that
/// descriptor is known.
///
/// # Safety
/// What is in the queue is meant for the kernel: its pointers are valid.
pub unsafe fn look(fd: c_int, submit: u32) -> bool {
    match find(fd) {
        // SAFETY: by the caller.
        Some(r) => unsafe { r.look(fd, submit) },
        None => false,
    }
}

/// Looks at everything that is published, in all rings.
///
/// # Safety
/// As `look`.
pub unsafe fn look_at_all() {
    for r in used() {
        let fd = r.fd.load(Relaxed);
        if fd >= 0 {
            // SAFETY: by the caller.
            unsafe { r.look(fd, u32::MAX) };
        }
    }
}

/// The owner's; gives the ring back, and unmaps what lost its descriptor meanwhile.
struct Owned(&'static Ring);

impl Drop for Owned {
    fn drop(&mut self) {
        let r = self.0;
        if r.fd.load(Acquire) == FREE {
            // SAFETY: the owner's; no handler of this thread uses it, for those have returned.
            if let Some(q) = unsafe { (*r.queue.get()).take() } {
                q.unmap();
            }
        }
        r.owner.store(0, Release);
    }
}

impl Ring {
    /// `None`: this thread owns it already; we are in a signal handler of it.
    fn own(&'static self) -> Option<Owned> {
        let me = Fd::of(FREE).thread();
        loop {
            match self.owner.compare_exchange(0, me, Acquire, Relaxed) {
                Ok(_) => return Some(Owned(self)),
                Err(owner) if owner == me => return None,
                Err(_) => rustix::thread::sched_yield(),
            }
        }
    }

    /// # Safety
    /// As the function of that name.
    unsafe fn look(&'static self, fd: c_int, submit: u32) -> bool {
        let _owned = self.own();
        if self.fd.load(Acquire) != fd {
            return false;
        }
        // SAFETY: owned, by this call or by the one that it interrupted.
        let (queue, params) = unsafe { (*self.queue.get(), *self.params.get()) };
        let Some(q) = queue else {
            // IOPOLL; or liburing's, which is looked at there.
            return params.is_some();
        };
        let (head, tail) = (q.head().load(Acquire), q.tail().load(Acquire));
        let pending = tail.wrapping_sub(head);
        let looked = self.looked.load(Relaxed);
        // Another thread's may be on their way into the kernel.
        let from = match looked.wrapping_sub(head) <= pending {
            true => looked,
            false => head,
        };
        let n = tail.wrapping_sub(from).min(submit).min(q.entries);
        self.looked.store(from, Relaxed);
        let end = from.wrapping_add(n);
        let mut linked = false;
        loop {
            let at = self.looked.load(Relaxed);
            if at == end || end.wrapping_sub(at) > n {
                return true;
            }
            self.looked.store(at.wrapping_add(1), Relaxed);
            if let Some(sqe) = q.sqe(at) {
                // SAFETY: within the mapping, and the program leaves it alone until the kernel has taken it.
                let sqe = unsafe { &mut *sqe };
                let links = sqe.links();
                // SAFETY: by the caller.
                unsafe { sqe.prepare(linked) };
                linked = links;
            }
        }
    }
}

impl Queue {
    fn head(&self) -> &AtomicU32 {
        // SAFETY: in the mapping, which lives as long as the queue.
        unsafe { &*self.head }
    }

    fn tail(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &*self.tail }
    }

    /// The submission at a position. The array is the program's: an index beyond the end is dropped by the kernel.
    fn sqe(&self, at: u32) -> Option<*mut Sqe> {
        let at = at & (self.entries - 1);
        let index = match self.array.is_null() {
            true => at,
            // SAFETY: the array has as many entries.
            false => unsafe { (*self.array.add(at as usize)).load(Relaxed) },
        };
        // SAFETY: there are `entries` submissions of that size.
        (index < self.entries)
            .then(|| unsafe { self.sqes.add(index as usize * self.stride) }.cast())
    }

    fn unmap(self) {
        for (at, bytes) in self.maps {
            // SAFETY: mapped by `map`, and nobody looks at it any more.
            let _ = unsafe { rustix::mm::munmap(at, bytes) };
        }
    }
}

/// Maps a ring's submission queue for us.
fn map(fd: c_int, p: &Params) -> Option<Queue> {
    use rustix::mm::{MapFlags, ProtFlags};
    let (off, entries) = (&p.sq_off, p.sq_entries);
    if !entries.is_power_of_two() {
        return None;
    }
    let array = p.flags & setup::NO_SQARRAY == 0;
    let mut bytes = off.head.max(off.tail) as usize + 4;
    if array {
        bytes = bytes.max(off.array as usize + 4 * entries as usize);
    }
    let stride = size_of::<Sqe>() << u32::from(p.flags & setup::SQE128 != 0);
    // SAFETY: the hook's caller has just been given the descriptor.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let at = |bytes: usize, prot, off| {
        // SAFETY: a fresh mapping.
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, fd, off) }
    };
    let ring = at(bytes, ProtFlags::READ, OFF_SQ_RING).ok()?;
    let sqes_bytes = stride * entries as usize;
    let Ok(sqes) = at(sqes_bytes, ProtFlags::READ | ProtFlags::WRITE, OFF_SQES) else {
        // SAFETY: mapped just above.
        let _ = unsafe { rustix::mm::munmap(ring, bytes) };
        return None;
    };
    let word = |off: u32| {
        ring.cast::<u8>()
            .wrapping_add(off as usize)
            .cast::<AtomicU32>()
    };
    Some(Queue {
        head: word(off.head),
        tail: word(off.tail),
        entries,
        array: if array {
            word(off.array)
        } else {
            std::ptr::null()
        },
        sqes: sqes.cast(),
        stride,
        maps: [(ring, bytes), (sqes, sqes_bytes)],
    })
}
