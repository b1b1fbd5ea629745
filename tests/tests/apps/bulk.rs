//! Programs that move or measure bytes: iperf3, sockperf, socat, nc.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;
use sgm_tests::world::{World, free_port, same_content, twice};

use crate::assert_carried;

/// One iperf3 measurement; the answer is that both sides agree about the bytes of each stream.
fn iperf3(world: &World, host: &str, arguments: &[&str]) -> String {
    let port = free_port().to_string();
    let server = world.command("iperf3", "iperf3", &["-s", "-1", "-B", host, "-p", &port]);
    let server = world.serve(server, port.parse().unwrap());
    let mut client = world.command("iperf3", "iperf3", &["-c", host, "-p", &port, "-J"]);
    client.args(arguments);
    let result: Value = serde_json::from_str(&world.run(client).output).unwrap();
    assert!(result.get("error").is_none(), "{result}");
    server.ended();
    let sum = |side: &str| result["end"][side]["bytes"].as_u64().unwrap();
    let streams = result["end"]["streams"].as_array().unwrap().len();
    // The receiver stops counting when the time is up, with a little on the way.
    assert!(
        sum("sum_received") <= sum("sum_sent") && sum("sum_received") > sum("sum_sent") / 2,
        "{result}"
    );
    format!("{streams} streams")
}

#[test]
fn iperf3_one_stream() {
    assert_carried(
        &twice(|world| iperf3(world, "127.0.0.1", &["-n", "200M"])),
        190 << 20,
    );
}

#[test]
fn iperf3_four_streams() {
    assert_carried(
        &twice(|world| iperf3(world, "127.0.0.1", &["-n", "200M", "-P", "4"])),
        100 << 20,
    );
}

#[test]
fn iperf3_reverse() {
    assert_carried(
        &twice(|world| iperf3(world, "127.0.0.1", &["-n", "200M", "-R"])),
        190 << 20,
    );
}

#[test]
fn iperf3_ipv6_zero_copy() {
    assert_carried(
        &twice(|world| iperf3(world, "::1", &["-6", "-n", "100M", "-Z"])),
        90 << 20,
    );
}

#[test]
fn iperf3_both_ways() {
    assert_carried(
        &twice(|world| iperf3(world, "127.0.0.1", &["-n", "100M", "--bidir"])),
        100 << 20,
    );
}

fn sockperf(world: &World, kind: &str, multiplexer: &str) -> String {
    let port = free_port().to_string();
    // A file with the connection, so that the server waits by the chosen call.
    fs::write(world.path("feed"), format!("T:127.0.0.1:{port}\n")).unwrap();
    let server = world.command(
        "sockperf",
        "sockperf",
        &["server", "-f", "feed", "-F", multiplexer],
    );
    let server = world.serve(server, port.parse().unwrap());
    let client = [
        "--tcp",
        "-i",
        "127.0.0.1",
        "-p",
        &port,
        "-t",
        "1",
        "-m",
        "64",
    ];
    let mut command = world.command("sockperf", "sockperf", &[kind]);
    command.args(client);
    let text = world.run(command).output;
    server.stop_by(Signal::INT);
    if kind == "throughput" {
        assert!(text.contains("Summary: Message Rate is"), "{text}");
        return "measured".to_string();
    }
    let number = |name: &str| -> u64 {
        let total = text
            .lines()
            .find(|line| line.contains("[Total Run]"))
            .unwrap_or_else(|| panic!("{text}"));
        let rest = total.split(&format!("{name}=")).nth(1).unwrap();
        rest.split(|letter: char| !letter.is_ascii_digit())
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    let (sent, received) = (number("SentMessages"), number("ReceivedMessages"));
    assert!(received > 100 && sent - received <= 1, "{text}");
    "every message was answered".to_string()
}

#[test]
fn sockperf_ping_pong_epoll() {
    assert_carried(&twice(|world| sockperf(world, "ping-pong", "e")), 100_000);
}

#[test]
fn sockperf_ping_pong_select() {
    assert_carried(&twice(|world| sockperf(world, "ping-pong", "s")), 100_000);
}

#[test]
fn sockperf_throughput() {
    assert_carried(&twice(|world| sockperf(world, "throughput", "e")), 1 << 20);
}

#[test]
fn socat_one_way() {
    let report = twice(|world| {
        let port = free_port();
        let file = world.random_file("file", 20 << 20);
        let listen = format!("TCP-LISTEN:{port},reuseaddr,bind=127.0.0.1");
        let server = world.serve(
            world.command("socat", "socat", &["-u", &listen, "OPEN:copy,creat,trunc"]),
            port,
        );
        world.run(world.command(
            "socat",
            "socat",
            &["-u", "OPEN:file", &format!("TCP:127.0.0.1:{port}")],
        ));
        server.ended();
        same_content(&file, &world.path("copy")).to_string()
    });
    assert_carried(&report, 4 << 20);
}

/// The listening socat forks for each connection and its child runs cat behind a socket pair.
#[test]
fn socat_fork_and_exec() {
    let report = twice(|world| {
        let port = free_port();
        let file = world.random_file("file", 16 << 20);
        let listen = format!("TCP-LISTEN:{port},reuseaddr,fork,bind=127.0.0.1");
        let server = world.serve(
            world.command("socat", "socat", &[&listen, "EXEC:cat"]),
            port,
        );
        let content = fs::read(file).unwrap();
        for round in 0..2 {
            let script = "exec socat -t 20 - TCP:127.0.0.1:$1 > copy";
            let client = world.command("sh", "dash", &["-c", script, "sh", &port.to_string()]);
            world.run_with_input(client, &content);
            let copy = fs::read(world.path("copy")).unwrap();
            assert!(copy == content, "round {round}: other bytes came back");
        }
        server.stop();
        "twice the same bytes".to_string()
    });
    assert_carried(&report, 16 << 20);
}

#[test]
fn netcat() {
    let report = twice(|world| {
        let port = free_port();
        let text = port.to_string();
        let file = world.random_file("file", 10 << 20);
        let server = world.command(
            "sh",
            "dash",
            &["-c", "exec nc -l 127.0.0.1 $1 > copy", "sh", &text],
        );
        sgm_tests::paths::installed("nc", "netcat-openbsd");
        let server = world.serve(server, port);
        let content = fs::read(&file).unwrap();
        world.run_with_input(
            world.command("nc", "netcat-openbsd", &["-N", "127.0.0.1", &text]),
            &content,
        );
        server.ended();
        same_content(&file, &world.path("copy")).to_string()
    });
    assert_carried(&report, 4 << 20);
}
