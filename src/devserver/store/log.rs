//! The log: one JSON record a line, appended as things change and replayed at the start.
//!
//! Knows how records are kept, not what they do. A record counts once its newline is there: a last line without
//! one, cut off by a crash, never happened and is cut away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::object::{ObjectHead, PartHead, UploadHead};
use super::segment::SegmentRef;

/// One change.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Record {
    CreateBucket { bucket: String, created: u64 },
    DeleteBucket { bucket: String },
    Put { bucket: String, key: String, head: ObjectHead, segments: Vec<SegmentRef> },
    Delete { bucket: String, keys: Vec<String> },
    Initiate { bucket: String, key: String, id: String, head: UploadHead },
    Part { bucket: String, key: String, id: String, head: PartHead, segments: Vec<SegmentRef> },
    Abort { bucket: String, key: String, id: String },
    Complete { bucket: String, key: String, id: String, head: ObjectHead, segments: Vec<SegmentRef> },
}

/// The open log.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    records: u64,
    /// Where the last whole record ends.
    end: u64,
}

impl LogFile {
    /// Opens or makes the log and hands each record to `apply` in order.
    ///
    /// Fails on a record that cannot be read, naming its line: better no server than one that forgot things.
    pub(crate) fn open(path: &Path, mut apply: impl FnMut(Record)) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut reader = BufReader::new(&file);
        let (mut records, mut end, mut line) = (0, 0, Vec::new());
        loop {
            line.clear();
            let len = reader.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                break;
            }
            let record = serde_json::from_slice(&line).map_err(|error| {
                let message = format!("{}, line {}: {error}", path.display(), records + 1);
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
            apply(record);
            records += 1;
            end += len as u64;
        }
        file.set_len(end)?;
        (&file).seek(SeekFrom::End(0))?;
        Ok(Self { path: path.into(), file, records, end })
    }

    /// Records in the log, those that others have undone included.
    pub(crate) fn len(&self) -> u64 {
        self.records
    }

    /// Appends a record; one write, so that a crash leaves it whole or torn at the end.
    pub(crate) fn append(&mut self, record: &Record) -> io::Result<()> {
        let line = line(record)?;
        if let Err(error) = self.file.write_all(&line) {
            // Half a record in the middle would make the log unreadable.
            self.file.set_len(self.end)?;
            self.file.seek(SeekFrom::Start(self.end))?;
            return Err(error);
        }
        self.records += 1;
        self.end += line.len() as u64;
        Ok(())
    }

    /// Replaces the log by `records`, which say the same in fewer words.
    pub(crate) fn rewrite(&mut self, records: impl Iterator<Item = Record>) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        let mut buffer = io::BufWriter::new(&mut file);
        let (mut count, mut end) = (0, 0);
        for record in records {
            let line = line(&record)?;
            buffer.write_all(&line)?;
            count += 1;
            end += line.len() as u64;
        }
        buffer.flush()?;
        drop(buffer);
        fs::rename(&fresh, &self.path)?;
        self.file = file;
        (self.records, self.end) = (count, end);
        Ok(())
    }
}

fn line(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        LogFile::open(path, |record| {
            if let Record::DeleteBucket { bucket } = record {
                names.push(bucket);
            }
        })?;
        Ok(names)
    }

    #[test]
    fn a_torn_last_line_is_cut_away_and_a_broken_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path, |_| panic!("empty")).unwrap();
        for bucket in ["a", "b"] {
            log.append(&Record::DeleteBucket { bucket: bucket.into() }).unwrap();
        }
        log.file.write_all(b"{\"op\":\"delete_bu").unwrap();
        assert_eq!(names(&path).unwrap(), ["a", "b"]);

        let mut log = LogFile::open(&path, |_| ()).unwrap();
        log.append(&Record::DeleteBucket { bucket: "c".into() }).unwrap();
        assert_eq!(names(&path).unwrap(), ["a", "b", "c"]);

        log.file.write_all(b"nonsense\n").unwrap();
        assert!(names(&path).unwrap_err().to_string().contains("line 4"));
    }
}
