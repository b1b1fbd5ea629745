//! System calls on handles that have no kernel object of their provider's behind them: what ws2ifsl.sys is on Windows.
//!
//! A program may give a socket to ReadFile, CloseHandle, CreateIoCompletionPort or CancelIoEx. All of them, and runtimes that
//! call ntdll themselves, come through a few functions of ntdll; those are hooked when the first non-IFS handle is made.
//! A handle that isn't one passes after a look into the handle table, so the rest of the process hardly notices.
//!
//! Waits for event objects are shown to a provider that asks for it ([`waits`]), and who waits at a completion port has it look
//! ([`ports`]).
//!
//! NtDuplicateObject passes sockets on as they are: a duplicated carrier is an unconnected socket (Windows has the same limit for non-IFS
//! providers; WSADuplicateSocket is the way). NtDeviceIoControlFile needs no hook: SIO_BASE_HANDLE gives a socket of the
//! base provider.

mod calls;
mod hook;
pub mod ports;
mod waits;

use std::sync::OnceLock;

static DONE: OnceLock<bool> = OnceLock::new();

/// There can be no non-IFS handles: see [`install`].
pub fn has_failed() -> bool {
    DONE.get() == Some(&false)
}

/// Installs the hooks, once. False: one can't be, because somebody else has changed its function; then there can be no non-IFS
/// handles, since calls on sockets that go there would see the carrier.
pub fn install() -> bool {
    *DONE.get_or_init(|| calls::HOOKS.iter().all(|hook| hook.install()))
}

/// Sees completion ports from now on.
pub fn see_ports() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(ports::install);
}
