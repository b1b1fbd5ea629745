//! The few things that std and rustix do not offer, or offer by a route that the front would not see.
//!
//! rustix enters the kernel directly, so whatever waits on a carried socket (epoll, poll) must be libc's function here:
//! that is the symbol which the front stands in for, and what an ordinary program calls.
#![allow(unsafe_code)] // libc calls and one shared mapping; everything else in `bench` is safe code.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags};

/// An epoll set through libc's functions.
pub struct Epoll(OwnedFd);

pub type Event = libc::epoll_event;
pub const NO_EVENT: Event = Event { events: 0, u64: 0 };

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is used as a descriptor.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check(fd)?;
        // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Level-triggered interest in reading.
    pub fn add(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        let mut event = Event {
            events: libc::EPOLLIN as u32,
            u64: token,
        };
        // SAFETY: `event` lives across the call, which only reads it.
        let done = unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                fd.as_raw_fd(),
                &raw mut event,
            )
        };
        check(done).map(drop)
    }

    /// Waits until something is readable, or for `timeout`; a signal is not an error. Returns how many `events` were filled.
    pub fn wait(&self, events: &mut [Event], timeout: Option<Duration>) -> io::Result<usize> {
        let room = i32::try_from(events.len()).unwrap_or(i32::MAX);
        let ms = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        loop {
            // SAFETY: `events` has `room` elements that the kernel may write, for the length of the call.
            let n = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room, ms) };
            match check(n) {
                Ok(n) => return Ok(n as usize),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Sleeps in `poll` until `fd` is readable (or writable).
pub fn poll(fd: &impl AsRawFd, for_write: bool) -> io::Result<()> {
    let events = if for_write {
        libc::POLLOUT
    } else {
        libc::POLLIN
    };
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    loop {
        // SAFETY: one entry, alive across the call.
        match check(unsafe { libc::poll(&raw mut entry, 1, -1) }) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Two words in a file that another process maps too, each alone on its cache lines.
pub struct SharedWords {
    base: NonNull<u8>,
}

impl SharedWords {
    /// 128 bytes apart: the neighbour line that a prefetcher drags along must not be the other word's.
    const SECOND: usize = 128;
    pub const FILE_BYTES: u64 = 4096;

    pub fn map(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() < Self::FILE_BYTES {
            return Err(io::Error::other(
                "the file of the shared words is too short",
            ));
        }
        // SAFETY: a new mapping at an address of the kernel's choice; the file is long enough, and its only other
        // users are workers that touch it through this type.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                Self::FILE_BYTES as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        NonNull::new(base.cast())
            .map(|base| Self { base })
            .ok_or_else(|| io::Error::other("mapped at address 0"))
    }

    pub fn words(&self) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: both offsets are inside the page-aligned mapping, 8-aligned, and the mapping lives as long as `self`
        // (it is unmapped in `drop` only). All access by all processes is atomic.
        unsafe {
            let first = AtomicU64::from_ptr(self.base.as_ptr().cast());
            let second = AtomicU64::from_ptr(self.base.as_ptr().add(Self::SECOND).cast());
            (first, second)
        }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; the references of `words` cannot outlive `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), Self::FILE_BYTES as usize) };
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on an interrupt is remembered instead of ending the process, so that the scratch directory is removed.
/// The workers have no handler: the same Ctrl-C ends them, and the driver hears of it as the end of their output.
pub fn remember_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does one atomic store, which is async-signal-safe.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
