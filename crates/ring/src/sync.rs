//! The one door to atomics: the real ones, or loom's when the models run.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// Orders everything before a read-modify-write that was just made against everything after it.
///
/// On x86 a locked instruction is already a full barrier, so this only holds the compiler; elsewhere, and for loom
/// (which gives `SeqCst` accesses no total order, only fences), it is the fence itself.
#[inline(always)]
pub fn barrier_after_rmw() {
    #[cfg(all(not(loom), any(target_arch = "x86_64", target_arch = "x86")))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(any(loom, not(any(target_arch = "x86_64", target_arch = "x86"))))]
    fence(Ordering::SeqCst);
}
