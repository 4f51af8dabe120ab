//! Reading clean files: objects pinned by their ETag, fetched ahead in blocks, checked against the service's CRC64.
//!
//! A [`ReadEngine`] opens objects; a [`Reader`] is one object in one version, shared by all its handles; a [`Cursor`]
//! is the access history of one handle. Knows no inodes, no kernel and no dirty data. The surprising part: nothing
//! here waits for memory that nobody frees, since whatever no read is waiting for can be dropped and fetched again.
//!
//! ```text
//!  read ──► shared: history ─► window (pure): which pieces?  ──► fetch: GET, resume ──► block ──► answer
//!                   blocks  ─► what is there, what may go                └─► tally: CRC64 of the whole
//! ```
//!
//! `fetch` is the only place where bytes come in: a disk cache would be asked there before the service, and told of
//! each block that is whole.

mod block;
mod blocks;
mod cursor;
mod engine;
mod fetch;
mod reader;
mod shared;
mod tally;
mod window;

#[cfg(test)]
mod service_double;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use cursor::Cursor;
pub use engine::ReadEngine;
pub use reader::Reader;

use crate::base::Budget;
use crate::base::caller::Cut;
use crate::base::limits::MIB;
use crate::oss::{self, ObjectMeta};

/// How to read; the bytes in memory are bounded by `memory` and one block more.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Fetches at a time (`--download-workers`).
    pub workers: usize,
    /// Bytes of a block, and the grid on which blocks lie.
    pub chunk: u64,
    /// Bytes of the first fetch from the start of an object.
    pub first: u64,
    /// For all blocks of all objects; may be shared with others.
    pub memory: Arc<Budget>,
}

impl ReadOptions {
    /// The defaults, with the given budget.
    pub fn new(memory: Arc<Budget>) -> Self {
        Self { workers: 16, chunk: 8 * MIB, first: MIB, memory }
    }
}

/// What a conditional open found.
#[expect(clippy::large_enum_variant, reason = "made once per open and taken apart at once")]
#[derive(Debug)]
pub enum Opened {
    /// The object has the ETag that was held.
    Unchanged,
    /// What the service tells of the object now; its first bytes are on their way into `reader`.
    Current { meta: ObjectMeta, reader: Arc<Reader> },
}

/// A read that brought no bytes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The object is no longer the version that was opened.
    #[error("the object was replaced or deleted")]
    Stale,
    /// The whole object was received and does not have the CRC64 that the service gave for it.
    #[error("the bytes received do not have the object's CRC64")]
    Corrupt,
    /// Whoever asked waits no more.
    #[error(transparent)]
    Cut(#[from] Cut),
    #[error(transparent)]
    Oss(#[from] oss::Error),
}
