//! The index in memory, and what each record of the log does to it.
//!
//! The only code that changes the index: live changes and the replay go through [`State::apply`] alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::StoreError;
use super::listing::Key;
use super::log::Record;
use super::object::{Object, Part, Upload};
use super::segment::{Segment, SegmentDir};

#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) created: u64,
    pub(super) objects: BTreeMap<Key, Arc<Object>>,
    /// By key and upload id, the order in which they are listed.
    pub(super) uploads: BTreeMap<(String, String), Upload>,
    pub(super) bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) buckets: BTreeMap<String, Bucket>,
}

impl State {
    pub(super) fn bucket(&self, bucket: &str) -> Result<&Bucket, StoreError> {
        self.buckets.get(bucket).ok_or(StoreError::NoSuchBucket)
    }

    pub(super) fn upload(&self, bucket: &str, key: &str, id: &str) -> Result<&Upload, StoreError> {
        self.bucket(bucket)?.uploads.get(&(key.to_owned(), id.to_owned())).ok_or(StoreError::NoSuchUpload)
    }

    /// Applies a record, live or replayed. What it names must be there: the checks came before it was written.
    pub(super) fn apply(&mut self, segments: &Arc<SegmentDir>, record: Record) {
        let pieces = |refs: Vec<_>| refs.into_iter().map(|piece| Segment::from_ref(segments, piece)).collect();
        match record {
            Record::CreateBucket { bucket, created } => {
                self.buckets.insert(bucket, Bucket { created, ..Bucket::default() });
            }
            Record::DeleteBucket { bucket } => {
                self.buckets.remove(&bucket);
            }
            Record::Put { bucket, key, head, segments } => {
                self.with(&bucket, |bucket| bucket.insert(key, Object { head, segments: pieces(segments) }));
            }
            Record::Delete { bucket, keys } => self.with(&bucket, |bucket| bucket.remove(&keys)),
            Record::Initiate { bucket, key, id, head } => self.with(&bucket, |bucket| {
                bucket.uploads.insert((key, id), Upload { head, parts: BTreeMap::new() });
            }),
            Record::Part { bucket, key, id, head, segments } => self.with(&bucket, |bucket| {
                let part = Part { head, segments: pieces(segments) };
                if let Some(upload) = bucket.uploads.get_mut(&(key, id)) {
                    upload.parts.insert(part.head.number, Arc::new(part));
                }
            }),
            Record::Abort { bucket, key, id } => self.with(&bucket, |bucket| {
                bucket.uploads.remove(&(key, id));
            }),
            Record::Complete { bucket, key, id, head, segments } => self.with(&bucket, |bucket| {
                bucket.insert(key.clone(), Object { head, segments: pieces(segments) });
                bucket.uploads.remove(&(key, id));
            }),
        }
    }

    fn with(&mut self, bucket: &str, change: impl FnOnce(&mut Bucket)) {
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            change(bucket);
        }
    }

    /// The fewest records that make this state.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.buckets.iter().flat_map(|(name, bucket)| {
            let create = Record::CreateBucket { bucket: name.clone(), created: bucket.created };
            let objects = bucket.objects.iter().map(|(key, object)| Record::Put {
                bucket: name.clone(),
                key: key.as_str().into(),
                head: object.head.clone(),
                segments: object.segments.iter().map(Segment::to_ref).collect(),
            });
            let uploads = bucket.uploads.iter().flat_map(|(place, upload)| upload_records(name, place, upload));
            std::iter::once(create).chain(objects).chain(uploads)
        })
    }
}

fn upload_records<'a>(
    bucket: &'a str,
    (key, id): &'a (String, String),
    upload: &'a Upload,
) -> impl Iterator<Item = Record> + 'a {
    let (bucket, key, id) = (bucket.to_owned(), key.clone(), id.clone());
    let initiate =
        Record::Initiate { bucket: bucket.clone(), key: key.clone(), id: id.clone(), head: upload.head.clone() };
    let parts = upload.parts.values().map(move |part| Record::Part {
        bucket: bucket.clone(),
        key: key.clone(),
        id: id.clone(),
        head: part.head.clone(),
        segments: part.segments.iter().map(Segment::to_ref).collect(),
    });
    std::iter::once(initiate).chain(parts)
}

impl Bucket {
    fn insert(&mut self, key: String, object: Object) {
        self.bytes += object.head.size;
        if let Some(old) = self.objects.insert(Key(key.into()), Arc::new(object)) {
            self.bytes -= old.head.size;
        }
    }

    fn remove(&mut self, keys: &[String]) {
        for key in keys {
            if let Some(old) = self.objects.remove(key.as_bytes()) {
                self.bytes -= old.head.size;
            }
        }
    }
}
