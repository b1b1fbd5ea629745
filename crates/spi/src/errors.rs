//! Winsock error codes and the NTSTATUS values that stand for them in `OVERLAPPED.Internal`.
//!
//! The SPI speaks in WSA codes; the kernel's side of an overlapped call (completion ports, `GetOverlappedResult`) in
//! NTSTATUS. A provider that finishes calls itself must write the status that gives its error back: Windows turns
//! STATUS_CONNECTION_RESET into ERROR_NETNAME_DELETED on a completion port and into WSAECONNRESET in
//! `WSAGetOverlappedResult`, and programs know both. [`PAIRS`] is one to one; [`ALSO`] has the further statuses that
//! Winsock understands and nothing here writes.

use windows_sys::Win32::Foundation as nt;
use windows_sys::Win32::Networking::WinSock as ws;

/// WSA code and its status; each code and each status once.
pub const PAIRS: &[(i32, i32)] = &[
    (0, nt::STATUS_SUCCESS),
    (ws::WSA_IO_INCOMPLETE, nt::STATUS_PENDING),
    (ws::WSA_OPERATION_ABORTED, nt::STATUS_CANCELLED),
    (ws::WSAEINTR, nt::STATUS_REQUEST_ABORTED),
    (ws::WSAEACCES, nt::STATUS_ACCESS_DENIED),
    (ws::WSAEFAULT, nt::STATUS_ACCESS_VIOLATION),
    (ws::WSAEINVAL, nt::STATUS_INVALID_PARAMETER),
    (ws::WSAEWOULDBLOCK, nt::STATUS_DEVICE_NOT_READY),
    (ws::WSAENOTSOCK, nt::STATUS_INVALID_HANDLE),
    (ws::WSAEMSGSIZE, nt::STATUS_BUFFER_OVERFLOW),
    (ws::WSAEOPNOTSUPP, nt::STATUS_NOT_SUPPORTED),
    (ws::WSAEADDRINUSE, nt::STATUS_ADDRESS_ALREADY_EXISTS),
    (ws::WSAEADDRNOTAVAIL, nt::STATUS_INVALID_ADDRESS_COMPONENT),
    (ws::WSAENETDOWN, nt::STATUS_OBJECT_NAME_NOT_FOUND),
    (ws::WSAENETUNREACH, nt::STATUS_NETWORK_UNREACHABLE),
    (ws::WSAECONNABORTED, nt::STATUS_CONNECTION_ABORTED),
    (ws::WSAECONNRESET, nt::STATUS_CONNECTION_RESET),
    (ws::WSAENOBUFS, nt::STATUS_INSUFFICIENT_RESOURCES),
    (ws::WSAEISCONN, nt::STATUS_CONNECTION_ACTIVE),
    (ws::WSAENOTCONN, nt::STATUS_INVALID_CONNECTION),
    (ws::WSAESHUTDOWN, nt::STATUS_PIPE_DISCONNECTED),
    (ws::WSAETIMEDOUT, nt::STATUS_IO_TIMEOUT),
    (ws::WSAECONNREFUSED, nt::STATUS_CONNECTION_REFUSED),
    (ws::WSAEHOSTUNREACH, nt::STATUS_HOST_UNREACHABLE),
    (ws::WSAEDISCON, nt::STATUS_GRACEFUL_DISCONNECT),
];

/// Further statuses of a base provider, and the code that Winsock gives for each.
pub const ALSO: &[(i32, i32)] = &[
    (ws::WSAENOTSOCK, nt::STATUS_OBJECT_TYPE_MISMATCH),
    (ws::WSAENOBUFS, nt::STATUS_NO_MEMORY),
    (ws::WSAEADDRINUSE, nt::STATUS_SHARING_VIOLATION),
    (ws::WSAECONNRESET, nt::STATUS_REMOTE_DISCONNECT),
    (ws::WSAECONNRESET, nt::STATUS_PORT_UNREACHABLE),
    (ws::WSAECONNRESET, nt::STATUS_CONNECTION_DISCONNECTED),
    (ws::WSAECONNABORTED, nt::STATUS_LOCAL_DISCONNECT),
    (ws::WSAENETUNREACH, nt::STATUS_PROTOCOL_UNREACHABLE),
    (ws::WSAENETUNREACH, nt::STATUS_BAD_NETWORK_PATH),
    (ws::WSAEMSGSIZE, nt::STATUS_INVALID_BUFFER_SIZE),
    (ws::WSAEFAULT, nt::STATUS_BUFFER_TOO_SMALL),
    (ws::WSAECONNREFUSED, nt::STATUS_REMOTE_NOT_LISTENING),
    (ws::WSAEADDRNOTAVAIL, nt::STATUS_INVALID_ADDRESS),
    (ws::WSAEOPNOTSUPP, nt::STATUS_NOT_IMPLEMENTED),
];

/// FACILITY_NTWIN32 with error severity: a status that carries a Win32 code in its low half.
const NTWIN32_ERROR: u32 = 0xC007_0000;

/// The status that stands for `wsa`. A code without one of its own is carried inside an NTWIN32 status, from which
/// `RtlNtStatusToDosError` and [`to_wsa`] take it out again.
pub fn to_ntstatus(wsa: i32) -> i32 {
    match PAIRS.iter().find(|(code, _)| *code == wsa) {
        Some((_, status)) => *status,
        None => (NTWIN32_ERROR | (wsa as u32 & 0xFFFF)) as i32,
    }
}

/// The Winsock error for `status`; WSAEINVAL for one that Winsock does not know, as Windows and Wine answer.
/// Successes and information (severity 0 and 1) are no error, but for STATUS_PENDING.
pub fn to_wsa(status: i32) -> i32 {
    let known = PAIRS.iter().chain(ALSO).find(|(_, s)| *s == status);
    match known {
        Some((code, _)) => *code,
        None if status >= 0 => 0,
        None if status as u32 & 0xFFFF_0000 == NTWIN32_ERROR => status & 0xFFFF,
        None => ws::WSAEINVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_one_to_one() {
        for (i, (code, status)) in PAIRS.iter().enumerate() {
            for (other_code, other_status) in PAIRS.iter().skip(i + 1).chain(ALSO) {
                assert_ne!(status, other_status);
                let again = PAIRS.iter().skip(i + 1).any(|(c, _)| c == other_code);
                assert!(!again || code != other_code);
            }
        }
    }

    #[test]
    fn there_and_back() {
        for (code, status) in PAIRS {
            assert_eq!(to_ntstatus(*code), *status);
            assert_eq!(to_wsa(*status), *code);
        }
        for (code, status) in ALSO {
            assert_eq!(to_wsa(*status), *code);
            assert_ne!(to_ntstatus(*code), *status);
        }
    }

    #[test]
    fn every_code_survives() {
        for code in (ws::WSABASEERR..=ws::WSABASEERR + 112).chain(11001..=11031) {
            assert_eq!(to_wsa(to_ntstatus(code)), code);
        }
    }

    #[test]
    fn the_values_programs_look_for() {
        let status = |code| to_ntstatus(code) as u32;
        assert_eq!(status(10054), 0xC000_020D);
        assert_eq!(status(10053), 0xC000_0241);
        assert_eq!(status(10060), 0xC000_00B5);
        assert_eq!(status(10061), 0xC000_0236);
        assert_eq!(status(10058), 0xC000_00B0);
        assert_eq!(status(10040), 0x8000_0005);
        assert_eq!(status(10101), 0xC000_0237);
        assert_eq!(status(995), 0xC000_0120);
        assert_eq!(status(0), 0);
    }

    #[test]
    fn what_winsock_does_not_know() {
        assert_eq!(to_wsa(nt::STATUS_UNSUCCESSFUL), ws::WSAEINVAL);
        assert_eq!(to_wsa(0x102), 0, "STATUS_TIMEOUT is a success code");
    }
}
