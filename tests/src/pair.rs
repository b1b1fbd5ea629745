//! One case of a C program, run as a server and a client process.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::front::{Front, Report, read_report};
use crate::paths::Scratch;
use crate::process::{Ended, Started};
use crate::programs::{Build, compiled};

/// No case takes longer than two seconds by itself; the rest is for a busy machine. `SGM_TEST_LIMIT_S` sets another limit.
fn limit() -> Duration {
    let seconds = std::env::var("SGM_TEST_LIMIT_S")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}
/// When one role has ended, the other is not far from its end, or hangs.
const SECOND_ROLE_LIMIT: Duration = Duration::from_secs(20);

/// How to run a case.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub server_under_front: bool,
    pub client_under_front: bool,
    /// Messages exchanged before the case, so that the connection is promoted before the case begins.
    pub warm_up: u32,
    /// The accepting process plays the client's part.
    pub swapped: bool,
    pub build: Build,
    /// What FILEs read and write is seen; else a connection of theirs goes back to TCP.
    pub stdio: bool,
}

pub const WARM: u32 = 32;

impl Setup {
    pub const NATIVE: Setup = Setup {
        server_under_front: false,
        client_under_front: false,
        warm_up: WARM,
        swapped: false,
        build: Build::Plain,
        stdio: true,
    };
    pub const CARRIED: Setup = Setup {
        server_under_front: true,
        client_under_front: true,
        ..Setup::NATIVE
    };
}

/// Both roles' ends, and the reports of those that ran under the front.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub server: Ended,
    pub client: Ended,
    pub server_report: Option<Report>,
    pub client_report: Option<Report>,
}

/// Runs `case` of `program`; fails when a role does not end in time.
pub fn run(program: &str, case: &str, setup: Setup) -> Outcome {
    run_at(&Front::new(), program, case, setup)
}

/// As [`run`], on a given node.
pub fn run_at(front: &Front, program: &str, case: &str, setup: Setup) -> Outcome {
    let scratch = Scratch::new();
    for fifo in ["to_server", "to_client"] {
        mknodat(
            CWD,
            scratch.join(fifo),
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
    }
    let start = |role: &str, under_front: bool| {
        let mut command: Command = Started::command(compiled(program, setup.build));
        command
            .args([case, role])
            .env("SGM_TEST_DIR", scratch.path())
            .env("WARMUP", setup.warm_up.to_string())
            .env("SWAP", if setup.swapped { "1" } else { "0" });
        if !setup.stdio {
            command.env("SGM_STDIO", "0");
        }
        if !under_front {
            return (Started::new(role, scratch.path(), command), None);
        }
        let (wrapped, report) = front.wrap(&command, scratch.path());
        (Started::new(role, scratch.path(), wrapped), Some(report))
    };
    let (mut server, server_report) = start("server", setup.server_under_front);
    let (mut client, client_report) = start("client", setup.client_under_front);

    let mut deadline = Instant::now() + limit();
    Started::first_to_end(&[&server, &client], limit());
    deadline = deadline.min(Instant::now() + SECOND_ROLE_LIMIT);
    for role in [&server, &client] {
        role.runs_after(deadline.saturating_duration_since(Instant::now()));
    }
    // Before either is killed, for that ends or resets the other.
    let whereabouts = [server.whereabouts(), client.whereabouts()];
    let ends = [server.end_by(deadline), client.end_by(deadline)];
    let [Some(server_end), Some(client_end)] = &ends else {
        let tell = |end: &Option<Ended>, role: &Started, whereabouts: &str| match end {
            Some(end) => format!(
                "ended with {}\n{}",
                end.code,
                tails(&end.output, &end.errors)
            ),
            None => format!(
                "HANGS\n{}\n{whereabouts}",
                tails(&role.output_so_far(), &role.errors_so_far())
            ),
        };
        panic!(
            "{program} {case} does not end ({setup:?})\n--- server {}\n--- client {}",
            tell(&ends[0], &server, &whereabouts[0]),
            tell(&ends[1], &client, &whereabouts[1])
        );
    };
    Outcome {
        server: server_end.clone(),
        client: client_end.clone(),
        server_report: server_report.as_deref().map(read_report),
        client_report: client_report.as_deref().map(read_report),
    }
}

/// The ends of an output and of its errors, for a failing test's message.
pub fn tails(output: &str, errors: &str) -> String {
    let tail = |text: &str| {
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    };
    format!("{}\n[errors] {}", tail(output), tail(errors))
}
