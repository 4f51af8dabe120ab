//! The integration tests, in one binary: a link per file would cost minutes.

#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "helpers of tests are tests")]

mod attributes;
mod boot;
mod cli;
mod close;
mod config;
mod conformance;
mod counts;
mod crash;
mod credentials;
mod disk;
mod doctor;
mod enumerated;
mod faults;
mod guide;
mod handover;
mod harness;
mod limits;
mod logs;
mod machine;
mod mapping;
mod meeting;
mod memory;
mod metadata;
mod model;
mod names;
mod outage;
mod powerloss;
mod rates;
mod real_tools;
mod recover;
mod refusals;
mod rename;
mod rootless;
mod sync;
mod systemd;
mod tidy;
mod tools;
mod umount;
mod uploads;
mod writeback;
