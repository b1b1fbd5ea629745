//! A base socket's Linux descriptor under Wine, used by raw system calls: 1 µs where a way through wineserver costs 20.
//!
//! Wine keeps its sockets non-blocking in the kernel and waits for them in wineserver; we wait in `ppoll`. EINTR is
//! ordinary here (Wine suspends threads by signal) and never told to the program.

use std::sync::OnceLock;

use gm::os::raw::{self, EAGAIN, ECONNRESET, EINTR, EPIPE, ETIMEDOUT, call, checked, nr};
use ring::sync::AtomicU32;
use sockets::{Fault, Peeked, Ready, Stream};
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Networking::WinSock::{self as ws, WSABUF};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};

const MSG_PEEK: usize = 0x2;
const MSG_DONTWAIT: usize = 0x40;
const MSG_NOSIGNAL: usize = 0x4000;
const SOL_SOCKET: usize = 1;
const SO_ERROR: usize = 4;
const SO_LINGER: usize = 13;
const IPPROTO_TCP: usize = 6;
const TCP_NODELAY: usize = 1;
const TCP_INFO: usize = 11;
const FIONREAD: usize = 0x541b;
const F_SETFD: usize = 2;
const FD_CLOEXEC: usize = 1;

/// Our own copy of the descriptor; closed on drop.
pub struct Fd(i32);

/// `NTSTATUS wine_server_handle_to_fd(HANDLE, unsigned access, int *fd, unsigned *options)`: a copy for the caller.
type HandleToFd = unsafe extern "C" fn(HANDLE, u32, *mut i32, *mut u32) -> i32;

fn handle_to_fd() -> Option<HandleToFd> {
    static FUNCTION: OnceLock<Option<HandleToFd>> = OnceLock::new();
    *FUNCTION.get_or_init(|| {
        let name: Vec<u16> = "ntdll.dll\0".encode_utf16().collect();
        // SAFETY: a zero-terminated name; ntdll is in every process and stays.
        let function = unsafe {
            let module = GetModuleHandleW(name.as_ptr());
            GetProcAddress(module, c"wine_server_handle_to_fd".as_ptr().cast())
        }?;
        // SAFETY: the function of this name has this signature.
        Some(unsafe {
            std::mem::transmute::<unsafe extern "system" fn() -> isize, HandleToFd>(function)
        })
    })
}

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

fn timespec(us: u64) -> [i64; 2] {
    [(us / 1_000_000) as i64, (us % 1_000_000 * 1000) as i64]
}

fn fault(errno: i32) -> Fault {
    match errno {
        EAGAIN => Fault::WouldBlock,
        EINTR => Fault::Interrupted,
        ECONNRESET => Fault::Reset,
        EPIPE => Fault::Pipe,
        ETIMEDOUT => Fault::Other(ws::WSAETIMEDOUT),
        raw::ENOTCONN => Fault::Other(ws::WSAENOTCONN),
        _ => Fault::Other(ws::WSAECONNABORTED),
    }
}

/// Waits until one of `fds` has one of the events asked for (second of the pair, which becomes the answer); `None`: no
/// limit. Returns how many have; an interruption counts as none.
pub fn poll_many(fds: &mut [(&Fd, Ready)], limit_us: Option<u64>) -> usize {
    let mut list: Vec<PollFd> = fds
        .iter()
        .map(|(fd, events)| PollFd {
            fd: fd.0,
            events: events.0 as i16,
            revents: 0,
        })
        .collect();
    let n = ppoll(&mut list, limit_us).unwrap_or(0);
    for ((_, ready), p) in fds.iter_mut().zip(&list) {
        *ready = Ready(u32::from(p.revents as u16));
    }
    n
}

fn ppoll(list: &mut [PollFd], limit_us: Option<u64>) -> Result<usize, i32> {
    let limit = limit_us.map(timespec);
    let limit = limit.as_ref().map_or(0, |t| t.as_ptr() as usize);
    // SAFETY: an array of the length given, a local time-out; the kernel copies the latter back at most.
    checked(unsafe {
        call(
            nr::PPOLL,
            [list.as_mut_ptr() as usize, list.len(), limit, 0, 0, 0],
        )
    })
}

pub fn futex_wait(word: &AtomicU32, seq: u32, timeout_us: u64) {
    const FUTEX_WAIT: usize = 0;
    let limit = timespec(timeout_us);
    // SAFETY: a word that lives through the call, a local time-out.
    unsafe {
        call(
            nr::FUTEX,
            [
                std::ptr::from_ref(word) as usize,
                FUTEX_WAIT,
                seq as usize,
                limit.as_ptr() as usize,
                0,
                0,
            ],
        )
    };
}

pub fn futex_wake(word: &AtomicU32) {
    const FUTEX_WAKE: usize = 1;
    // SAFETY: a word that lives through the call.
    unsafe {
        call(
            nr::FUTEX,
            [
                std::ptr::from_ref(word) as usize,
                FUTEX_WAKE,
                i32::MAX as usize,
                0,
                0,
                0,
            ],
        )
    };
}

impl Fd {
    /// The descriptor under a socket handle of Wine's.
    pub fn of(handle: usize) -> Option<Fd> {
        const READ_WRITE: u32 = 3;
        let function = handle_to_fd()?;
        let mut fd = -1;
        // SAFETY: Wine checks the handle; an out-pointer to a local, no options wanted.
        let status =
            unsafe { function(handle as HANDLE, READ_WRITE, &mut fd, std::ptr::null_mut()) };
        if status != 0 || fd < 0 {
            return None;
        }
        // SAFETY: the copy just made.
        unsafe { call(nr::FCNTL, [fd as usize, F_SETFD, FD_CLOEXEC, 0, 0, 0]) };
        Some(Fd(fd))
    }

    fn n(&self) -> usize {
        self.0 as usize
    }

    pub fn number(&self) -> i32 {
        self.0
    }

    pub fn recv(&self, buf: &mut [u8], peek: bool) -> Result<usize, Fault> {
        let flags = MSG_DONTWAIT | if peek { MSG_PEEK } else { 0 };
        let args = [self.n(), buf.as_mut_ptr() as usize, buf.len(), flags, 0, 0];
        // SAFETY: our descriptor, a buffer of the length given.
        checked(unsafe { call(nr::RECVFROM, args) }).map_err(fault)
    }

    pub fn send(&self, buf: &[u8]) -> Result<usize, Fault> {
        let flags = MSG_DONTWAIT | MSG_NOSIGNAL;
        let args = [self.n(), buf.as_ptr() as usize, buf.len(), flags, 0, 0];
        // SAFETY: our descriptor, a buffer of the length given.
        checked(unsafe { call(nr::SENDTO, args) }).map_err(fault)
    }

    /// recvmsg and sendmsg, without waiting; `room` is what the program gave for it.
    ///
    /// # Safety
    /// Buffers that may be written to, or read.
    unsafe fn message(&self, number: usize, room: &[WSABUF], flags: usize) -> Result<usize, Fault> {
        /// As many as the kernel takes.
        const MOST: usize = 1024;
        let parts: Vec<[usize; 2]> = room
            .iter()
            .take(MOST)
            .map(|b| [b.buf.addr(), b.len as usize])
            .collect();
        // struct msghdr: name, its length, parts, how many, control, its length, flags.
        let header = [0, 0, parts.as_ptr().addr(), parts.len(), 0, 0, 0];
        let args = [self.n(), header.as_ptr().addr(), flags, 0, 0, 0];
        // SAFETY: our descriptor, a header of ours; the buffers are the caller's.
        checked(unsafe { call(number, args) }).map_err(fault)
    }

    /// # Safety
    /// Buffers that may be written to.
    pub unsafe fn recv_many(&self, room: &[WSABUF], peek: bool) -> Result<usize, Fault> {
        let flags = MSG_DONTWAIT | if peek { MSG_PEEK } else { 0 };
        // SAFETY: by the caller.
        unsafe { self.message(nr::RECVMSG, room, flags) }
    }

    /// # Safety
    /// Buffers that may be read.
    pub unsafe fn send_many(&self, bytes: &[WSABUF]) -> Result<usize, Fault> {
        // SAFETY: by the caller.
        unsafe { self.message(nr::SENDMSG, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) }
    }

    /// Has it, or had it, a peer?
    pub fn is_connected(&self) -> bool {
        self.name(nr::GETPEERNAME).is_some()
    }

    /// Sleeps for one of `events`, at most `limit_us` (0: without limit). `given_up` is asked after each wake-up.
    fn sleep(
        &self,
        events: Ready,
        limit_us: u64,
        given_up: impl Fn() -> bool,
    ) -> Result<(), Fault> {
        let limit = (limit_us > 0).then_some(limit_us);
        let deadline = crate::wait::after_us(limit);
        loop {
            let left_ns = deadline.left_ns(gm::os::monotonic_ns);
            let left = left_ns.map(|ns| ns.div_ceil(1000));
            let mut list = [PollFd {
                fd: self.0,
                events: events.0 as i16,
                revents: 0,
            }];
            let n = ppoll(&mut list, left);
            if given_up() {
                return Err(super::closed());
            }
            match n {
                Ok(0) if left.is_some() => return Err(Fault::WouldBlock),
                Ok(1..) => return Ok(()),
                Ok(_) | Err(EINTR) => {}
                Err(e) => return Err(fault(e)),
            }
        }
    }

    pub fn sleep_readable(
        &self,
        limit_us: u64,
        given_up: impl Fn() -> bool,
    ) -> Result<Peeked, Fault> {
        self.sleep(Ready::IN | Ready::RDHUP, limit_us, given_up)?;
        match self.recv(&mut [0], true) {
            Ok(0) => Ok(Peeked::EndOfFile),
            Ok(n) => Ok(Peeked::Bytes(n)),
            // Another reader was quicker: worth a look at the ring all the same.
            Err(Fault::WouldBlock) => Ok(Peeked::Bytes(0)),
            Err(f) => Err(f),
        }
    }

    pub fn sleep_writable(&self, limit_us: u64, given_up: impl Fn() -> bool) -> Result<(), Fault> {
        self.sleep(Ready::OUT, limit_us, given_up)
    }

    pub fn poll(&self) -> Ready {
        let mut fds = [(self, Ready::IN | Ready::OUT | Ready::RDHUP)];
        poll_many(&mut fds, Some(0));
        fds[0].1
    }

    /// An option of up to `N` bytes: what the kernel wrote, and how much.
    fn option<const N: usize>(&self, level: usize, name: usize) -> Option<([u8; N], usize)> {
        let mut value = [0_u8; N];
        let mut len = N as u32;
        let args = [
            self.n(),
            level,
            name,
            value.as_mut_ptr() as usize,
            std::ptr::from_mut(&mut len) as usize,
            0,
        ];
        // SAFETY: our descriptor, out-pointers to locals of the sizes given.
        checked(unsafe { call(nr::GETSOCKOPT, args) }).ok()?;
        Some((value, len as usize))
    }

    fn set_option(&self, level: usize, name: usize, value: &[i32]) {
        let args = [
            self.n(),
            level,
            name,
            value.as_ptr() as usize,
            size_of_val(value),
            0,
        ];
        // SAFETY: our descriptor, a value of the length given.
        unsafe { call(nr::SETSOCKOPT, args) };
    }

    pub fn take_error(&self) {
        let _ = self.option::<4>(SOL_SOCKET, SO_ERROR);
    }

    /// Sends small segments at once (doorbells).
    pub fn push_at_once(&self) {
        self.set_option(IPPROTO_TCP, TCP_NODELAY, &[1]);
    }

    pub fn queued(&self) -> usize {
        let mut n = 0_i32;
        let args = [
            self.n(),
            FIONREAD,
            std::ptr::from_mut(&mut n) as usize,
            0,
            0,
            0,
        ];
        // SAFETY: our descriptor; the request writes an int.
        unsafe { call(nr::IOCTL, args) };
        usize::try_from(n).unwrap_or(0)
    }

    /// Bytes that the program gave to the stream, and bytes that arrived in order, by the kernel's own count.
    fn tcp_info(&self) -> Option<(u64, u64)> {
        // Offsets in `struct tcp_info`, which only grows: tcpi_bytes_received (Linux 4.1), tcpi_notsent_bytes (4.6),
        // tcpi_bytes_sent and tcpi_bytes_retrans (4.19).
        const RECEIVED: usize = 128;
        const NOT_SENT: usize = 144;
        const SENT: usize = 200;
        const RETRANSMITTED: usize = 208;
        let (info, len) = self.option::<256>(IPPROTO_TCP, TCP_INFO)?;
        if len < RETRANSMITTED + 8 {
            return None;
        }
        let word = |at: usize| {
            let bytes: [u8; 8] = info[at..at + 8].try_into().unwrap_or_default();
            u64::from_ne_bytes(bytes)
        };
        let not_sent = word(NOT_SENT) & 0xffff_ffff;
        let sent = word(SENT)
            .wrapping_sub(word(RETRANSMITTED))
            .wrapping_add(not_sent);
        Some((sent, word(RECEIVED)))
    }

    pub fn positions(&self) -> Option<(u64, u64)> {
        // The queue is asked separately, so the answer holds only if nothing arrived in between.
        const TRIES: usize = 8;
        let mut info = self.tcp_info();
        for _ in 0..TRIES {
            let (sent, received) = info?;
            let queued = self.queued() as u64;
            info = self.tcp_info();
            if info.is_some_and(|(_, r)| r == received) {
                return received.checked_sub(queued).map(|read| (sent, read));
            }
        }
        None
    }

    fn name(&self, number: usize) -> Option<([u8; 16], u16)> {
        let mut address = [0_u8; 28];
        let mut len = address.len() as u32;
        let args = [
            self.n(),
            address.as_mut_ptr() as usize,
            std::ptr::from_mut(&mut len) as usize,
            0,
            0,
            0,
        ];
        // SAFETY: our descriptor, out-pointers to locals of the sizes given.
        checked(unsafe { call(number, args) }).ok()?;
        const AF_INET: u16 = 2;
        const AF_INET6: u16 = 10;
        let port = u16::from_be_bytes([address[2], address[3]]);
        match u16::from_ne_bytes([address[0], address[1]]) {
            AF_INET => {
                let v4 = std::net::Ipv4Addr::new(address[4], address[5], address[6], address[7]);
                Some((v4.to_ipv6_mapped().octets(), port))
            }
            AF_INET6 => Some((address[8..24].try_into().ok()?, port)),
            _ => None,
        }
    }

    pub fn stream(&self) -> Option<Stream> {
        Some(Stream {
            local: self.name(nr::GETSOCKNAME)?,
            peer: self.name(nr::GETPEERNAME)?,
        })
    }

    pub fn abort_on_close(&self) {
        self.set_option(SOL_SOCKET, SO_LINGER, &[1, 0]);
    }

    pub fn shutdown(&self, read: bool, write: bool) -> Result<(), Fault> {
        let how = match (read, write) {
            (true, true) => 2,
            (true, false) => 0,
            (false, true) => 1,
            (false, false) => return Ok(()),
        };
        // SAFETY: our descriptor.
        checked(unsafe { call(nr::SHUTDOWN, [self.n(), how, 0, 0, 0, 0]) })
            .map(|_| ())
            .map_err(fault)
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: our own copy, used by nobody any more.
        unsafe { call(nr::CLOSE, [self.n(), 0, 0, 0, 0, 0]) };
    }
}
