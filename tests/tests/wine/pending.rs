//! Overlapped calls cancelled, closed and reset at random moments: each is told of exactly once, and the stream has no gap.
//! Not on plain Wine 8, which tells of a good receive after the end of the stream, and of WSAEINVAL after a reset.

use std::time::Duration;

use sgm_tests::front::{Front, Report, read_report};
use sgm_tests::pair::tails;
use sgm_tests::paths::Scratch;
use sgm_tests::process::Started;
use sgm_tests::wine::{Mode, Wine, alone, ends, suite};

const LIMIT: Duration = Duration::from_secs(300);

fn rounds(rounds: u32, seed: u32) -> Report {
    let _room = alone();
    let (wine, scratch, front) = (Wine::new(), Scratch::new(), Front::new());
    let report = scratch.join("report.json");
    let mut command = wine.command(Mode::Carried, &suite(), &front, Some(&report));
    command.args(["pending", &rounds.to_string(), &seed.to_string()]);
    let ended = ends(&mut Started::new("pending", scratch.path(), command), LIMIT);
    let told = tails(&ended.output, &ended.errors);
    assert_eq!(ended.code, 0, "{told}");
    assert!(
        ended.output.starts_with(&format!("{rounds} rounds, ")),
        "{told}"
    );
    println!("{told}");
    read_report(&report)
}

fn number(name: &str, otherwise: u32) -> u32 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// `SGM_PENDING_ROUNDS` and `SGM_PENDING_SEED` ask for others.
#[test]
fn carried() {
    let count = number("SGM_PENDING_ROUNDS", 40);
    let report = rounds(count, number("SGM_PENDING_SEED", 1));
    assert!(
        report.connections.carried == 2 * u64::from(count)
            && report.carried.tx_bytes > u64::from(count) << 18,
        "{report:?}"
    );
}
