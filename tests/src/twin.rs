//! Twins: a case natively and under the front must say the same, and the front's own counters must show that the ring
//! carried the bytes; else the twin would prove nothing.

use std::sync::OnceLock;

use crate::front::{Report, sum};
use crate::pair::{Outcome, Setup, run, tails};
use crate::process::Ended;
use crate::programs::Build;

/// What the front's counters must show when both roles run under it.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// Both roles together sent at least so many bytes through rings.
    Carried(u64),
    /// The case itself takes the connection back to TCP at some point, or makes none that lasts: only that the counters agree.
    Any,
}

/// Whether the roles of a case can change places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Pair,
    Raw,
}

/// One case, with its native outcome remembered.
pub struct Twin {
    program: &'static str,
    case: &'static str,
    kind: Kind,
    expect: Expect,
    native: OnceLock<Outcome>,
}

impl Twin {
    pub const fn new(
        program: &'static str,
        case: &'static str,
        kind: Kind,
        expect: Expect,
    ) -> Twin {
        Twin {
            program,
            case,
            kind,
            expect,
            native: OnceLock::new(),
        }
    }

    /// The case says the same every time, whoever connected: otherwise it could not be compared.
    pub fn native(&self) {
        let again = run(
            self.program,
            self.case,
            Setup {
                swapped: self.kind == Kind::Pair,
                ..Setup::NATIVE
            },
        );
        self.same(&again, self.kind == Kind::Pair);
        let cold = run(
            self.program,
            self.case,
            Setup {
                warm_up: 0,
                ..Setup::NATIVE
            },
        );
        self.same(&cold, false);
        let (server, client) = (&self.outcome().server, &self.outcome().client);
        for end in [server, client] {
            assert!(
                end.code < 90 && !(server.output.is_empty() && client.output.is_empty()),
                "{} {} fails natively: {}\n{}",
                self.program,
                self.case,
                end.code,
                tails(&end.output, &end.errors)
            );
        }
    }

    /// Both under the front, after a warm-up: carried.
    pub fn carried(&self) {
        self.check_carried(&self.compare(Setup::CARRIED));
        self.blind_to_stdio(Setup::CARRIED);
    }

    /// The same without a warm-up: whatever is promoted is promoted in the middle of the case.
    pub fn cold(&self) {
        let cold = Setup {
            warm_up: 0,
            ..Setup::CARRIED
        };
        self.compare(cold);
        self.blind_to_stdio(cold);
    }

    /// Where the case gives its connection to stdio, it goes back to TCP there as well, as with other C libraries.
    fn blind_to_stdio(&self, setup: Setup) {
        const GIVEN: [&str; 9] = [
            "back", "given", "ready", "leave", "stdio", "file", "share", "adopt", "confined",
        ];
        if GIVEN.contains(&self.program) {
            self.compare(Setup {
                stdio: false,
                ..setup
            });
        }
    }

    /// The fortified build, with the parts of connecting and accepting process exchanged where the case allows it.
    pub fn fortified(&self) {
        let fortified = Setup {
            swapped: self.kind == Kind::Pair,
            build: Build::Fortified,
            ..Setup::CARRIED
        };
        self.check_carried(&self.compare(fortified));
        self.blind_to_stdio(fortified);
    }

    /// Only one role under the front: plain TCP, the same answers, and a reason.
    pub fn one_sided(&self, server_under_front: bool) {
        let setup = Setup {
            server_under_front,
            client_under_front: !server_under_front,
            ..Setup::NATIVE
        };
        let outcome = self.compare(setup);
        let report = total(&outcome);
        // own_peer connects to itself and is carried with no help from the other role.
        if self.case != "own_peer" {
            assert_eq!(
                report.carried.tx_bytes, 0,
                "carried to a peer without the front: {report:?}"
            );
            assert!(
                report.connections.tcp == 0 || !report.reasons.is_empty(),
                "TCP without a reason: {report:?}"
            );
        }
    }

    /// A statically linked program never meets the front and works all the same.
    pub fn statically_linked(&self) {
        let report = total(&self.compare(Setup {
            build: Build::Static,
            ..Setup::CARRIED
        }));
        assert_eq!(report.carried.tx_bytes, 0, "{report:?}");
    }

    fn outcome(&self) -> &Outcome {
        self.native
            .get_or_init(|| run(self.program, self.case, Setup::NATIVE))
    }

    fn compare(&self, setup: Setup) -> Outcome {
        let outcome = run(self.program, self.case, setup);
        self.same(&outcome, setup.swapped);
        outcome
    }

    /// The kernel itself has more than one answer here and there (a poll that wakes in the middle of a reset). So what
    /// differs from the first native run must be what another native run says.
    fn same(&self, outcome: &Outcome, swapped: bool) {
        const MORE_NATIVE_RUNS: usize = 8;
        let pair = |o: &Outcome| {
            let (s, c) = (&o.server, &o.client);
            [(s.output.clone(), s.code), (c.output.clone(), c.code)]
        };
        let mut got = pair(outcome);
        if swapped {
            got.reverse();
        }
        if pair(self.outcome()) == got {
            return;
        }
        let again = || pair(&run(self.program, self.case, Setup::NATIVE)) == got;
        if (0..MORE_NATIVE_RUNS).any(|_| again()) {
            return;
        }
        self.exactly_same(outcome, swapped);
    }

    fn exactly_same(&self, outcome: &Outcome, swapped: bool) {
        let native = self.outcome();
        let (server, client) = if swapped {
            (&native.client, &native.server)
        } else {
            (&native.server, &native.client)
        };
        for (role, expected, got, other) in [
            ("server", server, &outcome.server, &outcome.client),
            ("client", client, &outcome.client, &outcome.server),
        ] {
            if (&expected.output, expected.code) != (&got.output, got.code) {
                panic!(
                    "{}",
                    difference(
                        &format!("{} {}: {role}", self.program, self.case),
                        expected,
                        got,
                        other,
                        outcome
                    )
                );
            }
        }
    }

    fn check_carried(&self, outcome: &Outcome) {
        let report = total(outcome);
        assert!(
            report.carried.rx_bytes <= report.carried.tx_bytes,
            "more bytes left the rings than went into them: {report:?}"
        );
        if let Expect::Carried(least) = self.expect {
            assert!(
                report.carried.tx_bytes >= least,
                "{} {}: {} bytes carried, at least {least} expected\nserver {:?}\nclient {:?}",
                self.program,
                self.case,
                report.carried.tx_bytes,
                outcome.server_report,
                outcome.client_report
            );
        }
    }
}

fn total(outcome: &Outcome) -> Report {
    sum(outcome.server_report.iter().chain(&outcome.client_report))
}

fn difference(
    what: &str,
    expected: &Ended,
    got: &Ended,
    other: &Ended,
    outcome: &Outcome,
) -> String {
    let same = expected
        .output
        .lines()
        .zip(got.output.lines())
        .take_while(|(one, two)| one == two)
        .count();
    format!(
        "{what} says something else than natively (from line {} on)\n--- expected: ended with {}\n{}\n--- got: ended with {}\n{}\n--- the other role: ended with {}\n{}\n--- reports {:?}\n{:?}",
        same + 1,
        expected.code,
        tails(&expected.output, &expected.errors),
        got.code,
        tails(&got.output, &got.errors),
        other.code,
        tails(&other.output, &other.errors),
        outcome.server_report,
        outcome.client_report
    )
}
