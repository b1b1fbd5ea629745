//! Overlapped calls cancelled, closed and reset at random moments: each is told of exactly once, and the stream has no gap.
//! Not on plain Wine 8, which tells of a good receive after the end of the stream, and of WSAEINVAL after a reset.

use std::time::Duration;

use sgm_tests::front::{Front, Report, read_report};
use sgm_tests::pair::tails;
use sgm_tests::paths::Scratch;
use sgm_tests::process::Started;
use sgm_tests::wine::{Mode, Wine, alone, beside_others, ends};

use crate::batch::{Setup, run};

const LIMIT: Duration = Duration::from_secs(300);

fn rounds(rounds: u32, seed: u32) -> Report {
    let _room = alone();
    let (wine, scratch, front) = (Wine::new(), Scratch::new(), Front::new());
    let report = scratch.join("report.json");
    let mut command = wine.command(Mode::Carried, &wine.suite(), &front, Some(&report));
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

/// On plain Wine 8 such a call never ends, once in ten times or so.
pub const CUT_SHORT: &str = "transmit_broken";

/// The peer resets the connection in the middle of a file.
#[test]
fn a_file_is_cut_short_by_a_reset() {
    let _room = beside_others();
    let wine = Wine::new();
    for (server, carried) in [(Mode::Carried, 2), (Mode::Plain, 0)] {
        let setup = Setup {
            server,
            warm: true,
            ..Setup::of(Mode::Carried)
        };
        let outcome = run(&wine, &[(CUT_SHORT, false)], setup);
        assert_eq!(
            outcome.cases[CUT_SHORT].client,
            ["TransmitFile: begun", "TransmitFile: WSAECONNRESET"],
            "{setup:?}"
        );
        assert_eq!(
            outcome.report.connections.carried, carried,
            "{:?}",
            outcome.report
        );
    }
}
