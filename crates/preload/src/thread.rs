//! Words of the calling thread, by an instruction or two: no function of the dynamic linker's, which may call malloc at a
//! thread's first look at a library's variables.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicPtr};

use libc::size_t;

use crate::cancel::Buffer;
use crate::leap::{Leap, Plain};
use crate::process::vfork;
use crate::real;

/// glibc's word that says whether the process has one thread; at first one of ours, which says no, and so for good with an
/// older one (before 2.32).
static SINGLE: AtomicPtr<u8> = AtomicPtr::new((&raw const UNKNOWN).cast_mut());
static UNKNOWN: u8 = 0;
/// A thread was made past the C library.
static FOREIGN: AtomicBool = AtomicBool::new(false);

pub fn at_start() {
    // SAFETY: a NUL-terminated name.
    let word = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
    if !word.is_null() {
        SINGLE.store(word.cast(), Relaxed);
    }
}

/// May other threads run now?
#[inline]
pub fn has_others() -> bool {
    // SAFETY: a byte of ours, or of the C library's, which stays loaded. It changes only as a thread is made, and by that
    // thread which makes it.
    let single = unsafe { SINGLE.load(Relaxed).read_volatile() };
    single == 0 || FOREIGN.load(Relaxed)
}

/// clone is about to be called with these flags: what shares this memory is a thread for us, whatever it is for others.
pub fn on_clone(flags: u64) {
    let shares = flags & libc::CLONE_VM as u64 != 0 && flags & libc::CLONE_VFORK as u64 == 0;
    if shares {
        FOREIGN.store(true, Relaxed);
    }
}

/// # Safety
/// As clone(2). Arguments that are not there are whatever registers and stack hold, and are passed on as they are.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn clone(
    start: *mut c_void,
    stack: *mut c_void,
    flags: c_int,
    arg: *mut c_void,
    parent: size_t,
    tls: size_t,
    child: size_t,
) -> c_int {
    on_clone(flags as u32 as u64);
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::clone(start, stack, flags, arg, parent, tls, child) }
}

pub struct Words {
    /// The kernel's number of the thread; 0: not asked yet.
    pub number: Cell<u32>,
    /// The process that called vfork in this thread; 0: none.
    pub vfork_parent: Cell<u32>,
    /// Further vforks in that one's child.
    pub vfork_depth: Cell<u32>,
    /// It is in a fork; changes of the table that it is at (`fds::fork`).
    pub forks: Cell<bool>,
    pub changes: Cell<u32>,
    /// It is between counting a change for itself and for all.
    pub counting: Cell<bool>,
    /// Forks that this thread is the child of.
    pub births: Cell<u32>,
    /// It is in our own `fork`, which tells how that ended.
    pub fork_told: Cell<bool>,
    /// It was cancelled in a sleep, which had this buffer (`cancel`).
    pub cancelled: Cell<bool>,
    pub buffer: UnsafeCell<Buffer>,
    /// The innermost sleep that a handler may leave, and what it left it for (`leap`).
    pub asleep: Cell<*const Buffer>,
    pub leap: Cell<Option<Leap>>,
    /// The innermost call on a connection that is not carried, in the kernel.
    pub plain: Cell<*const Plain>,
    /// Sections of work that are done whole, which the thread is in.
    pub whole: Cell<u32>,
}

#[cfg(target_arch = "x86_64")]
const _: () = assert!(size_of::<Words>() <= 384 && align_of::<Words>() <= 16);

// The library is loaded as the program starts, so its words are at a fixed distance from the thread's pointer.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .tbss.sgm_thread_words, \"awT\", @nobits",
    ".balign 16",
    ".globl sgm_thread_words",
    ".hidden sgm_thread_words",
    "sgm_thread_words:",
    ".zero 384",
    ".size sgm_thread_words, 384",
    ".popsection",
);

/// The calling thread's. Zeros at first; a forked child has its parent's.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn words() -> &'static Words {
    let at: *const Words;
    // SAFETY: the thread's own copy of the variable above, as long as the thread runs; zeros are a valid value, and cells
    // are not shared by threads.
    unsafe {
        std::arch::asm!(
            "mov {at}, qword ptr [rip + sgm_thread_words@GOTTPOFF]",
            "add {at}, qword ptr fs:[0]",
            at = out(reg) at,
            options(pure, readonly, nostack),
        );
        &*at
    }
}

/// The calling thread's. Zeros at first; a forked child has its parent's.
#[cfg(not(target_arch = "x86_64"))]
pub fn words() -> &'static Words {
    thread_local! {
        // SAFETY: zeros are a valid value.
        static WORDS: Words = const { unsafe { std::mem::zeroed() } };
    }
    // SAFETY: it has no destructor, so it is there as long as its thread, which alone has the reference.
    WORDS.with(|w| unsafe { &*std::ptr::from_ref(w) })
}

/// The kernel's number of this thread.
#[inline]
pub fn number() -> u32 {
    let known = words().number.get();
    // A vfork child shares its parent's words, and is another thread.
    if known != 0 && !vfork::is_child() {
        return known;
    }
    ask_number()
}

#[cold]
fn ask_number() -> u32 {
    let number = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    if !vfork::is_child() {
        words().number.set(number);
    }
    number
}

/// In a forked child: the thread has another number now.
pub fn forget_number() {
    words().number.set(0);
}
