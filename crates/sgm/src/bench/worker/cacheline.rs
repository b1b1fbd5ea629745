//! The floor: two processes pass a number to and fro through two cache lines. No message between processes on these
//! CPUs can be faster, whatever carries it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

use super::super::role::{Line, Outcome};
use super::super::sys::SharedWords;
use super::{say, timing};

const END: u64 = u64::MAX;

fn map(path: &Path) -> Result<SharedWords> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .context("the shared words")?;
    Ok(SharedWords::map(&file)?)
}

fn wait_for(word: &AtomicU64, wanted: u64) {
    while word.load(Ordering::Acquire) != wanted {
        std::hint::spin_loop();
    }
}

/// Answers every number in the first word with the same number in the second.
pub fn server(path: &Path) -> Result<Outcome> {
    let shared = map(path)?;
    let (there, back) = shared.words();
    say(&Line::Ready { port: 0 })?;
    let mut last = 0;
    loop {
        let number = there.load(Ordering::Acquire);
        if number == last {
            std::hint::spin_loop();
            continue;
        }
        back.store(number, Ordering::Release);
        if number == END {
            return Ok(Outcome {
                messages: last,
                ..Outcome::default()
            });
        }
        last = number;
    }
}

pub fn client(path: &Path, ms: u64) -> Result<Outcome> {
    let shared = map(path)?;
    let (there, back) = shared.words();
    let mut number = 0;
    let mut trip = || {
        number += 1;
        there.store(number, Ordering::Release);
        wait_for(back, number);
        Ok(())
    };
    let guess_ns = timing::warm(10_000, &mut trip)?;
    let (messages, mean_ns) = timing::mean(ms, guess_ns, &mut trip)?;
    there.store(END, Ordering::Release);
    wait_for(back, END);
    Ok(Outcome {
        messages,
        mean_ns,
        ..Outcome::default()
    })
}
