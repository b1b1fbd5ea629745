//! `sgm run` of programs that cannot be carried, do not exist, or end in other ways than well.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use sgm_tests::front::Front;
use sgm_tests::paths::Scratch;
use sgm_tests::programs::{Build, compiled};
use sgm_tests::world::{World, free_port};

use crate::{is_root, luck, not_run};

/// `sgm run [OPTIONS] -- PROGRAM ARGUMENTS`.
fn run(
    front: &Front,
    options: &[&str],
    program: &Path,
    arguments: &[&str],
) -> (String, String, i32) {
    let mut command: Command = front.sgm(&["run"]);
    command.args(options).arg("--").arg(program).args(arguments);
    // A user's terminal, not a developer's.
    command.env_remove("RUST_BACKTRACE");
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap());
    (text(&stdout), text(&stderr), code)
}

/// A program whose loader preloads nothing talks to a server under the front, and `--explain` says why over TCP.
fn uncarried(program: &Path, why: &str) {
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    let arguments = ["ask", &text, "3", "100", "3000"];
    let (output, errors, code) = run(world.front(), &["--explain"], program, &arguments);
    assert_eq!(code, 0, "{errors}");
    assert!(output.starts_with("3 connections, 100 rounds"), "{output}");
    assert!(
        errors.contains(why) && errors.contains("plain TCP"),
        "{errors}"
    );
    let (output, errors, code) = run(world.front(), &[], program, &["exit", "7"]);
    assert_eq!(
        (output.as_str(), errors.as_str(), code),
        ("a socket\n", "", 7)
    );
    let (_, _, code) = run(world.front(), &["--explain"], program, &["die", "15"]);
    assert_eq!(code, 143);
    server.stop();
    let report = world.report();
    assert_eq!(
        (report.carried.tx_bytes, report.connections.tcp),
        (0, 3),
        "{report:?}"
    );
    assert!(report.reasons.contains_key("not-offered"), "{report:?}");
}

#[test]
fn statically_linked() {
    uncarried(&compiled("luck", Build::Static), "statically linked");
}

#[test]
fn set_uid() {
    if !is_root() {
        return not_run("only root can make a set-uid copy for somebody else");
    }
    let scratch = Scratch::new();
    let copy = scratch.join("luck");
    fs::copy(compiled("luck", Build::Plain), &copy).unwrap();
    chown(&copy, Some(65534), None).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o4755)).unwrap();
    uncarried(&copy, "set-uid");
}

#[test]
fn missing_program() {
    let front = Front::new();
    for options in [&[][..], &["--explain"]] {
        let (output, errors, code) = run(&front, options, Path::new("/nonexistent/program"), &[]);
        assert!(output.is_empty(), "{output}");
        assert!(
            errors.contains("/nonexistent/program") && errors.contains("No such file"),
            "{errors}"
        );
        assert_eq!(code, 127, "as a shell and env(1) say it: {errors}");
    }
}

#[test]
fn program_that_may_not_be_run() {
    let (front, scratch) = (Front::new(), Scratch::new());
    let file = scratch.join("text");
    fs::write(&file, "no program").unwrap();
    for options in [&[][..], &["--explain"]] {
        let (output, errors, code) = run(&front, options, &file, &[]);
        assert!(output.is_empty(), "{output}");
        assert!(
            errors.contains("text") && errors.contains("ermission denied"),
            "{errors}"
        );
        assert_eq!(code, 126, "as a shell and env(1) say it: {errors}");
    }
}

#[test]
fn nothing_to_run() {
    let (output, errors, code) = {
        let Output {
            status,
            stdout,
            stderr,
        } = Front::new().sgm(&["run"]).output().unwrap();
        (
            stdout,
            String::from_utf8_lossy(&stderr).into_owned(),
            status.code(),
        )
    };
    assert!(output.is_empty() && errors.contains("Usage"), "{errors}");
    assert_eq!(code, Some(2));
}

#[test]
fn status_passes_through() {
    let (front, program) = (Front::new(), compiled("luck", Build::Plain));
    for options in [&[][..], &["--explain"], &["--report", "/dev/null"]] {
        for code in [0, 1, 7, 99, 126, 127, 255] {
            let (output, _, got) = run(&front, options, &program, &["exit", &code.to_string()]);
            assert_eq!((output.as_str(), got), ("a socket\n", code), "{options:?}");
        }
        for signal in [1, 2, 6, 9, 11, 15] {
            let (_, _, got) = run(&front, options, &program, &["die", &signal.to_string()]);
            assert_eq!(got, 128 + signal, "{options:?}");
        }
    }
}

/// The report cannot be written: the program ran all the same, and its status is not hidden.
#[test]
fn report_that_cannot_be_written() {
    let (front, program) = (Front::new(), compiled("luck", Build::Plain));
    let (output, errors, code) = run(
        &front,
        &["--report", "/nonexistent/report.json"],
        &program,
        &["exit", "7"],
    );
    assert_eq!(output, "a socket\n");
    assert!(errors.contains("/nonexistent/report.json"), "{errors}");
    assert_eq!(code, 7);
}

/// A connection that did nothing yet is listed with its addresses, from the kernel's tables.
#[test]
fn status_names_both_ends_of_an_idle_connection() {
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let server = world.serve(luck(&world, &["epoll", &port.to_string()]), port);
    let idle = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let ends = [idle.peer_addr().unwrap(), idle.local_addr().unwrap()];
    let deadline = Instant::now() + Duration::from_secs(30);
    // Until the server has accepted it.
    loop {
        let (text, _) = crate::told(world.front().sgm(&["status"]));
        let line = text.lines().find(|line| line.contains(" server "));
        if let Some(line) = line {
            for end in ends {
                assert!(line.contains(&end.to_string()), "{end} is missing:\n{text}");
            }
            break;
        }
        assert!(Instant::now() < deadline, "not listed:\n{text}");
    }
    drop(idle);
    server.stop();
}

/// Nothing is followed when it is switched off, and `--explain` says so.
#[test]
fn switched_off() {
    let world = World::new(Some(Front::new()));
    let mut command: Command = world.front().sgm(&["run", "--explain", "--"]);
    command.env("SGM_DISABLE", "1");
    command
        .arg(compiled("luck", Build::Plain))
        .args(["exit", "7"]);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{errors}");
    assert!(errors.contains("disabled: "), "{errors}");
}

/// What `sgm ARGUMENTS` says on both streams, and its exit code.
fn said(mut command: Command) -> (String, Option<i32>) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.env_remove("RUST_BACKTRACE").output().unwrap();
    let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    (text.into_owned(), status.code())
}

/// A misspelt option is not run as a program; options after the program are the program's.
#[test]
fn wrong_options() {
    let front = Front::new();
    for arguments in [
        &["run", "--explian", "--", "true"][..],
        &["run", "--explain", "-x", "--", "true"],
        &["run", "--repotr=file", "true"],
        &["wine", "--explian", "--", "program.exe"],
    ] {
        let (text, code) = said(front.sgm(arguments));
        assert!(
            text.contains("unexpected argument"),
            "{arguments:?}: {text}"
        );
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
    }
    for arguments in [
        &["run", "echo", "--explain"][..],
        &["run", "--", "echo", "--explain"],
    ] {
        let told = said(front.sgm(arguments));
        assert_eq!(told, ("--explain\n".to_string(), Some(0)));
    }
}

/// LD_PRELOAD has separators and words of its own; a library's path may hold them all the same.
#[test]
fn library_in_a_directory_with_an_odd_name() {
    let (front, scratch) = (Front::new(), Scratch::new());
    let program = compiled("luck", Build::Plain);
    for name in ["two words", "a:b", "$LIB"] {
        let place = scratch.join(name);
        fs::create_dir(&place).unwrap();
        let sgm = sgm_tests::paths::sgm();
        for file in ["sgm", "libsockets_gm.so"] {
            fs::copy(sgm.with_file_name(file), place.join(file)).unwrap();
        }
        // The second time, its link is there already.
        for _ in 0..2 {
            let report = place.join("report");
            let mut command = Command::new(place.join("sgm"));
            command.args(["run", "--report"]).arg(&report).arg("--");
            command.arg(&program).args(["exit", "7"]);
            command.env("SGM_DIR", front.node());
            assert_eq!(said(command), ("a socket\n".to_string(), Some(7)), "{name}");
            let report = fs::read_to_string(&report).unwrap();
            assert!(report.contains("\"ports\": 1"), "not loaded: {report}");
        }
    }
}

/// Nobody reads: no panic, and the exit status is what it would have been.
#[test]
fn closed_pipes() {
    let front = Front::new();
    for (arguments, code) in [
        (&["status"][..], 0),
        (&["status", "--json"], 0),
        (&["node"], 0),
        (&["doctor", "--json"], 0),
        (&["doctor"], 0),
        (&["--help"], 0),
        (&["compat"], 0),
        (&["run", "--explain", "--", "sh", "-c", "exit 7"], 7),
        (&["run", "/nonexistent/program"], 127),
    ] {
        let closed = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer
        };
        let mut command = front.sgm(arguments);
        let Output { status, stderr, .. } = command.stdout(closed()).output().unwrap();
        let errors = String::from_utf8_lossy(&stderr);
        assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
        // The doctor's opinion of this machine is not the matter.
        let doctor = arguments[0] == "doctor";
        assert!(
            doctor || status.code() == Some(code),
            "{arguments:?}: {status}"
        );
        let status = front
            .sgm(arguments)
            .stderr(closed())
            .output()
            .unwrap()
            .status;
        assert!(
            doctor || status.code() == Some(code),
            "{arguments:?}: {status}"
        );
        assert_ne!(status.code(), Some(101), "{arguments:?}");
    }
}

#[test]
fn help_has_examples_and_variables() {
    let (text, code) = said(Front::new().sgm(&["--help"]));
    for word in [
        "Examples:",
        "sgm run -- ",
        "SGM_DIR",
        "SGM_DISABLE",
        "SGM_PROMOTE_CALLS",
        "SGM_LSP",
    ] {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }
    assert_eq!(code, Some(0));
}

/// Listeners are listed, amounts are in units, and `--json` has them to the byte.
#[test]
fn status_for_people_and_for_scripts() {
    let world = World::new(Some(Front::new()));
    let port = free_port();
    let text = port.to_string();
    let server = world.serve(luck(&world, &["epoll", &text]), port);
    let client = world.start(luck(&world, &["hold", &text, "2"]), true);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !client.output_so_far().contains("held") {
        assert!(client.runs_after(Duration::from_millis(2)) && Instant::now() < deadline);
    }
    let (table, code) = crate::told(world.front().sgm(&["status"]));
    let listens = table.lines().find(|line| line.contains(" listens "));
    assert!(
        listens.is_some_and(|line| line.contains("luck") && line.ends_with(&format!(":{port}"))),
        "{table}"
    );
    assert!(table.contains(" KiB ") || table.contains(" B "), "{table}");
    assert_eq!(code, 0);
    let (json, _) = crate::told(world.front().sgm(&["status", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["sockets"][0]["tx_bytes"].is_u64(), "{json}");
    let local = json["listening"][0]["local"].as_str().unwrap();
    assert!(local.ends_with(&format!(":{port}")), "{json}");
    drop(client);
    server.stop();
}

/// A relative SGM_DIR means one directory, wherever the program goes before its first socket.
#[test]
fn relative_node_directory() {
    let scratch = Scratch::below(Path::new("/dev/shm"));
    let world = World::new(None);
    let port = free_port();
    let text = port.to_string();
    let sgm = sgm_tests::paths::sgm();
    let wandering = |arguments: &[&str]| {
        let program = luck(&world, arguments);
        let mut command = sgm_tests::process::Started::command(&sgm);
        command
            .args(["run", "--report"])
            .arg(world.path(arguments[0]))
            .args(["--", "sh", "-c", "cd / && exec \"$@\"", "sh"])
            .arg(program.get_program())
            .args(program.get_args())
            .current_dir(scratch.path())
            .env("SGM_DIR", "node");
        command
    };
    let server = world.serve(wandering(&["epoll", &text]), port);
    world.run(wandering(&["ask", &text, "1", "100", "3000"]));
    server.stop();
    let report = sgm_tests::front::read_report(&world.path("ask"));
    assert!(report.carried.tx_bytes > 10_000, "{report:?}");
}

/// What a program inherits of signals, ignored and blocked, it inherits under `sgm run` too.
#[test]
fn signals_are_inherited() {
    let starter = "import os, signal, sys\n\
        signal.signal(signal.SIGPIPE, getattr(signal, sys.argv[1]))\n\
        signal.signal(signal.SIGHUP, signal.SIG_IGN)\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n\
        os.execvp(sys.argv[2], sys.argv[2:])";
    let world = World::new(Some(Front::new()));
    let sgm = sgm_tests::paths::sgm();
    let sgm = sgm.to_str().unwrap();
    for pipe in ["SIG_IGN", "SIG_DFL"] {
        let told = |front: &[&str]| {
            let mut command = world.command("python3", "python3", &["-c", starter, pipe]);
            command
                .args(front)
                .args(["grep", "^Sig[BI]", "/proc/self/status"]);
            command.env("SGM_DIR", world.front().node());
            said(command)
        };
        let native = told(&[]);
        assert!(
            native.0.contains("SigBlk") && native.1 == Some(0),
            "{native:?}"
        );
        for front in [&[sgm, "run", "--"][..], &[sgm, "run", "--explain", "--"]] {
            let (text, code) = told(front);
            assert!(
                text.starts_with(&native.0),
                "{pipe} {front:?}: {text}, natively {native:?}"
            );
            assert_eq!(code, Some(0));
        }
    }
}

/// What a program hears of signals that are sent to the process that was started in its place.
const HEARS: &str = "import signal, sys\n\
    names = [n for n in sys.argv[1].split()]\n\
    for n in names: signal.signal(getattr(signal, n), lambda s, f, n=n: print(n, flush=True))\n\
    print('ready', flush=True)\n\
    for line in sys.stdin: print(line.strip(), flush=True)";

/// Three ways to start a program: in our place, by `sgm run`, and with a report.
fn ways() -> [Vec<String>; 3] {
    let sgm = sgm_tests::paths::sgm();
    let run = |options: &[&str]| {
        let mut all = vec![sgm.to_str().unwrap().to_string(), "run".into()];
        all.extend(options.iter().map(|o| (*o).to_string()));
        all.push("--".into());
        all
    };
    [
        vec![],
        run(&[]),
        run(&["--explain", "--report", "/dev/null"]),
    ]
}

#[test]
fn signals_are_passed_on() {
    const NAMES: &str = "SIGHUP SIGINT SIGQUIT SIGABRT SIGTERM SIGUSR1 SIGUSR2 SIGPIPE SIGALRM SIGVTALRM SIGPROF SIGIO \
        SIGURG SIGWINCH SIGCONT SIGXCPU SIGPWR SIGRTMIN SIGRTMAX";
    let starter = "import signal, subprocess, sys\n\
        signal.alarm(60)\n\
        p = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)\n\
        print(p.stdout.readline())\n\
        for n in sys.argv[1].split() * 2:\n \
            p.send_signal(getattr(signal, n))\n \
            print(p.stdout.readline())\n\
        print(p.communicate('end\\n')[0], p.returncode)";
    let world = World::new(Some(Front::new()));
    let told: Vec<_> = ways()
        .iter()
        .map(|way| {
            let mut command = world.command("python3", "python3", &["-c", starter, NAMES]);
            command.args(way).args(["python3", "-c", HEARS, NAMES]);
            command.env("SGM_DIR", world.front().node());
            said(command)
        })
        .collect();
    assert!(told[0].0.contains("SIGRTMAX"), "{told:?}");
    for other in &told[1..] {
        assert_eq!(*other, told[0]);
    }
}

/// The terminal sends to the whole group: the program has it already.
#[test]
fn the_terminals_signals_come_once() {
    let starter = "import os, pty, signal, sys\n\
        signal.alarm(60)\n\
        pid, fd = pty.fork()\n\
        if pid == 0: os.execvp(sys.argv[1], sys.argv[1:])\n\
        text = b''\n\
        def until(what, n):\n \
            global text\n \
            while text.count(what) < n: text += os.read(fd, 4096)\n\
        until(b'ready', 1)\n\
        for i in range(200):\n \
            os.write(fd, b'\\x03')\n \
            until(b'SIGINT', i + 1)\n\
        os.write(fd, b'last\\n')\n\
        until(b'last', 2)\n\
        print(text.count(b'SIGINT'))";
    let world = World::new(Some(Front::new()));
    for way in ways() {
        let mut command = world.command("python3", "python3", &["-c", starter]);
        command
            .args(&way)
            .arg(compiled("luck", Build::Plain))
            .args(["signalled", "-"]);
        command.env("SGM_DIR", world.front().node());
        assert_eq!(said(command), ("200\n".to_string(), Some(0)), "{way:?}");
    }
}

/// An alarm that was set before outlives exec, and means the program.
#[test]
fn an_alarm_from_before_ends_the_program() {
    let starter = "import os, signal, sys\n\
        signal.setitimer(signal.ITIMER_REAL, 0.3)\n\
        os.execvp(sys.argv[1], sys.argv[1:])";
    let world = World::new(Some(Front::new()));
    for way in ways() {
        let mut command = world.command("python3", "python3", &["-c", starter]);
        command
            .args(&way)
            .args(["sleep", "20"])
            .stdout(Stdio::null());
        command.env("SGM_DIR", world.front().node());
        let status = command.stderr(Stdio::null()).status();
        use std::os::unix::process::ExitStatusExt;
        let status = status.unwrap();
        let code = status.code().or(status.signal().map(|s| 128 + s));
        assert_eq!(code, Some(128 + 14), "{way:?}");
    }
}
