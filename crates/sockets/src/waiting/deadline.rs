//! When a call that waits ends. The clock is the front's; where there is no end it is not read.

/// A point in time, in ns of a monotonic clock, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Option<u64>);

impl Deadline {
    pub const NEVER: Deadline = Deadline(None);

    pub fn after_us(us: u64, now_ns: impl FnOnce() -> u64) -> Self {
        Self(Some(now_ns().saturating_add(us.saturating_mul(1000))))
    }

    pub fn left_ns(self, now_ns: impl FnOnce() -> u64) -> Option<u64> {
        self.0.map(|at| at.saturating_sub(now_ns()))
    }

    pub fn passed(self, now_ns: impl FnOnce() -> u64) -> bool {
        self.left_ns(now_ns) == Some(0)
    }
}
