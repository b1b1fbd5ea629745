//! `sgm node`: this node as a whole, where `sgm status` shows its sockets.

use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Result;
use gm::os::ProcessId;
use gm::{Node, Port};
use serde::Serialize;

use crate::out::harmless;

#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct View {
    /// As `gm_set_name` gave it.
    name: Option<String>,
    dir: String,
    listeners: usize,
    /// Port files with at least one live process.
    ports: usize,
    processes: Vec<Process>,
    /// Why the node can't be used, if so.
    error: Option<String>,
}

#[derive(Serialize)]
struct Process {
    pid: u32,
    program: String,
}

pub fn main(args: Args) -> Result<ExitCode> {
    let view = look();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&view)?);
    } else {
        print!("{}", view.text());
    }
    Ok(if view.error.is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn look() -> View {
    let dir = Node::dir_from_env();
    let mut view = View {
        name: None,
        dir: dir.display().to_string(),
        listeners: 0,
        ports: 0,
        processes: Vec::new(),
        error: None,
    };
    // Neither a directory nor a registry is made for looking; without them there is just nothing yet.
    if !dir.exists() {
        return view;
    }
    match gm::name::get(&dir) {
        Ok(name) => view.name = name,
        Err(e) => view.error = Some(e.to_string()),
    }
    match Node::attach(&dir) {
        Ok(node) => view.listeners = node.census().listeners,
        Err(gm::Error::Os { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => view.error = Some(e.to_string()),
    }
    for port in Port::list(&dir).iter().filter_map(|p| Port::open(p).ok()) {
        let live = processes(&port);
        view.ports += usize::from(!live.is_empty());
        view.processes.extend(live);
    }
    view.processes.sort_by_key(|process| process.pid);
    view
}

/// The live processes of a port: the one that made it and its forked children.
fn processes(port: &Port) -> Vec<Process> {
    let family = &port.header().family;
    let ids = family.iter().map(|slot| ProcessId {
        pid: slot.pid.load(Relaxed),
        start: slot.start.load(Relaxed),
    });
    ids.filter(|id| id.alive())
        .filter_map(|id| {
            Some(Process {
                pid: id.pid,
                program: gm::os::process_name(id.pid)?,
            })
        })
        .collect()
}

impl View {
    fn text(&self) -> String {
        let name = match &self.name {
            Some(name) => name,
            None => "(none: gm_set_name --host-name=NAME gives it one)",
        };
        let mut text = format!(
            "name       {name}\ndirectory  {}\nlisteners  {}\nports      {}\nprocesses  {}\n",
            harmless(&self.dir),
            self.listeners,
            self.ports,
            self.processes.len()
        );
        for process in &self.processes {
            text += &format!("  {:>8}  {}\n", process.pid, harmless(&process.program));
        }
        if let Some(error) = &self.error {
            text += &format!("not usable: {}\n", harmless(error));
        }
        text
    }
}
