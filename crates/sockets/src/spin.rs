//! How long to poll before sleeping: only as long as polling lately paid.
//!
//! A success sets the budget to a multiple of the wait it took, a failure halves it, and a sleep that turns out short
//! brings it back. The first part of a wait only watches the word; then every look gives the CPU away, so that a peer
//! on the same CPU gets to run. Where yielding is what brought the news, the next wait yields from the start.

use gm::clock::{TICKS_PER_US, ticks};
use ring::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Longest wait by polling, in µs: about what a cross-CPU wake-up costs on a virtual machine.
const LONGEST_US: u64 = 50;
/// Watch without yielding this long, in µs.
const WATCH_US: u64 = 8;
const SHORTEST_US: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spun {
    Found,
    Nothing,
}

/// Adaptive state of one place that waits.
pub struct Spin {
    budget: AtomicU64,
    yields_first: AtomicU32,
}

impl Default for Spin {
    fn default() -> Self {
        Self {
            budget: AtomicU64::new(20 * TICKS_PER_US),
            yields_first: AtomicU32::new(0),
        }
    }
}

impl Spin {
    /// Polls `found` within the budget.
    #[inline]
    pub fn wait(&self, cpus: u32, give_way: impl Fn(), mut found: impl FnMut() -> bool) -> Spun {
        let start = ticks();
        let budget = self.budget.load(Relaxed);
        let one_cpu = cpus <= 1;
        let yields_first = one_cpu || self.yields_first.load(Relaxed) != 0;
        let watch = if yields_first {
            0
        } else {
            WATCH_US * TICKS_PER_US
        };
        loop {
            for _ in 0..16 {
                if found() {
                    self.paid(ticks().wrapping_sub(start));
                    if !one_cpu && yields_first && self.yields_first.load(Relaxed) > 1 {
                        self.yields_first.store(0, Relaxed);
                    }
                    return Spun::Found;
                }
                if yields_first {
                    break;
                }
                core::hint::spin_loop();
            }
            let spent = ticks().wrapping_sub(start);
            if spent > budget {
                self.failed();
                return Spun::Nothing;
            }
            if spent >= watch {
                let before = ticks();
                give_way();
                let away = ticks().wrapping_sub(before);
                if found() {
                    // Somebody else ran meanwhile, and it was the one we wait for.
                    let handed = away > 2 * TICKS_PER_US;
                    self.yields_first.store(u32::from(handed), Relaxed);
                    self.paid(ticks().wrapping_sub(start));
                    return Spun::Found;
                }
            }
        }
    }

    fn paid(&self, took: u64) {
        let budget = self.budget.load(Relaxed);
        let want = (took * 4).clamp(10 * TICKS_PER_US, LONGEST_US * TICKS_PER_US);
        self.budget.store(budget.max(want), Relaxed);
    }

    fn failed(&self) {
        let halved = (self.budget.load(Relaxed) / 2).max(SHORTEST_US * TICKS_PER_US);
        self.budget.store(halved, Relaxed);
        self.yields_first.store(0, Relaxed);
    }

    /// A sleep ended with news after `slept` ticks: had it been worth polling?
    pub fn slept(&self, slept: u64) {
        if slept < LONGEST_US * TICKS_PER_US {
            self.budget.store(
                (slept * 2).clamp(10 * TICKS_PER_US, LONGEST_US * TICKS_PER_US),
                Relaxed,
            );
        }
    }

    /// The present budget in ticks.
    pub fn budget(&self) -> u64 {
        self.budget.load(Relaxed)
    }
}
