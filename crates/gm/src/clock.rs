//! A cheap clock for deciding how long to poll: the time stamp counter, calibrated by nobody.
//!
//! The unit is "ticks": about nanoseconds times the CPU's nominal GHz. Spin budgets only compare ticks with ticks.

/// Current ticks.
#[inline]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC has no preconditions.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(target_arch = "x86")]
    // SAFETY: as above.
    unsafe {
        core::arch::x86::_rdtsc()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
    {
        crate::os::monotonic_ns() * 3
    }
}

/// Ticks in one microsecond, taken as the fixed 3 GHz that spin budgets are written for: being off by a factor of
/// 1.5 changes a budget by that factor and nothing else.
pub const TICKS_PER_US: u64 = 3_000;
