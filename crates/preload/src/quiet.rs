//! Stretches of work that must not be interrupted in this thread: not by a signal handler, which might come back in, nor by
//! a cancellation of the thread, which would leave them half done. errno is afterwards what it was.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use crate::thread::words;

pub struct Quiet {
    mask: libc::sigset_t,
    errno: c_int,
    _uncancelled: Uncancelled,
}

#[must_use]
pub fn begin() -> Quiet {
    let errno = crate::errno();
    let mut old = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: valid sets; pthread_sigmask can't fail with them.
    let mask = unsafe {
        let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), old.as_mut_ptr());
        old.assume_init()
    };
    Quiet {
        mask,
        errno,
        _uncancelled: uncancelled(),
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        crate::set_errno(self.errno);
        // SAFETY: a mask that the kernel gave us.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.mask, std::ptr::null_mut()) };
    }
}

/// As long as it lives, no call in this thread is a cancellation point, nor is a sleep left by a handler (`leap`).
pub struct Uncancelled(c_int);

#[must_use]
pub fn uncancelled() -> Uncancelled {
    const DISABLE: c_int = 1;
    let mut was = 0;
    // SAFETY: an out-pointer to a local. It fails for no valid state, and makes no system call.
    unsafe { pthread_setcancelstate(DISABLE, &mut was) };
    let whole = &words().whole;
    whole.set(whole.get() + 1);
    Uncancelled(was)
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        // SAFETY: what it was. A pending cancellation waits for the next cancellation point.
        unsafe { pthread_setcancelstate(self.0, std::ptr::null_mut()) };
        let whole = &words().whole;
        whole.set(whole.get().saturating_sub(1));
    }
}

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, was: *mut c_int) -> c_int;
}
