//! Windows programs under Wine: the same behaviour on Wine's own Winsock and on ours, with the provider absent, installed
//! and opted in, and the counters to prove the path.

mod batch;
mod documented;
mod examples;
mod hooked;
mod kill;
mod linux;
mod pending;
mod suite;
