//! Files whose parts have left the local disk: completed at a key of the program's own, and taken on from there.
//!
//! An upload belongs to its key, so one whose parts may leave the disk goes to a hidden key from the start. What is
//! completed there is an object like any other, which the session edits from then on: never does the name of the
//! file show half of it. The session file says where the bytes are before they leave, and again before the object
//! takes the place of the parts.

use std::sync::Arc;

use super::file::DirtyFile;
use super::state::{Part, State};
use super::{WriteEngine, WriteError};
use crate::base::caller::interruptible;
use crate::base::limits::PRIVATE_DIR;
use crate::base::{ETag, ObjectKey, Prefix, SessionId, crash};
use crate::oss::{self, ErrorKind, Operation, Outcome};
use crate::spill::{Base, HeldPart, HeldUpload, Phase, SessionDir, SessionRecord};
use crate::upload::{Finished, PartOutcome, Plan, Transfer, whole_crc};

/// A spill that holds fewer parts than this sends all larger files by way of a hidden key: most of them will have
/// to leave the disk, and a key chosen too late costs sending twice.
const PARTS_FEW: u64 = 128;

/// What a session that has ended leaves in the bucket: the folder goes after it, so that a crash forgets nothing.
#[derive(Debug)]
pub(super) struct Leftover {
    engine: WriteEngine,
    dir: Arc<SessionDir>,
    record: SessionRecord,
}

impl WriteEngine {
    /// Tells the mounted prefix: the program's own keys lie under it.
    pub fn hide_under(&self, prefix: &Prefix) {
        if self.0.private.set(format!("{}{PRIVATE_DIR}", prefix.as_str())).is_err() {
            log::debug!("the place for hidden keys is known already");
        }
    }

    /// Where a session is completed that cannot wait for its close.
    pub(super) fn hidden_key(&self, session: SessionId, checkpoints: u32) -> Option<ObjectKey> {
        let folder = self.0.private.get().map_or(PRIVATE_DIR, String::as_str);
        let number = if checkpoints == 0 { String::new() } else { format!(".{checkpoints}") };
        ObjectKey::parse(&format!("{folder}{session}{number}")).ok()
    }

    pub(super) fn is_spill_small(&self, part_size: u64) -> bool {
        self.spill().gauge().limit().is_some_and(|limit| limit / PARTS_FEW < part_size)
    }

    /// Deletes a passing object; one that stays behind is logged.
    async fn delete_hidden(&self, key: &ObjectKey) -> bool {
        let deleted = self.upload().client().delete_object(key).await;
        if let Err(error) = &deleted {
            log::warn!("{error}; the object stays behind");
        }
        deleted.is_ok()
    }

    /// Takes away the folder of a session of which nothing is wanted, and before that, in the background, what it
    /// has in the bucket at a key of the program's own.
    ///
    /// # Errors
    /// The local disk.
    pub fn discard_found(&self, dir: SessionDir, record: SessionRecord) -> Result<(), WriteError> {
        if !record.has_hidden() {
            return Ok(dir.discard()?);
        }
        let left = Leftover { engine: self.clone(), dir: Arc::new(dir), record };
        self.runtime().spawn(left.clear());
        Ok(())
    }
}

impl Leftover {
    /// Takes it away. What the service refuses is left, with the folder, to the next mount.
    pub(super) async fn clear(self) {
        let mut clear = true;
        if let Some(held) = &self.record.upload {
            let aborted = self.engine.upload().client().abort_upload(&held.key, &held.id).await;
            if let Err(error) = aborted.or_else(|e| if e.kind == ErrorKind::NoSuchUpload { Ok(()) } else { Err(e) }) {
                log::warn!("{error}; the upload stays behind");
                clear = false;
            }
            clear &= self.engine.delete_hidden(&held.key).await;
        }
        if let Some(base) = self.record.base.as_ref().filter(|_| self.record.is_base_hidden()) {
            clear &= self.engine.delete_hidden(&base.key).await;
        }
        clear &= self.engine.delete_zeros(&self.record.zero_keys()).await;
        if clear && let Err(error) = self.dir.discard() {
            log::error!("{error}");
        }
        crash::point("leftover-cleared");
    }
}

impl DirtyFile {
    /// Ends the folder of a session that has ended. Where it has something in the bucket at a key of the program's
    /// own, that must go first: the session file says meanwhile that nothing else is wanted of it.
    pub(super) fn end_folder(&self, dir: Arc<SessionDir>) -> Result<Option<Leftover>, WriteError> {
        let record = self.state.lock().record.clone();
        if !record.has_hidden() {
            dir.discard()?;
            return Ok(None);
        }
        let record = SessionRecord { key: None, phase: Phase::Over, ..record };
        dir.write_record(&record, false)?;
        crash::point("leftover-noted");
        Ok(Some(Leftover { engine: self.engine.clone(), dir, record }))
    }

    /// Makes bytes that have left the disk available again: completes the upload at its hidden key.
    ///
    /// # Errors
    /// `Lost` where the service has removed the upload.
    pub(super) async fn checkpoint(self: &Arc<Self>) -> Result<(), WriteError> {
        // What an earlier process has sent must be known: nothing is sent until then.
        interruptible(self.wait_until(|state| (!state.resuming).then_some(()))).await?;
        let _entered = self.enter_publication().await;
        {
            let state = self.state.lock();
            if state.retired.is_some() || state.ended {
                return Err(WriteError::Retired);
            }
            if state.away.is_empty() {
                return Ok(());
            }
        }
        self.send_jobs().await?;
        let _gate = self.close_gate().await;
        self.complete_hidden().await
    }

    /// Completes the upload at its hidden key, with every byte of the file, and goes on from that object. The
    /// caller holds the gate.
    pub(super) async fn complete_hidden(self: &Arc<Self>) -> Result<(), WriteError> {
        self.send_jobs().await?;
        let (transfer, mut parts) = self.outcomes().ok_or(WriteError::Retired)?;
        self.note_held()?;
        crash::point("hidden-noted");
        let told = transfer.learn_sums(&mut parts).await;
        if told.is_ok() {
            self.check_fetched(&parts)?;
        }
        let done = match told {
            Ok(()) => transfer.complete(&parts, whole_crc(&parts)).await,
            Err(error) => Err(error),
        };
        let done = match done {
            Err(error) if error.kind == ErrorKind::NoSuchUpload => return Err(self.lost_upload(&transfer, error)),
            other => other?,
        };
        crash::point("hidden-completed");
        self.go_on_from(transfer.key().clone(), &done).await
    }

    /// Says in the session file which object is about to be made: after a crash it is found again.
    fn note_held(&self) -> Result<(), WriteError> {
        let _structure = self.structure.lock();
        {
            let mut state = self.state.lock();
            state.record.upload = state.held_upload();
        }
        self.rewrite_record()
    }

    /// The object at the hidden key, if the upload was completed and the reply lost. Nobody else writes there, so
    /// one of the right size is the one.
    async fn completed_before(&self, key: &ObjectKey, size: u64) -> Result<Option<Finished>, WriteError> {
        match self.engine.upload().client().head_object(key).await {
            Ok(meta) if meta.size == size => {
                Ok(Some(Finished { etag: meta.etag, size, crc64: meta.crc64, modified: Some(meta.last_modified) }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the object at a hidden key, which equals the file, the base of the session.
    async fn go_on_from(&self, key: ObjectKey, done: &Finished) -> Result<(), WriteError> {
        let previous = {
            let _fetching = self.fetching.lock().await;
            let _structure = self.structure.lock();
            let dir = self.ensure_dir()?;
            let base = Base { key, etag: done.etag.clone(), size: done.size, crc64: done.crc64 };
            let (mut record, indices, previous) = {
                let state = self.state.lock();
                let previous = state.record.base.clone().filter(|_| state.record.is_base_hidden());
                (state.record_from(base, self.engine.0.part_size), state.indices(), previous)
            };
            // In this order: a crash in between finds spill files that are void, never a base without bytes.
            dir.write_record(&record, true)?;
            crash::point("hidden-base-noted");
            for index in indices {
                dir.remove_piece(index)?;
                crash::point("hidden-pieces-removed");
            }
            record.cut = None;
            dir.write_record(&record, false)?;
            self.state.lock().begin_from(record);
            previous
        };
        crash::point("hidden-done");
        if let Err(error) = self.engine.upload().journal().forget(self.id()) {
            log::warn!("{error}");
        }
        if let Some(previous) = previous {
            self.engine.delete_hidden(&previous.key).await;
        }
        self.engine.spill().gauge().nudge();
        Ok(())
    }

    /// Takes up, after a restart, the upload that holds what is no more on the disk.
    ///
    /// # Errors
    /// `Lost`, or the service did not answer.
    pub async fn resume_held(self: &Arc<Self>, restored: &super::Restored) -> Result<usize, WriteError> {
        let (Some(held), Some(transfer)) = (&restored.record.upload, self.state.lock().transfer.clone()) else {
            return Ok(0);
        };
        match transfer.parts_on_service().await {
            Err(error) if error.kind == ErrorKind::NoSuchUpload => {
                let Some(done) = self.completed_before(&held.key, restored.size()).await? else {
                    return match self.lost_upload(&transfer, error) {
                        WriteError::Lost => Err(WriteError::Lost),
                        _ => Ok(0),
                    };
                };
                let _one = self.publishing.lock().await;
                let _gate = self.close_gate().await;
                if !self.is_changed() {
                    self.go_on_from(held.key.clone(), &done).await?;
                }
                Ok(0)
            }
            Err(error) => Err(error.into()),
            Ok(told) => self.take_over(restored, None, &[], told),
        }
    }
}

pub(super) fn corrupt(key: &ObjectKey) -> WriteError {
    let message = "the copy's CRC64 is not that of its source";
    oss::Error::local(Operation::CopyObject, key.as_str(), ErrorKind::Corrupt, Outcome::Unknown, message).into()
}

impl State {
    fn indices(&self) -> Vec<u64> {
        self.pieces.keys().copied().collect()
    }

    /// Whether the parts go to a hidden key.
    pub(super) fn is_upload_hidden(&self) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| self.record.owns(transfer.key()))
    }

    /// The object that other clients see was replaced by this session itself.
    pub(super) fn move_origin(&mut self, key: ObjectKey, etag: ETag) {
        let visible = match self.record.is_base_hidden() {
            true => self.record.origin.as_mut(),
            false => self.record.base.as_mut(),
        };
        if let Some(base) = visible {
            (base.key, base.etag, base.crc64) = (key, etag, None);
            self.base_seen = Some(std::time::Instant::now());
        }
    }

    /// The session file of this file, once `base` equals it.
    fn record_from(&self, base: Base, part_size: u64) -> SessionRecord {
        let mut record = self.record.clone();
        let size = base.size;
        record.origin = record.visible_base().filter(|_| self.uses_base()).cloned();
        record.piece_size = Plan::new(part_size, size).piece_size();
        (record.base, record.base_valid, record.extent) = (Some(base), size, size);
        (record.upload, record.cut) = (None, Some(0));
        record.checkpoints += 1;
        record.pieces = Vec::new();
        record
    }

    /// Begins anew as an edit of the base in `record`, of which nothing is changed yet.
    fn begin_from(&mut self, record: SessionRecord) {
        let size = record.base.as_ref().map_or(0, |base| base.size);
        self.plan = Plan::with_piece_size(record.piece_size, size);
        self.record = record;
        self.size = size;
        for index in self.indices() {
            self.forget_open(index);
            self.remove_piece(index);
        }
        self.parts.clear();
        self.others.clear();
        self.copying.clear();
        self.fetched.clear();
        self.away.clear();
        (self.transfer, self.hidden, self.cursor) = (None, false, None);
    }

    /// Whether a truncation to `size` cuts through a part that has left the disk.
    pub(super) fn is_cut_away(&self, size: u64) -> bool {
        let part = self.plan.part_at(size).filter(|part| self.away.contains(part));
        size < self.size && part.and_then(|part| self.plan.part_range(part)).is_some_and(|range| range.start < size)
    }

    /// The upload with the parts that only it has, for the session file.
    pub(super) fn held_upload(&self) -> Option<HeldUpload> {
        let transfer = self.transfer.as_ref()?;
        let part = |number| {
            let (_, outcome) = self.parts.get(&number)?.sent.as_ref()?;
            Some(HeldPart { number, size: outcome.size, crc64: outcome.crc64, etag: outcome.etag.clone() })
        };
        let parts = self.away.iter().filter_map(|number| part(*number)).collect();
        Some(HeldUpload { id: transfer.id()?.clone(), key: transfer.key().clone(), parts })
    }

    /// Takes up what the session file says of parts that are not on the disk.
    pub(super) fn hold(&mut self, engine: &WriteEngine, held: &HeldUpload) {
        let headers = self.multipart_headers();
        let id = self.record.id;
        let transfer = Transfer::new(engine.upload().clone(), id, held.key.clone(), headers, self.record.piece_size);
        (self.transfer, self.hidden) = (Some(Arc::new(transfer.begun(held.id.clone()))), true);
        for part in &held.parts {
            let outcome = PartOutcome { etag: part.etag.clone(), size: part.size, crc64: part.crc64 };
            self.parts.insert(part.number, Part { generation: 0, sending: None, sent: Some((0, outcome)) });
            self.away.insert(part.number);
        }
    }

    /// Gives back the room on the disk: the folder is gone.
    pub(super) fn give_back(&mut self) {
        let bytes = self.lease.bytes();
        self.lease.shrink(bytes);
    }

    /// Whether the session file lists what the spill files must look like.
    pub(super) fn is_noted(&self) -> bool {
        self.record.size.is_some() && !matches!(self.record.phase, Phase::Open | Phase::Synced)
    }
}
