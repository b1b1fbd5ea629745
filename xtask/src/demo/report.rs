//! The counters that `sgm run --report FILE` writes: how many bytes went which way. Only the fields that the demo
//! needs; others may come.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Sums over all processes of one `sgm run`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Report {
    pub connections: Connections,
    /// Through shared memory.
    pub carried: Bytes,
    /// Through the kernel's TCP.
    pub tcp: Bytes,
    /// Why connections stayed on TCP, with how many.
    pub reasons: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Connections {
    pub seen: u64,
    pub carried: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Bytes {
    pub tx_bytes: u64,
    pub rx_bytes: u64,
}

impl Bytes {
    /// Both directions together.
    pub fn both(self) -> u64 {
        self.tx_bytes + self.rx_bytes
    }

    fn add(&mut self, other: Bytes) {
        self.tx_bytes += other.tx_bytes;
        self.rx_bytes += other.rx_bytes;
    }
}

impl Report {
    /// Reads the file of a run that has ended.
    pub fn read(path: &Path) -> Result<Report> {
        let text = std::fs::read_to_string(path).context("`sgm run` wrote no report")?;
        serde_json::from_str(&text).context("the report of `sgm run` is not the JSON expected")
    }

    /// Adds another run's counters to these.
    pub fn add(&mut self, other: &Report) {
        self.connections.seen += other.connections.seen;
        self.connections.carried += other.connections.carried;
        self.carried.add(other.carried);
        self.tcp.add(other.tcp);
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
    }

    /// The share of all bytes that went through shared memory, 0 to 1; 0 when there were none.
    pub fn share(&self) -> f64 {
        let all = self.carried.both() + self.tcp.both();
        if all == 0 {
            0.0
        } else {
            self.carried.both() as f64 / all as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"{"connections":{"seen":3,"carried":2,"tcp":1},
        "carried":{"tx_bytes":300,"rx_bytes":600,"tx_messages":4,"rx_messages":4,"bells_sent":1,"sleeps":0},
        "tcp":{"tx_bytes":60,"rx_bytes":40},"reasons":{"peer-not-ours":1}}"#;

    #[test]
    fn counters_are_read_and_added() {
        let mut report: Report = serde_json::from_str(FULL).unwrap();
        assert_eq!(report.carried.both(), 900);
        assert_eq!(report.share(), 0.9);
        report.add(&report.clone());
        assert_eq!(
            (report.connections.seen, report.connections.carried),
            (6, 4)
        );
        assert_eq!(report.tcp.both(), 200);
        assert_eq!(report.reasons["peer-not-ours"], 2);
    }

    #[test]
    fn no_bytes_are_no_share() {
        assert_eq!(Report::default().share(), 0.0);
        assert!(Report::read(Path::new("no-such-report.json")).is_err());
    }
}
