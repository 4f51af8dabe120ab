//! Files being written: spill, parts handed over while the writing goes on, and publication.
//!
//! A [`DirtyFile`] is one write session. It lives from the first change of a file until the object in the bucket
//! equals it (then it is *retired*, and the next change begins another), or until it is discarded or kept for
//! `recover`. Knows keys and bytes; which inode or handle belongs to it is the business of the layer above.
//!
//! Two locks a file: `structure` is held over local disk calls that make, shorten or remove spill files; `state`
//! is short, and never held over a disk or network call. Order: `structure` before `state`.

mod background;
mod change;
mod descriptors;
mod fence;
mod fetch;
mod file;
mod hidden;
mod jobs;
mod meet;
mod publish;
mod restore;
mod room;
mod send;
mod sparse;
mod stable;
mod state;
mod status;
mod zeros;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::runtime::Handle;

pub use crate::spill::IfTaken;
pub use change::Rekeyed;
pub use fence::{Area, Change, Fence, Fences};
pub use file::{DirtyFile, Segment, Step};
pub use publish::{CONFLICT, Published};
pub use restore::Restored;
pub use sparse::Seek;
pub use status::FileStatus;

use crate::base::caller::Cut;
use crate::base::{ObjectKey, SessionId};
use crate::oss;
use crate::spill::{SpillError, SpillStore};
use crate::upload::UploadEngine;

/// Why a change or a publication failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The session has ended meanwhile: begin another.
    #[error("the write session has ended")]
    Retired,
    #[error("the file is larger than its part size can carry")]
    TooLarge,
    #[error("{message}")]
    Spill { message: String, errno: Option<i32> },
    /// The service has given up an upload that had the only copy of some of the file's bytes.
    #[error("the service has removed an unfinished upload that held part of the file")]
    Lost,
    /// Another client changed the object that is being edited.
    #[error("another client changed the object that is being edited")]
    Stale,
    /// Whoever asked waits no more.
    #[error(transparent)]
    Cut(#[from] Cut),
    /// Another client was first to create the file that had to be new.
    #[error("another client has created it first")]
    Taken,
    #[error(transparent)]
    Oss(#[from] oss::Error),
}

impl WriteError {
    /// Whether another client's change is in the way: trying again is of no use.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Stale | Self::Taken)
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Spill { errno: Some(libc::ENOSPC | libc::EDQUOT), .. })
    }

    /// Whether it was whoever asked that ended it.
    pub fn is_interruption(&self) -> bool {
        match self {
            Self::Cut(cut) => *cut == Cut::Interrupted,
            Self::Oss(error) => error.kind == oss::ErrorKind::Interrupted,
            _ => false,
        }
    }
}

impl From<SpillError> for WriteError {
    fn from(error: SpillError) -> Self {
        Self::Spill { message: error.to_string(), errno: error.raw_os_error() }
    }
}

/// What all write sessions of a mount share.
#[derive(Debug, Clone)]
pub struct WriteEngine(Arc<Engine>);

#[derive(Debug)]
struct Engine {
    upload: UploadEngine,
    spill: SpillStore,
    part_size: u64,
    runtime: Handle,
    live: Mutex<BTreeMap<SessionId, Arc<DirtyFile>>>,
    observer: OnceLock<Observer>,
    fences: Arc<Fences>,
    /// What the program's own keys begin with.
    private: OnceLock<String>,
    /// One at a time makes room.
    pressing: tokio::sync::Mutex<()>,
    queue: background::Queue,
    /// Spill files that were opened, ever.
    opened: AtomicUsize,
}

/// Told of every publication, once the session is retired, and of sessions that ended without one in the background.
/// No lock of this layer is held then.
pub struct Observer(Box<ObserverFn>);

type ObserverFn = dyn Fn(SessionId, Option<&Published>) + Send + Sync;

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

impl WriteEngine {
    /// `part_size` is that of the mount, in bytes; `runtime` runs what is sent in the background.
    pub fn new(upload: UploadEngine, spill: SpillStore, part_size: u64, runtime: Handle) -> Self {
        let (live, observer, fences, private, pressing, queue) = Default::default();
        let opened = AtomicUsize::new(0);
        Self(Arc::new(Engine {
            upload,
            spill,
            part_size,
            runtime,
            live,
            observer,
            fences,
            private,
            pressing,
            queue,
            opened,
        }))
    }

    /// Sets who is told of publications; the first one stays.
    pub fn on_published(&self, observer: Box<ObserverFn>) {
        if self.0.observer.set(Observer(observer)).is_err() {
            log::debug!("an observer of publications is set already");
        }
    }

    fn tell(&self, session: SessionId, published: Option<&Published>) {
        if let Some(observer) = self.0.observer.get() {
            observer.0(session, published);
        }
    }

    /// Sessions that have not ended, oldest first.
    pub fn live(&self) -> Vec<Arc<DirtyFile>> {
        self.0.live.lock().values().cloned().collect()
    }

    /// The session that is to be published at `key`, if there is one: the newest.
    pub fn session_for(&self, key: &ObjectKey) -> Option<Arc<DirtyFile>> {
        self.0.live.lock().values().rev().find(|file| file.is_for(key)).cloned()
    }

    /// Who changes what in the bucket: publications keep to it, and so must all who change names.
    pub fn fences(&self) -> &Arc<Fences> {
        &self.0.fences
    }

    pub fn spill(&self) -> &SpillStore {
        &self.0.spill
    }

    pub fn upload(&self) -> &UploadEngine {
        &self.0.upload
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    fn queue(&self) -> &background::Queue {
        &self.0.queue
    }

    /// Sends what is closed and still waits for a better name: somebody waits for it.
    pub fn hurry(&self) {
        self.0.queue.hurry();
    }

    fn register(&self, file: &Arc<DirtyFile>) {
        self.0.live.lock().insert(file.id(), file.clone());
    }

    /// A session is nobody's here any more, and stays on the disk with all that is known of it.
    fn leave(&self, id: SessionId) {
        self.0.live.lock().remove(&id);
    }
}
