//! nginx with two workers and sendfile: small and large files, keep-alive, ranges, a proxy; wrk and curl as clients.

use std::fmt::Write;
use std::fs;

use sgm_tests::world::{Server, World, free_port, same_content, twice};

use crate::assert_carried;

/// Writes the settings of a server on `port`, and returns the arguments that name them.
pub fn configure(world: &World, port: u16, extra: &str) -> [String; 4] {
    let root = world.scratch.path().display();
    // `user root`: the workers stay in the test's trust domain when the test runs as root (else the line is ignored).
    let configuration = format!(
        "user root; worker_processes 2; daemon off; pid {root}/nginx.pid; error_log {root}/error.log;
         events {{ worker_connections 512; }}
         http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; root {root};
                 client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
                 server {{ listen 127.0.0.1:{port}; {extra} }} }}"
    );
    fs::write(world.path("nginx.conf"), configuration).unwrap();
    let file = world.path("nginx.conf");
    let words = ["-p", &root.to_string(), "-c", file.to_str().unwrap()];
    words.map(str::to_string)
}

pub fn serve(world: &World, port: u16, extra: &str) -> Server {
    let arguments = configure(world, port, extra);
    let arguments = arguments.each_ref().map(String::as_str);
    world.serve(world.command("nginx", "nginx-light", &arguments), port)
}

#[test]
fn files() {
    let report = twice(|world| {
        let port = free_port();
        let small = world.random_file("small", 64 << 10);
        let large = world.random_file("large", 50 << 20);
        let server = serve(world, port, "");
        let base = format!("http://127.0.0.1:{port}");
        let mut answers = String::new();
        // One connection for all of them.
        let mut arguments = vec![
            "-sS".to_string(),
            "-w".to_string(),
            "%{http_code} %{size_download} %{num_connects}\\n".to_string(),
        ];
        for (name, file) in [
            ("small", "one"),
            ("small", "two"),
            ("large", "three"),
            ("missing", "four"),
            ("small", "five"),
        ] {
            arguments.extend(["-o".to_string(), file.to_string(), format!("{base}/{name}")]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        answers += &world.run(world.command("curl", "curl", &arguments)).output;
        for (file, original) in [
            ("one", &small),
            ("two", &small),
            ("three", &large),
            ("five", &small),
        ] {
            writeln!(
                answers,
                "{file}: {}",
                same_content(&world.path(file), original)
            )
            .unwrap();
        }
        let range = [
            "-sS",
            "-r",
            "1000000-41000000",
            "-o",
            "part",
            "-w",
            "%{http_code} %{size_download}\\n",
            &format!("{base}/large"),
        ];
        answers += &world.run(world.command("curl", "curl", &range)).output;
        let whole = fs::read(&large).unwrap();
        writeln!(
            answers,
            "the range is right: {}",
            fs::read(world.path("part")).unwrap() == whole[1_000_000..=41_000_000]
        )
        .unwrap();
        server.stop();
        answers
    });
    assert_carried(&report, 70 << 20);
}

#[test]
fn wrk() {
    let report = twice(|world| {
        let port = free_port();
        world.random_file("small", 64 << 10);
        let server = serve(
            world,
            port,
            "location /word { return 200 'a short answer'; }",
        );
        for page in ["small", "word"] {
            let load = [
                "-t",
                "2",
                "-c",
                "20",
                "-d",
                "1s",
                &format!("http://127.0.0.1:{port}/{page}"),
            ];
            let ended = world.run(world.command("wrk", "wrk", &load)).output;
            assert!(
                ended.contains("requests in")
                    && !ended.contains("Socket errors")
                    && !ended.contains("Non-2xx"),
                "{ended}"
            );
        }
        server.stop();
        "no errors".to_string()
    });
    assert_carried(&report, 20 << 20);
}

/// curl to nginx to nginx, both hops over rings; a request body passes in the other direction.
#[test]
fn proxy() {
    let report = twice(|world| {
        let (front, back) = (free_port(), free_port());
        let large = world.random_file("large", 20 << 20);
        let extra = format!(
            "client_max_body_size 0;
             location /through/ {{ proxy_pass http://127.0.0.1:{back}/; proxy_http_version 1.1; proxy_request_buffering off; }} }}
             server {{ listen 127.0.0.1:{back}; client_max_body_size 0; location = /taken {{ return 200 'taken'; }}"
        );
        let server = serve(world, front, &extra);
        let mut answers = String::new();
        let get = [
            "-sS",
            "-o",
            "got",
            "-w",
            "%{http_code}\\n",
            &format!("http://127.0.0.1:{front}/through/large"),
        ];
        answers += &world.run(world.command("curl", "curl", &get)).output;
        writeln!(answers, "{}", same_content(&world.path("got"), &large)).unwrap();
        let post = [
            "-sS",
            "-H",
            "Expect:",
            "--data-binary",
            "@large",
            &format!("http://127.0.0.1:{front}/through/taken"),
        ];
        answers += &world.run(world.command("curl", "curl", &post)).output;
        server.stop();
        answers
    });
    assert_carried(&report, 24 << 20);
}
