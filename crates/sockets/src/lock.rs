//! A lock in an end's shared state: held for a copy or a system call, never while sleeping for the peer.
//!
//! The word is the holder's thread number. A waiter that sees no progress asks whether the holder still lives, and
//! takes the lock from a dead one: what it protects is published by single stores, so it is sound at any moment.

use ring::sync::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use crate::Kernel;

pub(crate) struct Guard<'a> {
    word: &'a AtomicU32,
    /// False: the same thread already held it (a signal handler interrupted the holder).
    outermost: bool,
    /// Taken from a thread that died.
    inherited: bool,
}

impl Guard<'_> {
    /// Did a signal handler enter here while its own thread holds the lock?
    pub(crate) fn is_nested(&self) -> bool {
        !self.outermost
    }

    /// Did the last holder die with it?
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.outermost {
            self.word.store(0, Release);
        }
    }
}

#[inline]
pub(crate) fn lock<'a>(word: &'a AtomicU32, k: &impl Kernel) -> Guard<'a> {
    let me = k.thread();
    if word.compare_exchange(0, me, Acquire, Relaxed).is_ok() {
        return Guard {
            word,
            outermost: true,
            inherited: false,
        };
    }
    contended(word, me, k)
}

#[cold]
fn contended<'a>(word: &'a AtomicU32, me: u32, k: &impl Kernel) -> Guard<'a> {
    let mut rounds = 0_u32;
    loop {
        match word.compare_exchange(0, me, Acquire, Relaxed) {
            Ok(_) => {
                return Guard {
                    word,
                    outermost: true,
                    inherited: false,
                };
            }
            Err(holder) if holder == me => {
                return Guard {
                    word,
                    outermost: false,
                    inherited: false,
                };
            }
            Err(holder) => {
                rounds += 1;
                if rounds < 64 {
                    core::hint::spin_loop();
                    continue;
                }
                k.yield_now();
                let gone = rounds.is_multiple_of(1024) && k.thread_gone(holder);
                if gone && word.compare_exchange(holder, me, AcqRel, Relaxed).is_ok() {
                    return Guard {
                        word,
                        outermost: true,
                        inherited: true,
                    };
                }
            }
        }
    }
}
