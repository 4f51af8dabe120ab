//! Size, mode, owner and times.

use std::sync::Arc;
use std::time::SystemTime;

use super::attr::{Attr, Kind, Version, unprivileged};
use super::error::FsError;
use super::tree::{Link, Listed, ROOT};
use super::{Entry, Vfs};
use crate::base::ObjectKey;
use crate::base::posix::UserMeta;
use crate::base::time::now;
use crate::oss::{Body, PutHeaders};
use crate::write::{DirtyFile, WriteError};

/// A time to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(SystemTime),
}

/// What is to be changed; `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttrChange {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// The handle it was asked through.
    pub fh: Option<u64>,
}

impl AttrChange {
    fn changes_metadata(&self) -> bool {
        self.mode.is_some() || self.uid.is_some() || self.gid.is_some() || self.atime.is_some() || self.mtime.is_some()
    }
}

impl Vfs {
    /// Changes attributes. A change of size through a path, of a file that is not open, is in the bucket when
    /// this returns; other changes of a finished file are safe on the local disk, and in the bucket soon.
    pub async fn setattr(&self, ino: u64, change: AttrChange) -> Result<Entry, FsError> {
        self.check_writable()?;
        if let Some(size) = change.size {
            self.truncate(ino, size, change.fh).await?;
        }
        if change.changes_metadata() {
            self.change_metadata(ino, &change).await?;
        }
        self.getattr(ino).await
    }

    async fn truncate(&self, ino: u64, size: u64, fh: Option<u64>) -> Result<(), FsError> {
        let entry = self.getattr(ino).await?;
        let file = self.open_file(ino)?;
        if entry.attr.size == size && file.dirty().is_none() {
            self.close_if_idle(&mut self.tree.lock(), ino);
            return Ok(());
        }
        self.complete_headers(ino).await?;
        self.drop_privileges(ino).await?;
        let by_writer = fh.is_some_and(|fh| self.handles.file(fh).is_ok_and(|handle| handle.writable));
        loop {
            let begun = if size == 0 && file.dirty().is_none() { self.begin_anew(ino, &file) } else { Ok(()) };
            let dirty = match begun.and_then(|()| self.session_of(&file)) {
                Err(FsError::Copying) => {
                    self.ready_for_session(ino).await?;
                    continue;
                }
                other => other?,
            };
            match self.stand(&dirty) {
                Err(FsError::Write(WriteError::Retired)) => {}
                other => other?,
            }
            // The next worker goes on with this session: no handle tells it.
            self.commit();
            match self.truncate_dirty(&dirty, size).await {
                Err(FsError::Write(WriteError::Retired)) => self.pass_retired(&dirty),
                Err(error) => return Err(error),
                Ok(()) if by_writer || file.state.lock().writers > 0 => return Ok(()),
                Ok(()) => return self.publish(&dirty).await,
            }
        }
    }

    pub(super) async fn truncate_dirty(&self, dirty: &Arc<DirtyFile>, size: u64) -> Result<(), FsError> {
        Ok(dirty.truncate_waiting(size).await?)
    }

    async fn change_metadata(&self, ino: u64, change: &AttrChange) -> Result<(), FsError> {
        let old = self.getattr(ino).await?.attr;
        let new = changed(old, change);
        if (ino == ROOT || !self.options.attr.posix) && !self.is_shown_anyway(&old, &new, change) {
            return Err(FsError::NotPermitted);
        }
        if ino == ROOT {
            // No object can bear its times: they are kept while the mount lives.
            if let Some(node) = self.tree.lock().node_mut(ino) {
                node.attr = new;
            }
            return Ok(());
        }
        self.store(ino, &new, Some(change), &|_| {}).await
    }

    /// Without an object to keep them, only what is shown anyway can be set, and the times to now; those of the root
    /// to anything.
    fn is_shown_anyway(&self, old: &Attr, new: &Attr, change: &AttrChange) -> bool {
        let at = |time: Option<SetTime>| matches!(time, Some(SetTime::At(_))) && old.ino != ROOT;
        (old.mode, old.uid, old.gid) == (new.mode, new.uid, new.gid) && !at(change.mtime) && !at(change.atime)
    }

    /// Changes the metadata besides mode, owner and times, of whatever an inode is.
    pub(super) async fn store_metadata(
        &self,
        ino: u64,
        edit: &(dyn Fn(&mut UserMeta) + Send + Sync),
    ) -> Result<(), FsError> {
        let old = self.getattr(ino).await?.attr;
        self.store(ino, &Attr { ctime: now(), ..old }, None, edit).await
    }

    /// A file that changes, or its owner, loses the bits by which it runs as somebody else.
    pub async fn drop_privileges(&self, ino: u64) -> Result<(), FsError> {
        if !self.has_privileges(ino) {
            return Ok(());
        }
        let new = {
            let mut tree = self.tree.lock();
            let node = tree.node_mut(ino).ok_or(FsError::Stale)?;
            node.attr.mode = unprivileged(node.attr.mode);
            node.attr
        };
        // On a clean file they go with the session that is begun next.
        match self.dirty_at(ino) {
            Some(dirty) => match self.change_dirty(ino, &dirty, &new, None, &|_| {}).await {
                Err(FsError::Write(WriteError::Retired)) => Ok(()),
                other => other,
            },
            None => Ok(()),
        }
    }

    /// Whether [`Self::drop_privileges`] has anything to do.
    pub fn has_privileges(&self, ino: u64) -> bool {
        self.tree.lock().node(ino).is_some_and(|node| unprivileged(node.attr.mode) != node.attr.mode)
    }

    async fn store(
        &self,
        ino: u64,
        new: &Attr,
        change: Option<&AttrChange>,
        edit: &(dyn Fn(&mut UserMeta) + Send + Sync),
    ) -> Result<(), FsError> {
        loop {
            while let Some(dirty) = self.dirty_at(ino) {
                match self.change_dirty(ino, &dirty, new, change, edit).await {
                    Err(FsError::Write(WriteError::Retired)) => self.pass_retired(&dirty),
                    other => return other,
                }
            }
            if new.kind == Kind::Dir {
                return self.change_marker(ino, new, edit).await;
            }
            if self.change_object(ino, new, edit).await? {
                return Ok(());
            }
        }
    }

    /// On a file that is not finished, attributes ride along with its upload.
    async fn change_dirty(
        &self,
        ino: u64,
        dirty: &Arc<DirtyFile>,
        new: &Attr,
        change: Option<&AttrChange>,
        edit: &(dyn Fn(&mut UserMeta) + Send + Sync),
    ) -> Result<(), FsError> {
        let (held, mut times) = dirty.attributes();
        let held = crate::upload::headers_of(&held);
        let mut headers = self.options.attr.edit_headers(Some(&held), &dirty.name(), new);
        edit(&mut headers.user_meta);
        if change.is_some_and(|change| change.mtime.is_some()) {
            times.mtime = Some(new.mtime);
        }
        if change.is_some_and(|change| change.atime.is_some()) {
            times.atime = Some(new.atime);
        }
        dirty.set_attributes(headers, times)?;
        if let Some(node) = self.tree.lock().node_mut(ino) {
            node.attr = *new;
        }
        Ok(())
    }

    /// A finished file's attributes are changed in the background; `false` where it is being written again.
    async fn change_object(
        &self,
        ino: u64,
        new: &Attr,
        edit: &(dyn Fn(&mut UserMeta) + Send + Sync),
    ) -> Result<bool, FsError> {
        let Ok((parent, name, path)) = self.place(ino) else {
            // Without a name there is no object to bear it.
            let mut tree = self.tree.lock();
            tree.node_mut(ino).ok_or(FsError::Stale)?.attr = *new;
            tree.note_object(ino);
            return Ok(true);
        };
        // Before the place is held: what waits for it to be let go would hold them up.
        self.settled_at(&self.file_key(&path)?).await?;
        let (path, _change) = self.hold_place(parent, &name).await?;
        let key = self.file_key(&path)?;
        let link = self.tree.lock().node(ino).and_then(|node| node.link.clone());
        if let Some(Link::Key(target)) = link {
            self.change_native_link(ino, &key, &target, new).await?;
            return Ok(true);
        }
        let version = self.complete_version(ino, &key).await?;
        self.change_later(ino, &key, version, new, edit).await
    }

    /// A symlink of the service is put again: what a copy of it onto itself does is not documented.
    async fn change_native_link(&self, ino: u64, key: &ObjectKey, target: &str, new: &Attr) -> Result<(), FsError> {
        let (held, meta) = self.client.get_symlink(key).await?;
        if held != target {
            self.forget_freshness(ino);
            return Err(FsError::Stale);
        }
        let headers = self.options.attr.changed_headers(&meta.headers, new);
        self.client.put_symlink(key, target, &headers).await?;
        let deadline = self.attr_deadline();
        let mut tree = self.tree.lock();
        if let Some(node) = tree.node_mut(ino) {
            (node.attr, node.version, node.fresh_until) = (*new, None, Some(deadline));
            if let Some((parent, name)) = node.place.clone() {
                tree.changed(parent, &name, Some(Listed { kind: Kind::Symlink, ino, version: None }));
            }
        }
        Ok(())
    }

    /// The object is not what was known: the next look asks.
    pub(super) fn forget_freshness(&self, ino: u64) {
        let mut tree = self.tree.lock();
        let Some(node) = tree.node_mut(ino) else { return };
        (node.fresh_until, node.seen) = (None, None);
        if let Some((parent, _)) = node.place.clone()
            && let Some(dir) = tree.dir_mut(parent)
        {
            dir.listing = None;
        }
    }

    /// The version of a finished file with all its headers: they must be sent again.
    pub(super) async fn complete_version(&self, ino: u64, key: &ObjectKey) -> Result<Version, FsError> {
        let held = self.tree.lock().node(ino).and_then(|node| node.version.clone());
        match held.filter(|version| version.headers.is_some()) {
            Some(version) => Ok(version),
            None => Ok(Version::of(&self.client.head_object(key).await?)),
        }
    }

    /// A directory's attributes live in its marker, which is made if need be.
    async fn change_marker(
        &self,
        ino: u64,
        new: &Attr,
        edit: &(dyn Fn(&mut UserMeta) + Send + Sync),
    ) -> Result<(), FsError> {
        let (parent, name, _) = self.place(ino)?;
        let (path, _change) = self.hold_place(parent, &name).await?;
        let key = self.marker_key(&path)?;
        let held = self.tree.lock().node(ino).and_then(|node| node.version.clone()).and_then(|version| version.headers);
        let mut headers: PutHeaders = match held {
            Some(held) => self.options.attr.changed_headers(&held, new),
            None => crate::upload::headers_of(&self.options.attr.new_dir_headers(new)),
        };
        edit(&mut headers.user_meta);
        let receipt = self.client.put_object(&key, &Body::Bytes(bytes::Bytes::new()), &headers).await?;
        let version = Version {
            etag: receipt.etag,
            size: 0,
            crc64: receipt.crc64,
            last_modified: now(),
            headers: Some(Box::new(headers)),
        };
        self.attributes_changed(ino, &key, new, version);
        Ok(())
    }

    fn attributes_changed(&self, ino: u64, key: &ObjectKey, new: &Attr, version: Version) {
        let deadline = self.attr_deadline();
        let mut tree = self.tree.lock();
        let Some(node) = tree.node_mut(ino) else { return };
        if node.cached.is_some() {
            node.cached = Some(version.etag.clone());
        }
        if let Some(open) = &node.open {
            // Our own doing must not fail those who read it.
            if let Some(reader) = &open.state.lock().reader {
                reader.rekey(key.clone(), version.etag.clone());
            }
        }
        (node.attr, node.version, node.fresh_until) = (*new, Some(version.clone()), Some(deadline));
        let (kind, place) = (new.kind, node.place.clone());
        if let Some((parent, name)) = place {
            let listed = (kind != Kind::Dir).then_some(version);
            tree.changed(parent, &name, Some(Listed { kind, ino, version: listed }));
        }
        tree.note_object(ino);
    }
}

/// The attributes after a change. A change of anything moves `ctime`.
fn changed(old: Attr, change: &AttrChange) -> Attr {
    let at = now();
    let time = |set: Option<SetTime>, old| match set {
        None => old,
        Some(SetTime::Now) => at,
        Some(SetTime::At(time)) => time,
    };
    let chown = old.kind == Kind::File && (change.uid.is_some() || change.gid.is_some());
    let kept = if chown { unprivileged(old.mode) } else { old.mode };
    Attr {
        mode: change.mode.map_or(kept, |mode| mode & 0o7777),
        uid: change.uid.unwrap_or(old.uid),
        gid: change.gid.unwrap_or(old.gid),
        mtime: time(change.mtime, old.mtime),
        atime: time(change.atime, old.atime),
        ctime: at,
        ..old
    }
}
