//! The extension functions behind SIO_GET_EXTENSION_FUNCTION_POINTER: AcceptEx, ConnectEx, TransmitFile and their kin.

use windows_sys::core::GUID;

use crate::slot::Inside;

/// Our function for an extension's GUID; `None`: not offered.
pub fn pointer(_inside: &Inside, _which: &GUID) -> Option<*const core::ffi::c_void> {
    None
}
