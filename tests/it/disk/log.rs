//! What was done to a disk, in order.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// One operation. Inodes are never used twice.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Make {
        dir: u64,
        name: String,
        ino: u64,
        is_dir: bool,
        mode: u32,
    },
    Remove {
        dir: u64,
        name: String,
        ino: u64,
    },
    /// Whatever had the new name is gone from there.
    Rename {
        from: (u64, String),
        to: (u64, String),
        ino: u64,
    },
    /// Two files of one folder change names.
    Exchange {
        dir: u64,
        names: [String; 2],
        inos: [u64; 2],
    },
    Write {
        ino: u64,
        at: u64,
        data: Arc<[u8]>,
        time: SystemTime,
    },
    Resize {
        ino: u64,
        size: u64,
        time: SystemTime,
    },
    /// The whole of a file; its length and bytes alone with `data_only`.
    SyncFile {
        ino: u64,
        data_only: bool,
    },
    /// The names in a folder.
    SyncDir {
        ino: u64,
    },
}

impl Op {
    /// The folders that must be synced to be sure of it.
    pub(super) fn folders(&self) -> Vec<u64> {
        match self {
            Self::Make { dir, .. } | Self::Remove { dir, .. } => vec![*dir],
            Self::Rename { to, .. } => vec![to.0],
            Self::Exchange { dir, .. } => vec![*dir],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Op {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make { dir, name, ino, .. } => write!(f, "make {ino} as {dir}/{name}"),
            Self::Remove { dir, name, ino } => write!(f, "remove {ino} from {dir}/{name}"),
            Self::Rename { from, to, ino } => write!(f, "rename {ino} from {}/{} to {}/{}", from.0, from.1, to.0, to.1),
            Self::Exchange { dir, names: [one, two], inos } => write!(f, "exchange {inos:?} as {dir}/{one} and {two}"),
            Self::Write { ino, at, data, .. } => write!(f, "write {ino}: {} bytes at {at}", data.len()),
            Self::Resize { ino, size, .. } => write!(f, "resize {ino} to {size}"),
            Self::SyncFile { ino, data_only } => write!(f, "sync {ino}{}", if *data_only { ", data only" } else { "" }),
            Self::SyncDir { ino } => write!(f, "sync folder {ino}"),
        }
    }
}
