//! The behaviour suite, theme by theme and in every mode. What plain Wine says is right, even where Windows says otherwise:
//! it is what a program got before.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use sgm_tests::front::Front;
use sgm_tests::paths::Scratch;
use sgm_tests::process::Started;
use sgm_tests::wine::{Mode, Wine, beside_others, ends};

use crate::batch::{Outcome, Setup, Transcript, World, run};
use crate::documented::expected;
use crate::pending::CUT_SHORT;

/// What a case needs, and whether its connection is carried when it is warm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A connection, which ends up or begins in shared memory.
    Carried,
    /// As `Carried`; the client has a connection to itself besides, which is carried whatever the peer has.
    Within,
    /// As `Carried`, with overlapped calls: these stay carried where a connection has a descriptor.
    Posted,
    /// Two parts, with connections of their own making or such as stay on TCP.
    Two,
    /// As `Two`; it cancels calls, which no provider without kernel handles is told of on Windows.
    Cancels,
    /// As `Two`; the case ends Winsock for its whole process and so cannot have both parts in one.
    Apart,
    Solo,
    /// As `Solo`; it shows that a call with OVERLAPPED ends at once, which on Windows none may say.
    AtOnce,
}

struct Case {
    name: &'static str,
    kind: Kind,
}

struct Theme {
    cases: &'static [Case],
    /// Plain Wine's answers, IPv4 and IPv6.
    plain: [OnceLock<Outcome>; 2],
}

const PLAIN: Setup = Setup::of(Mode::Plain);
const CARRIED: Setup = Setup::of(Mode::Carried);

impl Theme {
    const fn new(cases: &'static [Case]) -> Theme {
        Theme {
            cases,
            plain: [const { OnceLock::new() }; 2],
        }
    }

    fn names(&self, setup: Setup) -> Vec<(&'static str, bool)> {
        self.cases
            .iter()
            .filter(|case| match case.kind {
                Kind::Apart => !setup.together,
                Kind::Cancels => setup.world != World::Windows,
                // It has no side that could be alone.
                Kind::Solo => setup.server == setup.client,
                Kind::AtOnce => setup.server == setup.client && setup.world != World::Windows,
                _ => true,
            })
            .map(|case| (case.name, matches!(case.kind, Kind::Solo | Kind::AtOnce)))
            .collect()
    }

    fn reference(&self, wine: &Wine, ipv6: bool) -> &Outcome {
        self.plain[usize::from(ipv6)].get_or_init(|| self.plain_answers(wine, ipv6))
    }

    fn plain_answers(&self, wine: &Wine, ipv6: bool) -> Outcome {
        let setup = Setup { ipv6, ..PLAIN };
        let mut reference = run(wine, &self.names(setup), setup);
        for (name, solo) in self.names(setup) {
            // On a busy machine plain Wine itself hangs now and then: that is nothing to be compared with.
            for _ in 0..3 {
                if fails(&reference.cases[name]) {
                    println!("{name}, {setup:?}: {:?}, again", reference.cases[name]);
                    let again = run(wine, &[(name, solo)], setup);
                    reference.cases.extend(again.cases);
                }
            }
        }
        reference
    }

    /// Every case of the theme says what it says on plain Wine.
    fn same(&self, setup: Setup) {
        let _room = beside_others();
        let wine = Wine::new();
        self.same_as(self.reference(&wine, setup.ipv6), &wine, setup);
    }

    /// So it does as a 32-bit program.
    fn narrow(&self) {
        let _room = beside_others();
        if let Some(wine) = Wine::narrow() {
            let setup = Setup {
                warm: true,
                ..CARRIED
            };
            self.same_as(&self.plain_answers(&wine, false), &wine, setup);
        }
    }

    fn same_as(&self, reference: &Outcome, wine: &Wine, setup: Setup) {
        let outcome = run(wine, &self.names(setup), setup);
        let mut wrong = String::new();
        for (name, solo) in self.names(setup) {
            let expected = &expected(setup.world, name, &reference.cases[name]);
            let got = &outcome.cases[name];
            if fails(expected)
                || (got != expected
                    && !also_plain(wine, name, solo, setup, got)
                    && !otherwise_same(wine, name, solo, setup, expected))
            {
                wrong += &difference(name, expected, got);
            }
        }
        assert!(wrong.is_empty(), "{setup:?} {:?}{wrong}", outcome.report);
        let all_carried = setup.server == Mode::Carried && setup.client == Mode::Carried;
        if all_carried && setup.warm {
            self.check_carried(&outcome, setup.world);
        } else if !all_carried {
            assert_eq!(
                outcome.report.connections.carried,
                2 * self.count(Kind::Within) * u64::from(setup.client == Mode::Carried),
                "carried to a peer without the provider: {:?}",
                outcome.report
            );
        }
    }

    fn count(&self, kind: Kind) -> u64 {
        self.cases.iter().filter(|case| case.kind == kind).count() as u64
    }

    /// Each warm connection counts at both ends, and what it said after the sixth turn of its warm-up went through the rings.
    fn check_carried(&self, outcome: &Outcome, world: World) {
        const LEAST_BYTES: u64 = 64 * 1024;
        let mut warm = self.count(Kind::Carried) + self.count(Kind::Within);
        let report = &outcome.report;
        let posted = self.count(Kind::Posted);
        if posted > 0 && world == World::Wine {
            warm += posted;
            // But for those that are made for calls which go over TCP.
            let back = report.reasons.get("overlapped").copied().unwrap_or(0);
            assert!(back <= self.count(Kind::Two), "{report:?}");
        }
        assert!(
            report.connections.carried >= 2 * warm
                && report.carried.tx_bytes >= warm * LEAST_BYTES
                && report.carried.rx_bytes <= report.carried.tx_bytes,
            "{warm} connections should have been carried: {report:?}"
        );
    }
}

/// The suite itself gave up on it, or nobody said anything.
fn fails(transcript: &Transcript) -> bool {
    if transcript.server.is_empty() && transcript.client.is_empty() {
        return true;
    }
    transcript
        .server
        .iter()
        .chain(&transcript.client)
        .any(|line| {
            ["HANGS", "FATAL", "LATE"]
                .iter()
                .any(|word| line.starts_with(word))
        })
}

/// Does a case that differed once say what plain Wine says in two of three further runs? These tests share a machine and one Wine
/// server with others, and their time limits are a person's. A difference that comes back is a failure; one that doesn't is
/// printed.
fn otherwise_same(
    wine: &Wine,
    name: &'static str,
    solo: bool,
    setup: Setup,
    expected: &Transcript,
) -> bool {
    let again = || run(wine, &[(name, solo)], setup).cases[name] == *expected;
    let same = [(); 3].iter().filter(|()| again()).count();
    println!("{name}, {setup:?}: differed, and {same} of 3 times more did not");
    same >= 2
}

/// Wine and the kernel below it have more than one answer here and there. So what differs must be what another plain run says.
fn also_plain(wine: &Wine, name: &str, solo: bool, setup: Setup, got: &Transcript) -> bool {
    const MORE_PLAIN_RUNS: usize = 4;
    let again = Setup {
        server: Mode::Plain,
        client: Mode::Plain,
        world: World::Wine,
        ..setup
    };
    !fails(got)
        && (0..MORE_PLAIN_RUNS).any(|_| {
            let plain = &run(wine, &[(name, solo)], again).cases[name];
            expected(setup.world, name, plain) == *got
        })
}

fn difference(name: &str, expected: &Transcript, got: &Transcript) -> String {
    let mut text = format!("\n--- {name}");
    for (part, expected, got) in [
        ("server", &expected.server, &got.server),
        ("client", &expected.client, &got.client),
    ] {
        if expected == got {
            continue;
        }
        let same = expected
            .iter()
            .zip(got)
            .take_while(|(one, two)| one == two)
            .count();
        text += &format!(
            "\n    {part}, from line {} on\n      plain: {}\n      here:  {}",
            same + 1,
            expected[same..].join(" / "),
            got[same..].join(" / ")
        );
    }
    text
}

macro_rules! kind {
    (carried) => {
        Kind::Carried
    };
    (within) => {
        Kind::Within
    };
    (posted) => {
        Kind::Posted
    };
    (two) => {
        Kind::Two
    };
    (cancels) => {
        Kind::Cancels
    };
    (apart) => {
        Kind::Apart
    };
    (solo) => {
        Kind::Solo
    };
    (at_once) => {
        Kind::AtOnce
    };
}

/// For each theme a module of tests, the same for all.
macro_rules! themes {
    ($($theme:ident { $($kind:ident $case:ident;)* })*) => {
        $(mod $theme {
            use super::*;

            pub static THEME: Theme = Theme::new(&[
                $(Case { name: stringify!($case), kind: kind!($kind) },)*
            ]);

            /// The theme says the same every time, cold or warm: otherwise it could not be compared.
            #[test]
            fn plain() {
                THEME.same(Setup { warm: true, ..PLAIN });
            }
            #[test]
            fn base() {
                THEME.same(Setup::of(Mode::Base));
            }
            #[test]
            fn fall_through() {
                THEME.same(Setup { warm: true, ..Setup::of(Mode::FallThrough) });
            }
            #[test]
            fn carried() {
                THEME.same(Setup { warm: true, ..CARRIED });
            }
            #[test]
            fn carried_cold() {
                THEME.same(CARRIED);
            }
            #[test]
            fn carried_ipv6() {
                THEME.same(Setup { warm: true, ipv6: true, ..CARRIED });
            }
            #[test]
            fn carried_in_one_process() {
                THEME.same(Setup { warm: true, together: true, ..CARRIED });
            }
            #[test]
            fn through_the_lower_provider() {
                THEME.same(Setup { warm: true, world: World::Lower, ..CARRIED });
            }
            #[test]
            fn as_on_windows() {
                THEME.same(Setup { warm: true, world: World::Windows, ..CARRIED });
            }
            #[test]
            fn narrow() {
                THEME.narrow();
            }
            #[test]
            fn server_alone() {
                THEME.same(Setup { client: Mode::Plain, warm: true, ..CARRIED });
            }
            #[test]
            fn client_alone() {
                THEME.same(Setup { server: Mode::Plain, warm: true, ..CARRIED });
            }
        })*

        static THEMES: &[&Theme] = &[$(&$theme::THEME,)*];
    };
}

themes! {
    stream {
        carried echo;
        carried echo_small;
        carried large_turns;
        carried bulk;
        carried small_writes;
        carried peek;
        carried peek_waits;
        carried vectors;
        carried nothing;
        carried odd_flags;
        carried nonblocking;
        carried fill;
        carried duplex_nonblocking;
        carried bad_arguments;
        carried bad_memory;
        carried wait_all;
    }
    end {
        carried half_close;
        carried shut_receive;
        carried close_at_once;
        carried close_unread;
        carried linger_zero;
        carried reset_unread;
        carried to_nobody;
        carried blocked_sender;
        carried blocked_receiver;
        carried blocked_receiver_end;
        carried linger_time;
        carried disconnect_calls;
        carried both_shut;
        carried unread_after_end;
    }
    select {
        carried select_states;
        carried select_reset;
        carried select_errors;
        carried select_times;
        carried select_wakes;
        two many_connections;
        two mixed_sockets;
        solo connecting;
        carried poll_states;
        carried poll_many;
        carried poll_reset;
        carried one_set;
    }
    events {
        carried event_read;
        carried event_write;
        carried event_close;
        carried event_reset;
        carried event_rules;
        two event_accept;
        solo event_connect;
        carried event_echo;
        within event_several;
        carried event_in_turns;
        carried event_again;
        carried event_given_up;
        carried event_ways;
        carried event_others;
        carried event_shared;
        carried event_once;
    }
    messages {
        carried async_read;
        carried async_write;
        carried async_rules;
        solo async_both_ends;
        carried async_echo;
        solo blocking_hooks;
        carried async_again;
        solo async_late;
        solo async_short_lives;
    }
    options {
        carried options;
        carried connect_time;
        carried protocol_info;
        carried names;
        solo states;
        solo connect_errors;
        carried timeouts;
        carried ioctls;
    }
    overlapped {
        posted by_event;
        posted at_once;
        posted in_line;
        posted by_port;
        posted by_routine;
        posted zero_bytes;
        cancels cancel;
        posted close_pending;
        posted reset_pending;
        posted port_bulk;
        posted in_turns;
        posted port_threads;
        posted port_ways;
    }
    skip {
        posted skip_calls;
        posted skip_mirror;
        posted skip_cancel;
        solo skip_close;
        solo skip_extensions;
    }
    extensions {
        two accept_connect_ex;
        solo connect_ex_errors;
        solo accept_ex_closed;
        posted transmit_file;
        posted transmit_large;
        two disconnect_ex;
        two mswsock_exports;
    }
    threads {
        carried many_writers;
        carried four_threads;
        carried two_readers;
        carried close_under_recv;
        solo close_under_accept;
        carried close_under_select;
        within close_under_poll;
        carried shut_under_recv;
        carried duplicated;
        carried duplicate_first_closed;
        two duplicated_ports;
        two duplicated_listener;
        carried passing_threads;
    }
    accept {
        two accept_basics;
        two backlog;
        two condition;
        two connect_ways;
        two inherited;
    }
    urgent {
        two urgent;
        two urgent_inline;
        two urgent_event;
        two urgent_then_bulk;
    }
    library {
        solo startup;
        apart cleanup_ends;
        solo cleanup_again;
        solo last_error;
        solo addresses;
        solo catalog;
        two udp;
        solo udp_copies;
    }
    odd {
        at_once odd_ioctls;
        solo odd_info;
        at_once odd_last_errors;
        solo odd_statuses;
        solo odd_calls;
    }
}

#[test]
fn every_case_is_run() {
    let (wine, front, scratch) = (Wine::new(), Front::new(), Scratch::new());
    let mut command = wine.command(Mode::Plain, &wine.suite(), &front, None);
    command.arg("list");
    let mut process = Started::new("list", scratch.path(), command);
    let output = ends(&mut process, Duration::from_secs(60)).output;
    let listed: BTreeSet<&str> = output
        .lines()
        .map(|line| line.split_once(' ').expect("a kind and a name").1)
        .collect();
    let known: BTreeSet<&str> = THEMES
        .iter()
        .flat_map(|theme| theme.cases)
        .map(|case| case.name)
        .chain([CUT_SHORT])
        .collect();
    assert_eq!(listed, known);
}
