//! What one operation of a line moves: the program's buffers, and how far it has come.

use sockets::{Fault, Ready};
use windows_sys::Win32::Networking::WinSock::{self as ws, WSABUF};

use super::source::Source;
use crate::answer::Code;
use crate::data;

/// So much of a file is sent by the call itself, if it can be, and then at a time.
const TURN: usize = 512 * 1024;

/// What is to be done.
pub struct Way {
    pub sends: bool,
    pub flags: u32,
    bufs: Vec<WSABUF>,
    /// So many bytes of these buffers are done.
    pub done: usize,
    /// What comes after them.
    source: Option<Source>,
    /// So many bytes of earlier ones are.
    earlier: usize,
    /// Of a file: how much is sent before others get their turn.
    turn: usize,
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
            source: None,
            earlier: 0,
            turn: 0,
        })
    }

    /// TransmitFile: `head`, and then what `source` gives.
    pub fn file(source: Source, head: WSABUF) -> Self {
        Self {
            sends: true,
            flags: 0,
            bufs: vec![head],
            done: 0,
            source: Some(source),
            earlier: 0,
            turn: TURN,
        }
    }

    pub fn is_file(&self) -> bool {
        self.source.is_some()
    }

    pub fn moved(&self) -> usize {
        self.earlier + self.done
    }

    /// Of a file: is its turn over? The next one begins.
    pub fn pauses(&mut self) -> bool {
        let over = self.is_file() && self.moved() >= self.turn;
        if over {
            self.turn = self.moved() + TURN;
        }
        over
    }

    /// All of these buffers is done. False: and nothing comes after them.
    pub fn goes_on(&mut self) -> Result<bool, Code> {
        let Some(source) = &mut self.source else {
            return Ok(false);
        };
        let Some(next) = source.next()? else {
            return Ok(false);
        };
        self.earlier += std::mem::take(&mut self.done);
        self.bufs = vec![next];
        Ok(true)
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
