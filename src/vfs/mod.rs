//! The rules of the file system: names, inodes, attributes, handles, and which call does what to which object.
//!
//! Knows no kernel types (that is `fuse`) and no HTTP (that is `oss`). What can be answered from memory has a
//! method that answers at once (`…_now`); the async one beside it asks the service.

mod ahead;
mod attr;
mod call;
mod error;
mod handles;
mod io;
mod keep;
mod later;
mod left;
mod link;
mod lookup;
mod mutate;
mod open;
mod opener;
mod readdir;
mod remembered;
mod rename;
mod restore;
mod setattr;
mod settle;
mod special;
mod statfs;
mod sync;
mod tree;
mod xattr;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle as Runtime;

pub use attr::{Attr, AttrOptions, Kind};
pub use call::Call;
pub use error::FsError;
pub use handles::Snapshot;
pub use io::Allocate;
pub use link::LinkForm;
pub use open::{OpenHow, OpenedFile};
pub use rename::RenameMode;
pub use setattr::{AttrChange, SetTime};
pub use statfs::Usage;
pub use sync::Unsent;
pub use tree::ROOT;
pub use xattr::{SetXattr, is_refused};

pub use crate::write::Seek;

use crate::base::caller::wait;
use crate::base::time::now;
use crate::base::{ObjectKey, Prefix, SessionId};
use crate::intent::IntentStore;
use crate::ledger::{Ledger, RequestState};
use crate::oss::Client;
use crate::read::ReadEngine;
use crate::write::{Area, Change, Fence, WriteEngine};
use handles::Handles;
use tree::Tree;

/// What a mount is told about its files.
#[derive(Debug, Clone)]
pub struct VfsOptions {
    pub prefix: Prefix,
    pub attr: AttrOptions,
    /// How new symlinks are kept.
    pub links: LinkForm,
    pub attr_ttl: Duration,
    pub list_ttl: Duration,
    pub read_only: bool,
    /// `close` returns when the bytes are safe on the local disk (`--close local`).
    pub close_local: bool,
    /// A file created with `O_EXCL` must be new in the bucket, too (`--exclusive-create remote`).
    pub exclusive_remote: bool,
    /// `fsync` returns when the object equals the file (`--fsync remote`).
    pub fsync_remote: bool,
    /// Writers that are killed publish what they wrote (`--on-kill publish`).
    pub publish_killed: bool,
    /// Bytes that `df` shows as the size.
    pub capacity: u64,
}

/// An inode's attributes and how long they may be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub attr: Attr,
    pub ttl: Duration,
}

/// Numbers of this many bits are given out by one process; above them stands which one it was.
const INCARNATION_SHIFT: u32 = 40;

/// What a mount has from the processes that served it before.
#[derive(Debug)]
pub struct Handed {
    pub ledger: Ledger,
    /// How many there were.
    pub incarnation: u64,
}

/// The file system of one mount.
#[derive(Debug)]
pub struct Vfs {
    options: VfsOptions,
    client: Client,
    read: ReadEngine,
    write: WriteEngine,
    runtime: Runtime,
    tree: Mutex<Tree>,
    handles: Handles,
    ledger: Arc<Ledger>,
    /// Files whose sessions an earlier process had hardly begun, or had ended without living to note what they became:
    /// nothing is known of their objects.
    unseen: Mutex<BTreeSet<u64>>,
    ahead: ahead::Ahead,
    /// Requests that an earlier process may have done.
    requests: Mutex<HashMap<u64, RequestState>>,
    intents: IntentStore,
    /// Moves of directories that go on in the background.
    unfinished: Mutex<rename::Unfinished>,
    /// Attributes of finished files that are not in the bucket yet.
    later: later::Later,
    left: left::Left,
    /// For what goes on in the background.
    me: Weak<Self>,
    /// Which inode a write session belongs to.
    sessions: Mutex<HashMap<SessionId, u64>>,
    usage: statfs::UsageCache,
    /// Keys that no path can carry, met in listings.
    hidden: AtomicU64,
    /// Keys of directory objects in the form of Hadoop (`a_$folder$`), met in listings.
    folder_objects: Mutex<BTreeSet<String>>,
    /// The mount's id in `fdinfo`, once it is known.
    mount_id: OnceLock<u64>,
}

impl Vfs {
    pub fn new(
        options: VfsOptions,
        read: ReadEngine,
        write: WriteEngine,
        intents: IntentStore,
        runtime: Runtime,
        handed: Handed,
    ) -> Arc<Self> {
        let ledger = Arc::new(handed.ledger);
        let first = handed.incarnation << INCARNATION_SHIFT;
        let root = options.attr.default_attr(ROOT, Kind::Dir, now());
        let vfs = Arc::new_cyclic(|me| Self {
            intents,
            unfinished: Mutex::default(),
            later: later::Later::default(),
            left: left::Left::default(),
            me: me.clone(),
            client: write.upload().client().clone(),
            options,
            read,
            write,
            runtime,
            tree: Mutex::new(Tree::new(root, first, ledger.clone())),
            handles: Handles::new(first),
            ledger,
            unseen: Mutex::default(),
            ahead: ahead::Ahead::default(),
            requests: Mutex::default(),
            sessions: Mutex::default(),
            usage: statfs::UsageCache::default(),
            hidden: AtomicU64::new(0),
            folder_objects: Mutex::default(),
            mount_id: OnceLock::new(),
        });
        let observer = Arc::downgrade(&vfs);
        vfs.write.on_published(Box::new(move |session, published| {
            if let Some(vfs) = observer.upgrade() {
                let Some(published) = published else { return vfs.unsettle(session) };
                if !vfs.sessions.lock().contains_key(&session) {
                    vfs.published_unseen(&published.key);
                }
                vfs.settle(session, published);
            }
        }));
        vfs
    }

    /// Tells the mount's id, by which descriptors on its files are recognised.
    pub fn set_mount_id(&self, id: u64) {
        if self.mount_id.set(id).is_err() {
            log::debug!("the mount id was known already");
        }
    }

    pub fn write_engine(&self) -> &WriteEngine {
        &self.write
    }

    /// Inodes in the table.
    pub fn inodes(&self) -> usize {
        self.tree.lock().len()
    }

    pub fn open_handles(&self) -> usize {
        self.handles.len()
    }

    /// Keys met that no path can carry.
    pub fn hidden_keys(&self) -> u64 {
        self.hidden.load(Ordering::Relaxed)
    }

    fn check_writable(&self) -> Result<(), FsError> {
        if self.options.read_only { Err(FsError::ReadOnly) } else { Ok(()) }
    }

    /// The key of the file at a place; refuses keys that cannot be sent.
    fn file_key(&self, path: &str) -> Result<ObjectKey, FsError> {
        Ok(self.options.prefix.file_key(path)?)
    }

    /// The key of a directory's marker.
    fn marker_key(&self, path: &str) -> Result<ObjectKey, FsError> {
        Ok(ObjectKey::parse(&self.options.prefix.dir_key(path))?)
    }

    fn child_path(&self, parent: u64, name: &str) -> Result<String, FsError> {
        self.tree.lock().child_path(parent, name).ok_or(FsError::Stale)
    }

    /// The path of a name, which keeps it as long as the guard lives: no directory above is moved meanwhile.
    async fn hold_place(&self, parent: u64, name: &str) -> Result<(String, Change), FsError> {
        loop {
            let path = self.child_path(parent, name)?;
            let key = self.options.prefix.dir_key(&path);
            let change = wait(self.write.fences().change(&[key.trim_end_matches('/')])).await?;
            if self.child_path(parent, name)? == path {
                return Ok((path, change));
            }
        }
    }

    /// The path of a name, with nothing else going on at it.
    async fn fence_place(&self, parent: u64, name: &str) -> Result<(String, Fence), FsError> {
        loop {
            let path = self.child_path(parent, name)?;
            let fence = wait(self.write.fences().fence(&[self.key_area(&path)])).await?;
            if self.child_path(parent, name)? == path {
                return Ok((path, fence));
            }
        }
    }

    fn key_area(&self, path: &str) -> Area {
        Area::Key(self.options.prefix.dir_key(path).trim_end_matches('/').to_owned())
    }

    fn attr_deadline(&self) -> Instant {
        Instant::now() + self.options.attr_ttl
    }

    /// A look-up of our own does not count: the kernel was not told of it.
    pub(super) fn forget(&self, ino: u64, count: u64) {
        self.tree.lock().forget(ino, count);
    }
}
