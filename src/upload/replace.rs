//! Changing an object's metadata: a copy onto itself, settled where its outcome was lost.

use crate::base::{ETag, ObjectKey};
use crate::oss::{Client, CopyOptions, CopyReceipt, Error, ErrorKind, Outcome, PutHeaders};

/// An object as it was last seen.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'o> {
    pub key: &'o ObjectKey,
    pub etag: &'o ETag,
    pub size: u64,
    pub crc64: Option<u64>,
}

/// Gives an object these headers and leaves its bytes as they are.
///
/// # Errors
/// `PreconditionFailed` where another client has replaced it. A copy of ours whose reply was lost may have changed the
/// ETag, so that its repetition is refused: that is found out by looking.
pub async fn replace_headers(
    client: &Client,
    object: Standing<'_>,
    headers: &PutHeaders,
) -> Result<CopyReceipt, Error> {
    let options =
        CopyOptions { if_match: Some(object.etag.clone()), replace: Some(headers.clone()), ..CopyOptions::default() };
    let error = match client.copy_object(object.key, object.key, &options).await {
        Err(error) if error.kind == ErrorKind::PreconditionFailed && error.outcome == Outcome::Unknown => error,
        other => return other,
    };
    let found = client.head_object(object.key).await?;
    let same_bytes = found.size == object.size && (object.crc64.is_none() || found.crc64 == object.crc64);
    if same_bytes && found.headers.user_meta == headers.user_meta {
        Ok(CopyReceipt { etag: found.etag, crc64: found.crc64, last_modified: Some(found.last_modified) })
    } else {
        Err(Error { outcome: Outcome::NotApplied, ..error })
    }
}
