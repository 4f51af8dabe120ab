//! A process of the program, as far as writing goes: a runtime with a write engine in it that can be killed.
//!
//! Killing drops every task where it stands and keeps nothing but the state folder, which is copied: what the
//! dead one still holds open cannot reach the copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ossfuse::base::{ByteRange, ETag, ObjectKey, SessionId, UploadId};
use ossfuse::journal::{Journal, UploadRecord};
use ossfuse::oss::{Client, GetOptions};
use ossfuse::replay::{Mode, Replay};
use ossfuse::spill::{Base, HeaderRecord, Layout, LockedFolder, SpillStore, Times};
use ossfuse::upload::{UploadEngine, UploadOptions};
use ossfuse::write::{DirtyFile, Segment, WriteEngine, WriteError};
use tokio::runtime::Runtime;

use super::service::{Seen, Service};

pub(super) const PIECE: u64 = 100 << 10;
/// Longer than anything here takes, shorter than anybody's patience.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Process {
    pub(super) engine: WriteEngine,
    pub(super) client: Client,
    pub(super) runtime: Runtime,
    root: tempfile::TempDir,
    _folder: LockedFolder,
}

impl Process {
    pub(super) fn start(service: &Service) -> Self {
        Self::start_limited(service, u64::MAX)
    }

    /// One that keeps no more than `limit` bytes in spill files.
    pub(super) fn start_limited(service: &Service, limit: u64) -> Self {
        Self::over(service, tempfile::tempdir().unwrap(), limit)
    }

    fn over(service: &Service, root: tempfile::TempDir, limit: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = LockedFolder::lock(Layout::new(root.path()), "a test").unwrap();
        let (journal, _writer) = Journal::open(&folder.layout().journal()).unwrap();
        let client = service.client();
        let upload = UploadEngine::new(client.clone(), journal, UploadOptions { workers: 4 });
        let engine =
            WriteEngine::new(upload, SpillStore::open_limited(&folder, limit), PIECE, runtime.handle().clone());
        Self { engine, client, runtime, root, _folder: folder }
    }

    pub(super) fn layout(&self) -> Layout {
        Layout::new(self.root.path())
    }

    /// Runs a future to its end; one that hangs fails the test.
    pub(super) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("it hangs") })
    }

    /// The state folder as it is now, as another process would find it. Nobody may be writing to the journal.
    pub(super) fn snapshot(&self, with_journal: bool) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        let layout = self.layout();
        copy_tree(&layout.spill(), &copy.path().join("spill"));
        copy_tree(&layout.quarantine(), &copy.path().join("quarantine"));
        if with_journal {
            self.run(self.settle_journal());
            copy_tree(&layout.journal(), &copy.path().join("journal"));
        }
        copy
    }

    /// Everything that was noted before is on disk when this returns.
    async fn settle_journal(&self) {
        let record = UploadRecord {
            upload_id: UploadId::new("none"),
            key: ObjectKey::parse("none").unwrap(),
            part_size: PIECE,
            created_micros: 0,
            headers: Vec::new(),
        };
        self.engine.upload().journal().begin_upload(SessionId::generate(0), record).await.unwrap();
    }

    /// Kills it and starts the next one over a copy of its state.
    pub(super) fn crash(self, service: &Service, with_journal: bool) -> Self {
        let limit = self.engine.spill().gauge().limit().unwrap_or(u64::MAX);
        let copy = self.kill(with_journal);
        Self::over(service, copy, limit)
    }

    /// Starts another one over a state folder; this one may go on, but not in that folder.
    pub(super) fn restart_over(service: &Service, state: tempfile::TempDir) -> Self {
        Self::over(service, state, u64::MAX)
    }

    fn kill(self, with_journal: bool) -> tempfile::TempDir {
        let Self { engine, client, runtime, root, _folder } = self;
        runtime.shutdown_timeout(Duration::from_secs(10));
        let after = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dead = Self { engine, client, runtime: after, root, _folder };
        let copy = dead.snapshot(with_journal);
        // What is left in memory refers to itself; without this every kill would leak a journal.
        for file in dead.engine.live() {
            dead.run(file.set_aside("the test is done with it"));
        }
        copy
    }

    /// Replays what an earlier process left.
    pub(super) fn replay(&self, mode: Mode) {
        let replay = Replay::prepare(&self.engine, mode).unwrap();
        self.run(replay.run());
    }

    pub(super) fn create(&self, key: &ObjectKey, replaces: Option<ETag>) -> Arc<DirtyFile> {
        DirtyFile::create(&self.engine, key.clone(), replaces, HeaderRecord::default(), Times::default())
    }

    pub(super) fn edit(&self, key: &ObjectKey, seen: &Seen) -> Arc<DirtyFile> {
        DirtyFile::edit(&self.engine, key.clone(), base_of(key, seen), HeaderRecord::default(), Times::default())
    }

    pub(super) fn write(&self, file: &Arc<DirtyFile>, offset: u64, data: &[u8]) -> Result<(), WriteError> {
        self.run(file.write_waiting(offset, data))
    }

    pub(super) fn publish(&self, file: &Arc<DirtyFile>) -> Result<ossfuse::write::Published, WriteError> {
        self.run(file.publish())
    }

    /// All of a file as a reader sees it; an error where the service does not give the base any more.
    pub(super) fn read(&self, file: &Arc<DirtyFile>) -> Result<Vec<u8>, ossfuse::oss::Error> {
        let mut out = Vec::new();
        for segment in self.run(file.segments(ByteRange::new(0, file.size()))).unwrap() {
            match segment {
                Segment::Zeros(len) => out.resize(out.len() + len as usize, 0),
                Segment::Away(range) => panic!("{range:?} cannot be had"),
                Segment::Local { file, offset, len } => out.extend(read_local(&file, offset, len)),
                Segment::Base(range) => {
                    let base = file.content_base().unwrap();
                    let options = GetOptions { range: Some(range), if_match: Some(base.etag), ..GetOptions::default() };
                    out.extend(self.run(collect(&self.client, &base.key, &options))?);
                }
            }
        }
        Ok(out)
    }
}

pub(super) fn base_of(key: &ObjectKey, seen: &Seen) -> Base {
    Base { key: key.clone(), etag: seen.etag.clone(), size: seen.size, crc64: seen.crc64 }
}

async fn collect(client: &Client, key: &ObjectKey, options: &GetOptions) -> Result<Vec<u8>, ossfuse::oss::Error> {
    use futures_util::StreamExt;
    let mut body = client.get_object(key, options).await?.body;
    let mut out = Vec::new();
    while let Some(chunk) = body.next().await {
        out.extend_from_slice(&chunk?);
    }
    Ok(out)
}

fn read_local(file: &fs::File, offset: u64, len: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len as usize];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64).unwrap() {
            0 => break,
            n => done += n,
        }
    }
    bytes
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let mut todo: Vec<(PathBuf, PathBuf)> = vec![(from.into(), to.into())];
    while let Some((from, to)) = todo.pop() {
        for entry in fs::read_dir(&from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&target).unwrap();
                todo.push((entry.path(), target));
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}
