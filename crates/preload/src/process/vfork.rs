//! vfork: the child runs in its parent's memory, on its stack, with its thread-local variables, while the calling thread
//! stands still. It has descriptors of its own, though, and our tables are the parent's. So a word of the thread says that
//! a child may be running in it; there every descriptor looks unknown, and goes straight to the kernel.
//!
//! Only exec looks further in such a child (see `exec`).

use std::ffi::c_int;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU32};

use crate::thread::words;
use crate::{adopt, ctx, fds};

/// Threads of this process that are in a vfork.
static FORKING: AtomicU32 = AtomicU32::new(0);
/// There are sockets whose cookies no end has noted.
static NEW: AtomicBool = AtomicBool::new(false);

/// This process's number, from the kernel.
pub fn pid() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get() as u32
}

/// Does a vfork child run here, in its parent's memory?
#[inline]
pub fn is_child() -> bool {
    FORKING.load(Relaxed) != 0 && runs_here()
}

#[cold]
fn runs_here() -> bool {
    // A signal handler of the parent, just before or after, is no child.
    let parent = words().vfork_parent.get();
    parent != 0 && parent != pid()
}

/// Is this process a child that shares our memory, or one that the tables know nothing of? Its descriptors are its own.
pub fn is_guest(ctx: &ctx::Ctx) -> bool {
    is_child() || ctx.node.me().pid != pid()
}

/// A socket that is followed from now on; a vfork child may have to tell which one it is.
pub fn note_new() {
    NEW.store(true, Relaxed);
}

/// Has the ends of all sockets note their cookies: a vfork child can't ask the kernel about its parent's descriptors.
fn note_cookies() {
    if ctx::opened().is_some() && NEW.swap(false, Relaxed) {
        let saved = crate::errno();
        fds::each_slot_once(|inside| {
            let end = inside.conn().end();
            if end.cookie.load(Relaxed) == 0 {
                end.cookie.store(adopt::cookie(inside.number), Relaxed);
            }
        });
        crate::set_errno(saved);
    }
}

extern "C" fn before() {
    if words().vfork_parent.get() != 0 {
        words().vfork_depth.set(words().vfork_depth.get() + 1);
        return;
    }
    note_cookies();
    words().vfork_parent.set(pid());
    FORKING.fetch_add(1, AcqRel);
}

/// In the parent, when the child has its own memory or has ended. `r`: what the system call answered.
extern "C" fn after(r: c_int) -> c_int {
    if words().vfork_depth.get() > 0 {
        words().vfork_depth.set(words().vfork_depth.get() - 1);
    } else {
        words().vfork_parent.set(0);
        FORKING.fetch_sub(1, AcqRel);
    }
    if r < 0 {
        crate::set_errno(-r);
        return -1;
    }
    r
}

/// # Safety
/// As vfork(2).
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn vfork() -> c_int {
    // No frame of ours may be on the stack when the child returns: it goes on from there, and what it calls overwrites
    // everything below, the place of the return address first. So that one waits in rdi, which the kernel keeps.
    std::arch::naked_asm!(
        "sub rsp, 8",
        "call {before}",
        "add rsp, 8",
        "pop rdi",
        "mov eax, {number}",
        "syscall",
        "push rdi",
        "test eax, eax",
        "jz 2f",
        "mov edi, eax",
        "sub rsp, 8",
        "call {after}",
        "add rsp, 8",
        "2:",
        "ret",
        before = sym before,
        after = sym after,
        number = const libc::SYS_vfork as i32,
    )
}

/// # Safety
/// As fork(2), which POSIX lets vfork be.
#[cfg(not(target_arch = "x86_64"))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfork() -> c_int {
    // SAFETY: fork has no preconditions of its own.
    unsafe { super::fork() }
}
