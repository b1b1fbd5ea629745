//! `tests/suites/NAME.expected`: what each test of a suite does on Wine's own Winsock.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::{env, fs};

use super::{Run, Suite, Verdict};
use crate::stage::Stage;
use crate::things::repository;

const ROUNDS: usize = 5;

/// The word after each test's name: a verdict, or how often it passed, as in `4/5`.
pub struct Expected(BTreeMap<String, String>);

fn file_name(suite: &Suite) -> std::path::PathBuf {
    repository(&format!("{}.expected", suite.name))
}

pub fn read(suite: &Suite) -> Expected {
    let file = file_name(suite);
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let entries = lines.filter_map(|line| line.split_once(' '));
    Expected(
        entries
            .map(|(name, word)| (name.to_string(), word.to_string()))
            .collect(),
    )
}

impl Expected {
    /// The tests that passed in every round.
    pub fn always_pass(&self) -> Vec<String> {
        let passed = Verdict::Passed.to_string();
        let always = self.0.iter().filter(|(_, word)| **word == passed);
        let names: Vec<String> = always.map(|(name, _)| name.clone()).collect();
        assert!(!names.is_empty(), "no test is expected to pass");
        names
    }
}

/// Runs the suite several times (`SGM_SUITES_ROUNDS`) on Wine's own Winsock and writes the file.
pub fn write(suite: &Suite) {
    let rounds = env::var("SGM_SUITES_ROUNDS").ok();
    let rounds = rounds.and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let stage = Stage::plain();
    let run = Run {
        suite,
        stage: &stage,
    };
    let tests = run.listed();
    let mut seen: BTreeMap<String, Vec<Verdict>> = BTreeMap::new();
    for _ in 0..rounds {
        for (test, verdict) in run.tests(&tests) {
            seen.entry(test).or_default().push(verdict);
        }
    }
    let mut text = format!(
        "# {name}'s tests that have to do with sockets, {rounds} times each on plain Wine 8. Written by\n\
         #     cargo test -p sgm-tests --test wine_suites -- --ignored {name}_baseline\n",
        name = suite.name
    );
    for (test, verdicts) in &seen {
        let first = verdicts[0];
        let passed = verdicts.iter().filter(|one| **one == Verdict::Passed);
        let word = if verdicts.iter().all(|one| *one == first) {
            first.to_string()
        } else {
            format!("{}/{rounds}", passed.count())
        };
        writeln!(text, "{test} {word}").unwrap();
    }
    fs::write(file_name(suite), text).unwrap();
}
