//! Node directories that cannot be used: plain TCP, silence, and a doctor who knows.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use sgm_tests::front::Front;
use sgm_tests::pair::{Setup, run, run_at};
use sgm_tests::paths::Scratch;
use sgm_tests::world::{World, free_port};

use crate::{is_root, luck, not_run, told};

/// Everything that programs, `sgm doctor` and `sgm status` must do with the directory `node`.
fn unusable(node: &Path) {
    let front = Front::at(node);
    for (program, case) in [
        ("bulk", "echo_small"),
        ("epoll", "level"),
        ("ends", "half_close"),
    ] {
        let native = run(program, case, Setup::NATIVE);
        let outcome = run_at(&front, program, case, Setup::CARRIED);
        assert_eq!(outcome.server, native.server, "{program} {case}: server");
        assert_eq!(outcome.client, native.client, "{program} {case}: client");
        let report = outcome.client_report.unwrap();
        assert_eq!(
            report.carried.tx_bytes, 0,
            "carried without a node: {report:?}"
        );
    }
    exits_the_same(&front);

    let shown = node.display().to_string();
    let (text, code) = told(front.sgm(&["doctor"]));
    let names_it = text
        .lines()
        .any(|line| line.starts_with("BAD") && line.contains("directory") && line.contains(&shown));
    assert!(names_it, "the doctor does not name the problem:\n{text}");
    assert!(text.contains("-> "), "the doctor knows no remedy:\n{text}");
    assert_ne!(code, 0, "{text}");

    let (text, _) = told(front.sgm(&["status"]));
    assert!(
        text.contains("not usable"),
        "status of a node that can't be used:\n{text}"
    );
}

fn exits_the_same(front: &Front) {
    let native = World::new(None);
    let world = World::new(Some(Front::at(front.node())));
    for (arguments, code) in [
        (["exit", "0"], 0),
        (["exit", "7"], 7),
        (["die", "9"], 137),
        (["die", "15"], 143),
    ] {
        let ends: Vec<_> = [&native, &world]
            .iter()
            .map(|world| {
                sgm_tests::world::Server {
                    process: world.start(luck(world, &arguments), false),
                }
                .ended()
            })
            .collect();
        assert_eq!(ends[0].code, code);
        assert_eq!(ends[0], ends[1], "{arguments:?}");
    }
}

#[test]
fn parent_is_missing() {
    let scratch = Scratch::new();
    unusable(&scratch.join("missing/node"));
    assert!(
        !scratch.join("missing").exists(),
        "nobody asked for it to be made"
    );
}

#[test]
fn parent_is_a_file() {
    let scratch = Scratch::new();
    fs::write(scratch.join("file"), "mine").unwrap();
    unusable(&scratch.join("file/node"));
}

#[test]
fn is_a_file() {
    let scratch = Scratch::new();
    fs::write(scratch.join("file"), "mine").unwrap();
    unusable(&scratch.join("file"));
    assert_eq!(fs::read_to_string(scratch.join("file")).unwrap(), "mine");
}

#[test]
fn is_writable_by_everyone() {
    let scratch = Scratch::new();
    let node = scratch.join("node");
    fs::create_dir(&node).unwrap();
    fs::set_permissions(&node, Permissions::from_mode(0o777)).unwrap();
    unusable(&node);
    assert_eq!(
        fs::read_dir(&node).unwrap().count(),
        0,
        "something was put where everyone can reach it"
    );
}

/// A directory of ours that others were let into only after the registry had been made.
#[test]
fn became_writable_by_everyone() {
    let front = Front::new();
    run_at(&front, "bulk", "echo_small", Setup::CARRIED);
    fs::set_permissions(front.node(), Permissions::from_mode(0o777)).unwrap();
    unusable(front.node());
}

#[test]
fn is_a_dangling_link() {
    let scratch = Scratch::new();
    symlink(scratch.join("nowhere"), scratch.join("node")).unwrap();
    unusable(&scratch.join("node"));
    assert!(!scratch.join("nowhere").exists());
}

#[test]
fn cannot_be_written_to() {
    let scratch = Scratch::new();
    if is_root() {
        // Nothing stops root by its mode; a file system that takes no files does.
        return unusable(Path::new("/proc/sockets-gm-test"));
    }
    let node = scratch.join("node");
    fs::create_dir(&node).unwrap();
    fs::set_permissions(&node, Permissions::from_mode(0o500)).unwrap();
    unusable(&node);
}

#[test]
fn belongs_to_somebody_else() {
    if !is_root() {
        return not_run("only root can make a directory that is somebody else's");
    }
    let scratch = Scratch::new();
    let node = scratch.join("node");
    fs::create_dir(&node).unwrap();
    fs::set_permissions(&node, Permissions::from_mode(0o755)).unwrap();
    chown(&node, Some(65534), Some(65534)).unwrap();
    unusable(&node);
}

/// An interpreter with threads of its own: nothing of ours appears in what it prints.
#[test]
fn python_on_no_node() {
    let scratch = Scratch::new();
    fs::write(scratch.join("file"), "").unwrap();
    let answers = |world: &World| {
        let port = free_port().to_string();
        let server = world.serve(
            world.python("echo_server.py", &["threading", &port]),
            port.parse().unwrap(),
        );
        let ended = world.run(world.python("echo_client.py", &["threads", &port, "3", "10"]));
        let served = server.stop();
        (ended, served)
    };
    let world = World::new(Some(Front::at(&scratch.join("file/node"))));
    assert_eq!(answers(&World::new(None)), answers(&world));
    assert_eq!(world.report().carried.tx_bytes, 0);
}
