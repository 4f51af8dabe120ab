//! Open files and directories: what a handle number stands for.
//!
//! Lock order in this layer: the tree, then an open file's `state`, then what lies below (`write`). None of them
//! is held across an await or a disk call.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::attr::Kind;
use super::error::FsError;
use super::keep::Kept;
use super::opener::Process;
use crate::read::{Cursor, Reader};
use crate::write::DirtyFile;

/// A file that is open, or that has not been sent yet: shared by all its handles.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub ino: u64,
    pub state: Mutex<OpenState>,
}

#[derive(Debug, Default)]
pub(super) struct OpenState {
    pub handles: u32,
    /// Of these, the ones that may write.
    pub writers: u32,
    pub dirty: Option<Arc<DirtyFile>>,
    /// Reads the object as it was opened; made when it is first needed.
    pub reader: Option<Arc<Reader>>,
    /// Its name is gone: what is written to it goes nowhere.
    pub unlinked: bool,
    /// What the object was, for those who have the file open without its name.
    pub kept: Option<Kept>,
}

impl OpenFile {
    pub(super) fn new(ino: u64) -> Arc<Self> {
        Arc::new(Self { ino, state: Mutex::default() })
    }

    pub(super) fn dirty(&self) -> Option<Arc<DirtyFile>> {
        self.state.lock().dirty.clone()
    }
}

/// One open of a file.
#[derive(Debug)]
pub(super) struct Handle {
    pub ino: u64,
    pub file: Arc<OpenFile>,
    pub readable: bool,
    pub writable: bool,
    pub append: bool,
    /// Who opened it; `None` where that is not known.
    pub opener: Option<Process>,
    pub cursor: Cursor,
}

/// A directory as it was when reading it began: names, inodes, and kinds where they are known without a look at the
/// object.
pub type Snapshot = Arc<Vec<(String, u64, Option<Kind>)>>;

/// One open of a directory.
#[derive(Debug)]
pub(super) struct DirHandle {
    pub ino: u64,
    pub snapshot: Mutex<Option<Snapshot>>,
    /// Names that an earlier process has told, from offset 0 on: reading goes on behind the last of them.
    pub told: Vec<Box<str>>,
}

/// The handle numbers.
#[derive(Debug)]
pub(super) struct Handles {
    files: Mutex<HashMap<u64, Arc<Handle>>>,
    dirs: Mutex<HashMap<u64, Arc<DirHandle>>>,
    next: AtomicU64,
    /// Numbers up to this one were given out by earlier processes.
    first: u64,
}

impl Handles {
    /// Handles whose numbers are all greater than `first`.
    pub(super) fn new(first: u64) -> Self {
        let (files, dirs) = Default::default();
        Self { files, dirs, next: AtomicU64::new(first), first }
    }

    /// Why there is no such handle: one of an earlier process was not taken up.
    fn missing(&self, number: u64) -> FsError {
        if number <= self.first { FsError::Stale } else { FsError::BadHandle }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn add_file(&self, handle: Handle) -> u64 {
        let number = self.number();
        self.restore_file(number, handle);
        number
    }

    /// Puts a handle under a number that it has already.
    pub(super) fn restore_file(&self, number: u64, handle: Handle) {
        {
            let mut state = handle.file.state.lock();
            state.handles += 1;
            state.writers += u32::from(handle.writable);
        }
        self.files.lock().insert(number, Arc::new(handle));
    }

    pub(super) fn file(&self, number: u64) -> Result<Arc<Handle>, FsError> {
        self.files.lock().get(&number).cloned().ok_or_else(|| self.missing(number))
    }

    /// Takes a handle back; its file counts it no more.
    pub(super) fn remove_file(&self, number: u64) -> Result<Arc<Handle>, FsError> {
        let handle = self.files.lock().remove(&number).ok_or_else(|| self.missing(number))?;
        {
            let mut state = handle.file.state.lock();
            state.handles -= 1;
            state.writers -= u32::from(handle.writable);
        }
        Ok(handle)
    }

    pub(super) fn add_dir(&self, ino: u64) -> u64 {
        let number = self.number();
        self.restore_dir(number, ino, Vec::new());
        number
    }

    /// Puts a directory's handle under a number that it has already.
    pub(super) fn restore_dir(&self, number: u64, ino: u64, told: Vec<Box<str>>) {
        self.dirs.lock().insert(number, Arc::new(DirHandle { ino, snapshot: Mutex::new(None), told }));
    }

    pub(super) fn dir(&self, number: u64) -> Result<Arc<DirHandle>, FsError> {
        self.dirs.lock().get(&number).cloned().ok_or_else(|| self.missing(number))
    }

    pub(super) fn remove_dir(&self, number: u64) {
        self.dirs.lock().remove(&number);
    }

    /// Handles that are open, of files and directories.
    pub(super) fn len(&self) -> usize {
        self.files.lock().len() + self.dirs.lock().len()
    }
}
