//! The kernel's socket, for the engine: raw system calls, so errno stays the program's.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

use gm::EventQueue;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use sockets::{Buffers, Fault, Host, Kernel, Peeked, Ready, Stream};

use crate::process::confine;
use crate::queues::{self, Lent};
use crate::{buffers, cancel, ctx, fds, real, signals, time};

/// A descriptor that the calling hook was given; and where its slot says, once the program has closed it, which one keeps its
/// socket open for the calls that are still at work on it (1 + the number).
#[derive(Clone, Copy)]
pub struct Fd(pub RawFd, Option<&'static AtomicI32>);

impl Fd {
    pub fn of(number: RawFd) -> Self {
        Self(number, None)
    }

    pub fn kept_by(number: RawFd, kept: &'static AtomicI32) -> Self {
        Self(number, Some(kept))
    }

    /// The number by which the kernel knows the socket now.
    pub fn now(&self) -> RawFd {
        match self.1.map_or(0, |kept| kept.load(Acquire)) {
            0 => self.0,
            kept => kept - 1,
        }
    }

    /// Sleeps until the stream has something. No handler is for going on.
    fn poll_readable(&self, limit: Option<libc::timespec>) -> Result<Peeked, Fault> {
        let mut entry = [libc::pollfd {
            fd: self.0,
            events: libc::POLLIN | libc::POLLRDHUP,
            revents: 0,
        }];
        match faults_of(|| ppoll(&mut entry, limit, std::ptr::null()) as isize)? {
            0 => Err(Fault::WouldBlock),
            _ => match self.recv(&mut [0], true) {
                Ok(0) => Ok(Peeked::EndOfFile),
                // Another thread took it: worth a look at the ring all the same.
                Err(Fault::WouldBlock) => Ok(Peeked::Bytes(0)),
                other => other.map(Peeked::Bytes),
            },
        }
    }

    fn get(&self) -> BorrowedFd<'_> {
        // SAFETY: the hook's caller passed it, or it is kept open for its sake.
        unsafe { borrow(self.now()) }
    }
}

/// A number that a caller passed, for a system call. -1 is not of this type; of another that can't be open the kernel says the
/// same.
///
/// # Safety
/// As `BorrowedFd::borrow_raw`; but it may be closed, for the kernel to say so.
pub unsafe fn borrow<'a>(number: RawFd) -> BorrowedFd<'a> {
    const CLOSED: RawFd = -2;
    // SAFETY: by the caller.
    unsafe { BorrowedFd::borrow_raw(if number == -1 { CLOSED } else { number }) }
}

/// Is this a descriptor of the process?
pub fn is_open(fd: RawFd) -> bool {
    rustix::io::fcntl_getfd(Fd::of(fd).get()).is_ok()
}

pub fn fault(e: Errno) -> Fault {
    match e {
        Errno::AGAIN => Fault::WouldBlock,
        Errno::INTR => Fault::Interrupted,
        Errno::CONNRESET => Fault::Reset,
        Errno::PIPE => Fault::Pipe,
        e => Fault::Other(e.raw_os_error()),
    }
}

/// errno for a fault.
pub fn errno_of(f: Fault) -> i32 {
    match f {
        Fault::WouldBlock => libc::EAGAIN,
        Fault::Interrupted => libc::EINTR,
        Fault::Reset => libc::ECONNRESET,
        Fault::Pipe => libc::EPIPE,
        Fault::NotConnected => libc::ENOTCONN,
        // Made on the kernel's socket before it comes to this.
        Fault::UseKernel => libc::EAGAIN,
        Fault::Other(e) => e,
    }
}

/// A sleep in the C library, where the thread can be cancelled. errno stays.
fn sleep(call: impl FnMut() -> isize) -> Result<isize, Fault> {
    faults_of(|| cancel::sleep(call))
}

/// ppoll(2), as a sleep in the C library. `mask`: null, or a signal mask of the program's.
pub fn ppoll(
    entries: &mut [libc::pollfd],
    limit: Option<libc::timespec>,
    mask: *const libc::sigset_t,
) -> libc::c_int {
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let (array, n) = (entries.as_mut_ptr(), entries.len() as libc::nfds_t);
    // SAFETY: an array of that many; a local time-out.
    cancel::sleep(|| unsafe { real::ppoll(array, n, limit, mask) } as isize) as libc::c_int
}

/// The answer of a call in the C library. errno stays.
fn faults_of(call: impl FnOnce() -> isize) -> Result<isize, Fault> {
    let saved = crate::errno();
    let r = call();
    let e = crate::errno();
    crate::set_errno(saved);
    match r {
        0.. => Ok(r),
        _ => Err(fault(Errno::from_raw_os_error(e))),
    }
}

pub fn timespec(us: u64) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: (us / 1_000_000) as i64,
        tv_nsec: ((us % 1_000_000) * 1000) as _,
    }
}

/// CPUs this process may run on, asked again now and then: programs pin themselves.
pub fn cpus() -> u32 {
    static CPUS: AtomicU32 = AtomicU32::new(0);
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let known = CPUS.load(Relaxed);
    if known != 0 && !ASKED.fetch_add(1, Relaxed).is_multiple_of(256) {
        return known;
    }
    let n = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count().max(1));
    CPUS.store(n, Relaxed);
    n
}

/// Bytes that the program gave to the stream, and bytes that arrived in order, by the kernel's own count.
fn tcp_info(fd: RawFd) -> Option<(u64, u64)> {
    // Offsets in the kernel's `struct tcp_info`, which only grows: tcpi_bytes_received (Linux 4.1),
    // tcpi_notsent_bytes (4.6), tcpi_bytes_sent and tcpi_bytes_retrans (4.19).
    const RECEIVED: usize = 128;
    const NOT_SENT: usize = 144;
    const SENT: usize = 200;
    const RETRANSMITTED: usize = 208;
    let mut info = [0_u8; 256];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: out-pointers to locals of the sizes given.
    let r = unsafe {
        crate::real::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if r != 0 || (len as usize) < RETRANSMITTED + 8 {
        return None;
    }
    let word = |at: usize| {
        let bytes: [u8; 8] = info[at..at + 8].try_into().unwrap_or_default();
        u64::from_ne_bytes(bytes)
    };
    let not_sent = word(NOT_SENT) & 0xffff_ffff;
    Some((
        word(SENT)
            .wrapping_sub(word(RETRANSMITTED))
            .wrapping_add(not_sent),
        word(RECEIVED),
    ))
}

/// A number for the network namespace of a socket, which need not be the process's: it may have entered another since.
pub fn network(fd: RawFd) -> Option<u32> {
    /// Linux 5.14.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let (mut cookie, mut len) = (0_u64, 8);
    let saved = crate::errno();
    // SAFETY: out-pointers to locals of the sizes given.
    let r = unsafe {
        let at = (&raw mut cookie).cast();
        crate::real::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, at, &mut len)
    };
    crate::set_errno(saved);
    (r == 0).then(|| gm::os::namespace_of(cookie))
}

/// [`network`] of the sockets that this process makes, as one of them said, in the upper half of a word that is odd then.
static OURS: AtomicU64 = AtomicU64::new(0);

/// The network namespace of a socket that is about to connect, most likely. Good enough for looking whether an offer is worth
/// it: what is offered, and claimed, goes by the socket's own.
pub fn likely_network(fd: RawFd) -> Option<u32> {
    let known = OURS.load(Relaxed);
    if known != 0 {
        return Some((known >> 32) as u32);
    }
    let found = network(fd)?;
    OURS.store(u64::from(found) << 32 | 1, Relaxed);
    Some(found)
}

/// The process enters another one, perhaps.
pub fn forget_network() {
    OURS.store(0, Relaxed);
}

/// This machine, and this process on it.
pub struct Here;

impl Host for Here {
    fn now_ns(&self) -> u64 {
        gm::os::monotonic_ns()
    }

    fn yield_now(&self) {
        rustix::thread::sched_yield();
    }

    fn cpus(&self) -> u32 {
        cpus()
    }
}

impl Kernel for Fd {
    fn recv(&self, buf: &mut [u8], peek: bool) -> Result<usize, Fault> {
        let flags = RecvFlags::DONTWAIT
            | if peek {
                RecvFlags::PEEK
            } else {
                RecvFlags::empty()
            };
        rustix::net::recv(self.get(), buf, flags)
            .map(|(n, _)| n)
            .map_err(fault)
    }

    fn peek_many(&self, bufs: &mut [IoSliceMut<'_>]) -> Result<usize, Fault> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let mut none = rustix::net::RecvAncillaryBuffer::default();
        rustix::net::recvmsg(self.get(), bufs, &mut none, flags)
            .map(|m| m.bytes)
            .map_err(fault)
    }

    fn send(&self, buf: &[u8]) -> Result<usize, Fault> {
        rustix::net::send(self.get(), buf, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map_err(fault)
    }

    fn send_many(&self, bufs: &[IoSlice<'_>], mut skip: usize) -> Result<usize, Fault> {
        const MANY: usize = 16;
        let mut rest = [IoSlice::new(&[]); MANY];
        let mut n = 0;
        for buf in bufs {
            if skip >= buf.len() {
                skip -= buf.len();
            } else if n < MANY {
                rest[n] = IoSlice::new(&buf[skip..]);
                skip = 0;
                n += 1;
            }
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut none = rustix::net::SendAncillaryBuffer::default();
        rustix::net::sendmsg(self.get(), &rest[..n], &mut none, flags).map_err(fault)
    }

    fn widen_send(&self, bytes: usize) -> Option<u64> {
        buffers::widen(self.now(), bytes)
    }

    fn restore_send(&self, was: u64) {
        buffers::restore(self.now(), was);
    }

    fn has_memory(&self) -> bool {
        ctx::opened().is_some_and(|c| !gm::os::is_half_full(c.node.dir()))
    }

    fn lingers_us(&self) -> u64 {
        let linger = rustix::net::sockopt::socket_linger(self.get());
        let time = linger.ok().flatten().unwrap_or_default();
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    }

    fn buffers(&self) -> Buffers {
        buffers::sizes(self.now())
    }

    fn is_nonblocking(&self) -> bool {
        rustix::fs::fcntl_getfl(self.get()).is_ok_and(|f| f.contains(rustix::fs::OFlags::NONBLOCK))
    }

    fn sleep_readable(&self, timeout_us: u64) -> Result<Peeked, Fault> {
        if timeout_us > 0 {
            // A part of SO_RCVTIMEO, perhaps. Where there is a limit no handler is for going on.
            return self.poll_readable(Some(time::timespec_of(timeout_us.saturating_mul(1000))));
        }
        let mut scratch = [0_u8; 1];
        // SAFETY: a local buffer.
        match sleep(|| unsafe {
            real::recv(self.0, scratch.as_mut_ptr().cast(), 1, libc::MSG_PEEK)
        }) {
            Ok(0) => Ok(Peeked::EndOfFile),
            Ok(n) => Ok(Peeked::Bytes(n as usize)),
            // It was set in the middle of the program's call, which waits all the same.
            Err(Fault::WouldBlock) if self.is_nonblocking() => match self.poll_readable(None) {
                Err(Fault::Interrupted) if !cancel::is_on() && !signals::ended_sleep() => {
                    Ok(Peeked::Bytes(0))
                }
                polled => polled,
            },
            Err(f) => Err(f),
        }
    }

    fn with_queue<R>(
        &self,
        needed: bool,
        sleep: impl FnOnce(&EventQueue) -> Option<R>,
    ) -> Option<R> {
        // The kernel's own recv knows which handler ran.
        if !signals::are_alike() {
            return None;
        }
        sleep(Lent::new(needed)?.queue()?)
    }

    fn is_watched(&self) -> bool {
        fds::is_watched(self.0)
    }

    fn sleep_rung(
        &self,
        queue: &EventQueue,
        limit_us: u64,
        timed: bool,
    ) -> Result<Option<Peeked>, Fault> {
        let limit = Some(time::timespec_of(limit_us.saturating_mul(1000)));
        let entry = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let socket = entry(self.0, libc::POLLIN | libc::POLLRDHUP);
        let mut entries = [socket, entry(queue.bell().descriptor(), libc::POLLIN)];
        match faults_of(|| ppoll(&mut entries, limit, std::ptr::null()) as isize) {
            Ok(0) if !timed => return Ok(None),
            Ok(0) => return Err(Fault::WouldBlock),
            Ok(_) => {}
            // With a time-out the kernel lets no handler's wish count.
            Err(Fault::Interrupted) if !timed && !cancel::is_on() && !signals::ended_sleep() => {
                return Ok(None);
            }
            Err(Fault::Other(libc::EINVAL)) => {
                queues::refused();
                return Ok(None);
            }
            Err(f) => return Err(f),
        }
        if entries[1].revents != 0 {
            queue.bell().hush();
        }
        if entries[0].revents == 0 {
            return Ok(None);
        }
        match self.recv(&mut [0], true) {
            Ok(0) => Ok(Some(Peeked::EndOfFile)),
            Ok(n) => Ok(Some(Peeked::Bytes(n))),
            // Another thread took it.
            Err(Fault::WouldBlock) => Ok(None),
            Err(f) => Err(f),
        }
    }

    fn sleep_writable(&self, timeout_us: u64) -> Result<(), Fault> {
        let limit = (timeout_us != 0).then(|| time::timespec_of(timeout_us.saturating_mul(1000)));
        let mut entry = [libc::pollfd {
            fd: self.0,
            events: libc::POLLOUT,
            revents: 0,
        }];
        match faults_of(|| ppoll(&mut entry, limit, std::ptr::null()) as isize) {
            Ok(0) => Err(Fault::WouldBlock),
            Ok(_) => Ok(()),
            Err(f) => Err(f),
        }
    }

    fn sleep_word(&self, word: &AtomicU32, seq: u32, timeout_us: u64) -> Result<(), Fault> {
        let limit = timespec(timeout_us);
        let flags = rustix::thread::futex::Flags::empty();
        let mut woken = Ok(());
        sleep(|| {
            // Sleeps of this kind are short, and no call of the C library's, which would be ended.
            cancel::point();
            woken = rustix::thread::futex::wait(word, flags, seq, Some(&limit));
            0
        })?;
        match woken {
            Ok(()) | Err(Errno::AGAIN | Errno::TIMEDOUT) => Ok(()),
            Err(e) => Err(fault(e)),
        }
    }

    fn hold_signals(&self) -> Option<u64> {
        signals::hold()
    }

    fn release_signals(&self, held: u64) {
        signals::set_mask(held);
    }

    fn signal_ends(&self, held: Option<u64>, moved: bool) -> bool {
        cancel::is_on() || signals::end_call(held, moved)
    }

    fn wake_word(&self, word: &AtomicU32) {
        let flags = rustix::thread::futex::Flags::empty();
        let _ = rustix::thread::futex::wake(word, flags, i32::MAX as u32);
    }

    fn list(&self, queue: u64, entry: u32) -> Option<bool> {
        let may_open = !confine::is_confined();
        gm::events::tell(ctx::opened()?.node.dir(), queue, entry, may_open)
    }

    fn poll(&self) -> Ready {
        let all = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP;
        let fd = self.get();
        let mut fds = [PollFd::new(&fd, all)];
        let now = timespec(0);
        match rustix::event::poll(&mut fds, Some(&now)) {
            Ok(1..) => Ready(u32::from(fds[0].revents().bits())),
            _ => Ready::NONE,
        }
    }

    fn take_error(&self) -> Option<Fault> {
        let error = rustix::net::sockopt::socket_error(self.get()).ok()?;
        error.err().map(fault)
    }

    fn queued(&self) -> usize {
        rustix::io::ioctl_fionread(self.get()).map_or(0, |n| n as usize)
    }

    fn positions(&self) -> Option<(u64, u64)> {
        // The queue is asked separately, so the answer holds only if nothing arrived in between.
        const TRIES: usize = 8;
        let saved = crate::errno();
        let mut info = tcp_info(self.now());
        let mut found = None;
        for _ in 0..TRIES {
            let Some((sent, received)) = info else { break };
            let queued = self.queued() as u64;
            info = tcp_info(self.now());
            if info.is_some_and(|(_, r)| r == received) {
                found = received.checked_sub(queued).map(|read| (sent, read));
                break;
            }
        }
        crate::set_errno(saved);
        found
    }

    fn stream(&self) -> Option<Stream> {
        let split = |a: rustix::net::SocketAddrAny| {
            let a = std::net::SocketAddr::try_from(a).ok()?;
            let ip = match a.ip() {
                std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                std::net::IpAddr::V6(v6) => v6.octets(),
            };
            Some((ip, a.port()))
        };
        Some(Stream {
            local: split(rustix::net::getsockname(self.get()).ok()?)?,
            peer: split(rustix::net::getpeername(self.get()).ok()??)?,
        })
    }

    fn network(&self) -> Option<u32> {
        network(self.now())
    }

    fn abort_on_close(&self) {
        let zero = Some(std::time::Duration::ZERO);
        let _ = rustix::net::sockopt::set_socket_linger(self.get(), zero);
    }

    fn shutdown(&self, read: bool, write: bool) -> Result<(), Fault> {
        let how = match (read, write) {
            (true, true) => rustix::net::Shutdown::Both,
            (true, false) => rustix::net::Shutdown::Read,
            (false, true) => rustix::net::Shutdown::Write,
            (false, false) => return Ok(()),
        };
        rustix::net::shutdown(self.get(), how).map_err(fault)
    }

    fn yield_now(&self) {
        rustix::thread::sched_yield();
    }

    fn thread(&self) -> u32 {
        crate::thread::number()
    }

    fn thread_gone(&self, thread: u32) -> bool {
        !gm::os::task_alive(thread)
    }

    fn thread_stopped(&self, thread: u32) -> bool {
        gm::os::task_stopped(thread)
    }

    fn now_us(&self) -> u64 {
        gm::os::monotonic_ns() / 1000
    }

    fn cpus(&self) -> u32 {
        cpus()
    }
}
