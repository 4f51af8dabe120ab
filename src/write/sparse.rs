//! Zeros and whole-object copies: changes of many bytes that move few.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::WriteError;
use super::file::{DirtyFile, Segment, Step};
use super::state::{Piece, State};
use crate::base::ByteRange;
use crate::base::limits::FUSE_WRITE_MAX;
use crate::base::time::now;
use crate::spill::{Base, SpillError};
use crate::upload::Plan;

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

impl DirtyFile {
    /// Makes a range read as zeros, inside the file as it is: its size stays.
    pub async fn zero_waiting(self: &Arc<Self>, range: ByteRange) -> Result<(), WriteError> {
        let range = range.intersect(&ByteRange::new(0, self.size()));
        let mut at = range.start;
        while at < range.end {
            // Looked at each time: the pieces change where the file is completed at a key of the program's own.
            let plan = self.state.lock().plan;
            let index = plan.piece_at(at);
            let piece = plan.piece_range(index);
            let part = piece.intersect(&ByteRange::new(at, range.end));
            if part == piece {
                self.reopen()?;
                self.forget_set_time()?;
                let step = self.try_zero_piece(index)?;
                if !self.pass(step).await? {
                    continue;
                }
            } else if !self.is_hole(index) {
                self.write_zeros(part).await?;
            }
            at = part.end;
        }
        Ok(())
    }

    fn is_hole(&self, index: u64) -> bool {
        let state = self.state.lock();
        !state.pieces.contains_key(&index) && !state.is_away(index) && state.remote(index).is_empty()
    }

    async fn write_zeros(self: &Arc<Self>, range: ByteRange) -> Result<(), WriteError> {
        let zeros = vec![0; range.len().min(u64::from(FUSE_WRITE_MAX)) as usize];
        let mut at = range.start;
        while at < range.end {
            let len = zeros.len().min((range.end - at) as usize);
            self.write_waiting(at, &zeros[..len]).await?;
            at += len as u64;
        }
        Ok(())
    }

    /// A whole piece of zeros is an empty spill file: one step on the disk, whatever stood there.
    fn try_zero_piece(&self, index: u64) -> Result<Step, WriteError> {
        self.reopen()?;
        let _structure = self.structure.lock();
        {
            let mut state = self.state.lock();
            if let Some(step) = state.may_change()? {
                return Ok(step);
            }
            if state.in_flight > 0 {
                return Ok(Step::Busy);
            }
            // Between the two looks a publication may have closed the file again, and failed.
            if state.is_closed() {
                return Ok(Step::Gated);
            }
            // Whoever has taken it for replay leaves it alone from here on.
            state.changed = true;
        }
        if self.is_hole(index) {
            return Ok(Step::Done);
        }
        if self.state.lock().is_away(index) {
            return Ok(Step::Checkpoint);
        }
        let dir = self.ensure_dir()?;
        // The size must not hang on the length of the spill file.
        let (size, range) = {
            let mut state = self.state.lock();
            state.record.extent = state.record.extent.max(state.size);
            (state.size, state.plan.piece_range(index))
        };
        self.rewrite_record()?;
        let path = dir.piece_path(index);
        let emptied = dir.open_piece(index, true)?.set_len(0);
        emptied.map_err(|source| SpillError::Io { path, source })?;
        let mut state = self.state.lock();
        state.forget_open(index);
        state.add_piece(index, Piece { unsynced: true, ..Piece::default() });
        state.touch(range.intersect(&ByteRange::new(0, size)));
        (state.last_write, state.last_change) = (now(), now());
        state.record.times.mtime = None;
        Ok(Step::Done)
    }

    /// The next data or hole at or after `offset`; `None` past the end, or where no data follows.
    ///
    /// # Errors
    /// A spill file cannot be opened.
    pub fn seek(&self, offset: u64, what: Seek) -> Result<Option<u64>, WriteError> {
        let size = self.size();
        if offset >= size {
            return Ok(None);
        }
        let mut at = offset;
        for segment in self.segments_here(ByteRange::new(offset, size))? {
            let (found, len) = match segment {
                Segment::Local { file, offset, len } => (seek_in(&file, offset, len, what), len),
                Segment::Base(range) | Segment::Away(range) => ((what == Seek::Data).then_some(0), range.len()),
                Segment::Zeros(len) => ((what == Seek::Hole).then_some(0), len),
            };
            if let Some(within) = found {
                return Ok(Some(at + within));
            }
            at += len;
        }
        // The end of the file is a hole.
        Ok((what == Seek::Hole).then_some(size))
    }

    /// Takes bytes of another object over, without moving them: the file becomes an edit of that object. Only from
    /// the start of the object, in order, into a file that has nothing else. Whether it could be done.
    pub fn adopt(&self, source: &Base, range: ByteRange) -> Result<bool, WriteError> {
        let _structure = self.structure.lock();
        {
            let mut state = self.state.lock();
            if state.may_change()?.is_some() || !state.can_adopt(source, range) {
                return Ok(false);
            }
            state.changed = true;
            if state.record.base.is_none() {
                state.plan = Plan::new(self.engine.0.part_size, source.size);
                state.record.piece_size = state.plan.piece_size();
                state.record.base = Some(source.clone());
            }
            (state.record.base_valid, state.size) = (range.end, range.end);
            (state.last_write, state.last_change) = (now(), now());
            state.record.times.mtime = None;
            state.base_seen = None;
        }
        self.rewrite_record()?;
        Ok(true)
    }
}

impl State {
    fn can_adopt(&self, source: &Base, range: ByteRange) -> bool {
        let untouched =
            self.pieces.is_empty() && self.away.is_empty() && self.transfer.is_none() && self.in_flight == 0;
        let next = range.start == self.size && range.end <= source.size && !range.is_empty();
        let same = match &self.record.base {
            None => self.size == 0 && self.record.extent == 0,
            Some(base) => base == source && self.record.base_valid == self.size,
        };
        untouched && next && same
    }

    /// Whether the file is nothing but another object, whole.
    pub(super) fn is_copy(&self) -> bool {
        self.pieces.is_empty()
            && self.away.is_empty()
            && self.record.base.as_ref().is_some_and(|base| {
                self.size == base.size
                    && self.record.base_valid == base.size
                    && self.record.key.as_ref() != Some(&base.key)
            })
    }
}

/// Data or a hole inside a stretch of a spill file, relative to its start; past the file's end all is a hole.
fn seek_in(file: &std::fs::File, offset: u64, len: u64, what: Seek) -> Option<u64> {
    let whence = match what {
        Seek::Data => libc::SEEK_DATA,
        Seek::Hole => libc::SEEK_HOLE,
    };
    // SAFETY: a plain call on a descriptor that lives through it; the position it moves is used by nobody, since
    // spill files are read and written at given offsets only.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    match (u64::try_from(found), what) {
        (Ok(found), _) => (found < offset + len).then(|| found - offset),
        // ENXIO: past the end, or no data follows.
        (Err(_), Seek::Data) => None,
        (Err(_), Seek::Hole) => Some(0),
    }
}
