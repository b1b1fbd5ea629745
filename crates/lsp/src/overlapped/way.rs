//! What one operation of a line moves: the program's buffers, and how far it has come.

use sockets::{Fault, Ready};
use windows_sys::Win32::Networking::WinSock::{self as ws, WSABUF};

use crate::answer::Code;
use crate::data;

/// What is to be done.
pub struct Way {
    pub sends: bool,
    pub flags: u32,
    bufs: Vec<WSABUF>,
    /// So many bytes are done.
    pub done: usize,
}

impl Way {
    /// # Safety
    /// `count` descriptions of buffers that stay until the completion; the array need not.
    pub unsafe fn receive(bufs: *const WSABUF, count: u32, flags: u32) -> Result<Self, Code> {
        // SAFETY: by the caller.
        unsafe { Self::new(bufs, count, flags, false) }
    }

    /// # Safety
    /// As for [`Way::receive`].
    pub unsafe fn send(bufs: *const WSABUF, count: u32, flags: u32) -> Result<Self, Code> {
        // SAFETY: by the caller.
        unsafe { Self::new(bufs, count, flags, true) }
    }

    /// # Safety
    /// As for [`Way::receive`].
    unsafe fn new(bufs: *const WSABUF, count: u32, flags: u32, sends: bool) -> Result<Self, Code> {
        let bufs = match (bufs.is_null(), count) {
            (_, 0) => Vec::new(),
            (true, _) => return Err(ws::WSAEFAULT),
            // SAFETY: by the caller.
            (false, n) => unsafe { std::slice::from_raw_parts(bufs, n as usize) }.to_vec(),
        };
        // SAFETY: by the caller.
        unsafe { data::sound(bufs.as_ptr(), count, !sends)? };
        Ok(Self {
            sends,
            flags,
            bufs,
            done: 0,
        })
    }

    pub fn peeks(&self) -> bool {
        self.flags & ws::MSG_PEEK as u32 != 0
    }

    pub fn waits_for_all(&self) -> bool {
        self.flags & ws::MSG_WAITALL as u32 != 0
    }

    /// Has it received as much as it has to?
    pub fn is_enough(&self) -> bool {
        !self.waits_for_all() || self.peeks() || self.done == self.total()
    }

    /// Has it received the end of the stream?
    pub fn is_end(&self) -> bool {
        !self.sends && self.done == 0 && self.total() > 0
    }

    pub fn is_without_room(&self) -> bool {
        !self.sends && self.total() == 0
    }

    /// A receive without room waits for what it could receive. `ready`: what the ring says, or the kernel too.
    pub fn waits_for(&self, ready: impl Fn(bool) -> Ready) -> Result<bool, Fault> {
        match [false, true]
            .iter()
            .any(|k| ready(*k).has_other_than(Ready::OUT))
        {
            true => Ok(true),
            false => Err(Fault::WouldBlock),
        }
    }

    pub fn total(&self) -> usize {
        self.bufs.iter().map(|b| b.len as usize).sum()
    }

    /// MSG_OOB: the kernel's to send.
    pub fn is_urgent(&self) -> bool {
        self.sends && self.flags & ws::MSG_OOB as u32 != 0
    }

    /// What is left of the buffers after the bytes that are done.
    pub fn rest(&self) -> Vec<WSABUF> {
        let mut skip = self.done;
        let mut rest = Vec::with_capacity(self.bufs.len());
        for b in &self.bufs {
            let n = skip.min(b.len as usize);
            skip -= n;
            if n < b.len as usize || b.len == 0 {
                rest.push(WSABUF {
                    len: b.len - n as u32,
                    buf: b.buf.wrapping_add(n),
                });
            }
        }
        rest
    }
}
