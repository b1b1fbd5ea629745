//! What is particular to each suite: how it names its tests, and how it tells their ends.

use std::time::Duration;

use super::{Suite, Verdict, Verdicts};

/// One process for each test: they use fixed ports, and some end the process.
pub const LIBUV: Suite = Suite {
    name: "libuv",
    program: "uv_run_tests_a.exe",
    list: "--list",
    // Some names are followed by those of their helpers.
    listed: |line| line.split_whitespace().next(),
    wanted: |name| {
        const BEGINNINGS: &[&str] = &[
            "callback_stack",
            "close_order",
            "connect",
            "delayed_accept",
            "embed",
            "getaddrinfo_",
            "gethostname",
            "getnameinfo_",
            "getsockname_",
            "handle_fileno",
            "has_ref",
            "ipc_",
            "listen_",
            "multiple_listen",
            "not_readable",
            "not_writable",
            "poll_",
            "readable_on_eof",
            "shutdown_",
            "socket_buffer_size",
            "spawn_tcp_server",
            "tcp",
            "threadpool_cancel_get",
            "udp_",
            "walk_handles",
            "watcher_cross_stop",
        ];
        BEGINNINGS.iter().any(|begin| name.starts_with(begin))
    },
    group: |name| name,
    limit: Duration::from_secs(60),
    read: tap,
};

/// One process for each of the groups that the names have; it starts one for each test by itself.
pub const LIBEVENT: Suite = Suite {
    name: "libevent",
    program: "regress.exe",
    list: "--list-tests",
    // Indented; some are followed by "(Off by default)".
    listed: |line| {
        let name = line.strip_prefix("    ")?.split_whitespace().next();
        name.filter(|name| name.contains('/'))
    },
    wanted: |name| match name.split_once('/') {
        Some(("evtag" | "heap" | "finalize", _)) => false,
        Some(("evbuffer", test)) => test.contains("file"),
        Some(("util", test)) => test.contains("addr"),
        // These measure time.
        Some(("main", test)) => !test.contains("timeout") && !test.contains("gettimeofday"),
        _ => true,
    },
    group: |name| name.split('/').next().unwrap_or(name),
    limit: Duration::from_secs(300),
    read: tinytest,
};

/// `ok 1 - name`, `ok 1 - name # SKIP why`, `not ok 1 - name`.
fn tap(output: &str, verdicts: &mut Verdicts) {
    for line in output.lines() {
        let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => continue,
        };
        let Some((_, rest)) = rest.split_once(" - ") else {
            continue;
        };
        let mut words = rest.split_whitespace();
        let Some(name) = words.next() else { continue };
        let verdict = match (passed, words.next()) {
            (true, None) => Verdict::Passed,
            (true, Some(_)) => Verdict::Skipped,
            (false, _) => Verdict::Failed,
        };
        verdicts.insert(name.to_string(), verdict);
    }
}

/// `group/name: [forking] OK`; a failure says more first, and `  [name FAILED]` at its end.
fn tinytest(output: &str, verdicts: &mut Verdicts) {
    let mut current = None;
    for line in output.lines() {
        let begins = line
            .split_once(": ")
            .filter(|(name, _)| name.contains('/') && !name.contains(' '));
        if let Some((name, _)) = begins {
            current = Some(name);
        }
        let Some(name) = current else { continue };
        let verdict = match line.split_whitespace().next_back() {
            Some("OK") => Verdict::Passed,
            Some("SKIPPED" | "DISABLED") => Verdict::Skipped,
            Some("FAILED]") => Verdict::Failed,
            _ => continue,
        };
        verdicts.insert(name.to_string(), verdict);
    }
}

#[test]
fn verdicts_are_read_as_each_suite_writes_them() {
    let mut verdicts = Verdicts::new();
    tap(
        "1..1\r\nok 1 - tcp_a\r\nok 1 - tcp_b # SKIP no network\r\nnot ok 1 - tcp_c\r\n# exit code 3\r\n",
        &mut verdicts,
    );
    tinytest(
        "ev/a: [forking] OK\r\nev/b: SKIPPED\r\nev/c/d: [forking] timeout\r\n\r\n  [d FAILED]\r\n1/3 TESTS FAILED. (1 skipped)\r\nev/e: ",
        &mut verdicts,
    );
    let expected = [
        ("ev/a", Verdict::Passed),
        ("ev/b", Verdict::Skipped),
        ("ev/c/d", Verdict::Failed),
        ("tcp_a", Verdict::Passed),
        ("tcp_b", Verdict::Skipped),
        ("tcp_c", Verdict::Failed),
    ];
    let expected = expected.map(|(name, verdict)| (name.to_string(), verdict));
    assert_eq!(verdicts, Verdicts::from(expected));
}
