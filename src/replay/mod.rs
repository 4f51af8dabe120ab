//! Replay: what becomes of the write sessions that an earlier process left behind.
//!
//! Evidence is gathered, [`decide()`] says what follows, and the same code that finishes a live file acts. Runs in
//! the background after the mount; every step can be cut off anywhere and done again.

mod decide;
mod expiry;
mod export;
mod list;
mod recover;
mod run;

pub use decide::{Decision, Evidence, Mode, Record, Remote, decide};
pub use expiry::{Expiring, expiring};
pub use export::Exported;
pub use list::{list_offline, list_sessions};
pub use recover::{RecoverError, discard, publish};
pub use run::{Carried, Replay, ReplayError};
