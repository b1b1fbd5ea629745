//! `sgm status`: every live socket that Sockets-GM sees on this node.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Result;
use gm::{End, Node, Path, Port, Reason, Role, State};
use serde::Serialize;

use crate::addresses::Kernel;
use crate::out::harmless;
use crate::report::is_connection;

#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Status {
    node: NodeStatus,
    listening: Vec<Listening>,
    sockets: Vec<Socket>,
}

#[derive(Serialize)]
struct NodeStatus {
    dir: String,
    usable: bool,
    error: Option<String>,
    listeners: usize,
    offers: usize,
    ports: usize,
}

/// A listener of a live process.
#[derive(Serialize)]
struct Listening {
    pid: u32,
    program: String,
    local: String,
}

#[derive(Serialize)]
struct Socket {
    pid: u32,
    program: String,
    role: &'static str,
    local: Option<String>,
    peer: Option<String>,
    path: &'static str,
    reason: Option<&'static str>,
    tx_bytes: u64,
    rx_bytes: u64,
    tx_messages: u64,
    rx_messages: u64,
    tcp_tx_bytes: u64,
    tcp_rx_bytes: u64,
    bells_sent: u64,
    port_bells: u64,
    sleeps: u64,
}

pub fn main(args: Args) -> Result<ExitCode> {
    let status = look();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", table(&status));
    }
    Ok(if status.node.usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn look() -> Status {
    let dir = Node::dir_from_env();
    // A directory that is not there yet is made, to know whether it can be; the registry is left to the programs.
    let made = gm::os::ensure_dir(&dir);
    let node = Node::attach(&dir);
    let problem = match (&made, &node) {
        (Err(e), _) => Some(format!(
            "node directory: {e}; {}",
            crate::doctor::way_out(&dir, e)
        )),
        (_, Err(gm::Error::Os { error, .. })) if error.kind() == std::io::ErrorKind::NotFound => {
            None
        }
        (_, Err(e)) => Some(e.to_string()),
        _ => None,
    };
    let mut listening: Vec<Listening> = node
        .as_ref()
        .map(Node::listening)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(owner, at)| {
            Some(Listening {
                pid: owner.pid,
                program: gm::os::process_name(owner.pid)?,
                local: SocketAddr::new(ip(at.address), at.port).to_string(),
            })
        })
        .collect();
    listening.sort_by_key(|l| l.pid);
    let census = node.as_ref().map(Node::census).unwrap_or_default();
    let ports: Vec<Port> = Port::list(&dir)
        .iter()
        .filter_map(|p| Port::open(p).ok())
        .filter(Port::alive)
        .collect();
    let mut kernel = Kernel::default();
    let sockets = ports
        .iter()
        .flat_map(|p| p.used_ends().iter().filter(|e| is_connection(e)))
        .filter_map(|e| socket(e, &mut kernel))
        .collect();
    Status {
        node: NodeStatus {
            dir: dir.display().to_string(),
            usable: problem.is_none(),
            error: problem,
            listeners: census.listeners,
            offers: census.offers,
            ports: ports.len(),
        },
        listening,
        sockets,
    }
}

/// One line. `None`: its process is gone.
fn socket(end: &End, kernel: &mut Kernel) -> Option<Socket> {
    let pid = end.pid.load(Relaxed);
    let program = gm::os::process_name(pid)?;
    let shm = matches!(end.state(), State::Carried | State::Claimed)
        && (end.tx_path() == Path::Ring || end.rx_path() == Path::Ring);
    let why = match (shm, end.reason()) {
        (true, _) => None,
        (false, Reason::None) => Some(Reason::Short),
        (false, r) => Some(r),
    };
    let known = addresses(end).or_else(|| {
        let fd = end.descriptor.load(Relaxed).checked_sub(1)?;
        kernel.addresses(pid, fd)
    });
    let (local, peer) = known.map(|(l, p)| (l.to_string(), p.to_string())).unzip();
    Some(Socket {
        pid,
        program,
        role: if end.role() == Role::Server {
            "server"
        } else {
            "client"
        },
        local,
        peer,
        path: if shm { "shm" } else { "tcp" },
        reason: why.map(Reason::word),
        tx_bytes: end.tx_bytes.load(Relaxed),
        rx_bytes: end.rx_bytes.load(Relaxed),
        tx_messages: end.tx_messages.load(Relaxed),
        rx_messages: end.rx_messages.load(Relaxed),
        tcp_tx_bytes: end.tcp_tx.load(Relaxed),
        tcp_rx_bytes: end.tcp_rx.load(Relaxed),
        bells_sent: end.bells_sent.load(Relaxed),
        port_bells: end.port_bells.load(Relaxed),
        sleeps: end.sleeps.load(Relaxed),
    })
}

/// Known once the connection has been looked at for promotion.
fn addresses(end: &End) -> Option<(SocketAddr, SocketAddr)> {
    let w: Vec<u64> = end.address.iter().map(|w| w.load(Relaxed)).collect();
    if w.iter().all(|w| *w == 0) {
        return None;
    }
    let octets = |low: u64, high: u64| (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
    let local = SocketAddr::new(ip(octets(w[0], w[1])), w[4] as u16);
    let peer = SocketAddr::new(ip(octets(w[2], w[3])), (w[4] >> 16) as u16);
    Some((local, peer))
}

fn ip(octets: [u8; 16]) -> IpAddr {
    let v6 = Ipv6Addr::from(octets);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// As people read amounts; `--json` has them to the byte.
fn bytes_text(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"");
    // What would be rounded to the next unit is said in it.
    while value >= 1023.95 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1024.0, next);
    }
    format!("{value:.1} {unit}")
}

fn table(s: &Status) -> String {
    let mut out = format!(
        "node {}: {} ports, {} listeners, {} offers{}\n",
        harmless(&s.node.dir),
        s.node.ports,
        s.node.listeners,
        s.node.offers,
        s.node
            .error
            .as_ref()
            .map(|e| format!(" (not usable: {})", harmless(e)))
            .unwrap_or_default()
    );
    for l in &s.listening {
        out += &format!(
            "{:>7} {:<15} listens {}\n",
            l.pid,
            harmless(&l.program),
            l.local
        );
    }
    if s.sockets.is_empty() {
        return out + "no live connections\n";
    }
    out += &format!(
        "{:>7} {:<15} {:<6} {:<21} {:<21} {:<4} {:>10} {:>10} {:>10} {:>10} {:>8}  {}\n",
        "pid",
        "program",
        "role",
        "local",
        "peer",
        "path",
        "bytes out",
        "bytes in",
        "msgs out",
        "msgs in",
        "bells",
        "reason"
    );
    for c in &s.sockets {
        out += &format!(
            "{:>7} {:<15} {:<6} {:<21} {:<21} {:<4} {:>10} {:>10} {:>10} {:>10} {:>8}  {}\n",
            c.pid,
            harmless(&c.program),
            c.role,
            c.local.as_deref().unwrap_or("-"),
            c.peer.as_deref().unwrap_or("-"),
            c.path,
            bytes_text(c.tx_bytes),
            bytes_text(c.rx_bytes),
            c.tx_messages,
            c.rx_messages,
            c.bells_sent,
            c.reason.unwrap_or("")
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::bytes_text;

    #[test]
    fn amounts_are_said_in_the_unit_that_fits() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes_text(n), text);
        }
    }
}
