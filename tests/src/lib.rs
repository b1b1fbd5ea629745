//! Drives built programs only, never the crates' insides: every test starts programs as a user would, natively and under
//! `sgm run`, and compares what they say.
//!
//! - [`paths`]: where the built front, the sources and scratch space are
//! - [`programs`]: compiles the small C programs of `programs/`
//! - [`process`]: a started process group with its output in files, an end in bounded time, and no leftovers
//! - [`front`]: a node directory of its own for each run, `sgm run --report` and what the report says
//! - [`pair`]: one case of a C program as a server and a client process
//! - [`twin`]: the same case natively and under the front, with equal transcripts
//! - [`fuzz`]: random call sequences in batches, natively and under the front
//! - [`wine`]: the Wine prefixes, and Windows programs in them on Wine's own Winsock or on ours
//! - [`wine32`]: a root directory with a Wine that runs 32-bit programs too
//! - [`other_user`]: running programs that refuse to be root's
//! - [`world`]: real servers and clients (redis, nginx, ...), likewise twice

pub mod front;
pub mod fuzz;
pub mod other_user;
pub mod pair;
pub mod paths;
pub mod process;
pub mod programs;
pub mod twin;
pub mod wine;
pub mod wine32;
pub mod world;

/// Says why a test proved nothing here. Not by `eprintln`, which a passing test keeps to itself.
pub fn not_run(why: &str) {
    use std::io::Write;
    let test = std::thread::current()
        .name()
        .unwrap_or("a test")
        .to_string();
    let _ = writeln!(std::io::stderr(), "{test} was NOT RUN: {why}");
}
