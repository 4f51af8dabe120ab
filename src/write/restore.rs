//! A session that an earlier process left behind, made a dirty file again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::change::{apply_cut, void_pieces};
use super::file::DirtyFile;
use super::jobs::Source;
use super::state::{Piece, State};
use super::{WriteEngine, WriteError};
use crate::base::crc64::combine;
use crate::base::time::micros;
use crate::base::{ByteRange, ObjectKey, PartNumber};
use crate::journal::{KnownUpload, PartRecord, UploadRecord};
use crate::oss::{ErrorKind, ObjectMeta, PartInfo, PutHeaders};
use crate::spill::{Phase, SessionDir, SessionRecord, SpillBody};
use crate::upload::{Finished, PartOutcome, Plan, Transfer};

/// A session read from disk.
#[derive(Debug)]
pub struct Restored {
    pub dir: Arc<SessionDir>,
    pub record: SessionRecord,
    /// Index, length and modification time of the spill files, ascending.
    pub pieces: Vec<(u64, u64, SystemTime)>,
}

impl Restored {
    /// Reads the spill files of a session whose session file was read; finishes a truncation that was under way.
    pub fn load(dir: SessionDir, mut record: SessionRecord) -> Result<Self, WriteError> {
        let dir = Arc::new(dir);
        if let Some(size) = record.cut {
            let pieces = dir.pieces()?;
            let void = void_pieces(record.piece_size, size, pieces.iter().map(|(index, len, _)| (*index, *len)));
            apply_cut(&dir, &void)?;
            record.cut = None;
            dir.write_record(&record, false)?;
        }
        let mut pieces = dir.pieces()?;
        // Parts that were about to leave: the upload has them, and they are not looked at again.
        for (index, ..) in pieces.extract_if(.., |(index, ..)| is_away(&record, *index)) {
            dir.remove_piece(index)?;
        }
        Ok(Self { dir, record, pieces })
    }

    /// The size of the file: what the session file says of a closed one, else what the pieces show.
    pub fn size(&self) -> u64 {
        // An empty one was made for a write that never came.
        let filled = self.pieces.iter().filter(|(_, len, _)| *len > 0);
        let ends = filled.map(|(index, len, _)| index * self.record.piece_size + len);
        let shown = ends.max().unwrap_or(0).max(self.record.base_valid).max(self.record.extent);
        self.record.size.unwrap_or(shown)
    }

    /// What is wrong with the spill files, against what the session file says of them. Reads those whose sum is
    /// known.
    pub fn damage(&self) -> Result<Option<String>, WriteError> {
        for note in &self.record.pieces {
            let found = self.pieces.iter().find(|(index, ..)| *index == note.index);
            let Some((_, len, _)) = found else { return Ok(Some(format!("spill file {} is missing", note.index))) };
            if *len != note.len {
                return Ok(Some(format!("spill file {} has {len} bytes instead of {}", note.index, note.len)));
            }
            let range = ByteRange::at(note.index * self.record.piece_size, note.len);
            if note.crc64.is_some() && note.crc64 != Some(self.sum(range)?) {
                return Ok(Some(format!("spill file {} is damaged: its CRC64 does not match", note.index)));
            }
        }
        Ok(None)
    }

    /// Whether no byte of the file would have to come from the object it edits, as other clients see it.
    pub fn is_whole(&self) -> bool {
        let pieces = self.record.base_valid.div_ceil(self.record.piece_size);
        let is_local = |index: u64| self.pieces.iter().any(|(local, ..)| *local == index);
        self.record.is_base_hidden() || (0..pieces).all(|index| is_local(index) || is_away(&self.record, index))
    }

    /// The CRC64 of the whole file, where it is known: of its spill files and of what only the service has, or what
    /// was noted when it was about to be completed.
    pub fn final_sum(&self) -> Result<Option<u64>, WriteError> {
        match self.whole_sum()? {
            Some(sum) => Ok(Some(sum)),
            None => Ok(self.record.completing.filter(|_| self.record.phase == Phase::Completing)),
        }
    }

    fn whole_sum(&self) -> Result<Option<u64>, WriteError> {
        let record = &self.record;
        if let Some(base) = record.base.as_ref().filter(|base| record.owns(&base.key)) {
            let untouched = self.pieces.is_empty() && base.size == self.size() && record.base_valid == base.size;
            return Ok(base.crc64.filter(|_| untouched));
        }
        if !self.is_whole() {
            return Ok(None);
        }
        if record.upload.is_none() {
            return self.sum(ByteRange::new(0, self.size())).map(Some);
        }
        let mut whole = 0;
        for (number, range) in plan_of(record).parts(self.size()) {
            let held = record.held(number);
            let part = match held {
                Some(held) => held.crc64,
                None => Some(self.sum(range)?),
            };
            let Some(part) = part else { return Ok(None) };
            whole = combine(whole, part, range.len());
        }
        Ok(Some(whole))
    }

    /// When any spill file of a range was last written, in microseconds since the epoch.
    fn last_written(&self, range: ByteRange) -> Option<u64> {
        let size = self.record.piece_size;
        let inside =
            self.pieces.iter().filter(|(index, ..)| !ByteRange::at(index * size, size).intersect(&range).is_empty());
        inside.map(|(_, _, at)| micros(*at)).max()
    }

    /// The CRC64 of a range of the file, from its spill files.
    fn sum(&self, range: ByteRange) -> Result<u64, WriteError> {
        let body = SpillBody::new(Some(self.dir.clone()), self.record.piece_size, range);
        body.crc64().map_err(|error| WriteError::Spill {
            message: format!("{}: {error}", self.dir.path().display()),
            errno: error.raw_os_error(),
        })
    }
}

impl DirtyFile {
    /// Takes a session up again: its spill files stand, and nothing is known yet of what was sent of it.
    pub fn restore(engine: &WriteEngine, restored: &Restored) -> Arc<Self> {
        let plan = plan_of(&restored.record);
        let written = restored.pieces.iter().map(|(.., at)| *at).max().unwrap_or(SystemTime::UNIX_EPOCH);
        let mut state = State::new(restored.record.clone(), plan, written);
        state.size = restored.size();
        state.dir = Some(restored.dir.clone());
        for (index, len, _) in &restored.pieces {
            state.add_piece(*index, Piece { len: *len, unsynced: true, ..Piece::default() });
        }
        if let Some(held) = &restored.record.upload {
            state.hold(engine, held);
        }
        let file = Arc::new(Self::with_state(engine, state));
        engine.register(&file);
        file
    }

    /// Has publication wait until it is known what an earlier process has sent.
    pub fn hold_publication(&self) {
        self.state.lock().resuming = true;
    }

    /// The other way round.
    pub fn allow_publication(&self) {
        self.state.lock().resuming = false;
        self.changed.notify_waiters();
    }

    /// Takes up the upload that the journal knows: the parts that the service has, and whose bytes are those of
    /// the spill files, are not sent again. Returns how many. An upload that is of no use is given up.
    ///
    /// # Errors
    /// The service did not answer; nothing is taken up then, and everything would be sent again.
    pub async fn resume_upload(&self, restored: &Restored, known: &KnownUpload) -> Result<usize, WriteError> {
        let (upload, records) = known;
        let _one = self.publishing.lock().await;
        let engine = self.engine.upload().clone();
        let must_be_new = self.state.lock().must_be_new(&upload.key);
        let transfer = Transfer::resume(engine, self.id(), upload, must_be_new);
        let Some(transfer) = transfer.map(Arc::new) else { return Ok(0) };
        if !self.is_usable(upload) {
            self.give_up(Some(transfer));
            return Ok(0);
        }
        let told = match transfer.parts_on_service().await {
            Err(error) if error.kind == ErrorKind::NoSuchUpload => return Ok(0),
            other => other?,
        };
        self.take_over(restored, Some(transfer), records, told)
    }

    /// Takes the service's word for parts whose bytes are those of the spill files. Returns how many. `transfer` is
    /// the upload that has them, unless the file holds it already; `records` is what the journal knows of them.
    pub(super) fn take_over(
        &self,
        restored: &Restored,
        transfer: Option<Arc<Transfer>>,
        records: &[(PartNumber, PartRecord)],
        told: Vec<PartInfo>,
    ) -> Result<usize, WriteError> {
        // Read before the bytes are: what is written meanwhile makes a part newer than what is found here.
        let generations: BTreeMap<PartNumber, u64> =
            self.state.lock().parts.iter().map(|(number, part)| (*number, part.generation)).collect();
        let mut good = Vec::new();
        for info in told {
            // Reads the spill files of the part: other tasks of this thread go on elsewhere.
            if let Some(outcome) = tokio::task::block_in_place(|| self.usable(restored, records, &info))? {
                good.push((info.number, outcome));
            }
        }
        let found = good.len();
        let mut state = self.state.lock();
        if let Some(transfer) = transfer {
            if state.transfer.is_some() {
                drop(state);
                self.give_up(Some(transfer));
                return Ok(0);
            }
            state.hidden = state.record.owns(transfer.key());
            state.transfer = Some(transfer);
        }
        for (number, outcome) in good {
            let generation = generations.get(&number).copied().unwrap_or_default();
            state.parts.entry(number).or_default().sent = Some((generation, outcome));
        }
        Ok(found)
    }

    /// Whether an upload was begun under this file's name, and is cut as the file is.
    fn is_usable(&self, upload: &UploadRecord) -> bool {
        let state = self.state.lock();
        let ours = state.record.key.as_ref() == Some(&upload.key) || state.record.owns(&upload.key);
        ours && upload.part_size == state.record.piece_size
    }

    /// What the service has of a part, if that is what the spill files hold.
    fn usable(
        &self,
        restored: &Restored,
        records: &[(PartNumber, PartRecord)],
        info: &PartInfo,
    ) -> Result<Option<PartOutcome>, WriteError> {
        let Some(range) = self.local_part(info.number) else { return Ok(None) };
        let noted = records.iter().find(|(number, _)| *number == info.number);
        let unread = noted.is_some_and(|(_, record)| {
            let same = record.len == info.size && record.crc64.is_some() && record.crc64 == info.crc64;
            same && record.stable_since.is_some() && record.stable_since == restored.last_written(range)
        });
        let same = range.len() == info.size && (unread || info.crc64 == Some(restored.sum(range)?));
        Ok(same.then(|| PartOutcome { etag: info.etag.clone(), size: info.size, crc64: info.crc64 }))
    }

    /// Whether anybody has changed its bytes since it was taken up: then it is theirs to publish.
    pub fn is_changed(&self) -> bool {
        self.state.lock().changed
    }

    /// Whether its parts go to the upload of `transfer`.
    pub fn sends_to(&self, transfer: &Transfer) -> bool {
        let own = self.state.lock().transfer.clone();
        own.is_some_and(|own| own.id().is_some() && own.id() == transfer.id())
    }

    /// Ends a session whose bytes were found in the bucket, and gives the object the attributes that the file has.
    pub async fn conclude_found(&self, found: &ObjectMeta) -> Result<(), WriteError> {
        let _one = self.publishing.lock().await;
        let _gate = self.close_gate().await;
        let (key, wanted) = {
            let state = self.state.lock();
            if state.changed || state.ended || state.retired.is_some() {
                return Ok(());
            }
            (state.record.key.clone().ok_or(WriteError::Retired)?, state.multipart_headers())
        };
        let (etag, modified) = (found.etag.clone(), Some(found.last_modified));
        let done = Finished { etag, size: found.size, crc64: found.crc64, modified };
        if has_headers(&found.headers, &wanted) {
            if let Some((_, Some(left))) = self.retire(&key, &done, &found.headers, None) {
                left.clear().await;
            }
            return Ok(());
        }
        self.conclude(key, done, found.headers.clone(), State::multipart_headers).await.map(drop)
    }

    /// Leaves the name to the object that stands there, and all bytes to the spill files: from here on it is a new
    /// file called `name`.
    ///
    /// # Errors
    /// As for a rename. All bytes must be local.
    pub async fn stand_alone(&self, name: ObjectKey) -> Result<(), WriteError> {
        let _one = self.publishing.lock().await;
        {
            let mut state = self.state.lock();
            if !state.record.is_base_hidden() {
                state.record.extent = state.size;
                (state.record.base, state.record.base_valid) = (None, 0);
            }
            (state.record.origin, state.record.replaces) = (None, None);
        }
        self.detach(Some(name), None)
    }

    /// The bytes of a part that is not copied from the base.
    fn local_part(&self, number: PartNumber) -> Option<ByteRange> {
        let state = self.state.lock();
        let jobs = state.jobs().ok()?;
        let is_local = |job: &&super::jobs::Job| {
            job.number == number && job.source == Source::Local && !state.away.contains(&number)
        };
        jobs.iter().find(is_local).map(|job| job.range)
    }
}

/// Whether an object has the headers that are wanted. Times that only the writing itself has set do not count.
fn has_headers(found: &PutHeaders, wanted: &PutHeaders) -> bool {
    let mut meta = found.user_meta.clone();
    for time in ["mtime", "atime", "ctime"] {
        if !wanted.user_meta.contains_key(time) {
            meta.remove(time);
        }
    }
    let is_met = |found: &Option<String>, wanted: &Option<String>| wanted.is_none() || found == wanted;
    meta == wanted.user_meta
        && is_met(&found.content_type, &wanted.content_type)
        && is_met(&found.cache_control, &wanted.cache_control)
        && is_met(&found.content_disposition, &wanted.content_disposition)
        && is_met(&found.content_encoding, &wanted.content_encoding)
        && is_met(&found.expires, &wanted.expires)
}

/// Whether a piece has left the disk with its part.
fn is_away(record: &SessionRecord, index: u64) -> bool {
    let plan = plan_of(record);
    plan.part_at(plan.piece_range(index).start).is_some_and(|part| record.held(part).is_some())
}

fn plan_of(record: &SessionRecord) -> Plan {
    Plan::with_piece_size(record.piece_size, record.base.as_ref().map_or(0, |base| base.size))
}
