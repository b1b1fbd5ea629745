//! A Windows program and a Linux program on one node: their connections are carried as well.

use std::path::PathBuf;
use std::time::Duration;

use sgm_tests::front::{Front, Report, read_report, sum};
use sgm_tests::paths::Scratch;
use sgm_tests::process::{Ended, Started};
use sgm_tests::programs::{Build, compiled};
use sgm_tests::wine::{self, Mode, Wine, ends};
use sgm_tests::world::{Server, free_port};

const LIMIT: Duration = Duration::from_secs(60);

struct Meeting {
    wine: Wine,
    front: Front,
    scratch: Scratch,
    port: u16,
}

impl Meeting {
    fn new() -> Meeting {
        Meeting::on(Wine::new())
    }

    fn on(wine: Wine) -> Meeting {
        Meeting {
            wine,
            front: Front::new(),
            scratch: Scratch::new(),
            port: free_port(),
        }
    }

    fn windows(&self, way: &str, what: &str) -> (Started, PathBuf) {
        let report = self.scratch.join("windows.json");
        let mut command = self.wine.command(
            Mode::Carried,
            &self.wine.suite(),
            &self.front,
            Some(&report),
        );
        command.args(["peer", way, &self.port.to_string(), what]);
        (
            Started::new("windows", self.scratch.path(), command),
            report,
        )
    }

    fn linux(&self, way: &str, what: &str) -> (Started, PathBuf) {
        let mut command = Started::command(compiled("peer", Build::Plain));
        command.args([way, &self.port.to_string(), what]);
        let (command, report) = self.front.wrap(&command, self.scratch.path());
        (Started::new("linux", self.scratch.path(), command), report)
    }

    /// Both ends say what they should, and the counters of both show the path.
    fn end(
        &self,
        server: (Started, PathBuf),
        client: impl FnOnce(&Meeting) -> (Started, PathBuf),
    ) -> ([Ended; 2], Report) {
        let listening = Server::listening(server.0, self.port);
        let (mut client, client_report) = client(self);
        let client = ends(&mut client, LIMIT);
        assert_eq!(client.code, 0, "{client:?}");
        let server_end = listening.ended();
        assert_eq!(server_end.code, 0, "{server_end:?}\n{client:?}");
        let report = sum(&[read_report(&server.1), read_report(&client_report)]);
        assert_eq!(report.connections.carried, 2, "{report:?}");
        ([server_end, client], report)
    }
}

/// The asking end has its every byte back; nearly all went through the rings, both ways.
fn check_echo(ends: &[Ended; 2], report: &Report) {
    let [server, client] = ends;
    assert!(server.output.starts_with("echoed "), "{server:?}");
    assert!(client.output.contains("came back"), "{client:?}");
    assert!(report.carried.tx_bytes > 3 << 20, "{report:?}");
}

fn check_duplex(ends: &[Ended; 2], report: &Report) {
    for end in ends {
        assert!(end.output.contains("16 MiB each way"), "{end:?}");
    }
    // On a busy machine a direction stalls now and then, and a part of it goes over TCP.
    assert!(report.carried.tx_bytes > 20 << 20, "{report:?}");
}

#[test]
fn windows_client_linux_server() {
    let meeting = Meeting::new();
    let server = meeting.linux("listen", "echo");
    let (ends, report) = meeting.end(server, |meeting| meeting.windows("connect", "ask"));
    check_echo(&ends, &report);
}

#[test]
fn linux_client_windows_server() {
    let meeting = Meeting::new();
    let server = meeting.windows("listen", "echo");
    let (ends, report) = meeting.end(server, |meeting| meeting.linux("connect", "ask"));
    check_echo(&ends, &report);
}

#[test]
fn bulk_both_ways_from_windows() {
    let meeting = Meeting::new();
    let server = meeting.linux("listen", "duplex");
    let (ends, report) = meeting.end(server, |meeting| meeting.windows("connect", "duplex"));
    check_duplex(&ends, &report);
}

#[test]
fn bulk_both_ways_from_linux() {
    let meeting = Meeting::new();
    let server = meeting.windows("listen", "duplex");
    let (ends, report) = meeting.end(server, |meeting| meeting.linux("connect", "duplex"));
    check_duplex(&ends, &report);
}

/// A 32-bit one asks and answers.
#[test]
fn narrow() {
    let meeting = || Wine::narrow().map(Meeting::on);
    let Some(first) = meeting() else { return };
    let server = first.linux("listen", "echo");
    let (ends, report) = first.end(server, |meeting| meeting.windows("connect", "ask"));
    check_echo(&ends, &report);
    // On another port: the first may be of a connection that has just ended.
    let Some(meeting) = meeting() else { return };
    let server = meeting.windows("listen", "duplex");
    let (ends, report) = meeting.end(server, |meeting| meeting.linux("connect", "duplex"));
    check_duplex(&ends, &report);
}

/// A prefix that serves both widths gets the files of both, and loses them again.
#[test]
fn narrow_and_taken_out() {
    const ADDED: [&str; 4] = ["spi", "spi32", "syswow64/lsp.dll", "system32/lsp.dll"];
    let Some(wine) = Wine::narrow_in("taken-out") else {
        return;
    };
    let meeting = Meeting::on(wine);
    let present = || ADDED.map(|name| meeting.wine.file("drive_c/windows").join(name).exists());
    let server = meeting.linux("listen", "echo");
    let (ends, report) = meeting.end(server, |meeting| meeting.windows("connect", "ask"));
    check_echo(&ends, &report);
    assert_eq!(present(), [true; 4]);
    let removal = meeting.wine.removal(&meeting.front);
    let mut removal = Started::new("removal", meeting.scratch.path(), removal);
    let ended = wine::ends(&mut removal, LIMIT);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(present(), [false; 4]);
}
