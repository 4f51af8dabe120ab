//! Publication: from the spill files to an object that equals the file.
//!
//! Full parts go while the writing goes on; the rest, and Complete, go here. Writes are let in until the last
//! round, then they wait: what is published is the file at one instant.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::WriteError;
use super::fence::Change;
use super::fetch::stale_if_changed;
use super::file::DirtyFile;
use super::hidden::{Leftover, corrupt};
use super::state::State;
use crate::base::caller::{Caller, Cut, Patience, inherit, interruptible, is_interrupted};
use crate::base::limits::GIB;
use crate::base::time::now;
use crate::base::{ByteRange, ETag, ObjectKey, PartNumber, crash};
use crate::oss::{CopyOptions, ErrorKind, Outcome, PutHeaders};
use crate::spill::{Phase, PieceNote, SpillBody};
use crate::upload::{Finished, PartOutcome, Standing, Transfer, replace_headers, whole_crc};

/// How fresh a look at the base must be to spare another before it is replaced.
const BASE_FRESH: Duration = Duration::from_secs(1);
/// Above this a copy that changes the storage class must be made in parts (OSS reference §7.8).
const COPY_BYTES_MAX: u64 = GIB;
/// Why an edit of an object that another client changed is kept.
pub const CONFLICT: &str = "another client changed the object";
/// The pause before a failed publication is tried again in the background, doubled up to the second.
pub(super) const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long a failing request is tried there: writers wait meanwhile, and there is always another time.
pub(super) const BACKGROUND_PATIENCE: Patience = Patience::Brief(Duration::from_secs(10));

/// The object that a session has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub key: ObjectKey,
    pub etag: ETag,
    pub size: u64,
    pub crc64: Option<u64>,
    /// As stored.
    pub headers: PutHeaders,
    /// Its last-modified, as near as the reply told.
    pub at: SystemTime,
}

/// A transfer and every part of its object, in order.
type Outcomes = (Arc<Transfer>, Vec<(PartNumber, PartOutcome)>);

/// Lets writes in again when the finishing ends, however it ends.
pub(super) struct Gate<'f>(&'f DirtyFile);

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.0.state.lock().gated = false;
        self.0.changed.notify_waiters();
    }
}

impl DirtyFile {
    /// Publishes the file at its name and retires the session; a session that is retired answers at once.
    ///
    /// # Errors
    /// The bytes are kept, and the session file says that they are to be published. `Stale`: another client
    /// changed the object that was edited.
    /// Whoever asked may go away, or be interrupted: it goes on to its end all the same, so that what the service did
    /// is known.
    pub async fn publish(self: &Arc<Self>) -> Result<Published, WriteError> {
        self.publish_or(|_| {}).await
    }

    /// The same for a writer that closes the file. When it is interrupted, and is not one whose bytes are published
    /// whatever becomes of it, the publication ends too, and the release that follows keeps the session.
    pub async fn publish_for_writer(self: &Arc<Self>) -> Result<Published, WriteError> {
        self.publish_or(|publication| self.take_close_back(publication)).await
    }

    /// `interrupted` is called when whoever waits is interrupted; with whom the publication is for.
    async fn publish_or(self: &Arc<Self>, interrupted: impl FnOnce(&Caller)) -> Result<Published, WriteError> {
        let (file, caller) = (self.clone(), inherit());
        let work = Box::pin(caller.clone().scope(async move { file.publish_to_the_end().await }));
        match interruptible(self.engine.runtime().spawn(work)).await {
            Ok(done) => done.unwrap_or_else(|error| {
                Err(WriteError::Spill { message: format!("the process is ending: {error}"), errno: None })
            }),
            Err(cut) => {
                interrupted(&caller);
                Err(cut.into())
            }
        }
    }

    async fn publish_to_the_end(self: &Arc<Self>) -> Result<Published, WriteError> {
        interruptible(self.wait_until(|state| (!state.resuming).then_some(()))).await?;
        let _entered = interruptible(self.enter_publication()).await?;
        {
            let state = self.state.lock();
            if let Some(published) = &state.retired {
                return Ok(published.clone());
            }
            if state.ended || state.record.key.is_none() {
                return Err(WriteError::Retired);
            }
        }
        let result = self.publish_once().await;
        match &result {
            Ok(published) => log::debug!("{}: published, {} bytes", published.key, published.size),
            Err(error) if error.is_interruption() => log::debug!("{}: {error}", self.name()),
            Err(error) => self.note_failure(error),
        }
        result
    }

    /// Waits for its turn, and until nobody moves the tree that the file is in.
    pub(super) async fn enter_publication(&self) -> (tokio::sync::MutexGuard<'_, ()>, Option<Change>) {
        loop {
            let one = self.publishing.lock().await;
            let Some(key) = self.key() else { return (one, None) };
            let fences = self.engine.fences();
            if let Some(change) = fences.try_change(&[key.as_str()]) {
                return (one, Some(change));
            }
            // The move gives the file its new name: it must find nobody at it.
            drop(one);
            drop(fences.change(&[key.as_str()]).await);
        }
    }

    pub(super) async fn publish_once(self: &Arc<Self>) -> Result<Published, WriteError> {
        match self.try_publish().await {
            // The upload was lost on the way and let go of: the bytes are all here, so they go again, once.
            Err(WriteError::Oss(error)) if error.kind == ErrorKind::NoSuchUpload => self.try_publish().await,
            other => other,
        }
    }

    async fn try_publish(self: &Arc<Self>) -> Result<Published, WriteError> {
        self.move_base_along().await?;
        let by_parts = {
            let mut state = self.state.lock();
            // What was not begun needs no detour.
            state.hidden &= state.transfer.is_some();
            !state.is_small() && !state.is_copy()
        };
        if by_parts {
            match self.send_jobs().await {
                Err(error) if self.has_met(&error) => {}
                other => other?,
            }
        }
        let _gate = self.close_gate().await;
        self.sync_promised().await?;
        {
            let _structure = self.structure.lock();
            self.note_closing()?;
        }
        self.settle_before().await?;
        let is_detour = {
            let state = self.state.lock();
            state.is_upload_hidden() && !state.is_small()
        };
        if is_detour {
            self.complete_hidden().await?;
        }
        match self.finish().await {
            Err(error) if self.has_met(&error) => self.meet().await,
            other => other,
        }
    }

    /// Sends what is missing, behind the gate.
    pub(super) async fn finish(self: &Arc<Self>) -> Result<Published, WriteError> {
        let (is_copy, is_small) = {
            let state = self.state.lock();
            (state.is_copy(), state.is_small())
        };
        match (is_copy, is_small) {
            (true, _) => self.finish_copy().await,
            (_, true) => self.finish_small().await,
            _ => self.finish_large().await,
        }
    }

    /// Holds writes back, and waits for those under way.
    pub(super) async fn close_gate(&self) -> Gate<'_> {
        self.state.lock().gated = true;
        let gate = Gate(self);
        self.wait_until(|state| (state.in_flight == 0).then_some(())).await;
        gate
    }

    /// Syncs what was written since bytes of the session were promised to survive power loss: the session file is about
    /// to say what the spill files look like, and power loss must not find it without them.
    ///
    /// # Errors
    /// What the disk answered.
    pub(super) async fn sync_promised(self: &Arc<Self>) -> Result<(), WriteError> {
        let (dir, pieces) = {
            let mut state = self.state.lock();
            let Some(dir) = state.dir.clone().filter(|dir| dir.is_durable()) else { return Ok(()) };
            (dir, state.take_unsynced())
        };
        if pieces.is_empty() {
            return Ok(());
        }
        let synced = dir.commit(&pieces).await;
        if synced.is_err() {
            self.state.lock().put_unsynced(&pieces);
        }
        Ok(synced?)
    }

    /// An older session of the object that is about to be replaced must not come back by power loss: it would be
    /// taken for another client's work, or this one for that.
    async fn settle_before(&self) -> Result<(), WriteError> {
        let replaces = {
            let state = self.state.lock();
            state.record.replaces.is_some() || state.record.base.is_some()
        };
        if replaces {
            self.engine.spill().settle_ends().await?;
        }
        Ok(())
    }

    /// Says in the session file that the file is closed, what it looks like, and so that it must be published.
    /// The caller holds `structure`.
    ///
    /// # Errors
    /// The close was interrupted: it must not be said again what has just been taken back.
    pub(super) fn note_closing(&self) -> Result<(), WriteError> {
        check_uninterrupted()?;
        {
            let mut state = self.state.lock();
            if state.closed_locally && state.record.phase == Phase::Closing {
                // All of that is on the disk already, and nothing was changed since.
                return Ok(());
            }
            state.record.was_promised |= state.record.phase == Phase::Synced;
            state.record.phase = Phase::Closing;
            (state.record.size, state.record.pieces) = (Some(state.size), state.notes());
        }
        self.sum_notes();
        self.rewrite_record()?;
        crash::point("closing-recorded");
        Ok(())
    }

    /// Sums the spill files whose sums are not known. The session file may reach the disk, by chance, before they do:
    /// a replay must be able to tell, or it would publish what power loss has made of them. Where they are on the
    /// disk already nothing is read.
    fn sum_notes(&self) {
        let (dir, piece_size, mut notes) = {
            let state = self.state.lock();
            let Some(dir) = state.dir.clone().filter(|dir| !dir.is_durable()) else { return };
            (dir, state.record.piece_size, state.record.pieces.clone())
        };
        let sum = |note: &mut PieceNote| {
            let range = ByteRange::at(note.index * piece_size, note.len);
            match SpillBody::new(Some(dir.clone()), piece_size, range).crc64() {
                Ok(sum) => note.crc64 = Some(sum),
                Err(error) => log::warn!("{}: {error}", dir.path().display()),
            }
        };
        tokio::task::block_in_place(|| notes.iter_mut().filter(|note| note.crc64.is_none()).for_each(sum));
        self.state.lock().record.pieces = notes;
    }

    /// One PUT of the whole file.
    async fn finish_small(self: &Arc<Self>) -> Result<Published, WriteError> {
        let fetch = {
            let state = self.state.lock();
            (!state.remote(0).is_empty() && state.size > 0).then_some(0)
        };
        if let Some(index) = fetch {
            self.fetch_piece(index).await?;
        }
        self.check_base().await?;
        let (key, body, headers, transfer, must_be_new) = {
            let mut state = self.state.lock();
            let key = state.record.key.clone().ok_or(WriteError::Retired)?;
            let body = SpillBody::new(state.dir.clone(), state.record.piece_size, ByteRange::new(0, state.size));
            (key, body, state.put_headers(), state.let_go(), state.record.if_taken.is_some())
        };
        self.give_up(transfer);
        if self.state.lock().uses_base() {
            let crc = body.crc64().map_err(|error| WriteError::Spill {
                message: format!("{key}: {error}"),
                errno: error.raw_os_error(),
            })?;
            self.note_completing(Some(crc))?;
        }
        let sent = PutHeaders { forbid_overwrite: must_be_new, ..headers.clone() };
        let done = self.engine.upload().put(&key, body, &sent).await?;
        self.conclude(key, done, headers, State::put_headers).await
    }

    /// One CopyObject of another object, whole, with this file's own attributes.
    async fn finish_copy(self: &Arc<Self>) -> Result<Published, WriteError> {
        let is_detour = self.state.lock().record.is_base_hidden();
        if is_detour {
            self.check_base().await?;
        }
        let (key, base, headers, transfer, forbid_overwrite) = {
            let mut state = self.state.lock();
            let base = state.record.base.clone().ok_or(WriteError::Retired)?;
            let key = state.record.key.clone().ok_or(WriteError::Retired)?;
            (key, base, state.put_headers(), state.let_go(), state.record.if_taken.is_some())
        };
        self.give_up(transfer);
        if base.size > COPY_BYTES_MAX && headers.storage_class.is_some() {
            return self.finish_large().await;
        }
        if is_detour {
            self.note_completing(base.crc64)?;
        }
        let options =
            CopyOptions { if_match: Some(base.etag.clone()), replace: Some(headers.clone()), forbid_overwrite };
        let upload = self.engine.upload();
        let done = match (upload.client().copy_object(&base.key, &key, &options).await, base.crc64) {
            (Ok(receipt), Some(crc)) if receipt.crc64.is_some_and(|told| told != crc) => return Err(corrupt(&key)),
            (Ok(receipt), crc) => {
                let crc64 = receipt.crc64.or(crc);
                Finished { etag: receipt.etag, size: base.size, crc64, modified: receipt.last_modified }
            }
            (Err(error), _) if error.kind == ErrorKind::TooLarge => {
                log::debug!("{error}; copying it part by part");
                return self.finish_large().await;
            }
            // Its reply was lost, and a repetition finds that a copy onto itself has changed the ETag.
            (Err(error), Some(crc64)) if error.outcome == Outcome::Unknown => {
                let settled = upload.settle(&key, base.size, crc64, &headers).await?;
                settled.ok_or_else(|| stale_if_changed(error))?
            }
            (Err(error), _) => return Err(stale_if_changed(error)),
        };
        self.conclude(key, done, headers, State::put_headers).await
    }

    /// The parts that are missing, Complete, and the headers where they changed since the upload began.
    async fn finish_large(self: &Arc<Self>) -> Result<Published, WriteError> {
        self.send_jobs().await?;
        self.check_base().await?;
        let (transfer, parts) = self.outcomes().ok_or(WriteError::Retired)?;
        let (transfer, finished) = match self.complete(&transfer, &parts).await {
            Err(WriteError::Oss(error)) if matches!(error.kind, ErrorKind::NoSuchUpload | ErrorKind::InvalidPart) => {
                // The upload is gone, or not what it was: the bytes are all here, so they go again, once.
                log::warn!("{error}; sending the file again");
                self.forget_upload(&transfer);
                self.send_jobs().await?;
                let (transfer, parts) = self.outcomes().ok_or(WriteError::Retired)?;
                let finished = self.complete(&transfer, &parts).await?;
                (transfer, finished)
            }
            other => (transfer, other?),
        };
        let headers = PutHeaders { forbid_overwrite: false, ..transfer.headers().clone() };
        self.conclude(transfer.key().clone(), finished, headers, State::multipart_headers).await
    }

    async fn complete(&self, transfer: &Transfer, parts: &[(PartNumber, PartOutcome)]) -> Result<Finished, WriteError> {
        let mut parts = parts.to_vec();
        transfer.learn_sums(&mut parts).await?;
        self.check_fetched(&parts)?;
        let crc = whole_crc(&parts);
        self.note_completing(crc)?;
        Ok(transfer.complete(&parts, crc).await?)
    }

    /// Says in the session file of an edit what object is about to replace the one that is edited.
    fn note_completing(&self, crc: Option<u64>) -> Result<(), WriteError> {
        let _structure = self.structure.lock();
        check_uninterrupted()?;
        {
            let mut state = self.state.lock();
            if !state.uses_base() {
                return Ok(());
            }
            (state.record.phase, state.record.completing) = (Phase::Completing, crc);
        }
        self.rewrite_record()?;
        crash::point("completing-recorded");
        Ok(())
    }

    /// Where an earlier try ended unknown and had succeeded after all, the object that is edited is our own.
    async fn move_base_along(&self) -> Result<(), WriteError> {
        let (key, asked) = {
            let state = self.state.lock();
            (state.record.key.clone().ok_or(WriteError::Retired)?, state.record.completing)
        };
        if asked.is_none() {
            return Ok(());
        }
        let found = match self.engine.upload().client().head_object(&key).await {
            Err(error) if error.kind == ErrorKind::NoSuchKey => return Ok(()),
            other => other?,
        };
        let mut state = self.state.lock();
        if found.crc64 == asked {
            state.move_origin(key, found.etag);
        }
        Ok(())
    }

    /// The transfer and every part of the object, once all are on the service.
    pub(super) fn outcomes(&self) -> Option<Outcomes> {
        let state = self.state.lock();
        let jobs = state.jobs().ok()?;
        let parts = jobs.iter().map(|job| {
            let outcome = state.outcome(job)?.clone();
            let crc64 = outcome.crc64.or_else(|| state.known_sum(job));
            Some((job.number, PartOutcome { crc64, ..outcome }))
        });
        Some((state.transfer.clone()?, parts.collect::<Option<Vec<_>>>()?))
    }

    /// Gives an upload up that was let go of.
    pub(super) fn give_up(&self, transfer: Option<Arc<Transfer>>) {
        let Some(transfer) = transfer else { return };
        self.changed.notify_waiters();
        self.giving_up.store(true, Ordering::SeqCst);
        self.engine.runtime().spawn(async move { transfer.give_up().await });
    }

    /// The session is over, and so is all that is known of what was sent of it.
    pub(super) fn end_here(&self) {
        self.engine.leave(self.id());
        if !self.giving_up.load(Ordering::SeqCst)
            && let Err(error) = self.engine.upload().journal().forget(self.id())
        {
            log::warn!("{error}");
        }
    }

    pub(super) fn forget_upload(&self, transfer: &Arc<Transfer>) {
        {
            let mut state = self.state.lock();
            if !state.owns(transfer) {
                return;
            }
            state.let_go();
        }
        self.changed.notify_waiters();
        if let Err(error) = self.engine.upload().journal().forget(self.id()) {
            log::warn!("{error}");
        }
    }

    /// Ends the session once the object has the attributes that are `wanted`: those that changed after it was
    /// begun are put right by a copy onto itself.
    pub(super) async fn conclude(
        &self,
        key: ObjectKey,
        mut done: Finished,
        mut headers: PutHeaders,
        wanted: fn(&State) -> PutHeaders,
    ) -> Result<Published, WriteError> {
        let mut ours = true;
        crash::point("published");
        loop {
            if let Some((published, left)) = self.retire(&key, &done, &headers, ours.then_some(wanted)) {
                if let Some(left) = left {
                    left.clear().await;
                }
                return Ok(published);
            }
            let now_wanted = wanted(&self.state.lock());
            let object = Standing { key: &key, etag: &done.etag, size: done.size, crc64: done.crc64 };
            match replace_headers(self.engine.upload().client(), object, &now_wanted).await {
                Ok(receipt) => {
                    done.modified = receipt.last_modified.or(done.modified);
                    (done.etag, headers) = (receipt.etag, now_wanted);
                }
                // Another client has replaced the object already: its attributes are not ours to set.
                Err(error) if error.kind == ErrorKind::PreconditionFailed => ours = false,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// An edit must not replace a version of the object that it does not know.
    pub(super) async fn check_base(&self) -> Result<(), WriteError> {
        let base = {
            let state = self.state.lock();
            let fresh = state.base_seen.is_some_and(|seen| seen.elapsed() < BASE_FRESH);
            state.record.visible_base().filter(|_| !fresh && state.uses_base()).cloned()
        };
        let Some(base) = base else { return Ok(()) };
        let meta = self.engine.upload().client().get_object_meta(&base.key).await.map_err(stale_if_changed)?;
        if meta.etag == base.etag {
            self.state.lock().base_seen = Some(Instant::now());
            Ok(())
        } else {
            Err(WriteError::Stale)
        }
    }

    /// Ends the session: its folder goes in one step, which is also what tells a later replay that it is done.
    /// `None` where the attributes have changed meanwhile and are to be put right first.
    pub(super) fn retire(
        &self,
        key: &ObjectKey,
        done: &Finished,
        headers: &PutHeaders,
        wanted: Option<fn(&State) -> PutHeaders>,
    ) -> Option<(Published, Option<Leftover>)> {
        let Finished { etag, size, crc64, modified } = done.clone();
        let at = modified.unwrap_or_else(now);
        let published = Published { key: key.clone(), etag, size, crc64, headers: headers.clone(), at };
        let left;
        {
            let _structure = self.structure.lock();
            let (dir, transfer) = {
                let mut state = self.state.lock();
                if wanted.is_some_and(|wanted| wanted(&state) != *headers) {
                    return None;
                }
                state.retired = Some(published.clone());
                (state.dir.clone(), state.let_go())
            };
            self.give_up(transfer);
            // The object stands: a folder that cannot be moved is settled by the next replay, not by an error.
            crash::point("retiring");
            left = dir.map_or(Ok(None), |dir| self.end_folder(dir)).unwrap_or_else(|error| {
                log::error!("{error}; the next mount will find the file published already");
                None
            });
            crash::point("done-noted");
            self.state.lock().give_back();
        }
        self.end_here();
        self.engine.tell(self.id(), Some(&published));
        crash::point("retired");
        Some((published, left))
    }

    fn note_failure(&self, error: &WriteError) {
        log::error!("{}: not published: {error}", self.name());
        let _structure = self.structure.lock();
        {
            let mut state = self.state.lock();
            state.record.error = Some(error.to_string());
            state.record.was_promised |= !error.is_conflict();
        }
        let noted =
            self.ensure_dir().and_then(|_| if error.is_conflict() { self.rewrite_record() } else { self.promise() });
        if let Err(error) = noted {
            log::error!("{error}");
        }
    }

    /// From now on a later process publishes it: also one that finds what power loss has left, so that the bytes are
    /// on the disk before the session file says so. The caller holds `structure`.
    pub(super) fn promise(&self) -> Result<(), WriteError> {
        if self.state.lock().record.phase != Phase::Open {
            return self.rewrite_record();
        }
        tokio::task::block_in_place(|| self.sync_open()).or_else(|error| {
            log::error!("{}: {error}; power loss would take what was written to it", self.name());
            self.rewrite_record()
        })
    }
}

/// Refuses to go on for a writer whose close was interrupted.
fn check_uninterrupted() -> Result<(), WriteError> {
    if is_interrupted() { Err(Cut::Interrupted.into()) } else { Ok(()) }
}

impl State {
    /// Whether one PUT does it: no larger than a piece, and no part is on the service yet.
    fn is_small(&self) -> bool {
        let begun = self.transfer.as_ref().is_some_and(|transfer| transfer.id().is_some());
        let sending = self.parts.values().any(|part| part.sending.is_some());
        self.size == 0 || (self.size <= self.plan.piece_size() && !begun && !sending)
    }

    pub(super) fn owns(&self, transfer: &Arc<Transfer>) -> bool {
        self.transfer.as_ref().is_some_and(|own| Arc::ptr_eq(own, transfer))
    }
}
