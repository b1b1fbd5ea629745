//! The rows of the table: which workload, on which CPUs, how often, what shows that it was carried, what is promised.

use std::path::PathBuf;

use super::figure::{
    BELLS, BYTES, CLIENT_CPU_PERCENT, CONNECTIONS, CPU_PERCENT, MEAN, MEMORY, MESSAGES, Metric,
    P50, P99, Target,
};
use super::front::Check;
use super::role::{Wait, Work};

/// One row: a workload and what is said about it.
pub struct Row {
    pub name: String,
    pub group: &'static str,
    pub title: &'static str,
    pub work: Work,
    /// Both processes on one CPU.
    pub same_cpu: bool,
    /// Makes no sense when the two processes share a CPU: each would wait out the other's time slice.
    pub needs_two_cpus: bool,
    /// Rows that take seconds are repeated less often, those whose target is about 1 more often.
    pub max_rounds: usize,
    pub times_rounds: usize,
    pub check: Check,
    pub targets: Vec<(Metric, Target)>,
}

/// How long and how large.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub mean_ms: u64,
    pub timed_ms: u64,
    pub raw_ms: u64,
    pub stream_ms: u64,
    pub connections_ms: u64,
    pub paced_ms: u64,
    pub idle_ms: u64,
    pub beat_ms: u64,
    pub crowd: usize,
    pub slow_rounds: usize,
}

pub const FULL: Scale = Scale {
    mean_ms: 180,
    timed_ms: 80,
    raw_ms: 100,
    stream_ms: 250,
    connections_ms: 150,
    paced_ms: 500,
    idle_ms: 3000,
    beat_ms: 3000,
    crowd: 10_000,
    slow_rounds: 2,
};

pub const QUICK: Scale = Scale {
    mean_ms: 60,
    timed_ms: 40,
    raw_ms: 50,
    stream_ms: 100,
    connections_ms: 50,
    paced_ms: 250,
    idle_ms: 2000,
    beat_ms: 1500,
    crowd: 1_000,
    slow_rounds: 1,
};

/// The floor that the round trips are compared with.
pub const RAW: &str = "raw";
/// Round trips that an idle connection makes first: more than it takes to be promoted.
const PROMOTED_AFTER: u64 = 16;
pub const IDLE_CONNECTIONS: usize = 16;

/// Headings of the groups, in the order of the rows.
pub const GROUPS: [(&str, &str); 8] = [
    (
        RAW,
        "floor: a number to another process and back through two cache lines, no socket",
    ),
    (
        "rtt",
        "round trip on one connection, blocking unless said otherwise",
    ),
    ("stream", "one direction"),
    ("connections", "connect, exchange, close"),
    (
        "many",
        "round trip of 64 B on one of many connections of an epoll server",
    ),
    ("cpu", "CPU time when there is little to do"),
    (
        "wine",
        "Windows programs under Wine: plain is Wine's own Winsock in the same prefix",
    ),
    ("apps", "real programs, requests/s"),
];

impl Row {
    fn new(name: &str, group: &'static str, title: &'static str, work: Work) -> Self {
        Self {
            name: name.to_owned(),
            group,
            title,
            work,
            same_cpu: false,
            needs_two_cpus: false,
            max_rounds: usize::MAX,
            times_rounds: 1,
            check: Check::Bytes,
            targets: Vec::new(),
        }
    }

    fn target(mut self, metric: Metric, target: Target) -> Self {
        self.targets.push((metric, target));
        self
    }

    fn check(self, check: Check) -> Self {
        Self { check, ..self }
    }

    fn at_most(self, max_rounds: usize) -> Self {
        Self { max_rounds, ..self }
    }

    fn times(self, times_rounds: usize) -> Self {
        Self {
            times_rounds,
            ..self
        }
    }

    fn on_one_cpu(self) -> Self {
        Self {
            same_cpu: true,
            ..self
        }
    }

    fn on_two_cpus(self) -> Self {
        Self {
            needs_two_cpus: true,
            ..self
        }
    }
}

/// All rows that need no other program. `shared_file` is the one of the raw row.
pub fn all(scale: &Scale, shared_file: PathBuf) -> Vec<Row> {
    let raw = Work::CacheLine {
        path: shared_file,
        ms: scale.raw_ms,
    };
    let mut rows = vec![
        Row::new(RAW, "raw", "cache lines", raw)
            .check(Check::Nothing)
            .on_two_cpus(),
    ];
    rows.extend(round_trips(scale));
    rows.extend(streams(scale));
    let connections = Work::Connections {
        ms: scale.connections_ms,
    };
    rows.push(
        Row::new("connections", "connections", "1 byte each way", connections)
            .check(Check::Nothing)
            .times(3)
            .target(CONNECTIONS, Target::Gain(0.95)),
    );
    rows.extend(crowds(scale));
    rows.extend(turns(scale));
    rows.extend(quiet(scale));
    rows
}

fn round_trips(scale: &Scale) -> Vec<Row> {
    let row = |name: &str, title, size: usize, wait| {
        let warm = ((8 << 20) / size as u64).clamp(16, 1000);
        let work = Work::RoundTrip {
            size,
            wait,
            warm,
            mean_ms: scale.mean_ms,
            timed_ms: scale.timed_ms,
        };
        Row::new(name, "rtt", title, work)
    };
    vec![
        row("rtt-1", "1 B", 1, Wait::Blocking),
        row("rtt-64", "64 B", 64, Wait::Blocking)
            .target(MEAN, Target::Gain(30.0))
            .target(MEAN, Target::TimesRaw(4.0)),
        row("rtt-1k", "1 KiB", 1 << 10, Wait::Blocking),
        row("rtt-16k", "16 KiB", 16 << 10, Wait::Blocking),
        row("rtt-64k", "64 KiB", 64 << 10, Wait::Blocking),
        row("rtt-1m", "1 MiB", 1 << 20, Wait::Blocking),
        row("rtt-64-busy", "64 B, non-blocking loop", 64, Wait::Busy)
            .on_two_cpus()
            .target(MEAN, Target::TimesRaw(3.0)),
        row("rtt-64-epoll", "64 B, epoll", 64, Wait::Epoll).target(P99, Target::OfPlain(0.05)),
        row("rtt-64-poll", "64 B, poll", 64, Wait::Poll),
        row("one-core", "64 B, both on one CPU", 64, Wait::Blocking)
            .on_one_cpu()
            .times(2)
            .target(MEAN, Target::Gain(1.0)),
    ]
}

fn streams(scale: &Scale) -> Vec<Row> {
    let row = |name: &str, title, size, no_delay| {
        Row::new(
            name,
            "stream",
            title,
            Work::Stream {
                size,
                no_delay,
                ms: scale.stream_ms,
            },
        )
    };
    vec![
        row("msgs-64", "64 B", 64, true).target(MESSAGES, Target::Gain(15.0)),
        row("msgs-64-nagle", "64 B, Nagle left on", 64, false),
        row("bytes-64k", "64 KiB", 64 << 10, true).target(BYTES, Target::Gain(3.0)),
        row("bytes-1m", "1 MiB", 1 << 20, true),
    ]
}

fn crowds(scale: &Scale) -> Vec<Row> {
    let row = |idle: usize| {
        let work = Work::Crowd {
            idle,
            trips: PROMOTED_AFTER,
            mean_ms: scale.mean_ms,
            timed_ms: scale.timed_ms,
        };
        Row::new(&format!("many-{idle}"), "many", "idle connections", work)
            .check(Check::Connections)
            .target(MEMORY, Target::ExtraBelow(12.0 * 1024.0))
    };
    vec![row(100), row(scale.crowd).at_most(scale.slow_rounds)]
}

fn turns(scale: &Scale) -> Vec<Row> {
    [100, 1000]
        .map(|connections| {
            let work = Work::Turns {
                connections,
                trips: PROMOTED_AFTER,
                mean_ms: scale.mean_ms,
                timed_ms: scale.timed_ms,
            };
            let name = format!("turns-{connections}");
            Row::new(&name, "many", "a random one of all", work)
                .check(Check::Connections)
                .target(MEAN, Target::Gain(10.0))
                .target(BELLS, Target::Below(0.05))
        })
        .into()
}

fn quiet(scale: &Scale) -> Vec<Row> {
    let beat = Work::Beat {
        connections: scale.crowd,
        trips: PROMOTED_AFTER,
        ms: scale.beat_ms,
    };
    let paced = Work::Paced {
        size: 64,
        warm: 100,
        per_s: 1000,
        ms: scale.paced_ms,
    };
    let idle = Work::Idle {
        idle: IDLE_CONNECTIONS,
        trips: PROMOTED_AFTER,
        ms: scale.idle_ms,
    };
    vec![
        Row::new("paced", "cpu", "64 B, 1000 requests/s", paced)
            .target(P50, Target::OfPlain(0.6))
            .target(P99, Target::OfPlain(0.9))
            .target(CPU_PERCENT, Target::OfPlain(0.7)),
        Row::new("beat", "cpu", "each of many once a second", beat)
            .check(Check::Connections)
            .at_most(scale.slow_rounds)
            .target(CPU_PERCENT, Target::OfPlain(1.0)),
        Row::new("idle", "cpu", "16 idle connections", idle)
            .check(Check::Connections)
            .at_most(scale.slow_rounds)
            .target(CPU_PERCENT, Target::Below(0.2))
            .target(CLIENT_CPU_PERCENT, Target::Below(0.2)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_groups_known() {
        for scale in [FULL, QUICK] {
            let rows = all(&scale, PathBuf::new());
            for (i, row) in rows.iter().enumerate() {
                assert!(
                    rows[..i].iter().all(|other| other.name != row.name),
                    "{} twice",
                    row.name
                );
                assert!(
                    GROUPS.iter().any(|(group, _)| *group == row.group),
                    "{} has no group",
                    row.name
                );
            }
        }
    }
}
