//! Finding one's own place in the catalog.
//!
//! A layered provider has one hidden entry (`ChainLen` 0); that entry's catalog id is the provider's id. It stands in
//! every chain that goes through the provider; the id after it is the next lower provider: a base protocol, or the
//! hidden entry of another layered provider, which finds itself in the same chain in the same way.
//!
//! `WSPStartup` and `WSPSocket` of the lower provider get the base protocol's own entry if it is a base, and the chain's
//! entry if it is layered (it needs the chain to find its own next).

use windows_sys::Win32::Networking::WinSock::WSAPROTOCOL_INFOW;
use windows_sys::core::GUID;

use crate::ids::same_guid;
use crate::types::{BASE_PROTOCOL, LAYERED_PROTOCOL, MAX_CHAIN};

/// A chain that goes through us.
#[derive(Clone, Copy)]
pub struct Layer {
    /// The chain's entry: what programs see, and what WSPStartup and WSPSocket are called with.
    pub info: WSAPROTOCOL_INFOW,
    /// The entry of the next lower provider; its DLL path is found by `lower.ProviderId`.
    pub lower: WSAPROTOCOL_INFOW,
}

impl Layer {
    /// What the lower provider's WSPStartup and WSPSocket are to be called with.
    pub fn lower_info(&self) -> &WSAPROTOCOL_INFOW {
        if self.lower.ProtocolChain.ChainLen == LAYERED_PROTOCOL {
            &self.info
        } else {
            &self.lower
        }
    }
}

/// The ids of an entry's chain; empty for a layered or base entry and for a length that can't be.
pub fn ids(info: &WSAPROTOCOL_INFOW) -> &[u32] {
    match usize::try_from(info.ProtocolChain.ChainLen) {
        Ok(len) if (2..=MAX_CHAIN).contains(&len) => {
            info.ProtocolChain.ChainEntries.get(..len).unwrap_or(&[])
        }
        _ => &[],
    }
}

/// Our id: that of the hidden entry with our GUID.
pub fn own_id(catalog: &[WSAPROTOCOL_INFOW], dummy: &GUID) -> Option<u32> {
    let ours = |e: &&WSAPROTOCOL_INFOW| {
        e.ProtocolChain.ChainLen == LAYERED_PROTOCOL && same_guid(&e.ProviderId, dummy)
    };
    catalog.iter().find(ours).map(|e| e.dwCatalogEntryId)
}

/// Our id when the catalog was filled by somebody else's installer, with other GUIDs: of the ids in the chain with which
/// WSPStartup was called, the first whose hidden entry is provided by `is_ours` (by DLL path, says the caller).
pub fn own_id_by(
    catalog: &[WSAPROTOCOL_INFOW],
    startup: &WSAPROTOCOL_INFOW,
    mut is_ours: impl FnMut(&GUID) -> bool,
) -> Option<u32> {
    let mut hidden = |id: &u32| {
        find(catalog, *id)
            .is_some_and(|e| e.ProtocolChain.ChainLen == LAYERED_PROTOCOL && is_ours(&e.ProviderId))
    };
    ids(startup).iter().copied().find(|id| hidden(id))
}

/// The id below `own` in this chain; `None` if `own` is not in it, or is its last.
pub fn next_below(info: &WSAPROTOCOL_INFOW, own: u32) -> Option<u32> {
    let ids = ids(info);
    let at = ids.iter().position(|id| *id == own)?;
    ids.get(at + 1).copied()
}

/// All chains through `own`, first or in the middle, in catalog order. A chain whose lower entry is gone is left out.
pub fn layers(catalog: &[WSAPROTOCOL_INFOW], own: u32) -> Vec<Layer> {
    let layer = |info: &WSAPROTOCOL_INFOW| {
        let lower = *find(catalog, next_below(info, own)?)?;
        // A chain that names itself, directly or by its own id, would start us within our own start.
        (lower.dwCatalogEntryId != info.dwCatalogEntryId).then_some(Layer { info: *info, lower })
    };
    catalog.iter().filter_map(layer).collect()
}

/// The entry with this id.
pub fn find(catalog: &[WSAPROTOCOL_INFOW], id: u32) -> Option<&WSAPROTOCOL_INFOW> {
    catalog.iter().find(|e| e.dwCatalogEntryId == id)
}

/// Whether this is a base protocol.
pub fn is_base(info: &WSAPROTOCOL_INFOW) -> bool {
    info.ProtocolChain.ChainLen == BASE_PROTOCOL
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CHAIN_PROVIDER, DUMMY_PROVIDER};

    const OTHER: GUID = GUID::from_u128(7);

    fn entry(id: u32, guid: GUID, len: i32, chain: &[u32]) -> WSAPROTOCOL_INFOW {
        let mut info = WSAPROTOCOL_INFOW {
            dwCatalogEntryId: id,
            ProviderId: guid,
            ..Default::default()
        };
        info.ProtocolChain.ChainLen = len;
        info.ProtocolChain.ChainEntries[..chain.len()].copy_from_slice(chain);
        info
    }

    /// Two bases, a foreign layered provider 1010 with its chain, ours is 1020: over a base, over the foreign one, below it.
    fn catalog() -> Vec<WSAPROTOCOL_INFOW> {
        vec![
            entry(1021, CHAIN_PROVIDER, 2, &[1020, 1001]),
            entry(1022, CHAIN_PROVIDER, 3, &[1020, 1010, 1002]),
            entry(1011, OTHER, 3, &[1010, 1020, 1001]),
            entry(1012, OTHER, 2, &[1010, 1001]),
            entry(1001, OTHER, 1, &[1001]),
            entry(1002, OTHER, 1, &[]),
            entry(1010, OTHER, 0, &[]),
            entry(1020, DUMMY_PROVIDER, 0, &[]),
        ]
    }

    #[test]
    fn our_id_is_the_hidden_entrys() {
        assert_eq!(own_id(&catalog(), &DUMMY_PROVIDER), Some(1020));
        assert_eq!(own_id(&catalog(), &CHAIN_PROVIDER), None, "no hidden entry");
        assert_eq!(own_id(&[], &DUMMY_PROVIDER), None);
    }

    #[test]
    fn our_id_is_found_by_the_dll_too() {
        let catalog = catalog();
        let by_other =
            |start: usize| own_id_by(&catalog, &catalog[start], |g| same_guid(g, &OTHER));
        assert_eq!(by_other(1), Some(1010));
        assert_eq!(by_other(0), None, "1001 is a base, not a hidden entry");
    }

    #[test]
    fn layers_at_the_top_and_in_the_middle() {
        let layers = layers(&catalog(), 1020);
        let ids: Vec<_> = layers
            .iter()
            .map(|l| (l.info.dwCatalogEntryId, l.lower.dwCatalogEntryId))
            .collect();
        assert_eq!(ids, [(1021, 1001), (1022, 1010), (1011, 1001)]);
    }

    #[test]
    fn a_layered_lower_gets_the_chain_and_a_base_its_own_entry() {
        let layers = layers(&catalog(), 1020);
        let passed: Vec<_> = layers
            .iter()
            .map(|l| l.lower_info().dwCatalogEntryId)
            .collect();
        assert_eq!(passed, [1001, 1022, 1001]);
    }

    #[test]
    fn broken_chains_are_left_out() {
        let broken = [
            entry(1, OTHER, 2, &[1020, 999]),
            entry(2, OTHER, 2, &[999, 1020]),
            entry(3, OTHER, 8, &[1020, 1001]),
            entry(4, OTHER, -1, &[1020, 1001]),
            entry(5, OTHER, 1, &[1020, 1001]),
            entry(6, OTHER, 2, &[1020, 6]),
            entry(1001, OTHER, 1, &[]),
        ];
        assert!(layers(&broken, 1020).is_empty());
    }
}
