//! System calls on handles that have no kernel object of their provider's behind them: what ws2ifsl.sys is on Windows.
//!
//! A program may give a socket to ReadFile, CloseHandle, CreateIoCompletionPort or CancelIoEx. All of them, and runtimes that
//! call ntdll themselves, come through a few functions of ntdll; those are hooked when the first non-IFS handle is made.
//! A handle that isn't one passes after a look into the handle table, so the rest of the process hardly notices.
//!
//! Waits for event objects are shown to a provider that asks for it ([`waits`]).
//!
//! NtDuplicateObject passes sockets on as they are: a duplicated carrier is an unconnected socket (Windows has the same limit for non-IFS
//! providers; WSADuplicateSocket is the way). NtDeviceIoControlFile needs no hook: SIO_BASE_HANDLE gives a socket of the
//! base provider.

mod calls;
mod hook;
mod waits;

use std::sync::Once;

/// Installs the hooks, once. One that can't be installed leaves its function as it was: calls on sockets that go there then
/// see the carrier.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| calls::HOOKS.iter().for_each(|hook| hook.install()));
}
