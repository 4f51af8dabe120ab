//! Files that lose their name while they are open: what those who read on still need is kept for them.
//!
//! A small object is fetched into a local file, a larger one copied on the server to a hidden key,
//! under an intent, so that the copy goes even if this process does not live to delete it. Both end with the last
//! handle.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::Vfs;
use super::error::FsError;
use super::handles::{Handle, OpenFile};
use super::io::{meta_of, read_or_zeros, spill_error};
use crate::base::limits::{MIB, PRIVATE_DIR};
use crate::base::time::{micros, now};
use crate::base::{ByteRange, ETag, ObjectKey, SessionId, crash};
use crate::intent::{Work, copy_any};
use crate::ledger::{KeptRecord, Record};
use crate::oss::{CopyOptions, ErrorKind};
use crate::read::{ReadError, Reader};
use crate::spill::Base;
use crate::write::{DirtyFile, Rekeyed, WriteError};

/// An object up to this size is fetched rather than copied.
const LOCAL_MAX: u64 = MIB;

/// What an object was when it lost its name.
#[derive(Debug, Clone)]
pub(super) enum Kept {
    Local { id: SessionId, file: Arc<File>, len: u64 },
    Hidden { intent: SessionId, before: ETag, base: Base },
}

/// A file that is about to lose its name.
#[derive(Debug)]
pub(super) struct Parting {
    key: ObjectKey,
    open: Option<Arc<OpenFile>>,
    dirty: Option<Arc<DirtyFile>>,
    /// The bucket may hold an object under its name.
    sent: bool,
    /// The version of that, where it is known.
    version: Option<ETag>,
}

impl Parting {
    pub(super) fn is_sent(&self) -> bool {
        self.sent
    }

    /// The session that loses its name, where it was not sent.
    pub(super) fn unsent(&self) -> Option<SessionId> {
        self.dirty.as_ref().map(|dirty| dirty.id())
    }

    /// The object under its name, as far as it is known.
    pub(super) fn version(&self) -> Option<ETag> {
        self.version.clone()
    }
}

impl Vfs {
    /// Prepares a file for the loss of its name `key`, which the caller has fenced in: what its handles still need
    /// is kept, what it has that was not sent goes nowhere from now on. [`Self::parted`] or [`Self::rejoin`] must
    /// follow.
    pub(super) async fn part(&self, ino: u64, key: &ObjectKey) -> Result<Parting, FsError> {
        let (open, version) = {
            let tree = self.tree.lock();
            let node = tree.node(ino).ok_or(FsError::Stale)?;
            (node.open.clone(), node.version.clone())
        };
        let (dirty, in_use) = match &open {
            Some(open) => {
                let state = open.state.lock();
                (state.dirty.clone(), state.handles > 0)
            }
            None => (None, false),
        };
        let known = dirty.as_ref().and_then(|dirty| dirty.base().map(|base| base.etag).or_else(|| dirty.replaces()));
        let sent = dirty.is_none() || version.is_some() || known.is_some();
        let at_name = known.or_else(|| version.as_ref().map(|version| version.etag.clone()));
        let open = open.filter(|_| in_use);
        let mut parting = Parting { key: key.clone(), open, dirty, sent, version: at_name };
        let Some(open) = parting.open.clone() else { return Ok(parting) };
        if open.state.lock().unlinked {
            // A process before this one has come so far.
            parting.sent = true;
            return Ok(parting);
        }
        match &parting.dirty {
            Some(dirty) => {
                let kept = match dirty.base().filter(|_| dirty.uses_base()) {
                    Some(base) => self.keep_hidden(&base).await?,
                    None => None,
                };
                let ended = dirty.unlink(kept.as_ref().and_then(rekeyed)).await;
                if let Err(error) = ended {
                    self.drop_kept(kept).await;
                    if !matches!(error, WriteError::Retired) {
                        return Err(error.into());
                    }
                    // It was published before the fence stood: it is a clean file.
                    self.pass_retired(dirty);
                    parting.dirty = None;
                    parting.sent = true;
                    return Box::pin(self.part(ino, key)).await;
                }
                self.attach(&open, kept);
            }
            None => {
                let Some(version) = version else { return Ok(parting) };
                let kept = if version.size <= LOCAL_MAX {
                    self.fetch_kept(&open).await?
                } else {
                    let base = Base { key: key.clone(), etag: version.etag, size: version.size, crc64: version.crc64 };
                    self.keep_hidden(&base).await?
                };
                self.attach(&open, kept);
            }
        }
        open.state.lock().unlinked = true;
        self.note_unlinked(&open);
        Ok(parting)
    }

    /// Notes where the bytes of an open file are that is about to lose its name.
    fn note_unlinked(&self, open: &OpenFile) {
        self.tree.lock().note_object(open.ino);
        let kept = open.state.lock().kept.as_ref().map(|kept| Box::new(kept.record()));
        self.ledger.note(&Record::Unlinked { ino: open.ino, kept });
        self.ledger.commit();
    }

    /// The name is gone, or another file's.
    pub(super) async fn parted(&self, parting: Parting) -> Result<(), FsError> {
        let mut kept = None;
        if let Some(open) = &parting.open {
            let mut state = open.state.lock();
            if state.handles > 0 {
                return Ok(());
            }
            // The last one was released before it could see that the name goes.
            kept = state.kept.take();
        }
        if let Some(dirty) = parting.dirty {
            if dirty.discard().await?.is_some() {
                // It was published before the fence stood; the name is gone all the same.
                self.pass_retired(&dirty);
            } else {
                self.unsettle(dirty.id());
            }
        }
        self.drop_kept(kept).await;
        Ok(())
    }

    /// The name stays: what is written to the file is published there again.
    pub(super) async fn rejoin(&self, parting: Parting) {
        let Some(open) = parting.open else { return };
        self.ledger.note(&Record::Rejoined { ino: open.ino });
        let back = {
            let mut state = open.state.lock();
            state.unlinked = false;
            match &state.kept {
                Some(Kept::Hidden { before, base, .. }) => Some((before.clone(), base.etag.clone())),
                _ => None,
            }
        };
        let Some(dirty) = parting.dirty else { return };
        let object = back.map(|(before, hidden)| Rekeyed { before: hidden, key: parting.key.clone(), after: before });
        if let Err(error) = dirty.rename(parting.key, object).await {
            log::error!("{}: {error}", dirty.name());
        }
    }

    /// Copies an object to a hidden key. `None` where another client has taken it away: nobody can read it then.
    async fn keep_hidden(&self, base: &Base) -> Result<Option<Kept>, FsError> {
        let name = SessionId::generate(micros(now()));
        let hidden = ObjectKey::parse(&format!("{}{PRIVATE_DIR}{name}", self.options.prefix.as_str()))?;
        let intent = self.intents.begin(Work::Hidden { key: hidden.clone() }, true)?.id;
        let options = CopyOptions { if_match: Some(base.etag.clone()), ..CopyOptions::default() };
        match copy_any(&self.client, &base.key, &hidden, &options).await {
            Ok(receipt) => {
                crash::point("kept-copied");
                let copy = Base { key: hidden, etag: receipt.etag, ..base.clone() };
                Ok(Some(Kept::Hidden { intent, before: base.etag.clone(), base: copy }))
            }
            Err(error) if matches!(error.kind, ErrorKind::PreconditionFailed | ErrorKind::NoSuchKey) => {
                log::warn!("{}: another client changed it; those who have it open cannot read on", base.key);
                self.intents.finish(intent);
                Ok(None)
            }
            // It may stand all the same; the next mount deletes it.
            Err(error) => Err(error.into()),
        }
    }

    async fn fetch_kept(&self, open: &OpenFile) -> Result<Option<Kept>, FsError> {
        let reader = self.reader(open)?;
        let len = reader.size();
        let bytes = match reader.fetch_exact(ByteRange::new(0, len)).await {
            Err(ReadError::Stale) => {
                log::warn!("another client changed a file; those who have it open cannot read on");
                return Ok(None);
            }
            other => other?,
        };
        let id = SessionId::generate(micros(now()));
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(self.kept_path(id));
        let file = file.map_err(spill_error)?;
        file.write_all_at(&bytes, 0).map_err(spill_error)?;
        Ok(Some(Kept::Local { id, file: Arc::new(file), len }))
    }

    pub(super) fn kept_path(&self, id: SessionId) -> PathBuf {
        self.write.spill().layout().kept().join(id.to_string())
    }

    /// Has the handles read what was kept, from now on.
    fn attach(&self, open: &OpenFile, kept: Option<Kept>) {
        let mut state = open.state.lock();
        if let Some(Kept::Hidden { before, base, .. }) = &kept {
            match state.reader.as_ref().filter(|reader| reader.etag() == *before) {
                Some(reader) => reader.rekey(base.key.clone(), base.etag.clone()),
                None => state.reader = Some(self.reader_of(base)),
            }
        }
        if kept.is_some() {
            state.kept = kept;
        }
    }

    pub(super) fn reader_of(&self, base: &Base) -> Arc<Reader> {
        let meta = meta_of(base.etag.clone(), base.size, base.crc64, std::time::UNIX_EPOCH);
        self.read.reader(base.key.clone(), &meta)
    }

    /// Takes away what was kept: nobody has the file open any more.
    pub(super) async fn drop_kept(&self, kept: Option<Kept>) {
        let (intent, base) = match kept {
            None => return,
            Some(Kept::Hidden { intent, base, .. }) => (intent, base),
            Some(Kept::Local { id, .. }) => {
                if let Err(error) = std::fs::remove_file(self.kept_path(id)) {
                    log::warn!("{error}; the next mount deletes it");
                }
                return;
            }
        };
        match self.client.delete_object(&base.key).await {
            Ok(()) => self.intents.finish(intent),
            Err(error) => log::warn!("{error}; the next mount deletes it"),
        }
    }

    /// Reads what was kept in a local file.
    pub(super) fn read_kept(&self, handle: &Handle, range: ByteRange) -> Option<Result<bytes::Bytes, FsError>> {
        let Some(Kept::Local { file, len, .. }) = handle.file.state.lock().kept.clone() else { return None };
        let range = range.intersect(&ByteRange::new(0, len));
        let mut buffer = vec![0; range.len() as usize];
        let read = read_or_zeros(&file, range.start, &mut buffer);
        Some(read.map(|()| buffer.into()).map_err(spill_error))
    }

    /// The session of a file without a name that is about to be changed. Nothing is locked while the disk works: of two
    /// who come at once, one finds the other's.
    pub(super) fn anonymous_session(&self, open: &Arc<OpenFile>, kept: Kept) -> Result<Arc<DirtyFile>, FsError> {
        let headers = {
            let tree = self.tree.lock();
            let node = tree.node(open.ino).ok_or(FsError::Stale)?;
            let held = node.version.as_ref().and_then(|version| version.headers.as_deref());
            self.options.attr.edit_headers(held, "", &node.attr)
        };
        let times = self.options.attr.times();
        let dirty = match kept {
            Kept::Hidden { base, .. } => DirtyFile::anonymous(&self.write, Some(base), headers, times),
            Kept::Local { file, len, .. } => {
                let mut bytes = vec![0; len as usize];
                read_or_zeros(&file, 0, &mut bytes).map_err(spill_error)?;
                let dirty = DirtyFile::anonymous(&self.write, None, headers, times);
                if let Err(error) = dirty.write_at_once(0, &bytes) {
                    self.discard_in_background(dirty);
                    return Err(error.into());
                }
                dirty
            }
        };
        let first = {
            let mut state = open.state.lock();
            let first = state.dirty.get_or_insert_with(|| dirty.clone()).clone();
            if Arc::ptr_eq(&first, &dirty) {
                self.own_session(open, &dirty);
            }
            first
        };
        if !Arc::ptr_eq(&first, &dirty) {
            self.discard_in_background(dirty);
        }
        Ok(first)
    }

    /// Ends a session that nobody has come to know.
    fn discard_in_background(&self, dirty: Arc<DirtyFile>) {
        self.runtime.spawn(async move {
            if let Err(error) = dirty.discard().await {
                log::warn!("{}: {error}", dirty.name());
            }
        });
    }
}

impl Kept {
    fn record(&self) -> KeptRecord {
        match self {
            Self::Local { id, len, .. } => KeptRecord::Local { id: *id, len: *len },
            Self::Hidden { intent, before, base } => KeptRecord::Hidden {
                intent: *intent,
                before: before.clone(),
                key: base.key.clone(),
                etag: base.etag.clone(),
                size: base.size,
                crc64: base.crc64,
            },
        }
    }
}

/// What a session must know of the copy that was kept of the object that it edits.
fn rekeyed(kept: &Kept) -> Option<Rekeyed> {
    match kept {
        Kept::Hidden { before, base, .. } => {
            Some(Rekeyed { before: before.clone(), key: base.key.clone(), after: base.etag.clone() })
        }
        Kept::Local { .. } => None,
    }
}
