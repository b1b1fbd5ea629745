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
//!
//! Where the CPUs never rest, to be woken costs little: 4 us, and 25 to 100 where a CPU must be woken first. Whoever rings for an event queue
//! notes when, so its waiter knows what its sleeps cost of late. To poll for much longer than that would be dearer.

use gm::clock::{TICKS_PER_US, ticks};
use ring::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Longest wait by polling, in µs: about what a cross-CPU wake-up costs on a virtual machine.
const LONGEST_US: u64 = 50;
/// Watch without yielding this long, in µs.
const WATCH_US: u64 = 8;
const SHORTEST_US: u64 = 1;
/// What polling that paid, or would have, is worth at least the next time, in µs.
const LEAST_US: u64 = 10;
/// Polling may cost as much as so many wake-ups: it spares the peer the bell as well.
const WAKE_UPS: u64 = 2;
/// More, in ticks, a wake-up does not count for.
const DEAREST_WAKE_UP: u64 = 1_000 * TICKS_PER_US;
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

/// What the waits of the process learn of the machine: where one of them was kept from the CPU, the next one would be.
struct Machine {
    /// Until which tick polling is barred; 0: it is not.
    until: AtomicU64,
    /// What it takes to be woken, in ticks: half of the wake-ups take longer. As much as can count, where it is not known.
    wake_up: AtomicU64,
}

static MACHINE: Machine = Machine::new();

impl Machine {
    const fn new() -> Self {
        Self {
            until: AtomicU64::new(0),
            wake_up: AtomicU64::new(DEAREST_WAKE_UP),
        }
    }

    /// It took so long this time. The middle is found by steps of a sixteenth.
    fn woken(&self, took: u64) {
        let known = self.wake_up.load(Relaxed);
        let next = match took > known {
            true => known + known / 16,
            false => known - known / 16,
        };
        self.wake_up
            .store(next.clamp(TICKS_PER_US, DEAREST_WAKE_UP), Relaxed);
    }

    #[inline]
    fn is_busy(&self, now: u64) -> bool {
        let until = self.until.load(Relaxed);
        until != 0 && self.is_until(until, now)
    }

    #[cold]
    fn is_until(&self, until: u64, now: u64) -> bool {
        // A clock that jumped back must not bar for ever.
        let left = until.wrapping_sub(now);
        let over = left == 0 || left > BARS * DEAREST_US * TICKS_PER_US;
        if over {
            self.until.store(0, Relaxed);
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
        self.until.store(now.wrapping_add(took * BARS), Relaxed);
    }
}

/// Adaptive state of one place that waits.
pub struct Spin {
    budget: AtomicU64,
    yields_first: AtomicU32,
    /// How long the last wait polled in vain, in ticks.
    in_vain: AtomicU64,
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
            in_vain: AtomicU64::new(0),
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
        self.wait_on(&MACHINE, cpus, give_way, found)
    }

    #[inline]
    fn wait_on(
        &self,
        machine: &Machine,
        cpus: u32,
        give_way: impl Fn(),
        mut found: impl FnMut() -> bool,
    ) -> Spun {
        let start = ticks();
        if machine.is_busy(start) {
            self.in_vain.store(0, Relaxed);
            return if found() { Spun::Found } else { Spun::Nothing };
        }
        let one_cpu = cpus <= 1;
        let longest = self.longest_on(machine);
        let budget = self.budget.load(Relaxed).min(longest);
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
                    if !machine.learn(now.wrapping_sub(last), DEAR_LOOK_US, now) {
                        self.paid(now.wrapping_sub(start), longest);
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
            if machine.learn(took, DEAR_LOOK_US, now) {
                return Spun::Nothing;
            }
            looks = if took < TICKS_PER_US { LOOKS } else { 1 };
            last = now;
            let spent = now.wrapping_sub(start);
            if spent > budget {
                self.failed(spent);
                return Spun::Nothing;
            }
            if spent >= watch {
                give_way();
                last = ticks();
                let away = last.wrapping_sub(now);
                let dear = machine.learn(away, DEAR_YIELD_US, last);
                if found() {
                    // Somebody else ran meanwhile, and it was the one we wait for.
                    let handed = away > 2 * TICKS_PER_US;
                    self.yields_first.store(u32::from(handed), Relaxed);
                    self.paid(ticks().wrapping_sub(start), longest);
                    return Spun::Found;
                }
                if dear {
                    return Spun::Nothing;
                }
            }
        }
    }

    /// Longer it does not pay to poll now.
    fn longest_on(&self, machine: &Machine) -> u64 {
        match machine.wake_up.load(Relaxed) * WAKE_UPS {
            most if most < self.longest => most.max(LEAST_US * TICKS_PER_US),
            _ => self.longest,
        }
    }

    fn paid(&self, took: u64, longest: u64) {
        let budget = self.budget.load(Relaxed);
        let want = (took * 4).clamp(LEAST_US * TICKS_PER_US, longest);
        self.budget.store(budget.max(want), Relaxed);
    }

    fn failed(&self, spent: u64) {
        let halved = (self.budget.load(Relaxed) / 2).max(SHORTEST_US * TICKS_PER_US);
        self.budget.store(halved, Relaxed);
        self.yields_first.store(0, Relaxed);
        self.in_vain.store(spent, Relaxed);
    }

    /// A sleep that began at `start` ended with news: had it been worth polling? `rung_at`: when its bell was rung; 0, or nonsense:
    /// not known.
    pub fn slept(&self, start: u64, rung_at: u64) {
        self.slept_on(&MACHINE, start, rung_at, ticks());
    }

    fn slept_on(&self, machine: &Machine, start: u64, rung_at: u64, now: u64) {
        let slept = now.wrapping_sub(start);
        let until_rung = rung_at.wrapping_sub(start);
        if until_rung <= slept {
            machine.woken(slept - until_rung);
        }
        let longest = self.longest_on(machine);
        let mut waited = slept;
        if longest < self.longest {
            // Where to be woken costs so little, what was polled counts as well.
            waited = waited.saturating_add(self.in_vain.load(Relaxed));
        }
        if waited < longest && !machine.is_busy(now) {
            let budget = (waited * 2).clamp(LEAST_US * TICKS_PER_US, longest);
            self.budget.store(budget, Relaxed);
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
    fn wait_out(spin: &Spin, machine: &Machine) {
        while machine.is_busy(ticks()) {
            std::thread::yield_now();
        }
        spin.budget.store(LONGEST_US * TICKS_PER_US, Relaxed);
    }

    /// A wait in vain, with looks and yields that take so long; how many of each were made.
    fn in_vain(
        spin: &Spin,
        machine: &Machine,
        cpus: u32,
        look_us: u64,
        yield_us: u64,
    ) -> (u32, u32) {
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
        let spun = spin.wait_on(machine, cpus, give_way, look);
        assert_eq!(spun, Spun::Nothing);
        (looks.get(), yields.get())
    }

    /// As [`in_vain`], once more if the machine that the test runs on was busy itself.
    fn until(machine: &Machine, spin: &Spin, mut made: impl FnMut() -> bool) {
        const TRIES: u32 = 1000;
        assert!((0..TRIES).any(|_| {
            wait_out(spin, machine);
            made()
        }));
    }

    #[test]
    fn what_is_not_dear_bars_nothing() {
        for cpus in [1, 2] {
            let (spin, machine) = (Spin::new(), Machine::new());
            until(&machine, &spin, || {
                let (looks, yields) = in_vain(&spin, &machine, cpus, 0, 0);
                looks > 1 && yields > 0 && !machine.is_busy(ticks())
            });
        }
    }

    #[test]
    fn after_a_dear_yield_a_wait_looks_once_for_a_while() {
        for cpus in [1, 2] {
            let (spin, machine) = (Spin::new(), Machine::new());
            let start = ticks();
            until(&machine, &spin, || {
                in_vain(&spin, &machine, cpus, 0, YIELD_US).1 > 0
            });
            let until = machine.until.load(Relaxed);
            assert!(until - start > BARS * DEAR_LOOK_US * TICKS_PER_US);
            while ticks() < until {
                let made = in_vain(&spin, &machine, cpus, 0, 0);
                assert!(made == (1, 0) || ticks() >= until);
            }
        }
    }

    #[test]
    fn after_an_interrupted_look_a_wait_looks_once_for_a_while() {
        let (spin, machine) = (Spin::new(), Machine::new());
        spin.budget.store(LONGEST_US * TICKS_PER_US, Relaxed);
        let start = ticks();
        assert_eq!(in_vain(&spin, &machine, 2, LOOK_US, 0), (1, 0));
        let until = machine.until.load(Relaxed);
        assert!(until - start > BARS * LOOK_US * TICKS_PER_US);
        let other = Spin::new();
        while ticks() < until {
            let made = in_vain(&other, &machine, 2, 0, 0);
            assert!(made == (1, 0) || ticks() >= until);
        }
    }

    #[test]
    fn what_came_while_others_had_the_cpu_did_not_pay() {
        let (spin, machine) = (Spin::new(), Machine::new());
        let budget = 15 * TICKS_PER_US;
        spin.budget.store(budget, Relaxed);
        let look = || {
            pass(LOOK_US);
            true
        };
        assert_eq!(spin.wait_on(&machine, 2, || (), look), Spun::Found);
        assert_ne!(machine.until.load(Relaxed), 0);
        // Nor does a short sleep say that polling would pay.
        let (start, slept) = (ticks(), LONGEST_US * TICKS_PER_US / 2);
        spin.slept_on(&machine, start, 0, start + slept);
        assert!(spin.budget.load(Relaxed) == budget || !machine.is_busy(ticks()));
        let spun = spin.wait_on(&machine, 2, || (), || true);
        assert_eq!(spun, Spun::Found);
    }

    #[test]
    fn what_is_learned_lasts_as_long_as_the_longest_slice_allows() {
        let machine = Machine::new();
        let most = BARS * DEAREST_US * TICKS_PER_US;
        assert!(machine.learn(most, DEAR_LOOK_US, 1));
        assert!(machine.is_busy(most));
        assert!(!machine.is_busy(most + 1));
        assert!(!machine.is_busy(1), "it is over");
    }

    #[test]
    fn a_clock_that_jumped_back_bars_nothing() {
        let machine = Machine::new();
        machine.bar(YIELD_US * TICKS_PER_US, u64::MAX / 2);
        assert!(!machine.is_busy(ticks()));
    }

    /// Sleeps whose bell comes after so many µs, and which end so many later.
    fn sleep(spin: &Spin, machine: &Machine, rung_us: u64, wake_up_us: u64) {
        for i in 0..200 {
            // Now and then one is much dearer.
            let wake_up_us = if i % 4 == 0 { 300 } else { wake_up_us };
            let (rung, woken) = (
                rung_us * TICKS_PER_US,
                (rung_us + wake_up_us) * TICKS_PER_US,
            );
            spin.slept_on(machine, 1, 1 + rung, 1 + woken);
        }
    }

    #[test]
    fn polls_as_long_as_a_few_wake_ups_take() {
        let (spin, machine) = (Spin::new(), Machine::new());
        let longest = || spin.longest_on(&machine) / TICKS_PER_US;
        assert_eq!(longest(), LONGEST_US, "not known");
        sleep(&spin, &machine, 20, 40);
        assert_eq!(longest(), LONGEST_US);
        sleep(&spin, &machine, 20, 8);
        assert!((14..20).contains(&longest()), "{}", longest());
        // What was polled in vain before the sleep counts: 12 us are not too long, 24 are.
        for (in_vain_us, budget_us) in [(3, longest()), (15, 0)] {
            spin.failed(in_vain_us * TICKS_PER_US);
            spin.tire();
            let slept = 9 * TICKS_PER_US;
            spin.slept_on(&machine, 1, 0, 1 + slept);
            assert_eq!(spin.budget.load(Relaxed) / TICKS_PER_US, budget_us);
        }
        sleep(&spin, &machine, 20, 2);
        assert_eq!(longest(), LEAST_US);
        sleep(&spin, &machine, 20, 60);
        assert_eq!(longest(), LONGEST_US, "the CPUs rest again");
    }

    #[test]
    fn a_bell_outside_the_sleep_tells_nothing() {
        let (spin, machine) = (Spin::new(), Machine::new());
        for rung_at in [0, 99, 201, u64::MAX] {
            spin.slept_on(&machine, 100, rung_at, 200);
        }
        assert_eq!(machine.wake_up.load(Relaxed), DEAREST_WAKE_UP);
    }
}
