//! Why a connection stayed on TCP is told truly, and offers that bring nothing are made ever more seldom.

use std::collections::BTreeMap;
use std::process::Command;

use sgm_tests::front::{Front, Report, read_report};
use sgm_tests::world::{World, free_port};

use crate::{is_root, luck, not_run};

/// `COUNT` connections one after the other, on each `EXCHANGES` of a message and its answer.
const CLIENT: &str = "
import socket, sys
port, count, exchanges = map(int, sys.argv[1:4])
for _ in range(count):
    with socket.create_connection(('127.0.0.1', port)) as s:
        for _ in range(exchanges):
            s.sendall(b'a message')
            assert len(s.recv(9, socket.MSG_WAITALL)) == 9
";

fn python(world: &World, script: &str, arguments: &[&str]) -> Command {
    let arguments = [&["-c", script], arguments].concat();
    world.command("python3", "python3", &arguments)
}

/// Runs the client to its end; gives its own counters.
fn ask(world: &World, port: u16, count: u32, exchanges: u32) -> Report {
    let [port, count, exchanges] = [u32::from(port), count, exchanges].map(|n| n.to_string());
    let report = world.path(&format!("{count}-{exchanges}.json"));
    let command = python(world, CLIENT, &[&port, &count, &exchanges]);
    let mut wrapped = world.front().sgm(&["run", "--report"]);
    wrapped.arg(&report).arg("--").arg(command.get_program());
    let output = wrapped.args(command.get_args()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    read_report(&report)
}

fn counts<const N: usize>(expected: [(&str, u64); N]) -> BTreeMap<String, u64> {
    expected.map(|(word, n)| (word.to_string(), n)).into()
}

/// Four offers in vain double what is asked of a connection; one that lives longer than that is offered all the same.
#[test]
fn offers_in_vain_become_rare() {
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let server = world.serve(luck(&world, &["epoll", &port.to_string()]), port);
    let short = ask(&world, port, 100, 4);
    let offered = 100 - short.reasons.get("held-back").copied().unwrap_or(0);
    assert_eq!(offered, 4, "{short:?}");
    let long = ask(&world, port, 1, 200);
    assert_eq!(long.connections.carried, 1, "{long:?}");
    server.stop();
}

/// A server that nobody told of us has no offers to take, and none are made.
#[test]
fn a_server_without_us() {
    let (world, native) = (World::new(Some(Front::new())), World::new(None));
    let port = free_port();
    let server = native.serve(luck(&native, &["epoll", &port.to_string()]), port);
    let report = ask(&world, port, 5, 20);
    assert_eq!(report.reasons, counts([("peer-not-ours", 5)]));
    server.stop();
}

/// And a client without us offers nothing to a server of ours, which can't know why.
#[test]
fn a_client_without_us() {
    let (world, native) = (World::new(Some(Front::new())), World::new(None));
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    native.run(luck(&native, &["ask", &text, "3", "50", "100"]));
    server.stop();
    let reasons = world.report().reasons;
    assert_eq!(reasons.get("not-offered"), Some(&3), "{reasons:?}");
}

/// As nginx and php-fpm do: listen as root, serve as somebody else, who may not open what clients make.
#[test]
fn a_server_that_becomes_another_user() {
    if !is_root() {
        return not_run("only root can become another user");
    }
    let server = "
import os, socket, sys
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
while True:
    s, _ = listener.accept()
    while data := s.recv(100):
        s.sendall(data)
    s.close()
";
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let server = world.serve(python(&world, server, &[&port.to_string()]), port);
    let report = ask(&world, port, 2, 20);
    assert_eq!(report.reasons, counts([("ended", 2)]));
    server.stop();
    let reasons = world.report().reasons;
    assert_eq!(reasons, counts([("no-node", 2)]));
}

/// As a server that answers and closes at once: it is ours, and comes too late to agree with its client.
#[test]
fn a_server_that_closes_at_once() {
    let server = "
import socket, sys
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
s, _ = listener.accept()
s.sendall(b'!')
told, _ = listener.accept()
assert s.recv(80, socket.MSG_WAITALL) == b'a message.' * 8
s.sendall(b'answer')
s.close()
told.close()
";
    let client = "
import socket, sys
at = ('127.0.0.1', int(sys.argv[1]))
s = socket.create_connection(at)
s.recv(1)
for _ in range(8):
    s.sendall(b'a message.')
done = socket.create_connection(at)
assert done.recv(1) == b''
assert s.recv(10) == b'answer'
";
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(python(&world, server, &[&text]), port);
    world.run(python(&world, client, &[&text]));
    server.ended();
    let reasons = world.report().reasons;
    let expected = counts([("ended", 1), ("withdrawn", 1), ("short", 2)]);
    assert_eq!(reasons, expected);
}

/// Who connects to no address in particular reaches the loopback, and finds who listened there, if not for long.
#[test]
fn a_listener_that_is_gone() {
    let script = "
import socket
for family, at, to in (socket.AF_INET, '127.0.0.1', '0.0.0.0'), (socket.AF_INET6, '::1', '::'):
    listener = socket.create_server((at, 0), family=family)
    client = socket.socket(family)
    client.connect((to, listener.getsockname()[1]))
    server, _ = listener.accept()
    listener.close()
    for _ in range(30):
        client.sendall(b'a message')
        assert server.recv(9) == b'a message'
        server.sendall(b'an answer')
        assert client.recv(9) == b'an answer'
";
    let world = World::new(Some(Front::new()));
    world.run(python(&world, script, &[]));
    let report = world.report();
    assert_eq!(report.connections.carried, 4, "{report:?}");
}
