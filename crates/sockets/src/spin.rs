//! How long to poll before sleeping: only as long as polling lately paid.
//!
//! A success sets the budget to a multiple of the wait it took, a failure halves it, and a sleep that turns out short
//! brings it back. The first part of a wait only watches the word; then every look gives the CPU away, so that a peer
//! on the same CPU gets to run. Where yielding is what brought the news, the next wait yields from the start.
//!
//! On a busy CPU a yield hands a whole time slice, milliseconds, to whoever else wants it, where a sleeper would be woken
//! at once. Such a yield bars further ones for a time in proportion to what it cost: waits then go to sleep early.

use gm::clock::{TICKS_PER_US, ticks};
use ring::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Longest wait by polling, in µs: about what a cross-CPU wake-up costs on a virtual machine.
const LONGEST_US: u64 = 50;
/// Watch without yielding this long, in µs.
const WATCH_US: u64 = 8;
const SHORTEST_US: u64 = 1;
/// A yield that takes longer gave a time slice away (those are 3 ms and more); shorter ones are the machine's own noise.
const DEAR_YIELD_US: u64 = 1_000;
/// Longer ones count as this long.
const DEAREST_YIELD_US: u64 = 20_000;
/// No yield for so many times as long as a dear one took: they cost 3 % of the time.
const DEAR_YIELD_BARS: u64 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spun {
    Found,
    Nothing,
}

/// Adaptive state of one place that waits.
pub struct Spin {
    budget: AtomicU64,
    yields_first: AtomicU32,
    /// No yield before this tick; 0: none is barred.
    barred_until: AtomicU64,
}

impl Default for Spin {
    fn default() -> Self {
        Self::new()
    }
}

impl Spin {
    pub const fn new() -> Self {
        Self {
            budget: AtomicU64::new(20 * TICKS_PER_US),
            yields_first: AtomicU32::new(0),
            barred_until: AtomicU64::new(0),
        }
    }

    /// Polls `found` within the budget.
    #[inline]
    pub fn wait(&self, cpus: u32, give_way: impl Fn(), mut found: impl FnMut() -> bool) -> Spun {
        let start = ticks();
        let one_cpu = cpus <= 1;
        let may_yield = self.may_yield(start);
        let most = match (may_yield, one_cpu) {
            (true, _) => u64::MAX,
            (false, false) => WATCH_US * TICKS_PER_US,
            // Nobody else runs while we watch.
            (false, true) => 0,
        };
        let budget = self.budget.load(Relaxed).min(most);
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
            if spent >= watch && may_yield {
                let before = ticks();
                give_way();
                let away = ticks().wrapping_sub(before);
                if away > DEAR_YIELD_US * TICKS_PER_US {
                    self.bar_yields(away);
                }
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

    fn may_yield(&self, now: u64) -> bool {
        let until = self.barred_until.load(Relaxed);
        if until == 0 {
            return true;
        }
        // A clock that jumped back must not bar them for ever.
        let left = until.wrapping_sub(now);
        let over = left == 0 || left > DEAR_YIELD_BARS * DEAREST_YIELD_US * TICKS_PER_US;
        if over {
            self.barred_until.store(0, Relaxed);
        }
        over
    }

    #[cold]
    fn bar_yields(&self, away: u64) {
        let away = away.min(DEAREST_YIELD_US * TICKS_PER_US);
        let until = ticks().wrapping_add(away * DEAR_YIELD_BARS);
        self.barred_until.store(until, Relaxed);
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn pass(us: u64) {
        let start = ticks();
        while ticks().wrapping_sub(start) < us * TICKS_PER_US {}
    }

    /// Waits in vain with yields that take `us`; how many were made.
    fn yields(spin: &Spin, cpus: u32, us: u64) -> u32 {
        let made = Cell::new(0);
        let give_way = || {
            made.set(made.get() + 1);
            pass(us);
        };
        assert_eq!(spin.wait(cpus, give_way, || false), Spun::Nothing);
        made.get()
    }

    /// As [`yields`], until one is made: the budget may pass while others have the CPU.
    fn yields_at_last(spin: &Spin, cpus: u32, us: u64) -> bool {
        (0..1000).any(|_| {
            spin.slept(LONGEST_US * TICKS_PER_US / 2);
            yields(spin, cpus, us) > 0
        })
    }

    #[test]
    fn a_dear_yield_is_not_made_again_soon() {
        for cpus in [1, 2] {
            let spin = Spin::default();
            let dear = 2 * DEAR_YIELD_US;
            assert!(yields_at_last(&spin, cpus, dear));
            let until = spin.barred_until.load(Relaxed);
            while ticks() < until {
                let made = yields(&spin, cpus, 0);
                assert!(made == 0 || ticks() >= until);
            }
            assert!(yields_at_last(&spin, cpus, 0));
        }
    }

    #[test]
    fn a_clock_that_jumped_back_bars_nothing() {
        let spin = Spin::default();
        spin.barred_until.store(u64::MAX / 2, Relaxed);
        assert!(yields_at_last(&spin, 2, 0));
    }
}
