//! Renaming: a copy on the server and a delete, for a directory many of them; for what was never sent, neither.
//!
//! Readers and sessions are told of the copy before the original goes, so that nobody meets a gap.

mod exchange;
mod relocate;
mod tree;

use std::sync::Arc;

use super::Vfs;
use super::attr::Kind;
use super::call::Call;
use super::error::FsError;
use super::later::Taken;
use super::tree::Listed;
use crate::base::caller::wait;
use crate::base::key::check_name;
use crate::base::limits::GIB;
use crate::base::{ETag, ObjectKey, SessionId, crash};
use crate::intent::{Work, copy_any};
use crate::journal::CopyRecord;
use crate::ledger::Effect;
use crate::oss::{CopyOptions, CopyReceipt, ErrorKind};
use crate::write::{DirtyFile, Fence, Rekeyed, WriteError};

pub(super) use tree::Unfinished;

/// An object up to this size is surely copied by one request, which can change its attributes too.
const TAKEN_ALONG_MAX: u64 = GIB;

/// What a rename does where the new name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`: the two change places.
    Exchange,
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
        if mode == RenameMode::Exchange {
            return if begun { self.exchange_again(call, from, to).await } else { self.exchange(call, from, to).await };
        }
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
            // Before the fence, which would hold them up.
            for path in [&old, &new] {
                self.settled_at(&self.file_key(path)?).await?;
            }
            let fence: Fence = wait(self.write.fences().fence(&[self.key_area(&old), self.key_area(&new)])).await?;
            if self.child_path(from.parent, from.name)? == old && self.child_path(to.parent, to.name)? == new {
                break (self.file_key(&old)?, self.file_key(&new)?, fence);
            }
        };
        // It has its new name from a process that died: what a look there shows is this very file.
        if let Some(dirty) =
            self.dirty_at(ino).filter(|dirty| begun && dirty.publishable_key().as_ref() == Some(&new_key))
        {
            return self.finish_unsent(ino, &dirty, (&old_key, from), to).await;
        }
        let target = self.check_target(to, mode).await?;
        self.begin(call);
        let parting = match target {
            Some(target) => Some(self.part(target, &new_key).await?),
            None => None,
        };
        let over = parting.as_ref().map_or((None, None), |parting| (parting.version(), parting.unsent()));
        let renamed = match self.dirty_at(ino) {
            Some(dirty) => self.rename_unsent(begun, ino, &dirty, (&old_key, from), (&new_key, to), over).await,
            None => self.rename_object(begun, ino, None, (&old_key, from), (&new_key, to)).await,
        };
        if let Some(target) = target.filter(|_| renamed.is_ok()) {
            self.drop_attributes(target);
        }
        match (renamed, parting) {
            (Err(error), Some(parting)) => {
                self.rejoin(parting).await;
                Err(error)
            }
            // Where nothing was put in the place of its object yet, that stays until the file is published.
            (Ok(()), Some(parting)) => self.parted(parting).await,
            (renamed, None) => renamed,
        }
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
    /// first: it must stand under the new name until then. Where there is none, nothing is asked of the service, and
    /// the file replaces `over`, the object and the session at the new name, when it is published.
    async fn rename_unsent(
        &self,
        begun: bool,
        ino: u64,
        dirty: &Arc<DirtyFile>,
        (old_key, from): (&ObjectKey, Place<'_>),
        (new_key, to): (&ObjectKey, Place<'_>),
        (over, unsent): (Option<ETag>, Option<SessionId>),
    ) -> Result<(), FsError> {
        let held = self.tree.lock().node(ino).and_then(|node| node.version.as_ref().map(|v| v.etag.clone()));
        let Some(etag) = dirty.base().map(|base| base.etag).or_else(|| dirty.replaces()).or(held) else {
            match dirty.rename_over(new_key.clone(), over, unsent).await {
                Err(WriteError::Retired) => self.pass_retired(dirty),
                other => {
                    other?;
                    self.moved(ino, from, to, None);
                    return Ok(());
                }
            }
            return self.rename_object(begun, ino, None, (old_key, from), (new_key, to)).await;
        };
        match self.rename_object(begun, ino, Some((dirty, etag)), (old_key, from), (new_key, to)).await {
            // Another client deleted what the file was to replace: there is only the session to be moved.
            Err(FsError::NotFound) if !dirty.uses_base() => {
                dirty.rename_over(new_key.clone(), over, unsent).await?;
                self.moved(ino, from, to, None);
                Ok(())
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
    ) -> Result<(), FsError> {
        let sent = dirty.base().is_some() || dirty.replaces().is_some();
        self.moved(ino, from, to, None);
        if sent {
            self.client.delete_object(old_key).await?;
        }
        Ok(())
    }

    /// What stands in the bucket: copied on the server, then deleted. A session that edits or replaces it goes along.
    async fn rename_object(
        &self,
        begun: bool,
        ino: u64,
        session: Option<(&Arc<DirtyFile>, ETag)>,
        (old_key, from): (&ObjectKey, Place<'_>),
        (new_key, to): (&ObjectKey, Place<'_>),
    ) -> Result<(), FsError> {
        let held = self.tree.lock().node(ino).and_then(|node| node.version.as_ref().map(|v| v.etag.clone()));
        let before = session.as_ref().map(|(_, etag)| etag.clone()).or(held);
        let taken = self.take_along(ino, session.is_some(), old_key).await?;
        let replace = taken.map(|taken| taken.wanted);
        let is_taken = replace.is_some();
        let options = CopyOptions { if_match: before.clone(), replace, ..CopyOptions::default() };
        let before = before.unwrap_or_else(|| ETag::new(""));
        let work = Work::MoveFile { from: old_key.clone(), to: new_key.clone(), etag: before.clone() };
        let copied = match self.intents.begin(work, false) {
            Ok(intent) => match copy_any(&self.client, old_key, new_key, &options).await {
                Ok(receipt) => Ok((intent.id, receipt)),
                // Copied, and the original deleted, before the process died, which had no time to note the new name.
                Err(error) if begun && error.kind == ErrorKind::NoSuchKey => {
                    match self.client.head_object(new_key).await {
                        Ok(found) => Ok((
                            intent.id,
                            CopyReceipt {
                                etag: found.etag,
                                last_modified: Some(found.last_modified),
                                crc64: found.crc64,
                            },
                        )),
                        Err(_) => {
                            self.intents.finish(intent.id);
                            Err(stale(error))
                        }
                    }
                }
                Err(error) => {
                    self.intents.finish(intent.id);
                    Err(stale(error))
                }
            },
            Err(error) => Err(error.into()),
        };
        let (intent, receipt) = match copied {
            Ok(copied) => copied,
            Err(error) => {
                self.put_attributes_back(ino);
                return Err(error);
            }
        };
        crash::point("rename-copied");
        if let Some((dirty, etag)) = &session {
            let object = Rekeyed { before: etag.clone(), key: new_key.clone(), after: receipt.etag.clone() };
            match dirty.rename(new_key.clone(), Some(object)).await {
                Err(WriteError::Retired) => self.pass_retired(dirty),
                other => other?,
            }
        }
        crash::point("rename-session-moved");
        let record = CopyRecord { before, after: receipt.etag, at: receipt.last_modified };
        self.moved(ino, from, to, Some((new_key, &record)));
        if is_taken {
            self.drop_attributes(ino);
        } else {
            self.rekey_attributes(ino, new_key, Some(&record.after)).await?;
        }
        crash::point("rename-shown");
        // A session that came back after power loss would be published under the old name again.
        self.write.spill().settle_ends().await?;
        let deleted = self.client.delete_object(old_key).await;
        crash::point("rename-deleted");
        self.intents.finish(intent);
        if let Err(error) = deleted {
            log::error!("{old_key} was copied to {new_key}, and stands still: {error}");
            return Err(error.into());
        }
        Ok(())
    }

    /// What is to be sent of a file's attributes goes with the copy that renames it; before it where the object is so
    /// large that it may be copied part by part. What goes with a session stays with that.
    async fn take_along(&self, ino: u64, has_session: bool, key: &ObjectKey) -> Result<Option<Taken>, FsError> {
        if has_session {
            return Ok(None);
        }
        let size = self.tree.lock().node(ino).map_or(0, |node| node.attr.size);
        if size > TAKEN_ALONG_MAX {
            self.send_attributes_at(ino, key).await?;
            return Ok(None);
        }
        Ok(self.take_attributes(ino).await)
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
