//! What killed processes leave behind: it harms nobody, the doctor sees it, and removes it when told to.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sgm_tests::front::{Front, read_report};
use sgm_tests::process::Started;
use sgm_tests::world::{Server, World, free_port};

use crate::{luck, open_sockets, told};

/// Under the front as a daemon would be, with no `sgm` waiting for its end that would tidy up.
fn bare(front: &Front, world: &World, arguments: &[&str]) -> Started {
    let program = luck(world, arguments);
    let mut command = front.sgm(&["run", "--"]);
    command.arg(program.get_program()).args(program.get_args());
    command.stdin(std::process::Stdio::piped());
    Started::new(
        &format!("bare-{}", arguments.join("-")),
        world.scratch.path(),
        command,
    )
}

fn await_output(process: &Started, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !process.output_so_far().contains(text) {
        assert!(
            process.runs_after(Duration::from_millis(2)) && Instant::now() < deadline,
            "{}",
            process.errors_so_far()
        );
    }
}

/// A peer that dies while the connection is promoted has ended all the same, for each way of waiting for it.
#[test]
fn death_at_every_step_of_promotion() {
    for kind in ["epoll", "threads"] {
        let world = World::new(Some(Front::new()));
        let port = free_port();
        let text = port.to_string();
        let server = world.serve(luck(&world, &[kind, &text]), port);
        let process = server.process.program_id().unwrap();
        let open = || open_sockets(process);
        let before = open();
        assert_eq!(
            world.run(luck(&world, &["leave", &text])).output,
            "all left\n"
        );
        let deadline = Instant::now() + Duration::from_secs(30);
        while open() > before {
            assert!(
                server.process.runs_after(Duration::from_millis(5)) && Instant::now() < deadline,
                "{kind}: {} connections of the dead are never closed",
                open() - before
            );
        }
        server.stop();
        let connections = world.report().connections;
        assert!(
            connections.carried > 10 && connections.tcp > 10,
            "{connections:?}"
        );
    }
}

/// A server and a client with carried connections, both killed. Returns the server's port.
fn two_deaths(world: &World) -> u16 {
    let port = free_port();
    let text = port.to_string();
    let mut server = Server::listening(bare(world.front(), world, &["epoll", &text]), port);
    let mut client = bare(world.front(), world, &["hold", &text, "5"]);
    await_output(&client, "held");
    let (status, _) = told(world.front().sgm(&["status"]));
    assert_eq!(
        status.matches(" shm ").count(),
        10,
        "five connections with two ends each:\n{status}"
    );
    for process in [&mut server.process, &mut client] {
        process.signal(Signal::KILL);
        assert_eq!(
            process
                .end_by(Instant::now() + Duration::from_secs(30))
                .unwrap()
                .code,
            137
        );
    }
    port
}

fn files(front: &Front, prefix: &str) -> usize {
    let names = fs::read_dir(front.node()).unwrap().flatten();
    names
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .count()
}

#[test]
fn restart_on_the_same_node() {
    let world = World::new(Some(Front::new()));
    let port = two_deaths(&world);
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    let ended = world.run(luck(&world, &["ask", &text, "4", "50", "5000"]));
    server.stop();
    assert!(ended.output.starts_with("4 connections, 50 rounds"));
    let report = world.report();
    assert_eq!(report.connections.carried, 8, "{report:?}");
    assert!(report.carried.tx_bytes > 500_000, "{report:?}");
}

#[test]
fn the_doctor_finds_and_removes_them() {
    let world = World::new(Some(Front::new()));
    two_deaths(&world);
    let front = world.front();
    let (text, code) = told(front.sgm(&["doctor"]));
    assert!(
        text.contains("2 ports of dead processes") && text.contains("sgm doctor --clean"),
        "{text}"
    );
    assert!(
        !text.contains(" 0 stale registry entries"),
        "the listener is stale:\n{text}"
    );
    assert_eq!(code, 0, "leftovers harm nobody:\n{text}");
    let (text, _) = told(front.sgm(&["status"]));
    assert!(text.contains("no live connections"), "{text}");

    let (text, code) = told(front.sgm(&["doctor", "--clean"]));
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("0 ports of dead processes, 0 stale registry entries"),
        "{text}"
    );
    for prefix in ["port-", "seg-", "new-", "probe-"] {
        assert_eq!(files(front, prefix), 0, "{prefix}");
    }
}

/// Cleaning while programs live takes nothing from them.
#[test]
fn cleaning_beside_the_living() {
    let world = World::new(Some(Front::new()));
    two_deaths(&world);
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    let mut client = world.converse(luck(&world, &["talk", &text]));
    assert_eq!(client.next_line(), "warm");
    told(world.front().sgm(&["doctor", "--clean"]));
    assert_eq!(client.ask("again"), "right");
    let (status, _) = told(world.front().sgm(&["status"]));
    assert_eq!(status.matches(" shm ").count(), 2, "{status}");
    client.end();
    server.stop();
    assert_eq!(world.report().connections.carried, 2);
}

/// The registry says that a listener of ours is there; a stranger has its port now.
#[test]
fn a_stranger_on_the_dead_ones_port() {
    let (world, native) = (World::new(Some(Front::new())), World::new(None));
    for kind in ["epoll", "threads"] {
        let port = two_deaths(&world);
        let text = port.to_string();
        let server = native.serve(luck(&native, &[kind, &text]), port);
        let timed = |world: &World| {
            let start = Instant::now();
            let ended = world.run(luck(world, &["ask", &text, "5", "200", "2000"]));
            (ended, start.elapsed())
        };
        // A wait for an answer that does not come is there every time; a busy machine's ups and downs are not.
        let mut times = Vec::new();
        let prompt = (0..5).any(|_| {
            let (expected, plain_time) = timed(&native);
            let (got, time) = timed(&world);
            assert_eq!(expected, got);
            times.push((time, plain_time));
            time < plain_time * 3 + Duration::from_millis(500)
        });
        server.stop();
        assert!(prompt, "under the front, and natively: {times:?}");
    }
    let report = world.report();
    assert_eq!(report.carried.tx_bytes, 0, "{report:?}");
    assert!(!report.reasons.is_empty(), "{report:?}");
}

/// A program that is killed under `sgm run --report` is in its report, and leaves nothing.
#[test]
fn a_report_of_a_killed_program() {
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    let program = luck(&world, &["hold", &text, "3"]);
    let (mut command, report) = world.front().wrap(&program, world.scratch.path());
    command.stdin(std::process::Stdio::piped());
    let mut client = Started::new("killed", world.scratch.path(), command);
    await_output(&client, "held");
    let program = rustix::process::Pid::from_raw(client.program_id().unwrap() as i32).unwrap();
    rustix::process::kill_process(program, Signal::KILL).unwrap();
    let ended = client
        .end_by(Instant::now() + Duration::from_secs(30))
        .expect("sgm ends with its program");
    assert_eq!(ended.code, 137);
    let report = read_report(&report);
    assert_eq!(report.connections.carried, 3, "{report:?}");
    assert!(report.carried.tx_bytes >= 3 * 16 * 16, "{report:?}");
    server.stop();
    assert_eq!(files(world.front(), "port-"), 0);
}
