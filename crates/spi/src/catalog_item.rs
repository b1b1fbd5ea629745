//! One entry of the provider catalog, packed as the registry value `PackedCatalogItem` holds it.
//!
//! ```text
//! 0      DLL path, 260 bytes, ANSI, zero-terminated; may contain %environment% strings
//! 260    WSAPROTOCOL_INFOW, 628 bytes
//! 888    end
//! ```

use windows_sys::Win32::Networking::WinSock::WSAPROTOCOL_INFOW;

use crate::types::MAX_CHAIN;

/// `MAX_PATH`: room for the path with its zero.
pub const PATH_BYTES: usize = 260;

/// Bytes of a packed item.
pub const ITEM_BYTES: usize = PATH_BYTES + size_of::<WSAPROTOCOL_INFOW>();

/// A catalog entry: which protocol, and the DLL that provides it.
#[derive(Clone, Copy)]
pub struct PackedCatalogItem {
    path: [u8; PATH_BYTES],
    pub info: WSAPROTOCOL_INFOW,
}

impl PackedCatalogItem {
    /// `None` if the path does not fit with its zero, is empty, or has a zero inside.
    pub fn new(path: &str, info: WSAPROTOCOL_INFOW) -> Option<Self> {
        let bytes = path.as_bytes();
        if bytes.is_empty() || bytes.len() >= PATH_BYTES || bytes.contains(&0) {
            return None;
        }
        let mut room = [0; PATH_BYTES];
        room.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { path: room, info })
    }

    /// `None` unless the length is right, the path ends within its room, and the chain's length is one that exists.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != ITEM_BYTES {
            return None;
        }
        let (path, rest) = bytes.split_at_checked(PATH_BYTES)?;
        // SAFETY: `rest` is exactly 628 bytes long; the structure is integers alone, so any bytes are one.
        let info = unsafe { rest.as_ptr().cast::<WSAPROTOCOL_INFOW>().read_unaligned() };
        let item = Self {
            path: path.try_into().ok()?,
            info,
        };
        let chain_len = usize::try_from(info.ProtocolChain.ChainLen).ok()?;
        (!item.path().is_empty() && path.contains(&0) && chain_len <= MAX_CHAIN).then_some(item)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ITEM_BYTES);
        bytes.extend_from_slice(&self.path);
        let info: *const WSAPROTOCOL_INFOW = &self.info;
        // SAFETY: the structure is 628 bytes of integers without padding (its fields add up to its size).
        bytes.extend_from_slice(unsafe {
            std::slice::from_raw_parts(info.cast::<u8>(), size_of::<WSAPROTOCOL_INFOW>())
        });
        bytes
    }

    /// The DLL path, unexpanded. Bytes that are no UTF-8 (another ANSI code page) become U+FFFD: such a path does not load.
    pub fn path(&self) -> String {
        let end = self.path.iter().position(|b| *b == 0).unwrap_or(PATH_BYTES);
        String::from_utf8_lossy(self.path.get(..end).unwrap_or_default()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp() -> WSAPROTOCOL_INFOW {
        let mut info = WSAPROTOCOL_INFOW {
            dwCatalogEntryId: 1001,
            iAddressFamily: 2,
            dwProviderReserved: 77,
            ..Default::default()
        };
        info.ProtocolChain.ChainLen = 1;
        info.szProtocol[255] = 0x1234;
        info
    }

    #[test]
    fn there_and_back() {
        let item = PackedCatalogItem::new(r"%SystemRoot%\system32\ws2_32.dll", tcp()).unwrap();
        let bytes = item.to_bytes();
        assert_eq!(bytes.len(), 888);
        let back = PackedCatalogItem::from_bytes(&bytes).unwrap();
        assert_eq!(back.path(), r"%SystemRoot%\system32\ws2_32.dll");
        assert_eq!(back.info.dwCatalogEntryId, 1001);
        assert_eq!(back.info.szProtocol[255], 0x1234);
        assert_eq!(back.to_bytes(), bytes);
    }

    #[test]
    fn fields_lie_where_windows_puts_them() {
        let bytes = PackedCatalogItem::new("x", tcp()).unwrap().to_bytes();
        let word = |at: usize| u32::from_le_bytes(bytes[260 + at..264 + at].try_into().unwrap());
        assert_eq!(word(36), 1001, "dwCatalogEntryId");
        assert_eq!(word(40), 1, "ProtocolChain.ChainLen");
        assert_eq!(word(76), 2, "iAddressFamily");
        assert_eq!(word(112), 77, "dwProviderReserved");
    }

    #[test]
    fn paths_that_do_not_fit_are_refused() {
        assert!(PackedCatalogItem::new(&"p".repeat(259), tcp()).is_some());
        for path in [&"p".repeat(260), "", "a\0b"] {
            assert!(PackedCatalogItem::new(path, tcp()).is_none());
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let good = PackedCatalogItem::new("x", tcp()).unwrap().to_bytes();
        for len in [0, 1, 259, 260, 887] {
            assert!(PackedCatalogItem::from_bytes(&good[..len]).is_none());
        }
        assert!(PackedCatalogItem::from_bytes(&[good.clone(), vec![0]].concat()).is_none());
        let broken = |at: usize, with: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            PackedCatalogItem::from_bytes(&bytes).is_none()
        };
        assert!(broken(300, &8i32.to_le_bytes()), "chain too long");
        assert!(broken(300, &(-1i32).to_le_bytes()), "chain length negative");
        assert!(broken(0, &[0]), "no path");
        assert!(broken(0, &[b'a'; 260]), "path without an end");
        assert!(!broken(300, &7i32.to_le_bytes()), "a full chain is legal");
    }
}
