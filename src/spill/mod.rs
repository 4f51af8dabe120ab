//! Local data of write sessions: one folder a session, with its spill files and its session file.
//!
//! The promise of every acknowledged byte lies here. Knows the disk and its layout (docs/STATE.md), nothing of
//! HTTP, of sled, or of which part a spill file belongs to. A spill file ("piece") holds the bytes of the file
//! from its index times the piece size on, as they are; what lies past its end inside the file is zeros.
//! A folder that has been moved to `trash/` is done with: the move is the one step that ends a session.

mod body;
mod commit;
mod folder;
mod frame;
mod gauge;
mod record;
mod reserve;
mod session;
mod spare;

pub use body::SpillBody;
pub use folder::{Found, Layout, LockError, LockedFolder, SpillStore, free_bytes, read_only_scan, spilled_bytes};
pub(crate) use frame::Frame;
pub use gauge::{Gauge, Lease};
pub use record::VERSION as SESSION_VERSION;
pub use record::{
    Base, HeaderRecord, HeldPart, HeldUpload, IfTaken, Phase, PieceNote, RecordError, SessionRecord, Times,
};
pub use session::{Filling, SessionDir};

use std::io;
use std::path::{Path, PathBuf};

/// A step on the local disk failed.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Record { path: PathBuf, source: RecordError },
}

impl SpillError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// The errno of the disk, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Record { .. } => None,
        }
    }
}
