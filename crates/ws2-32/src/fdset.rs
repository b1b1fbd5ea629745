//! `fd_set` as programs have it: a count and as many sockets. How many fit (FD_SETSIZE) is the program's choice, so only the
//! count is believed.

use std::mem::offset_of;

use windows_sys::Win32::Networking::WinSock::{FD_SET, SOCKET};

/// The members of a set; none of a null one.
///
/// # Safety
/// Null, or a set with as many members as its count says, that nobody changes while the slice lives.
pub unsafe fn members<'a>(set: *const FD_SET) -> &'a [SOCKET] {
    if set.is_null() {
        return &[];
    }
    // SAFETY: by the caller.
    unsafe {
        let count = (*set).fd_count as usize;
        std::slice::from_raw_parts(set.byte_add(offset_of!(FD_SET, fd_array)).cast(), count)
    }
}

/// Makes `kept`, members that the set has, all that it has.
///
/// # Safety
/// Null, or a set with room for that many.
pub unsafe fn rewrite(set: *mut FD_SET, kept: &[SOCKET]) {
    if set.is_null() {
        return;
    }
    // SAFETY: by the caller.
    unsafe {
        (*set).fd_count = kept.len() as u32;
        let array = set.byte_add(offset_of!(FD_SET, fd_array)).cast::<SOCKET>();
        std::ptr::copy_nonoverlapping(kept.as_ptr(), array, kept.len());
    }
}

/// A set of our own, of any size. A word for the count and one per socket: `fd_set` with another FD_SETSIZE.
pub struct Set(Vec<SOCKET>);

const _: () = assert!(offset_of!(FD_SET, fd_array) == size_of::<SOCKET>());

impl Set {
    pub fn new(members: impl Iterator<Item = SOCKET>) -> Self {
        let mut words = vec![0];
        words.extend(members);
        if let [count, rest @ ..] = words.as_mut_slice() {
            *count = rest.len();
        }
        Self(words)
    }

    /// What a `select` call takes; null if nothing is in it.
    pub fn as_ptr(&mut self) -> *mut FD_SET {
        match self.0.first() {
            Some(0) | None => std::ptr::null_mut(),
            Some(_) => self.0.as_mut_ptr().cast(),
        }
    }

    /// The members that a call left in it.
    pub fn members(&self) -> &[SOCKET] {
        match self.0.as_slice() {
            // The count is the lower half of the first word; the rest of that word is padding that a call may leave as it likes.
            [count, rest @ ..] => rest.get(..*count as u32 as usize).unwrap_or(rest),
            [] => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_sets_are_fd_sets() {
        let mut set = Set::new((0..200).map(|i| 4 * i));
        // SAFETY: a set of ours with a true count.
        let seen = unsafe { members(set.as_ptr()) }.to_vec();
        assert_eq!(seen.len(), 200);
        assert_eq!(seen, set.members());
        // SAFETY: room for 200.
        unsafe { rewrite(set.as_ptr(), &[8, 16]) };
        assert_eq!(set.members(), [8, 16]);
    }

    #[test]
    fn empty_sets_are_null() {
        assert!(Set::new(std::iter::empty()).as_ptr().is_null());
        // SAFETY: null is allowed.
        assert!(unsafe { members(std::ptr::null()) }.is_empty());
        // SAFETY: null is allowed.
        unsafe { rewrite(std::ptr::null_mut(), &[1]) };
    }
}
