//! Linux system calls from Windows code that runs under Wine.
//!
//! A program under Wine is a Linux process, and its `syscall` instruction (`int 0x80` of a 32-bit one) reaches the Linux kernel. That is how our end
//! of a connection gets at what Wine has no call for, or only one that goes through wineserver at 10 to 100 µs: futexes
//! in memory shared with Linux programs, the kernel's own count of a stream's bytes, the kernel's socket itself.
//!
//! Rules:
//! 1. Only after [`usable`] said yes: on Windows, and in a Wine that may catch system calls of Windows code, the same
//!    instruction means something else.
//! 2. Every call returns the kernel's answer, `-errno` for a failure. EINTR is ordinary: Wine suspends threads by signal.

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};

/// Numbers of x86-64 Linux (arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(target_pointer_width = "64")]
pub mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const OPEN: usize = 2;
    pub const CLOSE: usize = 3;
    pub const STAT: usize = 4;
    pub const LSTAT: usize = 6;
    pub const SCHED_YIELD: usize = 24;
    pub const MADVISE: usize = 28;
    pub const SOCKET: usize = 41;
    pub const SENDTO: usize = 44;
    pub const RECVFROM: usize = 45;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const SHUTDOWN: usize = 48;
    pub const GETSOCKNAME: usize = 51;
    pub const GETPEERNAME: usize = 52;
    pub const SETSOCKOPT: usize = 54;
    pub const GETSOCKOPT: usize = 55;
    pub const GETPID: usize = 39;
    pub const KILL: usize = 62;
    pub const FCNTL: usize = 72;
    pub const MKDIR: usize = 83;
    pub const CHMOD: usize = 90;
    pub const GETEUID: usize = 107;
    pub const MKNOD: usize = 133;
    pub const IOCTL: usize = 16;
    pub const GETTID: usize = 186;
    pub const LGETXATTR: usize = 192;
    pub const FUTEX: usize = 202;
    pub const SCHED_GETAFFINITY: usize = 204;
    pub const EPOLL_CTL: usize = 233;
    pub const PPOLL: usize = 271;
    pub const EPOLL_PWAIT: usize = 281;
    pub const EVENTFD2: usize = 290;
    pub const EPOLL_CREATE1: usize = 291;
    pub const RENAMEAT2: usize = 316;
}

/// Numbers of i386 Linux (syscall_32.tbl), under the same names: where there are two, those of the calls that take users, offsets and times
/// as x86-64 has them.
#[cfg(target_pointer_width = "32")]
pub mod nr {
    pub const READ: usize = 3;
    pub const WRITE: usize = 4;
    pub const OPEN: usize = 5;
    pub const CLOSE: usize = 6;
    /// stat64
    pub const STAT: usize = 195;
    /// lstat64
    pub const LSTAT: usize = 196;
    pub const SCHED_YIELD: usize = 158;
    pub const MADVISE: usize = 219;
    pub const SOCKET: usize = 359;
    pub const SENDTO: usize = 369;
    pub const RECVFROM: usize = 371;
    pub const SENDMSG: usize = 370;
    pub const RECVMSG: usize = 372;
    pub const SHUTDOWN: usize = 373;
    pub const GETSOCKNAME: usize = 367;
    pub const GETPEERNAME: usize = 368;
    pub const SETSOCKOPT: usize = 366;
    pub const GETSOCKOPT: usize = 365;
    pub const GETPID: usize = 20;
    pub const KILL: usize = 37;
    /// fcntl64
    pub const FCNTL: usize = 221;
    pub const MKDIR: usize = 39;
    pub const CHMOD: usize = 15;
    /// geteuid32
    pub const GETEUID: usize = 201;
    pub const MKNOD: usize = 14;
    pub const IOCTL: usize = 54;
    pub const GETTID: usize = 224;
    pub const LGETXATTR: usize = 230;
    /// futex_time64
    pub const FUTEX: usize = 422;
    pub const SCHED_GETAFFINITY: usize = 242;
    pub const EPOLL_CTL: usize = 255;
    /// ppoll_time64
    pub const PPOLL: usize = 414;
    pub const EPOLL_PWAIT: usize = 319;
    pub const EVENTFD2: usize = 328;
    pub const EPOLL_CREATE1: usize = 329;
    pub const RENAMEAT2: usize = 353;
}

pub const EPERM: i32 = 1;
pub const ESRCH: i32 = 3;
pub const EINTR: i32 = 4;
pub const EAGAIN: i32 = 11;
pub const EEXIST: i32 = 17;
pub const EPIPE: i32 = 32;
pub const ENOTCONN: i32 = 107;
pub const ECONNRESET: i32 = 104;
pub const ETIMEDOUT: i32 = 110;

/// The first Wine that is not known to pass system calls of Windows code through.
const WINE_UNKNOWN_FROM: u32 = 10;

/// Are we under a Wine whose Linux can be called?
#[inline]
pub fn usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| wine_version().is_some_and(probe))
}

fn probe(version: String) -> bool {
    let major = version.split('.').next().and_then(|v| v.parse().ok());
    let known = major.is_some_and(|m: u32| m < WINE_UNKNOWN_FROM);
    // SAFETY: getpid takes nothing and changes nothing.
    known && unsafe { call(nr::GETPID, [0; 6]) } > 1
}

/// Is this Wine, of whatever version? `SGM_WINE=0` says no, so that Windows' documented answers can be tried under Wine.
pub fn is_wine() -> bool {
    static WINE: OnceLock<bool> = OnceLock::new();
    *WINE.get_or_init(|| {
        wine_version().is_some() && std::env::var_os("SGM_WINE").is_none_or(|v| v != "0")
    })
}

/// Wine's version, as ntdll tells it; `None`: this is Windows.
pub fn wine_version() -> Option<String> {
    let name: Vec<u16> = "ntdll.dll\0".encode_utf16().collect();
    // SAFETY: a zero-terminated name; ntdll is in every process and stays.
    let function = unsafe {
        let module = GetModuleHandleW(name.as_ptr());
        GetProcAddress(module, c"wine_get_version".as_ptr().cast())
    }?;
    // SAFETY: Wine's `const char *wine_get_version(void)`, a static string.
    unsafe {
        let function: unsafe extern "C" fn() -> *const c_char = std::mem::transmute(function);
        let text = function();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

/// # Safety
/// As the system call with these arguments; [`usable`] must have said yes.
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn call(number: usize, args: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: Linux's convention; the kernel changes rcx, r11 and rax alone. What the call does is the caller's.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => ret,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    ret
}

/// # Safety
/// As the system call with these arguments; [`usable`] must have said yes.
#[cfg(target_arch = "x86")]
#[inline]
pub unsafe fn call(number: usize, args: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: Linux's convention; the kernel changes eax alone. What the call does is the caller's. The compiler keeps some of the
    // registers for itself, so they are saved, and the arguments come through one that it gives.
    unsafe {
        core::arch::asm!(
            "push ebx",
            "push esi",
            "push edi",
            "push ebp",
            "mov ebx, [ecx]",
            "mov edx, [ecx + 8]",
            "mov esi, [ecx + 12]",
            "mov edi, [ecx + 16]",
            "mov ebp, [ecx + 20]",
            "mov ecx, [ecx + 4]",
            "int 0x80",
            "pop ebp",
            "pop edi",
            "pop esi",
            "pop ebx",
            inlateout("eax") number as isize => ret,
            inlateout("ecx") args.as_ptr() => _,
            lateout("edx") _,
        );
    }
    ret
}

/// The answer of a call as a result; the error is the errno.
#[inline]
pub fn checked(answer: isize) -> Result<usize, i32> {
    usize::try_from(answer).map_err(|_| -answer as i32)
}

pub fn getpid() -> u32 {
    // SAFETY: takes nothing.
    unsafe { call(nr::GETPID, [0; 6]) as u32 }
}

pub fn gettid() -> u32 {
    // SAFETY: takes nothing.
    unsafe { call(nr::GETTID, [0; 6]) as u32 }
}

pub fn geteuid() -> u32 {
    // SAFETY: takes nothing.
    unsafe { call(nr::GETEUID, [0; 6]) as u32 }
}

pub fn sched_yield() {
    // SAFETY: takes nothing.
    unsafe { call(nr::SCHED_YIELD, [0; 6]) };
}

/// CPUs that this thread may run on.
pub fn cpus() -> u32 {
    let mut mask = [0_u64; 128];
    // SAFETY: an out-buffer of the size given.
    let r = unsafe {
        let size = size_of_val(&mask);
        call(
            nr::SCHED_GETAFFINITY,
            [0, size, mask.as_mut_ptr() as usize, 0, 0, 0],
        )
    };
    match checked(r) {
        Ok(bytes) => mask
            .iter()
            .take(bytes / 8)
            .map(|w| w.count_ones())
            .sum::<u32>()
            .max(1),
        Err(_) => 1,
    }
}

/// Reads a small file whole (at most 1 KiB of it). `path` ends with a zero.
pub fn read_small(path: &CStr) -> Option<Vec<u8>> {
    const O_CLOEXEC: usize = 0o2_000_000;
    // SAFETY: a zero-terminated path, read only.
    let fd =
        checked(unsafe { call(nr::OPEN, [path.as_ptr() as usize, O_CLOEXEC, 0, 0, 0, 0]) }).ok()?;
    let mut buf = vec![0_u8; 1024];
    // SAFETY: our own descriptor, a buffer of the length given.
    let n = unsafe {
        let n = call(
            nr::READ,
            [fd, buf.as_mut_ptr() as usize, buf.len(), 0, 0, 0],
        );
        call(nr::CLOSE, [fd, 0, 0, 0, 0, 0]);
        n
    };
    buf.truncate(checked(n).ok()?);
    Some(buf)
}

/// The number of the network namespace in which this process makes sockets. `None`: before Linux 5.14, or no Linux.
pub fn netns_cookie() -> Option<u64> {
    const AF_INET: usize = 2;
    const SOCK_STREAM_CLOEXEC: usize = 1 | 0o2_000_000;
    const SOL_SOCKET: usize = 1;
    const SO_NETNS_COOKIE: usize = 71;
    if !usable() {
        return None;
    }
    let (mut cookie, mut len) = (0_u64, 8_u32);
    // SAFETY: our own descriptor, out-pointers to locals of the sizes given.
    let r = unsafe {
        let fd = checked(call(nr::SOCKET, [AF_INET, SOCK_STREAM_CLOEXEC, 0, 0, 0, 0])).ok()?;
        let (at, len) = ((&raw mut cookie) as usize, (&raw mut len) as usize);
        let r = call(
            nr::GETSOCKOPT,
            [fd, SOL_SOCKET, SO_NETNS_COOKIE, at, len, 0],
        );
        call(nr::CLOSE, [fd, 0, 0, 0, 0, 0]);
        r
    };
    checked(r).ok().map(|_| cookie)
}

/// Inode number, mode and owner of a file. `path` ends with a zero.
pub fn stat(path: &CStr) -> Result<Stat, i32> {
    stat_by(nr::STAT, path)
}

/// The same, of a link itself.
pub fn lstat(path: &CStr) -> Result<Stat, i32> {
    stat_by(nr::LSTAT, path)
}

fn stat_by(number: usize, path: &CStr) -> Result<Stat, i32> {
    // struct stat of x86-64: st_dev, st_ino, st_nlink, st_mode + st_uid, ... 144 bytes. struct stat64 of i386: st_dev, ... st_mode and
    // st_uid at 16 and 24, ... st_ino at 88, 96 bytes.
    const WIDE: bool = cfg!(target_pointer_width = "64");
    let mut words = [0_u64; 18];
    // SAFETY: a zero-terminated path and an out-buffer of the structure's size.
    let r = unsafe {
        call(
            number,
            [
                path.as_ptr() as usize,
                words.as_mut_ptr() as usize,
                0,
                0,
                0,
                0,
            ],
        )
    };
    checked(r)?;
    Ok(match WIDE {
        true => Stat {
            inode: words[1],
            mode: words[3] as u32,
            uid: (words[3] >> 32) as u32,
        },
        false => Stat {
            inode: words[11],
            mode: words[2] as u32,
            uid: words[3] as u32,
        },
    })
}

pub struct Stat {
    pub inode: u64,
    pub mode: u32,
    pub uid: u32,
}
