//! PostgreSQL, a process per connection: `\copy` of a table in a loop, out, in and out again.
//!
//! `SGM_COPY_ROUNDS` and `SGM_COPY_ROWS` ask for more than fits a test run (550,000 rows are 180 MB).

use std::env;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sgm_tests::paths::installed;
use sgm_tests::world::{Server, World, free_port, same_content, twice};

use crate::assert_carried;

const READY_LIMIT: Duration = Duration::from_secs(60);

fn asked(name: &str, otherwise: u64) -> u64 {
    let value = env::var(name).ok();
    value.map_or(otherwise, |text| text.parse().expect(name))
}

/// Debian keeps the programs of each version in a directory of their own.
fn program(name: &str) -> PathBuf {
    let place = |version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin/{name}"));
    let found = (13..30).rev().map(place).find(|file| file.exists());
    found.unwrap_or_else(|| installed(name, "postgresql"))
}

fn serve(world: &World, port: u16) -> Server {
    let initdb = ["-D", "data", "-A", "trust", "-U", "postgres", "--no-sync"];
    world.run(world.command(program("initdb").to_str().unwrap(), "postgresql", &initdb));
    let root = world.scratch.path().to_str().unwrap();
    let text = port.to_string();
    let server = ["-D", "data", "-p", &text, "-k", root, "-F"];
    let server = world.command(program("postgres").to_str().unwrap(), "postgresql", &server);
    let server = world.serve(server, port);
    // It listens before it takes connections.
    let deadline = Instant::now() + READY_LIMIT;
    while !server
        .process
        .errors_so_far()
        .contains("ready to accept connections")
    {
        let runs = server.process.runs_after(Duration::from_millis(3));
        assert!(
            runs && Instant::now() < deadline,
            "{}",
            server.process.errors_so_far()
        );
    }
    server
}

#[test]
fn copy_in_a_loop() {
    let (rounds, rows) = (asked("SGM_COPY_ROUNDS", 20), asked("SGM_COPY_ROWS", 5_000));
    let report = twice(|world| {
        world.serve_as("postgres");
        let port = free_port();
        let server = serve(world, port);
        let text = port.to_string();
        let psql = |commands: &[&str]| {
            let mut client = world.command("psql", "postgresql-client", &["-X", "-q"]);
            client
                .args(["-v", "ON_ERROR_STOP=1", "-U", "postgres"])
                .args(["-h", "127.0.0.1", "-p", &text, "postgres"]);
            for command in commands {
                client.args(["-c", command]);
            }
            world.run(client);
        };
        let fill = format!(
            "insert into one select i, repeat(md5(i::text), 10) from generate_series(1, {rows}) i"
        );
        let tables =
            ["one", "two"].map(|name| format!("create unlogged table {name} (a int, b text)"));
        psql(&[&tables[0], &tables[1], &fill]);
        for round in 0..rounds {
            psql(&[
                "\\copy one to 'one'",
                "\\copy two from 'one'",
                "\\copy two to 'two'",
                "truncate two",
            ]);
            let same = same_content(&world.path("one"), &world.path("two"));
            assert_eq!(same, "the same bytes", "round {round}");
        }
        server.stop_by(Signal::INT);
        format!("{rounds} times the same bytes")
    });
    // A row is its number, a tabulator, 320 letters and a line's end.
    assert_carried(&report, rounds * rows * 325 * 3 / 2);
}
