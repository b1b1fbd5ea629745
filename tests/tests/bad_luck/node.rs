//! Node directories that cannot be used: plain TCP, silence, and a doctor who knows.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

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

    let (text, code) = told(front.sgm(&["status"]));
    assert!(
        text.contains("not usable") && (text.contains("SGM_DIR") || text.contains("rm -r")),
        "status of a node that can't be used:\n{text}"
    );
    assert_ne!(code, 0, "{text}");
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

/// A fresh directory of that mode, which is nobody's node.
fn directory_with(scratch: &Scratch, mode: u32) -> PathBuf {
    let node = scratch.join(&format!("node-{mode:o}"));
    fs::create_dir(&node).unwrap();
    fs::set_permissions(&node, Permissions::from_mode(mode)).unwrap();
    node
}

#[test]
fn is_open_to_others() {
    let scratch = Scratch::new();
    for mode in [0o777, 0o770, 0o2770, 0o701] {
        let node = directory_with(&scratch, mode);
        unusable(&node);
        assert_eq!(
            fs::read_dir(&node).unwrap().count(),
            0,
            "something was put where others can reach it"
        );
    }
}

/// The default directory's name is known before its user's first program runs: a stranger makes it, and lets the user's
/// group in, or himself.
#[test]
fn was_made_by_a_stranger() {
    if !is_root() {
        return not_run("only root can make a directory that is somebody else's");
    }
    let scratch = Scratch::new();
    for mode in [0o2770, 0o770, 0o700, 0o755] {
        let node = directory_with(&scratch, mode);
        chown(&node, Some(65534), Some(65534)).unwrap();
        // The bits above the permissions are lost when the owner changes.
        fs::set_permissions(&node, Permissions::from_mode(mode)).unwrap();
        unusable(&node);
        assert_eq!(
            fs::read_dir(&node).unwrap().count(),
            0,
            "something was put where its owner can reach it"
        );
    }
}

/// What a stranger has closed to us can't be opened to be judged, and can't be removed.
#[test]
fn is_closed_by_a_stranger() {
    if !is_root() {
        return not_run("only root can be two other users");
    }
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
    let sgm = scratch.join("sgm");
    fs::copy(sgm_tests::paths::sgm(), &sgm).unwrap();
    let node = directory_with(&scratch, 0o700);
    chown(&node, Some(1), Some(1)).unwrap();
    for told_by in ["doctor", "status"] {
        let mut command = Command::new(&sgm);
        command.arg(told_by).env("SGM_DIR", &node).uid(65534);
        let (text, code) = told(command);
        assert!(
            text.contains("it belongs to user 1") && text.contains("set SGM_DIR"),
            "{text}"
        );
        assert_ne!(code, 0, "{text}");
    }
}

/// Whoever gives files their names does not write the doctor's lines.
#[test]
fn names_are_no_orders_to_the_terminal() {
    let front = Front::new();
    let name = "node-v\u{1b}]0;x\u{7}\u{1b}[2J\nok   directory       all is well";
    fs::write(front.node().join(name), "").unwrap();
    let (text, _) = told(front.sgm(&["doctor"]));
    assert!(text.contains(r"also node-v\u{1b}]0;x\u{7}"), "{text}");
    assert!(
        !text.contains('\u{1b}') && !text.contains("\nok   directory       all"),
        "{text}"
    );
}

#[test]
fn full_disk() {
    let front = Front::new();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["node"],
        &["compat"],
    ] {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let status = front.sgm(arguments).stdout(full).status().unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}");
    }
}

/// A POSIX access control list as the kernel keeps it: user 65534 is let in as far as `mask` permits.
fn access_list(mask: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 7, NOBODY),
        (0x02, 7, 65534),
        (0x04, 0, NOBODY),
        (0x10, mask, NOBODY),
        (0x20, 0, NOBODY),
    ];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, who) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(who.to_le_bytes());
    }
    list
}

#[test]
fn has_an_access_control_list() {
    for (name, mask) in [
        ("system.posix_acl_access", 7),
        ("system.posix_acl_access", 0),
        ("system.posix_acl_default", 7),
    ] {
        let front = Front::new();
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(front.node(), name, &access_list(mask), flags).is_err() {
            return not_run("no access control lists on /dev/shm");
        }
        unusable(front.node());
        assert_eq!(fs::read_dir(front.node()).unwrap().count(), 0);
    }
}

/// Even one to a good directory: whoever made the link can point it elsewhere.
#[test]
fn is_a_link() {
    let (scratch, front) = (Scratch::new(), Front::new());
    symlink(front.node(), scratch.join("node")).unwrap();
    unusable(&scratch.join("node"));
    assert_eq!(fs::read_dir(front.node()).unwrap().count(), 0);
}

/// What others put into a node that the doctor looks at as root: it writes through no link, and removes nothing.
#[test]
fn doctor_is_not_led_astray() {
    let (scratch, front) = (Scratch::new(), Front::new());
    let precious = scratch.join("port-precious");
    fs::write(&precious, "mine").unwrap();
    // The number of the shell is the doctor's.
    let script = r#"ln -s "$1" "$SGM_DIR/probe-$$" && exec "$2" doctor"#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh"])
        .args([&precious, &sgm_tests::paths::sgm()])
        .env("SGM_DIR", front.node());
    told(command);
    assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");

    let link = front.node().join("link");
    symlink(scratch.path(), &link).unwrap();
    told(Front::at(&link).sgm(&["doctor", "--clean"]));
    assert!(precious.exists(), "the doctor removed a stranger's file");
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
