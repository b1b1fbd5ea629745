//! Completions where the places for hooks are taken, and where somebody else has changed ntdll.

use std::time::Duration;

use sgm_tests::front::{Front, Report, read_report};
use sgm_tests::paths::Scratch;
use sgm_tests::process::Started;
use sgm_tests::wine::{Mode, Wine, ends};

const LIMIT: Duration = Duration::from_secs(60);

fn run(mode: Mode, how: &str) -> (String, Report) {
    let (wine, front, scratch) = (Wine::new(), Front::new(), Scratch::new());
    let report = scratch.join("report.json");
    let wanted = (mode == Mode::Carried).then_some(report.as_path());
    let mut command = wine.command(mode, &wine.suite(), &front, wanted);
    command.args(["hooked", how]);
    let ended = ends(&mut Started::new("hooked", scratch.path(), command), LIMIT);
    assert_eq!(ended.code, 0, "{how}: {ended:?}");
    (ended.output, wanted.map(read_report).unwrap_or_default())
}

#[test]
fn a_place_is_found_always() {
    for how in ["free", "reserved", "everything"] {
        let (plain, _) = run(Mode::Plain, how);
        let (carried, report) = run(Mode::Carried, how);
        assert_eq!(carried, plain, "{how}");
        assert_eq!(report.reasons.get("no-hooks"), None, "{how}: {report:?}");
        assert!(report.connections.seen > 0, "{how}: {report:?}");
    }
}

#[test]
fn without_hooks_the_program_is_plain_and_the_report_says_so() {
    let (plain, _) = run(Mode::Plain, "changed");
    let (carried, report) = run(Mode::Carried, "changed");
    assert_eq!(carried, plain);
    assert!(report.reasons["no-hooks"] > 0, "{report:?}");
}
