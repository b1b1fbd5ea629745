//! A lock in an end's shared state: held for a copy or a system call, never while sleeping for the peer.
//!
//! The word is the holder's thread number. A waiter that sees no progress asks whether the holder still lives, and
//! takes the lock from a dead one: what it protects is published by single stores, so it is sound at any moment.
//!
//! The word is in shared memory, where any number may be written. So a thread that lives, is not stopped, and keeps the lock far
//! longer than a copy can take loses it too; what it protects is not trusted then, and the connection is reset.

use ring::sync::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use crate::{Conn, Kernel};

/// So long, in µs, a holder that lives and runs may keep a lock; and once one of this process has kept one longer.
const PATIENCE_US: u64 = 5_000_000;
const WARY_US: u64 = 200_000;
/// 1: that has happened.
static WARY: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Guard<'a> {
    word: &'a AtomicU32,
    /// False: the same thread already held it (a signal handler interrupted the holder).
    outermost: bool,
    /// Taken from a thread that died.
    inherited: bool,
    /// Taken from one that lives.
    forced: bool,
}

impl<'a> Guard<'a> {
    fn new(word: &'a AtomicU32) -> Self {
        Self {
            word,
            outermost: true,
            inherited: false,
            forced: false,
        }
    }

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

impl Conn {
    /// One of the end's locks.
    #[inline]
    pub(crate) fn lock<'a>(&self, word: &'a AtomicU32, k: &impl Kernel) -> Guard<'a> {
        let me = k.thread();
        if word.compare_exchange(0, me, Acquire, Relaxed).is_ok() {
            return Guard::new(word);
        }
        let guard = contended(word, me, k);
        if guard.forced {
            self.corrupt();
        }
        guard
    }

    #[inline]
    pub(crate) fn lock_rx(&self, k: &impl Kernel) -> Guard<'_> {
        self.lock(&self.end.rx_lock, k)
    }
}

#[cold]
fn contended<'a>(word: &'a AtomicU32, me: u32, k: &impl Kernel) -> Guard<'a> {
    let mut rounds = 0_u32;
    // The holder that was there at the last question, and since when.
    let mut known = (0, 0);
    loop {
        match word.compare_exchange(0, me, Acquire, Relaxed) {
            Ok(_) => return Guard::new(word),
            Err(holder) if holder == me => {
                let mut guard = Guard::new(word);
                guard.outermost = false;
                return guard;
            }
            Err(holder) => {
                rounds = rounds.wrapping_add(1);
                if rounds < 64 {
                    core::hint::spin_loop();
                    continue;
                }
                k.yield_now();
                if !rounds.is_multiple_of(1024) {
                    continue;
                }
                let inherited = k.thread_gone(holder);
                let forced = !inherited && is_overdue(holder, &mut known, k);
                let taken = || word.compare_exchange(holder, me, AcqRel, Relaxed).is_ok();
                if (inherited || forced) && taken() {
                    let mut guard = Guard::new(word);
                    (guard.inherited, guard.forced) = (inherited, forced);
                    return guard;
                }
            }
        }
    }
}

/// Has the same holder been found for too long? A stopped one is waited for: it goes on when it is told to.
fn is_overdue(holder: u32, known: &mut (u32, u64), k: &impl Kernel) -> bool {
    let now = k.now_us();
    if known.0 != holder || k.thread_stopped(holder) {
        *known = (holder, now);
        return false;
    }
    let patience = match WARY.load(Relaxed) {
        0 => PATIENCE_US,
        _ => WARY_US,
    };
    let overdue = now.saturating_sub(known.1) >= patience;
    if overdue {
        WARY.store(1, Relaxed);
    }
    overdue
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{DEAD_THREAD, Pair};

    #[test]
    fn who_enters_again_leaves_the_lock_to_its_holder() {
        let pair = Pair::carried();
        let (conn, socket) = (&pair.server.conn, &pair.server.socket);
        let held = || conn.end.rx_lock.load(Relaxed) == socket.thread();
        let outer = conn.lock_rx(socket);
        for _ in 0..2 {
            let inner = conn.lock_rx(socket);
            assert!(inner.is_nested() && held());
        }
        assert!(!outer.is_nested() && held());
        drop(outer);
        assert!(!held());
    }
    #[test]
    fn who_takes_it_from_a_dead_thread_has_it() {
        let pair = Pair::carried();
        let (conn, socket) = (&pair.server.conn, &pair.server.socket);
        conn.end.rx_lock.store(DEAD_THREAD, Relaxed);
        let guard = conn.lock_rx(socket);
        assert!(guard.is_inherited() && !guard.is_nested());
        assert_eq!(conn.end.rx_lock.load(Relaxed), socket.thread());
        drop(guard);
        assert_eq!(conn.end.rx_lock.load(Relaxed), 0);
    }
}
