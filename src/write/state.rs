//! What a session knows of itself in memory, and the decisions that follow from it without I/O.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::base::crc64::Crc64;
use crate::base::limits::{FUSE_WRITE_MAX, PART_BYTES_MAX, PART_BYTES_MIN};
use crate::base::posix::Attributes;
use crate::base::{ByteRange, PartNumber};
use crate::oss::PutHeaders;
use crate::spill::{PieceNote, SessionDir, SessionRecord};
use crate::upload::{PartOutcome, Plan, Transfer, headers_of};

use super::Published;

/// Spill files of one session that are held open for writing: as many as the largest write can touch.
const OPEN_PIECES_MAX: usize = (FUSE_WRITE_MAX as u64 / PART_BYTES_MIN + 2) as usize;

/// A running sum of a piece that is written from its start on.
#[derive(Debug, Clone, Default)]
pub(super) struct Running {
    pub(super) crc: Crc64,
    pub(super) upto: u64,
}

/// A local piece: its spill file holds all of it.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// Length of the spill file.
    pub(super) len: u64,
    /// Present while the piece has been written front to back without a gap.
    pub(super) running: Option<Running>,
    /// Written since the last fsync.
    pub(super) unsynced: bool,
    pub(super) writers: u32,
    /// Writes have overlapped in time: nobody knows in what order their bytes came.
    pub(super) mixed: bool,
}

impl Piece {
    /// The sum to go on from, if this write is the only one.
    pub(super) fn begin_write(&mut self) -> Option<Running> {
        self.writers += 1;
        self.mixed |= self.writers > 1;
        self.running.take()
    }

    pub(super) fn end_write(&mut self, running: Option<Running>) {
        self.running = running.filter(|_| !self.mixed);
        self.writers -= 1;
        self.mixed &= self.writers > 0;
    }
}

/// What was sent of a part.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// How often its bytes have changed.
    pub(super) generation: u64,
    /// The generation that is on its way.
    pub(super) sending: Option<u64>,
    pub(super) sent: Option<(u64, PartOutcome)>,
}

/// One part of the object to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) number: PartNumber,
    pub(super) range: ByteRange,
    /// A run of the base that nobody touched.
    pub(super) copy: bool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) record: SessionRecord,
    pub(super) dir: Option<Arc<SessionDir>>,
    pub(super) plan: Plan,
    pub(super) size: u64,
    pub(super) pieces: BTreeMap<u64, Piece>,
    open: VecDeque<(u64, Arc<File>)>,
    pub(super) parts: BTreeMap<PartNumber, Part>,
    /// Runs of the base that the service has copied already.
    pub(super) copies: BTreeMap<PartNumber, (ByteRange, PartOutcome)>,
    pub(super) transfer: Option<Arc<Transfer>>,
    /// Writes between their first and their last look at the state.
    pub(super) in_flight: u32,
    /// Written or cut since it was begun or taken up.
    pub(super) changed: bool,
    /// Taken up from an earlier process, and what that had sent is not known yet: nothing is sent until then.
    pub(super) resuming: bool,
    /// No write may begin: the file is being finished.
    pub(super) gated: bool,
    pub(super) retired: Option<Published>,
    /// Discarded or kept: nothing more will come of it.
    pub(super) ended: bool,
    /// The part that the last write ended in.
    pub(super) cursor: Option<PartNumber>,
    pub(super) last_write: SystemTime,
    pub(super) last_change: SystemTime,
    /// When the base was last seen unchanged.
    pub(super) base_seen: Option<Instant>,
    /// A writer was killed: the release that follows keeps the session and does not publish it.
    pub(super) killed: bool,
}

impl State {
    pub(super) fn new(record: SessionRecord, plan: Plan, at: SystemTime) -> Self {
        Self {
            size: record.base_valid.max(record.extent),
            record,
            dir: None,
            plan,
            pieces: BTreeMap::new(),
            open: VecDeque::new(),
            parts: BTreeMap::new(),
            copies: BTreeMap::new(),
            transfer: None,
            in_flight: 0,
            changed: false,
            resuming: false,
            gated: false,
            retired: None,
            ended: false,
            cursor: None,
            last_write: at,
            last_change: at,
            base_seen: None,
            killed: false,
        }
    }

    /// The bytes of a piece that still come from the base; empty for local pieces and past the base.
    pub(super) fn remote(&self, index: u64) -> ByteRange {
        let range = self.plan.piece_range(index);
        let valid = ByteRange::new(0, self.record.base_valid);
        if self.pieces.contains_key(&index) {
            ByteRange::new(range.start, range.start)
        } else {
            range.intersect(&valid)
        }
    }

    /// Whether any of the file's bytes still depend on the base.
    pub(super) fn uses_base(&self) -> bool {
        self.record.base.is_some() && self.record.base_valid > 0
    }

    pub(super) fn open_piece(&self, index: u64) -> Option<Arc<File>> {
        self.open.iter().find(|(open, _)| *open == index).map(|(_, file)| file.clone())
    }

    pub(super) fn remember_open(&mut self, index: u64, file: Arc<File>) {
        self.forget_open(index);
        if self.open.len() == OPEN_PIECES_MAX {
            self.open.pop_front();
        }
        self.open.push_back((index, file));
    }

    pub(super) fn forget_open(&mut self, index: u64) {
        self.open.retain(|(open, _)| *open != index);
    }

    /// Lets go of the upload: nothing that was sent through it counts, and what is on its way is not waited for.
    pub(super) fn let_go(&mut self) -> Option<Arc<Transfer>> {
        let transfer = self.transfer.take()?;
        self.parts.values_mut().for_each(|part| (part.sent, part.sending) = (None, None));
        self.copies.clear();
        Some(transfer)
    }

    /// Notes that bytes changed: their parts must be sent (again).
    pub(super) fn touch(&mut self, range: ByteRange) {
        let mut at = range.start;
        while at < range.end {
            let Some(number) = self.plan.part_at(at) else { return };
            self.parts.entry(number).or_default().generation += 1;
            match self.plan.part_range(number) {
                Some(part) => at = part.end,
                None => return,
            }
        }
    }

    /// Whether a part lies inside the file, is local, and has been written front to back.
    pub(super) fn is_full(&self, number: PartNumber) -> bool {
        let Some(range) = self.plan.part_range(number) else { return false };
        let size = self.plan.piece_size();
        range.end <= self.size
            && self.plan.pieces_in(range).all(|index| {
                self.pieces.get(&index).and_then(|piece| piece.running.as_ref()).is_some_and(|run| run.upto == size)
            })
    }

    /// The part's generation, if it must still be sent and is not on its way.
    pub(super) fn due(&self, number: PartNumber, len: u64) -> Option<u64> {
        match self.parts.get(&number) {
            None => Some(0),
            Some(part) if part.sending.is_some() || part.is_clean(len) => None,
            Some(part) => Some(part.generation),
        }
    }

    /// The parts of the object to be, in order. `None` names a piece that must be fetched first: it mixes bytes
    /// of the base with what lies past them.
    pub(super) fn jobs(&self) -> Result<Vec<Job>, u64> {
        let mut jobs: Vec<Job> = Vec::new();
        for (number, range) in self.plan.parts(self.size) {
            let index = self.plan.piece_at(range.start);
            let remote = self.remote(index);
            if remote.is_empty() {
                jobs.push(Job { number, range, copy: false });
            } else if remote.end < range.end {
                return Err(index);
            } else {
                match jobs.last_mut() {
                    Some(run) if run.copy && run.range.len() + range.len() <= PART_BYTES_MAX => {
                        run.range.end = range.end
                    }
                    _ => jobs.push(Job { number, range, copy: true }),
                }
            }
        }
        Ok(jobs)
    }

    /// Whether everything of `job` is on the service already.
    pub(super) fn is_done(&self, job: &Job) -> bool {
        self.outcome(job).is_some()
    }

    /// What the service has of `job`, if it is what the file holds now.
    pub(super) fn outcome(&self, job: &Job) -> Option<&PartOutcome> {
        if job.copy {
            return self.copies.get(&job.number).filter(|(range, _)| *range == job.range).map(|(_, outcome)| outcome);
        }
        let part = self.parts.get(&job.number).filter(|part| part.is_clean(job.range.len()))?;
        part.sent.as_ref().map(|(_, outcome)| outcome)
    }

    /// The headers to send with one PUT: all times are known then.
    pub(super) fn put_headers(&self) -> PutHeaders {
        let times = self.record.times;
        let mtime = times.mtime.unwrap_or(self.last_write);
        self.headers_with(Attributes {
            mtime: Some(mtime),
            atime: Some(times.atime.unwrap_or(mtime)),
            ctime: Some(self.last_change),
            ..Attributes::default()
        })
    }

    /// The headers of a multipart upload: fixed when it begins, so times that the writing itself moves on are
    /// left to the object's own last-modified.
    pub(super) fn multipart_headers(&self) -> PutHeaders {
        let times = self.record.times;
        self.headers_with(Attributes { mtime: times.mtime, atime: times.atime, ..Attributes::default() })
    }

    fn headers_with(&self, times: Attributes) -> PutHeaders {
        let mut headers = headers_of(&self.record.headers);
        if self.record.times.stored {
            times.write(&mut headers.user_meta);
        }
        headers
    }

    /// What the spill files look like, for the session file of a closing session.
    pub(super) fn notes(&self) -> Vec<PieceNote> {
        let note = |(index, piece): (&u64, &Piece)| {
            let run = piece.running.as_ref().filter(|run| run.upto == piece.len);
            PieceNote { index: *index, len: piece.len, crc64: run.map(|run| run.crc.value()) }
        };
        self.pieces.iter().map(note).collect()
    }
}

impl Part {
    /// Whether what was sent last is what the file holds, over `len` bytes.
    fn is_clean(&self, len: u64) -> bool {
        self.sent.as_ref().is_some_and(|(generation, outcome)| *generation == self.generation && outcome.size == len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::{GIB, KIB, MIB};
    use crate::base::{ETag, ObjectKey, SessionId};
    use crate::spill::Base;

    fn editing(base_size: u64) -> State {
        let key = ObjectKey::parse("k").unwrap();
        let plan = Plan::new(8 * MIB, base_size);
        let base = Base { key: key.clone(), etag: ETag::new("e"), size: base_size, crc64: None };
        let record = SessionRecord::new(SessionId::generate(1), key, plan.piece_size(), Some(base));
        State::new(record, plan, SystemTime::UNIX_EPOCH)
    }

    fn shape(state: &State) -> Vec<(u32, u64, u64, bool)> {
        let jobs = state.jobs().unwrap();
        jobs.iter().map(|job| (job.number.get(), job.range.start, job.range.end, job.copy)).collect()
    }

    #[test]
    fn an_untouched_base_is_one_copy() {
        assert_eq!(shape(&editing(GIB)), [(1, 0, GIB, true)]);
        assert_eq!(shape(&editing(6 * GIB)).len(), 2);
    }

    #[test]
    fn a_change_in_the_middle_is_a_part_between_two_copies() {
        let mut state = editing(GIB);
        state.pieces.insert(64, Piece { len: 8 * MIB, ..Piece::default() });
        let middle = 512 * MIB;
        assert_eq!(
            shape(&state),
            [(1, 0, middle, true), (65, middle, middle + 8 * MIB, false), (66, middle + 8 * MIB, GIB, true)]
        );
    }

    #[test]
    fn a_shortened_base_is_copied_to_its_new_end() {
        let mut state = editing(GIB);
        state.record.base_valid = GIB - KIB;
        state.size = GIB - KIB;
        assert_eq!(shape(&state), [(1, 0, GIB - KIB, true)]);
        state.size = GIB;
        assert_eq!(state.jobs(), Err(127), "base bytes and zeros in one piece");
        state.record.base_valid = GIB - 8 * MIB;
        assert_eq!(shape(&state), [(1, 0, GIB - 8 * MIB, true), (128, GIB - 8 * MIB, GIB, false)]);
    }

    #[test]
    fn an_append_keeps_the_base() {
        let mut state = editing(GIB);
        state.pieces.insert(128, Piece { len: KIB, ..Piece::default() });
        state.size = GIB + KIB;
        assert_eq!(shape(&state), [(1, 0, GIB, true), (129, GIB, GIB + KIB, false)]);
    }

    #[test]
    fn a_part_is_due_until_its_last_generation_was_sent_whole() {
        let mut state = editing(0);
        let one = PartNumber::new(1).unwrap();
        state.touch(ByteRange::new(0, 10));
        assert_eq!(state.due(one, 10), Some(1));
        let outcome = PartOutcome { etag: ETag::new("e"), size: 10, crc64: Some(1) };
        state.parts.get_mut(&one).unwrap().sent = Some((1, outcome));
        assert_eq!(state.due(one, 10), None);
        assert_eq!(state.due(one, 11), Some(1), "it has grown by zeros");
        state.touch(ByteRange::new(3, 4));
        assert_eq!(state.due(one, 10), Some(2));
        state.parts.get_mut(&one).unwrap().sending = Some(2);
        assert_eq!(state.due(one, 10), None);
    }
}
