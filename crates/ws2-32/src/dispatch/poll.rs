//! WSAPoll, which the SPI has as the ioctl SIO_EXT_POLL.

use std::ptr;

use windows_sys::Win32::Networking::WinSock::*;

use super::{fail, layered};
use crate::builtin;
use crate::fdset::Set;

#[unsafe(no_mangle)]
unsafe extern "system" fn WSAPoll(fds: *mut WSAPOLLFD, n: u32, timeout_ms: i32) -> i32 {
    let list: &mut [WSAPOLLFD] = if fds.is_null() {
        &mut []
    } else {
        // SAFETY: the program's own array of that length.
        unsafe { std::slice::from_raw_parts_mut(fds, n as usize) }
    };
    let Some(first) = list.iter().map(|p| p.fd).find(|s| layered(*s).is_some()) else {
        // SAFETY: the program's own arguments.
        return unsafe { builtin::WSAPoll(fds, n, timeout_ms) };
    };
    let result = match by_ioctl(first, list, timeout_ms) {
        Err(WSAEOPNOTSUPP | WSAEINVAL | WSAEFAULT) => by_select(list, timeout_ms),
        answered => answered,
    };
    result.unwrap_or_else(|error| {
        fail(error);
        SOCKET_ERROR
    })
}

/// Asks the provider of the first layered socket, with the whole array (WSAPOLLDATA: three words, then the array itself).
fn by_ioctl(first: SOCKET, list: &mut [WSAPOLLFD], timeout_ms: i32) -> Result<i32, i32> {
    const HEAD: usize = std::mem::offset_of!(WSAPOLLDATA, fdArray);
    let poll = layered(first)
        .and_then(|p| p.table().lpWSPIoctl)
        .ok_or(WSAEOPNOTSUPP)?;
    let len = HEAD + size_of_val(list);
    let mut words = vec![0u64; len.div_ceil(8)];
    let data = words.as_mut_ptr().cast::<WSAPOLLDATA>();
    let (mut returned, mut error) = (0, 0);
    // SAFETY: `words` is as long as the structure with this many members and aligned for it; the SPI's entry.
    unsafe {
        let array = data.byte_add(HEAD).cast::<WSAPOLLFD>();
        (*data).fds = list.len() as u32;
        (*data).timeout = timeout_ms;
        ptr::copy_nonoverlapping(list.as_ptr(), array, list.len());
        let failed = poll(
            first,
            SIO_EXT_POLL,
            data.cast(),
            len as u32,
            data.cast(),
            len as u32,
            &mut returned,
            ptr::null_mut(),
            None,
            ptr::null(),
            &mut error,
        );
        if failed == SOCKET_ERROR || (*data).result == SOCKET_ERROR {
            return Err(error);
        }
        for (i, entry) in list.iter_mut().enumerate() {
            entry.revents = (*array.add(i)).revents;
        }
        Ok((*data).result)
    }
}

/// For a provider without that ioctl: what `select` can tell. Errors are those that SO_ERROR still holds.
fn by_select(list: &mut [WSAPOLLFD], timeout_ms: i32) -> Result<i32, i32> {
    let valid = |p: &&WSAPOLLFD| (p.fd as isize) >= 0;
    let wanting = |mask: i16| {
        Set::new(
            list.iter()
                .filter(valid)
                .filter(|p| p.events & mask != 0)
                .map(|p| p.fd),
        )
    };
    let mut sets = [
        wanting(POLLIN),
        wanting(POLLOUT),
        Set::new(list.iter().filter(valid).map(|p| p.fd)),
    ];
    let [read, write, except] = sets.each_mut().map(Set::as_ptr);
    let timeout = TIMEVAL {
        tv_sec: timeout_ms / 1000,
        tv_usec: timeout_ms % 1000 * 1000,
    };
    let timeout = if timeout_ms < 0 {
        ptr::null()
    } else {
        &raw const timeout
    };
    // SAFETY: sets of our own with true counts.
    if unsafe { super::select::select(0, read, write, except, timeout) } == SOCKET_ERROR {
        // SAFETY: reads the thread's own word.
        return Err(unsafe { WSAGetLastError() });
    }
    let [read, write, except] = sets.each_ref().map(Set::members);
    let mut count = 0;
    for p in list {
        p.revents = 0;
        if (p.fd as isize) < 0 {
            p.revents = POLLNVAL; // as Wine says of a negative one
            continue;
        }
        if read.contains(&p.fd) {
            p.revents |= p.events & POLLRDNORM;
        }
        if write.contains(&p.fd) {
            p.revents |= p.events & POLLWRNORM;
        }
        if except.contains(&p.fd) {
            p.revents |= if has_error(p.fd) {
                POLLERR | POLLHUP
            } else {
                p.events & POLLRDBAND
            };
        }
        count += i32::from(p.revents != 0);
    }
    Ok(count)
}

fn has_error(s: SOCKET) -> bool {
    let (mut error, mut len) = (0i32, 4);
    // SAFETY: four bytes, as the length says.
    let asked =
        unsafe { super::getsockopt(s, SOL_SOCKET, SO_ERROR, (&raw mut error).cast(), &mut len) };
    asked == 0 && error != 0
}
