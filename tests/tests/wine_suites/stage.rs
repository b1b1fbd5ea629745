//! Where a scenario runs: Windows programs on Wine's own Winsock or with the provider, Linux programs natively or under the
//! front, all on one node.

use std::cell::RefCell;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sgm_tests::front::{Front, Report, read_report, sum};
use sgm_tests::pair::tails;
use sgm_tests::process::{Ended, Started};
use sgm_tests::wine::{self, Mode, Wine, beside_others};
use sgm_tests::world::{Server, World};

use crate::things::item;

const CLIENT_LIMIT: Duration = Duration::from_secs(90);

pub struct Stage {
    /// For the Linux programs; all files lie in its directory.
    pub world: World,
    wine: Wine,
    mode: Mode,
    reports: RefCell<Vec<PathBuf>>,
}

/// Whether the halves with the provider are run.
pub fn with_provider() -> bool {
    env::var_os("SGM_SUITES").is_none_or(|word| word != "plain")
}

/// Runs `scenario` on both stages; the answers must be equal. Returns the sum of the reports, unless there was no provider.
pub fn twice(scenario: impl Fn(&Stage) -> String) -> Option<Report> {
    let _room = beside_others();
    let plain = scenario(&Stage::plain());
    println!("{plain}");
    assert!(
        !plain.is_empty(),
        "a scenario without answers proves nothing"
    );
    if !with_provider() {
        return None;
    }
    let stage = Stage::provider();
    let carried = scenario(&stage);
    assert_eq!(
        carried, plain,
        "other answers (left) than on Wine's own Winsock (right)"
    );
    let report = stage.report();
    println!("{report:?}");
    assert!(
        report.carried.rx_bytes <= report.carried.tx_bytes,
        "more came out of the rings than went in: {report:?}"
    );
    Some(report)
}

/// As [`twice`], and at least so many bytes went through rings.
pub fn twice_carried(least: u64, scenario: impl Fn(&Stage) -> String) {
    if let Some(report) = twice(scenario) {
        assert!(
            report.carried.tx_bytes >= least,
            "{} bytes carried, at least {least} expected: {report:?}",
            report.carried.tx_bytes
        );
    }
}

impl Stage {
    pub fn plain() -> Stage {
        Stage::new(Mode::Plain, World::new(None))
    }

    pub fn provider() -> Stage {
        Stage::new(Mode::Carried, World::new(Some(Front::new())))
    }

    fn new(mode: Mode, world: World) -> Stage {
        Stage {
            world,
            wine: Wine::new(),
            mode,
            reports: RefCell::default(),
        }
    }

    /// The command that runs an item's program on this stage, in its directory.
    pub fn windows(&self, from: &str, program: &str) -> Command {
        let program = item(from).join(program);
        let mut command = if self.mode == Mode::Carried {
            let mut reports = self.reports.borrow_mut();
            let report = self.file(&format!("windows-{}.json", reports.len()));
            reports.push(report.clone());
            self.wine
                .command(self.mode, &program, self.world.front(), Some(&report))
        } else {
            let no_node = Front::at(self.world.scratch.path());
            self.wine.command(self.mode, &program, &no_node, None)
        };
        // Wine's own errors, for a message about a failure.
        command.env("WINEDEBUG", "fixme-all");
        command.current_dir(self.world.scratch.path());
        command
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    /// Starts a command of [`Stage::windows`]; its output goes to files named after it.
    pub fn start(&self, name: &str, command: Command) -> Started {
        Started::new(name, self.world.scratch.path(), command)
    }

    /// Starts a server and waits until it listens.
    pub fn serve(&self, name: &str, command: Command, port: u16) -> Server {
        Server::listening(self.start(name, command), port)
    }

    /// Runs a client to its end, which must be a good one.
    pub fn run(&self, name: &str, command: Command) -> Ended {
        let shown = format!("{command:?}");
        let ended = wine::ends(&mut self.start(name, command), CLIENT_LIMIT);
        assert_eq!(
            ended.code,
            0,
            "{shown}\n{}",
            tails(&ended.output, &ended.errors)
        );
        ended
    }

    /// The sum over all that ran with the provider or under the front and has ended. A program that had to be killed left
    /// no report.
    pub fn report(&self) -> Report {
        let reports = self.reports.borrow();
        let windows = reports.iter().filter(|file| file.exists());
        let mut reports: Vec<Report> = windows.map(|file| read_report(file)).collect();
        reports.push(self.world.report());
        sum(&reports)
    }
}

/// A path as a Windows program takes it: Wine's drive Z is the root directory.
pub fn z(path: &Path) -> String {
    format!("Z:{}", path.display())
}
