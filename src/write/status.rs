//! What `status` and `recover list` tell of a session.

use std::time::SystemTime;

use super::file::DirtyFile;
use crate::base::time::from_micros;
use crate::base::{ObjectKey, SessionId, UploadId};
use crate::spill::Phase;

/// A session as people see it.
#[derive(Debug, Clone)]
pub struct FileStatus {
    pub session: SessionId,
    pub key: Option<ObjectKey>,
    pub upload_id: Option<UploadId>,
    pub phase: Phase,
    pub size: u64,
    pub part_size: u64,
    pub parts_done: u64,
    /// Parts of the object to be; of an open file, those begun.
    pub parts_total: u64,
    pub bytes_done: u64,
    pub created_at: SystemTime,
    pub error: Option<String>,
}

impl DirtyFile {
    pub fn status(&self) -> FileStatus {
        let state = self.state.lock();
        let jobs = state.jobs().unwrap_or_default();
        let done = jobs.iter().filter(|job| state.is_done(job));
        let (parts_done, bytes_done) = done.fold((0, 0), |(n, bytes), job| (n + 1, bytes + job.range.len()));
        FileStatus {
            session: state.record.id,
            key: state.record.key.clone(),
            upload_id: state.transfer.as_ref().and_then(|transfer| transfer.id().cloned()),
            phase: state.record.phase.clone(),
            size: state.size,
            part_size: state.record.piece_size,
            parts_done,
            parts_total: jobs.len() as u64,
            bytes_done,
            created_at: from_micros(state.record.id.created_micros()),
            error: state.record.error.clone(),
        }
    }

    /// Whether it is closed, and on its way to the service or about to be.
    pub fn is_closing(&self) -> bool {
        self.state.lock().is_closed()
    }
}
