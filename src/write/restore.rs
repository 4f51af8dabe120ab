//! A session that an earlier process left behind, made a dirty file again.

use std::sync::Arc;
use std::time::SystemTime;

use super::change::{apply_cut, void_pieces};
use super::file::DirtyFile;
use super::state::{Part, Piece, State};
use super::{WriteEngine, WriteError};
use crate::base::crc64::Crc64;
use crate::base::{ByteRange, PartNumber};
use crate::journal::UploadRecord;
use crate::oss::{ErrorKind, PartInfo};
use crate::spill::{SessionDir, SessionRecord, SpillBody};
use crate::upload::{PartOutcome, Plan, Transfer, header_sum, record_of};

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
        let pieces = dir.pieces()?;
        Ok(Self { dir, record, pieces })
    }

    /// The size of the file: what the session file says of a closed one, else what the pieces show.
    pub fn size(&self) -> u64 {
        let ends = self.pieces.iter().map(|(index, len, _)| index * self.record.piece_size + len);
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

    /// Whether no byte of the file would have to come from the object it edits.
    pub fn is_whole(&self) -> bool {
        let pieces = self.record.base_valid.div_ceil(self.record.piece_size);
        (0..pieces).all(|index| self.pieces.iter().any(|(local, ..)| *local == index))
    }

    /// The CRC64 of the whole file, of one that is all local.
    pub fn whole_sum(&self) -> Result<u64, WriteError> {
        self.sum(ByteRange::new(0, self.size()))
    }

    /// The CRC64 of a range of the file, from its spill files.
    fn sum(&self, range: ByteRange) -> Result<u64, WriteError> {
        let mut crc = Crc64::new();
        for chunk in SpillBody::new(Some(self.dir.clone()), self.record.piece_size, range).reader() {
            let chunk = chunk.map_err(|error| WriteError::Spill {
                message: format!("{}: {error}", self.dir.path().display()),
                errno: error.raw_os_error(),
            })?;
            crc.update(&chunk);
        }
        Ok(crc.value())
    }
}

impl DirtyFile {
    /// Takes a session up again: its spill files stand, and nothing is known yet of what was sent of it.
    pub fn restore(engine: &WriteEngine, restored: &Restored) -> Arc<Self> {
        let base_size = restored.record.base.as_ref().map_or(0, |base| base.size);
        let plan = Plan::with_piece_size(restored.record.piece_size, base_size);
        let written = restored.pieces.iter().map(|(.., at)| *at).max().unwrap_or(SystemTime::UNIX_EPOCH);
        let mut state = State::new(restored.record.clone(), plan, written);
        state.size = restored.size();
        state.dir = Some(restored.dir.clone());
        for (index, len, _) in &restored.pieces {
            state.pieces.insert(*index, Piece { len: *len, unsynced: true, ..Piece::default() });
        }
        let file = Arc::new(Self::with_state(engine, state));
        engine.register(&file);
        file
    }

    /// Takes up the upload that the journal knows: the parts that the service has, and whose bytes are those of
    /// the spill files, are not sent again. Returns how many.
    ///
    /// # Errors
    /// The service did not answer; nothing is taken up then, and everything would be sent again.
    pub async fn resume_upload(&self, restored: &Restored, upload: &UploadRecord) -> Result<usize, WriteError> {
        let Some(transfer) = self.transfer_for(upload) else { return Ok(0) };
        let told = match transfer.parts_on_service().await {
            Err(error) if error.kind == ErrorKind::NoSuchUpload => return Ok(0),
            other => other?,
        };
        let mut found = 0;
        let mut good = Vec::new();
        for info in told {
            if let Some(outcome) = self.usable(restored, &info)? {
                good.push((info.number, outcome));
                found += 1;
            }
        }
        let mut state = self.state.lock();
        state.transfer = Some(Arc::new(transfer));
        for (number, outcome) in good {
            state.parts.insert(number, Part { generation: 0, sending: None, sent: Some((0, outcome)) });
        }
        Ok(found)
    }

    /// The transfer of an upload that was begun under this file's name, with the headers it still wants.
    fn transfer_for(&self, upload: &UploadRecord) -> Option<Transfer> {
        let state = self.state.lock();
        let headers = state.multipart_headers();
        let same = state.record.key.as_ref() == Some(&upload.key)
            && upload.part_size == state.record.piece_size
            && upload.headers_crc == header_sum(&record_of(&headers));
        let engine = self.engine.upload().clone();
        let transfer = Transfer::new(engine, state.record.id, upload.key.clone(), headers, upload.part_size);
        same.then(|| transfer.resume(upload.upload_id.clone()))
    }

    /// What the service has of a part, if that is what the spill files hold.
    fn usable(&self, restored: &Restored, info: &PartInfo) -> Result<Option<PartOutcome>, WriteError> {
        let Some(range) = self.local_part(info.number) else { return Ok(None) };
        let same = range.len() == info.size && info.crc64 == Some(restored.sum(range)?);
        Ok(same.then(|| PartOutcome { etag: info.etag.clone(), size: info.size, crc64: info.crc64 }))
    }

    /// The bytes of a part that is not copied from the base.
    fn local_part(&self, number: PartNumber) -> Option<ByteRange> {
        let state = self.state.lock();
        let jobs = state.jobs().ok()?;
        jobs.iter().find(|job| job.number == number && !job.copy).map(|job| job.range)
    }
}
