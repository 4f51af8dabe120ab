//! The integration tests, in one binary: a link per file would cost minutes.

#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "helpers of tests are tests")]

mod close;
mod conformance;
mod counts;
mod crash;
mod handover;
mod harness;
mod metadata;
mod model;
mod names;
mod refusals;
mod rename;
mod tidy;
mod tools;
mod umount;
