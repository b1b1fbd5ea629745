//! What the driver tells a worker, and what a worker tells the driver: one JSON value in the environment on the way in,
//! JSON lines on standard output on the way back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The hidden way in: `sgm bench` with this variable set is a worker, not the driver.
pub const ENV: &str = "SGM_BENCH_WORKER";

/// How an end waits for its next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wait {
    /// A blocking `recv`.
    Blocking,
    /// A non-blocking `recv`, repeated at once when it says `EWOULDBLOCK`.
    Busy,
    /// `epoll_wait` (level-triggered), then `recv`.
    Epoll,
    /// `poll`, then `recv`.
    Poll,
}

/// One workload, the same description for both ends. Durations in ms, sizes in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Two words on two cache lines of a shared file, no socket at all: the floor under every round trip.
    CacheLine { path: PathBuf, ms: u64 },
    /// One message there and the same message back, `warm` times unmeasured, then as often as the time allows.
    RoundTrip {
        size: usize,
        wait: Wait,
        warm: u64,
        mean_ms: u64,
        timed_ms: u64,
    },
    /// Round trips that start on a fixed beat, so that both ends sleep in between.
    Paced {
        size: usize,
        warm: u64,
        per_s: u64,
        ms: u64,
    },
    /// Messages in one direction; the receiver reads what there is.
    Stream {
        size: usize,
        no_delay: bool,
        ms: u64,
    },
    /// Connect, one byte each way, close.
    Connections { ms: u64 },
    /// Round trips on one connection of an epoll server that also holds `idle` others.
    Crowd {
        idle: usize,
        trips: u64,
        mean_ms: u64,
        timed_ms: u64,
    },
    /// Round trips on a random one of `connections` of an epoll server, one at a time.
    Turns {
        connections: usize,
        trips: u64,
        mean_ms: u64,
        timed_ms: u64,
    },
    /// `connections` of an epoll server that each make one round trip a second, on a fixed beat.
    Beat {
        connections: usize,
        trips: u64,
        ms: u64,
    },
    /// `idle` connections on which nothing happens.
    Idle { idle: usize, trips: u64, ms: u64 },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Side {
    Server,
    Client { port: u16 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Role {
    pub side: Side,
    pub cpu: usize,
    pub work: Work,
}

/// What one end measured. Only the fields that the workload speaks of are filled in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Payload bytes handed to `send`, warm-up included: what the counters of the front must account for.
    pub sent_bytes: u64,
    /// Connections that this end had.
    pub connections: u64,
    /// Messages (round trips, connections) in the measured part.
    pub messages: u64,
    /// Wall and CPU time (user and system, whole process) of the measured part.
    pub wall_ns: u64,
    pub cpu_ns: u64,
    pub mean_ns: f64,
    pub p50_ns: f64,
    pub p99_ns: f64,
    /// Growth of the proportional set size while the idle connections were set up.
    pub pss_growth_bytes: i64,
}

/// One line from a worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Line {
    /// The server listens; 0 where the workload has no socket.
    Ready {
        port: u16,
    },
    Done(Outcome),
    Failed {
        error: String,
    },
}
