//! One end of one measurement, in a process of its own: an ordinary socket program that knows nothing of the front.

mod accept;
mod cacheline;
mod content;
mod crowd;
mod idle;
mod paced;
mod roundtrip;
mod stream;
mod timing;
mod turns;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::machine;
use super::role::{Line, Outcome, Role, Side, Work};

/// Plays the role that `description` (JSON) asks for and says the outcome on standard output.
pub fn main(description: &str) -> Result<ExitCode> {
    let role: Role = serde_json::from_str(description).context("the worker's role")?;
    // A worker whose driver (or whose `sgm run`) was killed must not stay behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    machine::pin(role.cpu).with_context(|| format!("cannot run on CPU {}", role.cpu))?;
    match play(&role) {
        Ok(outcome) => {
            say(&Line::Done(outcome))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            say(&Line::Failed {
                error: format!("{error:#}"),
            })?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn play(role: &Role) -> Result<Outcome> {
    match (&role.work, role.side) {
        (Work::CacheLine { path, .. }, Side::Server) => cacheline::server(path),
        (Work::CacheLine { path, ms }, Side::Client { .. }) => cacheline::client(path, *ms),
        (work, Side::Server) => serve(work, &listen()?),
        (work, Side::Client { port }) => request(work, port),
    }
}

fn serve(work: &Work, listener: &TcpListener) -> Result<Outcome> {
    match *work {
        Work::RoundTrip {
            size, wait, warm, ..
        } => roundtrip::server(listener, size, wait, warm),
        Work::Paced { size, warm, .. } => {
            roundtrip::server(listener, size, super::role::Wait::Blocking, warm)
        }
        Work::Stream { size, no_delay, .. } => stream::server(listener, size, no_delay),
        Work::Connections { .. } => accept::server(listener),
        Work::Crowd { idle, trips, .. } | Work::Idle { idle, trips, .. } => {
            crowd::server(listener, idle, trips)
        }
        Work::Turns {
            connections, trips, ..
        }
        | Work::Beat {
            connections, trips, ..
        } => crowd::server(listener, connections, trips),
        Work::CacheLine { .. } => unreachable!("has no socket"),
    }
}

fn request(work: &Work, port: u16) -> Result<Outcome> {
    match *work {
        Work::RoundTrip {
            size,
            wait,
            warm,
            mean_ms,
            timed_ms,
        } => roundtrip::client(port, size, wait, warm, (mean_ms, timed_ms)),
        Work::Paced {
            size,
            warm,
            per_s,
            ms,
        } => paced::client(port, size, warm, per_s, ms),
        Work::Stream { size, no_delay, ms } => stream::client(port, size, no_delay, ms),
        Work::Connections { ms } => accept::client(port, ms),
        Work::Crowd {
            idle,
            trips,
            mean_ms,
            timed_ms,
        } => crowd::client(port, idle, trips, (mean_ms, timed_ms)),
        Work::Turns {
            connections,
            trips,
            mean_ms,
            timed_ms,
        } => turns::client(port, connections, trips, (mean_ms, timed_ms)),
        Work::Beat {
            connections,
            trips,
            ms,
        } => turns::beat(port, connections, trips, ms),
        Work::Idle { idle, trips, ms } => idle::client(port, idle, trips, ms),
        Work::CacheLine { .. } => unreachable!("has no socket"),
    }
}

fn say(line: &Line) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    say(&Line::Ready {
        port: listener.local_addr()?.port(),
    })?;
    Ok(listener)
}

/// Connects as nearly every program that cares about latency does: without Nagle's delay.
fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept().context("accept")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
