//! The program's buffers as slices, by the kernel's rules: what it refuses is refused, what it cuts off is cut off.

use std::ffi::{c_int, c_void};
use std::io::{IoSlice, IoSliceMut};

use libc::{iovec, size_t};

/// What the kernel takes of buffers in one call (UIO_MAXIOV).
pub const IOV_MAX: c_int = 1024;
/// What one call moves at most (MAX_RW_COUNT).
pub const MOST: usize = 0x7fff_f000;
/// A ring never holds so much: receiving needs only sums that don't overflow.
pub const ANY: usize = isize::MAX as usize;

/// A length that read and write refuse, and a sign for vectors; the kernel says with which error.
pub fn is_negative(n: size_t) -> bool {
    n > isize::MAX as usize
}

/// Would read or write refuse these bytes unseen, for their number or for where they end? The kernel says with which error.
#[inline]
pub fn is_refused(buf: *const c_void, n: size_t) -> bool {
    is_negative(n) || is_negative((buf as usize).wrapping_add(n))
}

/// An address longer than any (struct sockaddr_storage), or of negative length: the kernel refuses it unseen.
pub fn is_bad_address(len: libc::socklen_t) -> bool {
    len as usize > size_of::<libc::sockaddr_storage>()
}

#[inline]
fn single(base: *mut c_void, n: size_t) -> Result<iovec, c_int> {
    if base.is_null() && n > 0 {
        return Err(libc::EFAULT);
    }
    // Of nothing, a null pointer is fine for the kernel, but not for a slice.
    let base = if n == 0 {
        std::ptr::dangling_mut::<u8>().cast()
    } else {
        base
    };
    Ok(iovec {
        iov_base: base,
        iov_len: n.min(MOST),
    })
}

/// A single buffer to send. The error is the errno.
///
/// # Safety
/// `buf` must be readable for `n` bytes, or null.
#[inline]
pub unsafe fn one_to_send<'a>(buf: *const c_void, n: size_t) -> Result<[IoSlice<'a>; 1], c_int> {
    let v = single(buf.cast_mut(), n)?;
    // SAFETY: by the caller, and not null.
    let bytes = unsafe { std::slice::from_raw_parts(v.iov_base.cast(), v.iov_len) };
    Ok([IoSlice::new(bytes)])
}

/// A single buffer to fill. The error is the errno.
///
/// # Safety
/// `buf` must be writable for `n` bytes, or null.
#[inline]
pub unsafe fn one_to_fill<'a>(buf: *mut c_void, n: size_t) -> Result<[IoSliceMut<'a>; 1], c_int> {
    let v = single(buf, n)?;
    // SAFETY: by the caller, and not null.
    let bytes = unsafe { std::slice::from_raw_parts_mut(v.iov_base.cast(), v.iov_len) };
    Ok([IoSliceMut::new(bytes)])
}

/// Buffers that may be made slices of.
pub struct Buffers<'a> {
    whole: &'a [iovec],
    /// Instead, where already the first one is larger than a call can take.
    short: [iovec; 1],
    is_short: bool,
}

impl Buffers<'_> {
    /// The `n` buffers of a vector; as many of them as come before a null pointer and are not more than `most` bytes.
    ///
    /// # Safety
    /// As for readv and writev, but for lengths and null pointers.
    pub unsafe fn many(iov: *const iovec, n: usize, most: usize) -> Result<Self, c_int> {
        let all: &[iovec] = match (n, iov.is_null()) {
            (0, _) => &[],
            (_, true) => return Err(libc::EFAULT),
            // SAFETY: by the caller.
            _ => unsafe { std::slice::from_raw_parts(iov, n) },
        };
        if all.iter().any(|v| is_negative(v.iov_len)) {
            return Err(libc::EINVAL);
        }
        if all
            .iter()
            .any(|v| is_negative((v.iov_base as usize).wrapping_add(v.iov_len)))
        {
            return Err(libc::EFAULT);
        }
        let mut left = most;
        let fits = |v: &&iovec| {
            let fits = v.iov_len <= left && !(v.iov_base.is_null() && v.iov_len > 0);
            left = left.saturating_sub(v.iov_len);
            fits
        };
        let whole = &all[..all.iter().take_while(fits).count()];
        let rest = &all[whole.len()..];
        let is_short = !rest.is_empty() && whole.iter().all(|v| v.iov_len == 0);
        let short = match rest.first() {
            Some(v) if is_short => single(v.iov_base, v.iov_len)?,
            _ => single(std::ptr::null_mut(), 0)?,
        };
        Ok(Self {
            whole,
            short: [short],
            is_short,
        })
    }

    fn get(&self) -> &[iovec] {
        if self.is_short {
            &self.short
        } else {
            self.whole
        }
    }

    pub fn bytes(&self) -> usize {
        self.get().iter().map(|v| v.iov_len).sum()
    }

    /// # Safety
    /// The buffers must be readable, as the C function demands.
    #[inline]
    pub unsafe fn for_sending(&self) -> &[IoSlice<'_>] {
        let v = self.get();
        // SAFETY: `IoSlice` is promised to have iovec's layout; by the caller.
        unsafe { std::slice::from_raw_parts(v.as_ptr().cast(), v.len()) }
    }

    /// # Safety
    /// The buffers must be writable, as the C function demands.
    #[inline]
    pub unsafe fn for_filling(&mut self) -> &mut [IoSliceMut<'_>] {
        let v = self.get();
        // SAFETY: `IoSliceMut` is promised to have iovec's layout; the array itself is only read; by the caller.
        unsafe { std::slice::from_raw_parts_mut(v.as_ptr().cast_mut().cast(), v.len()) }
    }
}
