//! What is installed, and what an installation consists of: pure functions of the catalog.

use std::fmt;

use serde::Serialize;
use spi::ids::{CHAIN_PROVIDER, DLL_NAME, DUMMY_PROVIDER, LSP_NAME, same_guid};
use spi::types::LAYERED_PROTOCOL;
use spi::{WSAPROTOCOL_INFOW, chain, wide};
use windows_sys::Win32::Networking::WinSock::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, PFL_HIDDEN, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM,
    XP1_IFS_HANDLES,
};
use windows_sys::core::GUID;

type Catalog = [WSAPROTOCOL_INFOW];

/// State of the catalog as far as it is ours.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    Absent,
    Complete,
    /// What is wrong, one sentence each.
    Broken(Vec<String>),
}

/// The base protocols that our chains go over: TCP, UDP and raw, IPv4 and IPv6. All of them, because `select` over
/// sockets of which one is layered and another is not fails on Windows; the first of each kind, because nobody gets
/// at the others.
pub fn bases(catalog: &Catalog) -> Vec<&WSAPROTOCOL_INFOW> {
    let kind = |e: &WSAPROTOCOL_INFOW| (e.iAddressFamily, e.iSocketType, e.iProtocol);
    let mut found: Vec<&WSAPROTOCOL_INFOW> = Vec::new();
    for entry in catalog.iter().filter(|e| chain::is_base(e) && covered(e)) {
        if !found.iter().any(|f| kind(f) == kind(entry)) {
            found.push(entry);
        }
    }
    found
}

fn covered(entry: &WSAPROTOCOL_INFOW) -> bool {
    let family = entry.iAddressFamily;
    let internet = family == i32::from(AF_INET) || family == i32::from(AF_INET6);
    internet
        && match entry.iSocketType {
            SOCK_STREAM => entry.iProtocol == IPPROTO_TCP,
            SOCK_DGRAM => entry.iProtocol == IPPROTO_UDP,
            kind => kind == SOCK_RAW,
        }
}

fn is_of(entry: &WSAPROTOCOL_INFOW, provider: &GUID) -> bool {
    same_guid(&entry.ProviderId, provider)
}

/// Our hidden entry's id.
pub fn dummy_id(catalog: &Catalog) -> Option<u32> {
    chain::own_id(catalog, &DUMMY_PROVIDER)
}

pub fn has_chains(catalog: &Catalog) -> bool {
    catalog.iter().any(|e| is_of(e, &CHAIN_PROVIDER))
}

/// The hidden entry: a copy of a base protocol that nobody can ask for.
pub fn dummy(base: &WSAPROTOCOL_INFOW) -> WSAPROTOCOL_INFOW {
    let mut entry = fresh(base, &DUMMY_PROVIDER, LSP_NAME);
    entry.dwProviderFlags = PFL_HIDDEN;
    entry.ProtocolChain.ChainLen = LAYERED_PROTOCOL;
    entry
}

/// The chain over one base protocol.
fn over(base: &WSAPROTOCOL_INFOW, dummy: u32) -> WSAPROTOCOL_INFOW {
    let name = format!("{LSP_NAME} over [{}]", wide::text(&base.szProtocol));
    let mut entry = fresh(base, &CHAIN_PROVIDER, &name);
    entry.dwProviderFlags &= !PFL_HIDDEN;
    entry.ProtocolChain.ChainLen = 2;
    let ids = [dummy, base.dwCatalogEntryId];
    for (slot, id) in entry.ProtocolChain.ChainEntries.iter_mut().zip(ids) {
        *slot = id;
    }
    entry
}

/// What both kinds have in common. The handles are not the base's, so the flag that says so goes.
fn fresh(base: &WSAPROTOCOL_INFOW, provider: &GUID, name: &str) -> WSAPROTOCOL_INFOW {
    let mut entry = *base;
    entry.ProviderId = *provider;
    entry.dwCatalogEntryId = 0;
    entry.dwServiceFlags1 &= !XP1_IFS_HANDLES;
    entry.dwProviderReserved = 0;
    entry.ProtocolChain = Default::default();
    wide::fill(&mut entry.szProtocol, name);
    entry
}

/// Our chains over all bases.
pub fn chains(catalog: &Catalog, dummy: u32) -> Vec<WSAPROTOCOL_INFOW> {
    let bases = bases(catalog);
    bases.into_iter().map(|base| over(base, dummy)).collect()
}

/// Every id once: our chains first, the others in the order they have.
pub fn order(catalog: &Catalog) -> Vec<u32> {
    let mut sorted: Vec<_> = catalog.iter().collect();
    sorted.sort_by_key(|e| !is_of(e, &CHAIN_PROVIDER));
    sorted.iter().map(|e| e.dwCatalogEntryId).collect()
}

/// The names of other providers' chains that go through us; they would break without us.
pub fn through_us(catalog: &Catalog) -> Vec<String> {
    let Some(dummy) = dummy_id(catalog) else {
        return Vec::new();
    };
    let foreign =
        |e: &&WSAPROTOCOL_INFOW| !is_of(e, &CHAIN_PROVIDER) && chain::ids(e).contains(&dummy);
    let name = |e: &WSAPROTOCOL_INFOW| wide::text(&e.szProtocol);
    catalog.iter().filter(foreign).map(name).collect()
}

/// Compares what is there with what `install` makes.
pub fn state(catalog: &Catalog) -> State {
    let Some(dummy) = dummy_id(catalog) else {
        return match has_chains(catalog) {
            true => State::Broken(vec!["the provider's own entry is missing".into()]),
            false => State::Absent,
        };
    };
    let mut wrong = Vec::new();
    let wanted = chains(catalog, dummy);
    let ours: Vec<_> = catalog
        .iter()
        .filter(|e| is_of(e, &CHAIN_PROVIDER))
        .collect();
    for chain in &wanted {
        if !ours.iter().any(|o| chain::ids(o) == chain::ids(chain)) {
            wrong.push(format!("\"{}\" is missing", wide::text(&chain.szProtocol)));
        }
    }
    for entry in &ours {
        if !wanted.iter().any(|w| chain::ids(w) == chain::ids(entry)) {
            let name = wide::text(&entry.szProtocol);
            wrong.push(format!("\"{name}\" goes over nothing"));
        }
    }
    if !in_order(catalog) {
        wrong.push("other protocols stand before the provider's chains".into());
    }
    match wrong.is_empty() {
        true => State::Complete,
        false => State::Broken(wrong),
    }
}

/// Whether our chains come first.
pub fn in_order(catalog: &Catalog) -> bool {
    let ids = catalog.iter().map(|e| e.dwCatalogEntryId);
    order(catalog).into_iter().eq(ids)
}

/// Whether the chains are all there and right, whatever else is wrong.
pub fn chains_whole(catalog: &Catalog) -> bool {
    let mut sorted = catalog.to_vec();
    sorted.sort_by_key(|e| !is_of(e, &CHAIN_PROVIDER));
    state(&sorted) == State::Complete
}

/// What `list` shows.
#[derive(Serialize)]
pub struct Listing {
    pub state: &'static str,
    pub problems: Vec<String>,
    pub dll: String,
    pub install_dir: Option<String>,
    pub entries: Vec<ListedEntry>,
}

#[derive(Serialize)]
pub struct ListedEntry {
    pub id: u32,
    pub name: String,
    pub family: i32,
    pub socket_type: i32,
    pub protocol: i32,
    /// Length 0 is a hidden provider entry, 1 a base protocol, more a chain.
    pub chain_len: i32,
    pub chain: Vec<u32>,
    pub ours: bool,
    pub path: String,
}

impl ListedEntry {
    pub fn new(entry: &WSAPROTOCOL_INFOW, path: String) -> Self {
        Self {
            id: entry.dwCatalogEntryId,
            name: wide::text(&entry.szProtocol),
            family: entry.iAddressFamily,
            socket_type: entry.iSocketType,
            protocol: entry.iProtocol,
            chain_len: entry.ProtocolChain.ChainLen,
            chain: chain::ids(entry).to_vec(),
            ours: is_of(entry, &CHAIN_PROVIDER) || is_of(entry, &DUMMY_PROVIDER),
            path,
        }
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{DLL_NAME}: {}", self.state)?;
        for problem in &self.problems {
            writeln!(f, "  {problem}")?;
        }
        if let Some(dir) = &self.install_dir {
            writeln!(f, "  directory of the provider: {dir}")?;
        }
        writeln!(f, "\n    id  chain        name and DLL")?;
        for e in &self.entries {
            let mark = if e.ours { '*' } else { ' ' };
            let chain = match e.chain_len {
                0 => "hidden".to_owned(),
                1 => "base".to_owned(),
                _ => e
                    .chain
                    .iter()
                    .map(u32::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
            };
            writeln!(
                f,
                "{mark}{:>5}  {chain:<11}  {}  ({})",
                e.id, e.name, e.path
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
