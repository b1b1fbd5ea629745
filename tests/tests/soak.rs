//! Wake-ups for as long as one likes: both sides sleep at random, in every way of waiting (`programs/soak.c`). A message that is
//! never told of ends the program with an error; how late others were is printed, natively and carried.
//!
//! Environment: `SGM_SOAK_SECONDS` (default 3).

use std::time::{Duration, Instant};

use sgm_tests::front::{Front, read_report};
use sgm_tests::pair::tails;
use sgm_tests::paths::Scratch;
use sgm_tests::process::Started;
use sgm_tests::programs::{Build, compiled};

/// Gives the messages that came.
fn soak(front: Option<&Front>) -> u64 {
    let seconds = std::env::var("SGM_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(3, |text| text.parse().expect("a number of seconds"));
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() % 1000;
    let scratch = Scratch::new();
    let mut command = Started::command(compiled("soak", Build::Plain));
    command.args([seconds.to_string(), seed.to_string()]);
    let report = front.map(|front| {
        let (wrapped, report) = front.wrap(&command, scratch.path());
        command = wrapped;
        report
    });
    let mut process = Started::new("soak", scratch.path(), command);
    let ended = process.end_by(Instant::now() + Duration::from_secs(seconds + 60));
    let ended = ended.unwrap_or_else(|| panic!("hangs\n{}", process.errors_so_far()));
    assert_eq!(ended.code, 0, "{}", tails(&ended.output, &ended.errors));
    let who = front.map_or("natively", |_| "carried");
    eprintln!("{who}:\n{}{}", ended.errors, ended.output);
    let numbers = ended
        .output
        .split_ascii_whitespace()
        .filter_map(|word| word.parse::<u64>().ok());
    let messages = numbers.max().unwrap();
    if let Some(report) = report.map(|report| read_report(&report)) {
        let carried = &report.carried;
        assert!(carried.rx_messages >= messages / 10 * 9, "{report:?}");
        // Most sleep when it comes; and each is rung for once at most.
        assert!(carried.port_bells >= messages / 20, "{report:?}");
        let bells = carried.bells_sent + carried.port_bells;
        assert!(bells <= carried.tx_messages * 11 / 10, "{report:?}");
    }
    messages
}

#[test]
fn everything_is_told_of() {
    assert!(soak(None) > 1000);
    assert!(soak(Some(&Front::new())) > 1000);
}
