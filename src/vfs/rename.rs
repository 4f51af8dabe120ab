//! Renaming files: a copy on the server and a delete, or for a file that was never sent, neither.

use std::sync::Arc;

use super::Vfs;
use super::attr::{Kind, Version};
use super::error::FsError;
use super::tree::Listed;
use crate::base::ObjectKey;
use crate::base::key::check_name;
use crate::oss::{CopyOptions, ErrorKind};
use crate::spill::Base;
use crate::write::{DirtyFile, WriteError};

/// What a rename does where the new name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Place<'n> {
    parent: u64,
    name: &'n str,
}

impl Vfs {
    /// Gives a file another name. Directories are left to the caller, who copies and deletes (`CrossDevice`).
    pub async fn rename(
        &self,
        (parent, name): (u64, &str),
        (new_parent, new_name): (u64, &str),
        mode: RenameMode,
    ) -> Result<(), FsError> {
        self.check_writable()?;
        check_name(new_name)?;
        let (from, to) = (Place { parent, name }, Place { parent: new_parent, name: new_name });
        let (ino, kind) = self.resolve(parent, name).await?;
        if kind == Kind::Dir {
            return Err(FsError::CrossDevice);
        }
        let old_key = self.file_key(&self.child_path(parent, name)?)?;
        let new_key = self.file_key(&self.child_path(new_parent, new_name)?)?;
        if old_key == new_key {
            return Ok(());
        }
        let replaced = self.check_target(to, mode).await?;
        match self.unsent(ino) {
            Some(dirty) => self.rename_unsent(ino, &dirty, &old_key, &new_key, replaced).await?,
            None => self.rename_object(ino, &old_key, &new_key, replaced).await?,
        }
        self.moved(ino, from, to);
        Ok(())
    }

    fn unsent(&self, ino: u64) -> Option<Arc<DirtyFile>> {
        self.tree.lock().node(ino).and_then(|node| node.open.as_ref()?.dirty())
    }

    /// The file that the rename replaces, if any.
    async fn check_target(&self, to: Place<'_>, mode: RenameMode) -> Result<Option<u64>, FsError> {
        match self.resolve(to.parent, to.name).await {
            Ok(_) if mode == RenameMode::NoReplace => Err(FsError::Exists),
            Ok((_, Kind::Dir)) => Err(FsError::IsDirectory),
            Ok((ino, _)) => Ok(Some(ino)),
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A file with unsent bytes takes its session along. An object that it edits is moved first, so that the
    /// session's base is found under the new name.
    async fn rename_unsent(
        &self,
        ino: u64,
        dirty: &Arc<DirtyFile>,
        old_key: &ObjectKey,
        new_key: &ObjectKey,
        replaced: Option<u64>,
    ) -> Result<(), FsError> {
        let held = self.tree.lock().node(ino).and_then(|node| node.version.clone());
        if let Some(target) = replaced {
            self.drop_unsent(target).await?;
        }
        let base = match dirty.base() {
            Some(base) => Some(self.move_base(base, new_key).await?),
            None => None,
        };
        match dirty.rename(new_key.clone(), base).await {
            Err(WriteError::Retired) => {
                self.pass_retired(dirty);
                return self.rename_object(ino, old_key, new_key, None).await;
            }
            other => other?,
        }
        if held.is_some() {
            self.client.delete_object(old_key).await?;
        }
        Ok(())
    }

    async fn move_base(&self, base: Base, new_key: &ObjectKey) -> Result<Base, FsError> {
        let options = CopyOptions { if_match: Some(base.etag.clone()), ..CopyOptions::default() };
        let receipt = self.client.copy_object(&base.key, new_key, &options).await.map_err(stale)?;
        Ok(Base { key: new_key.clone(), etag: receipt.etag, ..base })
    }

    /// A finished file: copy on the server, then delete.
    async fn rename_object(
        &self,
        ino: u64,
        old_key: &ObjectKey,
        new_key: &ObjectKey,
        replaced: Option<u64>,
    ) -> Result<(), FsError> {
        let held = self.tree.lock().node(ino).and_then(|node| node.version.clone());
        let options =
            CopyOptions { if_match: held.as_ref().map(|version| version.etag.clone()), ..CopyOptions::default() };
        if let Some(target) = replaced {
            self.drop_unsent(target).await?;
        }
        let receipt = self.client.copy_object(old_key, new_key, &options).await.map_err(stale)?;
        self.client.delete_object(old_key).await?;
        if let Some(held) = held {
            let last_modified = receipt.last_modified.unwrap_or(held.last_modified);
            let version = Version { etag: receipt.etag, last_modified, ..held };
            self.version_moved(ino, new_key, version);
        }
        Ok(())
    }

    /// The object behind an inode has another key and ETag by our own doing: its readers go along.
    fn version_moved(&self, ino: u64, key: &ObjectKey, version: Version) {
        let mut tree = self.tree.lock();
        let Some(node) = tree.node_mut(ino) else { return };
        if let Some(reader) = node.open.as_ref().and_then(|open| open.state.lock().reader.clone()) {
            reader.rekey(key.clone(), version.etag.clone());
        }
        if node.cached.is_some() {
            node.cached = Some(version.etag.clone());
        }
        node.version = Some(version);
    }

    fn moved(&self, ino: u64, from: Place<'_>, to: Place<'_>) {
        let mut tree = self.tree.lock();
        tree.detach(to.parent, to.name);
        tree.rename(ino, to.parent, to.name);
        let Some((kind, version)) = tree.node(ino).map(|node| (node.attr.kind, node.version.clone())) else { return };
        tree.changed(from.parent, from.name, None);
        tree.changed(to.parent, to.name, Some(Listed { kind, ino, version }));
    }
}

/// An object that another client replaced or deleted just now.
fn stale(error: crate::oss::Error) -> FsError {
    match error.kind {
        ErrorKind::PreconditionFailed => FsError::Stale,
        ErrorKind::NoSuchKey => FsError::NotFound,
        _ => error.into(),
    }
}
