//! The service: a concrete, cheap-to-clone async client of one bucket.
//!
//! Signs, sends, retries what may be repeated, parses replies and errors, and checks CRC64 on what it sent.
//! Knows nothing of files, inodes or mounts, and could be published as a crate of its own.

mod client;
mod error;
mod types;

pub use client::{Client, ClientOptions};
pub use error::{Error, ErrorKind, Outcome};
pub use types::{
    Addressing, Body, BodySource, BodyStream, BucketInfo, BucketStat, CopyOptions, CopyReceipt, Credentials, Endpoint,
    GetOptions, GetReply, ListEntry, ListPage, ListRequest, ObjectKind, ObjectMeta, Operation, PartInfo, PartReceipt,
    PartsPage, PutHeaders, PutReceipt, RequestCounts, SignatureVersion, Stats, StatsError, UploadInfo, UploadsPage,
};
