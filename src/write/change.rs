//! Changes other than writes: truncation, attributes, names, durability, and the ends that are no publication.

use std::sync::Arc;
use std::time::SystemTime;

use super::file::{DirtyFile, Step};
use super::{Published, WriteError};
use crate::base::caller::{Caller, wait};
use crate::base::time::now;
use crate::base::{ByteRange, ETag, ObjectKey, SessionId, crash};
use crate::spill::{HeaderRecord, Phase, SessionDir, SessionRecord, SpillError, Times};

/// An object that this program itself has copied elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rekeyed {
    /// The version that was copied.
    pub before: ETag,
    /// Where the copy is, and its version.
    pub key: ObjectKey,
    pub after: ETag,
}

impl DirtyFile {
    /// Sets the size. Spill files past it go; past the old end the file reads as zeros.
    ///
    /// # Errors
    /// As for a write.
    pub fn truncate(&self, size: u64) -> Result<Step, WriteError> {
        self.reopen()?;
        let structure = self.structure.lock();
        let void = {
            let mut state = self.state.lock();
            if let Some(step) = state.may_change()? {
                return Ok(step);
            }
            // A write past the new end would be acknowledged, and lost.
            if state.in_flight > 0 && size < state.size {
                return Ok(Step::Busy);
            }
            // Closed again between the two looks: the caller comes back.
            if state.is_closed() {
                return Ok(Step::Gated);
            }
            state.changed = true;
            if size > state.plan.size_max() {
                return Err(WriteError::TooLarge);
            }
            if state.is_cut_away(size) {
                return Ok(Step::Checkpoint);
            }
            let at = now();
            (state.last_write, state.last_change) = (at, at);
            state.record.times.mtime = None;
            if size > state.size {
                (state.record.extent, state.size) = (size, size);
                Vec::new()
            } else {
                state.shrink(size)
            }
        };
        self.ensure_dir()?;
        if void.is_empty() {
            self.rewrite_record()?
        } else {
            self.cut_pieces(size, &void)?
        }
        drop(structure);
        Ok(Step::Done)
    }

    /// Sets the size like [`Self::truncate`], waiting for whatever must be waited for.
    pub async fn truncate_waiting(self: &Arc<Self>, size: u64) -> Result<(), WriteError> {
        loop {
            let step = self.truncate(size)?;
            if self.pass(step).await? {
                return Ok(());
            }
        }
    }

    /// Removes or shortens the spill files past `size`. The session file says so before the first is touched,
    /// and stops saying so after the last: a kill in between leaves the one size or the other.
    fn cut_pieces(&self, size: u64, void: &[(u64, u64)]) -> Result<(), WriteError> {
        let Some(dir) = self.state.lock().dir.clone() else { return Ok(()) };
        self.state.lock().record.cut = Some(size);
        let noted = self.rewrite_record_first();
        crash::point("cut-noted");
        // Also where it could not be noted: in memory the bytes are gone, and must not come back as a hole is made.
        apply_cut(&dir, void)?;
        crash::point("cut-applied");
        noted?;
        self.state.lock().record.cut = None;
        self.rewrite_record()
    }

    /// Writes the session file again, where there is one already. The caller holds `structure`.
    pub(super) fn rewrite_record(&self) -> Result<(), WriteError> {
        self.rewrite(|dir, record| dir.write_record(record, false))
    }

    /// The same, for what must be on disk before spill files are touched.
    fn rewrite_record_first(&self) -> Result<(), WriteError> {
        self.rewrite(SessionDir::write_record_first)
    }

    /// The same: where the bytes were promised to survive power loss, so is what it says of name and attributes.
    fn rewrite_promise(&self) -> Result<(), WriteError> {
        self.rewrite(|dir, record| dir.write_record(record, record.phase.is_promised()))
    }

    fn rewrite(
        &self,
        write: impl FnOnce(&SessionDir, &SessionRecord) -> Result<(), SpillError>,
    ) -> Result<(), WriteError> {
        let (dir, record) = {
            let state = self.state.lock();
            (state.dir.clone(), state.record.clone())
        };
        match dir {
            Some(dir) => Ok(write(&dir, &record)?),
            None => Ok(()),
        }
    }

    /// A file that was closed, and not published yet, is changed again: what its session file says of its size
    /// and pieces holds no more, the promise does.
    pub(super) fn reopen(&self) -> Result<(), WriteError> {
        let is_closed = |file: &Self| {
            let state = file.state.lock();
            state.is_closed() && !state.gated && !state.ended && state.retired.is_none()
        };
        if !is_closed(self) {
            return Ok(());
        }
        let _structure = self.structure.lock();
        if !is_closed(self) {
            return Ok(());
        }
        {
            let mut state = self.state.lock();
            state.record.phase = Phase::Synced;
            state.closed_locally = false;
            (state.record.size, state.record.pieces) = (None, Vec::new());
        }
        self.rewrite_record_first()
    }

    /// A time that was set holds until the bytes change, also for whoever reads the session file.
    pub(super) fn forget_set_time(&self) -> Result<(), WriteError> {
        let is_set = |file: &Self| {
            let state = file.state.lock();
            state.record.times.mtime.is_some() && !state.gated && !state.ended && state.retired.is_none()
        };
        if !is_set(self) {
            return Ok(());
        }
        let _structure = self.structure.lock();
        if !is_set(self) {
            return Ok(());
        }
        {
            let mut state = self.state.lock();
            state.record.times.mtime = None;
            state.last_write = now();
        }
        self.rewrite_record()
    }

    /// Replaces the attributes that will be published with the file.
    ///
    /// # Errors
    /// `Retired` where it was published meanwhile: then the object's must be replaced.
    pub fn set_attributes(&self, headers: HeaderRecord, times: Times) -> Result<(), WriteError> {
        let _structure = self.structure.lock();
        {
            let mut state = self.state.lock();
            if state.retired.is_some() {
                return Err(WriteError::Retired);
            }
            state.record.headers = headers;
            state.record.times = times;
            state.last_change = now();
        }
        self.rewrite_promise()
    }

    /// The attributes that will be published with the file.
    pub fn attributes(&self) -> (HeaderRecord, Times) {
        let state = self.state.lock();
        (state.record.headers.clone(), state.record.times)
    }

    /// When its bytes or attributes last changed.
    pub fn ctime(&self) -> SystemTime {
        self.state.lock().last_change
    }

    /// Notes that a writer appends: what it wrote is published even if that writer is killed.
    pub fn mark_append(&self) {
        if self.state.lock().record.append {
            return;
        }
        let _structure = self.structure.lock();
        self.state.lock().record.append = true;
        if let Err(error) = self.rewrite_record() {
            log::error!("{}: {error}", self.name());
        }
    }

    /// Notes that a writer was killed. Whether the release that follows must keep the session unpublished.
    pub fn mark_killed(&self) -> bool {
        let mut state = self.state.lock();
        state.killed = !state.record.append && !state.record.phase.is_promised();
        state.killed
    }

    /// The close of a writer was interrupted while `publication` was under way for it. Unless the bytes are published
    /// whatever becomes of that writer, it ends, and the session file calls the file closed no more: the release that
    /// follows keeps the session, whichever process it comes to.
    pub(super) fn take_close_back(&self, publication: &Caller) {
        {
            let mut state = self.state.lock();
            let promised = state.record.was_promised || state.record.phase == Phase::Synced;
            state.killed = !state.record.append && !promised && state.retired.is_none();
            if !state.killed {
                return;
            }
        }
        // First: what is under way does not say closed again after this.
        publication.interrupt();
        let _structure = self.structure.lock();
        {
            let mut state = self.state.lock();
            if !state.is_closed() || state.retired.is_some() || state.ended {
                return;
            }
            state.record.phase = Phase::Open;
            (state.record.size, state.record.pieces) = (None, Vec::new());
        }
        if let Err(error) = self.rewrite_record() {
            log::error!("{}: {error}", self.name());
        }
    }

    pub fn is_killed(&self) -> bool {
        self.state.lock().killed
    }

    /// Makes what was written so far survive power loss, and promises that it will be published. Blocks on the
    /// local disk.
    pub fn fsync(&self) -> Result<(), WriteError> {
        let _structure = self.structure.lock();
        self.ensure_dir()?;
        self.sync_open()?;
        // Whoever of its writers was killed before, this is a promise.
        self.state.lock().killed = false;
        Ok(())
    }

    /// The spill files first, then the session file, which says that they are to be published. The caller holds
    /// `structure`.
    pub(super) fn sync_open(&self) -> Result<(), WriteError> {
        let (dir, pieces, record) = {
            let mut state = self.state.lock();
            let Some(dir) = state.dir.clone() else { return Ok(()) };
            if state.record.phase == Phase::Open {
                state.record.phase = Phase::Synced;
            }
            (dir, state.take_unsynced(), state.record.clone())
        };
        let result = dir.sync_pieces(&pieces).and_then(|()| dir.write_record(&record, true));
        crash::point("synced");
        if result.is_err() {
            self.state.lock().put_unsynced(&pieces);
        }
        Ok(result?)
    }

    /// Gives the file another name. An upload that was begun belongs to the old one and is given up; its parts go
    /// again from the spill files. `object` is what stood at the old name, where it was copied to the new one.
    ///
    /// # Errors
    /// `Retired` where it was published meanwhile: then the object must be renamed.
    pub async fn rename(&self, key: ObjectKey, object: Option<Rekeyed>) -> Result<(), WriteError> {
        let _one = wait(self.publishing.lock()).await?;
        self.detach(Some(key), object)
    }

    /// An object has been copied by our own doing: where the file edits or replaces it, it goes along.
    pub fn follow(&self, object: &Rekeyed) {
        let _structure = self.structure.lock();
        {
            let mut state = self.state.lock();
            let edits = state.record.visible_base().is_some_and(|base| base.etag == object.before);
            if !edits && state.record.replaces.as_ref() != Some(&object.before) {
                return;
            }
            state.record.follow(&object.before, &object.key, &object.after);
        }
        if let Err(error) = self.rewrite_promise() {
            log::error!("{}: {error}", self.name());
        }
    }

    /// Gives a file that stands in the bucket nowhere yet another name, where it is to replace `over` in the end, and
    /// the session `unsent` at once: should power loss find both, that one is over.
    ///
    /// # Errors
    /// As for [`Self::rename`].
    pub async fn rename_over(
        &self,
        key: ObjectKey,
        over: Option<ETag>,
        unsent: Option<SessionId>,
    ) -> Result<(), WriteError> {
        let _one = self.publishing.lock().await;
        {
            let mut state = self.state.lock();
            if state.retired.is_none() && !state.ended {
                (state.record.replaces, state.record.over) = (over, unsent);
            }
        }
        self.detach(Some(key), None)
    }

    /// Takes the file's name away: it lives on, locally, until it is discarded. `kept` is a copy of the object that
    /// it edits, where its bytes are still wanted.
    ///
    /// # Errors
    /// `Retired` where it was published meanwhile: then the object must be deleted.
    pub async fn unlink(&self, kept: Option<Rekeyed>) -> Result<(), WriteError> {
        let _one = wait(self.publishing.lock()).await?;
        self.detach(None, kept)
    }

    pub(super) fn detach(&self, key: Option<ObjectKey>, object: Option<Rekeyed>) -> Result<(), WriteError> {
        let _structure = self.structure.lock();
        let transfer;
        {
            let mut state = self.state.lock();
            if state.retired.is_some() || state.ended {
                return Err(WriteError::Retired);
            }
            // One at a key of the program's own goes along.
            transfer = if state.hidden { None } else { state.let_go() };
            // What stands at another name is looked at by whoever gives it.
            if state.record.key != key {
                state.record.if_taken = None;
            }
            state.record.key = key;
            if let Some(object) = object {
                state.record.follow(&object.before, &object.key, &object.after);
            }
        }
        self.give_up(transfer);
        self.changed.notify_waiters();
        self.rewrite_promise()
    }

    /// Ends the session without publishing it; its bytes are gone. `Some` where it had been published already.
    pub async fn discard(&self) -> Result<Option<Published>, WriteError> {
        let _one = wait(self.publishing.lock()).await?;
        {
            let _structure = self.structure.lock();
            let (dir, transfer) = {
                let mut state = self.state.lock();
                if state.retired.is_some() || state.ended {
                    return Ok(state.retired.clone());
                }
                state.ended = true;
                (state.dir.clone(), state.let_go())
            };
            self.give_up(transfer);
            if let Some(dir) = dir
                && let Some(left) = self.end_folder(dir)?
            {
                self.engine.runtime().spawn(left.clear());
            }
        }
        self.state.lock().give_back();
        self.end_here();
        // Where it was promised to survive power loss, so is its end.
        self.engine.spill().settle_ends().await?;
        Ok(None)
    }

    /// Ends the session without touching its folder, which is to be set aside. `false` where somebody has changed
    /// the file since it was taken up: then nothing is done, what was found wrong is so no more.
    pub async fn set_aside(&self, reason: &str) -> bool {
        let _one = self.publishing.lock().await;
        {
            let mut state = self.state.lock();
            if state.changed {
                return false;
            }
            state.ended = true;
        }
        log::error!("{}: not published: {reason}", self.name());
        self.end_here();
        true
    }

    /// Ends the session unpublished, its bytes kept for `recover`.
    pub async fn keep(&self, reason: &str) -> Result<(), WriteError> {
        let _one = self.publishing.lock().await;
        let _gate = self.close_gate().await;
        let _structure = self.structure.lock();
        self.ensure_dir()?;
        {
            let mut state = self.state.lock();
            if state.retired.is_some() || state.ended {
                return Ok(());
            }
            state.ended = true;
            state.record.phase = Phase::Kept(reason.to_owned());
            state.record.error = Some(reason.to_owned());
            (state.record.size, state.record.pieces) = (Some(state.size), state.notes());
            state.lease.leave_behind();
        }
        log::warn!("{}: not published, kept as session {}: {reason}", self.name(), self.id());
        self.rewrite_record()?;
        // What was sent of it stays noted: `recover` may go on with that.
        self.engine.leave(self.id());
        Ok(())
    }

    /// Ends a session that was taken up from the disk and could not be published, as it was `found`: under its own name,
    /// with the promise that it had. Whoever looks at the folder next finds it.
    pub async fn put_back(&self, found: &SessionRecord) -> Result<(), WriteError> {
        let _one = self.publishing.lock().await;
        let _gate = self.close_gate().await;
        let _structure = self.structure.lock();
        {
            let mut state = self.state.lock();
            if state.retired.is_some() || state.ended {
                return Ok(());
            }
            state.ended = true;
            if !(found.phase.is_promised() && state.is_closed()) {
                state.record.phase = found.phase.clone();
            }
            (state.record.size, state.record.pieces) = (Some(state.size), state.notes());
            state.record.return_to(found);
            state.lease.leave_behind();
        }
        self.engine.leave(self.id());
        self.rewrite_promise()
    }

    /// As [`Self::keep`], where nobody waits to be told: who observes is.
    pub(super) async fn keep_in_background(&self, reason: &str) {
        match self.keep(reason).await {
            Ok(()) => self.engine.tell(self.id(), None),
            Err(error) => log::error!("{}: {error}", self.name()),
        }
    }
}

impl super::state::State {
    /// Shortens the file in memory; returns the spill files that are void past the new end, as index and length
    /// left, the last one first.
    fn shrink(&mut self, size: u64) -> Vec<(u64, u64)> {
        let old = std::mem::replace(&mut self.size, size);
        self.record.base_valid = self.record.base_valid.min(size);
        self.record.extent = size;
        self.touch(ByteRange::new(size, old));
        self.others.retain(|_, other| other.range.end <= size);
        let cut =
            void_pieces(self.plan.piece_size(), size, self.pieces.iter().map(|(index, piece)| (*index, piece.len)));
        for (index, left) in &cut {
            self.forget_open(*index);
            match self.pieces.get_mut(index) {
                Some(piece) if *left > 0 => {
                    (piece.running, piece.unsynced) = (None, true);
                    self.set_len(*index, *left);
                }
                _ => self.remove_piece(*index),
            }
        }
        let plan = self.plan;
        let is_inside = |part| plan.part_range(part).is_some_and(|range: ByteRange| range.start < size);
        self.away.retain(|part| is_inside(*part));
        if let Some(upload) = &mut self.record.upload {
            upload.parts.retain(|part| is_inside(part.number));
        }
        cut
    }
}

/// Of spill files given as index and length, those that reach past `size`: index and the length to leave them,
/// the last one first. 0 means: take it away.
pub(super) fn void_pieces(piece_size: u64, size: u64, pieces: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut cut: Vec<(u64, u64)> = pieces
        .filter(|(index, len)| index * piece_size + len > size)
        .map(|(index, _)| (index, size.saturating_sub(index * piece_size)))
        .collect();
    cut.reverse();
    cut
}

/// Shortens or removes spill files as [`void_pieces`] tells; so that power loss does not bring them back, where the
/// session survives that: the session file is about to forget that they are void.
pub(super) fn apply_cut(dir: &Arc<SessionDir>, void: &[(u64, u64)]) -> Result<(), SpillError> {
    for (index, left) in void {
        if *left == 0 {
            dir.remove_piece(*index)?;
        } else {
            let path = dir.piece_path(*index);
            let cut = dir.open_piece(*index, false)?.set_len(*left);
            cut.map_err(|source| SpillError::Io { path, source })?;
        }
    }
    if !dir.is_durable() {
        return Ok(());
    }
    let shortened: Vec<u64> = void.iter().filter(|(_, left)| *left > 0).map(|(index, _)| *index).collect();
    dir.sync_pieces(&shortened)?;
    dir.sync_names()
}
