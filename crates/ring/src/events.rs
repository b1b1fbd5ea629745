//! An event queue: which of a waiter's ends have news. Many list, one waiter takes.
//!
//! It is a set, not a list: one bit per entry, and above these bits that say which words have any. So an end that has much news
//! takes one place, nothing overflows, and who is killed while listing leaves nothing half done that others wait for. The
//! entries are hints: whoever takes one looks at the connection itself.
//!
//! ```text
//!   waiter                                      writer (INV-5a)
//!   edge = LISTENS                (rmw)         copy bytes in, publish tail     (rmw)
//!   ring still empty?                           edge == LISTENS ?
//!   sleep = ASLEEP, new turn      (rmw)             ──▶ list: set entry, its word, its word's word
//!   nothing listed?  ──▶ sleep in the kernel        sleep == ASLEEP ?  ──▶ ring; then ASLEEP of that turn → RUNG
//!   sleep = AWAKE; take what is listed
//! ```
//!
//! Rules:
//! 1. All levels are made sure of every time, from below: a writer that died between two of them is no obstacle.
//! 2. Taking goes from above, each word by one swap: what is set after that is found by the next one.
//! 3. First ring, then say so: a writer that died before has told nobody that it would. Two may ring at once; that costs a bell.
//! 4. The turn is in the word, so that who was slow does not say it of a later sleep.

use crate::sync::Ordering::{AcqRel, Acquire, Relaxed};
use crate::sync::{AtomicU64, barrier_after_rmw};

const BITS: u32 = u64::BITS;

/// Words of a queue in shared memory, for `64 * LEAVES` entries; `SUMS` words say which of the leaves have any.
#[repr(C, align(128))]
pub struct Words<const SUMS: usize, const LEAVES: usize> {
    /// How the waiter is: a turn, and below that [`AWAKE`], [`ASLEEP`] or [`RUNG`].
    sleep: Line,
    /// Which words of `sums` have any.
    top: Line,
    sums: [AtomicU64; SUMS],
    leaves: [AtomicU64; LEAVES],
}

#[repr(C, align(128))]
#[derive(Default)]
struct Line(AtomicU64);

const AWAKE: u64 = 0;
const ASLEEP: u64 = 1;
const RUNG: u64 = 2;
const STATE: u64 = 3;
const TURN: u64 = 4;

/// A sleep that was seen.
#[derive(Clone, Copy)]
pub struct Sleep(u64);

impl<const SUMS: usize, const LEAVES: usize> Default for Words<SUMS, LEAVES> {
    fn default() -> Self {
        const { assert!(SUMS <= BITS as usize && LEAVES <= SUMS * BITS as usize) };
        Self {
            sleep: Line::default(),
            top: Line::default(),
            sums: std::array::from_fn(|_| AtomicU64::new(0)),
            leaves: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// Sets a bit, if it is not set.
#[inline]
fn ensure(word: &AtomicU64, bit: u32) {
    let bit = 1 << bit;
    if word.load(Acquire) & bit == 0 {
        word.fetch_or(bit, AcqRel);
        barrier_after_rmw();
    }
}

fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < BITS).then_some(bit)
    })
}

impl<const SUMS: usize, const LEAVES: usize> Words<SUMS, LEAVES> {
    /// Entries are below this.
    pub const ENTRIES: u32 = LEAVES as u32 * BITS;

    /// Says that `entry` has news, after that was published by a read-modify-write. Then see [`Words::sleeper`]. One that
    /// is out of bounds is nobody's.
    pub fn list(&self, entry: u32) {
        let Some(leaf) = self.leaves.get((entry / BITS) as usize) else {
            return;
        };
        let (word, bit) = (entry / BITS, entry % BITS);
        ensure(leaf, bit);
        ensure(&self.sums[(word / BITS) as usize], word % BITS);
        ensure(&self.top.0, word / BITS);
    }

    /// Must the waiter be rung for? Ring, and then say so by [`Words::rung`].
    #[inline]
    pub fn sleeper(&self) -> Option<Sleep> {
        let sleep = self.sleep.0.load(Acquire);
        (sleep & STATE == ASLEEP).then_some(Sleep(sleep))
    }

    /// The waiter was rung for: others need not.
    pub fn rung(&self, seen: Sleep) {
        let said = seen.0 & !STATE | RUNG;
        let _ = self.sleep.0.compare_exchange(seen.0, said, AcqRel, Relaxed);
    }

    /// Is anything listed? One load.
    #[inline]
    pub fn has_any(&self) -> bool {
        self.top.0.load(Acquire) != 0
    }

    /// Takes all that is listed: look at each of these ends after this.
    pub fn take(&self, mut each: impl FnMut(u32)) {
        let top = self.top.0.swap(0, AcqRel);
        barrier_after_rmw();
        for s in bits(top) {
            let Some(sum) = self.sums.get(s as usize) else {
                continue;
            };
            let sum = sum.swap(0, AcqRel);
            barrier_after_rmw();
            for l in bits(sum) {
                let at = s * BITS + l;
                let Some(leaf) = self.leaves.get(at as usize) else {
                    continue;
                };
                let leaf = leaf.swap(0, AcqRel);
                barrier_after_rmw();
                bits(leaf).for_each(|bit| each(at * BITS + bit));
            }
        }
    }

    /// The waiter is about to sleep: look whether anything is listed after this. Its end is told to [`Words::wake_up`].
    pub fn fall_asleep(&self) -> Sleep {
        let next = |sleep: u64| (sleep & !STATE).wrapping_add(TURN) | ASLEEP;
        // No two threads have the same turn.
        let was = self
            .sleep
            .0
            .fetch_update(AcqRel, Relaxed, |sleep| Some(next(sleep)));
        barrier_after_rmw();
        Sleep(was.map_or_else(next, next))
    }

    /// How the waiter is said to be: for [`Words::wake_up`].
    pub fn sleep(&self) -> Sleep {
        Sleep(self.sleep.0.load(Acquire))
    }

    /// Nobody of the waiter's threads sleeps, unless one fell asleep after `seen`.
    pub fn wake_up(&self, seen: Sleep) {
        let awake = seen.0 & !STATE | AWAKE;
        let _ = self
            .sleep
            .0
            .compare_exchange(seen.0, awake, AcqRel, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    type Some4096 = Words<1, 64>;

    fn taken(words: &Some4096) -> Vec<u32> {
        let mut all = Vec::new();
        words.take(|entry| all.push(entry));
        all
    }

    #[test]
    fn each_entry_is_taken_once() {
        let words = Some4096::default();
        assert!(!words.has_any());
        for entry in [4095, 0, 63, 64, 0, 4096, u32::MAX] {
            words.list(entry);
        }
        assert!(words.has_any());
        assert_eq!(taken(&words), [0, 63, 64, 4095]);
        assert!(!words.has_any() && taken(&words).is_empty());
    }

    #[test]
    fn a_dead_writers_half_is_made_whole_by_the_next() {
        let words = Some4096::default();
        words.leaves[1].store(1, Relaxed);
        assert!(!words.has_any());
        words.list(64);
        assert_eq!(taken(&words), [64]);
    }

    #[test]
    fn nonsense_is_taken_as_hints() {
        let words = Some4096::default();
        words.top.0.store(u64::MAX, Relaxed);
        words.sums[0].store(u64::MAX, Relaxed);
        words.leaves[63].store(1 << 63, Relaxed);
        assert_eq!(taken(&words), [4095]);
    }

    #[test]
    fn one_ring_per_sleep() {
        let words = Some4096::default();
        assert!(words.sleeper().is_none());
        words.fall_asleep();
        let seen = words.sleeper().unwrap();
        words.rung(seen);
        assert!(words.sleeper().is_none());
        words.fall_asleep();
        // Who was slow says nothing of this sleep.
        words.rung(seen);
        let seen = words.sleep();
        assert!(words.sleeper().is_some());
        words.wake_up(seen);
        assert!(words.sleeper().is_none());
    }

    #[test]
    fn who_wakes_up_does_not_wake_a_later_sleeper() {
        let words = Some4096::default();
        words.fall_asleep();
        let first = words.sleep();
        words.fall_asleep();
        words.wake_up(first);
        assert!(words.sleeper().is_some());
    }
}
