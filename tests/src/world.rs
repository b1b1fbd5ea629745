//! Real servers and clients, run twice: natively and under the front. A scenario starts what it needs in a [`World`] and
//! gives its answers back as text; both texts must be equal, and the counters must show the path.

use std::cell::{OnceCell, RefCell};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::front::{Front, Report, read_report, sum};
use crate::other_user::OtherUser;
use crate::pair::tails;
use crate::paths::{self, Scratch};
use crate::process::{Ended, Started};
use crate::programs::{Build, compiled};

const CLIENT_LIMIT: Duration = Duration::from_secs(60);
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A directory, perhaps a front, and the reports of what ran under it.
pub struct World {
    pub scratch: Scratch,
    front: Option<Front>,
    reports: RefCell<Vec<PathBuf>>,
    user: OnceCell<OtherUser>,
}

/// Runs `scenario` natively and under the front and compares the answers. Returns the sum of all reports.
pub fn twice(scenario: impl Fn(&World) -> String) -> Report {
    let native = scenario(&World::new(None));
    assert!(
        !native.is_empty(),
        "a scenario without answers proves nothing"
    );
    let world = World::new(Some(Front::new()));
    let carried = scenario(&world);
    if native != carried {
        let same = native
            .lines()
            .zip(carried.lines())
            .take_while(|(one, two)| one == two)
            .count();
        panic!(
            "other answers than natively from line {} on\n--- natively\n{native}\n--- under the front\n{carried}",
            same + 1
        );
    }
    world.report()
}

impl World {
    pub fn new(front: Option<Front>) -> World {
        World {
            scratch: Scratch::new(),
            front,
            reports: RefCell::default(),
            user: OnceCell::new(),
        }
    }

    /// From now on, programs of this world run as the user `name`: for those that refuse to be root's. Nothing, if it isn't root
    /// who asks.
    pub fn serve_as(&self, name: &str) {
        if rustix::process::geteuid().is_root() {
            let node = self.front.as_ref().map(Front::node);
            let user = OtherUser::new(name, self.scratch.path(), node);
            assert!(self.user.set(user).is_ok(), "one other user for a world");
        }
    }

    /// What the latest program, which has ended, reported; `None` in a world without a front.
    pub fn last_report(&self) -> Option<Report> {
        self.reports.borrow().last().map(|file| read_report(file))
    }

    /// The sum of the reports of all that ran under the front; all must have ended.
    pub fn report(&self) -> Report {
        let reports: Vec<Report> = self
            .reports
            .borrow()
            .iter()
            .map(|file| read_report(file))
            .collect();
        sum(&reports)
    }

    pub fn front(&self) -> &Front {
        self.front.as_ref().expect("a world with a front")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A command of an installed program, to be run in this world's directory.
    pub fn command(&self, program: &str, package: &str, arguments: &[&str]) -> Command {
        let mut command = Started::command(paths::installed(program, package));
        command.args(arguments).current_dir(self.scratch.path());
        command
    }

    /// A command of a Python script of `programs/`.
    pub fn python(&self, script: &str, arguments: &[&str]) -> Command {
        let script = paths::program_sources().join(script);
        let mut command = self.command("python3", "python3", &[]);
        command.arg("-B").arg(script).args(arguments);
        command
    }

    /// A command of a shell script; `arguments` are its `$1` and so on.
    pub fn shell(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = self.command("sh", "dash", &["-c", script, "sh"]);
        command.args(arguments);
        command
    }

    /// Starts a command, under the front if this world has one.
    pub fn start(&self, command: Command, piped: bool) -> Started {
        let name = Path::new(command.get_program())
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let name = format!("{name}-{}", next_number());
        let mut command = match &self.front {
            None => command,
            Some(front) => {
                let (wrapped, report) = front.wrap(&command, self.scratch.path());
                self.reports.borrow_mut().push(report);
                wrapped
            }
        };
        if let Some(user) = self.user.get() {
            command = user.command(&command);
        }
        command.stdin(if piped { Stdio::piped() } else { Stdio::null() });
        Started::new(&name, self.scratch.path(), command)
    }

    /// Starts a server and waits until it listens on `port`.
    pub fn serve(&self, command: Command, port: u16) -> Server {
        Server::listening(self.start(command, false), port)
    }

    /// A command of a program of `programs/`.
    pub fn compiled(&self, program: &str, build: Build, arguments: &[&str]) -> Command {
        let mut command = Started::command(compiled(program, build));
        command.args(arguments).current_dir(self.scratch.path());
        command
    }

    /// Runs a client to its end, which must be a good one.
    pub fn run(&self, command: Command) -> Ended {
        self.run_with_input(command, b"")
    }

    pub fn run_with_input(&self, command: Command, input: &[u8]) -> Ended {
        let shown = format!("{command:?}");
        let mut process = self.start(command, true);
        let mut pipe = process.stdin();
        let input = input.to_vec();
        // A thread of its own: the program may stop reading while it has no room for its answers.
        let writer = std::thread::spawn(move || pipe.write_all(&input));
        let deadline = Instant::now() + CLIENT_LIMIT;
        process.runs_after(CLIENT_LIMIT);
        let whereabouts = process.whereabouts();
        let ended = process.end_by(deadline);
        // A program that ends without having read everything closes the pipe: its answers will tell.
        let _ = writer.join().unwrap();
        let Some(ended) = ended else {
            panic!(
                "{shown} hangs\n{whereabouts}{}",
                tails(&process.output_so_far(), &process.errors_so_far())
            );
        };
        assert_eq!(
            ended.code,
            0,
            "{shown}\n{}",
            tails(&ended.output, &ended.errors)
        );
        ended
    }

    /// A program that answers line by line.
    pub fn converse(&self, command: Command) -> Conversation {
        let mut process = self.start(command, true);
        let input = process.stdin();
        Conversation {
            process,
            input,
            answered: 0,
        }
    }

    /// A file of pseudo-random bytes.
    pub fn random_file(&self, name: &str, length: usize) -> PathBuf {
        let file = self.path(name);
        fs::write(&file, random_bytes(length as u64, length)).unwrap();
        file
    }
}

/// A server that is stopped with SIGTERM, or killed when the test fails.
pub struct Server {
    pub process: Started,
}

impl Server {
    /// Waits until `process` listens on `port`.
    pub fn listening(process: Started, port: u16) -> Server {
        let deadline = Instant::now() + START_LIMIT;
        while !listening(port) {
            // The pace of the looks is also a wait for the server's early death.
            assert!(
                process.runs_after(Duration::from_millis(3)) && Instant::now() < deadline,
                "{} does not listen\n{}",
                process.name,
                tails(&process.output_so_far(), &process.errors_so_far())
            );
        }
        Server { process }
    }

    /// Asks it to end and waits for it.
    pub fn stop(self) -> Ended {
        self.stop_by(Signal::TERM)
    }

    pub fn stop_by(self, signal: Signal) -> Ended {
        self.process.signal(signal);
        self.ended()
    }

    /// Waits for its own end.
    pub fn ended(mut self) -> Ended {
        let deadline = Instant::now() + STOP_LIMIT;
        self.process.runs_after(STOP_LIMIT);
        let whereabouts = self.process.whereabouts();
        self.process.end_by(deadline).unwrap_or_else(|| {
            let (output, errors) = (self.process.output_so_far(), self.process.errors_so_far());
            panic!(
                "{} does not end\n{whereabouts}{}",
                self.process.name,
                tails(&output, &errors)
            )
        })
    }
}

/// A program fed line by line, whose answers are looked at in between.
pub struct Conversation {
    pub process: Started,
    input: ChildStdin,
    answered: usize,
}

impl Conversation {
    /// With a program that runs in no world, its output in `scratch`.
    pub fn new(scratch: &Scratch, mut command: Command) -> Conversation {
        command.stdin(Stdio::piped());
        let name = format!("stranger-{}", next_number());
        let mut process = Started::new(&name, scratch.path(), command);
        let input = process.stdin();
        Conversation {
            process,
            input,
            answered: 0,
        }
    }

    /// Sends a line and waits for a line.
    pub fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.next_line()
    }

    /// The next line of its output; `None`: it ends, or says nothing for `limit`.
    pub fn next_line_by(&mut self, limit: Duration) -> Option<String> {
        let deadline = Instant::now() + limit;
        loop {
            let runs = self.process.runs_after(Duration::from_millis(1));
            let text = self.process.output_so_far();
            let line = text.split_inclusive('\n').nth(self.answered);
            if let Some(line) = line.filter(|line| line.ends_with('\n')) {
                self.answered += 1;
                return Some(line.trim_end().to_string());
            }
            if !runs || Instant::now() >= deadline {
                return None;
            }
        }
    }

    /// Gives it a line, and waits for no answer. It may have ended.
    pub fn tell(&mut self, line: &str) {
        let _ = writeln!(self.input, "{line}");
    }

    /// The next line of its output.
    pub fn next_line(&mut self) -> String {
        let deadline = Instant::now() + CLIENT_LIMIT;
        loop {
            let text = self.process.output_so_far();
            let lines: Vec<&str> = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .collect();
            if let Some(line) = lines.get(self.answered) {
                self.answered += 1;
                return line.trim_end().to_string();
            }
            assert!(
                self.process.runs_after(Duration::from_millis(1)) && Instant::now() < deadline,
                "no answer\n{}",
                tails(&text, &self.process.errors_so_far())
            );
        }
    }

    /// Closes its input and waits for its end.
    pub fn end(self) -> Ended {
        drop(self.input);
        Server {
            process: self.process,
        }
        .ended()
    }

    /// Ends it by a signal.
    pub fn stop(self) -> Ended {
        Server {
            process: self.process,
        }
        .stop()
    }
}

/// A port nobody listens on, below the range from which the kernel takes ports for connecting sockets.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + (std::process::id() % 200) as u16 * 100;
    (0..1000)
        .map(|_| start + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000)
        .find(|&port| TcpListener::bind(("::", port)).is_ok())
        .expect("a free port")
}

/// Whether somebody listens on `port`, asked of the kernel: connecting would be a connection of its own to the server.
fn listening(port: u16) -> bool {
    const LISTEN: &str = "0A";
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        fs::File::open(table).is_ok_and(|file| {
            BufReader::new(file)
                .lines()
                .map_while(Result::ok)
                .any(|line| {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    fields.get(3) == Some(&LISTEN)
                        && fields[1]
                            .rsplit(':')
                            .next()
                            .and_then(|hex| u16::from_str_radix(hex, 16).ok())
                            == Some(port)
                })
        })
    })
}

fn next_number() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Bytes that no compression or pattern would let pass when a piece is missing.
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Whether two files have the same content, as a word for an answer.
pub fn same_content(one: &Path, two: &Path) -> &'static str {
    if fs::read(one).unwrap() == fs::read(two).unwrap() {
        "the same bytes"
    } else {
        "OTHER BYTES"
    }
}
