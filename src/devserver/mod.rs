//! An OSS-compatible server for trying and testing: strict signatures, persistent, with faults on demand.
//!
//! Shares nothing with the client but the wire and the values of `base`, so that an error in one is caught by the
//! other. It follows the service where the service surprises (ranges, self-copies, symlinks); where the
//! documentation is silent it takes the harsher reading, so that a client that works here does not rely on luck.
//!
//! ```text
//!  server ──► service ──► auth, handlers ──► store (index + log + segment files)
//!                 └─────► control, faults, traffic, stats
//! ```
//!
//! What it has beyond the service lies under `/_dev/` on the server's own address (`docs/DEVSERVER.md`): request
//! counters and log, faults, gates, outages, throttling, clock, credentials, and the objects as another client
//! sees them.

mod attributes;
mod auth;
mod call;
mod conditions;
mod control;
mod failure;
mod faults;
mod handlers;
mod range;
mod receive;
mod reply;
mod request;
mod s3;
mod server;
mod service;
mod stats;
mod store;
mod traffic;
mod xml;

pub use server::{Options, Server};
