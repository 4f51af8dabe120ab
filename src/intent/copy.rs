//! Copying an object of any size on the server.
//!
//! One CopyObject wherever the service does it; where it says that the object is too large for that, part by part.

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::base::limits::{PART_BYTES_MAX, PARTS_MAX};
use crate::base::{ByteRange, ETag, ObjectKey, PartNumber, UploadId};
use crate::oss::{Client, CopyOptions, CopyReceipt, Error, ErrorKind, ObjectMeta, Operation, Outcome};

/// Parts of one object that are copied at a time.
const PARTS_AT_ONCE: usize = 8;

/// Copies an object within the bucket, metadata included. `options` may replace these only where the object is so small
/// that one request surely copies it.
///
/// # Errors
/// `PreconditionFailed` where the source is not `options.if_match`, `AlreadyExists` under
/// `options.forbid_overwrite`; after either nothing was changed.
pub async fn copy_any(
    client: &Client,
    source: &ObjectKey,
    target: &ObjectKey,
    options: &CopyOptions,
) -> Result<CopyReceipt, Error> {
    match client.copy_object(source, target, options).await {
        Err(error) if error.kind == ErrorKind::TooLarge => {
            log::debug!("{error}; copying it part by part");
            copy_in_parts(client, source, target, options).await
        }
        other => other,
    }
}

async fn copy_in_parts(
    client: &Client,
    source: &ObjectKey,
    target: &ObjectKey,
    options: &CopyOptions,
) -> Result<CopyReceipt, Error> {
    let meta = client.head_object(source).await?;
    if options.if_match.as_ref().is_some_and(|etag| *etag != meta.etag) {
        let message = "the source was replaced";
        return Err(failure(source, ErrorKind::PreconditionFailed, Outcome::NotApplied, message));
    }
    let upload = client.initiate_upload(target, &meta.headers).await?;
    let copied = copy_parts(client, (source, &meta), target, &upload, options.forbid_overwrite).await;
    if copied.is_err()
        && let Err(error) = client.abort_upload(target, &upload).await
    {
        log::warn!("{error}; its parts stay in the bucket until the upload is aborted");
    }
    copied
}

async fn copy_parts(
    client: &Client,
    (source, meta): (&ObjectKey, &ObjectMeta),
    target: &ObjectKey,
    upload: &UploadId,
    forbid_overwrite: bool,
) -> Result<CopyReceipt, Error> {
    let copies = runs(meta.size, PART_BYTES_MAX).into_iter().map(|(number, range)| async move {
        let etag = client.upload_part_copy(target, upload, number, source, range, &meta.etag).await?;
        Ok::<(PartNumber, ETag), Error>((number, etag))
    });
    let parts: Vec<_> = stream::iter(copies).buffered(PARTS_AT_ONCE).try_collect().await?;
    let (etag, crc64, at) = match client.complete_upload(target, upload, &parts, forbid_overwrite).await {
        Ok(receipt) => (receipt.etag, receipt.crc64, receipt.date),
        Err(error) if error.outcome == Outcome::Unknown => {
            let found = client.head_object(target).await?;
            if found.size != meta.size || found.crc64 != meta.crc64 {
                return Err(error);
            }
            (found.etag, found.crc64, Some(found.last_modified))
        }
        Err(error) => return Err(error),
    };
    if crc64.is_some() && meta.crc64.is_some() && crc64 != meta.crc64 {
        return Err(failure(
            target,
            ErrorKind::Corrupt,
            Outcome::Unknown,
            "the copy has another CRC64 than its source",
        ));
    }
    Ok(CopyReceipt { etag, crc64, last_modified: at })
}

fn failure(key: &ObjectKey, kind: ErrorKind, outcome: Outcome, message: &str) -> Error {
    Error::local(Operation::CopyObject, key.as_str(), kind, outcome, message)
}

/// Equal runs of at most `longest` bytes that make up the whole, numbered from 1.
fn runs(size: u64, longest: u64) -> Vec<(PartNumber, ByteRange)> {
    let count = size.div_ceil(longest).clamp(1, u64::from(PARTS_MAX));
    let each = size.div_ceil(count);
    let range = |n: u64| ByteRange::new((n * each).min(size), ((n + 1) * each).min(size));
    (0..count).filter_map(|n| Some((PartNumber::new(n as u32 + 1)?, range(n)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::{GIB, PART_BYTES_MIN};

    #[test]
    fn runs_make_up_the_whole() {
        for size in [1, GIB, 5 * GIB, 5 * GIB + 1, 17 * GIB + 3, 48 << 40] {
            let runs = runs(size, PART_BYTES_MAX);
            assert_eq!(runs[0].1.start, 0);
            assert_eq!(runs.last().map(|(_, range)| range.end), Some(size));
            assert!(runs.windows(2).all(|pair| pair[0].1.end == pair[1].1.start && pair[0].0 < pair[1].0));
            assert!(runs.iter().all(|(_, range)| range.len() <= PART_BYTES_MAX));
            assert!(size <= PART_BYTES_MAX || runs.iter().all(|(_, range)| range.len() >= PART_BYTES_MIN));
        }
        assert_eq!(runs(5 * GIB, PART_BYTES_MAX).len(), 1);
        assert_eq!(runs(5 * GIB + 1, PART_BYTES_MAX).len(), 2);
    }
}
