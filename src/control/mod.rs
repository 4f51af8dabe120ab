//! The control socket: how a command speaks to a running mount.
//!
//! Line-delimited JSON over a unix socket that only its owner can reach. [`protocol`] has the words, [`client`] is
//! the command's end, [`server`] the mount's. Neither end knows what a request does: the mount hands the server a
//! closure from [`Request`] to [`Response`].

pub mod client;
pub mod protocol;
mod ready;
pub mod server;

pub use protocol::{Failure, MountStatus, Pending, RecoverEntry, Request, Response};
pub use ready::{READY_VARIABLE, Ready, Started, read_started};
pub use server::bind;
