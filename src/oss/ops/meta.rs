//! What the headers of a reply tell of an object.

use std::time::SystemTime;

use http::HeaderMap;

use crate::base::{ETag, time};
use crate::oss::transport::header;
use crate::oss::types::{ObjectKind, ObjectMeta, PutHeaders, PutReceipt};

/// A header without which the reply makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reply lacks a sound `{0}` header")]
pub(super) struct Missing(pub(super) &'static str);

/// Everything but the size, which stands elsewhere in the reply to a ranged GET. With `stored` headers or without.
pub(super) fn object_meta(headers: &HeaderMap, size: u64, stored: bool) -> Result<ObjectMeta, Missing> {
    let modified = header(headers, "last-modified").and_then(time::parse_http_date);
    Ok(ObjectMeta {
        size,
        etag: etag(headers)?,
        last_modified: modified.ok_or(Missing("last-modified"))?,
        crc64: crc64(headers),
        kind: header(headers, "x-oss-object-type").map(object_kind).unwrap_or_default(),
        headers: if stored { stored_headers(headers) } else { PutHeaders::default() },
        restore: owned(headers, "x-oss-restore"),
    })
}

pub(super) fn etag(headers: &HeaderMap) -> Result<ETag, Missing> {
    header(headers, "etag").filter(|text| !text.is_empty()).map(ETag::new).ok_or(Missing("etag"))
}

/// What is told of an object that has just been stored; its ETag stands in a header, or in the body.
pub(super) fn put_receipt(headers: &HeaderMap, etag: ETag) -> PutReceipt {
    PutReceipt { etag, date: date(headers), crc64: crc64(headers) }
}

/// The service's sum of the whole object, where it tells it.
pub(super) fn crc64(headers: &HeaderMap) -> Option<u64> {
    header(headers, "x-oss-hash-crc64ecma")?.parse().ok()
}

/// The server's clock when it answered.
pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    header(headers, "date").and_then(time::parse_http_date)
}

pub(super) fn content_length(headers: &HeaderMap) -> Result<u64, Missing> {
    header(headers, "content-length").and_then(|text| text.parse().ok()).ok_or(Missing("content-length"))
}

/// The `Type` of a listing, or an `x-oss-object-type`; what is unknown counts as normal.
pub(super) fn object_kind(text: &str) -> ObjectKind {
    match text.trim() {
        "Multipart" => ObjectKind::Multipart,
        "Appendable" => ObjectKind::Appendable,
        "Symlink" => ObjectKind::Symlink,
        _ => ObjectKind::Normal,
    }
}

fn stored_headers(headers: &HeaderMap) -> PutHeaders {
    let user_meta = headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().strip_prefix("x-oss-meta-")?;
        Some((name.to_owned(), lossy(value.as_bytes())))
    });
    PutHeaders {
        content_type: owned(headers, "content-type"),
        cache_control: owned(headers, "cache-control"),
        content_disposition: owned(headers, "content-disposition"),
        content_encoding: owned(headers, "content-encoding"),
        expires: owned(headers, "expires"),
        user_meta: user_meta.collect(),
        storage_class: owned(headers, "x-oss-storage-class"),
        server_side_encryption: owned(headers, "x-oss-server-side-encryption"),
        forbid_overwrite: false,
    }
}

fn owned(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| lossy(value.as_bytes()))
}

/// Values may be UTF-8 where another client stored them so; they are sent back as they came.
fn lossy(value: &[u8]) -> String {
    String::from_utf8_lossy(value.trim_ascii()).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    /// The headers of a recorded reply.
    pub(in crate::oss::ops) fn parse(text: &str) -> HeaderMap {
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        lines
            .map(|(name, value)| {
                (http::HeaderName::from_bytes(name.as_bytes()).unwrap(), http::HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn the_head_of_an_object_is_read() {
        let headers = parse(include_str!("../../../tests/data/xml/head-object-ossfs1-file.headers"));
        let size = content_length(&headers).unwrap();
        let meta = object_meta(&headers, size, true).unwrap();
        assert_eq!(meta.size, 5);
        assert_eq!(meta.etag, ETag::new("5D41402ABC4B2A76B9719D911017C592"));
        assert_eq!(meta.last_modified, time::from_micros(1_709_798_400_000_000));
        assert_eq!(meta.crc64, Some(11_177_612_005_948_864_433));
        assert_eq!(meta.kind, ObjectKind::Normal);
        assert_eq!(meta.headers.content_type.as_deref(), Some("text/plain"));
        assert_eq!(meta.headers.storage_class.as_deref(), Some("Standard"));
        assert_eq!(meta.headers.user_meta.len(), 7);
        assert_eq!(meta.headers.user_meta["mode"], "33188");
        assert_eq!(meta.headers.user_meta["xattr"], "%7B%22user.k%22%3A%22dg%3D%3D%22%7D");
        assert_eq!(object_meta(&headers, size, false).unwrap().headers, PutHeaders::default());
    }

    #[test]
    fn the_meta_of_a_link_tells_its_kind_and_length() {
        let headers = parse(include_str!("../../../tests/data/xml/head-symlink-objectmeta.headers"));
        let meta = object_meta(&headers, content_length(&headers).unwrap(), false).unwrap();
        assert_eq!((meta.kind, meta.size, meta.crc64), (ObjectKind::Symlink, 22, None));
        assert!(meta.last_modified > time::from_micros(0) + Duration::from_secs(1));
    }

    #[test]
    fn replies_without_what_matters_are_refused() {
        let headers = parse(include_str!("../../../tests/data/xml/complete-multipart.headers"));
        assert_eq!(object_meta(&headers, 0, true), Err(Missing("etag")));
        assert_eq!(content_length(&headers), Err(Missing("content-length")));
        assert_eq!(crc64(&headers), Some(11_051_210_869_376_104_954));
    }
}
