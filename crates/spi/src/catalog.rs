//! The provider catalog as a value: entries in order of preference, and what the WSC* functions do to them.
//!
//! Errors are the WSA codes that ws2spi.h's functions are documented with. An edit that fails has changed nothing that
//! is kept: callers edit a copy and store it whole.

use windows_sys::Win32::Networking::WinSock::{
    WSAEINVAL, WSAEINVALIDPROVIDER, WSANO_RECOVERY, WSAPROTOCOL_INFOW,
};
use windows_sys::core::GUID;

use crate::catalog_item::{ITEM_BYTES, PackedCatalogItem};
use crate::chain::is_base;
use crate::ids::same_guid;
use crate::types::MAX_CHAIN;

/// The first catalog id that Windows gives away.
pub const FIRST_ID: u32 = 1001;

#[derive(Clone)]
pub struct Entry {
    pub info: WSAPROTOCOL_INFOW,
    /// DLL path, unexpanded.
    pub path: String,
    /// LSP_* bits (WSCSetProviderInfo); 0 is "no category".
    pub categories: u32,
}

impl Entry {
    fn is_of(&self, provider: &GUID) -> bool {
        same_guid(&self.info.ProviderId, provider)
    }
}

#[derive(Clone, Default)]
pub struct Catalog {
    /// In order of preference: `socket` takes the first that fits.
    pub entries: Vec<Entry>,
    /// The id that the next new entry gets.
    pub next_id: u32,
}

impl Catalog {
    /// Keeps what can be used of `entries`: an id must not be 0 nor come twice. `next_id` is raised above all ids.
    pub fn new(entries: impl IntoIterator<Item = Entry>, next_id: u32) -> Self {
        let mut catalog = Self {
            entries: Vec::new(),
            next_id: next_id.max(FIRST_ID),
        };
        for entry in entries {
            let id = entry.info.dwCatalogEntryId;
            if id != 0 && catalog.find(id).is_none() {
                catalog.next_id = catalog.next_id.max(id.saturating_add(1));
                catalog.entries.push(entry);
            }
        }
        catalog
    }

    /// The entry with this catalog id.
    pub fn find(&self, id: u32) -> Option<&Entry> {
        self.entries.iter().find(|e| e.info.dwCatalogEntryId == id)
    }

    /// The first entry of this provider.
    pub fn of_provider(&self, provider: &GUID) -> Option<&Entry> {
        self.entries.iter().find(|e| e.is_of(provider))
    }

    /// Whether any chain is installed: without one, nothing stands between a program and the base.
    pub fn layered(&self) -> bool {
        let is_chain = |e: &Entry| e.info.ProtocolChain.ChainLen >= 2;
        self.entries.iter().any(is_chain)
    }

    /// Puts back, at the end, what is missing of the base protocols that the DLL at `path` provides.
    pub fn complete(&mut self, bases: &[WSAPROTOCOL_INFOW], path: &str) {
        let kind = |i: &WSAPROTOCOL_INFOW| (i.iAddressFamily, i.iSocketType, i.iProtocol);
        for info in bases {
            let same =
                |e: &Entry| is_base(&e.info) && e.path == path && kind(&e.info) == kind(info);
            if self.entries.iter().any(same) {
                continue;
            }
            let mut info = *info;
            // Its own id if it can be had: programs then see what they saw without a catalog.
            if info.dwCatalogEntryId == 0 || self.find(info.dwCatalogEntryId).is_some() {
                info.dwCatalogEntryId = self.next_id;
            }
            self.next_id = self.next_id.max(info.dwCatalogEntryId.saturating_add(1));
            self.entries.push(Entry {
                info,
                path: path.to_owned(),
                categories: 0,
            });
        }
    }

    /// WSCInstallProvider: appends `infos` under `provider`, each with a new id.
    pub fn install(
        &mut self,
        provider: &GUID,
        path: &str,
        infos: &[WSAPROTOCOL_INFOW],
    ) -> Result<(), i32> {
        if infos.is_empty() {
            return Err(WSAEINVAL);
        }
        if self.of_provider(provider).is_some() {
            return Err(WSANO_RECOVERY);
        }
        infos
            .iter()
            .try_for_each(|i| self.append(provider, path, i))
    }

    fn append(&mut self, provider: &GUID, path: &str, info: &WSAPROTOCOL_INFOW) -> Result<(), i32> {
        let mut info = *info;
        info.ProviderId = *provider;
        info.dwCatalogEntryId = self.next_id;
        check(path, &info)?;
        self.next_id = self.next_id.checked_add(1).ok_or(WSANO_RECOVERY)?;
        self.entries.push(Entry {
            info,
            path: path.to_owned(),
            categories: 0,
        });
        Ok(())
    }

    /// WSCDeinstallProvider: all entries of `provider` go.
    pub fn remove(&mut self, provider: &GUID) -> Result<(), i32> {
        let before = self.entries.len();
        self.entries.retain(|e| !e.is_of(provider));
        if self.entries.len() == before {
            return Err(WSAEINVAL);
        }
        Ok(())
    }

    /// WSCUpdateProvider: a new path for all entries of `provider`; an info whose id is one of theirs replaces it, any
    /// other is added.
    pub fn update(
        &mut self,
        provider: &GUID,
        path: &str,
        infos: &[WSAPROTOCOL_INFOW],
    ) -> Result<(), i32> {
        if infos.is_empty() || self.of_provider(provider).is_none() {
            return Err(WSAEINVAL);
        }
        for info in infos {
            let same = |e: &&mut Entry| {
                e.info.dwCatalogEntryId == info.dwCatalogEntryId && e.is_of(provider)
            };
            let Some(entry) = self.entries.iter_mut().find(same) else {
                self.append(provider, path, info)?;
                continue;
            };
            check(path, info)?;
            entry.info = *info;
            entry.info.ProviderId = *provider;
        }
        for entry in self.entries.iter_mut().filter(|e| e.is_of(provider)) {
            check(path, &entry.info)?;
            path.clone_into(&mut entry.path);
        }
        Ok(())
    }

    /// WSCWriteProviderOrder: `ids` is every entry exactly once, as documented.
    pub fn order(&mut self, ids: &[u32]) -> Result<(), i32> {
        let rank = |id: u32| ids.iter().position(|i| *i == id);
        let listed = |e: &Entry| rank(e.info.dwCatalogEntryId).is_some();
        if ids.len() != self.entries.len() || !self.entries.iter().all(listed) {
            return Err(WSAEINVAL);
        }
        self.entries.sort_by_key(|e| rank(e.info.dwCatalogEntryId));
        Ok(())
    }

    /// WSCSetProviderInfo with ProviderInfoLspCategories.
    pub fn set_categories(&mut self, provider: &GUID, categories: u32) -> Result<(), i32> {
        let mut found = Err(WSAEINVALIDPROVIDER);
        for entry in self.entries.iter_mut().filter(|e| e.is_of(provider)) {
            entry.categories = categories;
            found = Ok(());
        }
        found
    }

    /// The whole catalog in one piece of bytes, for the journal of a write.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = self.next_id.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend(entry.categories.to_le_bytes());
            bytes.extend(PackedCatalogItem::new(&entry.path, entry.info)?.to_bytes());
        }
        Some(bytes)
    }

    /// What [`Catalog::to_bytes`] wrote; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (next_id, rest) = bytes.split_first_chunk::<4>()?;
        let (records, []) = rest.as_chunks::<{ 4 + ITEM_BYTES }>() else {
            return None;
        };
        let entry = |record: &[u8; 4 + ITEM_BYTES]| {
            let (categories, item) = record.split_first_chunk::<4>()?;
            Entry::unpack(item, u32::from_le_bytes(*categories))
        };
        let entries = records.iter().map(entry).collect::<Option<Vec<_>>>()?;
        Some(Self::new(entries, u32::from_le_bytes(*next_id)))
    }
}

impl Entry {
    /// An entry from the registry's packed item.
    pub fn unpack(item: &[u8], categories: u32) -> Option<Self> {
        let item = PackedCatalogItem::from_bytes(item)?;
        Some(Self {
            info: item.info,
            path: item.path(),
            categories,
        })
    }
}

/// Whether an entry could be stored and read back.
fn check(path: &str, info: &WSAPROTOCOL_INFOW) -> Result<(), i32> {
    let chain = usize::try_from(info.ProtocolChain.ChainLen);
    match chain {
        Ok(0..=MAX_CHAIN) if PackedCatalogItem::new(path, *info).is_some() => Ok(()),
        _ => Err(WSAEINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CHAIN_PROVIDER, DUMMY_PROVIDER};

    const BASE: GUID = GUID::from_u128(1);
    const NOBODY: GUID = GUID::from_u128(2);

    fn info(id: u32, chain_len: i32) -> WSAPROTOCOL_INFOW {
        let mut info = WSAPROTOCOL_INFOW {
            dwCatalogEntryId: id,
            ProviderId: BASE,
            ..Default::default()
        };
        info.ProtocolChain.ChainLen = chain_len;
        info
    }

    fn base(id: u32) -> Entry {
        Entry {
            info: info(id, 1),
            path: "base.dll".into(),
            categories: 0,
        }
    }

    fn ids(catalog: &Catalog) -> Vec<u32> {
        let id = |e: &Entry| e.info.dwCatalogEntryId;
        catalog.entries.iter().map(id).collect()
    }

    fn two_bases() -> Catalog {
        Catalog::new([base(1001), base(1004)], 0)
    }

    #[test]
    fn ids_are_never_given_twice() {
        let mut catalog = two_bases();
        catalog
            .install(&DUMMY_PROVIDER, "lsp.dll", &[info(0, 0)])
            .unwrap();
        catalog.remove(&DUMMY_PROVIDER).unwrap();
        catalog
            .install(&CHAIN_PROVIDER, "lsp.dll", &[info(0, 2), info(0, 2)])
            .unwrap();
        assert_eq!(ids(&catalog), [1001, 1004, 1006, 1007]);
        assert!(
            catalog.entries[2..]
                .iter()
                .all(|e| e.is_of(&CHAIN_PROVIDER))
        );
        assert!(catalog.layered());
    }

    #[test]
    fn unusable_entries_are_dropped() {
        let catalog = Catalog::new([base(7), base(0), base(7), base(u32::MAX)], 3);
        assert_eq!(ids(&catalog), [7, u32::MAX]);
        let mut full = catalog;
        let failed = full.install(&DUMMY_PROVIDER, "x", &[info(0, 0)]);
        assert_eq!(failed, Err(WSANO_RECOVERY), "no id left");
    }

    #[test]
    fn install_refuses() {
        let mut catalog = two_bases();
        let mut try_install = |guid, path: &str, infos: &[_]| catalog.install(guid, path, infos);
        assert_eq!(try_install(&NOBODY, "x", &[]), Err(WSAEINVAL));
        assert_eq!(try_install(&NOBODY, "", &[info(0, 1)]), Err(WSAEINVAL));
        assert_eq!(try_install(&NOBODY, "x", &[info(0, 8)]), Err(WSAEINVAL));
        assert_eq!(try_install(&NOBODY, "x", &[info(0, -1)]), Err(WSAEINVAL));
        let long = "x".repeat(260);
        assert_eq!(try_install(&NOBODY, &long, &[info(0, 1)]), Err(WSAEINVAL));
        assert_eq!(try_install(&BASE, "x", &[info(0, 1)]), Err(WSANO_RECOVERY));
    }

    #[test]
    fn removing_an_unknown_provider_is_an_error() {
        let mut catalog = two_bases();
        assert_eq!(catalog.remove(&NOBODY), Err(WSAEINVAL));
        assert_eq!(catalog.remove(&BASE), Ok(()));
        assert!(catalog.entries.is_empty());
    }

    #[test]
    fn missing_bases_are_put_back() {
        let bases = [(1001, 6), (1002, 17), (1004, 6)].map(|(id, protocol)| {
            let mut base = info(id, 1);
            base.iProtocol = protocol;
            base.iAddressFamily = if id == 1004 { 23 } else { 2 };
            base
        });
        let mut catalog = Catalog::new([], 0);
        catalog.complete(&bases, "base.dll");
        assert_eq!(
            (ids(&catalog), catalog.next_id),
            (vec![1001, 1002, 1004], 1005)
        );
        catalog.complete(&bases, "base.dll");
        assert_eq!(catalog.entries.len(), 3, "nothing is missing");
        // One went away, and somebody else has its id; one is another DLL's.
        catalog.entries.remove(1);
        catalog.entries[0].info.dwCatalogEntryId = 1002;
        catalog.entries[1].path = "other.dll".into();
        catalog.complete(&bases, "base.dll");
        assert_eq!(ids(&catalog), [1002, 1004, 1005, 1006]);
    }

    #[test]
    fn order_takes_every_entry_once() {
        let mut catalog = Catalog::new([base(1), base(2), base(3)], 0);
        catalog.order(&[3, 1, 2]).unwrap();
        assert_eq!(ids(&catalog), [3, 1, 2]);
        for bad in [&[][..], &[1, 2], &[1, 2, 9], &[1, 1, 2], &[1, 2, 3, 3]] {
            assert_eq!(catalog.order(bad), Err(WSAEINVAL));
        }
        assert_eq!(ids(&catalog), [3, 1, 2]);
    }

    #[test]
    fn update_replaces_adds_and_renames() {
        let mut catalog = two_bases();
        let mut changed = info(1004, 1);
        changed.iProtocol = 17;
        catalog
            .update(&BASE, "new.dll", &[changed, info(0, 1)])
            .unwrap();
        assert_eq!(ids(&catalog), [1001, 1004, 1005]);
        assert_eq!(catalog.find(1004).map(|e| e.info.iProtocol), Some(17));
        assert!(catalog.entries.iter().all(|e| e.path == "new.dll"));
        assert_eq!(catalog.update(&NOBODY, "x", &[changed]), Err(WSAEINVAL));
    }

    #[test]
    fn the_journal_reads_back() {
        let mut catalog = two_bases();
        catalog.set_categories(&BASE, 2).unwrap();
        assert_eq!(catalog.set_categories(&NOBODY, 2), Err(WSAEINVALIDPROVIDER));
        let bytes = catalog.to_bytes().unwrap();
        let back = Catalog::from_bytes(&bytes).unwrap();
        assert_eq!(ids(&back), [1001, 1004]);
        assert_eq!((back.next_id, back.entries[1].categories), (1005, 2));
        assert_eq!(back.to_bytes(), Some(bytes.clone()));
        for cut in [0, 3, 5, bytes.len() - 1] {
            assert!(Catalog::from_bytes(&bytes[..cut]).is_none());
        }
    }
}
