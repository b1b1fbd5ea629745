//! Servers whose processes all accept on one listener: PHP-FPM behind nginx, gunicorn.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use sgm_tests::paths::installed;
use sgm_tests::world::{World, free_port, twice};

use crate::{assert_carried, nginx};

/// Debian's program has the version in its name.
fn php_fpm() -> PathBuf {
    let place = |minor| PathBuf::from(format!("/usr/sbin/php-fpm8.{minor}"));
    let found = (0..10).rev().map(place).find(|file| file.exists());
    found.unwrap_or_else(|| installed("php-fpm", "php-fpm"))
}

/// Posts a file to `url` some times, each over a connection of its own, and tells of the answers.
fn post(world: &World, url: &str) -> String {
    let mut answers = String::new();
    for round in 0..4 {
        let kind = "Content-Type: application/octet-stream";
        let arguments = [
            "-sS",
            "--fail",
            "-H",
            "Expect:",
            "-H",
            kind,
            "--data-binary",
            "@posted",
            url,
        ];
        let answer = world.run(world.command("curl", "curl", &arguments)).output;
        let (first, last) = (answer.lines().next(), answer.lines().last());
        writeln!(
            answers,
            "{round}: {} bytes, {first:?} to {last:?}",
            answer.len()
        )
        .unwrap();
    }
    answers
}

/// Its processes accept in turn, and keep nginx's connections; a script starts a program in the middle of an answer.
#[test]
fn php() {
    const SCRIPT: &str = "<?php
echo md5(file_get_contents('php://input')), \"\\n\";
for ($i = 0; $i < 10000; $i++) echo \"line $i \", str_repeat('x', $i % 90), \"\\n\";
flush();
system('/bin/echo from a program');
for ($i = 0; $i < 1000; $i++) echo \"line $i\\n\";
";
    let report = twice(|world| {
        let (web, port) = (free_port(), free_port());
        world.random_file("posted", 8 << 20);
        fs::write(world.path("page.php"), SCRIPT).unwrap();
        let root = world.scratch.path().display();
        // The first user's name is read by root's alone.
        let settings = format!(
            "[global]\nerror_log = {root}/fpm.log\ndaemonize = no\n[pool]\nuser = root\ngroup = root\n\
             listen = 127.0.0.1:{port}\npm = static\npm.max_children = 3\npm.max_requests = 5\n\
             php_admin_value[post_max_size] = 0\n"
        );
        fs::write(world.path("fpm.conf"), settings).unwrap();
        let file = world.path("fpm.conf");
        let arguments = ["-R", "-n", "-y", file.to_str().unwrap()];
        let server = world.command(php_fpm().to_str().unwrap(), "php-fpm", &arguments);
        let server = world.serve(server, port);
        let extra = format!(
            "client_max_body_size 0;
             location / {{ fastcgi_pass 127.0.0.1:{port}; fastcgi_buffering off;
                           fastcgi_param REQUEST_METHOD $request_method;
                           fastcgi_param CONTENT_TYPE $content_type;
                           fastcgi_param CONTENT_LENGTH $content_length;
                           fastcgi_param SCRIPT_FILENAME {root}$uri; }}"
        );
        let front = nginx::serve(world, web, &extra);
        let answers = post(world, &format!("http://127.0.0.1:{web}/page.php"));
        front.stop();
        server.stop();
        answers
    });
    assert_carried(&report, 8 << 20);
}

#[test]
fn gunicorn() {
    const APPLICATION: &str = "
import hashlib

def application(environment, start):
    body = environment['wsgi.input'].read(int(environment['CONTENT_LENGTH']))
    start('200 OK', [('Content-Type', 'text/plain')])
    yield hashlib.md5(body).hexdigest().encode() + b'\\n'
    for i in range(1000):
        yield b'line %d ' % i + b'x' * (i % 2000) + b'\\n'
";
    let report = twice(|world| {
        let port = free_port();
        world.random_file("posted", 8 << 20);
        fs::write(world.path("application.py"), APPLICATION).unwrap();
        let at = format!("127.0.0.1:{port}");
        let arguments = [
            "--workers",
            "3",
            "--max-requests",
            "3",
            "--log-level",
            "error",
            "--bind",
            &at,
            "application",
        ];
        let server = world.serve(world.command("gunicorn", "gunicorn", &arguments), port);
        let answers = post(world, &format!("http://{at}/"));
        server.stop();
        answers
    });
    assert_carried(&report, 4 << 20);
}
