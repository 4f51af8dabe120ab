//! Making a piece of the base local, so that part of it can be changed.

use std::os::unix::fs::FileExt;

use futures_util::StreamExt;

use super::WriteError;
use super::file::DirtyFile;
use super::jobs::Source;
use super::state::Piece;
use crate::base::caller::{interruptible, wait};
use crate::base::crc64::{self, Crc64};
use crate::base::{ByteRange, PartNumber, crash};
use crate::oss::{self, ErrorKind, GetOptions, Operation, Outcome};
use crate::spill::{Base, Filling, SessionDir, SpillError};
use crate::upload::PartOutcome;

impl DirtyFile {
    /// Fetches what the base holds of a piece into its spill file. The file takes its name only when whole.
    ///
    /// # Errors
    /// `Stale` where the object is no longer the base.
    pub(super) async fn fetch_piece(&self, index: u64) -> Result<(), WriteError> {
        let _one = wait(self.fetching.lock()).await?;
        let Some((base, range, start)) = self.to_fetch(index) else { return Ok(()) };
        let dir = {
            let _structure = self.structure.lock();
            self.ensure_dir()?
        };
        let sum = match self.download_checked(&base, range, start, &dir, index).await {
            // Our own rename has overtaken it: whoever asked comes back, and finds the object at its new name.
            Err(WriteError::Stale) if self.base().as_ref() != Some(&base) => return Ok(()),
            other => other?,
        };

        let _structure = self.structure.lock();
        // A truncation may have come between: what it took must not come back.
        let left = {
            let state = self.state.lock();
            if state.ended || state.retired.is_some() {
                return Err(WriteError::Retired);
            }
            state.remote(index).len()
        };
        if left == 0 {
            return Ok(());
        }
        crash::point("piece-fetched");
        dir.install_piece(index, Filling::Fetched)?;
        if left < range.len() {
            let path = dir.piece_path(index);
            let cut = dir.open_piece(index, false)?.set_len(left);
            cut.map_err(|source| SpillError::Io { path, source })?;
        }
        let mut state = self.state.lock();
        state.base_seen = Some(std::time::Instant::now());
        state.fetched.insert(index, (range, sum));
        state.add_piece(index, Piece { len: left, unsynced: true, ..Piece::default() });
        Ok(())
    }

    /// The base, the bytes of it that a piece still needs, and where the piece begins.
    fn to_fetch(&self, index: u64) -> Option<(Base, ByteRange, u64)> {
        let state = self.state.lock();
        let range = state.remote(index);
        let base = state.record.base.clone().filter(|_| !range.is_empty())?;
        Some((base, range, state.plan.piece_range(index).start))
    }

    /// Fetches a range; where it is all of the base it must have the base's sum, if need be at the second try.
    async fn download_checked(
        &self,
        base: &Base,
        range: ByteRange,
        piece_start: u64,
        dir: &SessionDir,
        index: u64,
    ) -> Result<u64, WriteError> {
        let is_right = |sum| range.len() != base.size || base.crc64.is_none_or(|told| told == sum);
        let sum = self.download(base, range, piece_start, dir, index).await?;
        if is_right(sum) {
            return Ok(sum);
        }
        log::warn!("{}: what was fetched has not the CRC64 of the object; fetched again", base.key);
        let sum = self.download(base, range, piece_start, dir, index).await?;
        if is_right(sum) { Ok(sum) } else { Err(corrupt_base(base)) }
    }

    /// What was fetched of the base and what is copied of it must together have its sum, where both are all of it:
    /// a broken byte must not be published under a sum that holds. `parts` are those of the object to be.
    ///
    /// # Errors
    /// `Corrupt`: nothing is published.
    pub(super) fn check_fetched(&self, parts: &[(PartNumber, PartOutcome)]) -> Result<(), WriteError> {
        let state = self.state.lock();
        let (Some(base), Ok(jobs)) = (&state.record.base, state.jobs()) else { return Ok(()) };
        let Some(told) = base.crc64.filter(|_| !state.fetched.is_empty()) else { return Ok(()) };
        let copied = jobs.iter().zip(parts).filter(|(job, _)| job.source == Source::Base);
        let copied = copied.filter_map(|(job, (_, part))| Some((job.range, part.crc64?)));
        let mut runs: Vec<(ByteRange, u64)> = copied.chain(state.fetched.values().copied()).collect();
        runs.sort_by_key(|(range, _)| range.start);
        let mut whole = Some((0, 0));
        for (range, sum) in runs {
            whole = whole.filter(|(end, _)| *end == range.start);
            whole = whole.map(|(_, crc)| (range.end, crc64::combine(crc, sum, range.len())));
        }
        match whole {
            Some((end, crc)) if end == base.size && crc != told => Err(corrupt_base(base)),
            _ => Ok(()),
        }
    }

    /// Fetches a range; returns the CRC64 of what came.
    async fn download(
        &self,
        base: &Base,
        range: ByteRange,
        piece_start: u64,
        dir: &SessionDir,
        index: u64,
    ) -> Result<u64, WriteError> {
        let mut crc = Crc64::new();
        const TRIES: u32 = 4;
        let file = dir.begin_piece(index, Filling::Fetched)?;
        let mut at = range.start;
        let mut tries = 0;
        while at < range.end {
            let options = GetOptions {
                range: Some(ByteRange::new(at, range.end)),
                if_match: Some(base.etag.clone()),
                ..GetOptions::default()
            };
            let client = self.engine.0.upload.client();
            let mut reply = client.get_object(&base.key, &options).await.map_err(stale_if_changed)?;
            while let Some(chunk) = interruptible(reply.body.next()).await? {
                let bytes = match chunk {
                    Ok(bytes) => bytes,
                    // The head was retried by the client; a broken body goes on from where it broke.
                    Err(error) if tries + 1 < TRIES => {
                        log::debug!("{error}; going on at {at}");
                        tries += 1;
                        break;
                    }
                    Err(error) => return Err(error.into()),
                };
                let path = dir.piece_path(index);
                file.write_all_at(&bytes, at - piece_start).map_err(|source| SpillError::Io { path, source })?;
                crc.update(&bytes);
                at += bytes.len() as u64;
                crash::point("piece-half-fetched");
            }
        }
        Ok(crc.value())
    }
}

fn corrupt_base(base: &Base) -> WriteError {
    let message = "what was fetched of the object has not its CRC64";
    let (operation, outcome) = (Operation::GetObject, Outcome::NotApplied);
    oss::Error::local(operation, base.key.as_str(), ErrorKind::Corrupt, outcome, message).into()
}

/// A base that was replaced or deleted by another client.
pub(super) fn stale_if_changed(error: crate::oss::Error) -> WriteError {
    match error.kind {
        ErrorKind::PreconditionFailed | ErrorKind::NoSuchKey => {
            log::warn!("{error}");
            WriteError::Stale
        }
        _ => WriteError::Oss(error),
    }
}
