//! Bad input and bad luck: a node directory that cannot be used, no memory, leftovers of the dead, files of other versions,
//! a hostile peer, programs that cannot be carried, very many sockets. Programs must give the same answers all the same.

mod attack;
mod command;
mod confined;
mod full;
mod hostile;
mod leftovers;
mod limits;
mod many;
mod node;
mod reasons;
mod registry;

use std::process::{Command, Output};
use std::time::Duration;

use sgm_tests::not_run;
use sgm_tests::process::Started;
use sgm_tests::programs::Build;
use sgm_tests::world::{Server, World, free_port};

/// `luck ARGUMENTS`.
fn luck(world: &World, arguments: &[&str]) -> Command {
    world.compiled("luck", Build::Plain, arguments)
}

/// Runs a command of `sgm` to its end.
fn told(mut command: Command) -> (String, i32) {
    let Output { status, stdout, .. } = command.output().unwrap();
    (
        String::from_utf8_lossy(&stdout).into_owned(),
        status.code().expect("sgm itself is not killed"),
    )
}

/// A server of `luck.c` of that kind, its process, and its port.
fn serving(world: &World, kind: &str) -> (Server, u32, String) {
    let number = free_port();
    let port = number.to_string();
    let server = world.serve(luck(world, &[kind, &port]), number);
    let process = server.process.program_id().unwrap();
    (server, process, port)
}

fn check_lives(server: &Server, how: &str) {
    assert!(
        server.process.runs_after(Duration::ZERO),
        "{how}: the server died\n{}",
        server.process.errors_so_far()
    );
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Clock ticks of CPU time that a process has used.
fn cpu_ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))
        .unwrap_or_else(|error| panic!("process {process} is gone: {error}"));
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    assert!(!"ZX".contains(fields[0]), "process {process} has died");
    // utime and stime are fields 14 and 15; the first of these is field 3.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// In how many of 100 looks one of its threads runs or waits for a CPU. Unlike its CPU time, this shows a busy loop on a busy machine.
fn looks_busy(server: &Started, process: u32) -> u32 {
    const LOOKS: u32 = 100;
    let runs = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('R'))
    };
    let busy = |_: &u32| {
        server.runs_after(std::time::Duration::from_millis(2));
        let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
        tasks.is_ok_and(|mut all| all.any(|task| task.is_ok_and(runs)))
    };
    (0..LOOKS).filter(busy).count() as u32
}

/// Descriptors of sockets that a process has open. Not its event queues' bells, of which it keeps some for the next that rings.
fn open_sockets(process: u32) -> usize {
    let Ok(all) = std::fs::read_dir(format!("/proc/{process}/fd")) else {
        return 0;
    };
    let links = all
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links
        .filter(|to| to.to_string_lossy().starts_with("socket:"))
        .count()
}
