//! Programs in narrow places: resource limits, and valgrind. What the front may not have, it does without.

use std::process::{Command, Output};

use sgm_tests::front::Front;
use sgm_tests::world::{World, free_port};

use crate::{luck, not_run};

/// A client with the limit that the shell's `ulimit OPTIONS` sets, as its answers and its end.
fn limited(front: Option<&Front>, world: &World, options: &str, port: u16) -> (String, String) {
    let client = luck(world, &["ask", &port.to_string(), "3", "100", "3000"]);
    let script = format!("ulimit {options} && exec \"$@\"");
    let mut command = match front {
        Some(front) => front.sgm(&["run", "--", "sh"]),
        None => Command::new("sh"),
    };
    command.args(["-c", &script, "sh"]);
    command.arg(client.get_program()).args(client.get_args());
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    (text.into_owned(), status.to_string())
}

/// Small files (the front's are larger: a signal kills who asks for them), little address space, few descriptors.
const LIMITS: [&str; 5] = ["-f 0", "-f 100", "-f 4000", "-v 40000", "-n 8"];

#[test]
fn a_limited_client_ends_as_natively() {
    let (native, world) = (World::new(None), World::new(Some(Front::new())));
    let (plain, carried) = (free_port(), free_port());
    let servers = [
        native.serve(luck(&native, &["epoll", &plain.to_string()]), plain),
        world.serve(luck(&world, &["epoll", &carried.to_string()]), carried),
    ];
    for limit in LIMITS {
        let expected = limited(None, &native, limit, plain);
        assert!(
            expected.0.starts_with("3 connections, 100 rounds"),
            "{limit}: {expected:?}"
        );
        let got = limited(Some(world.front()), &world, limit, carried);
        assert_eq!(got, expected, "ulimit {limit}");
    }
    for server in servers {
        server.stop();
    }
}

/// The same where it would be the first to make the registry.
#[test]
fn a_limited_first_program_ends_as_natively() {
    let native = World::new(None);
    let port = free_port();
    let server = native.serve(luck(&native, &["epoll", &port.to_string()]), port);
    for limit in LIMITS {
        let expected = limited(None, &native, limit, port);
        let got = limited(Some(&Front::new()), &native, limit, port);
        assert_eq!(got, expected, "ulimit {limit}");
    }
    server.stop();
}

/// The reason names the limit, not the tmpfs, where no descriptor is left for a ring.
#[test]
fn too_few_descriptors_are_told_as_such() {
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    let client = luck(&world, &["ask", &text, "3", "100", "3000"]);
    let mut command = world.command("sh", "dash", &["-c", "ulimit -n 6 && exec \"$@\"", "sh"]);
    command.arg(client.get_program()).args(client.get_args());
    let ended = world.run(command);
    assert!(ended.output.starts_with("3 connections, 100 rounds"));
    server.stop();
    let reasons = world.report().reasons;
    assert!(reasons.contains_key("limit"), "{reasons:?}");
    assert!(!reasons.contains_key("no-memory"), "{reasons:?}");
}

/// Valgrind runs the front's code too, without the kernel's page of system calls.
#[test]
fn under_valgrind() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return not_run("valgrind is not installed");
    }
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    let client = luck(&world, &["ask", &text, "2", "50", "3000"]);
    let mut checked = world.command("valgrind", "valgrind", &["-q"]);
    checked.arg(client.get_program()).args(client.get_args());
    let ended = world.run(checked);
    assert!(ended.output.starts_with("2 connections, 50 rounds"));
    assert!(!ended.errors.contains("Invalid"), "{}", ended.errors);
    server.stop();
    let report = world.report();
    assert!(report.carried.tx_bytes > 100_000, "{report:?}");
}
