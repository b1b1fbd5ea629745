//! nginx exchanges its program under load (USR2): the new one inherits the listener, and its connections are carried as the
//! old one's were.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sgm_tests::paths::installed;
use sgm_tests::world::{Conversation, Server, World, free_port, twice};

use crate::{assert_carried, nginx};

const LIMIT: Duration = Duration::from_secs(60);

/// What `look` finds, once it does; meanwhile `server` runs.
fn awaited<T>(server: &Conversation, what: &str, look: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        let runs = server.process.runs_after(Duration::from_millis(5));
        assert!(runs && Instant::now() < deadline, "{what}");
    }
}

/// The process that a file names.
fn named_in(file: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(file).ok()?.trim().parse().ok()?)
}

/// A second of load over eight connections, without an error; how much of it the client sent through rings.
fn load(world: &World, url: &str) -> u64 {
    let arguments = ["-t", "1", "-c", "8", "-d", "1s", url];
    let told = world.run(world.command("wrk", "wrk", &arguments)).output;
    let good = told.contains("requests in") && !told.contains("Socket errors");
    assert!(good && !told.contains("Non-2xx"), "{told}");
    let report = world.last_report();
    report.map_or(0, |report| report.carried.tx_bytes)
}

/// nginx takes the signal only when whoever started it is gone, and starts the new one by the name that it was started by.
const START: &str = "
program=$1
shift
(\"$program\" \"$@\" & until [ -s nginx.pid ]; do /bin/sleep 0.01; done)
exec cat
";

/// Downloads over connections of their own, until told to stop.
const DOWNLOADS: &str = "
until [ -e stop ]; do
    curl -sS --fail -o got-$2 -w '%{http_code} %{size_download} ' $1 && cmp got-$2 large && echo same
done";

#[test]
fn under_load() {
    let (before, after) = (Cell::new(0), Cell::new(0));
    let report = twice(|world| {
        let port = free_port();
        world.random_file("small", 4 << 10);
        world.random_file("large", 1 << 20);
        let program = installed("nginx", "nginx-light");
        let mut arguments = vec![program.to_str().unwrap()];
        let settings = nginx::configure(world, port, "");
        arguments.extend(settings.iter().map(String::as_str));
        let server = world.converse(world.shell(START, &arguments));
        let (pid, old_pid) = (world.path("nginx.pid"), world.path("nginx.pid.oldbin"));
        let old = awaited(&server, "no nginx", || named_in(&pid));
        let base = format!("http://127.0.0.1:{port}");
        before.set(load(world, &format!("{base}/small")));

        let url = format!("{base}/large");
        let clients = ["1", "2", "3"]
            .map(|number| world.start(world.shell(DOWNLOADS, &[&url, number]), false));
        let answered = |at_least: usize| {
            let lines = || {
                clients
                    .iter()
                    .map(|client| client.output_so_far().lines().count())
            };
            let all = || lines().all(|count| count >= at_least).then_some(());
            awaited(&server, "no downloads", all);
        };
        answered(3);
        kill_process(old, Signal::USR2).unwrap();
        awaited(&server, "no second nginx", || {
            old_pid.exists().then_some(())
        });
        let new = awaited(&server, "no new nginx", || {
            named_in(&pid).filter(|new| *new != old)
        });
        answered(6);
        kill_process(old, Signal::QUIT).unwrap();
        awaited(&server, "the old one stays", || {
            (!old_pid.exists()).then_some(())
        });
        fs::write(world.path("stop"), "").unwrap();
        let mut answers = String::new();
        for process in clients {
            let ended = Server { process }.ended();
            assert_eq!(ended.errors, "");
            let other = ended
                .output
                .lines()
                .find(|line| *line != "200 1048576 same");
            answers += other.unwrap_or("every download was right\n");
        }

        after.set(load(world, &format!("{base}/small")));
        kill_process(new, Signal::TERM).unwrap();
        awaited(&server, "the new one stays", || {
            (!pid.exists()).then_some(())
        });
        server.end();
        answers
    });
    assert_carried(&report, 10 << 20);
    for (when, carried) in [("before", &before), ("after", &after)] {
        assert!(
            carried.get() > 10_000,
            "{} bytes carried {when}",
            carried.get()
        );
    }
}
