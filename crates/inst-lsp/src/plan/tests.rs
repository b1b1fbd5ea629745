//! Catalogs as Wine and Windows have them, whole and broken.

use super::*;

const MSAFD: GUID = GUID::from_u128(1);
const OTHER: GUID = GUID::from_u128(2);
const IPX: i32 = 6;

fn base(id: u32, family: i32, kind: i32, protocol: i32) -> WSAPROTOCOL_INFOW {
    let mut entry = WSAPROTOCOL_INFOW {
        dwCatalogEntryId: id,
        ProviderId: MSAFD,
        dwServiceFlags1: XP1_IFS_HANDLES | 0x66,
        dwProviderFlags: 8,
        dwProviderReserved: 5,
        iAddressFamily: family,
        iSocketType: kind,
        iProtocol: protocol,
        ..Default::default()
    };
    entry.ProtocolChain.ChainLen = 1;
    wide::fill(&mut entry.szProtocol, "TCP/IP");
    entry
}

fn plain_catalog() -> Vec<WSAPROTOCOL_INFOW> {
    vec![
        base(1001, 2, SOCK_STREAM, 6),
        base(1002, 2, SOCK_DGRAM, 17),
        base(1004, 23, SOCK_STREAM, 6),
        base(1005, 23, SOCK_DGRAM, 17),
        base(1006, 2, SOCK_RAW, 0),
        base(1007, 2, SOCK_STREAM, 6),
        base(1030, IPX, SOCK_DGRAM, 1000),
    ]
}

/// What the WSC* calls of an installation do to a catalog.
fn installed() -> Vec<WSAPROTOCOL_INFOW> {
    let mut catalog = plain_catalog();
    let mut entry = dummy(&catalog[0]);
    entry.dwCatalogEntryId = 1100;
    catalog.push(entry);
    let chains = chains(&catalog, 1100);
    for (id, mut chain) in (1101..).zip(chains) {
        chain.dwCatalogEntryId = id;
        catalog.push(chain);
    }
    sort(&catalog)
}

fn sort(catalog: &Catalog) -> Vec<WSAPROTOCOL_INFOW> {
    let find = |id: u32| *chain::find(catalog, id).unwrap();
    order(catalog).into_iter().map(find).collect()
}

fn ids(entries: &Catalog) -> Vec<u32> {
    entries.iter().map(|e| e.dwCatalogEntryId).collect()
}

fn problems(catalog: &Catalog) -> usize {
    match state(catalog) {
        State::Broken(wrong) => wrong.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn internet_protocols_are_covered_once_each() {
    let catalog = plain_catalog();
    let covered: Vec<_> = bases(&catalog).iter().map(|e| e.dwCatalogEntryId).collect();
    assert_eq!(covered, [1001, 1002, 1004, 1005, 1006]);
}

#[test]
fn a_chain_is_its_base_with_our_marks() {
    let catalog = plain_catalog();
    let chains = chains(&catalog, 1100);
    assert_eq!(chains.len(), 5);
    for (chain, base) in chains.iter().zip(bases(&catalog)) {
        assert_eq!(chain::ids(chain), [1100, base.dwCatalogEntryId]);
        assert_eq!(chain.dwServiceFlags1, 0x66, "no IFS handles");
        assert_eq!(chain.dwProviderFlags, 8);
        assert_eq!((chain.dwCatalogEntryId, chain.dwProviderReserved), (0, 0));
        assert_eq!(chain.iProtocol, base.iProtocol);
        assert!(same_guid(&chain.ProviderId, &CHAIN_PROVIDER));
        assert_eq!(wide::text(&chain.szProtocol), "Sockets-GM over [TCP/IP]");
    }
}

#[test]
fn the_hidden_entry_is_hidden() {
    let entry = dummy(&plain_catalog()[0]);
    assert_eq!(entry.dwProviderFlags, PFL_HIDDEN);
    assert_eq!(entry.ProtocolChain.ChainLen, 0);
    assert!(chain::ids(&entry).is_empty());
}

#[test]
fn whole_and_absent() {
    assert_eq!(state(&plain_catalog()), State::Absent);
    assert_eq!(state(&installed()), State::Complete);
    assert_eq!(ids(&installed())[..6], [1101, 1102, 1103, 1104, 1105, 1001]);
    assert_eq!(state(&[]), State::Absent);
}

#[test]
fn a_foreign_chain_moves_behind_ours_and_keeps_its_order() {
    let mut foreign = base(1201, 2, SOCK_STREAM, 6);
    foreign.ProviderId = OTHER;
    foreign.ProtocolChain.ChainLen = 2;
    foreign.ProtocolChain.ChainEntries[..2].copy_from_slice(&[1200, 1001]);
    let mut catalog = installed();
    catalog.insert(0, foreign);
    assert_eq!(problems(&catalog), 1, "somebody else is first");
    assert!(chains_whole(&catalog), "but nothing needs to be made again");
    let sorted = sort(&catalog);
    assert_eq!(state(&sorted), State::Complete);
    assert_eq!(
        ids(&sorted)[..7],
        [1101, 1102, 1103, 1104, 1105, 1201, 1001]
    );
    assert_eq!(bases(&sorted).len(), 5, "a chain is no base");
    assert!(through_us(&sorted).is_empty());
}

#[test]
fn a_chain_of_others_through_us_is_seen() {
    let mut foreign = base(1201, 2, SOCK_STREAM, 6);
    foreign.ProviderId = OTHER;
    foreign.ProtocolChain.ChainLen = 3;
    foreign.ProtocolChain.ChainEntries[..3].copy_from_slice(&[1200, 1100, 1001]);
    let mut catalog = installed();
    catalog.push(foreign);
    assert_eq!(through_us(&catalog), ["TCP/IP"]);
}

#[test]
fn half_an_installation_is_seen() {
    let without = |drop: &dyn Fn(&WSAPROTOCOL_INFOW) -> bool| {
        let mut catalog = installed();
        catalog.retain(|e| !drop(e));
        catalog
    };
    assert_eq!(
        problems(&without(&|e| e.dwCatalogEntryId == 1100)),
        1,
        "no hidden entry"
    );
    assert_eq!(
        problems(&without(&|e| e.dwCatalogEntryId == 1103)),
        1,
        "one chain less"
    );
    assert_eq!(
        problems(&without(&|e| is_of(e, &CHAIN_PROVIDER))),
        5,
        "no chain"
    );
    assert_eq!(
        problems(&without(&|e| e.dwCatalogEntryId == 1006)),
        1,
        "a base went away"
    );
    let mut stale = installed();
    stale[0].ProtocolChain.ChainEntries[0] = 999;
    assert_eq!(problems(&stale), 2, "one is missing, one goes over nothing");
    assert!(!chains_whole(&stale));
}
