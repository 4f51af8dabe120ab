//! What went wrong with a request, and whether it may have been done all the same.
//!
//! The kind comes from the `Code` of the error body, or of `x-oss-err` where a reply has no body; from the status only
//! where there is no code. What to do about it is decided in `retry` and by the callers.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, StatusCode};

use super::types::Operation;
use super::xml;
use crate::base::caller::Cut;
use crate::base::fields;

/// A failure that took less is told without its time, in words for people.
const TOOK_MS_MIN: u32 = 100;

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
    /// Whoever asked was told to stop waiting.
    Interrupted,
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
#[derive(Debug, Clone)]
pub struct Error {
    pub operation: Operation,
    pub kind: ErrorKind,
    pub outcome: Outcome,
    /// HTTP status, 0 where there was no reply.
    pub status: u16,
    /// The `Code` of the error body.
    pub code: Option<String>,
    pub message: String,
    pub request_id: Option<Box<str>>,
    /// Milliseconds from the first try to the end of the last; 0 where nothing was sent, or that is not known.
    pub took_ms: u32,
    /// The key, or the bucket for operations on it.
    pub subject: String,
    /// The `Endpoint` element, where the bucket lives elsewhere.
    pub endpoint: Option<Box<str>>,
}

impl std::error::Error for Error {}

/// `OPERATION SUBJECT: CODE: MESSAGE (request ID, 1.5 s)`, what is not known left out.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fields::note(fields::OPERATION, self.operation);
        fields::note(fields::PATH, &self.subject);
        write!(f, "{} {}: ", self.operation, self.subject)?;
        if let Some(code) = &self.code {
            fields::note(fields::CODE, code);
            write!(f, "{code}: ")?;
        }
        f.write_str(&self.message)?;
        let request = self.request_id.as_ref().map(|id| format!("request {id}"));
        let took = (self.took_ms >= TOOK_MS_MIN).then(|| format!("{:.1} s", f64::from(self.took_ms) / 1000.0));
        if let Some(id) = &self.request_id {
            fields::note(fields::REQUEST_ID, id);
        }
        if self.took_ms > 0 {
            fields::note(fields::DURATION, self.took_ms);
        }
        match (request, took) {
            (None, None) => Ok(()),
            (Some(one), None) | (None, Some(one)) => write!(f, " ({one})"),
            (Some(request), Some(took)) => write!(f, " ({request}, {took})"),
        }
    }
}

impl Error {
    /// An error of this side's making: no reply, or one that cannot be believed.
    pub(crate) fn local(
        operation: Operation,
        subject: &str,
        kind: ErrorKind,
        outcome: Outcome,
        message: impl ToString,
    ) -> Self {
        Self {
            operation,
            kind,
            // What only reads has no effect that could be in doubt.
            outcome: if operation.is_write() { outcome } else { Outcome::NotApplied },
            status: 0,
            code: None,
            message: message.to_string(),
            request_id: None,
            took_ms: 0,
            subject: subject.into(),
            endpoint: None,
        }
    }

    /// Whoever asked waits no more.
    pub(crate) fn cut(operation: Operation, subject: &str, cut: Cut) -> Self {
        let kind = match cut {
            Cut::Interrupted => ErrorKind::Interrupted,
            Cut::TimedOut => ErrorKind::Transport,
        };
        Self::local(operation, subject, kind, Outcome::Unknown, cut)
    }

    /// The key or an argument cannot be sent.
    pub(super) fn unsendable(operation: Operation, subject: &str, message: impl ToString) -> Self {
        Self::local(operation, subject, ErrorKind::Unsendable, Outcome::NotApplied, message)
    }

    /// An error that a reply reports, or a reply of which nothing can be made.
    pub(super) fn from_reply(
        operation: Operation,
        subject: &str,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Self {
        let mut report = Report::read(headers, body);
        let kind = match &report.code {
            Some(code) => kind_of_code(code, status),
            None if body.trim_ascii().is_empty() => kind_of_status(status),
            None => kind_of_garbage(status),
        };
        if report.code.is_none() && kind == ErrorKind::Protocol {
            report.code = Some(GARBAGE_CODE.into());
        }
        let reason = || status.canonical_reason().unwrap_or("no message").into();
        let mut message: String = report.message.unwrap_or_else(reason);
        if kind == ErrorKind::Archived {
            message += &format!("; it is archived: restore it first, as by `ossutil restore oss://BUCKET/{subject}`");
        }
        Self {
            status: status.as_u16(),
            code: report.code,
            message,
            request_id: report.request_id.or_else(|| header(headers, REQUEST_ID)).map(Into::into),
            endpoint: report.endpoint.map(Into::into),
            ..Self::local(operation, subject, kind, outcome_of(kind, status), "")
        }
    }

    /// The same error, told of a reply with these headers.
    pub(super) fn with_reply(mut self, status: StatusCode, headers: &HeaderMap) -> Self {
        self.status = status.as_u16();
        self.request_id = header(headers, REQUEST_ID).map(Into::into);
        self
    }

    /// Whether it says that the service is sick or cannot be reached, as far as this one request tells.
    pub fn is_outage(&self) -> bool {
        matches!(self.kind, ErrorKind::Transport | ErrorKind::Server | ErrorKind::Throttled)
    }

    /// Whether this is an orderly answer to a question that was asked, rather than a failure.
    pub(super) fn is_answer(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::NoSuchKey
                | ErrorKind::NotModified
                | ErrorKind::PreconditionFailed
                | ErrorKind::AlreadyExists
                | ErrorKind::NotSymlink
                | ErrorKind::InvalidRange
        )
    }
}

/// The code that stands in for one where a gateway answered with something else (§6.1).
const GARBAGE_CODE: &str = "BadErrorResponse";
pub(super) const REQUEST_ID: &str = "x-oss-request-id";

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).and_then(xml::word)
}

/// What an `<Error>` tells.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    code: Option<String>,
    message: Option<String>,
    request_id: Option<String>,
    endpoint: Option<String>,
}

impl Report {
    /// From the body, or from `x-oss-err` where that is empty; nothing of either if it is no error document.
    fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        if !body.trim_ascii().is_empty() {
            return Self::parse(body).unwrap_or_default();
        }
        let encoded = headers.get("x-oss-err").map(|value| value.as_bytes().trim_ascii()).unwrap_or_default();
        BASE64.decode(encoded).ok().and_then(|xml| Self::parse(&xml)).unwrap_or_default()
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let mut report = Self::default();
        xml::walk(body, "Error", |path, text| {
            match path {
                "Code" => report.code = xml::word(text),
                "Message" => report.message = xml::word(text),
                "RequestId" => report.request_id = xml::word(text),
                "Endpoint" => report.endpoint = xml::word(text),
                _ => {}
            }
            Ok(())
        })
        .ok()?;
        Some(report)
    }
}

/// The table of the OSS reference, §6.2.
fn kind_of_code(code: &str, status: StatusCode) -> ErrorKind {
    match code {
        "NoSuchKey" | "SymlinkTargetNotExist" | "NoSuchVersion" => ErrorKind::NoSuchKey,
        "NoSuchBucket" => ErrorKind::NoSuchBucket,
        "NoSuchUpload" => ErrorKind::NoSuchUpload,
        "InvalidPart" | "FilePartNotExist" | "FilePartStale" | "FilePartInterity" => ErrorKind::InvalidPart,
        "PreconditionFailed" => ErrorKind::PreconditionFailed,
        "NotModified" => ErrorKind::NotModified,
        "FileAlreadyExists" | "ObjectAlreadyExists" => ErrorKind::AlreadyExists,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "SecurityTokenExpired"
        | "InvalidSecurityToken"
        | "AccessKeyIdAndSecurityTokenNotMatch" => ErrorKind::Credentials,
        "RequestTimeTooSkewed" => ErrorKind::ClockSkew,
        "InvalidRange" => ErrorKind::InvalidRange,
        "NotSymlink" => ErrorKind::NotSymlink,
        "InvalidObjectState" | "RestoreAlreadyInProgress" => ErrorKind::Archived,
        "EntityTooLarge" => ErrorKind::TooLarge,
        "OperationNotSupported" | "NotImplemented" | "ObjectNotAppendable" => ErrorKind::Unsupported,
        // Bodies are well formed when they leave here.
        "InvalidDigest" | "BadRequest" | "InvalidCRC64" | "MalformedXML" => ErrorKind::Corrupt,
        "IncompleteBody" | "RequestTimeout" => ErrorKind::Transport,
        "SlowDown" => ErrorKind::Throttled,
        "GetSourceObjectFailed" => ErrorKind::Server,
        _ if code.ends_with("LimitExceeded") => ErrorKind::Throttled,
        _ if code.contains("Quota") => ErrorKind::Quota,
        _ => kind_of_unlisted(status),
    }
}

/// Codes that are not told apart: whether to try again is all that matters of them. A 404 of an unknown code must
/// not look like a missing object.
fn kind_of_unlisted(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        429 => ErrorKind::Throttled,
        401 | 403 | 405 | 409 => ErrorKind::AccessDenied,
        500.. => ErrorKind::Server,
        _ => ErrorKind::InvalidArgument,
    }
}

/// Replies without a body, such as those to HEAD.
fn kind_of_status(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        304 => ErrorKind::NotModified,
        400 => ErrorKind::InvalidArgument,
        401 | 403 => ErrorKind::AccessDenied,
        404 => ErrorKind::NoSuchKey,
        409 => ErrorKind::AlreadyExists,
        412 => ErrorKind::PreconditionFailed,
        416 => ErrorKind::InvalidRange,
        _ => kind_of_garbage(status),
    }
}

/// Replies that the service did not write.
fn kind_of_garbage(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        304 => ErrorKind::NotModified,
        412 => ErrorKind::PreconditionFailed,
        429 => ErrorKind::Throttled,
        500.. => ErrorKind::Server,
        _ => ErrorKind::Protocol,
    }
}

/// A refusal did nothing, and so did a request that was throttled; any other failure of the server may have come after
/// the deed.
fn outcome_of(kind: ErrorKind, status: StatusCode) -> Outcome {
    if status.is_server_error() && kind != ErrorKind::Throttled || status.is_success() {
        Outcome::Unknown
    } else {
        Outcome::NotApplied
    }
}

/// A failed try: the error, and what its reply asks for.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Box<Error>,
    /// `Date`, for mending the clock.
    pub(super) server_date: Option<std::time::SystemTime>,
    /// `Retry-After`, or `x-oss-qos-delay-time` where that is longer.
    pub(super) retry_after: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error: Box::new(error), server_date: None, retry_after: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(operation: Operation, status: u16, body: &str) -> Error {
        let status = StatusCode::from_u16(status).unwrap();
        Error::from_reply(operation, "k", status, &HeaderMap::new(), body.as_bytes())
    }

    fn with_code(operation: Operation, status: u16, code: &str) -> Error {
        read(operation, status, &format!("<Error><Code>{code}</Code></Error>"))
    }

    #[test]
    fn error_bodies_are_read() {
        let error = read(Operation::GetObject, 404, include_str!("../../tests/data/xml/error-nosuchkey.xml"));
        assert_eq!(error.kind, ErrorKind::NoSuchKey);
        assert_eq!(error.code.as_deref(), Some("NoSuchKey"));
        assert_eq!(error.message, "The specified key does not exist.");
        assert_eq!(error.request_id.as_deref(), Some("65A0C0FFEE0123456789ABCD"));
        assert_eq!(error.status, 404);
        assert_eq!(
            error.to_string(),
            "GetObject k: NoSuchKey: The specified key does not exist. (request 65A0C0FFEE0123456789ABCD)"
        );
    }

    #[test]
    fn namespaces_and_white_space_are_of_no_account() {
        let body = include_str!("../../tests/data/xml/error-with-namespace-and-whitespace.xml");
        let error = read(Operation::PutObject, 403, body);
        assert_eq!(error.kind, ErrorKind::AccessDenied);
        assert_eq!(error.code.as_deref(), Some("AccessDenied"));
        assert!(error.message.starts_with("The bucket you are") && error.message.ends_with("this endpoint."));
        assert_eq!(error.endpoint.as_deref(), Some("oss-cn-shanghai.aliyuncs.com"));
        assert_eq!(error.outcome, Outcome::NotApplied);
    }

    #[test]
    fn the_other_samples_have_their_kinds() {
        let mismatch = include_str!("../../tests/data/xml/error-signature-mismatch-v4.xml");
        assert_eq!(read(Operation::GetObject, 403, mismatch).kind, ErrorKind::Credentials);
        let throttled = include_str!("../../tests/data/xml/error-qps-limit-503.xml");
        let error = read(Operation::CompleteMultipartUpload, 503, throttled);
        assert_eq!((error.kind, error.outcome), (ErrorKind::Throttled, Outcome::NotApplied));
        let small = include_str!("../../tests/data/xml/error-entity-too-small.xml");
        assert_eq!(read(Operation::CompleteMultipartUpload, 400, small).kind, ErrorKind::InvalidArgument);
        let http = include_str!("../../tests/data/xml/error-position-mismatch-409.http");
        let (_, body) = http.split_once("\n\n").unwrap();
        let error = read(Operation::PutObject, 409, body);
        assert_eq!(error.code.as_deref(), Some("PositionNotEqualToLength"));
        assert_ne!(error.kind, ErrorKind::AlreadyExists);
    }

    #[test]
    fn an_error_of_head_comes_from_its_header() {
        let mut headers = HeaderMap::new();
        for line in include_str!("../../tests/data/xml/head-404-x-oss-err.headers").lines().skip(1) {
            if let Some((name, value)) = line.split_once(": ") {
                headers.insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
        }
        let error = Error::from_reply(Operation::HeadObject, "k", StatusCode::NOT_FOUND, &headers, b"");
        assert_eq!(error.kind, ErrorKind::NoSuchKey);
        assert_eq!(error.message, "The specified key does not exist.");
        assert_eq!(error.request_id.as_deref(), Some("65A0C0FFEE0123456789ABD7"));
        headers.insert("x-oss-err", "!!!".parse().unwrap());
        let error = Error::from_reply(Operation::HeadObject, "k", StatusCode::NOT_FOUND, &headers, b"");
        assert_eq!((error.kind, error.code), (ErrorKind::NoSuchKey, None));
        assert_eq!(error.request_id.as_deref(), Some("65A0C0FFEE0123456789ABD7"));
    }

    #[test]
    fn the_code_outweighs_the_status() {
        for (status, code, kind) in [
            (404, "NoSuchBucket", ErrorKind::NoSuchBucket),
            (404, "SomethingElse", ErrorKind::InvalidArgument),
            (404, "SymlinkTargetNotExist", ErrorKind::NoSuchKey),
            (409, "FileImmutable", ErrorKind::AccessDenied),
            (409, "FileAlreadyExists", ErrorKind::AlreadyExists),
            (400, "InvalidCRC64", ErrorKind::Corrupt),
            (400, "MalformedXML", ErrorKind::Corrupt),
            (400, "RequestTimeout", ErrorKind::Transport),
            (403, "RequestTimeTooSkewed", ErrorKind::ClockSkew),
            (403, "InvalidObjectState", ErrorKind::Archived),
            (403, "BucketStorageQuotaExceeded", ErrorKind::Quota),
            (400, "EntityTooLarge", ErrorKind::TooLarge),
            (501, "NotImplemented", ErrorKind::Unsupported),
            (503, "ServiceUnavailable", ErrorKind::Server),
            (503, "UploadTrafficRateLimitExceeded", ErrorKind::Throttled),
            (429, "Whatever", ErrorKind::Throttled),
            (403, "SecondLevelDomainForbidden", ErrorKind::AccessDenied),
        ] {
            assert_eq!(with_code(Operation::PutObject, status, code).kind, kind, "{status} {code}");
        }
    }

    #[test]
    fn garbage_is_not_taken_for_a_missing_object() {
        let html = "<html><body>Not here</body></html>";
        let error = read(Operation::GetObject, 404, html);
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Protocol, Some("BadErrorResponse")));
        assert_eq!(read(Operation::GetObject, 502, html).kind, ErrorKind::Server);
        assert_eq!(read(Operation::GetObject, 429, html).kind, ErrorKind::Throttled);
        assert_eq!(read(Operation::GetObject, 304, "").kind, ErrorKind::NotModified);
        assert_eq!(read(Operation::GetObject, 301, "").kind, ErrorKind::Protocol);
    }

    #[test]
    fn only_writes_can_be_in_doubt() {
        let outcome = |operation, status, code| with_code(operation, status, code).outcome;
        assert_eq!(outcome(Operation::PutObject, 500, "InternalError"), Outcome::Unknown);
        assert_eq!(outcome(Operation::PutObject, 403, "AccessDenied"), Outcome::NotApplied);
        assert_eq!(outcome(Operation::GetObject, 500, "InternalError"), Outcome::NotApplied);
    }
}
