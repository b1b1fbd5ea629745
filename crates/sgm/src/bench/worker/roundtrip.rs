//! Request and answer on one connection, with each of the four ways in which programs wait for the next message.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use anyhow::{Context, Result, bail, ensure};

use super::super::role::{Outcome, Wait};
use super::super::sys::{self, Epoll, NO_EVENT};
use super::content::{Checker, Pattern};
use super::timing::{self, Meter};

/// A connection and its way of waiting.
pub struct Channel {
    stream: TcpStream,
    wait: Wait,
    epoll: Option<Epoll>,
}

impl Channel {
    pub fn new(stream: TcpStream, wait: Wait) -> Result<Self> {
        stream.set_nonblocking(wait != Wait::Blocking)?;
        let epoll = if wait == Wait::Epoll {
            Some(Epoll::new()?)
        } else {
            None
        };
        if let Some(epoll) = &epoll {
            epoll.add(&stream, 0)?;
        }
        Ok(Self {
            stream,
            wait,
            epoll,
        })
    }

    /// An event loop asks first whether there is something, a blocking or busy program just reads.
    #[inline]
    fn wait_readable(&self) -> Result<()> {
        match (&self.epoll, self.wait) {
            (Some(epoll), _) => drop(epoll.wait(&mut [NO_EVENT; 8], None)?),
            (None, Wait::Poll) => sys::poll(&self.stream, false)?,
            (None, _) => {}
        }
        Ok(())
    }

    /// Fills `message`; false if the peer closed before its first byte.
    #[inline]
    pub fn receive(&mut self, message: &mut [u8]) -> Result<bool> {
        let mut have = 0;
        while have < message.len() {
            self.wait_readable()?;
            match self.stream.read(&mut message[have..]) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => bail!(
                    "the peer closed after {have} of {} bytes of a message",
                    message.len()
                ),
                Ok(n) => have += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock && self.wait != Wait::Blocking => {
                    std::hint::spin_loop()
                }
                Err(e) => return Err(e).context("recv"),
            }
        }
        Ok(true)
    }

    #[inline]
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        let mut sent = 0;
        while sent < message.len() {
            match self.stream.write(&message[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock && self.wait != Wait::Blocking => {
                    sys::poll(&self.stream, true)?;
                }
                Err(e) => return Err(e).context("send"),
            }
        }
        Ok(())
    }
}

/// The client's half of the conversation: numbered messages out, the same ones back.
pub struct Caller {
    pub channel: Channel,
    pattern: Pattern,
    checker: Checker,
    request: Vec<u8>,
    answer: Vec<u8>,
    trips: u64,
}

impl Caller {
    pub fn new(channel: Channel, size: usize) -> Self {
        let pattern = Pattern::new(size, 0);
        let request = pattern.message();
        Self {
            channel,
            pattern,
            checker: Checker::new(pattern),
            answer: vec![0; size],
            request,
            trips: 0,
        }
    }

    fn exchange(&mut self) -> Result<()> {
        self.pattern.stamp(&mut self.request, self.trips);
        self.trips += 1;
        self.channel.send(&self.request)?;
        ensure!(
            self.channel.receive(&mut self.answer)?,
            "the server closed the connection"
        );
        Ok(())
    }

    /// One round trip; the numbers in the answer are checked.
    #[inline]
    pub fn trip(&mut self) -> Result<()> {
        self.exchange()?;
        self.checker.numbers(&self.answer)
    }

    /// One round trip; every byte of the answer is checked.
    pub fn trip_checked_whole(&mut self) -> Result<()> {
        self.exchange()?;
        self.checker.whole(&self.answer)
    }

    pub fn sent_bytes(&self) -> u64 {
        self.trips * self.request.len() as u64
    }

    /// Ends the conversation, and sees the server end it too.
    pub fn close(mut self) -> Result<()> {
        self.channel.stream.shutdown(Shutdown::Write)?;
        let more = self.channel.receive(&mut self.answer)?;
        ensure!(!more, "the server sent a message that nobody asked for");
        Ok(())
    }
}

/// Sends every message back, until the client closes. Its CPU time is counted from the end of the warm-up.
pub fn server(listener: &TcpListener, size: usize, wait: Wait, warm: u64) -> Result<Outcome> {
    let mut channel = Channel::new(super::accept(listener)?, wait)?;
    let mut message = vec![0; size];
    let mut outcome = Outcome {
        connections: 1,
        ..Outcome::default()
    };
    let mut meter = Meter::start();
    let mut echoed = 0;
    while channel.receive(&mut message)? {
        if echoed == warm {
            meter = Meter::start();
        }
        channel.send(&message)?;
        echoed += 1;
    }
    meter.stop(&mut outcome);
    outcome.sent_bytes = echoed * size as u64;
    outcome.messages = echoed.saturating_sub(warm);
    Ok(outcome)
}

pub fn client(
    port: u16,
    size: usize,
    wait: Wait,
    warm: u64,
    passes_ms: (u64, u64),
) -> Result<Outcome> {
    let mut caller = Caller::new(Channel::new(super::connect(port)?, wait)?, size);
    let mut outcome = Outcome {
        connections: 1,
        ..Outcome::default()
    };
    // The first half is checked whole, the second half runs as the measured part will, for the guess.
    timing::warm(warm / 2, || caller.trip_checked_whole())?;
    let guess_ns = timing::warm(warm - warm / 2, || caller.trip())?;
    let meter = Meter::start();
    timing::both_passes(&mut outcome, passes_ms, guess_ns, || caller.trip())?;
    meter.stop(&mut outcome);
    caller.trip_checked_whole()?;
    outcome.sent_bytes = caller.sent_bytes();
    caller.close()?;
    Ok(outcome)
}
