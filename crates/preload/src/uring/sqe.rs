//! What the kernel will be asked: one submission, looked at before the kernel takes it.
//!
//! | submission | what happens first |
//! | --- | --- |
//! | EPOLL_CTL | it is done here and now, as by `epoll_ctl`; the kernel gets a NOP with the same `user_data` |
//! | CLOSE | what ends with the descriptor ends, as in `close` |
//! | ACCEPT | the listener is taken out of the registry: what it accepts comes in unseen |
//! | anything else on a socket of ours | back to TCP: the kernel moves bytes, or waits, on its own |
//! | anything else on an epoll set | as if it were polled: its members go back to TCP |
//!
//! A submission that may never be executed, or later (linked to the one before, drained), is not done here: it counts as
//! "anything else".

use std::ffi::c_int;

use gm::{Reason, Role};

use crate::{epoll, fds, send};

/// `struct io_uring_sqe` (io_uring_enter(2)); the unions by the names that are used here.
#[repr(C)]
pub struct Sqe {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    len: u32,
    op_flags: u32,
    user_data: u64,
    buf_index: u16,
    personality: u16,
    splice_fd_in: i32,
    rest: [u64; 2],
}
const _: () = assert!(size_of::<Sqe>() == 64);

mod op {
    pub const NOP: u8 = 0;
    pub const POLL_REMOVE: u8 = 7;
    pub const SENDMSG: u8 = 9;
    pub const TIMEOUT: u8 = 11;
    pub const TIMEOUT_REMOVE: u8 = 12;
    pub const ACCEPT: u8 = 13;
    pub const ASYNC_CANCEL: u8 = 14;
    pub const LINK_TIMEOUT: u8 = 15;
    pub const OPENAT: u8 = 18;
    pub const CLOSE: u8 = 19;
    pub const FILES_UPDATE: u8 = 20;
    pub const STATX: u8 = 21;
    pub const MADVISE: u8 = 25;
    pub const OPENAT2: u8 = 28;
    pub const EPOLL_CTL: u8 = 29;
    pub const SPLICE: u8 = 30;
    pub const PROVIDE_BUFFERS: u8 = 31;
    pub const REMOVE_BUFFERS: u8 = 32;
    pub const TEE: u8 = 33;
    pub const SOCKET: u8 = 45;
    pub const SENDMSG_ZC: u8 = 48;
    pub const WAITID: u8 = 50;
    pub const FUTEX_WAITV: u8 = 53;
    pub const PIPE: u8 = 62;
}

const FIXED_FILE: u8 = 1 << 0;
const DRAIN: u8 = 1 << 1;
const LINK: u8 = 1 << 2;
const HARDLINK: u8 = 1 << 3;
const BUFFER_SELECT: u8 = 1 << 5;
/// The bits of `flags` that every kernel with io_uring's EPOLL_CTL takes for it, and for NOP.
const ORDINARY: u8 = LINK | HARDLINK | (1 << 4) | (1 << 6) | FIXED_FILE;
const SPLICE_FD_IN_FIXED: u32 = 1 << 31;

impl Sqe {
    /// Is the next submission executed only after this one, if at all?
    pub fn links(&self) -> bool {
        self.flags & (LINK | HARDLINK) != 0
    }

    /// Does what must be done before the kernel takes it. `linked`: the one before it [`links`](Self::links). Leaves
    /// errno alone.
    ///
    /// # Safety
    /// Its pointers are valid for its operation, as for the kernel.
    pub unsafe fn prepare(&mut self, linked: bool) {
        let later = linked || self.flags & DRAIN != 0;
        let saved = crate::errno();
        match self.opcode {
            // SAFETY: by the caller.
            op::EPOLL_CTL => unsafe { self.control(later) },
            op::CLOSE => self.close(later),
            op::ACCEPT => {
                if self.flags & FIXED_FILE == 0 {
                    unlist(self.fd);
                }
            }
            // SAFETY: by the caller.
            op::FILES_UPDATE => unsafe { to_tcp_all(self.addr as *const c_int, self.len as usize) },
            op::NOP
            | op::POLL_REMOVE
            | op::TIMEOUT
            | op::TIMEOUT_REMOVE
            | op::ASYNC_CANCEL
            | op::LINK_TIMEOUT
            | op::OPENAT
            | op::STATX
            | op::MADVISE
            | op::OPENAT2
            | op::PROVIDE_BUFFERS
            | op::REMOVE_BUFFERS
            | op::SOCKET
            | op::WAITID..=op::FUTEX_WAITV
            | op::PIPE => {
                // `fd` is none here.
            }
            // SAFETY: by the caller.
            _ => unsafe { self.transfer() },
        }
        crate::set_errno(saved);
    }

    /// Bytes, waiting, or what nobody knew when this was written.
    ///
    /// # Safety
    /// As `prepare`.
    unsafe fn transfer(&self) {
        if self.flags & FIXED_FILE == 0 {
            to_tcp(self.fd);
        }
        if matches!(self.opcode, op::SPLICE | op::TEE) && self.op_flags & SPLICE_FD_IN_FIXED == 0 {
            to_tcp(self.splice_fd_in);
        }
        if matches!(self.opcode, op::SENDMSG | op::SENDMSG_ZC) {
            // SAFETY: by the caller.
            unsafe { send::hand_back_passed(self.addr as *const libc::msghdr) };
        }
    }

    fn close(&self, later: bool) {
        // With an index it closes a registered file, which is on TCP.
        if self.splice_fd_in != 0 || self.fd < 0 {
            return;
        }
        if later {
            to_tcp(self.fd);
            return;
        }
        fds::forget(self.fd);
        epoll::close_set(self.fd);
    }

    /// # Safety
    /// As `prepare`.
    unsafe fn control(&mut self, later: bool) {
        let (set, operation, member) = (self.fd, self.len as c_int, self.off as c_int);
        if !fds::is_tracked(member) {
            if operation == libc::EPOLL_CTL_ADD {
                epoll::be_watched(member);
            }
            return;
        }
        let plain = self.flags & !ORDINARY == 0
            && self.flags & BUFFER_SELECT == 0
            && self.ioprio == 0
            && self.buf_index == 0
            && self.personality == 0
            && self.splice_fd_in == 0;
        if later || !plain {
            to_tcp(member);
            return;
        }
        // A signal handler that interrupts this, and enters the ring, finds a NOP.
        let asked = self.opcode;
        // SAFETY: a field of our own.
        unsafe { std::ptr::write_volatile(&mut self.opcode, op::NOP) };
        // SAFETY: by the caller.
        let r = unsafe { epoll::epoll_ctl(set, operation, member, self.addr as *mut _) };
        if r == 0 {
            self.fd = -1;
            (self.off, self.addr, self.len, self.op_flags) = (0, 0, 0, 0);
            return;
        }
        // The kernel gives the answer; it must be the same.
        match crate::errno() {
            libc::ENOENT => epoll::forget_dormant(set, member),
            // What it is refused for is known to us alone.
            libc::EINVAL => self.len = u32::MAX,
            libc::EEXIST => {}
            _ => to_tcp(member),
        }
        self.opcode = asked;
    }
}

/// The kernel reads, writes or waits on this descriptor by itself: a socket goes back to TCP, a set's members do.
pub fn to_tcp(fd: c_int) {
    epoll::be_watched(fd);
    if let Some(inside) = fds::enter(fd)
        && inside.conn().end().role() != Role::Listener
    {
        let why = Reason::Unsupported;
        crate::giving::hand_back(&inside, why);
    }
}

/// As [`to_tcp`], for an array of descriptors.
///
/// # Safety
/// `fds` must have `n` entries, or the kernel's refusal of them comes too late.
pub unsafe fn to_tcp_all(fds: *const c_int, n: usize) {
    /// More files than the kernel registers (IORING_MAX_FIXED_FILES).
    const MOST: usize = 1 << 20;
    if fds.is_null() || n > MOST {
        return;
    }
    for i in 0..n {
        // SAFETY: by the caller.
        to_tcp(unsafe { fds.add(i).read_unaligned() });
    }
}

/// What this listener accepts from now on, we don't see: clients need not offer.
fn unlist(fd: c_int) {
    if let Some(inside) = fds::enter(fd)
        && let Some(entry) = inside.slot.take_listener()
    {
        inside.ctx().node.unlisten(entry);
    }
}
