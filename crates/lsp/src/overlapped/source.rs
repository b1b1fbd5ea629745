//! What TransmitFile sends: a head, a file, a tail.

use std::ptr::{null, null_mut};

use windows_sys::Win32::Foundation::{
    CloseHandle, ERROR_HANDLE_EOF, ERROR_IO_PENDING, GetLastError, HANDLE, INVALID_HANDLE_VALUE,
};
use windows_sys::Win32::Networking::WinSock::{TRANSMIT_FILE_BUFFERS, WSABUF};
use windows_sys::Win32::Storage::FileSystem::ReadFile;
use windows_sys::Win32::System::IO::{GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Threading::CreateEventW;

use crate::answer::Code;

/// What is read of a file at once, unless the program says.
const PIECE: u32 = 128 * 1024;

pub struct Source {
    file: HANDLE,
    /// With OVERLAPPED; `None`: from where the file stands.
    offset: Option<u64>,
    /// `None`: to its end.
    left: Option<u32>,
    piece: Vec<u8>,
    /// What `piece` holds was read and not given out yet.
    ready: usize,
    tail: Option<WSABUF>,
    event: HANDLE,
}

impl Source {
    /// The first piece is read at once. An error: such a file is not ours to read.
    ///
    /// # Safety
    /// TransmitFile's arguments; the buffers and the file stay until the completion.
    pub unsafe fn open(
        file: HANDLE,
        offset: Option<u64>,
        bytes: u32,
        per_send: u32,
        buffers: *const TRANSMIT_FILE_BUFFERS,
    ) -> Result<(Self, WSABUF), Code> {
        let buffer = |at: *mut core::ffi::c_void, len| WSABUF {
            len,
            buf: at.cast(),
        };
        // SAFETY: null or the caller's.
        let (head, tail) = match unsafe { buffers.as_ref() } {
            Some(b) => (buffer(b.Head, b.HeadLength), buffer(b.Tail, b.TailLength)),
            None => (buffer(null_mut(), 0), buffer(null_mut(), 0)),
        };
        // SAFETY: an event of nobody else's. The low bit of its handle keeps the completion from the port that the program may have
        // put the file on.
        let event = unsafe { CreateEventW(null(), 1, 0, null()) };
        let piece = if per_send == 0 {
            PIECE
        } else {
            per_send.min(PIECE)
        };
        let mut source = Self {
            file,
            offset,
            // 0: all of it.
            left: (bytes > 0).then_some(bytes),
            piece: vec![0; piece as usize],
            ready: 0,
            tail: Some(tail),
            event,
        };
        source.ready = source.read()?;
        Ok((source, head))
    }

    /// What comes next; `None`: that was all. The last one is done.
    pub fn next(&mut self) -> Result<Option<WSABUF>, Code> {
        let n = match std::mem::take(&mut self.ready) {
            0 if self.tail.is_some() => self.read()?,
            n => n,
        };
        if n > 0 {
            return Ok(Some(WSABUF {
                len: n as u32,
                buf: self.piece.as_mut_ptr(),
            }));
        }
        Ok(self.tail.take().filter(|tail| tail.len > 0))
    }

    /// How many bytes came into `piece`; 0: that was all.
    fn read(&mut self) -> Result<usize, Code> {
        if self.file.is_null() || self.file == INVALID_HANDLE_VALUE {
            return Ok(0);
        }
        let room = self.piece.len() as u32;
        let want = self.left.map_or(room, |left| left.min(room));
        if want == 0 {
            return Ok(0);
        }
        let mut ov = OVERLAPPED {
            hEvent: (self.event.addr() | 1) as HANDLE,
            ..OVERLAPPED::default()
        };
        let offset = self.offset.unwrap_or(0);
        ov.Anonymous.Anonymous.Offset = offset as u32;
        ov.Anonymous.Anonymous.OffsetHigh = (offset >> 32) as u32;
        let at = self.offset.map_or(null_mut(), |_| &raw mut ov);
        let mut n = 0;
        // SAFETY: a buffer of at least that length and a structure, both there until it is done; the program's file.
        let good = unsafe {
            ReadFile(self.file, self.piece.as_mut_ptr(), want, &mut n, at) != 0
                || !at.is_null()
                    && GetLastError() == ERROR_IO_PENDING
                    && GetOverlappedResult(self.file, at, &mut n, 1) != 0
        };
        if !good {
            // SAFETY: always valid to call.
            return match unsafe { GetLastError() } {
                ERROR_HANDLE_EOF => Ok(0),
                code => Err(code as Code),
            };
        }
        self.offset = self.offset.map(|offset| offset + u64::from(n));
        if let Some(left) = &mut self.left {
            *left -= n;
        }
        Ok(n as usize)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: our own.
        unsafe { CloseHandle(self.event) };
    }
}
