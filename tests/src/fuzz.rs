//! The differential fuzzer's runner: batches of seeds of `programs/fuzz.c`, natively and under the front, compared step by step.
//!
//! A difference counts only if plain TCP, asked several times more, never gives the carried answer: the kernel sometimes
//! has more than one. "?" is an answer that the program does not tell, because it is luck (a full buffer, a reset that races);
//! what one side saw decides whether it is, so where one side says "?", the other may say what it likes but hang or lose bytes.
//! What is found is told with the script, both transcripts around the first difference, and how to replay it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::front::{Front, Report, read_report};
use crate::paths::{Scratch, Tmpfs};
use crate::process::Started;
use crate::programs::{Build, compiled};

/// Where a batch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Native,
    /// Under the front, promoted as usual.
    Carried,
    /// Promoted with the first call that moves bytes.
    AtOnce,
    /// With memory for a few rings only, where a small tmpfs can be mounted.
    Tight,
}

impl Side {
    /// As [`Finding::tell`] names it for `SGM_FUZZ_SIDE`.
    pub fn named(name: &str) -> Side {
        let sides = [Side::Native, Side::Carried, Side::AtOnce, Side::Tight];
        let found = sides.into_iter().find(|side| format!("{side:?}") == name);
        found.unwrap_or_else(|| panic!("SGM_FUZZ_SIDE: one of {sides:?}"))
    }
}

/// What one seed did: a line for each step that was played.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    pub lines: Vec<String>,
    /// Where processes were that hung: not compared.
    pub comments: Vec<String>,
}

/// A seed that the front answers otherwise than TCP.
#[derive(Clone, Debug)]
pub struct Finding {
    pub seed: u64,
    pub side: Side,
    pub native: Transcript,
    pub carried: Transcript,
    /// How often it differed when it was run alone again, of [`AGAIN`] times.
    pub again: usize,
    /// The steps that are needed, as a mask of ones and zeros, if it was shrunk.
    pub mask: Option<String>,
}

/// How often a difference is looked at again.
pub const AGAIN: usize = 3;
const NATIVE_AGAIN: usize = 6;
/// For one seed; the program has a limit of a few seconds for each step.
const SEED_LIMIT: Duration = Duration::from_secs(40);

pub struct Fuzzer {
    program: PathBuf,
    static_program: PathBuf,
    front: Front,
    tight: Front,
    /// Below `tight`, if this user may mount it.
    _small: Option<Tmpfs>,
}

impl Fuzzer {
    pub fn new() -> Fuzzer {
        let small = rustix::process::geteuid()
            .is_root()
            .then(|| Tmpfs::new("3m"));
        Fuzzer {
            program: compiled("fuzz", Build::Plain),
            static_program: compiled("fuzz", Build::Static),
            front: Front::new(),
            tight: small
                .as_ref()
                .map_or_else(Front::new, |small| Front::at(small.path())),
            _small: small,
        }
    }

    fn command(&self, first: u64, count: u64, mask: Option<&str>) -> Command {
        let mut command = Started::command(&self.program);
        command
            .args([first.to_string(), count.to_string()])
            .args(mask)
            .env("FUZZ_STATIC", &self.static_program);
        command
    }

    /// Plays `count` seeds from `first` on. A seed at which the program itself ended or hung has a transcript that says so.
    pub fn batch(
        &self,
        side: Side,
        first: u64,
        count: u64,
        mask: Option<&str>,
    ) -> (BTreeMap<u64, Transcript>, Report) {
        let scratch = Scratch::new();
        let mut command = self.command(first, count, mask);
        if side == Side::AtOnce {
            command.env("SGM_PROMOTE_CALLS", "0").env("SGM_STDIO", "0");
        }
        let mut report_file = None;
        if side != Side::Native {
            let front = if side == Side::Tight {
                &self.tight
            } else {
                &self.front
            };
            let (wrapped, report) = front.wrap(&command, scratch.path());
            command = wrapped;
            report_file = Some(report);
        }
        let mut process = Started::new("fuzz", scratch.path(), command);
        let ended = process.end_by(Instant::now() + SEED_LIMIT + Duration::from_secs(count));
        let mut transcripts = parse(&process.output_so_far());
        let well = ended.as_ref().is_some_and(|ended| ended.code == 0);
        if !well {
            let last = transcripts
                .last_key_value()
                .map_or(first, |(seed, _)| seed + 1);
            let what = match &ended {
                Some(ended) => format!("the director ended with {}: {}", ended.code, ended.errors),
                None => "the director hangs".to_string(),
            };
            transcripts.entry(last).or_default().lines.push(what);
        }
        let report = report_file.filter(|file| well && file.exists());
        (
            transcripts,
            report.map(|file| read_report(&file)).unwrap_or_default(),
        )
    }

    fn one(&self, side: Side, seed: u64, mask: Option<&str>) -> Transcript {
        let (mut transcripts, _) = self.batch(side, seed, 1, mask);
        transcripts.remove(&seed).unwrap_or_default()
    }

    /// Natively and carried at the same time, and what differs for good.
    pub fn compare(&self, side: Side, first: u64, count: u64) -> (Vec<Finding>, Report) {
        let (native, (carried, report)) = std::thread::scope(|scope| {
            let native = scope.spawn(|| self.batch(Side::Native, first, count, None).0);
            let carried = self.batch(side, first, count, None);
            (native.join().expect("a batch does not panic"), carried)
        });
        let findings = carried.iter().filter_map(|(seed, carried)| {
            let native = native.get(seed).cloned().unwrap_or_default();
            self.judge(side, *seed, native, carried.clone())
        });
        (findings.collect(), report)
    }

    fn judge(
        &self,
        side: Side,
        seed: u64,
        native: Transcript,
        carried: Transcript,
    ) -> Option<Finding> {
        if agree(&native, &carried) {
            return None;
        }
        let mut native = native;
        for _ in 0..NATIVE_AGAIN {
            let other = self.one(Side::Native, seed, None);
            if agree(&other, &carried) {
                return None;
            }
            // The native answer that agrees longest says where they part.
            if first_difference(&other, &carried) > first_difference(&native, &carried) {
                native = other;
            }
        }
        let differs = |_: &usize| !agree(&native, &self.one(side, seed, None));
        let again = (0..AGAIN).filter(differs).count();
        Some(Finding {
            seed,
            side,
            native,
            carried,
            again,
            mask: None,
        })
    }

    /// Leaves steps out as long as it still differs in the same way, until `limit` has passed.
    pub fn shrink(&self, finding: &mut Finding, limit: Duration) {
        let end = Instant::now() + limit;
        let kind = finding.kind();
        let steps = 1 + finding
            .native
            .lines
            .iter()
            .filter_map(|line| line.split_whitespace().next()?.parse::<usize>().ok())
            .max()
            .unwrap_or(0);
        let mut mask = vec![b'1'; steps];
        let mut size = steps.div_ceil(2);
        while size > 0 {
            for start in (0..steps).step_by(size).rev() {
                let stop = steps.min(start + size);
                if Instant::now() > end || mask[start..stop].iter().all(|step| *step == b'0') {
                    continue;
                }
                let mut fewer = mask.clone();
                fewer[start..stop].fill(b'0');
                let text = String::from_utf8_lossy(&fewer).into_owned();
                let native = self.one(Side::Native, finding.seed, Some(&text));
                let carried = self.one(finding.side, finding.seed, Some(&text));
                let smaller = Finding {
                    native,
                    carried,
                    mask: Some(text),
                    ..*finding
                };
                if smaller.differs() && smaller.kind() == kind {
                    mask = fewer;
                    *finding = smaller;
                }
            }
            size /= 2;
        }
    }
}

impl Default for Fuzzer {
    fn default() -> Fuzzer {
        Fuzzer::new()
    }
}

impl Finding {
    pub fn differs(&self) -> bool {
        !agree(&self.native, &self.carried)
    }

    /// Does a byte differ, or does somebody hang or die? Else it is a matter of which event or error is told, and when.
    pub fn is_grave(&self) -> bool {
        let at = first_difference(&self.native, &self.carried);
        is_grave(self.carried.lines.get(at).map_or("", String::as_str))
    }

    /// What parts them, without numbers: findings of one kind may have one cause.
    pub fn kind(&self) -> String {
        let at = first_difference(&self.native, &self.carried);
        let line = |transcript: &Transcript| {
            transcript
                .lines
                .get(at)
                .cloned()
                .unwrap_or_else(|| "nothing more".to_string())
        };
        let plain = |text: &str| {
            let outcome = text.rsplit_once(" = ").map_or(text, |(_, outcome)| outcome);
            let mut plain = String::new();
            for c in outcome.chars() {
                if !c.is_ascii_digit() {
                    plain.push(c);
                } else if !plain.ends_with('N') {
                    plain.push('N');
                }
            }
            plain
        };
        let (native, carried) = (line(&self.native), line(&self.carried));
        let step = native.split_whitespace().nth(2).unwrap_or("?").to_string();
        format!("{step}: {} / {}", plain(&native), plain(&carried))
    }

    /// The script up to the first difference, both sides there, and how to replay it.
    pub fn tell(&self) -> String {
        let at = first_difference(&self.native, &self.carried);
        let mut text = format!(
            "seed {} ({:?}) differs; alone again {} of {AGAIN} times\n",
            self.seed, self.side, self.again
        );
        for line in &self.native.lines[..at] {
            let _ = writeln!(text, "    {line}");
        }
        for (name, transcript) in [("tcp    ", &self.native), ("carried", &self.carried)] {
            for line in transcript.lines[at.min(transcript.lines.len())..]
                .iter()
                .take(3)
            {
                let _ = writeln!(text, "  {name} {line}");
            }
        }
        for comment in &self.carried.comments {
            let _ = writeln!(text, "  {comment}");
        }
        let mask = self
            .mask
            .as_ref()
            .map(|mask| format!(" SGM_FUZZ_MASK={mask}"))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "  again: SGM_FUZZ_SEED={} SGM_FUZZ_SIDE={:?}{mask} cargo test -p sgm-tests --test fuzz replay -- --ignored --nocapture",
            self.seed, self.side
        );
        text
    }
}

fn is_grave(line: &str) -> bool {
    const GRAVE: [&str; 9] = [
        "WRONG BYTES",
        "MORE THAN WAS SENT",
        "HANGS",
        "NOTHING COMES",
        "NO ROOM",
        "DIED",
        "PART",
        "TORN",
        "not well",
    ];
    GRAVE.iter().any(|word| line.contains(word)) || line.contains(" of ") && line.contains("from")
}

/// The same line, or the same step of which one side does not tell the outcome.
fn same_step(native: &str, carried: &str) -> bool {
    const UNTOLD: &str = "?";
    if native == carried {
        return true;
    }
    let parts = native.split_once(" = ").zip(carried.split_once(" = "));
    parts.is_some_and(|((one, native), (two, carried))| {
        one == two && (native == UNTOLD || carried == UNTOLD) && !is_grave(carried)
    })
}

fn agree(native: &Transcript, carried: &Transcript) -> bool {
    let same = first_difference(native, carried);
    same == native.lines.len() && same == carried.lines.len()
}

fn first_difference(native: &Transcript, carried: &Transcript) -> usize {
    let lines = native.lines.iter().zip(&carried.lines);
    lines.take_while(|(one, two)| same_step(one, two)).count()
}

/// The transcripts in an output; one that has no end is left out.
fn parse(output: &str) -> BTreeMap<u64, Transcript> {
    let mut transcripts = BTreeMap::new();
    let mut open: Option<(u64, Transcript)> = None;
    for line in output.lines() {
        if let Some(rest) = line.strip_prefix("seed ") {
            let seed = rest.split(':').next().and_then(|text| text.parse().ok());
            open = seed.map(|seed| (seed, Transcript::default()));
        }
        let Some((_, transcript)) = &mut open else {
            continue;
        };
        if line.starts_with('#') {
            transcript.comments.push(line.to_string());
        } else {
            transcript.lines.push(line.to_string());
        }
        if line.starts_with("end") {
            transcripts.extend(open.take());
        }
    }
    transcripts
}
