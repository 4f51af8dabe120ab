//! What `recover export` does: the bytes of a session into a file of the user's.
//!
//! Reads only. What of an edited object is not local comes from the bucket, from the very version that was edited.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;

use super::recover::{RecoverError, quarantined};
use crate::base::ByteRange;
use crate::oss::{Client, ErrorKind, GetOptions};
use crate::spill::{Layout, SessionRecord, read_only_scan};

/// A session's bytes, as they lie on the disk.
#[derive(Debug)]
pub struct Exported {
    folder: PathBuf,
    record: Option<SessionRecord>,
    /// Index and length of the spill files, ascending.
    pieces: Vec<(u64, u64)>,
}

impl Exported {
    /// Finds a session or what was set aside under this name.
    ///
    /// # Errors
    /// There is none, or the folder cannot be read.
    pub fn find(state_folder: &Path, id: &str) -> Result<Self, RecoverError> {
        let layout = Layout::new(state_folder);
        let found = read_only_scan(&layout)?.into_iter().find(|found| found.dir.id().to_string() == id);
        let (folder, record) = match found {
            Some(found) => (found.dir.path().to_owned(), found.record.ok().flatten()),
            None => {
                let folder = quarantined(&layout, id).ok_or(RecoverError::Unknown)?;
                let record = fs::read(folder.join("session")).ok();
                let record = record.and_then(|bytes| SessionRecord::decode(&bytes).ok());
                (folder, record)
            }
        };
        let pieces = if folder.is_dir() { pieces_in(&folder)? } else { Vec::new() };
        Ok(Self { folder, record, pieces })
    }

    /// Whether some of its bytes must come from the bucket.
    pub fn needs_service(&self) -> bool {
        !self.remote().is_empty()
    }

    /// Bytes of a piece. Without a session file the longest spill file tells: all but the last are full.
    fn piece_size(&self) -> u64 {
        let longest = self.pieces.iter().map(|(_, len)| *len).max().unwrap_or(0);
        self.record.as_ref().map_or(longest, |record| record.piece_size).max(1)
    }

    fn size(&self) -> u64 {
        let filled = self.pieces.iter().filter(|(_, len)| *len > 0);
        let shown = filled.map(|(index, len)| index * self.piece_size() + len).max().unwrap_or(0);
        let Some(record) = &self.record else { return shown };
        record.size.unwrap_or(shown.max(record.base_valid).max(record.extent))
    }

    /// What of the file is in the bucket alone.
    fn remote(&self) -> Vec<ByteRange> {
        let Some(record) = &self.record else { return Vec::new() };
        let (size, valid) = (self.piece_size(), record.base_valid.min(self.size()));
        let is_local = |index: u64| self.pieces.binary_search_by_key(&index, |(index, _)| *index).is_ok();
        let missing = (0..valid.div_ceil(size)).filter(|index| !is_local(*index));
        missing.map(|index| ByteRange::new(index * size, ((index + 1) * size).min(valid))).collect()
    }

    /// Writes the bytes to a new file, which is its owner's alone.
    ///
    /// # Errors
    /// `file` is there already or cannot be written, or what is in the bucket cannot be had: `file` is gone then.
    /// What is in parts of an unfinished upload alone cannot be read by anybody: `InUpload`.
    pub async fn write_to(&self, file: &Path, client: Option<&Client>) -> Result<u64, RecoverError> {
        if self.record.as_ref().is_some_and(|record| record.upload.is_some()) {
            return Err(RecoverError::InUpload);
        }
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        let written = self.fill(&mut out, client).await;
        if written.is_err()
            && let Err(error) = fs::remove_file(file)
        {
            log::warn!("{}: {error}", file.display());
        }
        written
    }

    async fn fill(&self, out: &mut File, client: Option<&Client>) -> Result<u64, RecoverError> {
        if self.folder.is_file() {
            return Ok(io::copy(&mut File::open(&self.folder)?, out)?);
        }
        for (index, _) in &self.pieces {
            out.seek(SeekFrom::Start(index * self.piece_size()))?;
            io::copy(&mut File::open(self.folder.join(format!("{index:06}")))?, out)?;
        }
        for range in self.remote() {
            self.fetch(out, range, client).await?;
        }
        out.set_len(self.size())?;
        out.sync_all()?;
        Ok(self.size())
    }

    async fn fetch(&self, out: &mut File, range: ByteRange, client: Option<&Client>) -> Result<(), RecoverError> {
        let (Some(client), Some(base)) = (client, self.record.as_ref().and_then(|record| record.base.as_ref())) else {
            return Err(RecoverError::BaseGone);
        };
        let options = GetOptions { range: Some(range), if_match: Some(base.etag.clone()), if_none_match: None };
        let mut reply = client.get_object(&base.key, &options).await.map_err(|error| match error.kind {
            ErrorKind::NoSuchKey | ErrorKind::PreconditionFailed => RecoverError::BaseGone,
            _ => error.into(),
        })?;
        out.seek(SeekFrom::Start(range.start))?;
        while let Some(chunk) = reply.body.next().await {
            out.write_all(&chunk?)?;
        }
        Ok(())
    }
}

fn pieces_in(folder: &Path) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(index) = name.to_str().filter(|name| name.len() >= 6).and_then(|name| name.parse().ok()) else {
            continue;
        };
        found.push((index, entry.metadata()?.len()));
    }
    found.sort_unstable();
    Ok(found)
}
