//! Size, mode, owner and times.

use std::sync::Arc;
use std::time::SystemTime;

use super::attr::{Attr, Kind, Version};
use super::error::FsError;
use super::handles::OpenFile;
use super::tree::{Listed, ROOT};
use super::{Entry, Vfs};
use crate::base::ObjectKey;
use crate::base::time::now;
use crate::oss::{Body, CopyOptions, PutHeaders};
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
    /// this returns; so is any change of a finished file.
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
        let by_writer = fh.is_some_and(|fh| self.handles.file(fh).is_ok_and(|handle| handle.writable));
        loop {
            if size == 0 && file.dirty().is_none() {
                self.begin_anew(ino, &file)?;
            }
            let dirty = self.session_of(&file)?;
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
        if ino == ROOT {
            return Err(FsError::NotPermitted);
        }
        let old = self.getattr(ino).await?.attr;
        let new = changed(old, change);
        if !self.options.attr.posix && !self.is_shown_anyway(&old, &new, change) {
            return Err(FsError::NotPermitted);
        }
        let file = self.tree.lock().node(ino).and_then(|node| node.open.clone());
        if let Some((file, dirty)) = file.and_then(|file| file.dirty().map(|dirty| (file, dirty))) {
            return self.change_dirty(&file, &dirty, &new, change);
        }
        match old.kind {
            Kind::Dir => self.change_marker(ino, &new).await,
            Kind::File => self.change_object(ino, &new).await,
        }
    }

    /// Without POSIX metadata only what the mount shows anyway can be set, and the times to now.
    fn is_shown_anyway(&self, old: &Attr, new: &Attr, change: &AttrChange) -> bool {
        let at = |time: Option<SetTime>| matches!(time, Some(SetTime::At(_)));
        (old.mode, old.uid, old.gid) == (new.mode, new.uid, new.gid) && !at(change.mtime) && !at(change.atime)
    }

    /// On a file that is not finished, attributes ride along with its upload.
    fn change_dirty(&self, file: &OpenFile, dirty: &DirtyFile, new: &Attr, change: &AttrChange) -> Result<(), FsError> {
        let (held, mut times) = dirty.attributes();
        let held = crate::upload::headers_of(&held);
        let name = dirty.name();
        let headers = self.options.attr.edit_headers(Some(&held), &name, new);
        if change.mtime.is_some() {
            times.mtime = Some(new.mtime);
        }
        if change.atime.is_some() {
            times.atime = Some(new.atime);
        }
        dirty.set_attributes(headers, times)?;
        if let Some(node) = self.tree.lock().node_mut(file.ino) {
            node.attr = *new;
        }
        Ok(())
    }

    /// A finished file's attributes are changed by copying the object onto itself.
    async fn change_object(&self, ino: u64, new: &Attr) -> Result<(), FsError> {
        let (parent, name, _) = self.place(ino)?;
        let (path, _change) = self.hold_place(parent, &name).await?;
        let key = self.file_key(&path)?;
        let version = self.complete_version(ino, &key).await?;
        let held = version.headers.as_deref().cloned().unwrap_or_default();
        let headers = self.options.attr.changed_headers(&held, new);
        let options = CopyOptions {
            if_match: Some(version.etag.clone()),
            replace: Some(headers.clone()),
            ..CopyOptions::default()
        };
        let receipt = self.client.copy_object(&key, &key, &options).await?;
        let last_modified = receipt.last_modified.unwrap_or(version.last_modified);
        let version = Version { etag: receipt.etag, last_modified, headers: Some(Box::new(headers)), ..version };
        self.attributes_changed(ino, &key, new, version);
        Ok(())
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
    async fn change_marker(&self, ino: u64, new: &Attr) -> Result<(), FsError> {
        let (parent, name, _) = self.place(ino)?;
        let (path, _change) = self.hold_place(parent, &name).await?;
        let key = self.marker_key(&path)?;
        let held = self.tree.lock().node(ino).and_then(|node| node.version.clone()).and_then(|version| version.headers);
        let headers: PutHeaders = match held {
            Some(held) => self.options.attr.changed_headers(&held, new),
            None => crate::upload::headers_of(&self.options.attr.new_dir_headers(new)),
        };
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
            let listed = (kind == Kind::File).then_some(version);
            tree.changed(parent, &name, Some(Listed { kind, ino, version: listed }));
        }
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
    Attr {
        mode: change.mode.map_or(old.mode, |mode| mode & 0o7777),
        uid: change.uid.unwrap_or(old.uid),
        gid: change.gid.unwrap_or(old.gid),
        mtime: time(change.mtime, old.mtime),
        atime: time(change.atime, old.atime),
        ctime: at,
        ..old
    }
}
