//! The replaced functions: each looks the handle up, and passes the call on if it isn't a non-IFS one.

use std::ffi::c_void;
use std::mem;
use std::ptr;

use spi::waits::Touch;
use windows_sys::Wdk::Storage::FileSystem::{
    FILE_COMPLETION_INFORMATION, FileCompletionInformation,
    FileIoCompletionNotificationInformation, FileReplaceCompletionInformation,
};
use windows_sys::Win32::Foundation::{
    HANDLE, NTSTATUS, STATUS_INVALID_HANDLE, STATUS_INVALID_PARAMETER, STATUS_NOT_FOUND,
    STATUS_PENDING, STATUS_SUCCESS,
};
use windows_sys::Win32::Networking::WinSock::{SOCKET, SOCKET_ERROR, WSA_IO_PENDING, WSABUF};
use windows_sys::Win32::System::IO::{IO_STATUS_BLOCK, OVERLAPPED, PIO_APC_ROUTINE};

use super::hook::Hook;
use super::ports;
use crate::carrier::{Carrier, Port};
use crate::complete;
use crate::provider::{self, HANDLES, Provider};
use crate::{extras, pool, thread, upcalls};

type Transfer = unsafe extern "system" fn(
    HANDLE,
    HANDLE,
    PIO_APC_ROUTINE,
    *const c_void,
    *mut IO_STATUS_BLOCK,
    *mut c_void,
    u32,
    *const i64,
    *const u32,
) -> NTSTATUS;
type SetInformation =
    unsafe extern "system" fn(HANDLE, *mut IO_STATUS_BLOCK, *const c_void, u32, i32) -> NTSTATUS;
type Close = unsafe extern "system" fn(HANDLE) -> NTSTATUS;
type Cancel = unsafe extern "system" fn(HANDLE, *mut IO_STATUS_BLOCK) -> NTSTATUS;
type CancelEx =
    unsafe extern "system" fn(HANDLE, *mut IO_STATUS_BLOCK, *mut IO_STATUS_BLOCK) -> NTSTATUS;

static READ: Hook = Hook::new(c"NtReadFile", read_file as Transfer as *const c_void);
static WRITE: Hook = Hook::new(c"NtWriteFile", write_file as Transfer as *const c_void);
static SET: Hook = Hook::new(
    c"NtSetInformationFile",
    set_information as SetInformation as *const c_void,
);
static CLOSE: Hook = Hook::new(c"NtClose", close as Close as *const c_void);
static CANCEL: Hook = Hook::new(c"NtCancelIoFile", cancel as Cancel as *const c_void);
static CANCEL_EX: Hook = Hook::new(c"NtCancelIoFileEx", cancel_ex as CancelEx as *const c_void);

pub static HOOKS: [&Hook; 6] = [&READ, &WRITE, &SET, &CLOSE, &CANCEL, &CANCEL_EX];

/// The original of a hook, as its type: the replaced function has the type of its replacement. Used in unsafe blocks.
macro_rules! original {
    ($hook:ident: $ty:ty) => {
        std::mem::transmute::<*mut std::ffi::c_void, $ty>($hook.original())
    };
}
pub(super) use original;

/// Do closes of handles come through here?
pub fn sees_closes() -> bool {
    CLOSE.is_installed()
}

fn non_ifs(file: HANDLE) -> Option<(&'static Carrier, &'static Provider)> {
    let slot = HANDLES.get(file.addr()).filter(|slot| slot.is_non_ifs())?;
    Some((slot.extra(), slot.owner()?))
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

/// NtReadFile and NtWriteFile, which differ in nothing but the direction.
macro_rules! transfers {
    ($($name:ident: $hook:ident, $direction:ident;)*) => {$(
        unsafe extern "system" fn $name(
            file: HANDLE,
            event: HANDLE,
            apc: PIO_APC_ROUTINE,
            context: *const c_void,
            status: *mut IO_STATUS_BLOCK,
            buffer: *mut c_void,
            len: u32,
            offset: *const i64,
            key: *const u32,
        ) -> NTSTATUS {
            // SAFETY: the caller's own arguments.
            unsafe {
                if non_ifs(file).is_none() {
                    let original = original!($hook: Transfer);
                    return original(file, event, apc, context, status, buffer, len, offset, key);
                }
                transfer(Direction::$direction, file, event, apc, context, status, buffer, len)
            }
        }
    )*};
}
transfers! {
    read_file: READ, Read;
    write_file: WRITE, Write;
}

/// A request of ReadFileEx or WriteFileEx: its APC runs when the provider calls our completion routine.
#[repr(C)]
struct Request {
    ov: OVERLAPPED,
    apc: PIO_APC_ROUTINE,
    context: *const c_void,
    status: *mut IO_STATUS_BLOCK,
}

unsafe extern "system" fn routine(error: u32, bytes: u32, ov: *mut OVERLAPPED, _flags: u32) {
    // SAFETY: the OVERLAPPED is the first field of a request that `transfer` boxed and gave away.
    let request = unsafe { Box::from_raw(ov.cast::<Request>()) };
    // SAFETY: the caller's status block, valid until the APC has run.
    unsafe {
        set_status(
            request.status,
            spi::errors::to_ntstatus(error as i32),
            bytes,
        )
    };
    if let Some(apc) = request.apc {
        // SAFETY: the caller's routine, in its own thread.
        unsafe { apc(request.context.cast_mut(), request.status, 0) };
    }
}

/// # Safety
/// Null or a status block that its owner waits for.
unsafe fn set_status(block: *mut IO_STATUS_BLOCK, status: NTSTATUS, bytes: u32) {
    // SAFETY: by the caller.
    if let Some(block) = unsafe { block.as_mut() } {
        block.Anonymous.Status = status;
        block.Information = bytes as usize;
    }
}

/// Reads or writes through the provider, as NtReadFile and NtWriteFile are called: kernel32's status block is the program's
/// OVERLAPPED if there is an event or the block itself is the context; with neither (and no APC) the call is synchronous.
///
/// # Safety
/// The arguments are those of NtReadFile or NtWriteFile.
#[allow(clippy::too_many_arguments)] // as those have
unsafe fn transfer(
    direction: Direction,
    file: HANDLE,
    event: HANDLE,
    apc: PIO_APC_ROUTINE,
    context: *const c_void,
    status: *mut IO_STATUS_BLOCK,
    buffer: *mut c_void,
    len: u32,
) -> NTSTATUS {
    let (Some((carrier, provider)), s) = (non_ifs(file), file.addr()) else {
        return STATUS_INVALID_PARAMETER;
    };
    let one = WSABUF {
        len,
        buf: buffer.cast(),
    };
    let (mut ov, mut by_apc, mut id) = (ptr::null_mut::<OVERLAPPED>(), None, None);
    if apc.is_some() {
        let request = Request {
            ov: OVERLAPPED::default(),
            apc,
            context,
            status,
        };
        ov = Box::into_raw(Box::new(request)).cast();
        (by_apc, id) = (Some(routine as _), thread::current());
    } else if !event.is_null() || context == status.cast_const().cast() {
        ov = status.cast();
    }
    let id = id.as_ref().map_or(ptr::null(), ptr::from_ref);
    let (mut bytes, mut error) = (0, 0);
    let call = || {
        let table = provider.table();
        match (direction, table.lpWSPRecv, table.lpWSPSend) {
            // SAFETY: the SPI's entries; what may be written later than this call returns is the caller's or the carrier's.
            (Direction::Read, Some(recv), _) => unsafe {
                recv(
                    s,
                    &one,
                    1,
                    &mut bytes,
                    carrier.fresh_flags(),
                    ov,
                    by_apc,
                    id,
                    &raw mut error,
                )
            },
            // SAFETY: as above.
            (Direction::Write, _, Some(send)) => unsafe {
                send(s, &one, 1, &mut bytes, 0, ov, by_apc, id, &mut error)
            },
            _ => SOCKET_ERROR,
        }
    };
    let failed = complete::within_call(s, ov, by_apc.is_some(), call) == SOCKET_ERROR;
    match (failed, by_apc) {
        (true, _) if error == WSA_IO_PENDING => STATUS_PENDING,
        (true, by_apc) => {
            if by_apc.is_some() {
                // SAFETY: a request that failed at once is nobody's but ours.
                drop(unsafe { Box::from_raw(ov.cast::<Request>()) });
            }
            let result = spi::errors::to_ntstatus(error);
            if ov.is_null() {
                // SAFETY: the caller's block.
                unsafe { set_status(status, result, 0) };
            }
            result
        }
        (false, Some(_)) => STATUS_PENDING,
        (false, None) => {
            if ov.is_null() {
                // SAFETY: the caller's block.
                unsafe { set_status(status, STATUS_SUCCESS, bytes) };
            }
            STATUS_SUCCESS
        }
    }
}

/// The real association is made on the carrier too, so that a second one fails as it should.
unsafe extern "system" fn set_information(
    file: HANDLE,
    status: *mut IO_STATUS_BLOCK,
    info: *const c_void,
    len: u32,
    class: i32,
) -> NTSTATUS {
    if class == FileCompletionInformation
        && non_ifs(file).is_some_and(|(carrier, _)| carrier.port().is_some())
    {
        // By another handle of the socket.
        return STATUS_INVALID_PARAMETER;
    }
    // SAFETY: the caller's own arguments.
    let result = unsafe { original!(SET: SetInformation)(file, status, info, len, class) };
    let Some((carrier, _)) = non_ifs(file).filter(|_| result == STATUS_SUCCESS) else {
        return result;
    };
    match class {
        #[allow(non_upper_case_globals)]
        FileCompletionInformation | FileReplaceCompletionInformation => {
            // SAFETY: accepted as such a structure by the original.
            let info = unsafe { &*info.cast::<FILE_COMPLETION_INFORMATION>() };
            carrier.set_port(Port {
                handle: info.Port,
                key: info.Key.addr(),
                known: ports::associate(info.Port),
            });
            provider::each_twin(file.addr(), |twin| twin.inherit(carrier));
        }
        #[allow(non_upper_case_globals)]
        FileIoCompletionNotificationInformation => {
            // SAFETY: a word of flags, accepted by the original.
            carrier.add_modes(unsafe { info.cast::<u32>().read_unaligned() });
            provider::each_twin(file.addr(), |twin| twin.inherit(carrier));
        }
        _ => {}
    }
    result
}

/// CloseHandle on a socket. The provider gives the carrier back (WPUCloseSocketHandle), whose own close comes here again and
/// passes; a provider that doesn't know the socket any more loses it all the same.
unsafe extern "system" fn close(file: HANDLE) -> NTSTATUS {
    if pool::has(file.addr()) {
        return STATUS_INVALID_HANDLE;
    }
    if let Some((_, provider)) = non_ifs(file) {
        let mut error = 0;
        let result =
            complete::within_close(file.addr(), || match provider.table().lpWSPCloseSocket {
                // SAFETY: the SPI's entry.
                Some(f) => unsafe { f(file.addr(), &mut error) },
                None => SOCKET_ERROR,
            });
        if result == 0 {
            return STATUS_SUCCESS;
        }
        upcalls::forget_carrier(file.addr());
    }
    super::waits::touch(file, Touch::CLOSE);
    ports::leave(file);
    // SAFETY: the caller's own argument.
    unsafe { original!(CLOSE: Close)(file) }
}

unsafe extern "system" fn cancel(file: HANDLE, status: *mut IO_STATUS_BLOCK) -> NTSTATUS {
    match non_ifs(file)
        .and_then(|(_, provider)| cancel_requests(provider, file.addr(), ptr::null_mut()))
    {
        // SAFETY: the caller's own arguments.
        None => unsafe { original!(CANCEL: Cancel)(file, status) },
        Some(_) => {
            // SAFETY: the caller's block. Nothing to cancel is no error here.
            unsafe { set_status(status, STATUS_SUCCESS, 0) };
            STATUS_SUCCESS
        }
    }
}

unsafe extern "system" fn cancel_ex(
    file: HANDLE,
    request: *mut IO_STATUS_BLOCK,
    status: *mut IO_STATUS_BLOCK,
) -> NTSTATUS {
    let found = non_ifs(file)
        .filter(|(carrier, _)| !carrier.is_own(request))
        .and_then(|(_, provider)| cancel_requests(provider, file.addr(), request.cast()));
    let Some(found) = found else {
        // SAFETY: the caller's own arguments.
        return unsafe { original!(CANCEL_EX: CancelEx)(file, request, status) };
    };
    let result = if found {
        STATUS_SUCCESS
    } else {
        STATUS_NOT_FOUND
    };
    // SAFETY: the caller's block.
    unsafe { set_status(status, result, 0) };
    result
}

/// The SPI has no call for this. A provider that can do it exports `SgmCancelIo(SOCKET, OVERLAPPED *) -> int` from the DLL
/// that its table points into: one request, or all of the socket's; 0 if there was none. `None`: it can't.
fn cancel_requests(provider: &Provider, s: SOCKET, ov: *mut OVERLAPPED) -> Option<bool> {
    type CancelIo = unsafe extern "system" fn(SOCKET, *mut OVERLAPPED) -> i32;
    if !extras::are_on() {
        return None;
    }
    let found = extras::of_provider(provider.table(), c"SgmCancelIo")?;
    // SAFETY: the function's contract is ours.
    unsafe {
        Some(mem::transmute::<unsafe extern "system" fn() -> isize, CancelIo>(found)(s, ov) != 0)
    }
}
