//! The records of the ledger: what the kernel was told, step by step.
//!
//! Encoded by bincode 2, standard configuration; docs/STATE.md tells the bytes. Numbers are those of the vfs, but
//! nothing here knows what an inode is for.

use serde::{Deserialize, Serialize};

use crate::base::{ETag, ObjectKey, SessionId};

/// What an inode shows, for files that are open: another look at the bucket would tell something else, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Seconds and nanoseconds since the epoch: mtime, atime, ctime.
    pub times: [(u64, u32); 3],
    /// The version that its readers are pinned to; `None` for a file that was never sent.
    pub version: Option<VersionRecord>,
}

/// A version of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    pub etag: ETag,
    pub size: u64,
    pub crc64: Option<u64>,
    /// Seconds since the epoch.
    pub last_modified: u64,
}

/// Where the bytes of a file are that has lost its name while it was open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeptRecord {
    /// In a local file.
    Local { id: SessionId, len: u64 },
    /// In an object under a hidden key, which an intent deletes in the end.
    Hidden { intent: SessionId, before: ETag, key: ObjectKey, etag: ETag, size: u64, crc64: Option<u64> },
}

/// How a file was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HowRecord {
    pub readable: bool,
    pub writable: bool,
    pub append: bool,
    /// Thread group id and start time of who opened it.
    pub opener: Option<(u32, u64)>,
}

/// What a request has done, so that it is not done again when the kernel sends it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// It failed, or there is nothing to be told.
    Nothing,
    /// The inode that it has made.
    Entry(u64),
    /// The inode and the handle that it has made.
    Created(u64, u64),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// An inode came into the table, or got another name: the directory, the name, the type bits of its mode.
    Placed {
        ino: u64,
        parent: u64,
        name: Box<str>,
        kind: u32,
    },
    /// It lost its name.
    Unplaced {
        ino: u64,
    },
    /// It left the table.
    Dropped {
        ino: u64,
    },
    /// The answer to a request tells the kernel of it.
    Told {
        ino: u64,
        unique: u64,
    },
    /// The kernel forgot it so many times.
    Forgotten {
        ino: u64,
        count: u64,
    },
    /// What an open file shows.
    Object {
        ino: u64,
        object: Box<ObjectRecord>,
    },
    /// The write session of an inode; `None`: it has ended.
    Session {
        ino: u64,
        session: Option<SessionId>,
    },
    /// The writer of this session was killed.
    Killed {
        session: SessionId,
    },
    /// An open file has lost its name for good.
    Unlinked {
        ino: u64,
        kept: Option<Box<KeptRecord>>,
    },
    /// Its name stays after all.
    Rejoined {
        ino: u64,
    },
    /// A handle was given out by a request.
    Opened {
        unique: u64,
        fh: u64,
        ino: u64,
        how: HowRecord,
    },
    Closed {
        fh: u64,
    },
    DirOpened {
        unique: u64,
        fh: u64,
        ino: u64,
    },
    DirClosed {
        fh: u64,
    },
    /// Entries of an open directory that were told, from this offset on; at 0 those before hold no more.
    Listed {
        fh: u64,
        first: u64,
        names: Vec<Box<str>>,
    },
    /// What a request is about to do may be done from now on.
    Begun {
        unique: u64,
    },
    /// What it has done.
    Done {
        unique: u64,
        effect: Effect,
    },
    /// In a ledger that was put together anew: how often the kernel was told of an inode, all in all.
    Counted {
        ino: u64,
        lookups: u64,
    },
    /// The same for what is known of a request.
    Remembered {
        unique: u64,
        state: Box<RequestState>,
    },
}

/// What is remembered of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestState {
    /// What it was to do may have been done.
    pub begun: bool,
    pub effect: Option<Effect>,
    /// The handle that it was given.
    pub handle: Option<u64>,
    /// Inodes that its answer told of.
    pub told: Vec<u64>,
}
