//! Reads what cargo printed: the sums of the `test result:` lines, what failed tests said, and the lines of any other
//! command that tell why it failed.

/// Sums over the result lines seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// Result lines seen, one for each test program.
    pub programs: u64,
}

impl Tally {
    /// Takes one line of output; lines that are no result line change nothing.
    pub fn take(&mut self, line: &str) {
        if let Some((passed, failed)) = parse(line) {
            self.passed += passed;
            self.failed += failed;
            self.programs += 1;
        }
    }

    /// Adds another tally to this one.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.programs += other.programs;
    }
}

/// What the failed tests printed, without backtraces: a long run shows it again at its end.
#[derive(Debug, Default)]
pub struct Failures {
    pub text: String,
    inside: bool,
    backtrace: bool,
    lines: usize,
}

/// Lines kept of one test.
const LINES_MOST: usize = 60;

impl Failures {
    /// Takes one line of output.
    pub fn take(&mut self, line: &str) {
        if line.starts_with("---- ") {
            (self.inside, self.backtrace, self.lines) = (true, false, 0);
        } else if line == "failures:" || parse(line).is_some() {
            self.inside = false;
        } else if line == "stack backtrace:" {
            self.backtrace = true;
        } else if !line.starts_with(' ') {
            self.backtrace = false;
        }
        if !self.inside || self.backtrace || line.starts_with("note: Some details are omitted") {
            return;
        }
        self.lines += 1;
        if self.lines <= LINES_MOST {
            self.text.push_str(line);
            self.text.push('\n');
        } else if self.lines == LINES_MOST + 1 {
            self.text.push_str("[and more]\n");
        }
    }
}

/// Lines shown of a command that failed.
const TOLD_MOST: usize = 40;

/// The lines that tell why a command failed: from the first error on, or else the last ones, without cargo's progress.
pub fn relevant(lines: &[String]) -> Vec<&str> {
    const PROGRESS: [&str; 9] = [
        "Blocking",
        "Checking",
        "Compiling",
        "Downloaded",
        "Downloading",
        "Finished",
        "Fresh",
        "Locking",
        "Running",
    ];
    let progress = |line: &str| {
        line.starts_with(' ')
            && line
                .split_whitespace()
                .next()
                .is_some_and(|word| PROGRESS.contains(&word))
    };
    let lines: Vec<&str> = lines
        .iter()
        .map(String::as_str)
        .filter(|line| !progress(line) && !line.trim().is_empty())
        .collect();
    let tells = |line: &&str| {
        let error =
            line.starts_with("error") || line.starts_with("Diff in ") || line.contains(": error: ");
        error || line.starts_with("tidy: ") && !line.starts_with("tidy: warning")
    };
    let last = lines.len().saturating_sub(TOLD_MOST);
    let from = lines.iter().position(tells).unwrap_or(last);
    lines[from..].iter().copied().take(TOLD_MOST).collect()
}

/// `test result: ok. 3 passed; 1 failed; 0 ignored; ...` to (3, 1). A test that prints an unfinished line first
/// shares its line with the result, and a terminal adds colour: the words may start anywhere.
fn parse(line: &str) -> Option<(u64, u64)> {
    let plain = without_escapes(line);
    let (_, counts) = plain.split_once("test result: ")?;
    let (_, counts) = counts.split_once(". ")?;
    let mut passed = None;
    let mut failed = None;
    for field in counts.split(';') {
        match field.trim().split_once(' ') {
            Some((number, "passed")) => passed = number.parse().ok(),
            Some((number, "failed")) => failed = number.parse().ok(),
            _ => {}
        }
    }
    Some((passed?, failed?))
}

/// The line without its terminal colour sequences (ESC [ ... m).
fn without_escapes(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, tail)| tail);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed_and_others_ignored() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ] {
            tally.take(line);
        }
        assert_eq!(
            tally,
            Tally {
                passed: 13,
                failed: 2,
                programs: 2
            }
        );
    }

    #[test]
    fn failures_are_kept_without_their_backtraces() {
        let mut failures = Failures::default();
        let long = "a line\n".repeat(LINES_MOST + 5);
        let output = format!(
            "test one ... FAILED\n\nfailures:\n\n---- one stdout ----\nwhy\nstack backtrace:\n   0: deep\n             at a.rs:1\n\
             note: Some details are omitted, run with `RUST_BACKTRACE=full`\nmore\n---- two stdout ----\n{long}\
             failures:\n    one\n    two\n\ntest result: FAILED. 1 passed; 2 failed; 0 ignored\nnoise"
        );
        output.lines().for_each(|line| failures.take(line));
        let text = failures.text;
        assert!(
            text.starts_with("---- one stdout ----\nwhy\nmore\n---- two stdout ----\na line\n"),
            "{text}"
        );
        assert!(text.ends_with("a line\n[and more]\n"), "{text}");
        assert_eq!(text.lines().count(), 3 + LINES_MOST + 1);
    }

    #[test]
    fn the_first_error_is_told_without_progress() {
        let lines = |text: &str| text.lines().map(String::from).collect::<Vec<_>>();
        let cargo = lines(
            "   Compiling one v1\nwarning: odd\n    Checking two v1\nerror[E0308]: no\n --> a.rs:1\n\nerror: could not compile",
        );
        assert_eq!(
            relevant(&cargo),
            [
                "error[E0308]: no",
                " --> a.rs:1",
                "error: could not compile"
            ]
        );
        let tidy =
            lines("tidy: warning: long\ntidy: a.rs: bad\ntidy: 3 files, 1 failures, 1 warnings");
        assert_eq!(relevant(&tidy)[0], "tidy: a.rs: bad");
        let other = lines(&"said\n".repeat(TOLD_MOST * 2));
        assert_eq!(relevant(&other).len(), TOLD_MOST);
        assert!(relevant(&[]).is_empty());
    }

    #[test]
    fn colour_and_a_shared_line_do_not_hide_a_result() {
        assert_eq!(
            parse("test result: \u{1b}[32mok\u{1b}[0m. 7 passed; 0 failed; 0 ignored"),
            Some((7, 0))
        );
        assert_eq!(
            parse("unfinished test result: ok. 1 passed; 0 failed; 0 ignored"),
            Some((1, 0))
        );
    }

    #[test]
    fn what_only_looks_like_a_result_is_none() {
        assert_eq!(parse("test result: ok"), None);
        assert_eq!(parse("test result: ok. many passed; 0 failed"), None);
        assert_eq!(parse("3 passed; 0 failed"), None);
    }
}
