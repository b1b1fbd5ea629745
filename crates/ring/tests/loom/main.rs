//! Model checks of the ring's protocols: every interleaving, and every value that the memory model lets a load see,
//! within a bound on preemptions.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p sgm-ring --test loom
//! ```
//!
//! * `bytes`: the stream of bytes; several readers; peeking
//! * `bells`: sleep and wake, with the doorbell on a modelled TCP stream (INV-5)
//! * `events`: the same by an event queue, with several writers and one bell (INV-5a)
//! * `room`: a writer that waits for room
//! * `overflow`: turns between the ring and the overflow area
//! * `word`: the hand-over word (INV-1)
//! * `paths`: switching between the TCP stream and the ring (INV-2)
//! * `back`: a hand-back beside sends, bells, a close and deaths
//! * `owing`: bells beside a way back whose end is killed
//! * `renewal`: another peer for the socket of one that is gone, beside readers and deaths
//! * `sharers`: two readers of one end, bells and switch together
//! * `wire`, `end`, `peer`: the modelled TCP stream, and the engine's steps over it
//!
//! Beside every model that must hold stand broken ones that must be caught (`#[should_panic]`), so that a suite that
//! passes has been seen to fail.

#![cfg(loom)]

mod back;
mod bells;
mod bytes;
mod end;
mod events;
mod overflow;
mod owing;
mod paths;
mod peer;
mod renewal;
mod room;
mod sharers;
mod wire;
mod word;

/// Explores `model` with at most `preemptions` involuntary switches per run (LOOM_MAX_PREEMPTIONS overrides), and prints
/// the number of runs.
///
/// A lost wake-up shows as loom's "deadlock": every thread blocked, nobody left to wake them.
pub fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = runs.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 20_000;
    builder.check(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
    // A model without a choice in it is a mistake in the model.
    assert!(runs > 1, "only {runs} run explored");
    let thread = std::thread::current();
    println!("{}: {runs} runs", thread.name().unwrap_or("model"));
}
