//! Extended attributes: those that users set, kept with the objects, and those that the mount shows of its own.
//!
//! What the kernel asks for unasked (`security.…` before every write, ACLs at every `ls -l`) is refused without a
//! look at anything: [`is_refused`]. The mount's own are not listed, so that tools which copy attributes do not try
//! to set them.

use super::Vfs;
use super::attr::{Kind, Version};
use super::call::Call;
use super::error::FsError;
use super::tree::ROOT;
use crate::base::limits::{USER_META_BYTES_MAX, USER_META_BYTES_RESERVE};
use crate::base::posix::UserMeta;
use crate::base::xattr::{self, Xattrs};
use crate::ledger::Effect;
use crate::spill::Phase;
use crate::write::DirtyFile;

/// What the names of the mount's own attributes begin with.
const OWN: &str = "user.ossfuse.";

/// What setting an attribute expects of the one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetXattr {
    Any,
    /// `XATTR_CREATE`.
    New,
    /// `XATTR_REPLACE`.
    Present,
}

/// Whether attributes of this name are not kept at all.
pub fn is_refused(name: &str) -> bool {
    !name.starts_with("user.") && !name.starts_with("trusted.")
}

impl Vfs {
    /// The value of an attribute.
    pub async fn getxattr(&self, ino: u64, name: &str) -> Result<Vec<u8>, FsError> {
        if is_refused(name) {
            return Err(FsError::Unsupported);
        }
        let kind = self.getattr(ino).await?.attr.kind;
        if let Some(own) = name.strip_prefix(OWN) {
            return self.own_xattr(ino, kind, own).await?.map(String::into_bytes).ok_or(FsError::NoData);
        }
        self.xattrs(ino)?.remove(name).ok_or(FsError::NoData)
    }

    /// The names of the attributes that were set.
    pub async fn listxattr(&self, ino: u64) -> Result<Vec<String>, FsError> {
        self.getattr(ino).await?;
        Ok(self.xattrs(ino)?.into_keys().collect())
    }

    pub async fn setxattr(&self, call: Call, ino: u64, name: &str, value: &[u8], how: SetXattr) -> Result<(), FsError> {
        self.check_xattr_change(name)?;
        if self.was_done(call) {
            return Ok(());
        }
        let begun = self.was_begun(call);
        self.getattr(ino).await?;
        let mut xattrs = self.xattrs(ino)?;
        match how {
            _ if begun => {}
            SetXattr::New if xattrs.contains_key(name) => return Err(FsError::Exists),
            SetXattr::Present if !xattrs.contains_key(name) => return Err(FsError::NoData),
            _ => {}
        }
        if xattrs.insert(name.to_owned(), value.to_owned()).as_deref() == Some(value) {
            return Ok(());
        }
        self.begin(call);
        self.store_xattrs(ino, &xattrs).await?;
        self.done(call, Effect::Nothing);
        Ok(())
    }

    pub async fn removexattr(&self, call: Call, ino: u64, name: &str) -> Result<(), FsError> {
        self.check_xattr_change(name)?;
        if self.was_done(call) {
            return Ok(());
        }
        self.getattr(ino).await?;
        let mut xattrs = self.xattrs(ino)?;
        match xattrs.remove(name) {
            None if self.was_begun(call) => return Ok(()),
            removed => removed.ok_or(FsError::NoData)?,
        };
        self.begin(call);
        self.store_xattrs(ino, &xattrs).await?;
        self.done(call, Effect::Nothing);
        Ok(())
    }

    fn check_xattr_change(&self, name: &str) -> Result<(), FsError> {
        self.check_writable()?;
        if name.starts_with(OWN) {
            return Err(FsError::NotPermitted);
        }
        if is_refused(name) || !self.options.attr.posix { Err(FsError::Unsupported) } else { Ok(()) }
    }

    /// What was set on an inode whose attributes are known.
    fn xattrs(&self, ino: u64) -> Result<Xattrs, FsError> {
        if !self.options.attr.posix {
            return Ok(Xattrs::new());
        }
        let dirty = self.dirty_at(ino);
        let tree = self.tree.lock();
        let read = match (dirty, tree.node(ino)) {
            (Some(dirty), _) => xattr::read(&dirty.attributes().0.user_meta),
            (None, Some(node)) => match node.version.as_ref().and_then(|version| version.headers.as_ref()) {
                Some(headers) => xattr::read(&headers.user_meta),
                None => Ok(Xattrs::new()),
            },
            (None, None) => return Err(FsError::Stale),
        };
        read.map_err(|_| FsError::Unsupported)
    }

    pub(super) fn dirty_at(&self, ino: u64) -> Option<std::sync::Arc<DirtyFile>> {
        self.tree.lock().node(ino).and_then(|node| node.open.as_ref()?.dirty())
    }

    async fn store_xattrs(&self, ino: u64, xattrs: &Xattrs) -> Result<(), FsError> {
        if ino == ROOT {
            return Err(FsError::Unsupported);
        }
        let mut alone = UserMeta::new();
        xattr::write(xattrs, &mut alone);
        let own: usize = alone.iter().map(|(name, value)| name.len() + value.len()).sum();
        if own > 0 && own + self.other_metadata(ino) + USER_META_BYTES_RESERVE > USER_META_BYTES_MAX {
            return Err(FsError::NoSpace);
        }
        self.store_metadata(ino, &|meta| xattr::write(xattrs, meta)).await
    }

    /// Bytes of user metadata besides the attributes, mode, owner and times.
    fn other_metadata(&self, ino: u64) -> usize {
        const KEPT_FREE: [&str; 7] = [xattr::XATTR, "mode", "uid", "gid", "mtime", "atime", "ctime"];
        let tree = self.tree.lock();
        let headers = tree.node(ino).and_then(|node| node.version.as_ref()?.headers.as_ref());
        let foreign = headers.into_iter().flat_map(|headers| &headers.user_meta);
        foreign
            .filter(|(name, _)| !KEPT_FREE.contains(&name.as_str()))
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }

    /// What the mount tells of a file of its own accord.
    async fn own_xattr(&self, ino: u64, kind: Kind, name: &str) -> Result<Option<String>, FsError> {
        let path = self.tree.lock().path(ino).ok_or(FsError::NoData)?;
        let is_dir = kind == Kind::Dir;
        let key = if is_dir { self.marker_key(&path) } else { self.file_key(&path) };
        let Ok(key) = key else { return Ok(None) };
        match name {
            "key" => return Ok(Some(key.as_str().to_owned())),
            "url" => return Ok(self.client.object_url(&key)),
            "state" if is_dir => return Ok(None),
            "state" => return self.state_of(ino, key).await.map(Some),
            "etag" | "crc64" | "storage-class" if !is_dir => {}
            _ => return Ok(None),
        }
        let known = self.tree.lock().node(ino).and_then(|node| node.version.clone());
        let version = match known {
            None => return Ok(None),
            Some(version) if name == "etag" => version,
            Some(_) => self.complete_version(ino, &key).await?,
        };
        Ok(match name {
            "etag" => Some(version.etag.as_str().to_owned()),
            "crc64" => version.crc64.map(|sum| sum.to_string()),
            _ => Some(storage_class(&version)),
        })
    }

    async fn state_of(&self, ino: u64, key: crate::base::ObjectKey) -> Result<String, FsError> {
        if let Some(dirty) = self.dirty_at(ino) {
            let status = dirty.status();
            let sending = status.upload_id.is_some() || matches!(status.phase, Phase::Closing | Phase::Completing);
            return Ok(match status.phase {
                Phase::Kept(_) => "kept".to_owned(),
                _ if sending => format!("uploading {}/{}", status.parts_done, status.parts_total),
                _ => "dirty".to_owned(),
            });
        }
        let spill = self.write.spill().clone();
        let is_kept = move || {
            let found = spill.scan().unwrap_or_default();
            found.iter().any(|session| match &session.record {
                Ok(Some(record)) => matches!(record.phase, Phase::Kept(_)) && record.key.as_ref() == Some(&key),
                _ => false,
            })
        };
        let kept = self.runtime.spawn_blocking(is_kept).await.unwrap_or(false);
        Ok(if kept { "kept" } else { "clean" }.to_owned())
    }
}

fn storage_class(version: &Version) -> String {
    let told = version.headers.as_ref().and_then(|headers| headers.storage_class.clone());
    told.unwrap_or_else(|| "Standard".to_owned())
}
