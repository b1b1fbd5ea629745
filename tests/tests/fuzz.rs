//! The differential fuzzer: random call sequences of several processes, natively and carried, with the same answers.
//!
//! A run takes fresh seeds each time and says from where on. Environment:
//! - `SGM_FUZZ_SECONDS`: how long fresh seeds are tried (default 40); `SGM_FUZZ_SEED`: the first one, or the one to replay
//! - `SGM_FUZZ_SIDE`, `SGM_FUZZ_MASK`: of a replay, how it is carried, and which steps are played, as ones and zeros
//! - `SGM_FUZZ_SHRINK`: seconds for shrinking the first finding of each kind (default 15)
//! - `FUZZ_WITHOUT`: steps that no script shall have, as "push,fill"; `SGM_BIN`: another `sgm` to try

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sgm_tests::front::{Report, sum};
use sgm_tests::fuzz::{Finding, Fuzzer, Side};

/// Seeds that once found something. They mean other scripts when the generator changes: new finds go to the twins, too.
const REGRESSIONS: &[(Side, u64)] = &[
    (Side::Carried, 700013),
    (Side::AtOnce, 700023),
    (Side::AtOnce, 700025),
    (Side::AtOnce, 700033),
    (Side::Carried, 700040),
    (Side::Carried, 700041),
    (Side::Carried, 700069),
    (Side::AtOnce, 700084),
    (Side::AtOnce, 700089),
    (Side::Carried, 700108),
    (Side::Tight, 700139),
    (Side::Carried, 700172),
    (Side::AtOnce, 700189),
    (Side::Tight, 700292),
    (Side::Tight, 700296),
    (Side::Carried, 700466),
    (Side::Carried, 700484),
    (Side::Carried, 700648),
    (Side::AtOnce, 700666),
    (Side::Carried, 700686),
    (Side::Carried, 700741),
    (Side::Carried, 700874),
    (Side::Tight, 700932),
    (Side::Carried, 701108),
    (Side::Tight, 701240),
    (Side::Carried, 701499),
    (Side::Carried, 800118),
    (Side::Carried, 801203),
    (Side::Carried, 802019),
    (Side::AtOnce, 853278394687),
    (Side::Carried, 853278398070),
    (Side::AtOnce, 853278401981),
    (Side::Carried, 853278410493),
    (Side::Carried, 853278411549),
    (Side::Carried, 853278415506),
    (Side::Carried, 853278423948),
    (Side::Carried, 853278424621),
    (Side::Tight, 853278488490),
    (Side::Carried, 853278504987),
    (Side::Carried, 853278519946),
    (Side::Tight, 853278561452),
    (Side::AtOnce, 862834088027),
    (Side::Carried, 862834106701),
    (Side::Carried, 862834107678),
    (Side::AtOnce, 862834109443),
    (Side::Tight, 865222165369),
    (Side::Tight, 865997426805),
    (Side::Carried, 866432641749),
    (Side::Tight, 867864206254),
    (Side::AtOnce, 877323152307),
    (Side::Carried, 890763294414),
    (Side::Carried, 890763440994),
    (Side::Carried, 918_977_242_338),
    (Side::Carried, 921_619_783_847),
    (Side::Carried, 936_182_622_388),
    (Side::Carried, 936_182_653_621),
];

const SIDES: [Side; 8] = {
    use Side::{AtOnce, Carried, Tight};
    [
        Carried, AtOnce, Carried, Carried, AtOnce, Carried, Tight, Carried,
    ]
};
/// Which error a peer's end is told by, and by which call, differs in rare scripts still (docs/limitations.md): not more often
/// than in one of so many, and twice in a short run. Bytes and hangs never.
const LIGHT_FINDINGS_PER: u64 = 5000;
const BATCH: u64 = 20;
const WORKERS: usize = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Past the test harness, which keeps what a running test says to itself.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What a run has found, by kind.
#[derive(Default)]
struct Found {
    kinds: BTreeMap<String, Vec<u64>>,
    first: Vec<Finding>,
    /// Those that lose bytes or hang, and do so again when they are run alone: what a busy machine holds up past a step's limit
    /// looks like a hang.
    grave: usize,
}

impl Found {
    fn add(&mut self, finding: Finding, since: Instant) {
        let kind = finding.kind();
        self.grave += usize::from(finding.is_grave() && finding.again > 1);
        let seeds = self.kinds.entry(kind.clone()).or_default();
        seeds.push(finding.seed);
        if seeds.len() == 1 {
            let seconds = since.elapsed().as_secs_f64();
            say(&format!("after {seconds:.1} s: {kind}\n{}", finding.tell()));
            self.first.push(finding);
        }
    }

    /// The first of each kind, with as few steps as possible.
    fn shrunk(&mut self, fuzzer: &Fuzzer) -> String {
        let limit = Duration::from_secs(number("SGM_FUZZ_SHRINK").unwrap_or(15));
        let each = |finding: &mut Finding| {
            fuzzer.shrink(finding, limit);
            format!("{}\n{}", finding.kind(), finding.tell())
        };
        self.first.iter_mut().map(each).collect()
    }

    fn summary(&self) -> String {
        let mut kinds: Vec<_> = self.kinds.iter().collect();
        kinds.sort_by_key(|(_, seeds)| std::cmp::Reverse(seeds.len()));
        kinds
            .iter()
            .map(|(kind, seeds)| {
                format!(
                    "{:5} {kind}: {:?}\n",
                    seeds.len(),
                    &seeds[..seeds.len().min(4)]
                )
            })
            .collect()
    }
}

#[test]
fn regressions() {
    let fuzzer = Fuzzer::new();
    let mut found = Found::default();
    for (side, seed) in REGRESSIONS {
        for finding in fuzzer.compare(*side, *seed, 1).0 {
            found.add(finding, Instant::now());
        }
    }
    assert!(found.kinds.is_empty(), "{}", found.shrunk(&fuzzer));
}

/// Fresh seeds for a while.
#[test]
fn fresh() {
    let seconds = number("SGM_FUZZ_SECONDS").unwrap_or(40);
    let base = number("SGM_FUZZ_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_millis() as u64 % 1_000_000_000 * 1000
    });
    say(&format!("fuzz: {seconds} s from seed {base} on"));
    let fuzzer = Fuzzer::new();
    let found = Mutex::new(Found::default());
    let reports = Mutex::new(Vec::<Report>::new());
    let next = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while start.elapsed() < Duration::from_secs(seconds) {
                    let batch = next.fetch_add(1, Ordering::Relaxed);
                    let side = SIDES[batch as usize % SIDES.len()];
                    let (findings, report) = fuzzer.compare(side, base + batch * BATCH, BATCH);
                    reports.lock().unwrap().push(report);
                    for finding in findings {
                        found.lock().unwrap().add(finding, start);
                    }
                }
            });
        }
    });
    let (mut found, reports) = (found.into_inner().unwrap(), reports.into_inner().unwrap());
    let seeds = reports.len() as u64 * BATCH;
    let total = sum(&reports);
    say(&format!(
        "fuzz: {seeds} seeds in {:.0} s, {} MB carried on {} of {} ends\n{}",
        start.elapsed().as_secs_f64(),
        total.carried.tx_bytes >> 20,
        total.connections.carried,
        total.connections.seen,
        found.summary()
    ));
    let findings: usize = found.kinds.values().map(Vec::len).sum();
    if found.grave > 0 || findings as u64 > 2.max(seeds / LIGHT_FINDINGS_PER) {
        let told = found.shrunk(&fuzzer);
        panic!("{told}{}", found.summary());
    }
    assert!(
        total.carried.tx_bytes > seeds * 5000,
        "hardly anything was carried: {total:?}"
    );
}

/// One seed, again and again.
#[test]
#[ignore = "needs SGM_FUZZ_SEED"]
fn replay() {
    let seed = number("SGM_FUZZ_SEED").expect("SGM_FUZZ_SEED says which");
    let mask = std::env::var("SGM_FUZZ_MASK").ok();
    let side = std::env::var("SGM_FUZZ_SIDE").map_or(Side::Carried, |name| Side::named(&name));
    let fuzzer = Fuzzer::new();
    let play = |side| {
        let (mut transcripts, _) = fuzzer.batch(side, seed, 1, mask.as_deref());
        transcripts.remove(&seed).unwrap_or_default()
    };
    let native = play(Side::Native);
    say(&native.lines.join("\n"));
    let mut differ = 0;
    for _ in 0..10 {
        let (native, carried) = (play(Side::Native), play(side));
        let finding = Finding {
            seed,
            side,
            native,
            carried,
            again: 0,
            mask: mask.clone(),
        };
        if finding.differs() {
            differ += 1;
            say(&finding.tell());
        }
    }
    assert_eq!(differ, 0, "differs {differ} of 10 times");
}
