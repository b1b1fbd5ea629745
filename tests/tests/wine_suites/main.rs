//! Foreign test suites and real Windows programs under Wine, on Wine's own Winsock and with the provider.
//!
//! - [`suites`]: libevent's regress.exe and libuv's tests. What plain Wine passes always stands in `tests/suites/*.expected`;
//!   with the provider none of that may fail.
//! - [`servers`], [`clients`]: nginx, node, websocat, gdbserver, cmake and plink, each twice with equal answers, against
//!   Linux programs or each other; the counters show what was carried.
//! - [`stage`]: where a scenario's programs run; [`prefix`]: the two Wine prefixes, shared by all tests of a run;
//!   [`things`]: `tests/suites/prepare.sh` fetches and builds what is run.
//!
//! Everything fetched or built stays in `target/suites`, and so do the results of the last run. `SGM_SUITES=plain` leaves out
//! the halves with the provider.

mod clients;
mod prefix;
mod servers;
mod stage;
mod suites;
mod things;
