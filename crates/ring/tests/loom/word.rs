//! The hand-over word: both ends decide an offer once and alike (INV-1).

use std::sync::Arc;

use loom::thread;
use sgm_ring::layout::RING_BYTES_MIN;
use sgm_ring::sync::Ordering::{Acquire, Relaxed};
use sgm_ring::{Decision, Key, SegmentHeader};

use crate::explore;

fn offered() -> Arc<SegmentHeader> {
    let header = Arc::new(SegmentHeader::default());
    header.offer(&Key::default(), RING_BYTES_MIN as u32);
    header
}

/// Who finds the offer finds it whole.
#[test]
fn offer_is_seen_whole_or_not() {
    explore(3, || {
        let key = Key {
            client_port: 7,
            server_port: 9,
            netns: 1,
            ..Key::default()
        };
        let header = Arc::new(SegmentHeader::default());
        let client = header.clone();
        let client = thread::spawn(move || client.offer(&key, RING_BYTES_MIN as u32));
        if header.decision() == Ok(Decision::Offered) {
            let mapped = sgm_ring::layout::Areas::new(RING_BYTES_MIN, true).segment_bytes();
            assert_eq!(header.check(&key, mapped), Ok(RING_BYTES_MIN));
        }
        client.join().unwrap();
    });
}

/// The client confirms if it sees a claim, and withdraws if not. The server claims, looks once, and may withdraw.
fn client_and_server(server_withdraws: bool) {
    let header = offered();
    let client = header.clone();
    let client = thread::spawn(move || {
        let carried = client.decision() == Ok(Decision::Claimed) && client.confirm();
        if !carried {
            client.withdraw();
        }
        carried
    });
    let claimed = header.claim();
    let withdrawn = claimed && server_withdraws && header.withdraw();
    let seen = header.decision();
    let carried = client.join().unwrap();

    let decided = header.decision();
    assert!(
        matches!(decided, Ok(Decision::Confirmed | Decision::Withdrawn)),
        "{decided:?}"
    );
    assert_eq!(
        carried,
        decided == Ok(Decision::Confirmed),
        "the client is of another mind"
    );
    assert!(claimed || !carried, "carried without a claim");
    assert!(!(withdrawn && carried), "carried though withdrawn");
    // What the server saw once stays true.
    if matches!(seen, Ok(Decision::Confirmed | Decision::Withdrawn)) {
        assert_eq!(seen, decided);
    }
}

#[test]
fn claim_against_withdraw() {
    explore(3, || client_and_server(false));
}

#[test]
fn claim_and_withdraw_against_confirm() {
    explore(3, || client_and_server(true));
}

/// Two processes find the same offer (a listener that forked; an address used again): one of them has it.
#[test]
fn offer_is_claimed_once() {
    explore(3, || {
        let header = offered();
        let servers = [header.clone(), header.clone()].map(|h| thread::spawn(move || h.claim()));
        let withdrawn = header.withdraw();
        let claims: Vec<bool> = servers.map(|s| s.join().unwrap()).into_iter().collect();
        assert!(!(claims[0] && claims[1]), "claimed twice");
        assert!(withdrawn, "nobody confirmed, so it could be withdrawn");
        assert_eq!(header.decision(), Ok(Decision::Withdrawn));
    });
}

/// Both ends withdraw while the client confirms: exactly one of the three wins.
#[test]
fn one_decision_wins() {
    explore(3, || {
        let header = offered();
        assert!(header.claim());
        let client = header.clone();
        let server = header.clone();
        let client = thread::spawn(move || (client.confirm(), client.withdraw()));
        let server = thread::spawn(move || server.withdraw());
        let (confirmed, taken_back) = client.join().unwrap();
        let withdrawn = server.join().unwrap();
        assert_eq!(
            [confirmed, taken_back, withdrawn]
                .iter()
                .filter(|&&won| won)
                .count(),
            1
        );
        assert_eq!(confirmed, header.decision() == Ok(Decision::Confirmed));
    });
}

/// Deciding by load and store instead of compare-and-swap.
#[test]
#[should_panic(expected = "carried though withdrawn")]
fn broken_decision_by_store_is_caught() {
    explore(3, || {
        let header = offered();
        assert!(header.claim());
        let server = header.clone();
        let server = thread::spawn(move || server.withdraw());
        let claimed = header.decision.load(Acquire) == Decision::Claimed as u32;
        if claimed {
            header.decision.store(Decision::Confirmed as u32, Relaxed);
        }
        assert!(
            !(server.join().unwrap() && claimed),
            "carried though withdrawn"
        );
    });
}

/// An offer posted before its words are filled in.
#[test]
#[should_panic(expected = "half an offer")]
fn broken_offer_before_its_words_is_caught() {
    explore(3, || {
        let key = Key::default();
        let header = Arc::new(SegmentHeader::default());
        let client = header.clone();
        let client = thread::spawn(move || {
            client.decision.store(Decision::Offered as u32, Relaxed);
            client.offer(&key, RING_BYTES_MIN as u32);
        });
        if header.decision() == Ok(Decision::Offered) {
            let mapped = sgm_ring::layout::Areas::new(RING_BYTES_MIN, true).segment_bytes();
            assert!(header.check(&key, mapped).is_ok(), "half an offer");
        }
        client.join().unwrap();
    });
}
