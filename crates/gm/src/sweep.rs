//! What programs that were killed leave in the node directory goes with the next program that opens the node.
//!
//! Rules:
//! 1. A file goes only when it is sure that nobody alive uses it: a port whose family is dead, a segment whose two ends
//!    are over or dead, an event queue whose maker is. Who was counted and has not come yet keeps port and segment for a while. A
//!    segment that can't be read (half made, or nonsense) and a draft go when they are a minute old.
//! 2. The ports of a run whose `sgm run --report` still waits for them stay.
//! 3. The directory of another realm goes when it is a minute old and holds a registry alone.
//! 4. A sweep is short ([`PATIENCE_NS`]) and rare ([`PAUSE_NS`]): where it stopped, the next one goes on, and soon if this one found
//!    much ([`BRIEF_NS`]), or programs that are killed in a loop would leave more than it takes away.

use std::path::Path;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::time::{Duration, SystemTime};

use crate::os::{self, ProcessId};
use crate::segment::{self, Segment, Side};
use crate::{Error, EventQueue, Node, Port, events};

const PAUSE_NS: u64 = 1_000_000_000;
const BRIEF_NS: u64 = PAUSE_NS / 16;
const PATIENCE_NS: u64 = 3_000_000;
/// So many files are looked at in any case: on a busy machine the time may pass without us.
const LEAST: usize = 32;
const HALF_MADE: Duration = Duration::from_secs(60);

impl Node {
    /// Sweeps, unless somebody did so a moment ago.
    pub fn sweep_if_due(&self) {
        let now = os::monotonic_ns();
        let last = self.header().swept.load(Relaxed);
        // A time to come is nonsense, or of another boot.
        let due = last > now || now - last >= PAUSE_NS;
        if due
            && self
                .header()
                .swept
                .compare_exchange(last, now, AcqRel, Relaxed)
                .is_ok()
        {
            let from = self.header().sweep_from.load(Relaxed) as usize;
            let Swept { next, removed } = sweep(self.dir(), from, now + PATIENCE_NS);
            self.header().sweep_from.store(next as u32, Relaxed);
            if next != 0 && removed >= LEAST / 2 {
                let due = now.saturating_sub(PAUSE_NS - BRIEF_NS);
                self.header().swept.store(due, Relaxed);
            }
        }
    }
}

/// Looks at all files of the directory, however long it takes.
pub fn sweep_all(dir: &Path) {
    // Ports first: segments are told by them.
    for _ in 0..2 {
        sweep(dir, 0, u64::MAX);
    }
}

/// How far a sweep came, 0: to the end; and how many files it removed.
#[derive(Default)]
struct Swept {
    next: usize,
    removed: usize,
}

/// Looks at the files from the `from`th on until `deadline`.
fn sweep(dir: &Path, from: usize, deadline: u64) -> Swept {
    let mut swept = Swept::default();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return swept;
    };
    let mut ports = Ports::new();
    for (i, entry) in entries.flatten().enumerate().skip(from) {
        if i >= from + LEAST && os::monotonic_ns() > deadline {
            // What was removed is not counted by the next.
            swept.next = i - swept.removed.min(i - 1);
            return swept;
        }
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if os::is_inner(&entry.path()) {
            sweep_inner(&entry.path());
        } else if let Some(id) = queue_id(name)
            && let Some(left) = events::is_left(dir, id)
        {
            if left {
                EventQueue::remove(dir, id);
                // The file and the bell.
                swept.removed += 2;
            }
        } else if is_left(dir, name, &entry.path(), &mut ports) {
            os::remove(&entry.path());
            swept.removed += 1;
        }
    }
    swept
}

/// The node of another realm, whose processes we can't judge: if there is nothing but a registry in it, and that for a while,
/// it goes. Who has it open still finds no place for its sockets, and they are plain.
fn sweep_inner(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    let paths: Vec<_> = entries.flatten().map(|e| e.path()).take(2).collect();
    let registry = |p: &std::path::PathBuf| *p == Node::file_in(dir);
    if paths.iter().all(registry) && is_old(dir) {
        paths.iter().for_each(|p| os::remove(p));
        let _ = std::fs::remove_dir(dir);
    }
}

/// Ports that a sweep has opened: many segments have their ends in the same.
type Ports = Vec<(ProcessId, Result<Port, Error>)>;

fn is_left(dir: &Path, name: &str, path: &Path, ports: &mut Ports) -> bool {
    if name.starts_with("port-") {
        return port_is_dead(path);
    }
    if name.starts_with("new-") {
        return is_old(path);
    }
    if queue_id(name).is_some() {
        return is_old(path);
    }
    id_in(name, "seg-").is_some_and(|id| segment_is_dead(dir, id, path, ports))
}

fn id_in(name: &str, prefix: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok()
}

/// Of the event queue whose file, or whose bell, has that name.
fn queue_id(name: &str) -> Option<u64> {
    id_in(name, "queue-").or_else(|| id_in(name, "bell-"))
}

/// A port that nobody lives in and nobody waits for.
pub fn port_is_dead(path: &Path) -> bool {
    let Some(maker) = Port::maker_of(path) else {
        return is_old(path);
    };
    // Also one that is half made.
    if maker.alive() {
        return false;
    }
    let port = match Port::open(path) {
        Ok(port) => port,
        Err(e) => return e.is_missing(),
    };
    let run = port.header().run.load(Acquire);
    let awaited = run != 0 && os::process_exists(waiter(run));
    port.is_dead() && !awaited
}

/// `sgm run --report` gathers the ports with this number: its pid over something random.
pub fn run_of(waiter: u32) -> u64 {
    u64::from(waiter) << 32 | os::random() & 0xffff_ffff
}

fn waiter(run: u64) -> u32 {
    (run >> 32) as u32
}

fn segment_is_dead(dir: &Path, id: u64, path: &Path, ports: &mut Ports) -> bool {
    let Ok(segment) = Segment::look(dir, id) else {
        return is_old(path);
    };
    if segment.owner(Side::Client).is_none() {
        return is_old(path);
    }
    [Side::Client, Side::Server].into_iter().all(|side| {
        segment.outstanding(side).is_none_or(|at| {
            let known = ports.iter().position(|(maker, _)| *maker == at.port);
            let i = known.unwrap_or_else(|| {
                ports.push((at.port, segment::port_of(dir, at.port)));
                ports.len() - 1
            });
            segment::is_gone(&ports[i].1, at, id)
        })
    })
}

fn is_old(path: &Path) -> bool {
    let made = std::fs::symlink_metadata(path).and_then(|m| m.modified());
    made.is_ok_and(|t| {
        SystemTime::now()
            .duration_since(t)
            .is_ok_and(|age| age > HALF_MADE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;
    use crate::port::AWAITED_NS;

    /// A sweep can't judge another namespace's processes.
    #[test]
    fn the_node_of_another_realm_goes_when_it_is_old_and_empty() {
        let dir = std::env::temp_dir().join(format!("sgm-sweep-{:016x}", os::random()));
        let inner = dir.join("ns-f0000001-effffffa-effffffd");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(Node::file_in(&inner), "").unwrap();
        sweep_all(&dir);
        assert!(inner.exists(), "it may just be in use for the first time");
        let age = || {
            let inner = std::fs::File::open(&inner).unwrap();
            inner.set_modified(SystemTime::now() - 2 * HALF_MADE)
        };
        let port = inner.join("port-1-1");
        std::fs::write(&port, "").unwrap();
        age().unwrap();
        sweep_all(&dir);
        assert!(
            inner.exists(),
            "somebody lives there, as far as can be told"
        );
        std::fs::remove_file(&port).unwrap();
        age().unwrap();
        sweep_all(&dir);
        assert!(!inner.exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn where_much_was_left_the_next_sweep_is_soon() {
        const LEFT: usize = 20_000;
        let dir = std::env::temp_dir().join(format!("sgm-sweep-{:016x}", os::random()));
        let node = Node::open(&dir).unwrap();
        let old = SystemTime::now() - 2 * HALF_MADE;
        for i in 0..LEFT {
            let file = std::fs::File::create(dir.join(format!("new-{i:x}"))).unwrap();
            file.set_modified(old).unwrap();
        }
        let left = || std::fs::read_dir(&dir).unwrap().count() - 1;
        let mut sweeps = 0;
        while left() > 0 {
            let swept = &node.header().swept;
            let last = swept.load(Relaxed);
            let since = os::monotonic_ns().saturating_sub(last);
            assert!(sweeps == 0 || since >= PAUSE_NS - BRIEF_NS || left() < LEAST);
            // As if the time had passed.
            swept.store(last.saturating_sub(PAUSE_NS), Relaxed);
            let before = left();
            node.sweep_if_due();
            assert!(left() < before);
            sweeps += 1;
        }
        assert!(sweeps > 1, "all at once");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_port_is_kept_for_who_is_on_the_way_but_not_for_ever() {
        let dir = std::env::temp_dir().join(format!("sgm-sweep-{:016x}", os::random()));
        os::ensure_dir(&dir).unwrap();
        // Of this number, but not this process: so it lives no more.
        let mut maker = ProcessId::me();
        maker.start += 1;
        let port = Port::create(&dir, maker, 0).unwrap();
        let index = port.allocate(None, Role::Client, maker.pid).unwrap();
        let end = &port.ends()[index as usize];
        let is_dead = || port_is_dead(port.path());
        assert!(is_dead());

        // A program was started with the socket.
        end.due.store(1, Relaxed);
        assert!(!is_dead() && !end.is_deserted());
        // It does not come.
        let long_ago = os::monotonic_ns().saturating_sub(AWAITED_NS + 1);
        let left = &port.header().left_ns;
        left.store(long_ago, Relaxed);
        assert!(is_dead());
        // It comes, and ends; and time counts from then on.
        port.join(ProcessId::me());
        assert!(!is_dead());
        port.leave(ProcessId::me());
        assert!(!is_dead());
        assert!(end.take_due() && is_dead());

        // The same of a child.
        port.expect_child();
        assert!(!is_dead());
        port.child_came();
        assert!(is_dead());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
