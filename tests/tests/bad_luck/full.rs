//! No memory for rings: a small tmpfs that is full from the start, fills up under many connections, or is filled while
//! bytes flow.

use std::path::Path;

use sgm_tests::front::{Front, Report};
use sgm_tests::paths::Tmpfs;
use sgm_tests::world::{Server, World, free_port};

use crate::{is_root, luck, not_run, told};

/// A tmpfs of a given size, unmounted at the end.
fn small_tmpfs(size: &str) -> Option<Tmpfs> {
    if !is_root() {
        not_run("only root can mount a small tmpfs");
        return None;
    }
    Some(Tmpfs::new(size))
}

/// A server and what `client` says to it, natively and on `small`: the same.
fn same_on(small: &Tmpfs, kind: &str, client: &[&str]) -> Report {
    let answers = |world: &World| {
        let port = free_port();
        let text = port.to_string();
        let server = world.serve(luck(world, &[kind, &text]), port);
        let mut arguments = vec![client[0], text.as_str()];
        arguments.extend(&client[1..]);
        let ended = world.run(luck(world, &arguments));
        still_lives(&server);
        let served = server.stop();
        (ended, served)
    };
    let world = World::new(Some(Front::at(small.path())));
    let (native, tight) = (answers(&World::new(None)), answers(&world));
    assert_eq!(native, tight);
    let report = world.report();
    assert!(
        report.carried.rx_bytes <= report.carried.tx_bytes,
        "{report:?}"
    );
    report
}

fn still_lives(server: &Server) {
    let process = &server.process;
    assert!(
        process.runs_after(std::time::Duration::ZERO),
        "the server died\n{}",
        process.errors_so_far()
    );
}

/// Too small for the registry, or just large enough for it.
#[test]
fn no_room_for_a_node() {
    for size in ["64k", "1m", "1544k", "1576k"] {
        let Some(small) = small_tmpfs(size) else {
            return;
        };
        let report = same_on(&small, "epoll", &["bulk", "5", "300000"]);
        assert_eq!(report.carried.tx_bytes, 0, "{size}: {report:?}");
        let (text, code) = told(Front::at(small.path()).sgm(&["doctor"]));
        assert!(code != 0 && text.contains("BAD  space"), "{size}:\n{text}");
    }
}

/// The registry fits, and a few rings, but not 50.
#[test]
fn room_for_a_few() {
    for (size, kind) in [
        ("1660k", "epoll"),
        ("2256k", "epoll"),
        ("2256k", "threads"),
        ("3m", "epoll"),
        ("5m", "threads"),
    ] {
        let Some(small) = small_tmpfs(size) else {
            return;
        };
        let report = same_on(&small, kind, &["bulk", "50", "600000"]);
        let short = report.reasons.get("no-memory").copied().unwrap_or(0);
        assert!(short > 0, "{size}: memory was never short: {report:?}");
        if size != "1660k" {
            assert!(
                report.carried.tx_bytes > 0,
                "{size}: nothing was carried: {report:?}"
            );
        }
    }
}

/// Somebody else's file takes all there is while a ring is still growing; when it is gone, new connections are carried.
#[test]
fn filled_on_the_way() {
    for kind in ["epoll", "threads"] {
        for at in ["0", "20000", "100000", "1000000"] {
            let Some(small) = small_tmpfs("4m") else {
                return;
            };
            let filler = small.path().join("filler");
            let report = same_on_filled(&small, kind, at, &filler);
            let short = report.reasons.get("no-memory").copied().unwrap_or(0);
            // Later the whole ring may be there already.
            assert!(
                short > 0 || at != "0",
                "full, and nobody noticed: {report:?}"
            );
            let after = same_on(&small, kind, &["bulk", "2", "200000"]);
            assert!(
                after.carried.tx_bytes > 400_000,
                "not carried any more: {after:?}"
            );
        }
    }
}

/// As [`same_on`], where the client fills the file system; natively some other one.
fn same_on_filled(small: &Tmpfs, kind: &str, at: &str, filler: &Path) -> Report {
    let elsewhere = small_tmpfs("1m").expect("mounted once, mounted again");
    let native_filler = elsewhere.path().join("filler");
    let answers = |world: &World, filler: &Path| {
        let port = free_port();
        let text = port.to_string();
        let server = world.serve(luck(world, &[kind, &text]), port);
        let arguments = ["fill", &text, "3000000", at, filler.to_str().unwrap()];
        let ended = world.run(luck(world, &arguments));
        still_lives(&server);
        (ended, server.stop())
    };
    let world = World::new(Some(Front::at(small.path())));
    assert_eq!(
        answers(&World::new(None), &native_filler),
        answers(&world, filler)
    );
    world.report()
}
