//! Starting a program plainly or under the front, and reading from the front's own counters what it carried.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use gm::port::Totals;
use gm::{Port, Reason};
use serde::{Deserialize, Serialize};

use super::sys;

/// Of what a carried run should have carried, at least this share must have been.
const ENOUGH: f64 = 0.9;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Plain,
    Carried,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Carried => "carried",
        }
    }
}

/// A directory on tmpfs that nobody else uses: the node of the carried runs, and our own files. Removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_owned()
        } else {
            std::env::temp_dir()
        };
        // The pid may be another's from before, whose directory was left behind: then the next number is free.
        for n in 0..100 {
            let path = base.join(format!("sgm-bench-{}-{n}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("cannot make {}", path.display())),
            }
        }
        anyhow::bail!("no free name for a scratch directory in {}", base.display())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The front that belongs to this `sgm`.
pub struct Front {
    pub sgm: PathBuf,
    /// libsockets_gm.so beside `sgm`; without it only plain TCP can be measured.
    pub library: Option<PathBuf>,
    pub scratch: Scratch,
    runs: Cell<u32>,
}

/// A command, and where `sgm run` will report on it.
pub struct Launch {
    pub command: Command,
    pub report: Option<PathBuf>,
}

impl Front {
    pub fn find() -> Result<Self> {
        let sgm = std::env::current_exe().context("where is sgm?")?;
        let library = Some(sgm.with_file_name("libsockets_gm.so")).filter(|path| path.exists());
        let scratch = Scratch::new()?;
        sys::remember_interrupts();
        Ok(Self {
            sgm,
            library,
            scratch,
            runs: Cell::new(0),
        })
    }

    /// `program` as it is, or under `sgm run` with the private node. The environment is otherwise the same.
    pub fn launch(&self, mode: Mode, program: impl AsRef<OsStr>) -> Launch {
        let (mut command, report) = match mode {
            Mode::Plain => (Command::new(program), None),
            Mode::Carried => {
                self.runs.set(self.runs.get() + 1);
                let report = self
                    .scratch
                    .path(&format!("report-{}.json", self.runs.get()));
                let mut command = Command::new(&self.sgm);
                command
                    .arg("run")
                    .arg("--report")
                    .arg(&report)
                    .arg("--")
                    .arg(program);
                (command, Some(report))
            }
        };
        command
            .env_remove("LD_PRELOAD")
            .env("SGM_DIR", self.scratch.path("node"));
        Launch { command, report }
    }
}

/// What `sgm run --report` writes; the parts that matter here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Report {
    connections: Connections,
    carried: Bytes,
    tcp: Bytes,
    reasons: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Connections {
    seen: u64,
    carried: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Bytes {
    tx_bytes: u64,
    tx_messages: u64,
    bells_sent: u64,
    port_bells: u64,
}

impl Report {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).context("`sgm run` left no report")?;
        let _ = std::fs::remove_file(path);
        serde_json::from_str(&text).with_context(|| format!("the report of `sgm run`: {text}"))
    }

    /// What the processes that use the node `dir` have done so far.
    pub fn live(dir: &Path) -> Self {
        let mut report = Self::default();
        let paths = Port::list(dir);
        for port in paths.iter().filter_map(|path| Port::open(path).ok()) {
            let alive = Totals::default();
            let ends = port.used_ends().iter();
            ends.filter(|end| end.is_used())
                .for_each(|end| gm::port::fold(&alive, end));
            report.add(&alive);
            report.add(&port.header().totals);
        }
        report
    }

    fn add(&mut self, totals: &Totals) {
        let carried = totals.carried.load(Relaxed);
        self.connections.carried += carried;
        self.connections.seen += carried + totals.stayed.load(Relaxed);
        self.carried.tx_bytes += totals.tx_bytes.load(Relaxed);
        self.carried.tx_messages += totals.tx_messages.load(Relaxed);
        self.carried.bells_sent += totals.bells_sent.load(Relaxed);
        self.carried.port_bells += totals.port_bells.load(Relaxed);
        self.tcp.tx_bytes += totals.tcp_tx.load(Relaxed);
        for why in Reason::ALL.iter().filter(|why| **why != Reason::None) {
            *self.reasons.entry(why.word().to_owned()).or_default() +=
                totals.reasons[*why as usize].load(Relaxed);
        }
    }

    /// What was added since `before`.
    pub fn since(mut self, before: &Self) -> Self {
        for (now, then) in [
            (&mut self.connections.seen, before.connections.seen),
            (&mut self.connections.carried, before.connections.carried),
            (&mut self.carried.tx_bytes, before.carried.tx_bytes),
            (&mut self.carried.tx_messages, before.carried.tx_messages),
            (&mut self.carried.bells_sent, before.carried.bells_sent),
            (&mut self.carried.port_bells, before.carried.port_bells),
            (&mut self.tcp.tx_bytes, before.tcp.tx_bytes),
        ] {
            *now = now.saturating_sub(then);
        }
        for (why, now) in &mut self.reasons {
            let then = before.reasons.get(why).copied().unwrap_or_default();
            *now = now.saturating_sub(then);
        }
        self.reasons.retain(|_, count| *count > 0);
        self
    }

    pub fn carried_bytes(&self) -> u64 {
        self.carried.tx_bytes
    }

    /// Bells for each carried message of all `reports`; `None`: there was no message.
    pub fn bells_per_message(reports: &[Self]) -> Option<f64> {
        let sum = |part: fn(&Bytes) -> u64| reports.iter().map(|r| part(&r.carried)).sum::<u64>();
        let messages = sum(|c| c.tx_messages);
        let bells = sum(|c| c.bells_sent + c.port_bells);
        (messages > 0).then(|| bells as f64 / messages as f64)
    }

    /// Bytes that programs sent, on either path.
    pub fn sent_bytes(&self) -> u64 {
        self.carried.tx_bytes + self.tcp.tx_bytes
    }
}

/// How to see that the front carried a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Nearly all bytes went through the rings.
    Bytes,
    /// Nearly all connections were promoted: where each one sends too little for its bytes to say it.
    Connections,
    /// Too short to be promoted, or no sockets: nothing to see.
    Nothing,
}

/// What the counters of the front say about the carried rounds of a row.
#[derive(Clone, Debug, Serialize)]
pub struct Carriage {
    /// False if any round fell short of `ENOUGH`.
    pub ok: bool,
    /// Carried share of what should have been carried, in the worst round.
    pub share: f64,
    pub sent_bytes: u64,
    pub carried_bytes: u64,
    pub tcp_bytes: u64,
    pub connections_seen: u64,
    pub connections_carried: u64,
    pub reasons: BTreeMap<String, u64>,
}

impl Carriage {
    /// `sent_bytes` and `connections` by the workload's own count, both ends together, as the reports' are.
    pub fn of(check: Check, sent_bytes: u64, connections: u64, reports: &[Report]) -> Self {
        let sum = |part: fn(&Report) -> u64| reports.iter().map(part).sum::<u64>();
        let mut all = Self {
            ok: true,
            share: 0.0,
            sent_bytes,
            carried_bytes: sum(|r| r.carried.tx_bytes),
            tcp_bytes: sum(|r| r.tcp.tx_bytes),
            connections_seen: sum(|r| r.connections.seen),
            connections_carried: sum(|r| r.connections.carried),
            reasons: BTreeMap::new(),
        };
        for (reason, count) in reports.iter().flat_map(|r| &r.reasons) {
            *all.reasons.entry(reason.clone()).or_default() += count;
        }
        let share = |part: u64, whole: u64| {
            if whole == 0 {
                0.0
            } else {
                part as f64 / whole as f64
            }
        };
        all.share = match check {
            Check::Bytes | Check::Nothing => share(all.carried_bytes, sent_bytes),
            Check::Connections => share(all.connections_carried, connections),
        };
        // More carried than sent: then the counters are not of this run, and prove nothing.
        let impossible = all.carried_bytes > sent_bytes;
        all.ok = check == Check::Nothing || (all.share >= ENOUGH && !impossible);
        all
    }

    pub fn merge(&mut self, other: Self) {
        self.ok &= other.ok;
        self.share = self.share.min(other.share);
        self.sent_bytes += other.sent_bytes;
        self.carried_bytes += other.carried_bytes;
        self.tcp_bytes += other.tcp_bytes;
        self.connections_seen += other.connections_seen;
        self.connections_carried += other.connections_carried;
        for (reason, count) in other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
    }

    /// For people: why not.
    pub fn complaint(&self) -> String {
        let reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        let what = if self.carried_bytes > self.sent_bytes {
            "COUNTERS WRONG"
        } else {
            "NOT CARRIED"
        };
        format!(
            "{what}: {:.1} % in the worst round; of {} bytes sent, {} went through rings and {} over TCP; {} of {} connections carried; reasons: {}",
            self.share * 100.0,
            self.sent_bytes,
            self.carried_bytes,
            self.tcp_bytes,
            self.connections_carried,
            self.connections_seen,
            if reasons.is_empty() {
                "none given".to_owned()
            } else {
                reasons.join(", ")
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn bytes_on_tcp_are_noticed() {
        let good = report(
            r#"{"connections":{"seen":1,"carried":1,"tcp":0},"carried":{"tx_bytes":950},"tcp":{"tx_bytes":50}}"#,
        );
        assert!(Carriage::of(Check::Bytes, 1000, 1, std::slice::from_ref(&good)).ok);
        let bad = report(
            r#"{"connections":{"seen":1,"carried":1},"carried":{"tx_bytes":100},"tcp":{"tx_bytes":900},"reasons":{"peer-not-ours":1}}"#,
        );
        let mut row = Carriage::of(Check::Bytes, 1000, 1, &[good]);
        row.merge(Carriage::of(Check::Bytes, 1000, 1, &[bad]));
        assert!(!row.ok);
        assert!(
            row.complaint().contains("peer-not-ours 1"),
            "{}",
            row.complaint()
        );
    }

    #[test]
    fn one_silent_end_is_noticed() {
        // Both ends of an echo send 1000 bytes; only one direction was carried.
        let ends = [
            report(r#"{"carried":{"tx_bytes":1000}}"#),
            report(r#"{"tcp":{"tx_bytes":1000}}"#),
        ];
        assert!(!Carriage::of(Check::Bytes, 2000, 2, &ends).ok);
        assert!(
            !Carriage::of(Check::Bytes, 2000, 2, &[]).ok,
            "no report is not a pass"
        );
        assert!(
            !Carriage::of(Check::Bytes, 0, 0, &ends).ok,
            "nothing sent is not a pass"
        );
    }

    #[test]
    fn counters_of_living_processes_are_those_of_one_row() {
        let before = report(
            r#"{"connections":{"seen":3,"carried":1},"carried":{"tx_bytes":700},"reasons":{"short":2}}"#,
        );
        let after = report(
            r#"{"connections":{"seen":5,"carried":3},"carried":{"tx_bytes":1700},"reasons":{"short":2}}"#,
        );
        let row = after.since(&before);
        assert_eq!((row.connections.carried, row.carried_bytes()), (2, 1000));
        assert!(row.reasons.is_empty(), "{row:?}");
        assert!(Carriage::of(Check::Bytes, 1000, 2, &[row]).ok);
    }

    #[test]
    fn counters_of_another_run_are_noticed() {
        let stale = report(r#"{"connections":{"seen":2,"carried":2},"carried":{"tx_bytes":2000}}"#);
        assert!(!Carriage::of(Check::Bytes, 1000, 1, &[stale]).ok);
    }

    #[test]
    fn short_connections_need_not_be_carried() {
        let report = report(r#"{"connections":{"seen":9,"tcp":9},"tcp":{"tx_bytes":9}}"#);
        assert!(Carriage::of(Check::Nothing, 9, 9, std::slice::from_ref(&report)).ok);
        assert!(!Carriage::of(Check::Connections, 9, 9, &[report]).ok);
    }
}
