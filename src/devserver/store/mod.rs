//! Buckets, objects and uploads: an index in memory, a log and segment files on disk.
//!
//! Knows nothing of HTTP and of limits; checks only what must hold at the moment of the change. Every change is a
//! [`Record`]: written to the log first, then applied by the same code that applies it when the log is replayed,
//! so that a restart finds exactly what was there.

mod listing;
mod log;
mod object;
mod segment;
mod state;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;

use self::log::{LogFile, Record};
use self::segment::SegmentDir;
use self::state::State;
pub(crate) use listing::{Page, Query as ListQuery};
pub(crate) use object::{
    Attributes, Kind, Object, ObjectHead, Part, PartHead, Upload, UploadHead, at_seconds, base64_of, hex_upper, seconds,
};
pub(crate) use segment::{Segment, SegmentReader, SegmentWriter, Written, slice, sum};

/// Why a change or a look-up found nothing to act on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("no such bucket")]
    NoSuchBucket,
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    #[error("no such upload")]
    NoSuchUpload,
    #[error("the object exists")]
    ObjectExists,
    #[error("the object changed meanwhile")]
    ObjectChanged,
    #[error("the disk fails: {0}")]
    Io(#[from] io::Error),
}

/// What must hold of the present object for a new one to take its place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect<'a> {
    Anything,
    /// `x-oss-forbid-overwrite`.
    Nothing,
    /// This one, or none: what was read before must still be there.
    Same(Option<&'a Arc<Object>>),
}

#[derive(Debug)]
struct Inner {
    state: State,
    log: LogFile,
}

/// Sizes for GetBucketStat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BucketFigures {
    pub(crate) created: u64,
    pub(crate) bytes: u64,
    pub(crate) objects: usize,
    pub(crate) uploads: usize,
}

/// All that the server keeps.
#[derive(Debug)]
pub(crate) struct Store {
    segments: Arc<SegmentDir>,
    /// The index and the log change together.
    inner: RwLock<Inner>,
    /// Held for the lifetime of the store, so that no second server writes here.
    lock: File,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.segments.retire();
        // Closing the file is not enough: a child that was forked and has not yet run its own program holds it too.
        if let Err(error) = self.lock.unlock() {
            ::log::debug!("the lock of the store: {error}");
        }
    }
}

impl Store {
    /// Opens or makes the store in `dir`. One process at a time: a second one fails with `WouldBlock`.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock = File::create(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                let message = format!("{} is in use by another server", dir.display());
                io::Error::new(io::ErrorKind::WouldBlock, message)
            }
            fs::TryLockError::Error(error) => error,
        })?;
        let segments = SegmentDir::open(dir.join("segments"))?;
        let mut state = State::default();
        let mut log = LogFile::open(&dir.join("log.jsonl"), |record| state.apply(&segments, record))?;
        segments.go_live()?;
        if log.len() > 2 * state.records().count() as u64 {
            log.rewrite(state.records())?;
        }
        Ok(Self { segments, inner: RwLock::new(Inner { state, log }), lock })
    }

    /// Starts a body.
    pub(crate) fn writer(&self) -> SegmentWriter {
        self.segments.writer()
    }

    fn change(&self, inner: &mut Inner, record: Record) -> Result<(), StoreError> {
        inner.log.append(&record)?;
        inner.state.apply(&self.segments, record);
        Ok(())
    }

    /// Makes a bucket; one that is there stays as it is.
    pub(crate) fn create_bucket(&self, bucket: &str, now: SystemTime) -> Result<(), StoreError> {
        let inner = &mut *self.inner.write();
        if inner.state.buckets.contains_key(bucket) {
            return Ok(());
        }
        self.change(inner, Record::CreateBucket { bucket: bucket.into(), created: seconds(now) })
    }

    /// Removes an empty bucket.
    pub(crate) fn delete_bucket(&self, bucket: &str) -> Result<(), StoreError> {
        let inner = &mut *self.inner.write();
        let found = inner.state.bucket(bucket)?;
        if !found.objects.is_empty() || !found.uploads.is_empty() {
            return Err(StoreError::BucketNotEmpty);
        }
        self.change(inner, Record::DeleteBucket { bucket: bucket.into() })
    }

    pub(crate) fn has_bucket(&self, bucket: &str) -> bool {
        self.inner.read().state.buckets.contains_key(bucket)
    }

    /// Names and times of creation, in order of the names.
    pub(crate) fn buckets(&self) -> Vec<(String, u64)> {
        self.inner.read().state.buckets.iter().map(|(name, bucket)| (name.clone(), bucket.created)).collect()
    }

    pub(crate) fn figures(&self, bucket: &str) -> Result<BucketFigures, StoreError> {
        let inner = self.inner.read();
        let bucket = inner.state.bucket(bucket)?;
        Ok(BucketFigures {
            created: bucket.created,
            bytes: bucket.bytes,
            objects: bucket.objects.len(),
            uploads: bucket.uploads.len(),
        })
    }

    pub(crate) fn object(&self, bucket: &str, key: &str) -> Result<Option<Arc<Object>>, StoreError> {
        Ok(self.inner.read().state.bucket(bucket)?.objects.get(key.as_bytes()).cloned())
    }

    pub(crate) fn list(&self, bucket: &str, query: &ListQuery) -> Result<Page<Arc<Object>>, StoreError> {
        Ok(listing::list(&self.inner.read().state.bucket(bucket)?.objects, query))
    }

    /// Puts `object` at `key`, if what stands there is what `expect` says.
    pub(crate) fn put(&self, bucket: &str, key: &str, object: &Object, expect: Expect<'_>) -> Result<(), StoreError> {
        let inner = &mut *self.inner.write();
        expect.check(inner.state.bucket(bucket)?.objects.get(key.as_bytes()))?;
        self.change(
            inner,
            Record::Put {
                bucket: bucket.into(),
                key: key.into(),
                head: object.head.clone(),
                segments: object.segments.iter().map(Segment::to_ref).collect(),
            },
        )
    }

    /// Removes those of `keys` that are there.
    pub(crate) fn delete(&self, bucket: &str, keys: &[String]) -> Result<(), StoreError> {
        let inner = &mut *self.inner.write();
        let objects = &inner.state.bucket(bucket)?.objects;
        let present: Vec<String> = keys.iter().filter(|key| objects.contains_key(key.as_bytes())).cloned().collect();
        if present.is_empty() {
            return Ok(());
        }
        self.change(inner, Record::Delete { bucket: bucket.into(), keys: present })
    }

    pub(crate) fn initiate(&self, bucket: &str, key: &str, id: &str, head: UploadHead) -> Result<(), StoreError> {
        let inner = &mut *self.inner.write();
        inner.state.bucket(bucket)?;
        self.change(inner, Record::Initiate { bucket: bucket.into(), key: key.into(), id: id.into(), head })
    }

    /// A snapshot of an open upload.
    pub(crate) fn upload(&self, bucket: &str, key: &str, id: &str) -> Result<Upload, StoreError> {
        self.inner.read().state.upload(bucket, key, id).cloned()
    }

    /// Whether an upload is open, without the cost of a snapshot.
    pub(crate) fn check_upload(&self, bucket: &str, key: &str, id: &str) -> Result<(), StoreError> {
        self.inner.read().state.upload(bucket, key, id).map(drop)
    }

    /// All open uploads by key and id.
    pub(crate) fn uploads(&self, bucket: &str) -> Result<BTreeMap<(String, String), Upload>, StoreError> {
        Ok(self.inner.read().state.bucket(bucket)?.uploads.clone())
    }

    pub(crate) fn put_part(&self, bucket: &str, key: &str, id: &str, part: Part) -> Result<(), StoreError> {
        let inner = &mut *self.inner.write();
        inner.state.upload(bucket, key, id)?;
        self.change(
            inner,
            Record::Part {
                bucket: bucket.into(),
                key: key.into(),
                id: id.into(),
                segments: part.segments.iter().map(Segment::to_ref).collect(),
                head: part.head,
            },
        )
    }

    pub(crate) fn abort(&self, bucket: &str, key: &str, id: &str) -> Result<(), StoreError> {
        let inner = &mut *self.inner.write();
        inner.state.upload(bucket, key, id)?;
        self.change(inner, Record::Abort { bucket: bucket.into(), key: key.into(), id: id.into() })
    }

    /// Ends an upload and puts `object`, made of its parts, at its key: both or neither.
    pub(crate) fn complete(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        object: &Object,
        expect: Expect<'_>,
    ) -> Result<(), StoreError> {
        let inner = &mut *self.inner.write();
        inner.state.upload(bucket, key, id)?;
        expect.check(inner.state.bucket(bucket)?.objects.get(key.as_bytes()))?;
        self.change(
            inner,
            Record::Complete {
                bucket: bucket.into(),
                key: key.into(),
                id: id.into(),
                head: object.head.clone(),
                segments: object.segments.iter().map(Segment::to_ref).collect(),
            },
        )
    }
}

impl Expect<'_> {
    fn check(self, present: Option<&Arc<Object>>) -> Result<(), StoreError> {
        match self {
            Self::Nothing if present.is_some() => Err(StoreError::ObjectExists),
            Self::Same(expected) if expected.map(Arc::as_ptr) != present.map(Arc::as_ptr) => {
                Err(StoreError::ObjectChanged)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ByteRange;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn body(store: &Store, bytes: &[u8]) -> Written {
        let mut writer = store.writer();
        writer.write(bytes).unwrap();
        writer.finish()
    }

    fn put(store: &Store, key: &str, bytes: &[u8]) {
        let object = Object::normal(body(store, bytes), Attributes::default(), NOW);
        store.put("b", key, &object, Expect::Anything).unwrap();
    }

    fn put_part(store: &Store, number: u32, bytes: &[u8]) {
        let Written { segments, size, crc, .. } = body(store, bytes);
        let head = PartHead { number, size, etag: number.to_string(), crc64: crc, modified: 0 };
        store.put_part("b", "k", "id", Part { head, segments }).unwrap();
    }

    fn read(object: &Object) -> Vec<u8> {
        SegmentReader::new(&object.segments, ByteRange::new(0, object.head.size)).read_all().unwrap()
    }

    fn open(dir: &tempfile::TempDir) -> Store {
        let store = Store::open(dir.path()).unwrap();
        store.create_bucket("b", NOW).unwrap();
        store
    }

    #[test]
    fn a_restart_finds_objects_and_open_uploads() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        put(&store, "gone", b"1");
        put(&store, "strange\n/../\u{1f600}", b"22");
        put(&store, "over", b"333");
        put(&store, "over", b"4444");
        store.delete("b", &["gone".into(), "never".into()]).unwrap();
        store.initiate("b", "k", "id", UploadHead { initiated: 7, attributes: Attributes::default() }).unwrap();
        put_part(&store, 2, b"second");
        put_part(&store, 1, b"first");
        put_part(&store, 1, b"once more");
        let before = store.figures("b").unwrap();
        drop(store);

        let store = open(&dir);
        assert_eq!(store.figures("b").unwrap(), before);
        assert_eq!(before.bytes, 6);
        assert!(store.object("b", "gone").unwrap().is_none());
        assert_eq!(read(&store.object("b", "over").unwrap().unwrap()), b"4444");
        assert_eq!(read(&store.object("b", "strange\n/../\u{1f600}").unwrap().unwrap()), b"22");
        let upload = store.upload("b", "k", "id").unwrap();
        assert_eq!(upload.head.initiated, 7);
        assert_eq!(upload.parts.keys().copied().collect::<Vec<_>>(), [1, 2]);

        let segments: Vec<Segment> = upload.parts.values().flat_map(|part| part.segments.clone()).collect();
        let whole = Written { size: 15, crc: sum(&segments), segments, md5: [0; 16] };
        let object = Object::normal(whole, Attributes::default(), NOW);
        drop(upload);
        store.complete("b", "k", "id", &object, Expect::Nothing).unwrap();
        drop(object);
        assert!(matches!(store.upload("b", "k", "id"), Err(StoreError::NoSuchUpload)));
        drop(store);

        assert_eq!(read(&open(&dir).object("b", "k").unwrap().unwrap()), b"once moresecond");
    }

    #[test]
    fn a_copy_that_outlives_its_source_survives_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        put(&store, "source", b"shared");
        let source = store.object("b", "source").unwrap().unwrap();
        // The log says delete first, copy second: the replay must not lose the bytes in between.
        store.delete("b", &["source".into()]).unwrap();
        store.put("b", "copy", &source, Expect::Anything).unwrap();
        drop(source);
        drop(store);
        for _ in 0..3 {
            assert_eq!(read(&open(&dir).object("b", "copy").unwrap().unwrap()), b"shared");
        }
    }

    #[test]
    fn a_log_that_grew_is_rewritten_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        for _ in 0..50 {
            put(&store, "same", b"x");
        }
        drop(store);
        let store = open(&dir);
        assert_eq!(store.inner.read().log.len(), 2);
        put(&store, "other", b"y");
        drop(store);
        let store = open(&dir);
        assert_eq!(read(&store.object("b", "same").unwrap().unwrap()), b"x");
        assert_eq!(read(&store.object("b", "other").unwrap().unwrap()), b"y");
    }

    #[test]
    fn a_change_is_refused_where_its_expectation_fails() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        put(&store, "k", b"1");
        let first = store.object("b", "k").unwrap().unwrap();
        assert!(matches!(store.put("b", "k", &first, Expect::Nothing), Err(StoreError::ObjectExists)));
        put(&store, "k", b"2");
        assert!(matches!(store.put("b", "k", &first, Expect::Same(Some(&first))), Err(StoreError::ObjectChanged)));
        assert!(matches!(store.put("c", "k", &first, Expect::Anything), Err(StoreError::NoSuchBucket)));
        assert!(matches!(store.delete_bucket("b"), Err(StoreError::BucketNotEmpty)));
    }

    #[test]
    fn a_second_server_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        assert_eq!(Store::open(dir.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(store);
        Store::open(dir.path()).unwrap();
    }
}
