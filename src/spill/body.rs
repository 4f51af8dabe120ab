//! A run of a session's bytes as something to be sent: read from the spill files when it is wanted, in chunks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::SessionDir;
use crate::base::ByteRange;
use crate::base::crc64::{Crc64, combine, zeros};

/// How much is read at a time: large enough that calls are few, small enough to stay in the cache.
const CHUNK: u64 = 256 << 10;

/// Bytes of a session in a range of the file. Where no spill file stands, or it ends early, they are zeros.
#[derive(Debug, Clone)]
pub struct SpillBody {
    /// Without a folder all is zeros.
    dir: Option<Arc<SessionDir>>,
    piece_size: u64,
    range: ByteRange,
}

impl SpillBody {
    pub fn new(dir: Option<Arc<SessionDir>>, piece_size: u64, range: ByteRange) -> Self {
        Self { dir, piece_size, range }
    }

    /// Bytes in the run.
    pub fn len(&self) -> u64 {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The CRC64 of the run; reads all of it that lies in spill files.
    pub fn crc64(&self) -> io::Result<u64> {
        let mut whole = 0;
        let mut at = self.range.start;
        while at < self.range.end {
            let index = at / self.piece_size;
            let within = at % self.piece_size;
            let len = (self.range.end - at).min(self.piece_size - within);
            let file = self.dir.as_ref().map(|dir| open_if_there(dir, index)).transpose()?.flatten();
            let held = match &file {
                Some(file) => file.metadata()?.len().saturating_sub(within).min(len),
                None => 0,
            };
            let mut crc = Crc64::new();
            let part = Self { range: ByteRange::at(at, held), ..self.clone() };
            for chunk in part.reader() {
                crc.update(&chunk?);
            }
            whole = combine(whole, crc.value(), held);
            whole = combine(whole, zeros(len - held), len - held);
            at += len;
        }
        Ok(whole)
    }

    /// A reader from the start. Its chunks never cross a piece.
    pub fn reader(&self) -> SpillReader {
        SpillReader { body: self.clone(), at: self.range.start, open: None }
    }
}

/// Reads a [`SpillBody`] chunk by chunk.
#[derive(Debug)]
pub struct SpillReader {
    body: SpillBody,
    at: u64,
    open: Option<(u64, Option<File>)>,
}

impl Iterator for SpillReader {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        let rest = self.body.range.end - self.at;
        if rest == 0 {
            return None;
        }
        let chunk = self.read_chunk(rest);
        match &chunk {
            Ok(bytes) => self.at += bytes.len() as u64,
            Err(_) => self.at = self.body.range.end,
        }
        Some(chunk)
    }
}

impl SpillReader {
    fn read_chunk(&mut self, rest: u64) -> io::Result<Bytes> {
        let index = self.at / self.body.piece_size;
        let within = self.at % self.body.piece_size;
        let want = rest.min(CHUNK).min(self.body.piece_size - within) as usize;
        if self.open.as_ref().is_none_or(|(open, _)| *open != index) {
            let file = self.body.dir.as_ref().map(|dir| open_if_there(dir, index)).transpose()?.flatten();
            self.open = Some((index, file));
        }
        let mut buffer = BytesMut::zeroed(want);
        if let Some((_, Some(file))) = &self.open {
            read_or_zeros(file, within, &mut buffer)?;
        }
        Ok(buffer.freeze())
    }
}

fn open_if_there(dir: &SessionDir, index: u64) -> io::Result<Option<File>> {
    match File::open(dir.piece_path(index)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.path().exists() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fills `buffer` from `offset` on; what lies past the end of the file stays zero.
fn read_or_zeros(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ObjectKey, SessionId};
    use crate::spill::{Layout, LockedFolder, SessionRecord, SpillStore};

    #[test]
    fn pieces_and_holes_read_as_one_run() {
        let temp = tempfile::tempdir().unwrap();
        let folder = LockedFolder::lock(Layout::new(temp.path()), "test").unwrap();
        let record = SessionRecord::new(SessionId::generate(1), ObjectKey::parse("k").unwrap(), 10, None);
        let dir = Arc::new(SpillStore::open(&folder).create(&record).unwrap());
        dir.open_piece(0, true).unwrap().write_all_at(b"0123456789", 0).unwrap();
        dir.open_piece(2, true).unwrap().write_all_at(b"abc", 0).unwrap();
        let body = SpillBody::new(Some(dir), 10, ByteRange::new(5, 28));
        let bytes: Vec<u8> = body.reader().flat_map(Result::unwrap).collect();
        assert_eq!(bytes, b"56789\0\0\0\0\0\0\0\0\0\0abc\0\0\0\0\0");
        assert_eq!(bytes.len() as u64, body.len());
        assert_eq!(body.crc64().unwrap(), crate::base::crc64::checksum(&bytes));
    }
}
