//! Which ends this process may hold already: to look through all descriptors for each of thousands that a program inherits would take
//! as many times thousands of steps. A note that stays when its end goes costs such a look.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use gm::End;

const BITS: usize = 1 << 16;
static MET: [AtomicU64; BITS / 64] = [const { AtomicU64::new(0) }; BITS / 64];

/// A port's ends lie side by side, so each of so many has a bit of its own.
fn place(end: &End) -> (&'static AtomicU64, u64) {
    let i = std::ptr::from_ref(end).addr() / size_of::<End>() % BITS;
    (&MET[i / 64], 1 << (i % 64))
}

/// A slot has this end from now on.
pub fn note(end: &End) {
    let (word, bit) = place(end);
    if word.load(Relaxed) & bit == 0 {
        word.fetch_or(bit, Relaxed);
    }
}

/// False: no slot had it ever.
pub fn maybe(end: &End) -> bool {
    let (word, bit) = place(end);
    word.load(Relaxed) & bit != 0
}
