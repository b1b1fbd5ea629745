//! Waiting for a program to end, for the report after it. Who sends us a signal means the program: it is passed on, so that the program
//! hears what it would hear in our place, and as often.

#![allow(unsafe_code)] // kill(2) from a signal handler: the only way to pass a signal on without a thread.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};

use libc::{sigaction, siginfo_t, sigset_t};

static CHILD: AtomicI32 = AtomicI32::new(0);
/// We began the session, in the program's place.
static LEADS: AtomicBool = AtomicBool::new(false);

/// Not what stops a process: the terminal stops both, and a shell must see that we do. Not faults of our own.
const PASSED: [c_int; 18] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGXCPU,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGWINCH,
    libc::SIGIO,
    libc::SIGPWR,
];

fn passed() -> impl Iterator<Item = c_int> {
    PASSED
        .into_iter()
        .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// Runs the program to its end.
pub fn to_its_end(command: &mut Command) -> std::io::Result<ExitStatus> {
    // SAFETY: no arguments but numbers.
    LEADS.store(unsafe { libc::getsid(0) == libc::getpid() }, Relaxed);
    // What comes before we know the child waits; the child has its own mask (`keep_signals`).
    hold_back(libc::SIG_BLOCK);
    let spawned = command.spawn().inspect(|child| {
        CHILD.store(child.id() as i32, Relaxed);
        passed().for_each(catch);
    });
    // Also what whoever started us had blocked: it is blocked in the program.
    hold_back(libc::SIG_UNBLOCK);
    let mut child = spawned?;
    await_end(&child);
    CHILD.store(0, Relaxed);
    child.wait()
}

/// Until the child is over, and still has its number.
fn await_end(child: &Child) {
    let mut info = MaybeUninit::<siginfo_t>::zeroed();
    let how = libc::WEXITED | libc::WNOWAIT;
    // SAFETY: an out-pointer to a local.
    while unsafe { libc::waitid(libc::P_PID, child.id(), info.as_mut_ptr(), how) } < 0
        && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
    {}
}

fn hold_back(how: c_int) {
    let mut set = MaybeUninit::<sigset_t>::zeroed();
    // SAFETY: a set that is made empty first, and numbers of signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in passed() {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut());
    }
}

fn catch(signal: c_int) {
    // SAFETY: zeros are an empty mask; the handler is of the type that SA_SIGINFO means, and async-signal-safe.
    unsafe {
        let mut action: sigaction = std::mem::zeroed();
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut libc::c_void) = pass_on;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

extern "C" fn pass_on(signal: c_int, info: *mut siginfo_t, _: *mut libc::c_void) {
    let child = CHILD.load(Relaxed);
    // SAFETY: the kernel's description of the signal; async-signal-safe calls on a child that is ours and not yet waited for.
    unsafe {
        if child <= 0 || !is_for_the_program(signal, &*info, child) {
            return;
        }
        let errno = libc::__errno_location();
        let saved = *errno;
        if (*info).si_code == libc::SI_QUEUE {
            libc::sigqueue(child, signal, (*info).si_value());
        } else {
            libc::kill(child, signal);
        }
        *errno = saved;
    }
}

/// What the kernel sends has come to the program as well if it is the terminal's, for that sends to a whole group; but not the
/// end of a session, which its leader is told of, nor a timer that was set before we came. What the program sends
/// to its own group it has from itself.
///
/// # Safety
/// `info` as the kernel gave it.
unsafe fn is_for_the_program(signal: c_int, info: &siginfo_t, child: c_int) -> bool {
    if info.si_code > 0 {
        return match signal {
            libc::SIGALRM | libc::SIGVTALRM | libc::SIGPROF => true,
            libc::SIGHUP | libc::SIGCONT => LEADS.load(Relaxed),
            _ => false,
        };
    }
    // SAFETY: by the caller; signals that processes send have a sender.
    let sender = unsafe { info.si_pid() };
    // SAFETY: no arguments.
    sender != child && sender != unsafe { libc::getpid() }
}
