//! The buffers of the kernel's socket.

use std::os::fd::RawFd;

use gm::Asked;
use libc::c_int;
use sockets::Buffers;

/// Linux 5.16: which buffers have the program's size, not one that TCP adapts.
pub const SO_BUF_LOCK: c_int = 72;
/// In it: the send buffer (SOCK_SNDBUF_LOCK), the receive buffer (SOCK_RCVBUF_LOCK).
const SEND_LOCKED: u32 = 1;
const RECEIVE_LOCKED: u32 = 2;

/// What the kernel counts of a byte besides the byte.
const OVERHEAD: usize = 3;
/// What TCP has made a buffer by itself is more than most systems let a program ask for; asking would make it less.
const ADAPTED: u32 = 400_000;

/// Makes room for `bytes` more in the send buffer. What it gives is for [`restore`].
pub fn widen(fd: RawFd, bytes: usize) -> Option<u64> {
    let was = get(fd, libc::SO_SNDBUF)?;
    let locked = locks(fd);
    let wide = was as usize + OVERHEAD * bytes;
    let asks = locked & SEND_LOCKED != 0 || was <= ADAPTED;
    let mut done = force_send(fd, wide);
    if !done && asks && ask_send(fd, wide) {
        // Beyond what a program may ask for, TCP makes it as large as it needs, if it has not the size that somebody chose.
        set(fd, SO_BUF_LOCK, locked & !SEND_LOCKED);
        done = true;
    }
    done.then_some(u64::from(was) | u64::from(locked) << 32)
}

pub fn restore(fd: RawFd, was: u64) {
    // The kernel doubles what it is told.
    let bytes = (was as u32 / 2) as usize;
    if !force_send(fd, bytes) {
        ask_send(fd, bytes);
    }
    set(fd, SO_BUF_LOCK, (was >> 32) as u32);
}

/// Beyond the system's limit, which only some may.
fn force_send(fd: RawFd, bytes: usize) -> bool {
    set(fd, libc::SO_SNDBUFFORCE, bounded(bytes))
}

fn ask_send(fd: RawFd, bytes: usize) -> bool {
    set(fd, libc::SO_SNDBUF, bounded(bytes))
}

/// No more than the kernel can double.
fn bounded(bytes: usize) -> u32 {
    bytes.min(i32::MAX as usize / 2) as u32
}

pub fn sizes(fd: RawFd) -> Buffers {
    let locked = locks(fd);
    let sending = match locked & SEND_LOCKED {
        0 => small_limit(),
        _ => get(fd, libc::SO_SNDBUF),
    };
    // What a window lets come, it lets come, though the program makes its buffer smaller after that.
    let promised = match locked & RECEIVE_LOCKED {
        0 => 0,
        _ => receive_window(fd).unwrap_or(0) / 4 * 3,
    };
    Buffers {
        sending: sending.unwrap_or(0),
        receiving: get(fd, libc::SO_RCVBUF).unwrap_or(0).max(promised),
        receiving_most: match locked & RECEIVE_LOCKED {
            0 => receive_limit(),
            _ => 0,
        },
    }
}

/// What TCP has told the peer that it may send (tcpi_rcv_wnd, Linux 6.2).
fn receive_window(fd: RawFd) -> Option<u32> {
    const AT: usize = 232;
    let info = tcp_info::<{ AT + size_of::<u32>() }>(fd)?;
    Some(u32::from_ne_bytes(std::array::from_fn(|i| info[AT + i])))
}

/// The first bytes of `struct tcp_info`, if the kernel's has so many.
pub fn tcp_info<const N: usize>(fd: RawFd) -> Option<[u8; N]> {
    let (mut info, mut len) = ([0_u8; N], N as libc::socklen_t);
    let saved = crate::errno();
    // SAFETY: out-pointers to locals of the sizes given.
    let result = unsafe {
        let at = info.as_mut_ptr().cast();
        crate::real::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, at, &mut len)
    };
    crate::set_errno(saved);
    (result == 0 && len as usize == N).then_some(info)
}

/// What the kernel answers to SIOCOUTQ and its like.
pub fn unsent(fd: RawFd, request: libc::c_ulong) -> usize {
    let mut bytes: c_int = 0;
    let saved = crate::errno();
    // SAFETY: the request writes an int.
    unsafe { crate::real::ioctl(fd, request, (&raw mut bytes) as usize) };
    crate::set_errno(saved);
    usize::try_from(bytes).unwrap_or(0)
}

fn receive_limit() -> u32 {
    const USUAL: u32 = 6 << 20;
    static LIMIT: Asked = Asked::new();
    LIMIT.get(|| gm::os::receive_buffer_limit().unwrap_or(USUAL).into()) as u32
}

/// The system's limit, where that is small: what is in flight in the ring must find room there.
fn small_limit() -> Option<u32> {
    const USUAL: u32 = 4 << 20;
    static LIMIT: Asked = Asked::new();
    let limit = LIMIT.get(|| gm::os::send_buffer_limit().unwrap_or(USUAL).into()) as u32;
    Some(limit).filter(|limit| *limit < USUAL)
}

fn locks(fd: RawFd) -> u32 {
    get(fd, SO_BUF_LOCK).unwrap_or(0)
}

fn get(fd: RawFd, name: c_int) -> Option<u32> {
    let (mut value, mut len) = (0_u32, 4);
    let saved = crate::errno();
    // SAFETY: out-pointers to locals of the sizes given.
    let result = unsafe {
        let at = (&raw mut value).cast();
        crate::real::getsockopt(fd, libc::SOL_SOCKET, name, at, &mut len)
    };
    crate::set_errno(saved);
    (result == 0).then_some(value)
}

fn set(fd: RawFd, name: c_int, value: u32) -> bool {
    let saved = crate::errno();
    // SAFETY: a local of the size given.
    let result = unsafe {
        let at = (&raw const value).cast();
        crate::real::setsockopt(fd, libc::SOL_SOCKET, name, at, 4)
    };
    crate::set_errno(saved);
    result == 0
}
