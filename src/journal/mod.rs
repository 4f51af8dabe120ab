//! The journal of the work: which uploads were begun and which parts of them are done, and how far moves of
//! directories have come.
//!
//! The only module that names sled. Losing its last records costs a repeated part or a ListParts, never a byte:
//! what was promised lies in the session files (`spill`). So a journal that does not open is set aside, not
//! fatal, and records are committed in groups by one thread (sled keeps writes in the process until `flush`).

mod record;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

pub use record::{CopyRecord, PartRecord, UploadRecord};

use crate::base::{PartNumber, SessionId, UploadId, crash};
use record::Versioned;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("journal: {0}")]
    Sled(#[from] sled::Error),
    #[error("journal: {0}")]
    Io(#[from] io::Error),
    #[error("journal: its writer has stopped")]
    Stopped,
}

/// sled's own cache, far below its default of 1 GiB.
const CACHE_BYTES: u64 = 16 << 20;
/// Records that wait are committed together, up to this many.
const GROUP_MAX: usize = 512;

#[derive(Debug)]
enum Change {
    Upload(SessionId, UploadRecord),
    Part(SessionId, PartNumber, PartRecord),
    Forget(SessionId),
    ForgetUpload(SessionId, UploadId),
    Copied(SessionId, Box<str>, CopyRecord),
    ForgetIntent(SessionId),
    /// Only waits for what was queued before it.
    Nothing,
}

#[derive(Debug)]
struct Entry {
    change: Change,
    done: Option<oneshot::Sender<()>>,
}

/// An upload and its parts, as far as the journal knows.
pub type KnownUpload = (UploadRecord, Vec<(PartNumber, PartRecord)>);

/// The open journal. Clones of its handle share one writer.
#[derive(Debug, Clone)]
pub struct Journal {
    trees: Trees,
    queue: Sender<Entry>,
}

#[derive(Debug, Clone)]
struct Trees {
    db: sled::Db,
    sessions: sled::Tree,
    parts: sled::Tree,
    intents: sled::Tree,
    /// Uploads of sessions that have begun another one since, until they are known to be aborted.
    outdated: sled::Tree,
}

/// Ends the writer when the last [`Journal`] is gone, with everything that was queued on disk.
#[derive(Debug)]
pub struct JournalWriter(Option<JoinHandle<()>>);

impl JournalWriter {
    /// Waits for the writer; every [`Journal`] must have been dropped.
    pub fn join(mut self) {
        if let Some(thread) = self.0.take()
            && thread.join().is_err()
        {
            log::error!("the journal's writer panicked");
        }
    }
}

impl Journal {
    /// Opens the journal at `path`; one that does not open is renamed to `journal.broken-N` and begun anew.
    pub fn open(path: &Path) -> Result<(Self, JournalWriter), JournalError> {
        let trees = match Trees::open(path) {
            Ok(trees) => trees,
            Err(error) => {
                let aside = set_aside(path)?;
                log::warn!("{error}; it was set aside as {} and begun anew", aside.display());
                Trees::open(path)?
            }
        };
        let (queue, entries) = channel();
        let writer = trees.clone();
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || writer.commit_all(&entries))?;
        Ok((Self { trees, queue }, JournalWriter(Some(thread))))
    }

    /// Records an upload id; durable against a kill of the process when this returns.
    pub async fn begin_upload(&self, session: SessionId, record: UploadRecord) -> Result<(), JournalError> {
        let (done, committed) = oneshot::channel();
        self.send(Change::Upload(session, record), Some(done))?;
        committed.await.map_err(|_| JournalError::Stopped)
    }

    /// Records a part that the service has; it is committed with the next group.
    pub fn part_done(&self, session: SessionId, number: PartNumber, record: PartRecord) -> Result<(), JournalError> {
        self.send(Change::Part(session, number, record), None)
    }

    /// Forgets an upload of a session, unless the session has begun another since.
    pub fn forget_upload(&self, session: SessionId, upload: UploadId) -> Result<(), JournalError> {
        self.send(Change::ForgetUpload(session, upload), None)
    }

    /// Forgets all about a session.
    pub fn forget(&self, session: SessionId) -> Result<(), JournalError> {
        self.send(Change::Forget(session), None)
    }

    /// Waits until all that was recorded so far stands on the disk.
    pub async fn settled(&self) -> Result<(), JournalError> {
        let (done, committed) = oneshot::channel();
        self.send(Change::Nothing, Some(done))?;
        committed.await.map_err(|_| JournalError::Stopped)
    }

    /// Records a copy that an intent has made, by the key without the intent's prefix; it is committed with the next
    /// group.
    pub fn copied(&self, intent: SessionId, relative: &str, record: CopyRecord) -> Result<(), JournalError> {
        self.send(Change::Copied(intent, relative.into(), record), None)
    }

    /// The copy that an intent has made of a key, as far as the journal knows.
    pub fn copy_of(&self, intent: SessionId, relative: &str) -> Option<CopyRecord> {
        match self.trees.intents.get(copy_key(intent, relative)) {
            Ok(record) => CopyRecord::decode(&record?),
            Err(error) => {
                log::warn!("journal: {error}; a copy may be made again");
                None
            }
        }
    }

    /// Forgets all that an intent has done.
    pub fn forget_intent(&self, intent: SessionId) -> Result<(), JournalError> {
        self.send(Change::ForgetIntent(intent), None)
    }

    fn send(&self, change: Change, done: Option<oneshot::Sender<()>>) -> Result<(), JournalError> {
        self.queue.send(Entry { change, done }).map_err(|_| JournalError::Stopped)
    }

    /// The upload of a session, with its parts, as far as the journal knows. Records that cannot be read count
    /// as absent and are logged.
    pub fn upload_of(&self, session: SessionId) -> Result<Option<KnownUpload>, JournalError> {
        let Some(bytes) = self.trees.sessions.get(session.to_bytes())? else { return Ok(None) };
        let Some(upload) = UploadRecord::decode(&bytes) else {
            log::warn!("journal: the record of session {session} cannot be read; its parts are sent again");
            return Ok(None);
        };
        let mut parts = Vec::new();
        for item in self.trees.parts.scan_prefix(session.to_bytes()) {
            let (key, value) = item?;
            match (part_of_key(&key), PartRecord::decode(&value)) {
                (Some(number), Some(part)) => parts.push((number, part)),
                _ => log::warn!("journal: a part record of session {session} cannot be read; the part is sent again"),
            }
        }
        Ok(Some((upload, parts)))
    }

    /// The ids of all uploads that were begun and not ended.
    pub fn upload_ids(&self) -> Result<Vec<UploadId>, JournalError> {
        let mut found = Vec::new();
        for item in self.trees.sessions.iter().chain(self.trees.outdated.iter()) {
            let (_, value) = item?;
            found.extend(UploadRecord::decode(&value).map(|record| record.upload_id));
        }
        Ok(found)
    }

    /// Uploads of sessions that have begun another one since, and that may not have been aborted.
    pub fn outdated(&self) -> Result<Vec<(SessionId, UploadRecord)>, JournalError> {
        let mut found = Vec::new();
        for item in self.trees.outdated.iter() {
            let (key, value) = item?;
            let session = key.get(..12).and_then(|id| id.try_into().ok()).map(SessionId::from_bytes);
            found.extend(session.zip(UploadRecord::decode(&value)));
        }
        Ok(found)
    }

    /// Sessions of which the journal knows an upload.
    pub fn sessions(&self) -> Result<Vec<SessionId>, JournalError> {
        let mut found = Vec::new();
        for item in self.trees.sessions.iter() {
            let (key, _) = item?;
            found.extend(key.as_ref().try_into().ok().map(SessionId::from_bytes));
        }
        Ok(found)
    }
}

impl Trees {
    fn open(path: &Path) -> Result<Self, JournalError> {
        let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
        let (sessions, parts) = (db.open_tree("sessions")?, db.open_tree("parts")?);
        let (intents, outdated) = (db.open_tree("intents")?, db.open_tree("outdated")?);
        Ok(Self { db, sessions, parts, intents, outdated })
    }

    fn commit_all(&self, entries: &Receiver<Entry>) {
        while let Ok(first) = entries.recv() {
            let mut group = vec![first];
            group.extend(entries.try_iter().take(GROUP_MAX - 1));
            crash::point("journal-committing");
            if let Err(error) = self.commit(&group) {
                log::error!("{error}; work that was done may be done again after a crash");
            }
            crash::point("journal-committed");
            for done in group.into_iter().filter_map(|entry| entry.done) {
                if done.send(()).is_err() {
                    log::trace!("whoever waited for a record has gone; it stands all the same");
                }
            }
        }
    }

    fn commit(&self, group: &[Entry]) -> Result<(), JournalError> {
        for entry in group {
            match &entry.change {
                Change::Upload(session, record) => {
                    clear(&self.parts, *session)?;
                    let before = self.sessions.insert(session.to_bytes(), record.encode())?;
                    self.keep_outdated(*session, before.and_then(|bytes| UploadRecord::decode(&bytes)), record)?;
                }
                Change::Part(session, number, record) => {
                    self.parts.insert(part_key(*session, *number), record.encode())?;
                }
                Change::Forget(session) => self.forget(*session)?,
                Change::ForgetUpload(session, upload) => {
                    self.outdated.remove(outdated_key(*session, upload))?;
                    let known = self.sessions.get(session.to_bytes())?;
                    let known = known.and_then(|bytes| UploadRecord::decode(&bytes));
                    if known.is_some_and(|known| known.upload_id == *upload) {
                        self.forget(*session)?;
                    }
                }
                Change::Copied(intent, relative, record) => {
                    self.intents.insert(copy_key(*intent, relative), record.encode())?;
                }
                Change::ForgetIntent(intent) => clear(&self.intents, *intent)?,
                Change::Nothing => {}
            }
        }
        self.db.flush()?;
        Ok(())
    }

    fn forget(&self, session: SessionId) -> Result<(), JournalError> {
        clear(&self.parts, session)?;
        self.sessions.remove(session.to_bytes())?;
        Ok(())
    }

    /// Whoever has begun another upload in its place may die before it is aborted.
    fn keep_outdated(
        &self,
        session: SessionId,
        before: Option<UploadRecord>,
        now: &UploadRecord,
    ) -> Result<(), JournalError> {
        if let Some(before) = before.filter(|before| before.upload_id != now.upload_id) {
            self.outdated.insert(outdated_key(session, &before.upload_id), before.encode())?;
        }
        Ok(())
    }
}

fn outdated_key(session: SessionId, upload: &UploadId) -> Vec<u8> {
    [&session.to_bytes(), upload.as_str().as_bytes()].concat()
}

/// Takes away all records under an id.
fn clear(tree: &sled::Tree, id: SessionId) -> Result<(), JournalError> {
    for key in tree.scan_prefix(id.to_bytes()).keys() {
        tree.remove(key?)?;
    }
    Ok(())
}

fn copy_key(intent: SessionId, relative: &str) -> Vec<u8> {
    [&intent.to_bytes(), relative.as_bytes()].concat()
}

fn part_key(session: SessionId, number: PartNumber) -> [u8; 14] {
    let mut key = [0; 14];
    key[..12].copy_from_slice(&session.to_bytes());
    key[12..].copy_from_slice(&(number.get() as u16).to_be_bytes());
    key
}

fn part_of_key(key: &[u8]) -> Option<PartNumber> {
    let number = u16::from_be_bytes(key.get(12..)?.try_into().ok()?);
    PartNumber::new(u32::from(number))
}

/// Renames a journal that does not open out of the way.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let mut count = 1;
    loop {
        let aside = path.with_extension(format!("broken-{count}"));
        if !aside.exists() {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
        count += 1;
    }
}

/// Opens and reads the whole journal, then closes it: for a child process, since sled can panic on a damaged
/// folder and a panic ends the process.
pub fn probe(path: &Path) -> Result<(), JournalError> {
    let trees = Trees::open(path)?;
    for tree in [&trees.sessions, &trees.parts, &trees.intents, &trees.outdated] {
        for item in tree.iter() {
            item?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ETag, ObjectKey, UploadId};

    fn upload(id: &str) -> UploadRecord {
        UploadRecord {
            upload_id: UploadId::new(id),
            key: ObjectKey::parse("k").unwrap(),
            part_size: 8 << 20,
            created_micros: 5,
            headers: vec![1],
        }
    }

    fn part(generation: u64) -> PartRecord {
        PartRecord { generation, len: 10, crc64: Some(7), etag: ETag::new("E"), stable_since: None }
    }

    #[tokio::test]
    async fn records_survive_reopening() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let (a, b) = (SessionId::generate(1), SessionId::generate(2));
        let (journal, writer) = Journal::open(&path).unwrap();
        journal.begin_upload(a, upload("A")).await.unwrap();
        journal.begin_upload(b, upload("B")).await.unwrap();
        for n in [3, 1, 2] {
            journal.part_done(a, PartNumber::new(n).unwrap(), part(u64::from(n))).unwrap();
        }
        journal.part_done(b, PartNumber::new(1).unwrap(), part(9)).unwrap();
        journal.forget(b).unwrap();
        // Another one was begun since.
        journal.forget_upload(a, UploadId::new("B")).unwrap();
        drop(journal);
        writer.join();

        let (journal, _writer) = Journal::open(&path).unwrap();
        let (found, parts) = journal.upload_of(a).unwrap().unwrap();
        assert_eq!(found, upload("A"));
        assert_eq!(parts.iter().map(|(n, p)| (n.get(), p.generation)).collect::<Vec<_>>(), [(1, 1), (2, 2), (3, 3)]);
        assert_eq!(journal.upload_of(b).unwrap(), None);
        assert_eq!(journal.sessions().unwrap(), [a]);
    }

    #[tokio::test]
    async fn an_upload_is_known_until_it_is_aborted_though_another_was_begun() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let session = SessionId::generate(1);
        let (journal, writer) = Journal::open(&path).unwrap();
        for id in ["A", "B", "B", "C"] {
            journal.begin_upload(session, upload(id)).await.unwrap();
        }
        journal.forget_upload(session, UploadId::new("B")).unwrap();
        drop(journal);
        writer.join();
        let (journal, _writer) = Journal::open(&path).unwrap();
        assert_eq!(journal.outdated().unwrap(), [(session, upload("A"))]);
        assert_eq!(journal.upload_ids().unwrap(), [UploadId::new("C"), UploadId::new("A")]);
        journal.forget(session).unwrap();
        journal.settled().await.unwrap();
        assert_eq!(journal.upload_ids().unwrap(), [UploadId::new("A")]);
    }

    #[tokio::test]
    async fn copies_are_known_until_the_intent_is_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let (a, b) = (SessionId::generate(1), SessionId::generate(2));
        let copy = |etag: &str| CopyRecord { before: ETag::new("old"), after: ETag::new(etag), at: None };
        let (journal, writer) = Journal::open(&path).unwrap();
        journal.copied(a, "x/y", copy("1")).unwrap();
        journal.copied(b, "x/y", copy("2")).unwrap();
        journal.forget_intent(a).unwrap();
        drop(journal);
        writer.join();
        let (journal, _writer) = Journal::open(&path).unwrap();
        assert_eq!(journal.copy_of(a, "x/y"), None);
        assert_eq!(journal.copy_of(b, "x/y"), Some(copy("2")));
        assert_eq!(journal.copy_of(b, "x"), None);
    }

    #[test]
    fn a_folder_that_is_no_journal_is_set_aside() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        fs::write(&path, b"not a folder").unwrap();
        assert!(probe(&path).is_err());
        let (journal, _writer) = Journal::open(&path).unwrap();
        assert!(journal.sessions().unwrap().is_empty());
        assert!(temp.path().join("journal.broken-1").exists());
    }
}
