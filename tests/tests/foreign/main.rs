//! Test suites of others, natively and under the front: each of their tests must come out the same, and the counters must show
//! that connections were carried. Offered as usual, and at the first call (SGM_PROMOTE_CALLS=0), so that short tests reach the
//! rings.
//!
//! - [`python`]: CPython's own tests of sockets, selectors, asyncio and its clients and servers, from the Debian package
//!   libpython3-testsuite; tornado's, from its wheel. `tests/suites/outcomes.py` runs them.
//!
//! What can't be had here is told as NOT RUN.

mod python;

use std::io::Write;

/// Says why a test proved nothing here. Not by `eprintln`, which a passing test keeps to itself.
fn not_run(why: &str) {
    let test = std::thread::current()
        .name()
        .unwrap_or("a test")
        .to_string();
    let _ = writeln!(std::io::stderr(), "{test} was NOT RUN: {why}");
}
