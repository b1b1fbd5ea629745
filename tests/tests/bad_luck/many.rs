//! Very many sockets, and idle ones.

use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use sgm_tests::front::Front;
use sgm_tests::world::{Conversation, Server, World, free_port};

use crate::{cpu_ticks, luck, not_run, told};

#[test]
fn three_thousand_connections() {
    const CONNECTIONS: u64 = 3000;
    if getrlimit(Resource::Nofile)
        .maximum
        .is_some_and(|most| most < CONNECTIONS + 100)
    {
        return not_run("the limit of open files is too low");
    }
    let answers = |world: &World, kind: &str| {
        let port = free_port();
        let text = port.to_string();
        let server = world.serve(luck(world, &[kind, &text]), port);
        let ended = world.run(luck(
            world,
            &["ask", &text, &CONNECTIONS.to_string(), "20", "300"],
        ));
        // It has seen the ends of all connections when it has no descriptor of one any more.
        let process = server.process.program_id().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::fs::read_dir(format!("/proc/{process}/fd"))
            .unwrap()
            .count()
            > 10
        {
            assert!(
                server.process.runs_after(Duration::from_millis(5)) && Instant::now() < deadline
            );
        }
        server.stop();
        ended
    };
    let native = answers(&World::new(None), "epoll");
    let world = World::new(Some(Front::new()));
    assert_eq!(answers(&world, "epoll"), native);
    let report = world.report();
    assert_eq!(report.connections.seen, 2 * CONNECTIONS, "{report:?}");
    assert_eq!(report.connections.carried, 2 * CONNECTIONS, "{report:?}");
    assert_eq!(report.connections.tcp, 0, "{report:?}");
    assert_eq!(
        report.carried.tx_bytes, report.carried.rx_bytes,
        "{report:?}"
    );
    // Doorbells may lie unread when a connection ends.
    let unread = report.tcp.tx_bytes - report.tcp.rx_bytes;
    assert!(unread <= report.carried.bells_sent, "{report:?}");
    assert!(
        report.carried.tx_messages >= 2 * CONNECTIONS * 12,
        "{report:?}"
    );
    assert!(report.reasons.is_empty(), "{report:?}");
    // A set that is awake is not rung for, and one bell wakes it for all.
    assert!(report.carried.port_bells > 0, "{report:?}");
    assert!(
        report.carried.bells_sent * 10 < report.carried.tx_messages,
        "{report:?}"
    );
}

/// A server with promoted, idle clients burns nothing, and neither do they.
fn idle(world: &World, server: &Server, clients: &[Conversation], expected_ends: usize) {
    let (status, _) = told(world.front().sgm(&["status"]));
    assert_eq!(
        status.matches(" shm ").count(),
        expected_ends,
        "not promoted:\n{status}"
    );
    let mut processes = vec![server.process.program_id().unwrap()];
    processes.extend(
        clients
            .iter()
            .map(|client| client.process.program_id().unwrap()),
    );
    let ticks = || {
        processes
            .iter()
            .map(|process| cpu_ticks(*process))
            .collect::<Vec<_>>()
    };
    let percent = || {
        let (start, before) = (Instant::now(), ticks());
        assert!(server.process.runs_after(Duration::from_secs(3)));
        let (seconds, after) = (start.elapsed().as_secs_f64(), ticks());
        let used = before.iter().zip(after);
        used.map(|(before, after)| (after - before) as f64 / seconds)
            .collect::<Vec<_>>()
    };
    // What burns burns in every window; a single one may hold what a busy host charged to the wrong program, and a tick is 10 ms.
    let mut least = percent();
    for _ in 0..3 {
        eprintln!("idle server and clients: {least:.2?} % of a processor");
        if least.iter().all(|percent| *percent < 1.0) {
            return;
        }
        for (least, again) in least.iter_mut().zip(percent()) {
            *least = least.min(again);
        }
    }
    panic!("an idle server or client uses {least:.2?} %");
}

#[test]
fn idle_redis() {
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let text = port.to_string();
    let arguments = [
        "--port",
        &text,
        "--save",
        "",
        "--bind",
        "127.0.0.1",
        "--logfile",
        "redis.log",
        "--hz",
        "1",
    ];
    let server = world.serve(
        world.command("redis-server", "redis-server", &arguments),
        port,
    );
    let mut clients: Vec<Conversation> = (0..4)
        .map(|_| world.converse(world.command("redis-cli", "redis-tools", &["-p", &text])))
        .collect();
    for client in &mut clients {
        for i in 0..30 {
            assert_eq!(client.ask(&format!("SET key value{i}")), "OK");
        }
    }
    idle(&world, &server, &clients, 8);
    for mut client in clients {
        assert_eq!(client.ask("GET key"), "value29");
        client.end();
    }
    server.stop();
}

#[test]
fn idle_servers_in_c() {
    let world = World::new(Some(Front::new()));
    for kind in ["epoll", "threads"] {
        let port = free_port();
        let text = port.to_string();
        let server = world.serve(luck(&world, &[kind, &text]), port);
        let mut client = world.converse(luck(&world, &["hold", &text, "50"]));
        assert_eq!(client.next_line(), "held");
        let clients = [client];
        idle(&world, &server, &clients, 100);
        let [client] = clients;
        client.end();
        server.stop();
    }
}

/// A program that inherits very many sockets starts in a time that grows as their number does; beyond what the node has room to
/// tell of, they are plain TCP.
#[test]
fn very_many_are_inherited() {
    const FEW: u64 = 1500;
    const MANY: u64 = 4 * FEW;
    if getrlimit(Resource::Nofile)
        .maximum
        .is_some_and(|most| most < MANY + 100)
    {
        return not_run("the limit of open files is too low");
    }
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    let took_us = |sockets: u64| {
        let ended = world.run(luck(&world, &["heirs", &text, &sockets.to_string()]));
        let (time, rest) = ended.output.split_once(" us\n").unwrap();
        assert_eq!(rest, "inherited\n");
        time.parse::<u64>().unwrap()
    };
    let (few, many) = (took_us(FEW), took_us(MANY));
    eprintln!("{FEW} sockets: {few} us, {MANY}: {many} us");
    assert!(
        many < 4 * (few * MANY / FEW),
        "{FEW} sockets: {few} us, {MANY}: {many} us"
    );
    server.stop();
}
