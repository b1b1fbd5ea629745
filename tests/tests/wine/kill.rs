//! Windows processes ended in the middle of everything: what was sent arrives, nobody hangs, nothing piles up.

use std::time::Duration;

use sgm_tests::front::{Front, Report, read_report};
use sgm_tests::pair::tails;
use sgm_tests::paths::Scratch;
use sgm_tests::process::Started;
use sgm_tests::wine::{Mode, Wine, ends, suite};

const ROUNDS: u32 = 50;
/// A round starts two processes, half a second each, and kills one; the driver itself allows a survivor a few seconds.
const LIMIT: Duration = Duration::from_secs(240);

/// Gives how many survivors hung, and what was carried.
fn rounds(mode: Mode, front: &Front, rounds: u32, seed: u32) -> (u32, Report) {
    let (wine, scratch) = (Wine::new(), Scratch::new());
    let report = scratch.join("report.json");
    let wanted = (mode == Mode::Carried).then_some(report.as_path());
    let mut command = wine.command(mode, &suite(), front, wanted);
    command.args(["kill", &rounds.to_string(), &seed.to_string()]);
    let ended = ends(&mut Started::new("kill", scratch.path(), command), LIMIT);
    let told = tails(&ended.output, &ended.errors);
    assert_eq!(ended.code, 0, "{told}");
    let hung = ended
        .output
        .strip_prefix(&format!("{rounds} rounds with a kill and one without, "))
        .and_then(|rest| rest.split(' ').next()?.parse().ok());
    println!("{told}");
    (
        hung.unwrap_or_else(|| panic!("{told}")),
        wanted.map(read_report).unwrap_or_default(),
    )
}

/// Plain Wine keeps some sockets of killed processes open, so a survivor may hang there; all else must be right.
#[test]
fn plain() {
    rounds(Mode::Plain, &Front::new(), 8, 1);
}

#[test]
fn carried() {
    let front = Front::new();
    let (hung, report) = rounds(Mode::Carried, &front, ROUNDS, 1);
    assert_eq!(hung, 0, "survivors hung");
    assert!(
        report.carried.tx_bytes > 1 << 20,
        "hardly anything was carried: {report:?}"
    );
    // The node is as good as new.
    let (_, again) = rounds(Mode::Carried, &front, 2, 2);
    assert!(again.carried.tx_bytes > 1 << 20, "{again:?}");
}
