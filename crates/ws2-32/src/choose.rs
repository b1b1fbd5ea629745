//! Which catalog entry serves a new socket.

use windows_sys::Win32::Networking::WinSock::{PFL_MATCHES_PROTOCOL_ZERO, WSAPROTOCOL_INFOW};

/// More than the chain of a base protocol: a layered provider's.
pub fn is_layered(info: &WSAPROTOCOL_INFOW) -> bool {
    info.ProtocolChain.ChainLen > 1
}

/// The first entry in catalog order for this family, type and protocol; the hidden entries that only give a layered provider
/// its id (chain length 0) serve nothing. Zero as protocol means the default one, zero elsewhere nothing in particular:
/// callers have it resolved first.
pub fn first<'a>(
    mut entries: impl Iterator<Item = &'a WSAPROTOCOL_INFOW>,
    (af, kind, protocol): (i32, i32, i32),
) -> Option<&'a WSAPROTOCOL_INFOW> {
    entries.find(|e| {
        let last = e.iProtocol.saturating_add(e.iProtocolMaxOffset);
        e.ProtocolChain.ChainLen != 0
            && e.iAddressFamily == af
            && e.iSocketType == kind
            && ((e.iProtocol..=last).contains(&protocol)
                || (protocol == 0 && e.dwProviderFlags & PFL_MATCHES_PROTOCOL_ZERO != 0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use windows_sys::Win32::Networking::WinSock::{
        AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM,
    };

    const INET: i32 = AF_INET as i32;

    fn entry(id: u32, chain: i32, kind: i32, protocol: i32, flags: u32) -> WSAPROTOCOL_INFOW {
        let mut info = WSAPROTOCOL_INFOW {
            dwCatalogEntryId: id,
            iAddressFamily: INET,
            iSocketType: kind,
            iProtocol: protocol,
            dwProviderFlags: flags,
            ..Default::default()
        };
        info.ProtocolChain.ChainLen = chain;
        info
    }

    fn catalog() -> Vec<WSAPROTOCOL_INFOW> {
        let mut raw = entry(1003, 1, SOCK_RAW, 0, PFL_MATCHES_PROTOCOL_ZERO);
        raw.iProtocolMaxOffset = 255;
        vec![
            entry(1010, 0, SOCK_STREAM, IPPROTO_TCP, 0),
            entry(1011, 2, SOCK_STREAM, IPPROTO_TCP, PFL_MATCHES_PROTOCOL_ZERO),
            entry(1001, 1, SOCK_STREAM, IPPROTO_TCP, PFL_MATCHES_PROTOCOL_ZERO),
            entry(1002, 1, SOCK_DGRAM, IPPROTO_UDP, 0),
            raw,
        ]
    }

    fn id(triple: (i32, i32, i32)) -> Option<u32> {
        first(catalog().iter(), triple).map(|e| e.dwCatalogEntryId)
    }

    #[test]
    fn the_first_that_fits_wins() {
        assert_eq!(id((INET, SOCK_STREAM, IPPROTO_TCP)), Some(1011));
        assert_eq!(id((INET, SOCK_STREAM, 0)), Some(1011));
        assert_eq!(id((INET, SOCK_DGRAM, IPPROTO_UDP)), Some(1002));
        assert_eq!(id((INET, SOCK_DGRAM, 0)), None, "doesn't match zero");
    }

    #[test]
    fn a_range_of_protocols_is_one_entry() {
        assert_eq!(id((INET, SOCK_RAW, 255)), Some(1003));
        assert_eq!(id((INET, SOCK_RAW, 256)), None);
    }

    #[test]
    fn what_fits_nothing_is_for_the_builtin_to_refuse() {
        assert_eq!(id((INET, SOCK_STREAM, IPPROTO_UDP)), None);
        assert_eq!(id((AF_INET6 as i32, SOCK_STREAM, IPPROTO_TCP)), None);
    }
}
