//! Test suites of others, natively and under the front: each of their tests must come out the same, and the counters must show
//! that connections were carried. Offered as usual, and at the first call (SGM_PROMOTE_CALLS=0), so that short tests reach the
//! rings.
//!
//! - [`python`]: CPython's own tests of sockets, selectors, asyncio and its clients and servers, from the Debian package
//!   libpython3-testsuite; tornado's, from its wheel. `tests/suites/outcomes.py` runs them.
//!
//! What can't be had here is told as NOT RUN.

mod python;
