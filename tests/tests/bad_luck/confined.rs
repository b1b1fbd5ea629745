//! Programs that start in a world of their own: without /proc or /dev/shm, in another root, in namespaces. They say what they say
//! without the front, and no peer of another world is taken for one of theirs. What programs do to themselves as they
//! run is in the twins (`programs/confined.c`).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sgm_tests::front::{Front, Report};
use sgm_tests::paths::{self, Scratch};
use sgm_tests::process::Started;
use sgm_tests::programs::{Build, compiled};
use sgm_tests::world::{Conversation, World, twice};

use crate::{is_root, not_run};

/// `"$@"` in a world that `unshare FLAGS` and `script` make.
fn unshared(world: &World, flags: &[&str], script: &str, command: &[&OsStr]) -> Command {
    let mut wrapped = world.command("unshare", "util-linux", flags);
    let script = format!("{script} exec \"$@\"");
    wrapped.args(["sh", "-c", &script, "sh"]).args(command);
    wrapped.env("SGM_TEST_DIR", world.scratch.path());
    wrapped
}

fn make_fifos(world: &World) {
    for fifo in ["to_server", "to_client"] {
        let made = Command::new("mkfifo").arg(world.path(fifo)).status();
        assert!(made.unwrap().success());
    }
}

/// Both roles of `bulk echo_small`, each in a world of its own.
fn apart(flags: &[&str], script: &str, calls: &str) -> Report {
    let program = compiled("bulk", Build::Plain);
    twice(|world| {
        make_fifos(world);
        let start = |role: &str| {
            let role = OsStr::new(role);
            let command = [program.as_os_str(), OsStr::new("echo_small"), role];
            let mut command = unshared(world, flags, script, &command);
            command.env("SGM_PROMOTE_CALLS", calls);
            world.start(command, false)
        };
        let roles = [start("server"), start("client")];
        roles.map(said).concat()
    })
}

/// Both roles in one world.
fn together(flags: &[&str], script: &str, calls: &str) -> Report {
    const BOTH: &str = "\"$0\" echo_small server & \"$0\" echo_small client; wait $!";
    let program = compiled("bulk", Build::Plain);
    twice(|world| {
        make_fifos(world);
        let both = ["sh", "-c", BOTH].map(OsStr::new);
        let command = [&both[..], &[program.as_os_str()]].concat();
        let mut command = unshared(world, flags, script, &command);
        command.env("SGM_PROMOTE_CALLS", calls);
        let text = said(world.start(command, false));
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    })
}

fn said(process: Started) -> String {
    let ended = sgm_tests::world::Server { process }.ended();
    format!(
        "{}{}ended with {}\n",
        ended.output, ended.errors, ended.code
    )
}

const MODES: [&str; 2] = ["6", "0"];
const PRIVATE: &str = "mount --make-rprivate /;";

#[test]
fn without_proc_or_memory() {
    if !is_root() {
        return not_run("only root can unmount");
    }
    for away in [
        "umount -l /proc;",
        "umount -l /dev/shm;",
        "mount -t tmpfs x /proc;",
    ] {
        for calls in MODES {
            let report = together(&["-m"], &format!("{PRIVATE} {away}"), calls);
            assert_eq!(report.carried.tx_bytes, 0, "{away} {report:?}");
        }
    }
}

/// Numbers of processes mean others in each: nobody is judged by those of another, and within one all goes through rings.
#[test]
fn process_and_user_namespaces() {
    if !is_root() {
        return not_run("only root can make process namespaces everywhere");
    }
    let worlds: [&[&str]; 3] = [
        &["-pf", "--mount-proc"],
        &["-Ur"],
        &["-Urpf", "--mount-proc"],
    ];
    for world in worlds {
        for calls in MODES {
            let report = apart(world, "", calls);
            assert_eq!(report.carried.tx_bytes, 0, "{world:?} {report:?}");
            assert!(!report.reasons.is_empty(), "{world:?} {report:?}");
            let report = together(world, "", calls);
            assert!(report.carried.tx_bytes > 150_000, "{world:?} {report:?}");
        }
    }
}

/// Where all users look like one, a stranger's directory looks like one's own.
#[test]
fn users_without_numbers() {
    if !is_root() {
        return not_run("only root can make user namespaces everywhere");
    }
    for calls in MODES {
        let report = together(&["-U"], "", calls);
        assert_eq!(report.carried.tx_bytes, 0, "{report:?}");
    }
    let world = World::new(Some(sgm_tests::front::Front::new()));
    let sgm = paths::sgm();
    let doctor = [sgm.as_os_str(), OsStr::new("doctor")];
    let mut doctor = unshared(&world, &["-U"], "", &doctor);
    doctor.env("SGM_DIR", world.front().node());
    let (text, code) = crate::told(doctor);
    let line = text.lines().find(|line| line.starts_with("BAD  directory"));
    assert!(
        line.is_some_and(|line| line.contains("owner can't be told")),
        "{text}"
    );
    assert!(
        text.contains("-> start the programs where every user has a number"),
        "{text}"
    );
    assert_ne!(code, 0);
}

/// With the /proc of the namespace around it a process is somebody else by name.
#[test]
fn anothers_proc() {
    if !is_root() {
        return not_run("only root can make process namespaces everywhere");
    }
    for calls in MODES {
        let report = together(&["-pf"], "", calls);
        assert_eq!(report.carried.tx_bytes, 0, "{report:?}");
    }
}

/// A program in a root where this library is not says nothing about that.
#[test]
fn another_root() {
    if !is_root() {
        return not_run("only root can change the root directory");
    }
    let ldd = |program: &Path| {
        let told = Command::new("ldd").arg(program).output().unwrap().stdout;
        let told = String::from_utf8(told).unwrap();
        let names = told.split_whitespace().filter(|word| word.starts_with('/'));
        names.map(String::from).collect::<Vec<_>>()
    };
    twice(|world| {
        let shell = paths::installed("dash", "dash");
        let root = world.path("root");
        let files = ldd(&shell).into_iter().map(|file| (file.clone(), file));
        let shell = (shell.to_str().unwrap().to_string(), "/bin/sh".to_string());
        for (from, to) in files.chain([shell]) {
            let to = root.join(to.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        }
        let command = world.command(
            "chroot",
            "coreutils",
            &[
                root.to_str().unwrap(),
                "/bin/sh",
                "-c",
                "echo in another root",
            ],
        );
        said(world.start(command, false))
    });
}

/// Sanitizers come with loaded libraries of their own, which want to be first; valgrind runs the program itself.
#[test]
fn instrumented() {
    const SOURCES: [&str; 3] = ["bulk.c", "stream.c", "common.c"];
    for kind in ["address", "thread", "undefined"] {
        for calls in MODES {
            let report = twice(|world| {
                let program = world.path("bulk");
                let mut gcc =
                    world.command("gcc", "gcc", &["-D_GNU_SOURCE", "-O1", "-g", "-pthread"]);
                gcc.arg(format!("-fsanitize={kind}"))
                    .arg("-o")
                    .arg(&program);
                gcc.args(SOURCES.map(|name| paths::program_sources().join(name)));
                assert!(gcc.status().unwrap().success(), "-fsanitize={kind}");
                both(world, &[program.as_os_str()], calls)
            });
            // Which watches for races, and knows nothing of rings.
            if kind == "thread" {
                assert_eq!(report.carried.tx_bytes, 0, "{kind} {report:?}");
                let told = report.reasons.get("races").copied();
                assert_eq!(told, Some(report.connections.tcp), "{kind} {report:?}");
            } else {
                assert!(report.carried.tx_bytes > 150_000, "{kind} {report:?}");
            }
        }
    }
    if on_path("valgrind").is_none() {
        return not_run("valgrind is not installed");
    }
    let program = compiled("bulk", Build::Plain);
    for calls in MODES {
        let valgrind = ["valgrind", "-q", "--error-exitcode=9"].map(OsStr::new);
        let command = [&valgrind[..], &[program.as_os_str()]].concat();
        let report = twice(|world| both(world, &command, calls));
        assert!(report.carried.tx_bytes > 150_000, "valgrind {report:?}");
    }
    for tool in ["--tool=helgrind", "--tool=drd"] {
        let valgrind = ["valgrind", "-q", "--error-exitcode=9", tool].map(OsStr::new);
        let command = [&valgrind[..], &[program.as_os_str()]].concat();
        let report = twice(|world| both(world, &command, "0"));
        assert_eq!(report.carried.tx_bytes, 0, "{tool} {report:?}");
        assert!(report.reasons.contains_key("races"), "{tool} {report:?}");
    }
}

/// Both roles of `COMMAND echo_small`.
fn both(world: &World, command: &[&OsStr], calls: &str) -> String {
    make_fifos(world);
    let start = |role: &str| {
        let mut run = Started::command(command[0]);
        run.args(&command[1..]).args(["echo_small", role]);
        run.env("SGM_TEST_DIR", world.scratch.path());
        run.env("SGM_PROMOTE_CALLS", calls);
        world.start(run, false)
    };
    [start("server"), start("client")].map(said).concat()
}

/// A program of another C library, whose loader would give up over ours: by itself, and as a child of one of ours.
#[test]
fn another_c_library() {
    const SOURCE: &str = "#include <stdio.h>\nint main(void) { puts(\"here\"); return 3; }\n";
    let Some(compiler) = on_path("musl-gcc") else {
        return not_run("musl-tools is not installed");
    };
    twice(|world| {
        fs::write(world.path("here.c"), SOURCE).unwrap();
        let mut gcc = Command::new(&compiler);
        gcc.arg("-o")
            .arg(world.path("here"))
            .arg(world.path("here.c"));
        assert!(gcc.status().unwrap().success());
        fs::write(
            world.path("script"),
            format!("#!{}\n", world.path("here").display()),
        )
        .unwrap();
        fs::set_permissions(world.path("script"), fs::Permissions::from_mode(0o755)).unwrap();
        let python = "import os,subprocess\n\
            print(subprocess.run(['./here']).returncode, flush=True)\n\
            print(os.waitpid(os.posix_spawn('./here', ['here'], os.environ), 0)[1], flush=True)\n";
        [
            Started::command(world.path("here")),
            Started::command(world.path("script")),
            world.command("sh", "dash", &["-c", "./here; ./script; ./here"]),
            world.command("python3", "python3", &["-c", python]),
        ]
        .into_iter()
        .map(|mut command| {
            command.current_dir(world.scratch.path());
            said(world.start(command, false))
        })
        .collect()
    });
}

fn on_path(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.exists())
}

/// What an ended namespace left in the node directory is taken away, that of one that goes on is not.
#[test]
fn ended_namespaces() {
    const PROGRAM: &str = "import socket\nlistener = socket.create_server(('127.0.0.1', 0))\n\
        client = socket.create_connection(listener.getsockname())\nprint('made', flush=True)\ninput()";
    if !is_root() {
        return not_run(
            "only the system's own process namespace sees all others, and root all processes in it",
        );
    }
    let (front, scratch) = (Front::new(), Scratch::new());
    let realms = || {
        let names = fs::read_dir(front.node())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("ns-"))
            .count()
    };
    let clean = || {
        assert!(
            front
                .sgm(&["doctor", "--clean"])
                .output()
                .unwrap()
                .status
                .code()
                .is_some()
        )
    };
    let mut command = Started::command("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(paths::sgm());
    command
        .args(["run", "--", "python3", "-c", PROGRAM])
        .env("SGM_DIR", front.node());
    let mut program = Conversation::new(&scratch, command);
    assert_eq!(program.next_line(), "made");
    assert_eq!(realms(), 1);
    clean();
    assert_eq!(realms(), 1);
    program.tell("end");
    assert_eq!(program.end().code, 0);
    clean();
    assert_eq!(realms(), 0);
}
