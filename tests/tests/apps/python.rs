//! Python: the standard library's servers and asyncio, with Python clients and curl.

use std::fmt::Write;

use sgm_tests::world::{World, free_port, same_content, twice};

use crate::assert_carried;

/// An echo server of some kind and clients of both kinds, several connections each.
fn echo(world: &World, kind: &str) -> String {
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(world.python("echo_server.py", &[kind, &text]), port);
    let mut answers = String::new();
    for client in ["threads", "asyncio"] {
        answers += &world
            .run(world.python("echo_client.py", &[client, &text, "8", "40"]))
            .output;
    }
    server.stop();
    assert!(!answers.contains("WRONG"), "{answers}");
    answers
}

#[test]
fn socketserver_threading() {
    assert_carried(&twice(|world| echo(world, "threading")), 8 << 20);
}

#[test]
fn socketserver_forking() {
    assert_carried(&twice(|world| echo(world, "forking")), 8 << 20);
}

#[test]
fn asyncio() {
    assert_carried(&twice(|world| echo(world, "asyncio")), 8 << 20);
}

/// Large files are promoted by their size; small ones are over before. How much of a large one went by TCP is the load's
/// to say: up to some megabytes each time.
#[test]
fn http_server() {
    let report = twice(|world| {
        let port = free_port();
        let text = port.to_string();
        let (large, small) = (
            world.random_file("large", 10 << 20),
            world.random_file("small", 1000),
        );
        let server = world.command(
            "python3",
            "python3",
            &["-m", "http.server", "--bind", "127.0.0.1", &text],
        );
        let server = world.serve(server, port);
        let mut answers = String::new();
        for (name, original) in [("large", &large), ("small", &small), ("large", &large)] {
            let url = format!("http://127.0.0.1:{port}/{name}");
            let arguments = [
                "-sS",
                "-o",
                "got",
                "-w",
                "%{http_code} %{size_download}\\n",
                &url,
            ];
            answers += &world.run(world.command("curl", "curl", &arguments)).output;
            writeln!(answers, "{}", same_content(&world.path("got"), original)).unwrap();
        }
        server.stop();
        answers
    });
    assert_carried(&report, 1 << 20);
}

/// A process that stops listening and listens elsewhere is found there, however often.
#[test]
fn listens_again() {
    const SCRIPT: &str = "
import socket
for turn in range(10):
    listener = socket.create_server(('127.0.0.1', 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    for i in range(20):
        client.send(b'%d' % i)
        server.send(server.recv(9))
        print(turn, client.recv(9))
    for s in client, server, listener:
        s.close()
";
    let report = twice(|world| {
        world
            .run(world.command("python3", "python3", &["-c", SCRIPT]))
            .output
    });
    assert_eq!(report.connections.carried, 20, "{report:?}");
}
