//! The Windows part in waiting for several sockets at once, which is the engine's ([`sockets::several`]): what select and
//! WSAPoll share.
//!
//! All members are asked in one `ppoll` where each has a Linux descriptor and is a connection or a listener, else through
//! the lower provider.

use gm::Role;
use ring::sync::Ordering::Relaxed;
use sockets::several::{self, Below, Socket};
use sockets::{Ask, Conn, Host, Kernel, Ready};

use crate::answer::Code;
use crate::kernel::{self, poll_many};
use crate::slot::Inside;

pub use sockets::Deadline;

/// One socket of a call.
pub type Member = several::Member<Inside>;

impl Socket for Inside {
    type Kernel<'a> = kernel::Socket<'a>;

    fn conn(&self) -> Option<&Conn> {
        self.conn()
    }

    fn kernel(&self) -> kernel::Socket<'_> {
        self.socket()
    }
}

/// `want`: of IN, OUT, PRI.
pub fn member(inside: Inside, want: Ready) -> Member {
    let carried = inside.engaged().is_some();
    Member::new(inside, want, carried)
}

/// `None`: never.
pub fn after_us(us: Option<u64>) -> Deadline {
    us.map_or(Deadline::NEVER, |us| {
        Deadline::after_us(us, gm::os::monotonic_ns)
    })
}

/// Can its descriptor be asked with the same answer as the lower provider's? A socket that is connecting can't.
fn has_plain_fd(m: &Member) -> bool {
    let Some(conn) = m.socket.conn() else {
        return false;
    };
    let end = conn.end();
    let known = match end.role() {
        Role::Server | Role::Listener => true,
        Role::Client => m.is_carried() || end.tcp_tx.load(Relaxed) + end.tcp_rx.load(Relaxed) > 0,
        Role::Fresh => false,
    };
    known && m.socket.body().fd().is_some()
}

/// Asks the lower provider about `ask` of every member, waits for at most so many µs, and fills in `below`.
pub type AskLower<'a> = dyn FnMut(&mut [Member], Option<u64>) -> Result<(), Code> + 'a;

struct System<'a, 'b> {
    by_fd: bool,
    others: bool,
    lower: &'a mut AskLower<'b>,
}

/// Waits until a member is ready. At least one is carried, or the lower provider could have been asked by itself.
pub fn wait(members: &mut [Member], deadline: Deadline, lower: &mut AskLower) -> Result<(), Code> {
    let mut system = System {
        by_fd: kernel::is_linux() && members.iter().all(has_plain_fd),
        others: members.iter().any(|m| !m.is_carried()),
        lower,
    };
    several::wait(members, deadline, &mut system)
}

impl Below<Inside> for System<'_, '_> {
    type Fault = Code;
    type Host = Here;

    fn ask(&mut self, members: &mut [Member], how: Ask) -> Result<bool, Code> {
        let limit_us = match how {
            Ask::Look => Some(0),
            Ask::Sleep(limit_ns) => limit_ns.map(|ns| ns.div_ceil(1000)),
        };
        if self.by_fd {
            ask_fds(members, limit_us);
        } else {
            (self.lower)(members, limit_us)?;
        }
        Ok(false)
    }

    fn has_others(&self) -> bool {
        self.others
    }

    fn looks_fast(&self) -> bool {
        self.by_fd
    }

    /// The end of the stream is told by the whole view only.
    fn view(&self, m: &Member) -> Option<Ready> {
        (m.below != Ready::NONE).then(|| m.socket.socket().poll())
    }

    fn host(&self) -> Here {
        Here
    }
}

/// This machine, and this process on it.
pub struct Here;

impl Host for Here {
    fn now_ns(&self) -> u64 {
        gm::os::monotonic_ns()
    }

    fn yield_now(&self) {
        kernel::yield_now();
    }

    fn cpus(&self) -> u32 {
        kernel::cpus()
    }
}

fn ask_fds(members: &mut [Member], limit_us: Option<u64>) {
    let mut answers = Vec::with_capacity(members.len());
    {
        let mut fds: Vec<_> = members
            .iter()
            .filter_map(|m| Some((m.socket.body().fd()?, m.ask)))
            .collect();
        poll_many(&mut fds, limit_us);
        answers.extend(fds.into_iter().map(|(_, ready)| ready));
    }
    for (m, answer) in members.iter_mut().zip(answers) {
        m.below = answer;
    }
}
