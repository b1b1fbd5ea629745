//! Cancellation of threads (`pthread_cancel`): what is a cancellation point in the C library is one here.
//!
//! A cancelled thread's stack is unwound by the C library. Through our own frames that must not go: they hold gates, locks and
//! counts. So a sleep is a call of the C library's, made through [`sleep`], which catches the cancellation as a C program's
//! `pthread_cleanup_push` does, by a jump buffer that the thread's unwinding stops at. From there the hook returns as if it
//! had been interrupted; and the outermost frame, in which nothing is held any more, goes on with the unwinding ([`end`]).

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicPtr};

use crate::fds::Slot;
use crate::thread::words;
use crate::{leap, real};

/// Somebody has cancelled a thread in this process.
static ASKED: AtomicBool = AtomicBool::new(false);

/// `__pthread_unwind_buf_t`: a jump buffer (200 bytes are enough on every processor), and four words.
#[repr(C, align(16))]
pub struct Buffer([usize; 32]);

/// What `pthread_cleanup_push` and `_pop` are made of; null if this C library has no such.
static SETJMP: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static REGISTER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static UNREGISTER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static UNWIND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

pub fn at_start() {
    for (at, name) in [
        (&SETJMP, c"__sigsetjmp"),
        (&REGISTER, c"__pthread_register_cancel"),
        (&UNREGISTER, c"__pthread_unregister_cancel"),
        (&UNWIND, c"__pthread_unwind_next"),
    ] {
        // SAFETY: a name.
        at.store(
            unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) },
            Relaxed,
        );
    }
}

/// A cancellation point, at the beginning of a call: nothing is held yet.
#[inline]
pub fn point() {
    if ASKED.load(Relaxed) {
        act();
    }
}

#[cold]
fn act() {
    // SAFETY: always valid to call; it may not come back.
    unsafe { pthread_testcancel() };
}

/// At the end of a call that may have slept, when nothing is held any more.
#[inline]
pub fn end() {
    if ASKED.load(Relaxed) && words().cancelled.get() {
        unwind();
    }
}

#[cold]
fn unwind() {
    words().cancelled.set(false);
    if let Some(leap) = words().leap.take() {
        // SAFETY: the program's own, who left by it; nothing is held here.
        unsafe { leap.go_on() };
    }
    // SAFETY: the function of that name, with a copy of the buffer, of which it wants the one before. It does not come back.
    unsafe {
        let next: unsafe extern "C-unwind" fn(*mut Buffer) =
            std::mem::transmute(UNWIND.load(Relaxed));
        next(words().buffer.get());
    }
}

/// Was the thread cancelled in a sleep, or that left by a handler, so that the hook is on its way out?
pub fn is_on() -> bool {
    words().cancelled.get()
}

/// A call in which the thread may be cancelled, as the C library's own. If it is, this is EINTR, and [`is_on`].
pub fn sleep(mut call: impl FnMut() -> isize) -> isize {
    if is_on() {
        crate::set_errno(libc::EINTR);
        return -1;
    }
    if cfg!(not(target_arch = "x86_64")) || UNWIND.load(Relaxed).is_null() {
        let _whole = crate::quiet::uncancelled();
        return call();
    }
    unsafe extern "C-unwind" fn body<F: FnMut() -> isize>(call: *mut c_void) -> isize {
        // SAFETY: the closure below, which is only borrowed here.
        unsafe { (*call.cast::<F>())() }
    }
    let before = words().asleep.get();
    let mut buffer = Buffer([0; 32]);
    let may_leave = words().whole.get() == 0;
    let at = &raw const buffer;
    // Only as long as the frame is there that a leap comes back to.
    let mut call = || {
        words().asleep.set(if may_leave { at } else { before });
        let r = call();
        words().asleep.set(before);
        r
    };
    fn body_of<F: FnMut() -> isize>(_: &F) -> unsafe extern "C-unwind" fn(*mut c_void) -> isize {
        body::<F>
    }
    let body = body_of(&call);
    let mut cancelled = 0;
    // SAFETY: the closure, the word and the buffer outlive the call.
    let r = unsafe {
        catch(
            body,
            (&raw mut call).cast(),
            &mut buffer,
            &mut cancelled,
            &Functions {
                setjmp: SETJMP.load(Relaxed),
                register: REGISTER.load(Relaxed),
                unregister: UNREGISTER.load(Relaxed),
            },
        )
    };
    if cancelled != 0 {
        words().asleep.set(before);
        // SAFETY: the thread's own.
        unsafe { words().buffer.get().write(buffer) };
        words().cancelled.set(true);
        crate::set_errno(libc::EINTR);
        return -1;
    }
    r
}

/// The kernel's own call, by somebody who is inside `slot` and holds nothing else: a thread that is cancelled there may stay
/// inside if it is the first one of the process.
#[inline]
pub fn plain(slot: &'static Slot, call: impl Fn() -> isize) -> isize {
    if ASKED.load(Relaxed) {
        return sleep(call);
    }
    leap::plain(slot, call)
}

/// From now on calls look whether they are to end.
pub fn ask() {
    ASKED.store(true, Relaxed);
}

#[repr(C)]
struct Functions {
    setjmp: *mut c_void,
    register: *mut c_void,
    unregister: *mut c_void,
}

/// Calls `body(argument)` with `buffer` registered. What is called twice by `setjmp` can't be Rust.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C-unwind" fn catch(
    body: unsafe extern "C-unwind" fn(*mut c_void) -> isize,
    argument: *mut c_void,
    buffer: *mut Buffer,
    cancelled: *mut c_int,
    functions: *const Functions,
) -> isize {
    std::arch::naked_asm!(
        ".cfi_startproc",
        "push rbx",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbx, 0",
        "push r12",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r12, 0",
        "push r13",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r13, 0",
        "push r14",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r14, 0",
        "push r15",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r15, 0",
        "mov r12, rdi",
        "mov r13, rsi",
        "mov rbx, rdx",
        "mov r14, rcx",
        "mov r15, r8",
        "mov rdi, rbx",
        "xor esi, esi",
        "call qword ptr [r15]",
        "test eax, eax",
        "jnz 2f",
        "mov rdi, rbx",
        "call qword ptr [r15 + 8]",
        "mov rdi, r13",
        "call r12",
        "mov r12, rax",
        "mov rdi, rbx",
        "call qword ptr [r15 + 16]",
        "mov rax, r12",
        "jmp 3f",
        "2:",
        "mov rdi, rbx",
        "call qword ptr [r15 + 16]",
        "mov dword ptr [r14], 1",
        "3:",
        "pop r15",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_restore r15",
        "pop r14",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_restore r14",
        "pop r13",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_restore r13",
        "pop r12",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_restore r12",
        "pop rbx",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_restore rbx",
        "ret",
        ".cfi_endproc",
    )
}

#[cfg(not(target_arch = "x86_64"))]
unsafe extern "C-unwind" fn catch(
    body: unsafe extern "C-unwind" fn(*mut c_void) -> isize,
    argument: *mut c_void,
    _buffer: *mut Buffer,
    _cancelled: *mut c_int,
    _functions: *const Functions,
) -> isize {
    // SAFETY: by the caller.
    unsafe { body(argument) }
}

unsafe extern "C-unwind" {
    fn pthread_testcancel();
}

/// # Safety
/// As pthread_cancel(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_cancel(thread: libc::pthread_t) -> c_int {
    ask();
    // SAFETY: the caller's argument, unchanged. Its own thread may be the one that goes.
    unsafe { real::pthread_cancel(thread) }
}
