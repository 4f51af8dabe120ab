//! What a session knows of itself in memory, and the decisions that follow from it without I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::base::crc64::Crc64;
use crate::base::limits::{FUSE_WRITE_MAX, PART_BYTES_MIN};
use crate::base::posix::Attributes;
use crate::base::{ByteRange, PartNumber};
use crate::oss::PutHeaders;
use crate::spill::{Base, Lease, PieceNote, SessionDir, SessionRecord};
use crate::upload::{PartOutcome, Plan, Transfer, headers_of};

use super::Published;
use super::jobs::Other;

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

#[derive(Debug)]
pub(super) struct State {
    pub(super) record: SessionRecord,
    pub(super) dir: Option<Arc<SessionDir>>,
    pub(super) plan: Plan,
    pub(super) size: u64,
    pub(super) pieces: BTreeMap<u64, Piece>,
    open: VecDeque<(u64, Arc<File>)>,
    pub(super) parts: BTreeMap<PartNumber, Part>,
    /// What else the service has under part numbers: copies, and slices of parts.
    pub(super) others: BTreeMap<PartNumber, Other>,
    /// Part numbers under which something of that kind is on its way.
    pub(super) copying: BTreeSet<PartNumber>,
    /// An object of zeros, to be copied from, and whether the service refuses that.
    pub(super) zeros: Option<Base>,
    pub(super) zeros_refused: bool,
    pub(super) transfer: Option<Arc<Transfer>>,
    /// The upload goes to a key of the program's own, so that its parts may leave the disk.
    pub(super) hidden: bool,
    /// Parts that have left the disk: only the upload has their bytes.
    pub(super) away: BTreeSet<PartNumber>,
    /// The bytes of `pieces`, as they are counted against the limit.
    pub(super) lease: Lease,
    /// What was fetched of the base, by piece, and its sum as it came.
    pub(super) fetched: BTreeMap<u64, (ByteRange, u64)>,
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
    /// It was closed on the local disk, and all of it survives power loss as long as it is closed.
    pub(super) closed_locally: bool,
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
            others: BTreeMap::new(),
            fetched: BTreeMap::new(),
            copying: BTreeSet::new(),
            zeros: None,
            zeros_refused: false,
            transfer: None,
            hidden: false,
            away: BTreeSet::new(),
            lease: Lease::apart(),
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
            closed_locally: false,
            killed: false,
        }
    }

    /// The bytes of a piece that still come from the base; empty for local pieces and past the base.
    pub(super) fn remote(&self, index: u64) -> ByteRange {
        let range = self.plan.piece_range(index);
        let valid = ByteRange::new(0, self.record.base_valid);
        if self.pieces.contains_key(&index) || self.is_away(index) {
            ByteRange::new(range.start, range.start)
        } else {
            range.intersect(&valid)
        }
    }

    /// Whether a piece has left the disk with its part.
    pub(super) fn is_away(&self, index: u64) -> bool {
        let part = || self.plan.part_at(self.plan.piece_range(index).start);
        !self.away.is_empty() && part().is_some_and(|part| self.away.contains(&part))
    }

    /// Whether any byte of a range has left the disk.
    pub(super) fn is_any_away(&self, range: ByteRange) -> bool {
        !self.away.is_empty() && self.plan.pieces_in(range).any(|index| self.is_away(index))
    }

    /// Bytes by which a write to `range` lengthens the spill files.
    pub(super) fn growth(&self, range: ByteRange) -> u64 {
        let grown = |index| {
            let piece = self.plan.piece_range(index);
            let end = piece.intersect(&range).end - piece.start;
            end.saturating_sub(self.pieces.get(&index).map_or(0, |piece| piece.len))
        };
        self.plan.pieces_in(range).map(grown).sum()
    }

    /// Notes the length of a spill file.
    pub(super) fn set_len(&mut self, index: u64, len: u64) {
        let Some(piece) = self.pieces.get_mut(&index) else { return };
        let old = std::mem::replace(&mut piece.len, len);
        if len >= old { self.lease.grow(len - old) } else { self.lease.shrink(old - len) }
    }

    /// Notes a spill file that stands.
    pub(super) fn add_piece(&mut self, index: u64, piece: Piece) {
        self.remove_piece(index);
        self.lease.grow(piece.len);
        self.pieces.insert(index, piece);
    }

    /// Notes that a spill file is gone.
    pub(super) fn remove_piece(&mut self, index: u64) {
        if let Some(piece) = self.pieces.remove(&index) {
            self.lease.shrink(piece.len);
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

    /// Spill files that are held open.
    pub(super) fn open_pieces(&self) -> usize {
        self.open.len()
    }

    /// Closes those that nobody writes to just now.
    pub(super) fn close_idle_pieces(&mut self) {
        self.open.retain(|(_, file)| Arc::strong_count(file) > 1);
    }

    pub(super) fn forget_open(&mut self, index: u64) {
        self.open.retain(|(open, _)| *open != index);
    }

    /// Lets go of the upload: nothing that was sent through it counts, and what is on its way is not waited for.
    pub(super) fn let_go(&mut self) -> Option<Arc<Transfer>> {
        let transfer = self.transfer.take()?;
        self.parts.values_mut().for_each(|part| (part.sent, part.sending) = (None, None));
        self.others.clear();
        self.copying.clear();
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
            let run = piece.running.as_ref().filter(|run| run.upto == piece.len).map(|run| run.crc.value());
            // What was noted holds until the file is opened again.
            let noted = || {
                let at = self.record.pieces.binary_search_by_key(index, |note| note.index).ok()?;
                self.record.pieces.get(at).filter(|note| note.len == piece.len)?.crc64
            };
            let crc64 = run.or_else(|| self.sent_sum(*index, piece.len)).or_else(noted);
            PieceNote { index: *index, len: piece.len, crc64 }
        };
        self.pieces.iter().map(note).collect()
    }

    /// The sum of a piece that was sent, as it is, as a part.
    fn sent_sum(&self, index: u64, len: u64) -> Option<u64> {
        let start = self.plan.piece_range(index).start;
        let number = self.plan.part_at(start)?;
        let is_alone = self.plan.part_range(number).is_some_and(|range| range == self.plan.piece_range(index));
        let part = self.parts.get(&number).filter(|part| is_alone && part.is_clean(len))?;
        part.sent.as_ref()?.1.crc64
    }
}

impl Part {
    /// Whether what was sent last is what the file holds, over `len` bytes.
    pub(super) fn is_clean(&self, len: u64) -> bool {
        self.sent.as_ref().is_some_and(|(generation, outcome)| *generation == self.generation && outcome.size == len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::MIB;
    use crate::base::{ETag, ObjectKey, SessionId};

    #[test]
    fn a_part_is_due_until_its_last_generation_was_sent_whole() {
        let key = ObjectKey::parse("k").unwrap();
        let plan = Plan::new(8 * MIB, 0);
        let record = SessionRecord::new(SessionId::generate(1), key, plan.piece_size(), None);
        let mut state = State::new(record, plan, SystemTime::UNIX_EPOCH);
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
