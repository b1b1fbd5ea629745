//! Files of another version, and a registry that is nonsense: before programs start, and under running ones.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use sgm_tests::front::{Front, Report, sum};
use sgm_tests::pair::{Outcome, Setup, run, run_at};
use sgm_tests::world::{World, free_port, random_bytes};

use crate::{luck, told};

/// The registry, and the port files, of a front that was used once.
fn used() -> (Front, PathBuf) {
    let front = Front::new();
    run_at(&front, "bulk", "echo_small", Setup::CARRIED);
    let registry = front.node().join("node-v5");
    assert!(registry.exists());
    (front, registry)
}

fn same_as_natively(front: &Front) -> Report {
    let outcome: Outcome = run_at(front, "bulk", "echo", Setup::CARRIED);
    let native = run("bulk", "echo", Setup::NATIVE);
    assert_eq!(
        (outcome.server, outcome.client),
        (native.server, native.client)
    );
    sum([
        &outcome.server_report.unwrap(),
        &outcome.client_report.unwrap(),
    ])
}

#[test]
fn another_versions_registry() {
    let front = Front::new();
    fs::write(front.node().join("node-v999"), random_bytes(1, 100_000)).unwrap();
    let report = same_as_natively(&front);
    assert!(report.carried.tx_bytes > 4 << 20, "{report:?}");
    let (text, code) = told(front.sgm(&["doctor"]));
    assert!(text.contains("node-v999"), "{text}");
    assert_eq!(code, 0, "{text}");
    assert!(
        front.node().join("node-v999").exists(),
        "it is not ours to remove"
    );
}

#[test]
fn port_files_of_other_kinds() {
    let (front, _) = used();
    // A sound one, of a process that lives, to spoil.
    let world = World::new(Some(Front::at(front.node())));
    let port = free_port();
    let server = world.serve(luck(&world, &["epoll", &port.to_string()]), port);
    let sound = fs::read_dir(front.node())
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let sound = sound
        .into_iter()
        .find(|path| path.to_string_lossy().contains("/port-"))
        .expect("the server's port");
    let spoil = |name: &str, at: u64, bytes: &[u8]| {
        let copy = front.node().join(name);
        // Sparse, as the original: only its first pages matter.
        let mut beginning = vec![0; 64 * 1024];
        File::open(&sound)
            .unwrap()
            .read_exact_at(&mut beginning, 0)
            .unwrap();
        fs::write(&copy, &beginning).unwrap();
        let file = OpenOptions::new().write(true).open(&copy).unwrap();
        file.set_len(fs::metadata(&sound).unwrap().len()).unwrap();
        file.write_all_at(bytes, at).unwrap();
    };
    spoil("port-1-1", 0, b"NOTAPORT");
    spoil("port-2-2", 8, &999_u32.to_le_bytes());
    spoil("port-3-3", 12, &u32::MAX.to_le_bytes());
    spoil("port-4-4", 24, &u32::MAX.to_le_bytes()); // its high-water mark
    spoil("port-5-5", 16, &random_bytes(5, 60_000)); // a sound head, and nonsense after it
    fs::write(front.node().join("port-6-6"), "short").unwrap();
    fs::write(front.node().join("port-7-7"), "").unwrap();
    fs::create_dir(front.node().join("port-8-8")).unwrap();
    fs::write(front.node().join("port-"), "no number").unwrap();

    let report = same_as_natively(&front);
    assert!(report.carried.tx_bytes > 4 << 20, "{report:?}");
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["doctor"],
        &["doctor", "--json"],
    ] {
        let (text, code) = told(front.sgm(arguments));
        assert_eq!(code, 0, "{arguments:?}:\n{text}");
    }
    told(front.sgm(&["doctor", "--clean"]));
    assert!(sound.exists(), "the living server's own port was removed");
    let left: Vec<_> = ["1-1", "2-2", "3-3", "6-6", "7-7"]
        .iter()
        .filter(|name| front.node().join(format!("port-{name}")).exists())
        .collect();
    assert!(left.is_empty(), "left after cleaning: {left:?}");
    server.stop();
}

/// Nonsense of the right size, of the wrong size, and none at all.
#[test]
fn spoilt_before_the_start() {
    let (front, registry) = used();
    let size = fs::metadata(&registry).unwrap().len() as usize;
    for content in [
        random_bytes(7, size),
        vec![0; size],
        random_bytes(8, 5000),
        Vec::new(),
        vec![0xff; size + 4096],
    ] {
        fs::write(&registry, &content).unwrap();
        let report = same_as_natively(&front);
        assert_eq!(
            report.carried.tx_bytes, 0,
            "carried by nonsense: {report:?}"
        );
        let (text, code) = told(front.sgm(&["doctor"]));
        assert!(
            code != 0 && text.contains("BAD  registry") && text.contains("rm -r"),
            "{text}"
        );
        let (text, _) = told(front.sgm(&["status"]));
        assert!(text.contains("not usable"), "{text}");
    }
    // As the doctor says.
    fs::remove_file(&registry).unwrap();
    assert!(same_as_natively(&front).carried.tx_bytes > 4 << 20);
}

/// A sound head, and nonsense in all the entries.
#[test]
fn spoilt_entries() {
    let (front, registry) = used();
    let size = fs::metadata(&registry).unwrap().len() as usize;
    for seed in 0..4 {
        let mut content = fs::read(&registry).unwrap();
        content[256..].copy_from_slice(&random_bytes(90 + seed, size - 256));
        if seed % 2 == 1 {
            // Entries that say they are in use, by processes that do not exist.
            for entry in content[4096..].chunks_mut(64) {
                entry[..4].copy_from_slice(&2_u32.to_le_bytes());
            }
        }
        fs::write(&registry, &content).unwrap();
        same_as_natively(&front);
        told(front.sgm(&["status"]));
        told(front.sgm(&["doctor"]));
        told(front.sgm(&["doctor", "--clean"]));
    }
}

/// What `spoil` does to the registry while connections are idle, busy, and being made.
fn under_running_programs(spoil: impl Fn(&File, usize, u64)) {
    let world = World::new(Some(Front::new()));
    for kind in ["epoll", "threads"] {
        let port = free_port();
        let text = port.to_string();
        let server = world.serve(luck(&world, &[kind, &text]), port);
        let mut old = world.converse(luck(&world, &["talk", &text]));
        assert_eq!(old.next_line(), "warm");
        let registry = OpenOptions::new()
            .write(true)
            .read(true)
            .open(world.front().node().join("node-v5"))
            .unwrap();
        let size = registry.metadata().unwrap().len() as usize;
        for round in 0..6 {
            let busy = world.start(luck(&world, &["bulk", &text, "3", "4000000"]), false);
            spoil(&registry, size, round);
            assert_eq!(old.ask("and now"), "right");
            let mut new = world.converse(luck(&world, &["talk", &text]));
            assert_eq!(new.next_line(), "warm");
            assert_eq!(new.ask("and now"), "right");
            assert_eq!(new.end().code, 0);
            let ended = sgm_tests::world::Server { process: busy }.ended();
            assert_eq!(ended.code, 0, "{}", ended.errors);
        }
        assert_eq!(old.end().code, 0);
        assert_eq!(server.stop().code, 143);
    }
}

#[test]
fn overwritten_under_running_programs() {
    under_running_programs(|registry, size, round| {
        let from = if round % 2 == 0 { 0 } else { 4096 };
        registry
            .write_all_at(&random_bytes(round, size - from), from as u64)
            .unwrap();
    });
}

#[test]
#[ignore = "pending: a segment or registry cut short by its owner raises SIGBUS"]
fn cut_short_under_running_programs() {
    under_running_programs(|registry, size, round| {
        registry.set_len(0).unwrap();
        if round % 2 == 1 {
            registry.set_len(size as u64).unwrap();
        }
        let mut registry = registry;
        registry.flush().unwrap();
    });
}

#[test]
fn removed_under_running_programs() {
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    let mut old = world.converse(luck(&world, &["talk", &text]));
    assert_eq!(old.next_line(), "warm");
    fs::remove_dir_all(world.front().node()).unwrap();
    assert_eq!(old.ask("and now"), "right");
    let ended = world.run(luck(&world, &["ask", &text, "3", "60", "3000"]));
    assert!(ended.output.starts_with("3 connections"));
    assert_eq!(old.ask("and now"), "right");
    old.end();
    server.stop();
}
