//! A FUSE file system that makes an Alibaba Cloud OSS bucket a folder.
//!
//! ```text
//!  cli ──► mount ──► worker ──► fuse ──► vfs ──► write, read ──► upload, intent ──► spill, journal, oss ──► base
//! ```
//!
//! A module uses what stands to its right, never what stands to its left; `tests/it/tidy.rs` holds the table.

pub mod base;
pub mod cli;
pub mod config;
pub mod control;
pub mod credentials;
pub mod devserver;
pub mod fuse;
pub mod intent;
pub mod journal;
pub mod ledger;
pub mod logging;
pub mod oss;
pub mod read;
pub mod replay;
pub mod spill;
pub mod supervise;
pub mod upload;
pub mod vfs;
pub mod worker;
pub mod write;
