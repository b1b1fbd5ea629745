//! Windows servers with Linux clients: nginx, websocat, gdbserver; node with a client of its own kind.

use std::fmt::Write;
use std::fs;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use sgm_tests::world::{Server, free_port, same_content};

use crate::stage::{Stage, twice, twice_carried, z};
use crate::things::repository;

const START_LIMIT: Duration = Duration::from_secs(60);

/// nginx for Windows: a master that only watches, and a worker with select.
fn nginx(stage: &Stage, port: u16) -> Server {
    for directory in ["conf", "logs", "temp", "html"] {
        fs::create_dir_all(stage.file(directory)).unwrap();
    }
    let configuration = format!(
        "worker_processes 1; daemon off; error_log logs/error.log; events {{ worker_connections 256; }}
         http {{ access_log off; keepalive_requests 100000;
                 server {{ listen 127.0.0.1:{port}; root html; location /word {{ return 200 'a short answer'; }} }} }}"
    );
    fs::write(stage.file("conf/nginx.conf"), configuration).unwrap();
    let mut command = stage.windows("nginx", "nginx.exe");
    command.args(["-p", ".", "-c", "conf/nginx.conf"]);
    let server = stage.serve("nginx", command, port);
    // The master listens first, to see whether it can, and stops before the worker does it again.
    let deadline = Instant::now() + START_LIMIT;
    while !answers_word(port) {
        assert!(
            server.process.runs_after(Duration::from_millis(3)) && Instant::now() < deadline,
            "nginx does not answer"
        );
    }
    server
}

fn answers_word(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(START_LIMIT))?;
        stream.write_all(b"GET /word HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[test]
fn nginx_curl() {
    // The kernel's buffers may take the whole first file before the server's next call: the second one is carried.
    twice_carried(3 << 20, |stage| {
        let port = free_port();
        let server = nginx(stage, port);
        let large = stage.world.random_file("html/large", 3 << 20);
        let address = |page: &str| format!("http://127.0.0.1:{port}/{page}");
        let mut curl = stage.world.command(
            "curl",
            "curl",
            &[
                "-sS",
                "-w",
                "%{http_code} %{size_download} %{num_connects}\\n",
            ],
        );
        // One connection for all of them.
        for (page, file) in [
            ("large", "one"),
            ("word", "two"),
            ("missing", "three"),
            ("large", "four"),
        ] {
            curl.args(["-o", file]).arg(address(page));
        }
        let mut answers = stage.world.run(curl).output;
        for file in ["one", "four"] {
            let same = same_content(&stage.file(file), &large);
            writeln!(answers, "{file}: {same}").unwrap();
        }
        server.stop();
        answers
    });
}

#[test]
fn nginx_wrk() {
    twice_carried(1 << 20, |stage| {
        let port = free_port();
        let server = nginx(stage, port);
        stage.world.random_file("html/small", 20_000);
        for page in ["small", "word"] {
            let address = format!("http://127.0.0.1:{port}/{page}");
            let load = [
                "-t",
                "1",
                "-c",
                "8",
                "-d",
                "2s",
                "--timeout",
                "10s",
                &address,
            ];
            let output = stage
                .world
                .run(stage.world.command("wrk", "wrk", &load))
                .output;
            println!("{output}");
            assert!(
                output.contains("requests in")
                    && !output.contains("Socket errors")
                    && !output.contains("Non-2xx"),
                "{output}"
            );
        }
        server.stop();
        "no errors".to_string()
    });
}

/// websocat as a mirror of TCP: Rust's mio on a completion port.
#[test]
fn websocat() {
    twice(|stage| {
        let port = free_port();
        let mut command = stage.windows("websocat", "websocat.exe");
        command.args(["-b", "-E", &format!("tcp-l:127.0.0.1:{port}"), "mirror:"]);
        let server = stage.serve("websocat", command, port);
        let client = ["threads", &port.to_string(), "4", "20"];
        let answers = stage
            .world
            .run(stage.world.python("echo_client.py", &client))
            .output;
        server.stop();
        assert!(!answers.contains("WRONG"), "{answers}");
        answers
    });
}

/// A debugger's remote protocol: short blocking questions and answers.
#[test]
fn gdbserver() {
    twice_carried(40_000, |stage| {
        let port = free_port();
        let mut command = stage.windows("gdbserver", "gdbserver.exe");
        let debugged = r"C:\windows\system32\hostname.exe";
        command.args(["--once", &format!("127.0.0.1:{port}"), debugged]);
        let server = stage.serve("gdbserver", command, port);
        let mut client = stage.world.command("python3", "python3", &["-B"]);
        client
            .arg(repository("gdb_client.py"))
            .arg(port.to_string());
        let answers = stage.world.run(client).output;
        server.ended();
        answers
    });
}

/// node with HTTP over kept-alive connections and plain streams, between two processes: libuv, all of it overlapped.
#[test]
fn node() {
    twice(|stage| {
        let (http, net) = (free_port(), free_port());
        let node = |role: &str| {
            let mut command = stage.windows("node", "node.exe");
            // The prefix is a Windows 7, which node would refuse.
            command.env("NODE_SKIP_PLATFORM_CHECK", "1");
            command.arg(z(&repository("node.js")));
            command.args([role, &http.to_string(), &net.to_string()]);
            command
        };
        let server = stage.serve("server", node("server"), http);
        let answers = stage.run("client", node("client")).output;
        server.ended();
        answers
    });
}
