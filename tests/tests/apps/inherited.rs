//! Programs whose connections are inherited by others: bash's /dev/tcp, a server behind a super-server, rsync's daemon, node's
//! cluster.

use std::fmt::Write;
use std::fs;

use sgm_tests::paths::installed;
use sgm_tests::process::Ended;
use sgm_tests::world::{Server, World, free_port, twice};

use crate::{assert_carried, assert_reason};

/// systemd's stand-in for its own socket activation, by hand: each connection becomes 0, 1 and 2 of a fresh `program`.
fn activated(world: &World, port: u16, program: &[&str]) -> Server {
    let at = format!("127.0.0.1:{port}");
    let arguments = ["--accept", "--inetd", "-l", &at];
    let mut command = world.command("systemd-socket-activate", "systemd", &arguments);
    command.args(program);
    world.serve(command, port)
}

/// `nc -N` sends `input` and reads slowly.
fn slow_reader(world: &World, port: u16, input: &[u8]) -> Ended {
    installed("nc", "netcat-openbsd");
    let script = "nc -N 127.0.0.1 $1 | split -b 1M --filter='cat; /bin/sleep 0.01' -";
    world.run_with_input(world.shell(script, &[&port.to_string()]), input)
}

/// Lines of text, no two of which are alike.
fn lines(count: u32) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        writeln!(text, "line {number} {:x}", number.wrapping_mul(0x9e37_79b9)).unwrap();
        text
    })
}

#[test]
fn cat_on_a_socket_and_a_slow_reader() {
    let report = twice(|world| {
        let port = free_port();
        let server = activated(world, port, &["/bin/cat"]);
        let text = lines(500_000);
        for round in 0..2 {
            let copy = slow_reader(world, port, text.as_bytes()).output;
            assert!(
                copy == text,
                "round {round}: {} of {} bytes came back",
                copy.len(),
                text.len()
            );
        }
        server.stop();
        "twice the same bytes".to_string()
    });
    assert_carried(&report, 8 << 20);
}

/// The shell on the socket starts programs between the lines; none of them touches it.
#[test]
fn script_on_a_socket() {
    const SCRIPT: &str = "while read -r line; do /bin/true; echo \"$line\"; done; /bin/echo end";
    let report = twice(|world| {
        let port = free_port();
        let server = activated(world, port, &["/bin/sh", "-c", SCRIPT]);
        let text = lines(300);
        let answer = slow_reader(world, port, text.as_bytes()).output;
        server.stop();
        assert_eq!(answer, text + "end\n");
        "all lines".to_string()
    });
    // The client shuts its sending before the connection is worth an offer.
    assert_reason(&report, "shutdown");
}

/// A script reads lines, starts a program, and reads on. Its server starts one for each line, so that both get to the rings.
#[test]
fn bash_over_dev_tcp() {
    const SERVER: &str = "
n=0
while [ $((n += 1)) -le 300 ]; do /bin/echo line $n; done | exec nc -N -l 127.0.0.1 $1
";
    const CLIENT: &str = "
exec 3<>/dev/tcp/127.0.0.1/$1
while read -r -u 3 line; do
    echo \"$line\"
    ((++n % 20)) || /bin/sleep 0.01
done
";
    let report = twice(|world| {
        let port = free_port();
        let text = port.to_string();
        installed("nc", "netcat-openbsd");
        let server = world.serve(world.shell(SERVER, &[&text]), port);
        let client = ["-c", CLIENT, "bash", &text];
        let answer = world.run(world.command("bash", "bash", &client)).output;
        server.ended();
        answer
    });
    assert_carried(&report, 1000);
}

#[test]
fn rsync_daemon() {
    let report = twice(|world| {
        let port = free_port();
        for name in ["source", "copy", "there"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        for number in 0..200 {
            world.random_file(&format!("source/{number}"), number * 150);
        }
        world.random_file("source/large", 8 << 20);
        let root = world.scratch.path().display();
        let settings = format!(
            "use chroot = no\n[source]\npath = {root}/source\n[there]\npath = {root}/there\nread only = no\n"
        );
        // Root's daemon serves as nobody otherwise.
        let user = if rustix::process::geteuid().is_root() {
            "uid = root\ngid = root\n"
        } else {
            ""
        };
        fs::write(world.path("rsyncd.conf"), format!("{user}{settings}")).unwrap();
        let daemon = [
            "--daemon",
            "--no-detach",
            "--config=rsyncd.conf",
            "--address=127.0.0.1",
            &format!("--port={port}"),
        ];
        let server = world.serve(world.command("rsync", "rsync", &daemon), port);
        let at = format!("rsync://127.0.0.1:{port}");
        for arguments in [
            ["-a", &format!("{at}/source/"), "copy/"],
            ["-az", "source/", &format!("{at}/there/")],
        ] {
            world.run(world.command("rsync", "rsync", &arguments));
        }
        server.stop();
        for copy in ["copy", "there"] {
            let same = ["-r", "source", copy];
            world.run(world.command("diff", "diffutils", &same));
        }
        "the same files, there and back".to_string()
    });
    assert_carried(&report, 12 << 20);
}

/// The first process accepts, and passes each connection to a worker by a message.
#[test]
fn node_cluster() {
    const SCRIPT: &str = "
const cluster = require('node:cluster');
if (cluster.isPrimary) {
  cluster.schedulingPolicy = cluster.SCHED_RR;
  cluster.fork();
  cluster.fork();
} else {
  const echo = socket => { socket.on('error', () => {}); socket.pipe(socket); };
  require('node:net').createServer(echo).listen(+process.argv[2], '127.0.0.1');
}
";
    let report = twice(|world| {
        let port = free_port();
        let text = port.to_string();
        fs::write(world.path("cluster.js"), SCRIPT).unwrap();
        let server = world.command("node", "nodejs", &["cluster.js", &text]);
        let server = world.serve(server, port);
        let answers = world.run(world.python("echo_client.py", &["threads", &text, "8", "40"]));
        server.stop();
        assert!(!answers.output.contains("WRONG"), "{}", answers.output);
        answers.output
    });
    assert_carried(&report, 4 << 20);
}
