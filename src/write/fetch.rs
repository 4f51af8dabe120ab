//! Making a piece of the base local, so that part of it can be changed.

use std::os::unix::fs::FileExt;

use futures_util::StreamExt;

use super::WriteError;
use super::file::DirtyFile;
use super::state::Piece;
use crate::base::ByteRange;
use crate::oss::{ErrorKind, GetOptions};
use crate::spill::{Base, Filling, SessionDir, SpillError};

impl DirtyFile {
    /// Fetches what the base holds of a piece into its spill file. The file takes its name only when whole.
    ///
    /// # Errors
    /// `Stale` where the object is no longer the base.
    pub(super) async fn fetch_piece(&self, index: u64) -> Result<(), WriteError> {
        let _one = self.fetching.lock().await;
        let Some((base, range, start)) = self.to_fetch(index) else { return Ok(()) };
        let dir = {
            let _structure = self.structure.lock();
            self.ensure_dir()?
        };
        match self.download(&base, range, start, &dir, index).await {
            // Our own rename has overtaken it: whoever asked comes back, and finds the object at its new name.
            Err(WriteError::Stale) if self.base().as_ref() != Some(&base) => return Ok(()),
            other => other?,
        }

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
        dir.install_piece(index, Filling::Fetched)?;
        if left < range.len() {
            let path = dir.piece_path(index);
            let cut = dir.open_piece(index, false)?.set_len(left);
            cut.map_err(|source| SpillError::Io { path, source })?;
        }
        let mut state = self.state.lock();
        state.base_seen = Some(std::time::Instant::now());
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

    async fn download(
        &self,
        base: &Base,
        range: ByteRange,
        piece_start: u64,
        dir: &SessionDir,
        index: u64,
    ) -> Result<(), WriteError> {
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
            while let Some(chunk) = reply.body.next().await {
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
                at += bytes.len() as u64;
            }
        }
        Ok(())
    }
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
