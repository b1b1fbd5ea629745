//! What our Winsock DLL for Wine and `lsp.dll` have agreed on about waits for event objects: the DLL sees them, since all come
//! through ntdll, and the provider knows which objects its sockets are selected with. Nothing of the SPI's; either works
//! without the other.

use std::ffi::c_void;

use windows_sys::Win32::Foundation::HANDLE;

/// No object of the provider's sockets.
pub const NOBODY: i32 = -2;
/// No news.
pub const NOTHING: i32 = -1;

/// What was done, or is about to be done, to a handle.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Touch(pub i32);

impl Touch {
    /// It is being set.
    pub const SET: Touch = Touch(1);
    /// It was reset.
    pub const RESET: Touch = Touch(2);
    /// From now on others may see it, or who is not shown waits for it.
    pub const SHARE: Touch = Touch(3);
    /// It is being closed.
    pub const CLOSE: Touch = Touch(4);
}

/// How a thread is about to wait for the objects themselves.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct How(pub i32);

impl How {
    pub const SLEEP: How = How(1);
    /// With a time-out of zero.
    pub const LOOK: How = How(2);
    /// As `LOOK`, for something else: news that nobody was told of yet is none.
    pub const SETTLE: How = How(3);
}

/// The provider's functions.
#[repr(C)]
pub struct Waits {
    /// A wait for `count` handles; null: it does not concern the provider. The other functions take what this gives.
    pub find: unsafe extern "C" fn(*const HANDLE, u32) -> *mut c_void,
    /// The place of a handle whose wait is over, or [`NOTHING`]. With 1 it may take some microseconds, with 2 a millisecond:
    /// the thread waits for nothing else.
    pub look: unsafe extern "C" fn(*mut c_void, i32) -> i32,
    /// The thread goes to wait for the objects themselves.
    pub sleep: unsafe extern "C" fn(*mut c_void, How),
    /// That is over.
    pub wake: unsafe extern "C" fn(*mut c_void),
    pub release: unsafe extern "C" fn(*mut c_void),
    /// [`NOBODY`] or [`NOTHING`].
    pub touch: unsafe extern "C" fn(HANDLE, Touch) -> i32,
}

/// `SgmShowWaits` of the Winsock DLL: from now on it shows the process's waits. 0: it can't.
pub type Show = unsafe extern "C" fn(&'static Waits) -> i32;
