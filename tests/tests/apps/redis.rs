//! redis: scripts, transactions, publish and subscribe, a background save beside connected clients, the benchmark; memcached.

use std::fmt::Write;

use sgm_tests::world::{Server, World, free_port, twice};

use crate::assert_carried;

fn serve(world: &World, port: u16) -> Server {
    let text = port.to_string();
    // No snapshots but those asked for, and no log of times and pids on the way.
    let arguments = [
        "--port",
        &text,
        "--save",
        "",
        "--appendonly",
        "no",
        "--bind",
        "127.0.0.1",
        "--logfile",
        "redis.log",
    ];
    world.serve(
        world.command("redis-server", "redis-server", &arguments),
        port,
    )
}

fn cli(world: &World, port: u16, arguments: &[&str]) -> std::process::Command {
    let mut command = world.command("redis-cli", "redis-tools", &["-p", &port.to_string()]);
    command.args(arguments);
    command
}

#[test]
fn script() {
    let report = twice(|world| {
        let port = free_port();
        let server = serve(world, port);
        let mut script = String::from(
            "PING\nSET greeting hello\nAPPEND greeting _world\nGET greeting\nINCR n\nINCRBY n 41\n",
        );
        for i in 0..200 {
            writeln!(script, "RPUSH list item{i}\nHSET hash field{i} {}", i * i).unwrap();
        }
        script += "LRANGE list 0 -1\nHGETALL hash\nMULTI\nINCR n\nLPOP list\nBOGUS\nEXEC\nMULTI\nINCR n\nLPOP list\nEXEC\n";
        script += "MULTI\nSET a 1\nDISCARD\nGET a\nWATCH n\nMULTI\nSET n 7\nEXEC\nSETRANGE big 2000000 x\nSTRLEN big\n";
        script += "GETRANGE big 1999990 -1\nOBJECT ENCODING n\nTYPE list\nEVAL \"return {1,2,{3,ARGV[1]}}\" 0 four\nLPUSH greeting x\n";
        script += "SORT list ALPHA LIMIT 0 5\nDEL list hash\nDBSIZE\nGET big\n";
        let ended = world.run_with_input(cli(world, port, &[]), script.as_bytes());
        server.stop();
        ended.output
    });
    assert_carried(&report, 2_000_000);
}

#[test]
fn publish_and_subscribe() {
    let report = twice(|world| {
        let port = free_port();
        let server = serve(world, port);
        let mut answers = String::new();
        let mut subscriber =
            world.converse(cli(world, port, &["--raw", "SUBSCRIBE", "news", "more"]));
        for _ in 0..6 {
            writeln!(answers, "{}", subscriber.next_line()).unwrap();
        }
        let script: String = (0..100)
            .map(|i| {
                format!(
                    "PUBLISH {} message{i}\n",
                    if i % 3 == 0 { "more" } else { "news" }
                )
            })
            .collect();
        answers += &world
            .run_with_input(cli(world, port, &[]), script.as_bytes())
            .output;
        for _ in 0..300 {
            writeln!(answers, "{}", subscriber.next_line()).unwrap();
        }
        subscriber.stop();
        server.stop();
        answers
    });
    assert_carried(&report, 4_000);
}

/// The child that saves inherits every connection; the clients go on meanwhile and afterwards.
#[test]
fn background_save() {
    let report = twice(|world| {
        let port = free_port();
        let server = serve(world, port);
        let mut answers = String::new();
        let mut client = world.converse(cli(world, port, &[]));
        for i in 0..50 {
            writeln!(
                answers,
                "{}",
                client.ask(&format!("SET key{i} {}", "v".repeat(i * 100)))
            )
            .unwrap();
        }
        writeln!(answers, "{}", client.ask("BGSAVE")).unwrap();
        for i in 0..50 {
            writeln!(answers, "{}", client.ask(&format!("STRLEN key{i}"))).unwrap();
        }
        // Each look is a short connection of its own: an accept while the child may be running.
        let info = || world.run(cli(world, port, &["INFO", "persistence"])).output;
        while !info().contains("rdb_bgsave_in_progress:0") {}
        writeln!(
            answers,
            "{}",
            info()
                .lines()
                .find(|line| line.starts_with("rdb_last_bgsave_status"))
                .unwrap()
                .trim()
        )
        .unwrap();
        for i in 0..50 {
            writeln!(answers, "{}", client.ask(&format!("GET key{i}"))).unwrap();
        }
        client.end();
        server.stop();
        writeln!(answers, "saved: {}", world.path("dump.rdb").exists()).unwrap();
        answers
    });
    assert_carried(&report, 100_000);
}

#[test]
fn benchmark() {
    let report = twice(|world| {
        let port = free_port();
        let server = serve(world, port);
        let text = port.to_string();
        let bench = |arguments: &[&str]| {
            let mut command = world.command(
                "redis-benchmark",
                "redis-tools",
                &["-p", &text, "-q", "-n", "20000"],
            );
            command.args(arguments);
            let ended = world.run(command);
            // It prints speeds; a connection that failed would show here.
            assert!(!ended.output.contains("rror"), "{}", ended.output);
        };
        bench(&["-c", "20", "-t", "set,get,incr,lpush", "-d", "100"]);
        bench(&["-c", "10", "-P", "16", "-t", "incr,sadd,mset", "-d", "3000"]);
        bench(&["-c", "10", "--threads", "2", "-t", "incr"]);
        let answers = world
            .run_with_input(
                cli(world, port, &[]),
                b"GET counter:__rand_int__\nLLEN mylist\nSCARD myset\n",
            )
            .output;
        server.stop();
        answers
    });
    assert_carried(&report, 5_000_000);
}

#[test]
fn memcached() {
    let report = twice(|world| {
        let port = free_port();
        let text = port.to_string();
        // -u: it refuses to run as root without being told so.
        let server = world.serve(
            world.command(
                "memcached",
                "memcached",
                &["-l", "127.0.0.1", "-p", &text, "-U", "0", "-u", "root"],
            ),
            port,
        );
        let mut answers = world
            .run(world.python("memcached_client.py", &[&text]))
            .output;
        let place = format!("--servers=127.0.0.1:{port}");
        let slap = [
            "--concurrency=4",
            "--execute-number=200",
            "--initial-load=200",
            "--test=get",
            place.as_str(),
        ];
        world.run(world.command("memcslap", "libmemcached-tools", &slap));
        let stat = world
            .run(world.command("memcstat", "libmemcached-tools", &[&place]))
            .output;
        for word in ["get_hits", "get_misses", "cmd_set", "total_items"] {
            let line = stat
                .lines()
                .find(|line| line.trim().starts_with(word))
                .unwrap_or_else(|| panic!("{stat}"));
            writeln!(answers, "{}", line.trim()).unwrap();
        }
        server.stop();
        answers
    });
    assert_carried(&report, 20_000_000);
}
