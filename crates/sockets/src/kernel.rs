//! What the engine asks of the kernel's TCP socket underneath a connection.

use std::io::{IoSlice, IoSliceMut};

use gm::EventQueue;
use ring::sync::AtomicU32;

/// Why a call ended without bytes. The fronts map it to errno and WSA codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing now (EAGAIN, WSAEWOULDBLOCK); also a time-out of SO_RCVTIMEO or SO_SNDTIMEO.
    WouldBlock,
    /// A signal handler ran (EINTR).
    Interrupted,
    /// The peer aborted the connection (ECONNRESET).
    Reset,
    /// Sending is over (EPIPE, with SIGPIPE unless the call says otherwise).
    Pipe,
    /// Both directions are over (ENOTCONN).
    NotConnected,
    /// The connection went back to TCP meanwhile: make the call on the kernel's socket.
    UseKernel,
    /// The kernel's own code.
    Other(i32),
}

/// What is next on the kernel's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// That many bytes at least.
    Bytes(usize),
    EndOfFile,
}

/// Both ends of the kernel's connection: IPv6 or IPv4-mapped addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub local: ([u8; 16], u16),
    pub peer: ([u8; 16], u16),
}

/// Sizes of a socket's buffers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// As the program set it; 0: TCP adapts it.
    pub sending: u32,
    pub receiving: u32,
    /// As large as TCP makes that for a program that reads much; 0: it has the size that the program set.
    pub receiving_most: u32,
}

/// What Linux gives a socket whose program chose nothing (tcp_rmem of tcp(7)).
impl Default for Buffers {
    fn default() -> Self {
        Self {
            sending: 0,
            receiving: 128 << 10,
            receiving_most: 6 << 20,
        }
    }
}

/// The kernel's socket. No method blocks unless its name says `sleep`; none raises SIGPIPE; none changes errno.
pub trait Kernel {
    /// Takes bytes off the stream; `Ok(0)` is end-of-file.
    fn recv(&self, buf: &mut [u8], peek: bool) -> Result<usize, Fault>;
    /// A look at what is on the stream, into several buffers, of which there is one at least; perhaps into the first alone.
    fn peek_many(&self, bufs: &mut [IoSliceMut<'_>]) -> Result<usize, Fault> {
        self.recv(&mut bufs[0], true)
    }
    /// Puts bytes on the stream.
    fn send(&self, buf: &[u8]) -> Result<usize, Fault>;
    /// Puts bytes of several buffers on the stream, from byte `skip` on; perhaps not of all of them. At least one is there.
    fn send_many(&self, bufs: &[IoSlice<'_>], mut skip: usize) -> Result<usize, Fault> {
        for buf in bufs {
            if skip < buf.len() {
                return self.send(&buf[skip..]);
            }
            skip -= buf.len();
        }
        Ok(0)
    }
    /// Lets `bytes` more be sent than the socket's send buffer takes, for bytes that are taken from the program already. What
    /// it gives puts the limit back. `None`: it can't.
    fn widen_send(&self, _bytes: usize) -> Option<u64> {
        None
    }
    /// What `widen_send` gave.
    fn restore_send(&self, _was: u64) {}
    /// May more of the node's memory be used than what a connection cannot do without?
    fn has_memory(&self) -> bool {
        true
    }
    /// How long, in µs, closing the socket waits for what is not delivered (SO_LINGER); 0: not at all.
    fn lingers_us(&self) -> u64 {
        0
    }
    /// The sizes of the socket's buffers, if they can be told.
    fn buffers(&self) -> Buffers {
        Buffers::default()
    }
    /// The state of O_NONBLOCK, from the kernel.
    fn is_nonblocking(&self) -> bool;
    /// Sleeps until the stream has a byte, or ends, at most for `timeout_us` (`WouldBlock`; 0: no limit). Ends early exactly as a
    /// blocking recv on the socket would: signals (with the kernel's own restart rule).
    fn sleep_readable(&self, timeout_us: u64) -> Result<Peeked, Fault>;
    /// Calls `sleep` with an event queue that is the caller's alone meanwhile; see [`Kernel::sleep_rung`]. `None`: there is none
    /// for this socket now, or `sleep` gave none. `needed`: it is worth making one.
    fn with_queue<R>(
        &self,
        _needed: bool,
        _sleep: impl FnOnce(&EventQueue) -> Option<R>,
    ) -> Option<R> {
        None
    }
    /// Does an epoll set of this process wait for this socket?
    fn is_watched(&self) -> bool {
        false
    }
    /// As [`Kernel::sleep_readable`], or until the bell of `queue` rings: `None`, as for a handler that does not end the call. At
    /// most for `limit_us`; if that is `timed`, by the program's own time-out, its end is `WouldBlock`, else `None` as well.
    fn sleep_rung(
        &self,
        _queue: &EventQueue,
        _limit_us: u64,
        _timed: bool,
    ) -> Result<Option<Peeked>, Fault> {
        Ok(None)
    }
    /// Sleeps until the kernel's stream takes bytes again, or `timeout_us` is over (`WouldBlock`; 0: no limit).
    /// `Interrupted`: a signal handler ran.
    fn sleep_writable(&self, timeout_us: u64) -> Result<(), Fault>;
    /// Sleeps while `*word == seq`, at most `timeout_us`. `Interrupted`: a signal handler ran.
    fn sleep_word(&self, word: &AtomicU32, seq: u32, timeout_us: u64) -> Result<(), Fault>;
    /// Holds the program's signal handlers back until `release_signals`. `None`: they are not held (there is none, or other
    /// threads would get the signals), and a sleep says `Interrupted`.
    fn hold_signals(&self) -> Option<u64> {
        None
    }
    /// What `hold_signals` gave.
    fn release_signals(&self, _held: u64) {}
    /// After a sleep in a call that has moved bytes (`moved`) or not: lets the handlers run that were held back. True: one
    /// ran that ends the call. Where nothing is held back, called only after `Interrupted`.
    fn signal_ends(&self, held: Option<u64>, _moved: bool) -> bool {
        held.is_none()
    }
    /// Wakes all who sleep on `word`.
    fn wake_word(&self, word: &AtomicU32);
    /// Lists `entry` in the event queue `queue` of the node, and rings for its waiter if that sleeps. `None`: that can't be
    /// done from here; true: it rang.
    fn list(&self, _queue: u64, _entry: u32) -> Option<bool> {
        None
    }
    /// What poll says of the socket now (without sleeping).
    fn poll(&self) -> crate::Ready;
    /// Takes a pending error off the socket (SO_ERROR), and says which it was.
    fn take_error(&self) -> Option<Fault>;
    /// Unread bytes in the kernel's receive queue.
    fn queued(&self) -> usize;
    /// All bytes ever sent and ever received-and-read on the stream, by the kernel's own count. `None`: it can't be told
    /// now (bytes are arriving).
    fn positions(&self) -> Option<(u64, u64)>;
    /// The connection's addresses.
    fn stream(&self) -> Option<Stream>;
    /// A number for the network namespace that the socket is in, the same for all programs of this host.
    fn network(&self) -> Option<u32>;
    /// Makes the close that follows abort the connection.
    fn abort_on_close(&self);
    /// `shutdown(2)` on the kernel's socket; `read`, `write`: which halves.
    fn shutdown(&self, read: bool, write: bool) -> Result<(), Fault>;
    /// Lets another thread of this CPU run.
    fn yield_now(&self);
    /// A number for the calling thread, not zero, the same in no two live threads that share an end.
    fn thread(&self) -> u32;
    /// Is the thread that had this number gone?
    fn thread_gone(&self, thread: u32) -> bool;
    /// Is it stopped, by a signal or a debugger?
    fn thread_stopped(&self, _thread: u32) -> bool {
        false
    }
    /// Microseconds of a monotonic clock.
    fn now_us(&self) -> u64;
    /// CPUs this process may run on.
    fn cpus(&self) -> u32;
}
