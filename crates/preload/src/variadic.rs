//! C functions with any number of arguments, which Rust can't define: `execl` and its kin, `dprintf`.
//!
//! An entry saves the registers that can hold arguments, as a C function's own prologue does, and calls an ordinary
//! function with the places where its arguments are ([`Arguments`]). On x86-64 (System V ABI) these are six integer
//! registers, eight vector registers, then the stack.

use std::ffi::{c_char, c_int, c_void};

use libc::size_t;

use crate::process::exec;
use crate::{fds, real, send};

/// Integer registers that hold arguments.
const REGISTERS: usize = 6;

/// Where the arguments of a call are.
struct Arguments {
    /// What an entry saved: the integer registers, then the vector registers.
    registers: *const usize,
    /// The caller's stack above the return address.
    stack: *const usize,
    /// Integer arguments taken.
    taken: usize,
}

/// `va_list` of the x86-64 ABI.
#[repr(C)]
#[derive(Clone, Copy)]
struct VaList {
    gp_offset: u32,
    fp_offset: u32,
    overflow: *const usize,
    registers: *const usize,
}

impl Arguments {
    /// The next argument that is an integer or a pointer.
    ///
    /// # Safety
    /// The caller passed one more.
    unsafe fn next(&mut self) -> usize {
        let i = self.taken;
        self.taken += 1;
        // SAFETY: by the caller; the first six are in registers, the others on the stack, if all are integers.
        unsafe {
            match i.checked_sub(REGISTERS) {
                None => *self.registers.add(i),
                Some(i) => *self.stack.add(i),
            }
        }
    }

    /// The arguments that were not taken, for a function that wants a `va_list`. At most six were taken.
    fn rest(&self) -> VaList {
        VaList {
            gp_offset: (self.taken * size_of::<usize>()) as u32,
            fp_offset: (REGISTERS * size_of::<usize>()) as u32,
            overflow: self.stack,
            registers: self.registers,
        }
    }
}

macro_rules! entries {
    ($($name:ident => $body:ident;)*) => {$(
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C-unwind" fn $name() -> c_int {
            // On entry the stack is 8 short of a multiple of 16, the return address on top.
            std::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 184",
                ".cfi_adjust_cfa_offset 184",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 32], r8",
                "mov [rsp + 40], r9",
                "movaps [rsp + 48], xmm0",
                "movaps [rsp + 64], xmm1",
                "movaps [rsp + 80], xmm2",
                "movaps [rsp + 96], xmm3",
                "movaps [rsp + 112], xmm4",
                "movaps [rsp + 128], xmm5",
                "movaps [rsp + 144], xmm6",
                "movaps [rsp + 160], xmm7",
                "mov rdi, rsp",
                "lea rsi, [rsp + 192]",
                "call {body}",
                "add rsp, 184",
                ".cfi_adjust_cfa_offset -184",
                "ret",
                ".cfi_endproc",
                body = sym $body,
            )
        }
    )*};
}
entries! {
    execl => execl_of;
    execle => execle_of;
    execlp => execlp_of;
    dprintf => dprintf_of;
    __dprintf_chk => dprintf_chk_of;
}

macro_rules! bodies {
    ($($name:ident($args:ident) $body:block)*) => {$(
        unsafe extern "C-unwind" fn $name(registers: *const usize, stack: *const usize) -> c_int {
            let mut $args = Arguments { registers, stack, taken: 0 };
            // SAFETY: the C function's caller passed what its signature says.
            unsafe { $body }
        }
    )*};
}
bodies! {
    execl_of(a) {
        let path = a.next() as *const c_char;
        with_list(&mut a, |argv, _| exec::execv(path, argv))
    }
    execle_of(a) {
        let path = a.next() as *const c_char;
        with_list(&mut a, |argv, a| exec::execve(path, argv, a.next() as _))
    }
    execlp_of(a) {
        let file = a.next() as *const c_char;
        with_list(&mut a, |argv, _| exec::execvp(file, argv))
    }
    dprintf_of(a) {
        let (fd, format) = (a.next() as c_int, a.next() as *const c_char);
        vdprintf(fd, format, &mut a.rest())
    }
    dprintf_chk_of(a) {
        let (fd, flag, format) = (a.next() as c_int, a.next() as c_int, a.next() as *const c_char);
        __vdprintf_chk(fd, flag, format, &mut a.rest())
    }
}

/// Takes the arguments up to a null pointer and gives them as the list that execve wants, null included.
///
/// # Safety
/// There is a null pointer among the arguments.
unsafe fn with_list(
    a: &mut Arguments,
    exec: impl FnOnce(*const *const c_char, &mut Arguments) -> c_int,
) -> c_int {
    /// As many without allocating: execl is often called where that is better avoided.
    const FEW: usize = 64;
    let mut few = [std::ptr::null::<c_char>(); FEW];
    let mut many = Vec::new();
    for i in 0.. {
        // SAFETY: by the caller, not beyond the null pointer.
        let word = unsafe { a.next() } as *const c_char;
        if i == FEW {
            many = few.to_vec();
        }
        match few.get_mut(i) {
            Some(place) => *place = word,
            None => many.push(word),
        }
        if word.is_null() {
            break;
        }
    }
    let list = if many.is_empty() {
        few.as_ptr()
    } else {
        many.as_ptr()
    };
    exec(list, a)
}

unsafe extern "C" {
    fn vsnprintf(to: *mut c_char, room: size_t, format: *const c_char, list: *mut VaList) -> c_int;
    fn __vsnprintf_chk(
        to: *mut c_char,
        room: size_t,
        flag: c_int,
        object: size_t,
        format: *const c_char,
        list: *mut VaList,
    ) -> c_int;
}

/// # Safety
/// As vdprintf(3).
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn vdprintf(fd: c_int, format: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: the caller's format and arguments.
    unsafe {
        if !fds::is_tracked(fd) {
            return real::vdprintf(fd, format, list.cast::<c_void>());
        }
        print(fd, *list, |to, room, list| {
            vsnprintf(to, room, format, list)
        })
    }
}

/// # Safety
/// As vdprintf(3).
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn __vdprintf_chk(
    fd: c_int,
    flag: c_int,
    format: *const c_char,
    list: *mut VaList,
) -> c_int {
    // SAFETY: the caller's format and arguments.
    unsafe {
        if !fds::is_tracked(fd) {
            return real::__vdprintf_chk(fd, flag, format, list.cast::<c_void>());
        }
        print(fd, *list, |to, room, list| {
            __vsnprintf_chk(to, room, flag, size_t::MAX, format, list)
        })
    }
}

/// Formats into memory and writes that, because the C library's own write is not seen.
fn print(
    fd: c_int,
    list: VaList,
    format: impl Fn(*mut c_char, size_t, *mut VaList) -> c_int,
) -> c_int {
    crate::cancel::point();
    let _whole = crate::quiet::uncancelled();
    // Each pass takes the arguments from the first on.
    let (mut first, mut second) = (list, list);
    let Ok(length) = usize::try_from(format(std::ptr::null_mut(), 0, &mut first)) else {
        return -1;
    };
    let mut text = vec![0_u8; length + 1];
    if format(text.as_mut_ptr().cast(), text.len(), &mut second) < 0 {
        return -1;
    }
    let mut done = 0;
    while done < length {
        let rest = &text[done..length];
        // SAFETY: our own buffer.
        let n = unsafe { send::write(fd, rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(n) {
            Ok(n) => done += n,
            Err(_) => return -1,
        }
    }
    length as c_int
}
