//! The engine's view of a base socket: through its Linux descriptor under Wine, else through the lower provider.

mod base;
pub mod epoll;
mod linux;

pub use linux::{Fd, futex_wait, futex_wake, poll_many};

use std::sync::OnceLock;
use std::time::Duration;

use ring::sync::AtomicU32;
use sockets::{Fault, Kernel, Peeked, Ready, Stream};
use windows_sys::Win32::System::Threading::GetCurrentThreadId;

use crate::ctx;
use crate::slot::Body;

/// May base sockets be reached by Linux system calls? `SGM_LINUX=0` says no, so that the other way can be tried under Wine.
pub fn is_linux() -> bool {
    static YES: OnceLock<bool> = OnceLock::new();
    *YES.get_or_init(|| {
        gm::os::raw::usable() && std::env::var_os("SGM_LINUX").is_none_or(|v| v != "0")
    })
}

/// A base socket, for the engine.
pub struct Socket<'a>(pub &'a Body);

macro_rules! by {
    ($self:ident, $linux:expr, $base:expr) => {
        match $self.0.fd() {
            Some(fd) => $linux(fd),
            None => $base($self.0),
        }
    };
}

impl Kernel for Socket<'_> {
    fn recv(&self, buf: &mut [u8], peek: bool) -> Result<usize, Fault> {
        match self.0.fd() {
            // Only what is received through the lower provider lets it signal the next arrival.
            Some(fd) if !peek && self.0.is_selected() => match base::recv_now(self.0, buf, peek) {
                // The end ends the connection for good, so the kernel is asked to say it itself.
                Ok(0) if !fd.poll().intersects(Ready::RDHUP | Ready::HUP) => Err(Fault::WouldBlock),
                other => other,
            },
            Some(fd) => fd.recv(buf, peek),
            None => base::recv(self.0, buf, peek),
        }
    }

    fn send(&self, buf: &[u8]) -> Result<usize, Fault> {
        by!(self, |fd: &Fd| fd.send(buf), |b| base::send(b, buf))
    }

    fn list(&self, queue: u64, entry: u32) -> Option<bool> {
        gm::events::tell(ctx::get()?.node.dir(), queue, entry, true)
    }

    fn is_nonblocking(&self) -> bool {
        self.0.is_nonblocking()
    }

    fn sleep_readable(&self, timeout_us: u64) -> Result<Peeked, Fault> {
        let body = self.0;
        by!(
            self,
            |fd: &Fd| fd.sleep_readable(timeout_us, || body.is_closing()),
            |b| base::sleep_readable(b, timeout_us)
        )
    }

    fn sleep_writable(&self, timeout_us: u64) -> Result<(), Fault> {
        let body = self.0;
        by!(
            self,
            |fd: &Fd| fd.sleep_writable(timeout_us, || body.is_closing()),
            |b| base::sleep_writable(b, timeout_us)
        )
    }

    fn sleep_word(&self, word: &AtomicU32, seq: u32, timeout_us: u64) -> Result<(), Fault> {
        if self.0.is_closing() {
            return Err(closed());
        }
        if is_linux() {
            linux::futex_wait(word, seq, timeout_us);
        } else {
            // No event of Windows lies in memory that two processes share; a writer that waits for room looks again
            // this often.
            std::thread::sleep(Duration::from_micros(timeout_us.min(1000)));
        }
        Ok(())
    }

    fn wake_word(&self, word: &AtomicU32) {
        if is_linux() {
            linux::futex_wake(word);
        }
    }

    fn poll(&self) -> Ready {
        by!(self, |fd: &Fd| fd.poll(), base::poll)
    }

    fn take_error(&self) -> Option<Fault> {
        by!(self, |fd: &Fd| fd.take_error(), base::take_error);
        // Winsock tells of a reset alone.
        None
    }

    fn queued(&self) -> usize {
        by!(self, |fd: &Fd| fd.queued(), base::queued)
    }

    fn positions(&self) -> Option<(u64, u64)> {
        by!(self, |fd: &Fd| fd.positions(), base::positions)
    }

    fn stream(&self) -> Option<Stream> {
        by!(self, |fd: &Fd| fd.stream(), base::stream)
    }

    fn network(&self) -> Option<u32> {
        Some(gm::os::network_namespace())
    }

    fn abort_on_close(&self) {
        by!(self, |fd: &Fd| fd.abort_on_close(), base::abort_on_close)
    }

    fn shutdown(&self, read: bool, write: bool) -> Result<(), Fault> {
        by!(self, |fd: &Fd| fd.shutdown(read, write), |b| {
            base::shutdown(b, read, write)
        })
    }

    fn yield_now(&self) {
        yield_now();
    }

    fn thread(&self) -> u32 {
        // SAFETY: always valid to call.
        unsafe { GetCurrentThreadId() }
    }

    fn thread_gone(&self, thread: u32) -> bool {
        !gm::os::thread_alive(thread)
    }

    fn now_us(&self) -> u64 {
        gm::os::monotonic_ns() / 1000
    }

    fn cpus(&self) -> u32 {
        cpus()
    }
}

/// Before a socket is selected: has the lower provider forget an FD_READ that it recorded or told of, by the one call that does
/// so, a receive. What arrives from now on it tells of. The socket is left non-blocking, as selecting it does.
pub fn enable_read(b: &Body) {
    if base::set_nonblocking(b) {
        let _ = base::recv_now(b, &mut [0], true);
    }
}

/// What a call gets whose socket another thread closed meanwhile.
pub fn closed() -> Fault {
    Fault::Other(windows_sys::Win32::Networking::WinSock::WSAENOTSOCK)
}

pub fn yield_now() {
    if is_linux() {
        gm::os::raw::sched_yield();
    } else {
        std::thread::yield_now();
    }
}

/// CPUs this thread may run on, asked again now and then: programs are pinned.
pub fn cpus() -> u32 {
    use std::sync::atomic::Ordering::Relaxed;
    static CPUS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    static ASKED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let known = CPUS.load(Relaxed);
    if known != 0 && !ASKED.fetch_add(1, Relaxed).is_multiple_of(256) {
        return known;
    }
    let n = if is_linux() {
        gm::os::raw::cpus()
    } else {
        std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
    };
    CPUS.store(n, Relaxed);
    n
}
