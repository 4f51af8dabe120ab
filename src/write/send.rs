//! How the parts of an object reach the service: those of spill files, copies, and slices.
//!
//! Under one part number one thing is on its way at a time: which of two came last, nobody could tell. What was sent
//! for an upload that was given up meanwhile counts for nothing.

use std::sync::Arc;

use futures_util::future::join_all;

use super::WriteError;
use super::fetch::stale_if_changed;
use super::file::DirtyFile;
use super::jobs::{Job, Other, Source};
use super::state::State;
use crate::base::caller::interruptible;
use crate::base::{ByteRange, PartNumber, crash, crc64};
use crate::oss::ErrorKind;
use crate::spill::{Base, SpillBody};
use crate::upload::{PartOutcome, Transfer};

impl DirtyFile {
    /// Brings every part of the object to the service that is not there yet.
    pub(super) async fn send_jobs(self: &Arc<Self>) -> Result<(), WriteError> {
        loop {
            let jobs = self.state.lock().jobs();
            let jobs = match jobs {
                Ok(jobs) => jobs,
                Err(mixed) => {
                    self.fetch_piece(mixed).await?;
                    continue;
                }
            };
            let missing: Vec<Job> = {
                let state = self.state.lock();
                jobs.into_iter().filter(|job| !state.is_done(job)).collect()
            };
            if missing.iter().any(|job| self.state.lock().away.contains(&job.number)) {
                return Err(WriteError::Lost);
            }
            let zeros = missing.iter().filter(|job| job.source == Source::Zeros).map(|job| job.range.len()).max();
            if let Some(len) = zeros
                && !self.prepare_zeros(len).await?
            {
                continue;
            }
            // All of them run to their end: one that was dropped half-way would count as on its way for ever.
            let sent = join_all(missing.iter().map(|job| self.run(job))).await;
            sent.into_iter().collect::<Result<(), _>>()?;
            let state = self.state.lock();
            // While writes are still let in, one round is enough: the next one comes behind the gate.
            if !state.gated || missing.iter().all(|job| state.is_done(job)) {
                return Ok(());
            }
        }
    }

    async fn run(self: &Arc<Self>, job: &Job) -> Result<(), WriteError> {
        match job.source {
            Source::Local => self.send_part(job.number).await,
            _ => self.send_other(job).await,
        }
    }

    /// Brings what is no part of the plan to the service: a copy, or a slice of a part.
    async fn send_other(&self, job: &Job) -> Result<(), WriteError> {
        // One thing at a time under one number: which of two came last, nobody could tell.
        let work = self.wait_until(|state| state.take_other(job, &self.engine)).await;
        let Some((transfer, from)) = work else { return Err(WriteError::Retired) };
        let sent = match from {
            From::Copy(base, range) => transfer.copy_part(job.number, &base.key, range, &base.etag).await,
            From::Slice(generation, body) => transfer.send_part(job.number, generation, body).await,
        };
        let owned = {
            let mut state = self.state.lock();
            let owned = state.owns(&transfer);
            if owned {
                state.copying.remove(&job.number);
                if let Ok(outcome) = &sent {
                    state.note_other(job, outcome.clone());
                }
            }
            owned
        };
        self.changed.notify_waiters();
        if !owned {
            transfer.abort().await;
            return Ok(());
        }
        match sent {
            Err(error) if error.kind == ErrorKind::NoSuchUpload => Err(self.lost_upload(&transfer, error)),
            Err(error) if job.source == Source::Base => Err(stale_if_changed(error)),
            Err(error) if job.source == Source::Zeros => {
                self.state.lock().zeros = None;
                Err(error.into())
            }
            other => Ok(other.map(drop)?),
        }
    }

    /// Sends a part as it is now, unless that was done; waits where it is on its way.
    pub(super) async fn send_part(self: &Arc<Self>, number: PartNumber) -> Result<(), WriteError> {
        let work = interruptible(self.wait_until(|state| state.take_part(number, &self.engine))).await?;
        let Some((generation, transfer, body)) = work else { return Ok(()) };
        crash::point("part-taken");
        let sent = transfer.send_part(number, generation, body).await;
        let result = {
            let mut state = self.state.lock();
            state.owns(&transfer).then(|| state.note_part(number, generation, sent))
        };
        self.changed.notify_waiters();
        if let Some(Ok(())) = &result {
            self.note_when_stable(transfer.clone(), number, generation);
        }
        self.engine.spill().gauge().nudge();
        let Some(result) = result else {
            // Given up meanwhile. This part may have begun the upload, or landed, after that was aborted.
            transfer.abort().await;
            return Ok(());
        };
        match result {
            Err(error) if error.kind == ErrorKind::NoSuchUpload => Err(self.lost_upload(&transfer, error)),
            other => Ok(other?),
        }
    }

    /// An upload that vanished is begun anew by whoever tries again.
    pub(super) fn lost_upload(&self, transfer: &Arc<Transfer>, error: crate::oss::Error) -> WriteError {
        if !self.state.lock().away.is_empty() {
            log::error!("{error}");
            return WriteError::Lost;
        }
        log::warn!("{error}; the upload is begun anew");
        self.forget_upload(transfer);
        error.into()
    }
}

/// Where the bytes of a copy or a slice are.
enum From {
    Copy(Base, ByteRange),
    Slice(u64, SpillBody),
}

impl State {
    /// The work of [`DirtyFile::send_other`]: `None` while something else is on its way under the number.
    fn take_other(&mut self, job: &Job, engine: &super::WriteEngine) -> Option<Option<(Arc<Transfer>, From)>> {
        let busy = self.parts.get(&job.number).is_some_and(|part| part.sending.is_some());
        if self.retired.is_some() || self.ended {
            return Some(None);
        }
        if busy || self.copying.contains(&job.number) {
            return None;
        }
        let from = match job.source {
            Source::Base => self.record.base.clone().map(|base| From::Copy(base, job.range)),
            Source::Zeros => self.zeros.clone().map(|zeros| From::Copy(zeros, ByteRange::new(0, job.range.len()))),
            Source::Slice(generation) => {
                Some(From::Slice(generation, SpillBody::new(self.dir.clone(), self.record.piece_size, job.range)))
            }
            Source::Local => None,
        };
        let Some((from, transfer)) = from.zip(self.transfer(engine)) else { return Some(None) };
        self.copying.insert(job.number);
        Some(Some((transfer, from)))
    }

    fn note_part(
        &mut self,
        number: PartNumber,
        generation: u64,
        sent: Result<PartOutcome, crate::oss::Error>,
    ) -> Result<(), crate::oss::Error> {
        let part = self.parts.entry(number).or_default();
        part.sending = None;
        part.sent = Some((generation, sent?));
        self.others.remove(&number);
        Ok(())
    }

    fn note_other(&mut self, job: &Job, mut outcome: PartOutcome) {
        if job.source == Source::Zeros {
            outcome.crc64 = Some(crc64::zeros(job.range.len()));
        }
        if let Some(part) = self.parts.get_mut(&job.number) {
            part.sent = None;
        }
        self.others.insert(job.number, Other { range: job.range, source: job.source, outcome });
    }

    /// The work of sending a part: `None` while it is on its way, `Some(None)` where nothing is to be done.
    fn take_part(
        &mut self,
        number: PartNumber,
        engine: &super::WriteEngine,
    ) -> Option<Option<(u64, Arc<Transfer>, SpillBody)>> {
        let Some(range) = self.plan.part_range(number) else { return Some(None) };
        let range = range.intersect(&ByteRange::new(0, self.size));
        if self.retired.is_some() || self.ended || self.resuming {
            return Some(None);
        }
        if self.copying.contains(&number) || self.parts.entry(number).or_default().sending.is_some() {
            return None;
        }
        let Some(generation) = self.due(number, range.len()).filter(|_| !range.is_empty()) else { return Some(None) };
        let Some(transfer) = self.transfer(engine) else { return Some(None) };
        self.parts.entry(number).or_default().sending = Some(generation);
        let body = SpillBody::new(self.dir.clone(), self.record.piece_size, range);
        Some(Some((generation, transfer, body)))
    }
}
