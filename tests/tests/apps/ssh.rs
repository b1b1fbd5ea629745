//! sshd, which executes itself anew for each connection: scp, and a forwarded port.

use std::fs;

use sgm_tests::paths::installed;
use sgm_tests::process::Started;
use sgm_tests::world::{Server, World, free_port, same_content, twice};

use crate::assert_carried;

/// A daemon for whoever runs the test, with keys of its own.
fn serve(world: &World, port: u16) -> Server {
    for key in ["host", "user"] {
        let arguments = ["-q", "-t", "ed25519", "-N", "", "-f", key];
        world.run(world.command("ssh-keygen", "openssh-client", &arguments));
    }
    let root = world.scratch.path().display();
    let settings = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {root}/host\nAuthorizedKeysFile {root}/user.pub\n\
         StrictModes no\nPidFile none\nUsePAM no\nSubsystem sftp internal-sftp\n"
    );
    fs::write(world.path("sshd.conf"), settings).unwrap();
    if rustix::process::geteuid().is_root() {
        // As its service makes it.
        fs::create_dir_all("/run/sshd").unwrap();
    }
    let file = world.path("sshd.conf");
    let daemon = ["-D", "-e", "-f", file.to_str().unwrap()];
    world.serve(world.command("sshd", "openssh-server", &daemon), port)
}

/// What the clients have in common: the key, the host as it is, and nothing of the user's own settings.
const OPTIONS: [&str; 12] = [
    "-F",
    "none",
    "-i",
    "user",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "LogLevel=ERROR",
    "-o",
    "IdentitiesOnly=yes",
];

fn user() -> String {
    let mut id = Started::command(installed("id", "coreutils"));
    let name = id.arg("-un").output().unwrap().stdout;
    String::from_utf8(name).unwrap().trim_end().to_string()
}

#[test]
fn scp() {
    let report = twice(|world| {
        let port = free_port();
        let server = serve(world, port);
        let file = world.random_file("file", 16 << 20);
        let there = format!("{}@127.0.0.1:{}", user(), world.path("there").display());
        let text = port.to_string();
        for ends in [["file", &there], [&there, "back"]] {
            let mut client = world.command("scp", "openssh-client", &OPTIONS);
            client.args(["-q", "-P", &text]).args(ends);
            world.run(client);
        }
        server.stop();
        let copies = ["there", "back"].map(|name| same_content(&file, &world.path(name)));
        copies.join(", ")
    });
    // sshd goes into a sandbox, and becomes another user: the front withdraws at the one or the other.
    let withdrawn = ["unsupported-call", "no-node"];
    let told = |why: &&str| report.reasons.contains_key(*why);
    assert!(withdrawn.iter().any(told), "{report:?}");
}

/// nc to ssh, ssh to sshd, sshd to an echo server: the second, on descriptor 0 of sshd, is its sandbox's.
#[test]
fn forwarded_port() {
    let report = twice(|world| {
        let (port, near, far) = (free_port(), free_port(), free_port());
        let server = serve(world, port);
        let listen = format!("TCP-LISTEN:{far},reuseaddr,fork,bind=127.0.0.1");
        let echo = world.command("socat", "socat", &[&listen, "EXEC:cat"]);
        let echo = world.serve(echo, far);
        let mut tunnel = world.command("ssh", "openssh-client", &OPTIONS);
        tunnel
            .args(["-N", "-p", &port.to_string()])
            .args(["-L", &format!("127.0.0.1:{near}:127.0.0.1:{far}")])
            .arg(format!("{}@127.0.0.1", user()));
        let tunnel = world.serve(tunnel, near);
        let content = fs::read(world.random_file("file", 8 << 20)).unwrap();
        installed("nc", "netcat-openbsd");
        for round in 0..2 {
            let client = world.shell("exec nc -N 127.0.0.1 $1 > copy", &[&near.to_string()]);
            world.run_with_input(client, &content);
            let copy = fs::read(world.path("copy")).unwrap();
            assert!(copy == content, "round {round}: other bytes came back");
        }
        for process in [tunnel, echo, server] {
            process.stop();
        }
        "twice the same bytes".to_string()
    });
    assert_carried(&report, 16 << 20);
}
