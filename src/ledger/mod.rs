//! The ledger: what the kernel was told, kept where it survives the death of the process that told it.
//!
//! A file that is appended to with plain writes, before the answer that tells the kernel; no fsync, as it is worth
//! nothing once the kernel's connection is gone. Tied to that connection: another one begins it anew. Knows numbers,
//! names and versions; what they mean is the business of the vfs. A ledger that cannot be read never stops a mount:
//! what it does not tell is answered ESTALE.

mod record;
mod table;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

pub use record::{Effect, HowRecord, KeptRecord, ObjectRecord, Record, RequestState, VersionRecord};
pub use table::{DirState, HandleState, InodeState, Table};

use crate::base::crc64;

const MAGIC: &[u8; 4] = b"OSFL";
/// The version of the format; one of another version is not read.
pub const VERSION: u8 = 1;
/// Magic, version, three zeros, the connection.
const HEAD: usize = 16;
/// Length and sum before the records of a frame.
const FRAME_HEAD: usize = 8;
/// A ledger is put together anew when it is longer than this, and than four times what that came to the last time.
const COMPACT_MIN: u64 = 16 << 20;
/// Records are put together in frames of about this size.
const FRAME_BYTES: usize = 64 << 10;

/// Appends to the ledger of a mount.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Records that are not in the file yet.
    pending: Mutex<Vec<u8>>,
    sink: Option<Arc<Mutex<Sink>>>,
}

#[derive(Debug)]
struct Sink {
    path: PathBuf,
    connection: u64,
    file: File,
    len: u64,
    /// Length after it was last put together.
    compact: u64,
    compacting: bool,
    /// A write has failed: what comes after it could not be read.
    broken: bool,
}

impl Ledger {
    /// Keeps nothing: for a mount that ends with its process.
    pub fn none() -> Self {
        Self::default()
    }

    /// Opens the ledger of a connection, and tells what it comes to. One of another connection, or one that cannot
    /// be read, is begun anew; whatever stands in front of damage is taken.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path, connection: u64) -> io::Result<(Self, Table)> {
        let mut file = private().read(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut table = Table::default();
        let mut len = 0;
        if bytes.get(..HEAD) == Some(&head(connection)[..]) {
            len = HEAD + read_frames(&bytes[HEAD..], &mut table);
            if len < bytes.len() {
                log::warn!("{}: {} bytes at its end were not written whole", path.display(), bytes.len() - len);
            }
        } else if bytes.get(8..HEAD) == Some(&connection.to_le_bytes()[..]) || (bytes.len() > HEAD && !is_ours(&bytes))
        {
            log::error!("{}: cannot be read; what was open answers ESTALE", path.display());
        }
        if len == 0 {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&head(connection))?;
            len = HEAD;
        }
        file.set_len(len as u64)?;
        file.seek(SeekFrom::Start(len as u64))?;
        let (path, len) = (path.to_owned(), len as u64);
        let sink = Sink { path, connection, file, len, compact: 0, compacting: false, broken: false };
        let sink = Some(Arc::new(Mutex::new(sink)));
        Ok((Self { pending: Mutex::default(), sink }, table))
    }

    /// Takes a record; it is in the file when [`Self::commit`] returns.
    pub fn note(&self, record: &Record) {
        if self.sink.is_some() {
            encode(record, &mut self.pending.lock());
        }
    }

    /// Writes what was noted. Every answer to the kernel comes after this.
    pub fn commit(&self) {
        let Some(sink) = &self.sink else { return };
        // Taken first: what another thread is writing was noted before, and must be in the file too.
        let mut locked = sink.lock();
        let payload = std::mem::take(&mut *self.pending.lock());
        if payload.is_empty() {
            return;
        }
        locked.append(&payload);
        if locked.is_overgrown() {
            locked.compacting = true;
            let (sink, failed) = (sink.clone(), "the ledger cannot be put together anew");
            let work = move || {
                let done = compact(&sink);
                sink.lock().compacting = false;
                if let Err(error) = done {
                    log::warn!("{failed}: {error}");
                }
            };
            if let Err(error) = std::thread::Builder::new().name("ledger".into()).spawn(work) {
                locked.compacting = false;
                log::warn!("{failed}: {error}");
            }
        }
    }
}

impl Sink {
    fn append(&mut self, payload: &[u8]) {
        if self.broken {
            return;
        }
        match self.file.write_all(&frame(payload)) {
            Ok(()) => self.len += (FRAME_HEAD + payload.len()) as u64,
            Err(error) => {
                self.broken = true;
                log::error!("{}: {error}; a crash would be seen by those who have files open", self.path.display());
                // What it tells is not true for long: better nothing, which is answered ESTALE.
                if let Err(error) = self.file.set_len(HEAD as u64) {
                    log::error!("{}: {error}", self.path.display());
                }
            }
        }
    }

    fn is_overgrown(&self) -> bool {
        !self.compacting && !self.broken && self.len > COMPACT_MIN.max(4 * self.compact)
    }
}

/// Writes a ledger that comes to the same in fewer records, beside the old one; what is appended meanwhile is taken
/// along when it takes its place.
fn compact(sink: &Mutex<Sink>) -> io::Result<()> {
    let (path, connection, upto) = {
        let sink = sink.lock();
        (sink.path.clone(), sink.connection, sink.len)
    };
    let mut old = File::open(&path)?;
    let mut bytes = vec![0; upto as usize];
    old.read_exact(&mut bytes)?;
    let mut table = Table::default();
    read_frames(&bytes[HEAD..], &mut table);
    drop(bytes);
    let temp = path.with_extension("tmp");
    let mut file = private().read(true).create(true).truncate(true).open(&temp)?;
    let mut len = HEAD as u64;
    file.write_all(&head(connection))?;
    let mut payload = Vec::with_capacity(FRAME_BYTES * 2);
    for record in table.records() {
        encode(&record, &mut payload);
        if payload.len() >= FRAME_BYTES {
            file.write_all(&frame(&payload))?;
            len += (FRAME_HEAD + payload.len()) as u64;
            payload.clear();
        }
    }
    file.write_all(&frame(&payload))?;
    len += (FRAME_HEAD + payload.len()) as u64;
    let mut sink = sink.lock();
    if sink.broken {
        return Ok(());
    }
    let mut rest = Vec::new();
    old.read_to_end(&mut rest)?;
    file.write_all(&rest)?;
    std::fs::rename(&temp, &path)?;
    (sink.compact, sink.len, sink.file) = (len, len + rest.len() as u64, file);
    Ok(())
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn head(connection: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(MAGIC);
    head[4] = VERSION;
    head[8..].copy_from_slice(&connection.to_le_bytes());
    head
}

fn is_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

fn encode(record: &Record, into: &mut Vec<u8>) {
    bincode::serde::encode_into_std_write(record, into, bincode::config::standard())
        .expect("plain values always encode into memory");
}

/// Length and CRC-64 (its low half) of the records, then the records.
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME_HEAD + payload.len());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&(crc64::checksum(payload) as u32).to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// Takes the records of all frames that are whole; how many bytes these are.
fn read_frames(bytes: &[u8], table: &mut Table) -> usize {
    let mut at = 0;
    while let Some(payload) = whole_frame(&bytes[at..]) {
        let Some(records) = decode(payload) else { break };
        records.into_iter().for_each(|record| table.apply(record));
        at += FRAME_HEAD + payload.len();
    }
    at
}

fn whole_frame(bytes: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (len, sum) = (number(0)? as usize, number(4)?);
    let payload = bytes.get(FRAME_HEAD..FRAME_HEAD.checked_add(len)?)?;
    (crc64::checksum(payload) as u32 == sum).then_some(payload)
}

fn decode(mut payload: &[u8]) -> Option<Vec<Record>> {
    let config = bincode::config::standard().with_limit::<{ 1 << 28 }>();
    let mut records = Vec::new();
    while !payload.is_empty() {
        let (record, read) = bincode::serde::decode_from_slice(payload, config).ok()?;
        records.push(record);
        payload = &payload[read..];
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn placed(ino: u64) -> Record {
        Record::Placed { ino, parent: 1, name: format!("file-{ino}").into(), kind: 0o100_000 }
    }

    #[test]
    fn what_was_committed_is_there_after_a_kill_and_gone_with_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (ledger, table) = Ledger::open(&path, 7).unwrap();
        assert_eq!(table, Table::default());
        ledger.note(&placed(2));
        ledger.commit();
        ledger.note(&placed(3));
        drop(ledger);
        let (ledger, table) = Ledger::open(&path, 7).unwrap();
        assert_eq!(table.inodes.keys().collect::<Vec<_>>(), [&2]);
        ledger.note(&placed(4));
        ledger.commit();
        assert_eq!(Ledger::open(&path, 7).unwrap().1.inodes.len(), 2);
        assert_eq!(Ledger::open(&path, 8).unwrap().1, Table::default());
        assert_eq!(Ledger::open(&path, 7).unwrap().1, Table::default());
    }

    #[test]
    fn a_torn_end_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (ledger, _) = Ledger::open(&path, 7).unwrap();
        for ino in 2..5 {
            ledger.note(&placed(ino));
            ledger.commit();
        }
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (ledger, table) = Ledger::open(&path, 7).unwrap();
            assert!(table.inodes.len() < 3);
            ledger.note(&placed(9));
            ledger.commit();
            assert!(Ledger::open(&path, 7).unwrap().1.inodes.contains_key(&9), "cut at {cut}");
        }
    }

    #[test]
    fn putting_it_together_anew_loses_nothing_that_comes_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (ledger, _) = Ledger::open(&path, 7).unwrap();
        for ino in 2..1000 {
            ledger.note(&placed(ino));
            ledger.note(&Record::Dropped { ino: ino - 1 });
            ledger.commit();
        }
        let before = std::fs::metadata(&path).unwrap().len();
        compact(ledger.sink.as_ref().unwrap()).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < before / 100);
        ledger.note(&placed(5000));
        ledger.commit();
        let table = Ledger::open(&path, 7).unwrap().1;
        let mut inos: Vec<u64> = table.inodes.into_keys().collect();
        inos.sort_unstable();
        assert_eq!(inos, [999, 5000]);
    }

    /// What lies on the disk at some instant is what a kill would leave: it is looked at again and again, while one
    /// thread writes and another puts the ledger together anew.
    #[test]
    fn a_kill_at_any_moment_loses_nothing_that_was_committed() {
        use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (path, left) = (dir.path().join("ledger"), dir.path().join("left"));
        let (ledger, _) = Ledger::open(&path, 7).unwrap();
        let (committed, done) = (AtomicU64::new(1), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    compact(ledger.sink.as_ref().unwrap()).unwrap();
                }
            });
            scope.spawn(|| {
                for ino in 2..20_000 {
                    ledger.note(&placed(ino));
                    if ino > 50 {
                        ledger.note(&Record::Dropped { ino: ino - 50 });
                    }
                    ledger.commit();
                    committed.store(ino, Ordering::Release);
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                let before = committed.load(Ordering::Acquire);
                std::fs::copy(&path, &left).unwrap();
                // A file that was being put together lies beside it, and is nobody's.
                let table = Ledger::open(&left, 7).unwrap().1;
                let last = table.inodes.keys().max().copied().unwrap_or(1);
                assert!(last >= before, "{last} < {before}");
                let all = |first: u64| (first.max(2)..=last).all(|ino| table.inodes.contains_key(&ino));
                assert!(all(last.saturating_sub(40)), "up to {last}");
            }
        });
    }

    #[test]
    fn another_version_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        for version in [0, VERSION + 1, u8::MAX] {
            let (ledger, _) = Ledger::open(&path, 7).unwrap();
            ledger.note(&placed(2));
            ledger.commit();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[4] = version;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(Ledger::open(&path, 7).unwrap().1, Table::default(), "{version}");
            assert_eq!(std::fs::read(&path).unwrap(), head(7), "of the own version again");
        }
    }

    /// What it costs is told by a benchmark; here only that a record is small.
    #[test]
    fn an_inode_is_less_than_two_hundred_bytes() {
        let mut bytes = Vec::new();
        let (ino, parent) = (5 << 40, 7 << 40);
        encode(&Record::Placed { ino, parent, name: "n".repeat(64).into(), kind: 0o100_000 }, &mut bytes);
        encode(&Record::Told { ino, unique: u64::MAX >> 1 }, &mut bytes);
        assert!(frame(&bytes).len() < 200, "{}", bytes.len());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut table = Table::default();
            prop_assert!(read_frames(&bytes, &mut table) <= bytes.len());
            drop(decode(&bytes));
        }
    }
}
