//! What went wrong with a request, and whether it may have been done all the same.

use super::types::Operation;

/// What kind of failure the service or the way to it reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    NoSuchKey,
    NoSuchBucket,
    NoSuchUpload,
    /// A part named at Complete is missing, stale, or has another ETag.
    InvalidPart,
    /// `If-Match` and its kin did not hold (412).
    PreconditionFailed,
    /// `If-None-Match` held: not an error to whoever asked (304).
    NotModified,
    /// `x-oss-forbid-overwrite` met an object (409).
    AlreadyExists,
    AccessDenied,
    /// The key, its secret or the token was refused.
    Credentials,
    ClockSkew,
    /// A range that begins past the end (416).
    InvalidRange,
    NotSymlink,
    /// Archived and not restored.
    Archived,
    /// Object, part or copy source too large for the operation.
    TooLarge,
    /// A name or argument that the service refuses.
    InvalidArgument,
    /// The service does not do this (here).
    Unsupported,
    Quota,
    Throttled,
    /// 5xx.
    Server,
    /// Connection, TLS, DNS, or no byte moved within the deadline.
    Transport,
    /// A checksum does not match.
    Corrupt,
    /// An answer that makes no sense: HTML, broken XML, missing headers.
    Protocol,
    /// The key or an argument cannot be sent by this client; nothing was sent.
    Unsendable,
    /// Reading the body to be sent failed on this machine; nothing was stored.
    LocalIo,
}

/// Whether the request may have had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It surely did nothing.
    NotApplied,
    /// It may have been done: look before doing it again.
    Unknown,
}

/// A failed request, after all the tries that its kind allows.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} {subject}: {}{}{message}{}", .code.as_deref().unwrap_or_default(), if .code.is_some() { ": " } else { "" }, .request_id.as_deref().map(|id| format!(" (request {id})")).unwrap_or_default())]
pub struct Error {
    pub operation: Operation,
    pub kind: ErrorKind,
    pub outcome: Outcome,
    /// HTTP status, 0 where there was no reply.
    pub status: u16,
    /// The `Code` of the error body.
    pub code: Option<String>,
    pub message: String,
    pub request_id: Option<String>,
    /// The key, or the bucket for operations on it.
    pub subject: String,
    /// The `Endpoint` element, where the bucket lives elsewhere.
    pub endpoint: Option<String>,
}
