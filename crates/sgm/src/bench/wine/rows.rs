//! The rows of the Windows programs.

use super::super::figure::{
    CLIENT_CPU_PERCENT, CONNECTIONS, CPU_PERCENT, MEAN, MESSAGES, Metric, Target,
};
use super::super::front::Check;

pub const GROUP: &str = "wine";

/// How an end waits for its next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A blocking `recv`.
    Blocking,
    /// `select` on a non-blocking socket, then `recv`.
    Select,
    /// `WSAEventSelect` once, then wait for the event, `WSAEnumNetworkEvents`, `recv`.
    Events,
    /// `WSARecv` with an event object, then `WSAGetOverlappedResult`.
    Overlapped,
    /// `WSARecv` with a completion routine, then `SleepEx`.
    Routine,
    /// `WSASend`, `WSARecv`, and both ends from a completion port.
    Port,
}

impl Wait {
    pub fn word(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Select => "select",
            Self::Events => "events",
            Self::Overlapped => "overlapped",
            Self::Routine => "routine",
            Self::Port => "port",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// 64 bytes there and back.
    RoundTrip(Wait),
    /// Messages in one direction.
    Stream { size: usize },
    /// Connect, one byte each way, close.
    Connections,
    /// Connections on which nothing happens any more.
    Idle,
}

/// Who talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Windows,
    /// A Windows client, and the server of the Linux rows.
    LinuxServer,
    /// Windows programs that have not opted in, in a prefix with our DLLs: what they pay must be nothing.
    NotOptedIn,
}

pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    pub work: Work,
    pub ends: Ends,
    /// Rows whose target is about 1 are repeated more often.
    pub times_rounds: usize,
    pub check: Check,
    pub targets: Vec<(Metric, Target)>,
}

impl Row {
    fn new(name: &'static str, title: &'static str, work: Work) -> Self {
        Self {
            name,
            title,
            work,
            ends: Ends::Windows,
            times_rounds: 1,
            check: Check::Bytes,
            targets: Vec::new(),
        }
    }

    fn between(self, ends: Ends) -> Self {
        Self { ends, ..self }
    }

    fn check(self, check: Check) -> Self {
        Self { check, ..self }
    }

    fn times(self, times_rounds: usize) -> Self {
        Self {
            times_rounds,
            ..self
        }
    }

    fn target(mut self, metric: Metric, target: Target) -> Self {
        self.targets.push((metric, target));
        self
    }
}

pub fn all() -> Vec<Row> {
    let blocking = Work::RoundTrip(Wait::Blocking);
    vec![
        Row::new("wine-rtt-64", "64 B, blocking", blocking).target(MEAN, Target::Gain(100.0)),
        Row::new("wine-linux", "64 B, Linux server", blocking)
            .between(Ends::LinuxServer)
            .target(MEAN, Target::Gain(100.0)),
        Row::new("wine-select", "64 B, select", Work::RoundTrip(Wait::Select))
            .target(MEAN, Target::Gain(20.0)),
        Row::new("wine-events", "64 B, events", Work::RoundTrip(Wait::Events))
            .target(MEAN, Target::Gain(100.0)),
        Row::new(
            "wine-port",
            "64 B, completion port",
            Work::RoundTrip(Wait::Port),
        )
        .target(MEAN, Target::Gain(100.0)),
        Row::new(
            "wine-overlapped",
            "64 B, overlapped, event",
            Work::RoundTrip(Wait::Overlapped),
        )
        .target(MEAN, Target::Gain(50.0)),
        Row::new(
            "wine-routine",
            "64 B, completion routine",
            Work::RoundTrip(Wait::Routine),
        )
        .target(MEAN, Target::Gain(50.0)),
        Row::new("wine-msgs-64", "64 B, one way", Work::Stream { size: 64 })
            .target(MESSAGES, Target::Gain(50.0)),
        Row::new(
            "wine-bytes",
            "64 KiB, one way",
            Work::Stream { size: 64 << 10 },
        ),
        Row::new("wine-not-in", "64 B, not opted in", blocking)
            .between(Ends::NotOptedIn)
            .check(Check::Nothing)
            .times(2)
            .target(MEAN, Target::Gain(0.95)),
        Row::new("wine-connect", "1 byte each way", Work::Connections)
            .check(Check::Nothing)
            .times(2)
            .target(CONNECTIONS, Target::Gain(0.95)),
        Row::new("wine-idle", "16 idle", Work::Idle)
            .check(Check::Connections)
            .target(CPU_PERCENT, Target::Below(0.2))
            .target(CLIENT_CPU_PERCENT, Target::Below(0.2)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = all().iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn a_row_that_is_to_be_carried_is_checked() {
        for row in all() {
            let short = row.work == Work::Connections || row.ends == Ends::NotOptedIn;
            assert_eq!(row.check == Check::Nothing, short, "{}", row.name);
        }
    }
}
