//! Objects, uploads and parts as values.
//!
//! The part of each that the log writes is a `…Head`; the bytes are segments beside it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use super::segment::{Segment, Written};
use crate::base::time;

/// What `x-oss-object-type` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Normal,
    Multipart,
    Appendable,
    Symlink,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Multipart => "Multipart",
            Self::Appendable => "Appendable",
            Self::Symlink => "Symlink",
        }
    }
}

/// What a client stores beside the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    /// Headers that are handed back as they came: `content-type`, `cache-control`, `x-oss-server-side-encryption`…
    pub(crate) headers: BTreeMap<String, String>,
    /// User metadata without `x-oss-meta-`, names in lower case.
    pub(crate) meta: BTreeMap<String, String>,
    pub(crate) storage_class: String,
}

/// Everything about an object but its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectHead {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    /// Without quotes.
    pub(crate) etag: String,
    /// None for symlinks, which have no bytes.
    pub(crate) crc64: Option<u64>,
    /// Base64; only of Normal objects.
    pub(crate) content_md5: Option<String>,
    /// Seconds since the epoch.
    pub(crate) modified: u64,
    pub(crate) attributes: Attributes,
    pub(crate) symlink_target: Option<String>,
}

impl ObjectHead {
    pub(crate) fn modified_at(&self) -> SystemTime {
        at_seconds(self.modified)
    }
}

/// An object; replaced as a whole, never changed.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) head: ObjectHead,
    pub(crate) segments: Vec<Segment>,
}

impl Object {
    /// What PutObject makes of a body.
    pub(crate) fn normal(body: Written, attributes: Attributes, now: SystemTime) -> Self {
        let head = ObjectHead {
            kind: Kind::Normal,
            size: body.size,
            etag: hex_upper(&body.md5),
            crc64: Some(body.crc),
            content_md5: Some(base64_of(&body.md5)),
            modified: seconds(now),
            attributes,
            symlink_target: None,
        };
        Self { head, segments: body.segments }
    }

    /// A link; its ETag only has to differ from others.
    pub(crate) fn symlink(target: String, attributes: Attributes, now: SystemTime) -> Self {
        let head = ObjectHead {
            kind: Kind::Symlink,
            size: target.len() as u64,
            etag: hex_upper(&Md5::digest(format!("symlink:{target}"))),
            crc64: None,
            content_md5: None,
            modified: seconds(now),
            attributes,
            symlink_target: Some(target),
        };
        Self { head, segments: Vec::new() }
    }
}

/// Everything about a part but its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartHead {
    pub(crate) number: u32,
    pub(crate) size: u64,
    pub(crate) etag: String,
    pub(crate) crc64: u64,
    /// Seconds since the epoch.
    pub(crate) modified: u64,
}

/// A part of an open upload.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) head: PartHead,
    pub(crate) segments: Vec<Segment>,
}

/// Everything about an open upload but its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadHead {
    /// Seconds since the epoch.
    pub(crate) initiated: u64,
    pub(crate) attributes: Attributes,
}

/// An open multipart upload.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) head: UploadHead,
    pub(crate) parts: BTreeMap<u32, Arc<Part>>,
}

/// Whole seconds since the epoch: the resolution of the service's times.
pub(crate) fn seconds(at: SystemTime) -> u64 {
    time::since_epoch(at).as_secs()
}

/// The inverse of [`seconds`].
pub(crate) fn at_seconds(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Upper-case hex, as ETags are written.
pub(crate) fn hex_upper(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        write!(out, "{byte:02X}").expect("writing to a string");
        out
    })
}

/// Standard base64, as Content-MD5 is written.
pub(crate) fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
