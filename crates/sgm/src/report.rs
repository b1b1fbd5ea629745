//! What the ports of one run did: the sums behind `sgm run --explain` and `--report`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use gm::{End, Port, Reason, Role};
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub connections: Connections,
    pub carried: Carried,
    pub tcp: Tcp,
    /// Connections that stayed on TCP, or went back to it, by reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Port files that were found for the run.
    pub ports: u64,
}

/// Ends of connections: a connection with both ends in the run counts twice.
#[derive(Debug, Default, Serialize)]
pub struct Connections {
    pub seen: u64,
    pub carried: u64,
    pub tcp: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct Carried {
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    pub tx_messages: u64,
    pub rx_messages: u64,
    pub bells_sent: u64,
    pub port_bells: u64,
    pub sleeps: u64,
}

/// Bytes on the kernel's streams, doorbells included.
#[derive(Debug, Default, Serialize)]
pub struct Tcp {
    pub tx_bytes: u64,
    pub rx_bytes: u64,
}

/// Gathers (and removes) the port files of run `run`, those of its processes in namespaces of their own as well.
pub fn gather(dir: &Path, run: u64) -> Report {
    let mut report = Report::default();
    let inner = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let inner = inner.map(|e| e.path()).filter(|p| gm::os::is_inner(p));
    let all = std::iter::once(dir.to_owned()).chain(inner);
    for path in all.flat_map(|dir| Port::list(&dir)) {
        let Ok(port) = Port::open(&path) else {
            continue;
        };
        if port.header().run.load(Relaxed) != run {
            continue;
        }
        report.ports += 1;
        let totals = &port.header().totals;
        for end in port.used_ends().iter().filter(|e| e.is_used()) {
            gm::port::fold(totals, end);
        }
        add(&mut report, &port);
        if !port.alive() {
            gm::os::remove(&path);
        }
    }
    report.connections.seen = report.connections.carried + report.connections.tcp;
    report
}

fn add(report: &mut Report, port: &Port) {
    let t = &port.header().totals;
    let c = &mut report.carried;
    for (sum, part) in [
        (&mut c.tx_bytes, &t.tx_bytes),
        (&mut c.rx_bytes, &t.rx_bytes),
        (&mut c.tx_messages, &t.tx_messages),
        (&mut c.rx_messages, &t.rx_messages),
        (&mut c.bells_sent, &t.bells_sent),
        (&mut c.port_bells, &t.port_bells),
        (&mut c.sleeps, &t.sleeps),
        (&mut report.tcp.tx_bytes, &t.tcp_tx),
        (&mut report.tcp.rx_bytes, &t.tcp_rx),
        (&mut report.connections.carried, &t.carried),
        (&mut report.connections.tcp, &t.stayed),
    ] {
        *sum += part.load(Relaxed);
    }
    for why in Reason::ALL.iter().filter(|r| **r != Reason::None) {
        let n = t.reasons[*why as usize].load(Relaxed);
        if n > 0 {
            *report.reasons.entry(why.word()).or_default() += n;
        }
    }
}

/// Is this end worth a line: a connection, not a listener or an unused socket?
pub fn is_connection(end: &End) -> bool {
    matches!(end.role(), Role::Client | Role::Server) && end.is_used()
}

impl Report {
    /// For people, on standard error.
    pub fn explain(&self) -> String {
        let mut text = String::from("sgm: ");
        if self.ports == 0 {
            return text
                + "the program opened no TCP socket under Sockets-GM (or could not load it; see `sgm doctor`), or it ran \
                   where the node can't be used: another user or root directory, no /proc, no /dev/shm\n";
        }
        text += &format!(
            "{} connection ends: {} carried by shared memory, {} on plain TCP\n",
            self.connections.seen, self.connections.carried, self.connections.tcp
        );
        let c = &self.carried;
        text += &format!(
            "sgm: carried {} bytes in {} messages out, {} bytes in {} messages in; {} doorbells, {} port bells, {} sleeps\n",
            c.tx_bytes,
            c.tx_messages,
            c.rx_bytes,
            c.rx_messages,
            c.bells_sent,
            c.port_bells,
            c.sleeps
        );
        for (word, n) in &self.reasons {
            let why = Reason::ALL
                .iter()
                .find(|r| r.word() == *word)
                .map_or("", |r| r.text());
            text += &format!("sgm: {n:>6} × {word}: {why}\n");
        }
        text
    }
}
