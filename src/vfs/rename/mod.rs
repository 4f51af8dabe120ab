//! Renaming: a copy on the server and a delete, for a directory many of them; for what was never sent, neither.
//!
//! Readers and sessions are told of the copy before the original goes, so that nobody meets a gap.

mod relocate;
mod tree;

use std::sync::Arc;

use super::Vfs;
use super::attr::Kind;
use super::call::Call;
use super::error::FsError;
use super::keep::Parting;
use super::tree::Listed;
use crate::base::key::check_name;
use crate::base::{ETag, ObjectKey};
use crate::intent::{Work, copy_any};
use crate::journal::CopyRecord;
use crate::ledger::Effect;
use crate::oss::{CopyOptions, CopyReceipt, ErrorKind};
use crate::write::{DirtyFile, Fence, Rekeyed, WriteError};

pub(super) use tree::Unfinished;

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
    /// Gives a file or a directory another name.
    pub async fn rename(
        &self,
        call: Call,
        (parent, name): (u64, &str),
        (new_parent, new_name): (u64, &str),
        mode: RenameMode,
    ) -> Result<(), FsError> {
        self.check_writable()?;
        check_name(new_name)?;
        if self.was_done(call) {
            return Ok(());
        }
        let (from, to) = (Place { parent, name }, Place { parent: new_parent, name: new_name });
        let begun = self.was_begun(call);
        if begun {
            self.wait_for_move(from, to).await?;
        }
        match self.resolve(parent, name).await {
            // Done before the process died.
            Err(FsError::NotFound) if begun && self.resolve(new_parent, new_name).await.is_ok() => {}
            Err(error) => return Err(error),
            Ok((_, Kind::Dir)) => self.rename_dir(call, from, to, mode).await?,
            Ok((ino, _)) => self.rename_file(call, ino, from, to, mode).await?,
        }
        self.done(call, Effect::Nothing);
        Ok(())
    }

    async fn rename_file(
        &self,
        call: Call,
        ino: u64,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let begun = self.was_begun(call);
        // What stands at the new name by now may be what was put there.
        let mode = if begun { RenameMode::Replace } else { mode };
        let (old_key, new_key, _fence) = loop {
            let (old, new) = (self.child_path(from.parent, from.name)?, self.child_path(to.parent, to.name)?);
            if old == new {
                return Ok(());
            }
            let fence: Fence = self.write.fences().fence(&[self.key_area(&old), self.key_area(&new)]).await;
            if self.child_path(from.parent, from.name)? == old && self.child_path(to.parent, to.name)? == new {
                break (self.file_key(&old)?, self.file_key(&new)?, fence);
            }
        };
        let target = self.check_target(to, mode).await?;
        self.begin(call);
        let parting = match target {
            Some(target) => Some(self.part(target, &new_key).await?),
            None => None,
        };
        let renamed = match self.unsent(ino) {
            Some(dirty) if begun && dirty.publishable_key().as_ref() == Some(&new_key) => {
                self.finish_unsent(ino, &dirty, (&old_key, from), to).await
            }
            Some(dirty) => self.rename_unsent(begun, ino, &dirty, (&old_key, from), (&new_key, to)).await,
            None => self.rename_object(begun, ino, None, (&old_key, from), (&new_key, to)).await,
        };
        match (renamed, parting) {
            (Err(error), Some(parting)) => {
                self.rejoin(parting).await;
                Err(error)
            }
            (Ok(over_sent), Some(parting)) => self.replaced(parting, over_sent, &new_key).await,
            (renamed, None) => renamed.map(drop),
        }
    }

    /// The file that stood at the new name is gone. Its object too, where nothing was put in its place.
    async fn replaced(&self, parting: Parting, over_sent: bool, key: &ObjectKey) -> Result<(), FsError> {
        if parting.is_sent() && !over_sent {
            self.client.delete_object(key).await?;
        }
        self.parted(parting).await
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

    /// A file with unsent bytes takes its session along. An object that it edits, or replaces in the end, goes
    /// first: it must stand under the new name until then. Whether there was one.
    async fn rename_unsent(
        &self,
        begun: bool,
        ino: u64,
        dirty: &Arc<DirtyFile>,
        (old_key, from): (&ObjectKey, Place<'_>),
        (new_key, to): (&ObjectKey, Place<'_>),
    ) -> Result<bool, FsError> {
        let held = self.tree.lock().node(ino).and_then(|node| node.version.as_ref().map(|v| v.etag.clone()));
        let Some(etag) = dirty.base().map(|base| base.etag).or_else(|| dirty.replaces()).or(held) else {
            match dirty.rename(new_key.clone(), None).await {
                Err(WriteError::Retired) => self.pass_retired(dirty),
                other => {
                    other?;
                    self.moved(ino, from, to, None);
                    return Ok(false);
                }
            }
            return self.rename_object(begun, ino, None, (old_key, from), (new_key, to)).await;
        };
        match self.rename_object(begun, ino, Some((dirty, etag)), (old_key, from), (new_key, to)).await {
            // Another client deleted what the file was to replace: there is only the session to be moved.
            Err(FsError::NotFound) if !dirty.uses_base() => {
                dirty.rename(new_key.clone(), None).await?;
                self.moved(ino, from, to, None);
                Ok(false)
            }
            other => other,
        }
    }

    /// The session has its new name from a process that died before the old object was gone.
    async fn finish_unsent(
        &self,
        ino: u64,
        dirty: &DirtyFile,
        (old_key, from): (&ObjectKey, Place<'_>),
        to: Place<'_>,
    ) -> Result<bool, FsError> {
        let sent = dirty.base().is_some() || dirty.replaces().is_some();
        self.moved(ino, from, to, None);
        if sent {
            self.client.delete_object(old_key).await?;
        }
        Ok(sent)
    }

    /// What stands in the bucket: copied on the server, then deleted. A session that edits or replaces it goes along.
    async fn rename_object(
        &self,
        begun: bool,
        ino: u64,
        session: Option<(&Arc<DirtyFile>, ETag)>,
        (old_key, from): (&ObjectKey, Place<'_>),
        (new_key, to): (&ObjectKey, Place<'_>),
    ) -> Result<bool, FsError> {
        let held = self.tree.lock().node(ino).and_then(|node| node.version.as_ref().map(|v| v.etag.clone()));
        let before = session.as_ref().map(|(_, etag)| etag.clone()).or(held);
        let options = CopyOptions { if_match: before.clone(), ..CopyOptions::default() };
        let before = before.unwrap_or_else(|| ETag::new(""));
        let work = Work::MoveFile { from: old_key.clone(), to: new_key.clone(), etag: before.clone() };
        let intent = self.intents.begin(work, false)?.id;
        let receipt = match copy_any(&self.client, old_key, new_key, &options).await {
            Ok(receipt) => receipt,
            // Copied, and the original deleted, before the process died.
            Err(error) if begun && error.kind == ErrorKind::NoSuchKey => {
                let found = self.client.head_object(new_key).await;
                self.intents.finish(intent);
                let found = found.map_err(|_| stale(error))?;
                CopyReceipt { etag: found.etag, last_modified: Some(found.last_modified), crc64: found.crc64 }
            }
            Err(error) => {
                self.intents.finish(intent);
                return Err(stale(error));
            }
        };
        if let Some((dirty, etag)) = &session {
            let object = Rekeyed { before: etag.clone(), key: new_key.clone(), after: receipt.etag.clone() };
            match dirty.rename(new_key.clone(), Some(object)).await {
                Err(WriteError::Retired) => self.pass_retired(dirty),
                other => other?,
            }
        }
        let record = CopyRecord { before, after: receipt.etag, at: receipt.last_modified };
        self.moved(ino, from, to, Some((new_key, &record)));
        let deleted = self.client.delete_object(old_key).await;
        self.intents.finish(intent);
        if let Err(error) = deleted {
            log::error!("{old_key} was copied to {new_key}, and stands still: {error}");
            return Err(error.into());
        }
        Ok(true)
    }

    /// Shows a file under its new name. `copy` is where its object is now; readers go along.
    fn moved(&self, ino: u64, from: Place<'_>, to: Place<'_>, copy: Option<(&ObjectKey, &CopyRecord)>) {
        let mut tree = self.tree.lock();
        tree.detach(to.parent, to.name);
        tree.rename(ino, to.parent, to.name);
        let Some(node) = tree.node_mut(ino) else { return };
        if let Some((key, record)) = copy {
            relocate::carry(node, key, Some(record));
        }
        let (kind, version) = (node.attr.kind, node.version.clone());
        tree.note_object(ino);
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
