//! Startups, the chains through us, and which chain a socket was made for.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use spi::lower::Lower;
use spi::{chain, ids, lower};
use windows_sys::Win32::Networking::WinSock::{
    SOCKET, WSAEINVAL, WSAENOTSOCK, WSAEPROVIDERFAILEDINIT, WSANOTINITIALISED, WSAPROTOCOL_INFOW,
    WSPPROC_TABLE, WSPUPCALLTABLE,
};

/// A chain through us. Its lower provider is started with the chain's first socket.
pub struct Layer {
    chain: chain::Layer,
    lower: OnceLock<Result<Lower, i32>>,
}

impl Layer {
    pub fn id(&self) -> u32 {
        self.chain.info.dwCatalogEntryId
    }

    /// What programs see.
    pub fn info(&self) -> &WSAPROTOCOL_INFOW {
        &self.chain.info
    }

    /// What the lower provider is called with.
    pub fn lower_info(&self) -> &WSAPROTOCOL_INFOW {
        self.chain.lower_info()
    }

    /// The lower provider's table; the WSA code of its failed start until the next startup of ours.
    pub fn lower(&self, upcalls: &WSPUPCALLTABLE) -> Result<&WSPPROC_TABLE, i32> {
        let start = || Lower::start(&self.chain.lower.ProviderId, self.lower_info(), upcalls);
        let started = self.lower.get_or_init(start).as_ref();
        started.map(|l| &l.table).map_err(|e| *e)
    }

    fn started(&self) -> Option<&Lower> {
        self.lower.get()?.as_ref().ok()
    }

    /// The lower provider's table if it is started.
    pub fn table(&self) -> Option<&WSPPROC_TABLE> {
        self.started().map(|l| &l.table)
    }
}

struct Provider {
    startups: u32,
    /// The most recent ones, as documented.
    upcalls: WSPUPCALLTABLE,
    layers: Vec<Arc<Layer>>,
    sockets: HashMap<SOCKET, Arc<Layer>>,
}

static PROVIDER: RwLock<Option<Provider>> = RwLock::new(None);

// What a panic could leave behind under these locks is a map with one entry more or less.
fn read() -> RwLockReadGuard<'static, Option<Provider>> {
    PROVIDER.read().unwrap_or_else(PoisonError::into_inner)
}

fn write() -> RwLockWriteGuard<'static, Option<Provider>> {
    PROVIDER.write().unwrap_or_else(PoisonError::into_inner)
}

/// One startup for the chain `info`. Fails if that chain's lower provider does not start.
pub fn start(info: &WSAPROTOCOL_INFOW, upcalls: &WSPUPCALLTABLE) -> Result<(), i32> {
    let known = |p: &Provider| p.layers.iter().any(|l| l.id() == info.dwCatalogEntryId);
    let found = match read().as_ref().is_some_and(known) {
        true => Vec::new(),
        // Asked for without our lock: ws2_32 is called.
        false => layers(info, upcalls)?,
    };
    let layer = {
        let mut guard = write();
        let provider = guard.get_or_insert_with(|| Provider {
            startups: 0,
            upcalls: *upcalls,
            layers: Vec::new(),
            sockets: HashMap::new(),
        });
        provider.upcalls = *upcalls;
        provider.startups += 1;
        for chain in found {
            let id = chain.info.dwCatalogEntryId;
            if !provider.layers.iter().any(|l| l.id() == id) {
                let lower = OnceLock::new();
                provider.layers.push(Arc::new(Layer { chain, lower }));
            }
        }
        let ours = |l: &&Arc<Layer>| l.id() == info.dwCatalogEntryId;
        provider.layers.iter().find(ours).cloned()
    };
    let layer = layer.ok_or(WSAEPROVIDERFAILEDINIT);
    match layer.and_then(|l| l.lower(upcalls).map(|_| ())) {
        Ok(()) => Ok(()),
        Err(error) => cleanup().and(Err(error)),
    }
}

/// The chains through us, by the id that stands for us in the chain `info`.
fn layers(info: &WSAPROTOCOL_INFOW, upcalls: &WSPUPCALLTABLE) -> Result<Vec<chain::Layer>, i32> {
    let catalog = lower::catalog()?;
    let in_chain = |id: &u32| chain::ids(info).contains(id);
    let by_guid = chain::own_id(&catalog, &ids::DUMMY_PROVIDER).filter(in_chain);
    // Another installer's GUIDs: the hidden entry has the same DLL as the chain.
    let by_path = || {
        let own = lower::provider_path(&info.ProviderId, upcalls).ok()?;
        let is_ours = |guid: &_| lower::provider_path(guid, upcalls).is_ok_and(|p| p == own);
        chain::own_id_by(&catalog, info, is_ours)
    };
    let own = by_guid.or_else(by_path).ok_or(WSAEPROVIDERFAILEDINIT)?;
    Ok(chain::layers(&catalog, own))
}

/// One cleanup; with the last, every lower provider that was started gets its own.
pub fn cleanup() -> Result<(), i32> {
    let ended = {
        let mut guard = write();
        let provider = guard.as_mut().ok_or(WSANOTINITIALISED)?;
        provider.startups -= 1;
        if provider.startups > 0 {
            return Ok(());
        }
        guard.take()
    };
    let layers = ended.map(|p| p.layers).unwrap_or_default();
    layers
        .iter()
        .filter_map(|l| l.started())
        .for_each(Lower::cleanup);
    Ok(())
}

/// The upcalls, and the layer of a chain's entry. An entry of another id is looked for by what it describes: ws2_32 may
/// have read the catalog before we did.
pub fn layer_for(info: &WSAPROTOCOL_INFOW) -> Result<(WSPUPCALLTABLE, Arc<Layer>), i32> {
    let guard = read();
    let provider = guard.as_ref().ok_or(WSANOTINITIALISED)?;
    let by_id = |l: &&Arc<Layer>| l.id() == info.dwCatalogEntryId;
    let kind = |i: &WSAPROTOCOL_INFOW| (i.iAddressFamily, i.iSocketType, i.iProtocol);
    let by_kind = |l: &&Arc<Layer>| kind(l.info()) == kind(info);
    let mut layers = provider.layers.iter();
    let layer = layers.clone().find(by_id).or_else(|| layers.find(by_kind));
    Ok((provider.upcalls, layer.ok_or(WSAEINVAL)?.clone()))
}

/// The layer of a socket; for one that is not ours, the first that is started (rule 2).
pub fn layer_of(s: SOCKET) -> Result<Arc<Layer>, i32> {
    let guard = read();
    let provider = guard.as_ref().ok_or(WSANOTINITIALISED)?;
    let first = || provider.layers.iter().find(|l| l.table().is_some());
    let layer = provider.sockets.get(&s).or_else(first);
    layer.cloned().ok_or(WSAENOTSOCK)
}

/// All layers whose lower provider is started.
pub fn started() -> Vec<Arc<Layer>> {
    let guard = read();
    let layers = guard.iter().flat_map(|p| &p.layers);
    layers.filter(|l| l.table().is_some()).cloned().collect()
}

pub fn upcalls() -> Result<WSPUPCALLTABLE, i32> {
    read().as_ref().map(|p| p.upcalls).ok_or(WSANOTINITIALISED)
}

/// Remembers a new socket, in place of an old one of the same number.
pub fn insert(s: SOCKET, layer: &Arc<Layer>) {
    if let Some(provider) = write().as_mut() {
        provider.sockets.insert(s, layer.clone());
    }
}

/// Forgets a socket that is about to be closed, so that whoever gets its number next is not taken for it.
pub fn remove(s: SOCKET) -> Option<Arc<Layer>> {
    write().as_mut()?.sockets.remove(&s)
}
