//! The service: a concrete, cheap-to-clone async client of one bucket.
//!
//! Signs, sends, retries what may be repeated, parses replies and errors, and checks CRC64 on what it sent.
//! Knows nothing of files, inodes or mounts, and could be published as a crate of its own.

mod breaker;
mod client;
mod download;
mod encode;
mod endpoint;
mod error;
mod limiter;
#[doc(hidden)]
pub mod measured;
mod ops;
mod request;
mod retry;
mod sign;
mod stats;
mod transport;
mod types;
mod upload;
mod xml;

#[cfg(test)]
mod wire_tests;

pub use client::{Client, ClientOptions};
pub use encode::component;
pub use endpoint::{Addressing, BadEndpoint, Endpoint};
pub use error::{Error, ErrorKind, Outcome};
pub use sign::hmac_sha1;
pub use types::{
    Body, BodySource, BodyStream, BreakerState, BucketInfo, BucketStat, CopyOptions, CopyReceipt, CredentialSource,
    Credentials, GetOptions, GetReply, Limits, ListEntry, ListPage, ListRequest, ObjectKind, ObjectMeta, Operation,
    PartInfo, PartReceipt, PartsPage, PutHeaders, PutReceipt, RequestCounts, SignatureVersion, Stats, StatsError,
    UploadInfo, UploadsPage,
};
