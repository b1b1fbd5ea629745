//! A port's bell on this system. On Windows there is none; under Wine it is what it is for Linux programs.

use std::io;
use std::path::Path;

use super::{raw, unix_error, unix_path};

/// An open bell; closed on drop.
pub struct Bell(usize);

impl Bell {
    pub fn make(path: &Path) -> io::Result<Self> {
        const FIFO_OF_USER: usize = 0o010_600;
        if !raw::usable() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let name = unix_path(path)?;
        // SAFETY: a zero-terminated path.
        let made = unsafe {
            raw::call(
                raw::nr::MKNOD,
                [name.as_ptr() as usize, FIFO_OF_USER, 0, 0, 0, 0],
            )
        };
        raw::checked(made).map_err(unix_error)?;
        Self::open(path)
    }

    pub fn open(path: &Path) -> io::Result<Self> {
        const O_RDWR: usize = 2;
        const O_NONBLOCK: usize = 0o4000;
        const O_NOFOLLOW: usize = 0o400_000;
        const O_CLOEXEC: usize = 0o2_000_000;
        if !raw::usable() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let name = unix_path(path)?;
        let flags = O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC;
        // SAFETY: a zero-terminated path.
        let fd = unsafe { raw::call(raw::nr::OPEN, [name.as_ptr() as usize, flags, 0, 0, 0, 0]) };
        let bell = Self(raw::checked(fd).map_err(unix_error)?);
        match bell.is_sound() {
            true => Ok(bell),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    pub fn descriptor(&self) -> i32 {
        self.0 as i32
    }

    /// Is it a pipe?
    pub fn is_sound(&self) -> bool {
        const F_GETPIPE_SZ: usize = 1032;
        // SAFETY: asks only.
        unsafe { raw::call(raw::nr::FCNTL, [self.0, F_GETPIPE_SZ, 0, 0, 0, 0]) > 0 }
    }

    /// False: it can't be rung any more.
    pub fn ring(&self) -> bool {
        let byte = [ring::layout::BELL];
        let write = || {
            // SAFETY: a byte of ours.
            unsafe { raw::call(raw::nr::WRITE, [self.0, byte.as_ptr() as usize, 1, 0, 0, 0]) }
        };
        if !self.is_sound() {
            return false;
        }
        match write() {
            1 => true,
            // Full of bells that nobody took: an edge needs a new one.
            r if r == -(raw::EAGAIN as isize) => {
                self.hush();
                write() == 1
            }
            _ => false,
        }
    }

    /// Takes off what was rung.
    pub fn hush(&self) {
        let mut scratch = [0_u8; 512];
        let mut read = || {
            // SAFETY: a buffer of ours.
            unsafe {
                let at = scratch.as_mut_ptr() as usize;
                raw::call(raw::nr::READ, [self.0, at, scratch.len(), 0, 0, 0])
            }
        };
        while read() == 512 {}
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { raw::call(raw::nr::CLOSE, [self.0, 0, 0, 0, 0, 0]) };
    }
}
