//! `sgm run` of programs that cannot be carried, do not exist, or end in other ways than well.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};
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
