//! The front as a user meets it: `sgm run --report FILE -- program`, in a node directory of its own.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Deserialize;

use crate::paths::{self, Scratch};
use crate::process::Started;

/// A node: programs started under the same front meet, others do not.
pub struct Front {
    node: PathBuf,
    reports: AtomicU32,
    /// Removes the node directory, if it is ours.
    _scratch: Option<Scratch>,
}

/// What `sgm run --report` wrote: sums over all processes of that run.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Report {
    pub connections: Connections,
    pub carried: Carried,
    pub tcp: Tcp,
    pub reasons: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Connections {
    pub seen: u64,
    pub carried: u64,
    pub tcp: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Carried {
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    pub tx_messages: u64,
    pub rx_messages: u64,
    pub bells_sent: u64,
    pub port_bells: u64,
    pub sleeps: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Tcp {
    pub tx_bytes: u64,
    pub rx_bytes: u64,
}

impl Front {
    /// A node directory of its own on tmpfs.
    pub fn new() -> Front {
        let scratch = Scratch::below(Path::new("/dev/shm"));
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o700)).unwrap();
        Front {
            node: scratch.path().to_path_buf(),
            reports: AtomicU32::new(0),
            _scratch: Some(scratch),
        }
    }

    /// With `node` as its directory, whatever that is.
    pub fn at(node: &Path) -> Front {
        Front {
            node: node.to_path_buf(),
            reports: AtomicU32::new(0),
            _scratch: None,
        }
    }

    pub fn node(&self) -> &Path {
        &self.node
    }

    /// `sgm ARGUMENTS` for this node.
    pub fn sgm(&self, arguments: &[&str]) -> Command {
        let mut command = Started::command(paths::sgm());
        command.args(arguments).env("SGM_DIR", self.node());
        command
    }

    /// The command that runs `command` under the front, and the file its report will be in (in `directory`).
    pub fn wrap(&self, command: &Command, directory: &Path) -> (Command, PathBuf) {
        let number = self.reports.fetch_add(1, Ordering::Relaxed);
        let report = directory.join(format!("report-{number}.json"));
        let mut wrapped = Started::command(paths::sgm());
        wrapped
            .arg("run")
            .arg("--report")
            .arg(&report)
            .arg("--")
            .arg(command.get_program());
        Started::pass_on(command, &mut wrapped);
        wrapped.env("SGM_DIR", self.node());
        (wrapped, report)
    }
}

impl Default for Front {
    fn default() -> Front {
        Front::new()
    }
}

/// The report in `file`.
pub fn read_report(file: &Path) -> Report {
    let text = fs::read_to_string(file)
        .unwrap_or_else(|error| panic!("no report {}: {error}", file.display()));
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("a report that does not parse: {error}\n{text}"))
}

/// The sum of several reports.
pub fn sum<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Report {
    let mut total = Report::default();
    for report in reports {
        total.connections.seen += report.connections.seen;
        total.connections.carried += report.connections.carried;
        total.connections.tcp += report.connections.tcp;
        total.carried.tx_bytes += report.carried.tx_bytes;
        total.carried.rx_bytes += report.carried.rx_bytes;
        total.carried.tx_messages += report.carried.tx_messages;
        total.carried.rx_messages += report.carried.rx_messages;
        total.carried.bells_sent += report.carried.bells_sent;
        total.carried.port_bells += report.carried.port_bells;
        total.carried.sleeps += report.carried.sleeps;
        total.tcp.tx_bytes += report.tcp.tx_bytes;
        total.tcp.rx_bytes += report.tcp.rx_bytes;
        for (reason, count) in &report.reasons {
            *total.reasons.entry(reason.clone()).or_default() += count;
        }
    }
    total
}
