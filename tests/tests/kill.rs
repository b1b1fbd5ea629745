//! Processes killed in the middle of everything: what was sent arrives, nobody hangs, nothing piles up.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use sgm_tests::front::{Front, read_report};
use sgm_tests::pair::tails;
use sgm_tests::paths::{Scratch, installed};
use sgm_tests::process::{Ended, Started};
use sgm_tests::programs::{Build, compiled};

const ROUNDS: u32 = 200;
/// Rounds of `perish.c`: as many as fit into these seconds, or SGM_KILL_ROUNDS of them, however long they take. Twice under the
/// front.
const SHARED_SECONDS: u64 = 10;
/// Sweeps, a good second apart, after which what was killed half made, or on its way, is not waited for any more: the first is for a
/// minute.
const SWEEPS: u32 = 60;

fn driver(seed: u32) -> Command {
    let mut command = Started::command(compiled("kill", Build::Plain));
    command.args([ROUNDS.to_string(), seed.to_string()]);
    command
}

fn end(command: Command, scratch: &Scratch) -> Ended {
    let mut process = Started::new("kill", scratch.path(), command);
    // The driver itself has a limit for every survivor.
    let ended = process.end_by(Instant::now() + Duration::from_secs(240));
    let ended = ended.unwrap_or_else(|| {
        panic!(
            "hangs\n{}",
            tails(&process.output_so_far(), &process.errors_so_far())
        )
    });
    assert_eq!(ended.code, 0, "{}", tails(&ended.output, &ended.errors));
    assert_eq!(
        ended.output,
        format!("{ROUNDS} rounds with a kill and one without\n")
    );
    ended
}

/// What is killed in about a second, until the next sweep, leaves so many files at most; all of it would be some hundreds.
const MOST_FILES: usize = 100;

/// Files below `directory` and their bytes on disk.
fn contents(directory: &Path) -> (usize, u64) {
    use std::os::unix::fs::MetadataExt;
    let mut total = (0, 0);
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let data = entry.metadata().unwrap();
        let (files, bytes) = if data.is_dir() {
            contents(&entry.path())
        } else {
            (1, data.blocks() * 512)
        };
        total = (total.0 + files, total.1 + bytes);
    }
    total
}

#[test]
fn native() {
    end(driver(1), &Scratch::new());
}

#[test]
fn carried() {
    let (front, scratch) = (Front::new(), Scratch::new());
    let (wrapped, report) = front.wrap(&driver(1), scratch.path());
    end(wrapped, &scratch);
    let report = read_report(&report);
    assert!(
        report.carried.tx_bytes > 10 << 20,
        "hardly anything was carried: {report:?}"
    );

    // 200 killed processes and as many bereaved ones leave at most what one sweep has not seen yet.
    let (files, bytes) = contents(front.node());
    assert!(
        files <= MOST_FILES && bytes <= 16 << 20,
        "{files} files of {bytes} bytes are left in the node directory"
    );

    // And the node is as good as new.
    let (wrapped, again) = front.wrap(&driver(2), scratch.path());
    end(wrapped, &scratch);
    assert!(read_report(&again).carried.tx_bytes > 10 << 20);
    let (files, bytes) = contents(front.node());
    assert!(
        files <= MOST_FILES && bytes <= 16 << 20,
        "after another loop {files} files of {bytes} bytes are left"
    );
}

fn number_in(name: &str) -> Option<u32> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number")),
    )
}

/// Under what `perish.c` runs.
#[derive(Clone, Copy)]
enum Under<'a> {
    Tcp,
    Reported(&'a Front),
    /// Nobody waits for a report: what killed processes leave is swept while others go on.
    Swept(&'a Front),
}

/// Every way of handing a connection on, and every kind of blow; see `perish.c`.
fn perish(under: Under<'_>) {
    let (rounds, seconds) = match number_in("SGM_KILL_ROUNDS") {
        Some(rounds) => (rounds, 24 * 3600),
        None => (1_000_000, SHARED_SECONDS),
    };
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as u32;
    let seed = number_in("SGM_KILL_SEED").unwrap_or(now);
    let scratch = Scratch::new();
    let program = compiled("perish", Build::Plain);
    let mut command = match under {
        Under::Swept(_) => {
            let mut command = Started::command("env");
            command.args(["-u", "SGM_RUN"]).arg(program);
            // What is given to stdio goes back to TCP here.
            command.env("SGM_STDIO", "0");
            command
        }
        _ => Started::command(program),
    };
    command
        .args([rounds.to_string(), seconds.to_string(), seed.to_string()])
        // Short streams reach the rings, too.
        .env("SGM_PROMOTE_CALLS", "0");
    let mut report = None;
    if let Under::Reported(front) | Under::Swept(front) = under {
        let (wrapped, file) = front.wrap(&command, scratch.path());
        (command, report) = (wrapped, Some(file));
    }
    let mut process = Started::new("perish", scratch.path(), command);
    let ended = process.end_by(Instant::now() + Duration::from_secs(seconds + 60));
    let ended = ended.unwrap_or_else(|| panic!("hangs\n{}", process.errors_so_far()));
    assert_eq!(ended.code, 0, "{}", tails(&ended.output, &ended.errors));
    eprintln!("{}", ended.output.trim());
    let numbers: Vec<u32> = ended
        .output
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    let (made, resets) = (numbers[0], *numbers.last().unwrap());
    match (under, report.map(|report| read_report(&report))) {
        (Under::Reported(_), Some(report)) => assert!(
            report.connections.carried >= u64::from(made) / 4,
            "hardly anything was carried: {report:?}"
        ),
        (Under::Tcp, _) => assert_eq!(resets, 0, "{}", ended.output),
        _ => {}
    }
    assert!(resets <= 2 + made / 50, "{}", ended.output);
}

#[test]
fn every_way_of_sharing_native() {
    perish(Under::Tcp);
}

#[test]
fn every_way_of_sharing_carried() {
    let front = Front::new();
    perish(Under::Reported(&front));
    perish(Under::Swept(&front));
    // One program more, a second after the last sweep, and some for what that had no time for, looking for 3 ms, or waits for.
    let python = installed("python3", "python3");
    let left = || -> Vec<String> {
        let names = fs::read_dir(front.node()).unwrap().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with("node-")).collect()
    };
    // One that was killed while it made a segment leaves half of it, for a minute.
    const MOST_LEFT: usize = 2;
    for _ in 0..SWEEPS {
        if left().len() <= MOST_LEFT {
            break;
        }
        std::thread::sleep(Duration::from_millis(1200));
        let next = [
            "run",
            "--",
            python.to_str().unwrap(),
            "-c",
            "import socket; socket.socket()",
        ];
        assert!(front.sgm(&next).status().unwrap().success());
    }
    let left = left();
    assert!(
        left.len() <= MOST_LEFT,
        "left in the node directory: {left:?}"
    );
}

/// A sender whose sends have all returned, and that ends then, while the receiver gives the connection away; see `bequest.c`.
fn bequest(front: Option<&Front>) {
    let rounds = number_in("SGM_KILL_ROUNDS").unwrap_or(1_000_000);
    let seconds = match number_in("SGM_KILL_ROUNDS") {
        Some(_) => 24 * 3600,
        None => SHARED_SECONDS,
    };
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as u32;
    let seed = number_in("SGM_KILL_SEED").unwrap_or(now);
    let scratch = Scratch::new();
    let mut command = Started::command(compiled("bequest", Build::Plain));
    command.args([rounds.to_string(), seconds.to_string(), seed.to_string()]);
    let mut report = None;
    if let Some(front) = front {
        let (wrapped, file) = front.wrap(&command, scratch.path());
        (command, report) = (wrapped, Some(file));
    }
    let mut process = Started::new("bequest", scratch.path(), command);
    let ended = process.end_by(Instant::now() + Duration::from_secs(seconds + 60));
    let ended = ended.unwrap_or_else(|| panic!("hangs\n{}", process.errors_so_far()));
    assert_eq!(ended.code, 0, "{}", tails(&ended.output, &ended.errors));
    eprintln!("{}", ended.output.trim());
    if let Some(report) = report.map(|report| read_report(&report)) {
        let made = ended
            .output
            .split(' ')
            .next()
            .and_then(|n| n.parse::<u64>().ok());
        assert!(
            report.connections.carried >= made.unwrap() / 2,
            "hardly anything was carried: {report:?}"
        );
    }
}

#[test]
fn last_words_native() {
    bequest(None);
}

#[test]
fn last_words_carried() {
    bequest(Some(&Front::new()));
}

/// Python: a process that is both ends of a carried connection, and ends by an ordinary signal.
const TERMINATED: &str = "
import os, signal, socket
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
for i in range(40):
    client.sendall(b'question'); server.recv(8)
    server.sendall(b'answer'); client.recv(8)
os.kill(os.getpid(), signal.SIGTERM)
";

#[test]
fn what_is_left_goes_with_the_next_program() {
    let front = Front::new();
    let python = installed("python3", "python3");
    let python = python.to_str().unwrap();
    let run = |script: &str| {
        let ended = front.sgm(&["run", "--", python, "-c", script]).status();
        ended.unwrap()
    };
    run(TERMINATED);
    assert!(
        contents(front.node()).0 >= 3,
        "a registry, a port and a segment should be left: {:?}",
        contents(front.node())
    );
    // The program that was killed swept as it began, and the next sweep is due a second after that.
    std::thread::sleep(Duration::from_millis(1200));
    assert!(run("import socket; socket.socket()").success());
    assert_eq!(contents(front.node()).0, 1, "the registry alone is left");
}
