//! What belongs to a non-IFS handle beside its owner: how completions are announced, and the handle as something to wait on.
//!
//! A program may start a request without an event and wait on the handle itself (GetOverlappedResult does so): the kernel
//! signals a file when a request on it ends, and takes the signal away when one begins. A carrier has no requests of its
//! own, so it gets one: a poll for out-of-band data, which an unconnected socket never has, and which is cancelled when the
//! provider finishes the program's request. Two calls into the kernel, so only for requests without event, port and routine.

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use windows_sys::Wdk::Storage::FileSystem::NtCancelIoFileEx;
use windows_sys::Wdk::System::IO::NtDeviceIoControlFile;
use windows_sys::Win32::Foundation::{
    CloseHandle, DUPLICATE_SAME_ACCESS, DuplicateHandle, HANDLE, NTSTATUS, STATUS_PENDING,
};
use windows_sys::Win32::Networking::WinSock::SOCKET;
use windows_sys::Win32::System::IO::IO_STATUS_BLOCK;
use windows_sys::Win32::System::Threading::GetCurrentProcess;

use crate::gate::ports::{self, Known};

const IOCTL_AFD_POLL: u32 = 0x12024;
const AFD_POLL_OOB: i32 = 2;

pub const FILE_SKIP_COMPLETION_PORT_ON_SUCCESS: u32 = 1;

/// A completion port with which a handle is associated.
#[derive(Clone, Copy)]
pub struct Port {
    pub handle: HANDLE,
    pub key: usize,
    /// The port as the gate knows it, by the program's own handle.
    pub known: Option<&'static Known>,
}

/// One per handle number, never freed: the kernel and late receives may write to it when the handle is long closed.
#[derive(Default)]
pub struct Carrier {
    /// Our own handle of the port, 0 for none; the key is written before it.
    port: AtomicUsize,
    key: AtomicUsize,
    known: AtomicPtr<Known>,
    /// The flags of SetFileCompletionNotificationModes.
    modes: AtomicU32,
    /// A place for the flags of a receive that ends after its caller has returned.
    flags: AtomicU32,
    /// Overlapped calls were made on it; and it is being closed. Wine ends transfers of a closed handle with another status
    /// than, say, an AcceptEx, which comes here without a call of ours.
    pub transfers: AtomicBool,
    pub closing: AtomicBool,
    polling: AtomicBool,
    block: UnsafeCell<Block>,
}

// SAFETY: `block` is written by the kernel alone, and read by nobody.
unsafe impl Sync for Carrier {}

/// Where the kernel puts a poll's end.
#[derive(Default)]
struct Block {
    status: IO_STATUS_BLOCK,
    output: Poll,
}

/// A poll's input and output, for one socket.
#[derive(Default)]
#[repr(C)]
struct Poll {
    timeout: i64,
    count: u32,
    exclusive: u32,
    socket: SOCKET,
    flags: i32,
    status: NTSTATUS,
}

impl Carrier {
    /// For a new handle, or one that is closed.
    pub fn reset(&self) {
        self.release_port(0, 0);
        self.modes.store(0, Relaxed);
        self.transfers.store(false, Relaxed);
        self.closing.store(false, Release);
        self.polling.store(false, Release);
    }

    /// As it was when it was made?
    pub fn is_unused(&self) -> bool {
        self.port.load(Acquire) == 0
            && self.modes.load(Relaxed) == 0
            && !self.transfers.load(Relaxed)
            && !self.polling.load(Acquire)
    }

    /// Remembers a port of the program's by a handle of our own, since the program may close its one. A null port ends the
    /// association.
    pub fn set_port(&self, port: Port) {
        let mut own: HANDLE = ptr::null_mut();
        // SAFETY: pseudo-handles of this process, a place for the result.
        ports::copying(|| unsafe {
            let this = GetCurrentProcess();
            DuplicateHandle(
                this,
                port.handle,
                this,
                &mut own,
                0,
                0,
                DUPLICATE_SAME_ACCESS,
            );
        });
        let known = port
            .known
            .map_or(ptr::null_mut(), |known| ptr::from_ref(known).cast_mut());
        self.known.store(known, Relaxed);
        self.release_port(own.addr(), port.key);
    }

    fn release_port(&self, port: usize, key: usize) {
        self.key.store(key, Relaxed);
        let old = self.port.swap(port, AcqRel);
        if old != 0 {
            // SAFETY: made by `set_port`, and taken out of its place.
            unsafe { CloseHandle(ptr::without_provenance_mut(old)) };
        }
    }

    pub fn port(&self) -> Option<Port> {
        match self.port.load(Acquire) {
            0 => None,
            port => Some(Port {
                handle: ptr::without_provenance_mut(port),
                key: self.key.load(Relaxed),
                // SAFETY: never freed.
                known: unsafe { self.known.load(Relaxed).as_ref() },
            }),
        }
    }

    /// Of another handle of the same socket.
    pub fn inherit(&self, other: &Carrier) {
        if let Some(port) = other.port()
            && self.port().is_none()
        {
            self.set_port(port);
        }
        self.add_modes(other.modes.load(Relaxed));
    }

    pub fn add_modes(&self, modes: u32) {
        self.modes.fetch_or(modes, Relaxed);
    }

    pub fn skips_on_success(&self) -> bool {
        self.modes.load(Relaxed) & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS != 0
    }

    /// Zero, in a place that is never freed.
    pub fn fresh_flags(&self) -> *mut u32 {
        self.flags.store(0, Relaxed);
        self.flags.as_ptr()
    }

    /// A request begins that is waited for on the handle: not signalled until one ends.
    pub fn begin(&self, s: SOCKET) {
        if self.polling.swap(true, AcqRel) {
            return;
        }
        let input = Poll {
            timeout: i64::MAX,
            count: 1,
            socket: s,
            flags: AFD_POLL_OOB,
            ..Default::default()
        };
        let len = size_of::<Poll>() as u32;
        let block = self.block.get();
        // SAFETY: input that is read now, and a block that lives for ever.
        let result = unsafe {
            NtDeviceIoControlFile(
                handle(s),
                ptr::null_mut(),
                None,
                ptr::null(),
                &raw mut (*block).status,
                IOCTL_AFD_POLL,
                (&raw const input).cast(),
                len,
                (&raw mut (*block).output).cast(),
                len,
            )
        };
        if result != STATUS_PENDING {
            self.polling.store(false, Release);
        }
    }

    /// Whether this is our poll, not a request of the program's.
    pub fn is_own(&self, request: *const IO_STATUS_BLOCK) -> bool {
        // SAFETY: only an address.
        std::ptr::eq(request, unsafe { &raw const (*self.block.get()).status })
    }

    /// A request ended: whoever waits on the handle wakes.
    pub fn end(&self, s: SOCKET) {
        if self.polling.swap(false, AcqRel) {
            let mut status = IO_STATUS_BLOCK::default();
            // SAFETY: names the poll of `begin`; if it is over, nothing is found.
            unsafe {
                NtCancelIoFileEx(handle(s), &raw mut (*self.block.get()).status, &mut status)
            };
        }
    }
}

fn handle(s: SOCKET) -> HANDLE {
    ptr::without_provenance_mut(s)
}
