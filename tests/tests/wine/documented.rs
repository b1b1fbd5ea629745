//! Where Windows documents another answer than plain Wine gives, and `lsp.dll` gives the documented one on Windows.

use crate::batch::{Transcript, World};

/// Case, plain Wine's line, the documented one.
const ANSWERS: &[(&str, &str, &str)] = &[
    // Wine reads a reset as an end once its server has seen it; recv: "WSAECONNRESET".
    ("close_unread", "recv = 0", "recv = -1 WSAECONNRESET"),
    ("linger_zero", "recv = 0", "recv = -1 WSAECONNRESET"),
    ("reset_unread", "at last = 0", "at last = -1 WSAECONNRESET"),
    ("select_reset", "recv = 0", "recv = -1 WSAECONNRESET"),
    ("poll_reset", "recv = 0", "recv = -1 WSAECONNRESET"),
    ("event_reset", "recv = 0", "recv = -1 WSAECONNRESET"),
    // WSAEnumNetworkEvents: FD_CLOSE comes with WSAECONNRESET.
    (
        "event_reset",
        "reset: FD_CLOSE",
        "reset: FD_CLOSE, FD_CLOSE WSAECONNRESET",
    ),
    // WSAEventSelect: what holds already is recorded with each call.
    (
        "event_read",
        "selected while there is data: none",
        "selected while there is data: FD_READ",
    ),
    (
        "event_close",
        "selected again: FD_WRITE",
        "selected again: FD_WRITE|FD_CLOSE",
    ),
    (
        "event_again",
        "writable is told once: none",
        "writable is told once: FD_WRITE",
    ),
    (
        "event_again",
        "nothing is left to tell: none",
        "nothing is left to tell: FD_READ",
    ),
    ("event_again", "told once: none", "told once: FD_CLOSE"),
    // The handle comes first.
    (
        "states",
        "bind, closed = -1 WSAEAFNOSUPPORT",
        "bind, closed = -1 WSAENOTSOCK",
    ),
    // select: a set that has no socket any more is WSAENOTSOCK.
    (
        "close_under_select",
        "select, blocked = 1",
        "select, blocked = -1 WSAENOTSOCK",
    ),
    (
        "close_under_poll",
        "select, blocked = 1",
        "select, blocked = -1 WSAENOTSOCK",
    ),
    // closesocket under a call that waits: WSAEINTR.
    (
        "close_under_recv",
        "recv, blocked = -1 WSAEINVAL",
        "recv, blocked = -1 WSAEINTR",
    ),
];

/// What a case should say, of what plain Wine says.
pub fn expected(world: World, case: &str, plain: &Transcript) -> Transcript {
    let mut expected = plain.clone();
    if world == World::Windows {
        for (_, from, to) in ANSWERS.iter().filter(|(name, _, _)| *name == case) {
            let mut lines = expected.server.iter_mut().chain(&mut expected.client);
            if let Some(line) = lines.find(|line| line == from) {
                *line = (*to).to_string();
            }
        }
    }
    expected
}
