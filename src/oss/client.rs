//! The client: one operation a method, each signed, sent and, where it may be, repeated.

use std::sync::Arc;
use std::time::Duration;

use super::Error;
use super::types::{
    Addressing, Body, BucketInfo, BucketStat, CopyOptions, CopyReceipt, Credentials, Endpoint, GetOptions, GetReply,
    ListPage, ListRequest, ObjectMeta, PartReceipt, PartsPage, PutHeaders, PutReceipt, SignatureVersion, Stats,
    UploadsPage,
};
use crate::base::{ByteRange, ETag, ObjectKey, PartNumber, UploadId};

/// Everything a client needs to know; resolved and validated by the caller.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    pub endpoint: Endpoint,
    pub bucket: String,
    /// General form (`cn-hangzhou`); `None` only with V1.
    pub region: Option<String>,
    pub addressing: Addressing,
    pub signature: SignatureVersion,
    pub credentials: Credentials,
    /// How long a try may pass without a byte moved.
    pub try_timeout: Duration,
}

#[derive(Debug)]
struct Inner;

/// A client of one bucket; clones share connections and counters.
#[derive(Debug, Clone)]
pub struct Client(#[expect(dead_code)] Arc<Inner>);

#[expect(unused_variables, clippy::unimplemented)]
impl Client {
    pub fn new(options: ClientOptions) -> Result<Self, Error> {
        unimplemented!()
    }
    pub fn bucket(&self) -> &str {
        unimplemented!()
    }
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
    pub async fn get_bucket_info(&self) -> Result<BucketInfo, Error> {
        unimplemented!()
    }
    pub async fn get_bucket_stat(&self) -> Result<BucketStat, Error> {
        unimplemented!()
    }
    /// Follows symlinks, as the service does.
    pub async fn head_object(&self, key: &ObjectKey) -> Result<ObjectMeta, Error> {
        unimplemented!()
    }
    /// Does not follow symlinks; `headers` stay empty.
    pub async fn get_object_meta(&self, key: &ObjectKey) -> Result<ObjectMeta, Error> {
        unimplemented!()
    }
    pub async fn get_object(&self, key: &ObjectKey, options: &GetOptions) -> Result<GetReply, Error> {
        unimplemented!()
    }
    pub async fn put_object(&self, key: &ObjectKey, body: &Body, headers: &PutHeaders) -> Result<PutReceipt, Error> {
        unimplemented!()
    }
    pub async fn copy_object(
        &self,
        source: &ObjectKey,
        target: &ObjectKey,
        options: &CopyOptions,
    ) -> Result<CopyReceipt, Error> {
        unimplemented!()
    }
    pub async fn delete_object(&self, key: &ObjectKey) -> Result<(), Error> {
        unimplemented!()
    }
    /// At most 1000 keys; returns those that the service says are gone.
    pub async fn delete_objects(&self, keys: &[ObjectKey]) -> Result<Vec<String>, Error> {
        unimplemented!()
    }
    pub async fn list_objects(&self, request: &ListRequest) -> Result<ListPage, Error> {
        unimplemented!()
    }
    pub async fn initiate_upload(&self, key: &ObjectKey, headers: &PutHeaders) -> Result<UploadId, Error> {
        unimplemented!()
    }
    pub async fn upload_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        part: PartNumber,
        body: &Body,
    ) -> Result<PartReceipt, Error> {
        unimplemented!()
    }
    /// The range must lie inside the source: the service copies the whole of it otherwise.
    pub async fn upload_part_copy(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        part: PartNumber,
        source: &ObjectKey,
        range: ByteRange,
        if_match: &ETag,
    ) -> Result<ETag, Error> {
        unimplemented!()
    }
    /// Parts ascending. The receipt's CRC64 is the service's; comparing it is up to the caller.
    pub async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(PartNumber, ETag)],
        forbid_overwrite: bool,
    ) -> Result<PutReceipt, Error> {
        unimplemented!()
    }
    /// An upload that is gone already counts as aborted.
    pub async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), Error> {
        unimplemented!()
    }
    /// Parts with numbers above `marker`.
    pub async fn list_parts(&self, key: &ObjectKey, upload: &UploadId, marker: u32) -> Result<PartsPage, Error> {
        unimplemented!()
    }
    /// `after` is the `next` of the page before.
    pub async fn list_uploads(&self, prefix: &str, after: Option<&(String, String)>) -> Result<UploadsPage, Error> {
        unimplemented!()
    }
    /// `target` is a key in the same bucket.
    pub async fn put_symlink(&self, key: &ObjectKey, target: &str, headers: &PutHeaders) -> Result<(), Error> {
        unimplemented!()
    }
    /// The target, and what the service tells of the link itself.
    pub async fn get_symlink(&self, key: &ObjectKey) -> Result<(String, ObjectMeta), Error> {
        unimplemented!()
    }
}
