//! `sgm doctor`: is this node sound, and if not, how to mend it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use gm::{Distrust, Node, Port};
use serde::Serialize;

use crate::out::harmless;

#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Remove what dead processes and other versions left behind
    #[arg(long)]
    clean: bool,
}

#[derive(Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    pub found: String,
    /// What to do about it.
    pub mend: Option<String>,
}

pub fn good(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        name,
        ok: true,
        found: found.into(),
        mend: None,
    }
}

pub fn bad(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
    Check {
        name,
        ok: false,
        found: found.into(),
        mend: Some(mend.into()),
    }
}

pub fn main(args: Args) -> Result<ExitCode> {
    let dir = Node::dir_from_env();
    if args.clean {
        clean(&dir);
    }
    let mut checks = vec![
        library(),
        directory(&dir),
        registry(&dir),
        space(&dir),
        populate(),
        leftovers(&dir),
        other_versions(&dir),
        cpus(),
    ];
    checks.extend(crate::wine::checks());
    let ok = checks.iter().all(|c| c.ok);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        for c in &checks {
            println!(
                "{} {:<15} {}",
                if c.ok { "ok  " } else { "BAD " },
                c.name,
                harmless(&c.found)
            );
            if let Some(mend) = &c.mend {
                println!("     {:<15} -> {}", "", harmless(mend));
            }
        }
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn library() -> Check {
    match crate::run::library() {
        Ok(p) => good("library", p.display().to_string()),
        Err(e) => bad("library", e.to_string(), "cargo xtask build"),
    }
}

fn directory(dir: &Path) -> Check {
    let shown = dir.display();
    let there = std::fs::symlink_metadata(dir);
    if let Err(e) = gm::os::ensure_dir(dir) {
        return bad("directory", format!("{shown}: {e}"), way_out(dir, &e));
    }
    match there {
        Err(_) => good(
            "directory",
            format!("{shown} will be made by the first program"),
        ),
        Ok(m) if probe(dir) => good(
            "directory",
            format!(
                "{shown}, mode {:o}, owner {}",
                m.permissions().mode() & 0o7777,
                m.uid()
            ),
        ),
        Ok(_) => bad(
            "directory",
            format!("{shown} can't be written to"),
            format!("chown or chmod {shown}"),
        ),
    }
}

/// What to do about a node directory that can't be used.
pub fn way_out(dir: &Path, error: &std::io::Error) -> String {
    match Distrust::of(error) {
        Some(why) => why.way_out(dir),
        None => "set SGM_DIR to a directory on a tmpfs".into(),
    }
}

/// Can a file be made here? Others can't say where it goes: its name is new, and the directory was judged open.
fn probe(dir: &Path) -> bool {
    let path = dir.join(format!("probe-{:016x}", gm::os::random()));
    let made = gm::os::create_mapped(&path, 1).is_ok();
    if made {
        gm::os::remove(&path);
    }
    made
}

fn registry(dir: &Path) -> Check {
    let mend = format!(
        "stop the programs that use it, then: rm -r {}",
        dir.display()
    );
    if !dir.exists() {
        return good("registry", "none yet");
    }
    // What is in there may be anybody's: no reason to remove it.
    if gm::os::check_dir(dir).is_err() {
        return good("registry", "not looked at");
    }
    match Node::attach(dir) {
        Ok(n) => {
            let c = n.census();
            good(
                "registry",
                format!(
                    "version {}, {} listeners, {} offers",
                    ring::VERSION,
                    c.listeners,
                    c.offers
                ),
            )
        }
        Err(gm::Error::Os { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
            good("registry", "none yet")
        }
        Err(e) => bad("registry", e.to_string(), mend),
    }
}

fn space(dir: &Path) -> Check {
    const WANTED: u64 = 64 << 20;
    let at = if dir.exists() {
        dir
    } else {
        dir.parent().unwrap_or(dir)
    };
    match rustix::fs::statvfs(at) {
        Ok(s) => {
            let free = s.f_bavail * s.f_frsize;
            let found = format!("{} MiB free at {}", free >> 20, at.display());
            if free >= WANTED {
                good("space", found)
            } else {
                bad(
                    "space",
                    found,
                    "connections stay on TCP when it is full: enlarge the tmpfs (mount -o remount,size=...)",
                )
            }
        }
        Err(e) => bad(
            "space",
            e.to_string(),
            "set SGM_DIR to a directory on a tmpfs",
        ),
    }
}

/// MADV_POPULATE_WRITE lets a ring fail softly when memory is short.
fn populate() -> Check {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 14) {
        good("kernel", release)
    } else {
        bad(
            "kernel",
            release,
            "Linux 5.14 or later is needed (MADV_POPULATE_WRITE); on this one everything stays on TCP",
        )
    }
}

fn dead_ports(dir: &Path) -> Vec<std::path::PathBuf> {
    let dead = |p: &std::path::PathBuf| gm::sweep::port_is_dead(p);
    Port::list(dir).into_iter().filter(dead).collect()
}

fn files(dir: &Path, prefix: &str) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
        .map(|e| e.path())
        .collect()
}

fn leftovers(dir: &Path) -> Check {
    let ports = dead_ports(dir).len();
    let stale = Node::attach(dir).map(|n| n.census().stale).unwrap_or(0);
    let realms = deserted(dir).len();
    let mut found = format!("{ports} ports of dead processes, {stale} stale registry entries");
    if realms > 0 {
        found += &format!(", {realms} directories of ended namespaces");
    }
    if ports == 0 && stale == 0 && realms == 0 {
        good("leftovers", found)
    } else {
        // They harm nobody, so this is not a failure.
        Check {
            name: "leftovers",
            ok: true,
            found,
            mend: Some("sgm doctor --clean".into()),
        }
    }
}

fn other_versions(dir: &Path) -> Check {
    let ours = format!("node-v{}", ring::VERSION);
    let others: Vec<String> = files(dir, "node-v")
        .iter()
        .filter_map(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
        .filter(|n| *n != ours)
        .collect();
    if others.is_empty() {
        good("versions", format!("only version {}", ring::VERSION))
    } else {
        Check {
            name: "versions",
            ok: true,
            found: format!("also {}", others.join(", ")),
            mend: Some(
                "programs of different versions talk over TCP; restart the older ones".into(),
            ),
        }
    }
}

fn cpus() -> Check {
    let n = rustix::thread::sched_getaffinity(None).map_or(1, |s| s.count());
    if n > 1 {
        good("cpus", format!("{n}"))
    } else {
        Check {
            name: "cpus",
            ok: true,
            found: "1: programs take turns, round trips cost a switch of process".into(),
            mend: None,
        }
    }
}

/// Directories of realms (containers, say) in which no process is left.
fn deserted(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = files(dir, "ns-");
    if found.is_empty() {
        return found;
    }
    let Some(in_use) = gm::os::realms_in_use() else {
        return Vec::new();
    };
    found.retain(|inner| {
        let realm = gm::os::Realm::of_directory(inner);
        realm.is_some_and(|realm| !in_use.contains(&realm)) && gm::os::check_dir(inner).is_ok()
    });
    found
}

/// Removes what nobody alive owns. Where others may put links and names, nothing is ours to remove.
fn clean(dir: &Path) {
    if gm::os::check_dir(dir).is_err() {
        return;
    }
    gm::sweep::sweep_all(dir);
    for realm in deserted(dir) {
        // Somebody else may do the same.
        let _ = std::fs::remove_dir_all(realm);
    }
    if let Ok(node) = Node::attach(dir) {
        node.sweep();
    }
}
