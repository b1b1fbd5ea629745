//! Programs of the same user that write into the node's files, or put other things in their places: whoever uses the node
//! lives, serves new connections, sleeps when there is nothing to do, and ends when it is asked to. A process whose port, the state
//! of its own sockets, is scribbled over may lose these, and give no answers on new ones.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use sgm_tests::front::Front;
use sgm_tests::process::Started;
use sgm_tests::programs::{Build, compiled};
use sgm_tests::world::{Conversation, Server, World};

use crate::{check_lives, looks_busy, luck, open_sockets, serving};

/// Seeds of each kind; SGM_ATTACK_SEEDS says how many else.
const SEEDS: u32 = 4;
/// So long, in ms, each attack lasts.
const LASTS: &str = "300";
const PATIENCE: Duration = Duration::from_secs(60);
/// From a program's end until the one that waits for it has ended too.
const ENDING: Duration = Duration::from_secs(5);

fn seeds() -> u32 {
    let told = std::env::var("SGM_ATTACK_SEEDS").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(SEEDS)
}

struct Victim<'a> {
    world: &'a World,
    server: Server,
    process: u32,
    port: String,
    /// Its own state of its sockets is left alone, so its connections answer, or end.
    answers: bool,
}

impl<'a> Victim<'a> {
    fn new(world: &'a World, kind: &str) -> Victim<'a> {
        let (server, process, port) = serving(world, kind);
        Victim {
            world,
            server,
            process,
            port,
            answers: true,
        }
    }

    fn talker(&self) -> Conversation {
        let mut talker = self.world.converse(luck(self.world, &["talk", &self.port]));
        assert_eq!(talker.next_line(), "warm");
        talker
    }

    /// `attack DIR ...`, not under the front.
    fn attacker(&self, arguments: &[&str]) -> Conversation {
        let mut command = Started::command(compiled("attack", Build::Plain));
        command.arg(self.world.front().node()).args(arguments);
        Conversation::new(&self.world.scratch, command)
    }

    /// Lives, and serves who comes now.
    fn serves(&self, how: &str) {
        check_lives(&self.server, how);
        if !self.answers {
            return;
        }
        let mut talker = self.talker();
        assert_eq!(talker.ask("after it"), "right", "{how}");
        assert_eq!(talker.end().code, 0, "{how}");
    }

    /// And does nothing when nobody asks for anything.
    fn is_well(&self, how: &str) {
        self.serves(how);
        let idle = |_| looks_busy(&self.server.process, self.process) < 30;
        assert!(
            (0..30).any(idle),
            "{how}: the server burns CPU\n{}",
            self.server.process.whereabouts()
        );
    }

    /// Clients lose their connections, perhaps; they don't crash, and don't wait for ever.
    fn strike(&self, arguments: &[&str]) {
        let mut talkers = [self.talker(), self.talker()];
        let sockets = open_sockets(self.process);
        let ask = ["ask", &self.port, "3", "100000", "3000"];
        let busy = self.world.start(luck(self.world, &ask), false);
        let deadline = Instant::now() + PATIENCE;
        while open_sockets(self.process) < sockets + 3 {
            assert!(busy.runs_after(Duration::from_millis(1)) && Instant::now() < deadline);
        }
        let mut attacker = self.attacker(arguments);
        let how = format!("{}: {}", arguments.join(" "), attacker.next_line());
        eprintln!("{how}");
        for talker in &mut talkers {
            talker.tell("under it");
        }
        self.serves(&how);
        for mut talker in talkers {
            let patience = if self.answers {
                PATIENCE
            } else {
                Duration::ZERO
            };
            let said = talker.next_line_by(patience);
            assert!(
                !self.answers
                    || said.is_some_and(|line| line == "right")
                    || !talker.process.runs_after(ENDING),
                "{how}: a client hangs\n{}\n{}",
                talker.process.whereabouts(),
                self.server.process.whereabouts()
            );
            has_not_crashed(talker.stop().code, &how);
        }
        has_not_crashed(Server { process: busy }.stop().code, &how);
        assert_eq!(attacker.end().code, 0, "{how}");
        self.is_well(&how);
    }

    fn end(self) {
        assert_eq!(self.server.stop().code, 143);
    }
}

/// It answered, found its bytes wrong or its connection gone (`die` in common.c), or was stopped.
fn has_not_crashed(code: i32, how: &str) {
    assert!(
        [0, 98, 99, 143].contains(&code),
        "{how}: a client ended with {code}"
    );
}

fn strikes(kinds: &str) {
    for server in ["epoll", "threads"] {
        for seed in 0..seeds() {
            let world = World::new(Some(Front::new()));
            let mut victim = Victim::new(&world, server);
            victim.answers = !kinds.contains("port");
            eprint!("{server} ");
            victim.strike(&[kinds, &seed.to_string(), LASTS]);
            victim.end();
        }
    }
}

#[test]
fn segments_scribbled() {
    strikes("seg");
}

#[test]
fn queues_scribbled() {
    strikes("queue");
}

#[test]
fn ports_scribbled() {
    strikes("port");
}

#[test]
fn all_scribbled() {
    strikes("seg,queue,port,node");
}

/// The locks of an end are held by a thread that lives and never lets go.
#[test]
fn locks_held() {
    strikes("locks");
}

/// What rings for a waiter is taken off its bell.
#[test]
fn bells_spoilt() {
    strikes("bells");
}

/// Puts something at the first path that leads, perhaps, to the second.
type Plant = fn(&Path, &Path);

/// Each name of the node's files is something else: a link to a file elsewhere, a FIFO, a directory.
#[test]
fn other_things_in_their_places() {
    let world = World::new(Some(Front::new()));
    let victim = Victim::new(&world, "epoll");
    let talker = victim.talker();
    let node = world.front().node().to_path_buf();
    let secret = world.path("elsewhere");
    fs::write(&secret, [7; 12_288]).unwrap();
    let plants: [(&str, Plant); 3] = [
        ("link", |at, secret| symlink(secret, at).unwrap()),
        ("fifo", |at, _| {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, at, kind, mode, 0).unwrap();
        }),
        ("directory", |at, _| fs::create_dir(at).unwrap()),
    ];
    for (how, plant) in plants {
        let names: Vec<_> = fs::read_dir(&node).unwrap().flatten().collect();
        assert!(names.len() > 3, "{names:?}");
        for entry in names {
            let path = entry.path();
            if fs::remove_file(&path).is_err() {
                fs::remove_dir(&path).unwrap();
            }
            plant(&path, &secret);
        }
        victim.is_well(how);
        assert_eq!(fs::read(&secret).unwrap(), [7; 12_288], "{how}");
    }
    assert_eq!(talker.stop().code, 143);
    victim.end();
}
