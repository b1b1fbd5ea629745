//! Real programs, each natively and under the front: equal answers, and the counters show that rings carried them.
//!
//! Both sides run under `sgm run`; servers are awaited by asking the kernel who listens, and always end with the test.

mod bulk;
mod inherited;
mod nginx;
mod postgres;
mod prefork;
mod python;
mod redis;
mod ssh;
mod upgrade;

use sgm_tests::front::Report;

/// At least so many bytes went through rings, and none came out that did not go in.
fn assert_carried(report: &Report, least: u64) {
    assert!(
        report.carried.tx_bytes >= least,
        "{} bytes carried, at least {least} expected: {report:?}",
        report.carried.tx_bytes
    );
    assert!(
        report.carried.rx_bytes <= report.carried.tx_bytes,
        "more came out of the rings than went in: {report:?}"
    );
}

/// The front was there, and says why the connection was TCP's.
fn assert_reason(report: &Report, why: &str) {
    assert!(report.reasons.contains_key(why), "{why}: {report:?}");
}
