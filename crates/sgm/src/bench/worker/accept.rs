//! Connections per second: connect, one byte each way, close. Too short for the front to carry, on purpose: what is
//! measured is that connection set-up pays nothing for it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::super::role::Outcome;
use super::timing::Meter;

/// The byte on the last connection.
const LAST: u8 = 0xff;

/// Answers the first byte of each connection with its complement, until the client has closed.
pub fn server(listener: &TcpListener) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    loop {
        let (mut stream, _) = listener.accept().context("accept")?;
        let mut byte = [0];
        stream.read_exact(&mut byte).context("recv")?;
        stream.write_all(&[!byte[0]]).context("send")?;
        outcome.connections += 1;
        outcome.sent_bytes += 1;
        let after = stream.read(&mut [0; 16]).context("recv at the end")?;
        ensure!(
            after == 0,
            "{after} bytes too many on connection {}",
            outcome.connections
        );
        if byte[0] == LAST {
            return Ok(outcome);
        }
    }
}

pub fn client(port: u16, ms: u64) -> Result<Outcome> {
    let one = |byte: u8| -> Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connect")?;
        stream.write_all(&[byte]).context("send")?;
        let mut answer = [0];
        stream.read_exact(&mut answer).context("recv")?;
        ensure!(
            answer[0] == !byte,
            "wrong answer {:02x} to {byte:02x}",
            answer[0]
        );
        Ok(())
    };
    for byte in 0..32 {
        one(byte)?;
    }
    let mut outcome = Outcome::default();
    let meter = Meter::start();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(ms) {
        one((outcome.messages % u64::from(LAST)) as u8)?;
        outcome.messages += 1;
    }
    meter.stop(&mut outcome);
    one(LAST)?;
    outcome.connections = 32 + outcome.messages + 1;
    outcome.sent_bytes = outcome.connections;
    Ok(outcome)
}
