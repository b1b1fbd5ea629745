//! What FILE streams read and write. The C library calls the kernel for them itself, past every hook, but by way of tables whose
//! entries are data: with `_IO_file_read` and `_IO_file_write` replaced by ours, a connection that lies on descriptor 0 or 1, or
//! belongs to a FILE, stays carried.
//!
//! The tables are changed when the first such connection is met, and not at all in programs that have none. Where that can't be
//! done (another C library, `SGM_STDIO=0`), these connections go back to TCP.
//!
//! Descriptor 2 always does: what the C library says there in the last moments of a program (a failed assertion, a damaged heap)
//! goes straight to the kernel.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU32};

use libc::{FILE, size_t, ssize_t};
use rustix::mm::{MprotectFlags, mprotect};

use crate::fds::{self, STDIO_FDS};
use crate::{process, real, receive, send, setup};

/// `struct _IO_jump_t`: so many pointers since 1999.
const ENTRIES: usize = 21;
const TABLE_BYTES: usize = ENTRIES * size_of::<usize>();
/// "_IO_ERR_SEEN" in `_flags`, the first member of a FILE: `ferror` looks there from within programs, so it can't change.
const ERROR_SEEN: c_int = 0x20;

type Table = [AtomicPtr<c_void>; ENTRIES];

const UNTRIED: u32 = 0;
const BUSY: u32 = 1;
const SEEN: u32 = 2;
const UNSEEN: u32 = 3;
static STATE: AtomicU32 = AtomicU32::new(UNSEEN);

/// What is in the tables and goes there instead: the C library's functions.
struct Entry {
    name: &'static CStr,
    theirs: AtomicPtr<c_void>,
    ours: fn() -> *mut c_void,
}

impl Entry {
    const fn new(name: &'static CStr, ours: fn() -> *mut c_void) -> Self {
        Self {
            name,
            theirs: AtomicPtr::new(std::ptr::null_mut()),
            ours,
        }
    }
}

static READ: Entry = Entry::new(c"_IO_file_read", || file_read as *mut c_void);
static WRITE: Entry = Entry::new(c"_IO_file_write", || file_write as *mut c_void);
static CLOSE: Entry = Entry::new(c"_IO_file_close", || file_close as *mut c_void);
static REPLACED: [&Entry; 3] = [&READ, &WRITE, &CLOSE];

static TABLES: [AtomicPtr<Table>; 2] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 2];

/// Finds the tables while the dynamic linker may be asked: later it may be a signal handler that wants them changed.
pub fn at_start() {
    if std::env::var_os("SGM_STDIO").is_some_and(|v| v == "0") {
        return;
    }
    // SAFETY: a NUL-terminated name.
    let find = |name: &CStr| unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    for entry in REPLACED {
        entry.theirs.store(find(entry.name), Relaxed);
    }
    let mut known = REPLACED.iter().all(|e| !e.theirs.load(Relaxed).is_null());
    let names = [c"_IO_file_jumps", c"_IO_wfile_jumps"];
    let at = names.map(|name| find(name).cast::<Table>());
    known &= at.iter().all(|at| !at.is_null() && at.is_aligned()) && are_protected(at);
    for (table, at) in TABLES.iter().zip(at) {
        table.store(at, Relaxed);
    }
    // SAFETY: tables of the C library's, of that size since 1999, which live as long as it does.
    let is_known = |table: &Table| {
        let has = |e: &&Entry| {
            let theirs = e.theirs.load(Relaxed);
            table.iter().filter(|p| p.load(Relaxed) == theirs).count() == 1
        };
        REPLACED.iter().all(has)
    };
    known = known && tables().all(is_known);
    STATE.store(if known { UNTRIED } else { UNSEEN }, Release);
}

fn tables() -> impl Iterator<Item = &'static Table> {
    // SAFETY: null, or a table of the C library's, which is never unloaded.
    TABLES
        .iter()
        .filter_map(|t| unsafe { t.load(Relaxed).as_ref() })
}

/// Are whole tables in what the dynamic linker makes read-only once it is relocated? Then they are to be read-only again.
fn are_protected(tables: [*mut Table; 2]) -> bool {
    struct Search {
        tables: [usize; 2],
        found: bool,
    }
    unsafe extern "C" fn visit(
        object: *mut libc::dl_phdr_info,
        _size: size_t,
        search: *mut c_void,
    ) -> c_int {
        // SAFETY: what `dl_iterate_phdr` passes, and what was given to it.
        let (object, search) = unsafe { (&*object, &mut *search.cast::<Search>()) };
        // SAFETY: so many program headers.
        let headers =
            unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        search.found = headers.iter().any(|header| {
            let start = (object.dlpi_addr + header.p_vaddr) as usize;
            let end = start + header.p_memsz as usize;
            let whole = start..=(end & !(page_bytes() - 1)).saturating_sub(TABLE_BYTES);
            header.p_type == libc::PT_GNU_RELRO && search.tables.iter().all(|t| whole.contains(t))
        });
        search.found.into()
    }
    let mut search = Search {
        tables: tables.map(|table| table as usize),
        found: false,
    };
    // SAFETY: a visitor, and what it is given.
    unsafe { real::dl_iterate_phdr(visit as *mut c_void, (&raw mut search).cast()) };
    search.found
}

fn page_bytes() -> usize {
    // Not by rustix, which reads what the kernel passed to the program: valgrind passes nonsense.
    // SAFETY: a constant's name.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Does what FILEs read and write at this descriptor come by here?
pub fn sees(fd: c_int) -> bool {
    fd != libc::STDERR_FILENO
        && match STATE.load(Acquire) {
            UNTRIED => begin(),
            state => state == SEEN,
        }
}

/// Is it one of the first three, and what FILEs read and write there does not come by here?
#[inline]
pub fn is_unseen(fd: c_int) -> bool {
    fd < STDIO_FDS && !sees(fd)
}

#[cold]
fn begin() -> bool {
    let claim = STATE.compare_exchange(UNTRIED, BUSY, AcqRel, Acquire);
    if let Err(state) = claim {
        // Another thread is at it, or was this one, in what a signal interrupted: not worth a wait.
        return state == SEEN;
    }
    let saved = crate::errno();
    let done = tables().all(change);
    crate::set_errno(saved);
    STATE.store(if done { SEEN } else { UNSEEN }, Release);
    done
}

/// Replaces the entries of one table. If only one of two can be changed, ours do there what theirs did.
fn change(table: &Table) -> bool {
    let start = table.as_ptr() as usize & !(page_bytes() - 1);
    let bytes = (table.as_ptr() as usize + TABLE_BYTES).next_multiple_of(page_bytes()) - start;
    // SAFETY: pages of the C library's that were found to be read-only data; other threads read on meanwhile.
    let protect = |how| unsafe { mprotect(start as *mut c_void, bytes, how) };
    if protect(MprotectFlags::READ | MprotectFlags::WRITE).is_err() {
        return false;
    }
    for entry in REPLACED {
        let theirs = entry.theirs.load(Relaxed);
        let place = table.iter().find(|p| p.load(Relaxed) == theirs);
        if let Some(place) = place {
            place.store((entry.ours)(), Release);
        }
    }
    let _ = protect(MprotectFlags::READ);
    true
}

/// The descriptor of an open FILE. errno stays.
fn number_of(file: *mut FILE) -> c_int {
    let saved = crate::errno();
    // SAFETY: the caller's open FILE.
    let fd = unsafe { libc::fileno(file) };
    crate::set_errno(saved);
    fd
}

unsafe extern "C-unwind" fn file_read(file: *mut FILE, to: *mut c_void, n: ssize_t) -> ssize_t {
    let fd = number_of(file);
    if fds::is_tracked(fd) {
        // SAFETY: the C library's buffer of that size.
        return unsafe { receive::read(fd, to, n.cast_unsigned()) };
    }
    type Read = unsafe extern "C-unwind" fn(*mut FILE, *mut c_void, ssize_t) -> ssize_t;
    // SAFETY: the C library's function of that name, and its own arguments.
    unsafe { std::mem::transmute::<*mut c_void, Read>(READ.theirs.load(Relaxed))(file, to, n) }
}

/// All of it, as the C library's own does, or until an error.
unsafe extern "C-unwind" fn file_write(
    file: *mut FILE,
    from: *const c_void,
    n: ssize_t,
) -> ssize_t {
    let fd = number_of(file);
    if !fds::is_tracked(fd) {
        type Write = unsafe extern "C-unwind" fn(*mut FILE, *const c_void, ssize_t) -> ssize_t;
        let theirs = WRITE.theirs.load(Relaxed);
        // SAFETY: the C library's function of that name, and its own arguments.
        return unsafe { std::mem::transmute::<*mut c_void, Write>(theirs)(file, from, n) };
    }
    let mut done = 0;
    while done < n {
        // SAFETY: what is left of the C library's buffer.
        let sent = unsafe {
            let rest = from.byte_offset(done);
            send::write(fd, rest, (n - done).cast_unsigned())
        };
        if sent < 0 {
            // SAFETY: the first member of a FILE that the caller has locked.
            unsafe { *file.cast::<c_int>() |= ERROR_SEEN };
            break;
        }
        done += sent;
    }
    done
}

unsafe extern "C-unwind" fn file_close(file: *mut FILE) -> c_int {
    let fd = number_of(file);
    if fds::is_tracked(fd) {
        // Not a cancellation point here.
        let _whole = crate::quiet::uncancelled();
        // SAFETY: the FILE's descriptor, which it closes.
        return unsafe { setup::close(fd) };
    }
    type Close = unsafe extern "C-unwind" fn(*mut FILE) -> c_int;
    // SAFETY: the C library's function of that name, and its own argument.
    unsafe { std::mem::transmute::<*mut c_void, Close>(CLOSE.theirs.load(Relaxed))(file) }
}

/// The process is about to leave its connections: what is in its FILEs goes out first. The C library does the same a moment later,
/// as the very last thing, and as then no FILE's lock is taken: a thread that sleeps may have it.
pub fn flush_all() {
    unsafe extern "C" {
        fn fcloseall() -> c_int;
    }
    if STATE.load(Acquire) == SEEN {
        // SAFETY: no arguments. In spite of its name, FILEs stay open, without buffers.
        unsafe { fcloseall() };
    }
}

/// # Safety
/// As fdopen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fdopen(fd: c_int, mode: *const c_char) -> *mut c_void {
    if fds::is_tracked(fd) && !sees(fd) {
        process::give_away(fd, gm::Reason::Stdio);
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::fdopen(fd, mode) }
}

/// The C library is about to close a FILE's descriptor by a call that is not seen; what is buffered goes first.
///
/// # Safety
/// An open FILE.
unsafe fn end(file: *mut FILE) {
    let fd = number_of(file);
    if fds::is_tracked(fd) {
        let _whole = crate::quiet::uncancelled();
        // SAFETY: by the caller.
        unsafe { libc::fflush(file) };
        fds::forget(fd);
    }
}

macro_rules! reopened {
    ($($name:ident)*) => {$(
        /// # Safety
        /// As freopen(3).
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(path: *const c_char, mode: *const c_char, file: *mut c_void) -> *mut c_void {
            // SAFETY: the caller's arguments, unchanged.
            unsafe {
                end(file.cast());
                real::$name(path, mode, file)
            }
        }
    )*};
}
reopened! { freopen freopen64 }

/// # Safety
/// As fclose(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fclose(file: *mut c_void) -> c_int {
    // SAFETY: the caller's open FILE.
    unsafe {
        if !sees(number_of(file.cast())) {
            end(file.cast());
        }
        real::fclose(file)
    }
}
