//! One direction only: how many messages, how many bytes per second.
//!
//! The client's clock runs from the moment when the server has read the warm-up until the moment when it has read
//! everything, so bytes that only sit in a buffer are not counted as delivered.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::super::role::Outcome;
use super::content::{Checker, Pattern};
use super::timing::Meter;

/// Messages before the clock starts.
fn warm_messages(size: usize) -> u64 {
    ((4 << 20) / size as u64).clamp(16, 4096)
}

pub fn server(listener: &TcpListener, size: usize, no_delay: bool) -> Result<Outcome> {
    let mut stream = super::accept(listener)?;
    stream.set_nodelay(no_delay)?;
    let mut checker = Checker::new(Pattern::new(size, 0));
    let mut buffer = vec![0; size.max(64 << 10)];
    let warm_bytes = warm_messages(size) * size as u64;
    let mut received = 0;
    loop {
        let n = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).context("recv"),
        };
        if received < warm_bytes {
            checker.whole(&buffer[..n])?;
        } else {
            checker.numbers(&buffer[..n])?;
        }
        let before = received;
        received += n as u64;
        if before < warm_bytes && received >= warm_bytes {
            stream.write_all(&received.to_le_bytes())?;
        }
    }
    stream.write_all(&received.to_le_bytes())?;
    Ok(Outcome {
        sent_bytes: 16,
        connections: 1,
        messages: received / size as u64,
        ..Outcome::default()
    })
}

pub fn client(port: u16, size: usize, no_delay: bool, ms: u64) -> Result<Outcome> {
    let mut stream = super::connect(port)?;
    stream.set_nodelay(no_delay)?;
    let pattern = Pattern::new(size, 0);
    let mut message = pattern.message();
    let mut index = 0;
    let mut send = |stream: &mut std::net::TcpStream| -> Result<()> {
        pattern.stamp(&mut message, index);
        index += 1;
        stream.write_all(&message).context("send")
    };
    let warm = warm_messages(size);
    for _ in 0..warm {
        send(&mut stream)?;
    }
    let ready = read_count(&mut stream)?;
    ensure!(
        ready == warm * size as u64,
        "the server read {ready} bytes of a warm-up of {warm} messages"
    );

    let mut outcome = Outcome {
        connections: 1,
        ..Outcome::default()
    };
    let meter = Meter::start();
    let limit = Duration::from_millis(ms);
    let start = Instant::now();
    let batch = ((64 << 10) / size).max(1) as u64;
    while start.elapsed() < limit {
        for _ in 0..batch {
            send(&mut stream)?;
        }
        outcome.messages += batch;
    }
    stream.shutdown(Shutdown::Write)?;
    let read = read_count(&mut stream)?;
    meter.stop(&mut outcome);
    outcome.sent_bytes = (warm + outcome.messages) * size as u64;
    ensure!(
        read == outcome.sent_bytes,
        "the server read {read} of {} bytes",
        outcome.sent_bytes
    );
    Ok(outcome)
}

fn read_count(stream: &mut std::net::TcpStream) -> Result<u64> {
    let mut count = [0; 8];
    stream
        .read_exact(&mut count)
        .context("the server's count")?;
    Ok(u64::from_le_bytes(count))
}
