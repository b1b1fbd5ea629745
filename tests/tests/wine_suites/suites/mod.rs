//! libevent's and libuv's own tests: what always passes on Wine's own Winsock must pass with the provider.
//!
//! A test that fails with the provider is run again, twice with the provider and twice plainly. It is a new failure when it
//! does not pass both times with the provider although it does both times plainly. The verdict on every test, and what was
//! carried, is in `target/suites/NAME.results`.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::time::{Duration, Instant};

use sgm_tests::pair::tails;

use sgm_tests::wine::{alone, beside_others};

use crate::stage::{Stage, with_provider};
use crate::things::cache;

mod expected;
mod kinds;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Skipped,
    Failed,
    /// The program said nothing about it: it ended before, or hung.
    Silent,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Verdict::Passed => "passed",
            Verdict::Skipped => "skipped",
            Verdict::Failed => "failed",
            Verdict::Silent => "silent",
        })
    }
}

type Verdicts = BTreeMap<String, Verdict>;

/// A test program that runs the tests named on its command line.
pub struct Suite {
    /// Also the item of prepare.sh.
    name: &'static str,
    program: &'static str,
    /// The argument that makes it list its tests.
    list: &'static str,
    /// The name in a line of that list.
    listed: fn(&str) -> Option<&str>,
    /// Whether a test has to do with sockets.
    wanted: fn(&str) -> bool,
    /// Tests of the same group are run by one process.
    group: fn(&str) -> &str,
    /// The end of a group takes no longer.
    limit: Duration,
    /// So much at least goes through rings when all tests are run.
    least_carried: u64,
    /// The verdicts in an output.
    read: fn(&str, &mut Verdicts),
}

/// Runs of one suite on one stage.
struct Run<'a> {
    suite: &'a Suite,
    stage: &'a Stage,
}

impl Run<'_> {
    /// The program with these arguments: what it printed, and what to say about its end.
    fn program(&self, arguments: &[&str]) -> (String, String) {
        let mut command = self.stage.windows(self.suite.name, self.suite.program);
        command.args(arguments);
        let mut process = self.stage.start(self.suite.name, command);
        let ended = process.end_by(Instant::now() + self.suite.limit);
        let code = ended.map_or("hangs".to_string(), |ended| {
            format!("ended with {}", ended.code)
        });
        let output = process.output_so_far();
        let said = format!("{code}: {}", tails(&output, &process.errors_so_far()));
        (output, said)
    }

    /// The names of the tests that have to do with sockets.
    fn listed(&self) -> Vec<String> {
        let (output, said) = self.program(&[self.suite.list]);
        let names = output.lines().filter_map(|line| (self.suite.listed)(line));
        let names: Vec<String> = names
            .filter(|name| (self.suite.wanted)(name))
            .map(str::to_string)
            .collect();
        assert!(!names.is_empty(), "no tests listed: {said}");
        names
    }

    fn tests(&self, tests: &[String]) -> Verdicts {
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for test in tests {
            groups
                .entry((self.suite.group)(test))
                .or_default()
                .push(test);
        }
        let mut verdicts = Verdicts::new();
        for group in groups.values() {
            let mut said = Verdicts::new();
            (self.suite.read)(&self.program(group).0, &mut said);
            for test in group {
                let verdict = said.get(*test).copied().unwrap_or(Verdict::Silent);
                verdicts.insert(test.to_string(), verdict);
            }
        }
        verdicts
    }

    /// Runs a test alone, twice: whether it passed both times, and the last output.
    fn passes_twice(&self, test: &str) -> (bool, String) {
        let mut last = String::new();
        let passed = (0..2).all(|_| {
            let (output, said) = self.program(&[test]);
            last = said;
            let mut verdicts = Verdicts::new();
            (self.suite.read)(&output, &mut verdicts);
            verdicts.get(test) == Some(&Verdict::Passed)
        });
        (passed, last)
    }
}

/// Beyond so many failures, running them again tells nobody more.
const RUN_AGAIN: usize = 12;

/// With the provider, nothing may fail that always passes without.
fn no_new_failure(suite: &Suite) {
    let always = expected::read(suite).always_pass();
    if !with_provider() {
        return;
    }
    let stage = Stage::provider();
    let run = Run {
        suite,
        stage: &stage,
    };
    let start = Instant::now();
    let verdicts = run.tests(&always);
    let seconds = start.elapsed().as_secs();
    let failed: Vec<&String> = always
        .iter()
        .filter(|test| verdicts[*test] != Verdict::Passed)
        .collect();
    let report = stage.report();
    let mut text = format!(
        "{} of {} tests passed at once with the provider, in {seconds} s\n{report:?}\n",
        always.len() - failed.len(),
        always.len(),
    );
    for (test, verdict) in &verdicts {
        writeln!(text, "{test} {verdict}").unwrap();
    }
    let new = judged(&run, &failed, &mut text);
    fs::write(cache().join(format!("{}.results", suite.name)), &text).unwrap();
    println!("{text}");
    assert_eq!(new, 0, "new failures of {}", suite.name);
    assert!(
        report.carried.tx_bytes >= suite.least_carried,
        "{} bytes carried, at least {} expected",
        report.carried.tx_bytes,
        suite.least_carried
    );
}

/// Runs what failed again; the number of new failures.
fn judged(run: &Run, failed: &[&String], text: &mut String) -> usize {
    let plain_stage = Stage::plain();
    let plain = Run {
        suite: run.suite,
        stage: &plain_stage,
    };
    let mut new = 0;
    for (index, test) in failed.iter().enumerate() {
        if index >= RUN_AGAIN {
            new += 1;
            writeln!(text, "\nNEW FAILURE {test} (not run again)").unwrap();
            continue;
        }
        let (carried, said) = run.passes_twice(test);
        if carried {
            writeln!(text, "\n{test}: passes twice when run again").unwrap();
        } else if !plain.passes_twice(test).0 {
            writeln!(text, "\n{test}: fails now on Wine's own Winsock as well").unwrap();
        } else {
            new += 1;
            writeln!(text, "\nNEW FAILURE {test}: {said}").unwrap();
        }
    }
    new
}

#[test]
fn libuv() {
    let _room = alone();
    no_new_failure(&kinds::LIBUV);
}

#[test]
fn libevent() {
    let _room = beside_others();
    no_new_failure(&kinds::LIBEVENT);
}

/// Writes tests/suites/libuv.expected anew.
#[test]
#[ignore = "a baseline is made once for a version of Wine and of the suite"]
fn libuv_baseline() {
    expected::write(&kinds::LIBUV);
}

/// Writes tests/suites/libevent.expected anew.
#[test]
#[ignore = "a baseline is made once for a version of Wine and of the suite"]
fn libevent_baseline() {
    expected::write(&kinds::LIBEVENT);
}
