//! How the object to be is put together: from parts of spill files, runs of the base, and runs of zeros. Pure.
//!
//! Parts of spill files have the numbers that the plan gives them. Copies take what is left between: a run of the
//! base, or of zeros, is one part as long as the service allows, which leaves numbers free for the slices into
//! which a part with long holes is cut.

use crate::base::limits::{GIB, MIB, PART_BYTES_MAX, PARTS_MAX};
use crate::base::{ByteRange, PartNumber};
use crate::upload::PartOutcome;

use super::state::State;

/// Holes of fewer bytes in all are sent as they are: a copy costs requests too.
const ZEROS_MIN: u64 = 32 * MIB;
/// How much of a run of zeros is copied at once, by how many zeros there are: [bytes in all, bytes a copy].
const ZERO_STEPS: [(u64, u64); 3] = [(256 * MIB, 8 * MIB), (16 * GIB, 256 * MIB), (u64::MAX, PART_BYTES_MAX)];

/// Where the bytes of a part come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The spill files, as a part of the plan.
    Local,
    /// The spill files, some pieces of a part of the plan, of this generation.
    Slice(u64),
    /// A run of the base that nobody touched.
    Base,
    /// A hole.
    Zeros,
}

/// One part of the object to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) number: PartNumber,
    pub(super) range: ByteRange,
    pub(super) source: Source,
}

/// What the service has under a part number, where it is no part of the plan.
#[derive(Debug, Clone)]
pub(super) struct Other {
    pub(super) range: ByteRange,
    pub(super) source: Source,
    pub(super) outcome: PartOutcome,
}

impl State {
    /// The parts of the object to be, in order. An error names a piece that must be fetched first: it mixes bytes
    /// of the base with what lies past them.
    pub(super) fn jobs(&self) -> Result<Vec<Job>, u64> {
        let plain = self.lay_out(None)?;
        let holes: u64 = plain.iter().filter(|job| job.source == Source::Local).map(|job| self.hole_bytes(job)).sum();
        if holes < ZEROS_MIN || self.zeros_refused {
            return Ok(plain);
        }
        for (most, step) in ZERO_STEPS {
            if holes <= most
                && let Some(jobs) = numbered(self.lay_out(Some((step, true)))?)
            {
                return Ok(jobs);
            }
        }
        Ok(numbered(self.lay_out(Some((PART_BYTES_MAX, false)))?).unwrap_or(plain))
    }

    /// The parts with the numbers that they would have by themselves. `zeros`: at most so many zeros are copied at
    /// once, and whether parts may be cut into slices.
    fn lay_out(&self, zeros: Option<(u64, bool)>) -> Result<Vec<Job>, u64> {
        let mut jobs: Vec<Job> = Vec::new();
        let step = zeros.map_or(PART_BYTES_MAX, |(step, _)| self.whole_pieces(step));
        for (number, range) in self.plan.parts(self.size) {
            let index = self.plan.piece_at(range.start);
            let remote = self.remote(index);
            let job = |range, source| Job { number, range, source };
            if !remote.is_empty() {
                if remote.end < range.end {
                    return Err(index);
                }
                push(&mut jobs, job(range, Source::Base), PART_BYTES_MAX);
            } else if zeros.is_none() || !self.is_open_to_copies(number, range) {
                jobs.push(job(range, Source::Local));
            } else if self.data_runs(range).is_empty() {
                push_zeros(&mut jobs, job(range, Source::Zeros), step);
            } else if zeros.is_some_and(|(_, slices)| slices)
                && self.hole_bytes(&job(range, Source::Local)) >= ZEROS_MIN
            {
                let generation = self.parts.get(&number).map_or(0, |part| part.generation);
                let mut at = range.start;
                for run in self.data_runs(range) {
                    push_zeros(&mut jobs, job(ByteRange::new(at, run.start), Source::Zeros), step);
                    jobs.push(job(run, Source::Slice(generation)));
                    at = run.end;
                }
                push_zeros(&mut jobs, job(ByteRange::new(at, range.end), Source::Zeros), step);
            } else {
                jobs.push(job(range, Source::Local));
            }
        }
        Ok(jobs)
    }

    fn whole_pieces(&self, bytes: u64) -> u64 {
        let piece = self.plan.piece_size();
        (bytes / piece).max(1) * piece
    }

    /// Whether a part of the plan may come otherwise than whole from here: the service has not got it yet.
    fn is_open_to_copies(&self, number: PartNumber, range: ByteRange) -> bool {
        let is_sent = |part: &super::state::Part| part.sending.is_some() || part.is_clean(range.len());
        !self.away.contains(&number) && !self.parts.get(&number).is_some_and(is_sent)
    }

    /// Bytes of a part in pieces that hold nothing.
    fn hole_bytes(&self, job: &Job) -> u64 {
        if !self.is_open_to_copies(job.number, job.range) {
            return 0;
        }
        job.range.len() - self.data_runs(job.range).iter().map(ByteRange::len).sum::<u64>()
    }

    /// The runs of whole pieces in a range that hold data.
    fn data_runs(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut runs: Vec<ByteRange> = Vec::new();
        let pieces = self.pieces.range(self.plan.pieces_in(range)).filter(|(_, piece)| piece.len > 0);
        for (index, _) in pieces {
            let piece = self.plan.piece_range(*index).intersect(&range);
            match runs.last_mut() {
                Some(run) if run.end == piece.start => run.end = piece.end,
                _ => runs.push(piece),
            }
        }
        runs
    }

    /// Whether everything of `job` is on the service already.
    pub(super) fn is_done(&self, job: &Job) -> bool {
        self.outcome(job).is_some()
    }

    /// What the service has of `job`, if it is what the file holds now.
    pub(super) fn outcome(&self, job: &Job) -> Option<&PartOutcome> {
        if job.source == Source::Local {
            let part = self.parts.get(&job.number).filter(|part| part.is_clean(job.range.len()))?;
            return part.sent.as_ref().map(|(_, outcome)| outcome);
        }
        let same = |other: &&Other| other.range == job.range && other.source == job.source;
        self.others.get(&job.number).filter(same).map(|other| &other.outcome)
    }

    /// The CRC64 that a part must have because it is the base, whole. Of other copies only the service knows it.
    pub(super) fn known_sum(&self, job: &Job) -> Option<u64> {
        let base = self.record.base.as_ref().filter(|base| job.range == ByteRange::new(0, base.size))?;
        base.crc64.filter(|_| job.source == Source::Base)
    }
}

/// Adds a run, to the one before where it goes on from there.
fn push(jobs: &mut Vec<Job>, job: Job, most: u64) {
    match jobs.last_mut() {
        Some(run)
            if run.source == job.source
                && run.range.end == job.range.start
                && run.range.len() + job.range.len() <= most =>
        {
            run.range.end = job.range.end;
        }
        _ => jobs.push(job),
    }
}

/// Adds a run of zeros, in steps.
fn push_zeros(jobs: &mut Vec<Job>, job: Job, step: u64) {
    let mut at = job.range.start;
    while at < job.range.end {
        let left = match jobs.last() {
            Some(run) if run.source == Source::Zeros && run.range.end == at && run.range.len() < step => {
                step - run.range.len()
            }
            _ => step,
        };
        let end = job.range.end.min(at + left);
        push(jobs, Job { range: ByteRange::new(at, end), ..job.clone() }, step);
        at = end;
    }
}

/// Gives copies and slices the highest numbers that are left below what follows them; `None` where there are too
/// few.
fn numbered(mut jobs: Vec<Job>) -> Option<Vec<Job>> {
    let mut most = PARTS_MAX;
    for job in jobs.iter_mut().rev() {
        let number = job.number.get().min(most);
        if job.source == Source::Local && number != job.number.get() {
            return None;
        }
        job.number = PartNumber::new(number)?;
        most = number - 1;
    }
    Some(jobs)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::base::limits::{KIB, TIB};
    use crate::base::{ETag, ObjectKey, SessionId};
    use crate::spill::{Base, SessionRecord};
    use crate::upload::Plan;
    use crate::write::state::Piece;
    use proptest::prelude::*;

    fn piece(len: u64) -> Piece {
        Piece { len, ..Piece::default() }
    }

    fn editing(base_size: u64) -> State {
        let key = ObjectKey::parse("k").unwrap();
        let plan = Plan::new(8 * MIB, base_size);
        let base = Base { key: key.clone(), etag: ETag::new("e"), size: base_size, crc64: None };
        let record = SessionRecord::new(SessionId::generate(1), key, plan.piece_size(), Some(base));
        State::new(record, plan, SystemTime::UNIX_EPOCH)
    }

    fn shape(state: &State) -> Vec<(u32, u64, u64, Source)> {
        let jobs = state.jobs().unwrap();
        jobs.iter().map(|job| (job.number.get(), job.range.start, job.range.end, job.source)).collect()
    }

    #[test]
    fn an_untouched_base_is_one_copy() {
        assert_eq!(shape(&editing(GIB)), [(1, 0, GIB, Source::Base)]);
        assert_eq!(shape(&editing(6 * GIB)).len(), 2);
    }

    #[test]
    fn a_change_in_the_middle_is_a_part_between_two_copies() {
        let mut state = editing(GIB);
        state.pieces.insert(128, piece(4 * MIB));
        let middle = 512 * MIB;
        assert_eq!(
            shape(&state),
            [
                (1, 0, middle, Source::Base),
                (129, middle, middle + 4 * MIB, Source::Local),
                (130, middle + 4 * MIB, GIB, Source::Base)
            ]
        );
    }

    #[test]
    fn a_shortened_base_is_copied_to_its_new_end() {
        let mut state = editing(GIB);
        state.record.base_valid = GIB - KIB;
        state.size = GIB - KIB;
        assert_eq!(shape(&state), [(1, 0, GIB - KIB, Source::Base)]);
        state.size = GIB;
        assert_eq!(state.jobs(), Err(255), "base bytes and zeros in one piece");
        state.record.base_valid = GIB - 4 * MIB;
        assert_eq!(shape(&state), [(1, 0, GIB - 4 * MIB, Source::Base), (256, GIB - 4 * MIB, GIB, Source::Local)]);
    }

    #[test]
    fn an_append_keeps_the_base() {
        let mut state = editing(GIB);
        state.pieces.insert(256, piece(KIB));
        state.size = GIB + KIB;
        assert_eq!(shape(&state), [(1, 0, GIB, Source::Base), (257, GIB, GIB + KIB, Source::Local)]);
        state.record.base.as_mut().unwrap().crc64 = Some(7);
        let jobs = state.jobs().unwrap();
        assert_eq!([state.known_sum(&jobs[0]), state.known_sum(&jobs[1])], [Some(7), None]);
    }

    /// What must hold of every list of jobs.
    fn assert_sound(state: &State, jobs: &[Job]) {
        let mut at = 0;
        let mut number = 0;
        for job in jobs {
            assert_eq!(job.range.start, at);
            assert!(!job.range.is_empty() && job.range.len() <= PART_BYTES_MAX && job.number.get() > number, "{job:?}");
            (at, number) = (job.range.end, job.number.get());
            match job.source {
                Source::Local => assert_eq!(
                    state.plan.part_range(job.number).unwrap().intersect(&ByteRange::new(0, state.size)),
                    job.range
                ),
                Source::Zeros => assert!(state.data_runs(job.range).is_empty()),
                Source::Slice(_) => assert_eq!(state.data_runs(job.range), [job.range]),
                Source::Base => assert!(job.range.end <= state.record.base_valid),
            }
        }
        assert_eq!(at, state.size);
    }

    #[test]
    fn a_tebibyte_of_nothing_is_few_copies() {
        let mut state = editing(0);
        state.size = TIB;
        let jobs = state.jobs().unwrap();
        assert_sound(&state, &jobs);
        assert_eq!(jobs.len(), 205);
        assert!(jobs.iter().all(|job| job.source == Source::Zeros));
    }

    #[test]
    fn a_little_data_in_a_large_hole_is_sent_alone() {
        let mut state = editing(0);
        state.size = TIB;
        for index in [0, 3, 50_000, 50_001, 100_000] {
            state.pieces.insert(index, piece(KIB));
        }
        let jobs = state.jobs().unwrap();
        assert_sound(&state, &jobs);
        let sent: u64 = jobs.iter().filter(|job| job.source != Source::Zeros).map(|job| job.range.len()).sum();
        assert_eq!(sent, 5 * 8 * MIB);
        assert!(jobs.len() < 220, "{}", jobs.len());
    }

    #[test]
    fn small_holes_are_sent_as_they_are() {
        let mut state = editing(0);
        state.size = 24 * MIB;
        assert!(state.jobs().unwrap().iter().all(|job| job.source == Source::Local));
        state.size = 48 * MIB;
        assert!(state.jobs().unwrap().iter().all(|job| job.source == Source::Zeros));
        state.zeros_refused = true;
        assert!(state.jobs().unwrap().iter().all(|job| job.source == Source::Local));
    }

    proptest! {
        #[test]
        fn parts_cover_the_file_in_order(
            size in 1..TIB,
            base in prop_oneof![Just(0), 1..TIB],
            pieces in prop::collection::btree_set(0..131_072u64, 0..40),
        ) {
            let mut state = editing(base);
            state.size = size;
            state.record.base_valid = base.min(size);
            let piece_size = state.plan.piece_size();
            for index in pieces {
                if index * piece_size < size {
                    state.pieces.insert(index, piece(1));
                }
            }
            let jobs = loop {
                match state.jobs() {
                    Ok(jobs) => break jobs,
                    Err(index) => drop(state.pieces.insert(index, piece(1))),
                }
            };
            assert_sound(&state, &jobs);
        }
    }
}
