//! How long to poll before sleeping: only as long as polling lately paid, and not where it takes the CPU from others.
//!
//! A success sets the budget to a multiple of the wait it took, a failure halves it, and a sleep that turns out short
//! brings it back. The first part of a wait only watches the word; then every look gives the CPU away, so that a peer
//! on the same CPU gets to run. Where yielding is what brought the news, the next wait yields from the start.
//!
//! On a busy machine polling takes the CPU from somebody, very likely the peer: a yield hands a whole time slice, milliseconds,
//! to whoever else wants the CPU, and who only watches is interrupted for as long (its clock jumps by far more than a look
//! takes). A sleeper would be woken at once. So what took long bars all polling of the process for a time in proportion: a wait
//! looks once and sleeps.

use gm::clock::{TICKS_PER_US, ticks};
use ring::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Longest wait by polling, in µs: about what a cross-CPU wake-up costs on a virtual machine.
const LONGEST_US: u64 = 50;
/// Watch without yielding this long, in µs.
const WATCH_US: u64 = 8;
const SHORTEST_US: u64 = 1;
/// A yield that takes longer gave a time slice away (those are 3 ms and more); shorter ones are the machine's own noise.
const DEAR_YIELD_US: u64 = 1_000;
/// A look that seems to take longer was interrupted.
const DEAR_LOOK_US: u64 = 500;
/// What is longer than this, in µs, counts as this long.
const DEAREST_US: u64 = 20_000;
/// No polling for so many times as long as that took: it costs 3 % of the time.
const BARS: u64 = 32;
/// Looks between two readings of the clock, where they are quick.
const LOOKS: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spun {
    Found,
    Nothing,
}

/// Until which tick polling is barred; 0: it is not.
struct Busy(AtomicU64);

/// The whole process's: where one of its waits was kept from the CPU, the next one would be.
static BUSY: Busy = Busy::not();

impl Busy {
    const fn not() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    fn is(&self, now: u64) -> bool {
        let until = self.0.load(Relaxed);
        until != 0 && self.is_until(until, now)
    }

    #[cold]
    fn is_until(&self, until: u64, now: u64) -> bool {
        // A clock that jumped back must not bar for ever.
        let left = until.wrapping_sub(now);
        let over = left == 0 || left > BARS * DEAREST_US * TICKS_PER_US;
        if over {
            self.0.store(0, Relaxed);
        }
        !over
    }

    /// Something took so long, which takes `dear_us` only when others had the CPU. True: they had.
    #[inline]
    fn learn(&self, took: u64, dear_us: u64, now: u64) -> bool {
        let dear = took > dear_us * TICKS_PER_US;
        if dear {
            self.bar(took, now);
        }
        dear
    }

    #[cold]
    fn bar(&self, took: u64, now: u64) {
        let took = took.min(DEAREST_US * TICKS_PER_US);
        self.0.store(now.wrapping_add(took * BARS), Relaxed);
    }
}

/// Adaptive state of one place that waits.
pub struct Spin {
    budget: AtomicU64,
    yields_first: AtomicU32,
    /// Longest wait by polling, in ticks.
    longest: u64,
}

impl Default for Spin {
    fn default() -> Self {
        Self::new()
    }
}

impl Spin {
    pub const fn new() -> Self {
        Self::up_to(LONGEST_US)
    }

    /// Where a sleep and its wake-up cost about `longest_us`.
    pub const fn up_to(longest_us: u64) -> Self {
        Self {
            budget: AtomicU64::new(20 * TICKS_PER_US),
            yields_first: AtomicU32::new(0),
            longest: longest_us * TICKS_PER_US,
        }
    }

    /// The next wait looks once.
    #[cfg(test)]
    pub fn tire(&self) {
        self.budget.store(0, Relaxed);
    }

    /// Polls `found` within the budget.
    #[inline]
    pub fn wait(&self, cpus: u32, give_way: impl Fn(), found: impl FnMut() -> bool) -> Spun {
        self.wait_unless(&BUSY, cpus, give_way, found)
    }

    #[inline]
    fn wait_unless(
        &self,
        busy: &Busy,
        cpus: u32,
        give_way: impl Fn(),
        mut found: impl FnMut() -> bool,
    ) -> Spun {
        let start = ticks();
        if busy.is(start) {
            return if found() { Spun::Found } else { Spun::Nothing };
        }
        let one_cpu = cpus <= 1;
        let budget = self.budget.load(Relaxed);
        let yields_first = one_cpu || self.yields_first.load(Relaxed) != 0;
        let watch = if yields_first {
            0
        } else {
            WATCH_US * TICKS_PER_US
        };
        let mut last = start;
        // One at first, which tells how long one takes: of many sockets, long.
        let mut looks = 1;
        loop {
            for _ in 0..looks {
                if found() {
                    let now = ticks();
                    if !busy.learn(now.wrapping_sub(last), DEAR_LOOK_US, now) {
                        self.paid(now.wrapping_sub(start));
                        if !one_cpu && yields_first && self.yields_first.load(Relaxed) > 1 {
                            self.yields_first.store(0, Relaxed);
                        }
                    }
                    return Spun::Found;
                }
                if yields_first {
                    break;
                }
                core::hint::spin_loop();
            }
            let now = ticks();
            let took = now.wrapping_sub(last);
            if busy.learn(took, DEAR_LOOK_US, now) {
                return Spun::Nothing;
            }
            looks = if took < TICKS_PER_US { LOOKS } else { 1 };
            last = now;
            let spent = now.wrapping_sub(start);
            if spent > budget {
                self.failed();
                return Spun::Nothing;
            }
            if spent >= watch {
                give_way();
                last = ticks();
                let away = last.wrapping_sub(now);
                let dear = busy.learn(away, DEAR_YIELD_US, last);
                if found() {
                    // Somebody else ran meanwhile, and it was the one we wait for.
                    let handed = away > 2 * TICKS_PER_US;
                    self.yields_first.store(u32::from(handed), Relaxed);
                    self.paid(ticks().wrapping_sub(start));
                    return Spun::Found;
                }
                if dear {
                    return Spun::Nothing;
                }
            }
        }
    }

    fn paid(&self, took: u64) {
        let budget = self.budget.load(Relaxed);
        let want = (took * 4).clamp(10 * TICKS_PER_US, self.longest);
        self.budget.store(budget.max(want), Relaxed);
    }

    fn failed(&self) {
        let halved = (self.budget.load(Relaxed) / 2).max(SHORTEST_US * TICKS_PER_US);
        self.budget.store(halved, Relaxed);
        self.yields_first.store(0, Relaxed);
    }

    /// A sleep ended with news after `slept` ticks: had it been worth polling?
    pub fn slept(&self, slept: u64) {
        self.slept_unless(&BUSY, slept);
    }

    fn slept_unless(&self, busy: &Busy, slept: u64) {
        if slept < self.longest && !busy.is(ticks()) {
            self.budget
                .store((slept * 2).clamp(10 * TICKS_PER_US, self.longest), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const YIELD_US: u64 = 2 * DEAR_YIELD_US;
    const LOOK_US: u64 = 2 * DEAR_LOOK_US;

    fn pass(us: u64) {
        let start = ticks();
        while ticks().wrapping_sub(start) < us * TICKS_PER_US {}
    }

    /// Until what was learned holds no more, with a budget to use then.
    fn wait_out(spin: &Spin, busy: &Busy) {
        while busy.is(ticks()) {
            std::thread::yield_now();
        }
        spin.budget.store(LONGEST_US * TICKS_PER_US, Relaxed);
    }

    /// A wait in vain, with looks and yields that take so long; how many of each were made.
    fn in_vain(spin: &Spin, busy: &Busy, cpus: u32, look_us: u64, yield_us: u64) -> (u32, u32) {
        let (looks, yields) = (Cell::new(0), Cell::new(0));
        let look = || {
            looks.set(looks.get() + 1);
            pass(look_us);
            false
        };
        let give_way = || {
            yields.set(yields.get() + 1);
            pass(yield_us);
        };
        let spun = spin.wait_unless(busy, cpus, give_way, look);
        assert_eq!(spun, Spun::Nothing);
        (looks.get(), yields.get())
    }

    /// As [`in_vain`], once more if the machine that the test runs on was busy itself.
    fn until(busy: &Busy, spin: &Spin, mut made: impl FnMut() -> bool) {
        const TRIES: u32 = 1000;
        assert!((0..TRIES).any(|_| {
            wait_out(spin, busy);
            made()
        }));
    }

    #[test]
    fn what_is_not_dear_bars_nothing() {
        for cpus in [1, 2] {
            let (spin, busy) = (Spin::new(), Busy::not());
            until(&busy, &spin, || {
                let (looks, yields) = in_vain(&spin, &busy, cpus, 0, 0);
                looks > 1 && yields > 0 && !busy.is(ticks())
            });
        }
    }

    #[test]
    fn after_a_dear_yield_a_wait_looks_once_for_a_while() {
        for cpus in [1, 2] {
            let (spin, busy) = (Spin::new(), Busy::not());
            let start = ticks();
            until(&busy, &spin, || {
                in_vain(&spin, &busy, cpus, 0, YIELD_US).1 > 0
            });
            let until = busy.0.load(Relaxed);
            assert!(until - start > BARS * DEAR_LOOK_US * TICKS_PER_US);
            while ticks() < until {
                let made = in_vain(&spin, &busy, cpus, 0, 0);
                assert!(made == (1, 0) || ticks() >= until);
            }
        }
    }

    #[test]
    fn after_an_interrupted_look_a_wait_looks_once_for_a_while() {
        let (spin, busy) = (Spin::new(), Busy::not());
        spin.budget.store(LONGEST_US * TICKS_PER_US, Relaxed);
        let start = ticks();
        assert_eq!(in_vain(&spin, &busy, 2, LOOK_US, 0), (1, 0));
        let until = busy.0.load(Relaxed);
        assert!(until - start > BARS * LOOK_US * TICKS_PER_US);
        let other = Spin::new();
        while ticks() < until {
            let made = in_vain(&other, &busy, 2, 0, 0);
            assert!(made == (1, 0) || ticks() >= until);
        }
    }

    #[test]
    fn what_came_while_others_had_the_cpu_did_not_pay() {
        let (spin, busy) = (Spin::new(), Busy::not());
        let budget = 15 * TICKS_PER_US;
        spin.budget.store(budget, Relaxed);
        let look = || {
            pass(LOOK_US);
            true
        };
        assert_eq!(spin.wait_unless(&busy, 2, || (), look), Spun::Found);
        assert_ne!(busy.0.load(Relaxed), 0);
        // Nor does a short sleep say that polling would pay.
        spin.slept_unless(&busy, LONGEST_US * TICKS_PER_US / 2);
        assert!(spin.budget.load(Relaxed) == budget || !busy.is(ticks()));
        let spun = spin.wait_unless(&busy, 2, || (), || true);
        assert_eq!(spun, Spun::Found);
    }

    #[test]
    fn what_is_learned_lasts_as_long_as_the_longest_slice_allows() {
        let busy = Busy::not();
        let most = BARS * DEAREST_US * TICKS_PER_US;
        assert!(busy.learn(most, DEAR_LOOK_US, 1));
        assert!(busy.is(most));
        assert!(!busy.is(most + 1));
        assert!(!busy.is(1), "it is over");
    }

    #[test]
    fn a_clock_that_jumped_back_bars_nothing() {
        let busy = Busy::not();
        busy.bar(YIELD_US * TICKS_PER_US, u64::MAX / 2);
        assert!(!busy.is(ticks()));
    }
}
