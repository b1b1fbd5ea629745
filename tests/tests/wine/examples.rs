//! The programs of `examples/`: plain, installed, and opted in by the two ways that need no environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sgm_tests::front::{Front, Report, read_report, sum};
use sgm_tests::paths::Scratch;
use sgm_tests::process::{Ended, Started};
use sgm_tests::wine::{Mode, Wine, ends};
use sgm_tests::world::{Server, free_port};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a server and a client of `program`; both must end well. Gives what they said, and their counters.
fn pair(
    wine: &Wine,
    program: &Path,
    mode: Mode,
    connections: u32,
    rounds: &[&str],
) -> ([Ended; 2], Report) {
    let (front, scratch) = (Front::new(), Scratch::new());
    let port = free_port().to_string();
    let reports = ["server.json", "client.json"].map(|name| scratch.join(name));
    let start = |role: &str, arguments: &[&str], report: &PathBuf| {
        let report = (mode == Mode::Carried).then_some(report.as_path());
        let mut command = wine.command(mode, program, &front, report);
        command.arg(role).args(arguments);
        Started::new(role, scratch.path(), command)
    };
    let server = start("server", &[&port, &connections.to_string()], &reports[0]);
    let server = Server::listening(server, port.parse().unwrap());
    let client = [&["127.0.0.1", port.as_str()], rounds].concat();
    let client = ends(&mut start("client", &client, &reports[1]), LIMIT);
    let server = server.ended();
    for end in [&server, &client] {
        assert_eq!(end.code, 0, "{} {mode:?}: {end:?}", program.display());
    }
    let report = match mode {
        Mode::Carried => sum(&reports.map(|file| read_report(&file))),
        _ => Report::default(),
    };
    ([server, client], report)
}

/// The same words in every mode; only the time of a round trip differs, and with opting in the path.
fn same_in_every_mode(name: &str, connections: u32, rounds: &[&str]) {
    let modes = [Mode::Base, Mode::FallThrough, Mode::Carried];
    same_in(&Wine::new(), &modes, name, connections, rounds);
}

fn same_in(wine: &Wine, modes: &[Mode], name: &str, connections: u32, rounds: &[&str]) {
    let program = wine.example(name);
    let words = |ends: &[Ended; 2]| {
        let [server, client] = ends;
        let said = client
            .output
            .lines()
            .find(|line| line.contains("every byte right"));
        let echoed = server
            .output
            .lines()
            .find(|line| line.starts_with("echoed"));
        // How many connections there were at once is up to chance.
        [said, echoed].map(|line| {
            line.expect("its result")
                .split(", ")
                .next()
                .map(str::to_string)
        })
    };
    let (plain, _) = pair(wine, &program, Mode::Plain, connections, rounds);
    for &mode in modes {
        let (ends, report) = pair(wine, &program, mode, connections, rounds);
        assert_eq!(words(&ends), words(&plain), "{mode:?}");
        if mode == Mode::Carried {
            check_carried(&report, connections);
        }
    }
}

fn check_carried(report: &Report, connections: u32) {
    assert_eq!(
        report.connections.carried,
        2 * u64::from(connections),
        "{report:?}"
    );
    assert!(
        report.carried.tx_bytes > report.tcp.tx_bytes,
        "most bytes should have been carried: {report:?}"
    );
}

/// The same programs, made for 32 bits.
#[test]
fn narrow() {
    let Some(wine) = Wine::narrow() else { return };
    for name in ["echo11", "echo2", "mixed"] {
        same_in(&wine, &[Mode::Carried], name, 1, &["500", "64"]);
    }
    same_in(&wine, &[Mode::Carried], "many", 60, &["60", "100", "40"]);
}

#[test]
fn echo11() {
    same_in_every_mode("echo11", 1, &["500", "64"]);
}

#[test]
fn echo2() {
    same_in_every_mode("echo2", 1, &["500", "5000"]);
}

#[test]
fn mixed() {
    same_in_every_mode("mixed", 1, &["500", "64"]);
}

#[test]
fn many() {
    same_in_every_mode("many", 300, &["300", "100", "40"]);
}

/// As in 2001: lsp.dll copied beside the program, and nothing else.
#[test]
fn opted_in_by_a_copy_beside_the_program() {
    let (wine, front, scratch) = (Wine::new(), Front::new(), Scratch::new());
    let directory = scratch.join("opted in");
    fs::create_dir(&directory).unwrap();
    let program = directory.join("echo2.exe");
    fs::copy(wine.example("echo2"), &program).unwrap();
    let start = |role: &str, arguments: &[&str]| {
        let mut command = wine.command(Mode::FallThrough, &program, &front, None);
        command.arg(role).args(arguments).env("SGM_RUN", "7e57");
        Started::new(role, scratch.path(), command)
    };
    for copied in [false, true] {
        if copied {
            fs::copy(wine.providers().join("lsp.dll"), directory.join("lsp.dll")).unwrap();
        }
        let port = free_port().to_string();
        let server = Server::listening(start("server", &[&port, "1"]), port.parse().unwrap());
        let client = ends(&mut start("client", &["127.0.0.1", &port, "500"]), LIMIT);
        assert_eq!((server.ended().code, client.code), (0, 0), "{client:?}");
        // What the processes left in the node directory: nothing, or a port each.
        let ports = fs::read_dir(front.node())
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_string_lossy().starts_with("port-")
            })
            .count();
        assert_eq!(ports, if copied { 2 } else { 0 });
    }
}
