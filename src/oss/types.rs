//! Requests and replies as values.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::Stream;
use http::Method;

use super::Error;
use crate::base::{ByteRange, ETag, PartNumber, UploadId};

/// The operations, under their API names; also the index of the request counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    GetBucketInfo,
    GetBucketStat,
    HeadObject,
    GetObjectMeta,
    GetObject,
    PutObject,
    CopyObject,
    DeleteObject,
    DeleteMultipleObjects,
    ListObjectsV2,
    InitiateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListParts,
    ListMultipartUploads,
    PutSymlink,
    GetSymlink,
}

impl Operation {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 19] = [
        Self::GetBucketInfo,
        Self::GetBucketStat,
        Self::HeadObject,
        Self::GetObjectMeta,
        Self::GetObject,
        Self::PutObject,
        Self::CopyObject,
        Self::DeleteObject,
        Self::DeleteMultipleObjects,
        Self::ListObjectsV2,
        Self::InitiateMultipartUpload,
        Self::UploadPart,
        Self::UploadPartCopy,
        Self::CompleteMultipartUpload,
        Self::AbortMultipartUpload,
        Self::ListParts,
        Self::ListMultipartUploads,
        Self::PutSymlink,
        Self::GetSymlink,
    ];

    /// The method it is asked for with (OSS reference §§7 and 8).
    pub(super) fn method(self) -> Method {
        match self {
            Self::HeadObject | Self::GetObjectMeta => Method::HEAD,
            Self::GetBucketInfo
            | Self::GetBucketStat
            | Self::GetObject
            | Self::ListObjectsV2
            | Self::ListParts
            | Self::ListMultipartUploads
            | Self::GetSymlink => Method::GET,
            Self::PutObject | Self::CopyObject | Self::UploadPart | Self::UploadPartCopy | Self::PutSymlink => {
                Method::PUT
            }
            Self::DeleteObject | Self::AbortMultipartUpload => Method::DELETE,
            Self::DeleteMultipleObjects | Self::InitiateMultipartUpload | Self::CompleteMultipartUpload => Method::POST,
        }
    }

    pub(super) fn method_name(self) -> &'static str {
        match self.method() {
            Method::HEAD => "HEAD",
            Method::PUT => "PUT",
            Method::POST => "POST",
            Method::DELETE => "DELETE",
            _ => "GET",
        }
    }

    /// Whether a length must go with it even for an empty body (411 otherwise).
    pub(super) fn has_body(self) -> bool {
        matches!(self.method(), Method::PUT | Method::POST)
    }

    /// Whether it changes anything.
    pub(super) fn is_write(self) -> bool {
        !matches!(self.method(), Method::HEAD | Method::GET)
    }

    /// Whether the service may work on it in silence for a while: on assembling an object, or on copying up to 5 GiB.
    pub(super) fn is_slow(self) -> bool {
        matches!(self, Self::CompleteMultipartUpload | Self::CopyObject | Self::UploadPartCopy)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A long-lived or STS credential.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key_id: String,
    pub access_key_secret: String,
    pub security_token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SignatureVersion {
    #[default]
    V4,
    V1,
}

/// Chunks of a reply's body; an error ends it, and so does a body shorter than announced (`Transport`).
pub type BodyStream = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// Bytes that can be read again from the start for every try.
pub trait BodySource: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> u64;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A fresh reader; must yield exactly `len` bytes.
    fn open(&self) -> Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send + Sync>>;
}

/// The body of an upload.
#[derive(Debug, Clone)]
pub enum Body {
    Bytes(Bytes),
    Source(Arc<dyn BodySource>),
}

impl Body {
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Source(source) => source.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is stored beside the bytes: standard headers and user metadata, as sent with PutObject and Initiate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutHeaders {
    pub content_type: Option<String>,
    pub cache_control: Option<String>,
    pub content_disposition: Option<String>,
    pub content_encoding: Option<String>,
    pub expires: Option<String>,
    /// Names without `x-oss-meta-`, lower case; values ASCII.
    pub user_meta: BTreeMap<String, String>,
    pub storage_class: Option<String>,
    pub server_side_encryption: Option<String>,
    /// `x-oss-forbid-overwrite: true`.
    pub forbid_overwrite: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ObjectKind {
    #[default]
    Normal,
    Multipart,
    Appendable,
    Symlink,
}

/// What HEAD and GET tell of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Bytes in the whole object, also on a ranged GET.
    pub size: u64,
    pub etag: ETag,
    pub last_modified: SystemTime,
    /// Of the whole object; missing on very old objects.
    pub crc64: Option<u64>,
    pub kind: ObjectKind,
    /// Content type, cache control, …, user metadata, storage class and encryption as stored.
    pub headers: PutHeaders,
    /// `x-oss-restore`, for archived objects.
    pub restore: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct GetOptions {
    /// `None` is the whole object. Never an empty range.
    pub range: Option<ByteRange>,
    pub if_match: Option<ETag>,
    pub if_none_match: Option<ETag>,
}

/// The head of a GET's reply, with the body still to come.
pub struct GetReply {
    pub meta: ObjectMeta,
    /// The bytes that the body carries; checked against `Content-Range`, never longer than asked for.
    pub range: ByteRange,
    pub body: BodyStream,
    /// By which the service knows the request.
    pub request_id: Option<Box<str>>,
}

impl fmt::Debug for GetReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetReply").field("meta", &self.meta).field("range", &self.range).finish_non_exhaustive()
    }
}

/// What the service says of an object it has stored. Its CRC64 was compared with the bytes sent, where both are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutReceipt {
    pub etag: ETag,
    /// The server's clock when it answered: what the object's last-modified will say, but for the odd second.
    pub date: Option<SystemTime>,
    /// The service's own sum of the whole object.
    pub crc64: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReceipt {
    pub etag: ETag,
    /// Of the bytes as sent, equal to the service's.
    pub crc64: u64,
    pub size: u64,
}

#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    pub if_match: Option<ETag>,
    /// `Some`: directive REPLACE with exactly these; `None`: COPY.
    pub replace: Option<PutHeaders>,
    pub forbid_overwrite: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyReceipt {
    pub etag: ETag,
    pub crc64: Option<u64>,
    pub last_modified: Option<SystemTime>,
}

#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    pub prefix: String,
    pub delimiter: Option<String>,
    pub start_after: Option<String>,
    pub continuation_token: Option<String>,
    /// 1 to 1000.
    pub max_keys: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    pub key: String,
    pub size: u64,
    pub etag: ETag,
    pub last_modified: SystemTime,
    pub kind: ObjectKind,
    pub storage_class: Option<String>,
}

/// One page; keys are as the service has them, also those that no path can carry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    pub entries: Vec<ListEntry>,
    pub common_prefixes: Vec<String>,
    /// `Some` while there is more, even after an empty page.
    pub next_token: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartInfo {
    pub number: PartNumber,
    pub etag: ETag,
    pub size: u64,
    pub crc64: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartsPage {
    pub parts: Vec<PartInfo>,
    pub next_marker: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadInfo {
    pub key: String,
    pub upload_id: UploadId,
    pub initiated: Option<SystemTime>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadsPage {
    pub uploads: Vec<UploadInfo>,
    /// Key marker and upload id marker of the next page.
    pub next: Option<(String, String)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketInfo {
    pub name: String,
    /// `oss-cn-hangzhou`.
    pub location: Option<String>,
    pub extranet_endpoint: Option<String>,
    pub intranet_endpoint: Option<String>,
    pub storage_class: Option<String>,
    /// `Enabled`, `Suspended`, or absent where it never was.
    pub versioning: Option<String>,
    pub hierarchical_namespace: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketStat {
    pub storage: u64,
    pub object_count: u64,
    pub multipart_upload_count: u64,
}

/// Bounds on what a client asks of the network; `None` is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of bodies a second, up and down.
    pub upload: Option<u64>,
    pub download: Option<u64>,
    /// Requests a second.
    pub requests: Option<u32>,
}

/// Where credentials come from, to be asked again when the service refuses those in use.
pub trait CredentialSource: Send + Sync + fmt::Debug {
    /// Reads the source anew, past any cache; `None` where it has nothing now.
    fn reread(&self) -> Pin<Box<dyn Future<Output = Option<Credentials>> + Send + '_>>;
}

/// Whether the service is asked at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BreakerState {
    #[default]
    Closed,
    /// It has not answered for a while: requests wait.
    Open,
    /// The same, and a probe is under way.
    HalfOpen,
}

/// Requests of one operation since the start: every try counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    pub ok: u64,
    pub error: u64,
}

/// A snapshot of the client's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub requests: BTreeMap<Operation, RequestCounts>,
    pub retries: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub breaker: BreakerState,
    /// Since when requests fail after their fast tries, or wait for a service that does not answer.
    pub degraded_since: Option<SystemTime>,
    /// When, and what failed last, after its fast tries.
    pub last_error: Option<(SystemTime, Box<StatsError>)>,
}

/// The parts of an error that `status` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsError {
    pub operation: Operation,
    pub subject: String,
    pub code: Option<String>,
    pub message: String,
    pub request_id: Option<String>,
}
