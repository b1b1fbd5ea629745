//! Waiting for several sockets at once, carried and others: what select and WSAPoll share.
//!
//! Carried ones are looked at in their rings, the others are asked below: all of them in one `ppoll` where each has a
//! Linux descriptor and is a connection or a listener, else through the lower provider.

use std::sync::OnceLock;

use gm::{End, Path, Role};
use ring::sync::Ordering::Relaxed;
use sockets::{Conn, Kernel, Ready, Spin, Spun};

use crate::answer::Code;
use crate::kernel::{self, poll_many};
use crate::slot::Inside;

/// POLLPRI: urgent data.
pub const PRI: Ready = Ready(0x2);
/// With unread bytes that nobody asked for, the doorbell for room can't be told from theirs: look this often, in µs.
const BLIND_SLICE_US: u64 = 1000;
/// Rounds of a spin between two looks at the sockets that are not carried.
const OTHERS_EVERY: u32 = 64;

/// One socket of a call.
pub struct Member {
    pub inside: Inside,
    /// What is asked: IN, OUT, PRI.
    pub want: Ready,
    /// What there is.
    pub got: Ready,
    /// What to ask below, and what was answered there.
    pub ask: Ready,
    pub below: Ready,
    engaged: bool,
}

impl Member {
    pub fn new(inside: Inside, want: Ready) -> Self {
        let engaged = inside.engaged().is_some();
        Self {
            inside,
            want,
            got: Ready::NONE,
            ask: want,
            below: Ready::NONE,
            engaged,
        }
    }

    pub fn is_engaged(&self) -> bool {
        self.engaged
    }

    fn carried(&self) -> Option<&Conn> {
        self.inside.conn().filter(|_| self.engaged)
    }

    /// Can its descriptor be asked with the same answer as the lower provider's? A socket that is connecting can't.
    fn has_plain_fd(&self) -> bool {
        let Some(conn) = self.inside.conn() else {
            return false;
        };
        let end = conn.end();
        let known = match end.role() {
            Role::Server | Role::Listener => true,
            Role::Client => self.engaged || end.tcp_tx.load(Relaxed) + end.tcp_rx.load(Relaxed) > 0,
            Role::Fresh => false,
        };
        known && self.inside.body().fd().is_some()
    }

    /// What to ask below about a carried socket: doorbells and the peer's end; not what is known already and was not
    /// asked for, or the sleep would end at once.
    fn prepare(&mut self) {
        self.below = Ready::NONE;
        self.ask = self.want;
        let Some(conn) = self.inside.conn().filter(|_| self.engaged) else {
            return;
        };
        let mut ask = Ready(self.want.0 & PRI.0);
        if !conn.read_is_over() {
            ask |= Ready::RDHUP;
            if self.want.intersects(Ready::IN) || conn.readable_bytes(&self.inside.socket()) == 0 {
                ask |= Ready::IN;
            }
        }
        if conn.end().tx_path() != Path::Ring {
            ask |= Ready(self.want.0 & Ready::OUT.0);
        }
        self.ask = ask;
    }

    /// From what was answered below to what there is.
    fn conclude(&mut self) {
        let Some(conn) = self.inside.conn().filter(|_| self.engaged) else {
            self.got = self.below;
            return;
        };
        let k = self.inside.socket();
        // The end of the stream is told by the whole view only.
        let whole = (self.below != Ready::NONE).then(|| k.poll());
        self.got = conn.ready(&k, whole) | Ready(self.below.0 & PRI.0);
    }

    /// Is nothing left to read?
    pub fn is_drained(&self) -> bool {
        let conn = self.inside.conn();
        conn.is_some_and(|c| c.readable_bytes(&self.inside.socket()) == 0)
    }

    fn is_ready(&self) -> bool {
        self.got.0 & (self.want | Ready::ERR | Ready::HUP).0 != 0
    }
}

/// When the call ends.
#[derive(Clone, Copy)]
pub struct Deadline(Option<u64>);

impl Deadline {
    /// `None`: never.
    pub fn after_us(us: Option<u64>) -> Self {
        Self(us.map(|us| gm::os::monotonic_ns() / 1000 + us))
    }

    pub fn left_us(self) -> Option<u64> {
        self.0
            .map(|at| at.saturating_sub(gm::os::monotonic_ns() / 1000))
    }
}

/// Asks the lower provider about `ask` of every member, waits for at most so many µs, and fills in `below`.
pub type AskBelow<'a> = dyn FnMut(&mut [Member], Option<u64>) -> Result<(), Code> + 'a;

static SPIN: OnceLock<Spin> = OnceLock::new();

/// Waits until a member is ready. At least one is carried, or the lower provider could have been asked by itself.
pub fn wait(members: &mut [Member], deadline: Deadline, below: &mut AskBelow) -> Result<(), Code> {
    let by_fd = kernel::is_linux() && members.iter().all(Member::has_plain_fd);
    let others = members.iter().any(|m| !m.engaged);
    loop {
        look(members);
        let found = members.iter().any(Member::is_ready);
        if found || deadline.left_us() == Some(0) {
            // The others' turn, and peers that are gone.
            if others || !found {
                ask(members, Some(0), by_fd, below)?;
            }
            return Ok(());
        }
        if spin(members, others && by_fd, below)? {
            continue;
        }
        sleep(members, deadline, by_fd, below)?;
        if members.iter().any(Member::is_ready) {
            return Ok(());
        }
    }
}

/// The carried ones, by their rings.
fn look(members: &mut [Member]) {
    for m in members {
        m.got = match m.carried() {
            Some(conn) => conn.ready(&m.inside.socket(), None),
            None => Ready::NONE,
        };
    }
}

/// Everybody, by what is known below.
fn ask(
    members: &mut [Member],
    limit_us: Option<u64>,
    by_fd: bool,
    below: &mut AskBelow,
) -> Result<(), Code> {
    members.iter_mut().for_each(Member::prepare);
    if by_fd {
        ask_fds(members, limit_us);
    } else {
        below(members, limit_us)?;
    }
    members.iter_mut().for_each(Member::conclude);
    Ok(())
}

fn ask_fds(members: &mut [Member], limit_us: Option<u64>) {
    let mut answers = Vec::with_capacity(members.len());
    {
        let mut fds: Vec<_> = members
            .iter()
            .filter_map(|m| Some((m.inside.body().fd()?, m.ask)))
            .collect();
        poll_many(&mut fds, limit_us);
        answers.extend(fds.into_iter().map(|(_, ready)| ready));
    }
    for (m, answer) in members.iter_mut().zip(answers) {
        m.below = answer;
    }
}

fn spin(members: &mut [Member], others: bool, below: &mut AskBelow) -> Result<bool, Code> {
    let mut rounds = 0_u32;
    let mut failed = None;
    let found = SPIN
        .get_or_init(Spin::default)
        .wait(kernel::cpus(), kernel::yield_now, || {
            rounds += 1;
            if others && rounds.is_multiple_of(OTHERS_EVERY) {
                match ask(members, Some(0), true, below) {
                    Ok(()) if members.iter().any(Member::is_ready) => return true,
                    Ok(()) => {}
                    Err(code) => {
                        failed = Some(code);
                        return true;
                    }
                }
            }
            members.iter().any(has_news)
        });
    match failed {
        Some(code) => Err(code),
        None => Ok(found == Spun::Found),
    }
}

fn has_news(m: &Member) -> bool {
    m.carried().is_some_and(|conn| {
        conn.has_news(m.want.intersects(Ready::OUT))
            && conn.ready(&m.inside.socket(), None).0 & (m.want | Ready::ERR | Ready::HUP).0 != 0
    })
}

fn sleep(
    members: &mut [Member],
    deadline: Deadline,
    by_fd: bool,
    below: &mut AskBelow,
) -> Result<(), Code> {
    let mut blind = false;
    for m in members.iter() {
        if let Some(conn) = m.carried() {
            let k = m.inside.socket();
            conn.arm(&k);
            blind |= m.want.intersects(Ready::OUT)
                && !m.want.intersects(Ready::IN)
                && conn.readable_bytes(&k) > 0;
        }
    }
    // Before the look: room that comes after this is seen by that one, or within a slice. Its bell may be taken off by another
    // thread.
    let room = members.iter().filter(|m| m.want.intersects(Ready::OUT));
    let room = room
        .filter_map(Member::carried)
        .filter_map(Conn::room_slice_us);
    let room = room.min();
    look(members);
    let result = if members.iter().any(Member::is_ready) {
        Ok(())
    } else {
        let most = room
            .into_iter()
            .chain(blind.then_some(BLIND_SLICE_US))
            .min();
        let limit = deadline.left_us().into_iter().chain(most).min();
        let start = gm::clock::ticks();
        for conn in members.iter().filter_map(Member::carried) {
            End::count(&conn.end().sleeps, 1);
        }
        let result = ask(members, limit, by_fd, below);
        if let Some(spin) = SPIN.get() {
            spin.slept(gm::clock::ticks().wrapping_sub(start));
        }
        result
    };
    for conn in members.iter().filter_map(Member::carried) {
        conn.disarm();
    }
    result
}
