//! What follows from the end of a write session: the inode shows the object that the file has become.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Vfs;
use super::attr::{Kind, Version};
use super::error::FsError;
use super::handles::OpenFile;
use super::tree::{Listed, ROOT};
use crate::base::caller::wait;
use crate::base::limits::MIB;
use crate::base::time::since_epoch;
use crate::base::{ObjectKey, SessionId};
use crate::ledger::Record;
use crate::oss::ErrorKind;
use crate::write::{DirtyFile, Published};

/// A file up to this size is read by the request that opens it.
const READ_AT_ONCE: u64 = MIB;

impl Vfs {
    /// A session was published: its inode is clean from now on. Done twice it does nothing the second time.
    pub(super) fn settle(&self, session: SessionId, published: &Published) {
        let Some(ino) = self.sessions.lock().remove(&session) else { return };
        self.ledger.note(&Record::Session { ino, session: None });
        // What was to be sent of its attributes went along.
        self.drop_attributes(ino);
        let version = Version {
            etag: published.etag.clone(),
            size: published.size,
            crc64: published.crc64,
            last_modified: whole_seconds(published.at),
            headers: Some(Box::new(published.headers.clone())),
        };
        let deadline = self.attr_deadline();
        let mut tree = self.tree.lock();
        let Some(node) = tree.node_mut(ino) else { return };
        if let Some(open) = &node.open {
            forget_dirty(open, session);
        }
        let mut attr = self.options.attr.attr_of(ino, Kind::File, &version);
        (attr.mode, attr.uid, attr.gid) = (node.attr.mode, node.attr.uid, node.attr.gid);
        node.attr = attr;
        // The kernel keeps only whole pages of what was written: of a small file that is no saving.
        node.cached = (version.size > READ_AT_ONCE).then(|| version.etag.clone());
        node.seen = Some(Instant::now());
        node.version = Some(version.clone());
        node.fresh_until = Some(deadline);
        let place = node.place.clone();
        if let Some((parent, name)) = place {
            tree.changed(parent, &name, Some(Listed { kind: Kind::File, ino, version: Some(version) }));
        }
        tree.note_object(ino);
        self.close_if_idle(&mut tree, ino);
    }

    /// A file that no inode belongs to was published, by a replay: what is remembered of its name and of the
    /// directory it has come into holds no more.
    pub(super) fn published_unseen(&self, key: &ObjectKey) {
        let Some(path) = self.options.prefix.path_of(key.as_str()) else { return };
        let mut tree = self.tree.lock();
        let mut dir = ROOT;
        for name in path.split('/') {
            let child = tree.child(dir, name);
            if let Some(known) = tree.dir_mut(dir).filter(|known| {
                known.listing.as_ref().is_some_and(|listing| child.is_none() || !listing.entries.contains_key(name))
            }) {
                known.listing = None;
                known.changes += 1;
            }
            match child {
                Some(child) => dir = child,
                None => return,
            }
        }
        if let Some(node) = tree.node_mut(dir) {
            node.fresh_until = None;
        }
    }

    /// Waits until a session of a file can begin, after [`FsError::Copying`].
    pub(super) async fn ready_for_session(&self, ino: u64) -> Result<(), FsError> {
        wait(self.later.idle(ino)).await?;
        self.see_again(ino).await
    }

    /// Whether nothing is known of the object of a file, be it there or not.
    pub(super) fn is_unseen(&self, ino: u64) -> bool {
        self.unseen.lock().contains(&ino)
    }

    /// Looks at the object of a file of which an earlier process had a session that is no more: what is written now
    /// changes that object, and is no new file.
    pub(super) async fn see_again(&self, ino: u64) -> Result<(), FsError> {
        if !self.is_unseen(ino) {
            return Ok(());
        }
        let key = || self.file_key(&self.place(ino)?.2);
        self.settled_at(&key()?).await?;
        let found = match self.client.head_object(&key()?).await {
            Ok(found) => Some(found),
            Err(error) if error.kind == ErrorKind::NoSuchKey => None,
            Err(error) => return Err(error.into()),
        };
        let mut tree = self.tree.lock();
        if let Some((found, node)) = found.zip(tree.node_mut(ino).filter(|node| node.version.is_none())) {
            node.version = Some(Version {
                etag: found.etag,
                size: found.size,
                crc64: found.crc64,
                last_modified: found.last_modified,
                headers: Some(Box::new(found.headers)),
            });
            tree.note_object(ino);
        }
        self.unseen.lock().remove(&ino);
        Ok(())
    }

    /// A session ended without being published: the inode shows what the bucket has, if anything.
    pub(super) fn unsettle(&self, session: SessionId) {
        let Some(ino) = self.sessions.lock().remove(&session) else { return };
        self.ledger.note(&Record::Session { ino, session: None });
        let mut tree = self.tree.lock();
        let Some(node) = tree.node_mut(ino) else { return };
        if let Some(open) = &node.open {
            forget_dirty(open, session);
        }
        (node.fresh_until, node.cached) = (None, None);
        let unsent = node.version.is_none();
        if let Some((parent, name)) = node.place.clone().filter(|_| unsent) {
            tree.changed(parent, &name, None);
            tree.detach(parent, &name);
        }
        self.close_if_idle(&mut tree, ino);
        drop(tree);
        self.attributes_go_alone(ino);
    }

    /// Drops the open file of an inode that has neither handles nor unsent bytes.
    pub(super) fn close_if_idle(&self, tree: &mut super::tree::Tree, ino: u64) {
        let Some(node) = tree.node_mut(ino) else { return };
        let idle = node.open.as_ref().is_some_and(|open| {
            let state = open.state.lock();
            state.handles == 0 && state.dirty.is_none()
        });
        if idle {
            node.open = None;
            tree.drop_if_unused(ino);
        }
    }

    /// Makes the folder of a session, once it is noted whose session it is: one that nobody knows of would be taken for
    /// a crash's.
    pub(super) fn stand(&self, dirty: &DirtyFile) -> Result<(), FsError> {
        self.ledger.commit();
        Ok(dirty.stand()?)
    }

    /// Notes which inode a session belongs to.
    pub(super) fn own_session(&self, file: &OpenFile, dirty: &Arc<DirtyFile>) {
        self.sessions.lock().insert(dirty.id(), file.ino);
        self.ledger.note(&Record::Session { ino: file.ino, session: Some(dirty.id()) });
    }
}

fn forget_dirty(open: &OpenFile, session: SessionId) {
    let mut state = open.state.lock();
    if state.dirty.as_ref().is_some_and(|dirty| dirty.id() == session) {
        state.dirty = None;
        // Reads go to the new object from now on.
        state.reader = None;
    }
}

/// Object times have whole seconds.
pub(super) fn whole_seconds(at: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(since_epoch(at).as_secs())
}
