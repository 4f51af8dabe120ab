//! CopyObject and UploadPartCopy: shallow, the copy shares the segments of its source.
//!
//! Two traps of the service are kept: a copy onto itself takes the metadata of the request whatever the directive
//! says, and a part range outside the source copies all of it without a word (OSS reference §7.8, §7.11).

use std::sync::Arc;

use http::StatusCode;
use md5::{Digest, Md5};
use percent_encoding::percent_decode_str;

use super::multipart::{check_upload, part_number};
use super::put::expectation;
use crate::base::limits::{GIB, PART_BYTES_MAX};
use crate::base::{ByteRange, time};
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::range::copy_source;
use crate::devserver::reply::Reply;
use crate::devserver::store::{
    Attributes, Expect, Kind, Object, ObjectHead, Part, PartHead, StoreError, hex_upper, seconds, slice, sum,
};
use crate::devserver::xml::Document;
use crate::devserver::{attributes, conditions};

/// Largest object whose storage class a copy may change.
const RECODE_BYTES_MAX: u64 = GIB;

struct Source {
    bucket: String,
    key: String,
    object: Arc<Object>,
}

impl Source {
    /// Reads `x-oss-copy-source: /BUCKET/KEY` and finds it.
    fn find(call: &Call) -> Result<Self, Failure> {
        let header = call.header("x-oss-copy-source").unwrap_or_default();
        let bad = || Failure::bad_value("x-oss-copy-source", &header);
        let (path, version) = header.split_once('?').unwrap_or((&header, ""));
        if !version.is_empty() {
            return Err(Failure::not_implemented("versionId"));
        }
        let path = percent_decode_str(path).decode_utf8().map_err(|_| bad())?;
        let (bucket, key) = path.strip_prefix('/').unwrap_or(&path).split_once('/').ok_or_else(bad)?;
        let found = call.shared.store.object(bucket, key).map_err(|error| Failure::of_store(error, bucket, ""))?;
        let object = found.ok_or_else(|| Failure::no_such_key(key))?;
        let head = &object.head;
        conditions::check(&call.headers, conditions::COPY_SOURCE, &head.etag, head.modified_at())?;
        Ok(Self { bucket: bucket.into(), key: key.into(), object })
    }

    fn is_target(&self, call: &Call) -> bool {
        self.bucket == call.bucket() && self.key == call.key()
    }
}

pub(super) fn copy_object(call: &Call) -> Result<Reply, Failure> {
    loop {
        let source = Source::find(call)?;
        let attributes = copied_attributes(call, &source)?;
        check_size(call, &source, &attributes)?;
        let object = copied(call, &source, attributes);
        // Metadata alone are rewritten: whoever replaced the bytes in between must not be undone.
        let expect = match expectation(call)? {
            Expect::Anything if source.is_target(call) => Expect::Same(Some(&source.object)),
            expect => expect,
        };
        match call.shared.store.put(call.bucket(), call.key(), &object, expect) {
            Err(StoreError::ObjectChanged) => continue,
            Err(error) => return Err(call.failure(error)),
            Ok(()) => return Ok(receipt(&object.head)),
        }
    }
}

fn copied_attributes(call: &Call, source: &Source) -> Result<Attributes, Failure> {
    let directive = call.header("x-oss-metadata-directive").unwrap_or_else(|| "COPY".into()).to_ascii_uppercase();
    let replaced = match directive.as_str() {
        "COPY" => source.is_target(call),
        "REPLACE" => true,
        _ => return Err(Failure::bad_value("x-oss-metadata-directive", directive)),
    };
    let sent = attributes::from_request(&call.headers)?;
    let kept = source.object.head.attributes.clone();
    let storage_class = match call.header("x-oss-storage-class") {
        Some(_) => sent.storage_class.clone(),
        None => kept.storage_class.clone(),
    };
    Ok(Attributes { storage_class, ..if replaced { sent } else { kept } })
}

fn check_size(call: &Call, source: &Source, attributes: &Attributes) -> Result<(), Failure> {
    let head = &source.object.head;
    let limit = if attributes.storage_class != head.attributes.storage_class {
        RECODE_BYTES_MAX
    } else if source.bucket != call.bucket() {
        PART_BYTES_MAX
    } else {
        u64::MAX
    };
    if head.size > limit { Err(Failure::too_large(limit)) } else { Ok(()) }
}

fn copied(call: &Call, source: &Source, attributes: Attributes) -> Object {
    let (onto_itself, now) = (source.is_target(call), call.shared.now());
    let Object { head, segments } = &*source.object;
    let (mut kind, mut etag) = (head.kind, head.etag.clone());
    if !onto_itself && kind == Kind::Appendable {
        kind = Kind::Normal;
    }
    // The ETag of a copy is only promised to be unlike others (OSS reference §10); with S3 it is the MD5 as ever.
    if !onto_itself && !call.is_s3 {
        etag = unlike(&[&head.etag, &source.bucket, &source.key, &time::micros(now).to_string()]);
    }
    let head = ObjectHead { kind, etag, modified: seconds(now), attributes, ..head.clone() };
    Object { head, segments: segments.clone() }
}

/// An ETag that differs when any of `parts` does.
fn unlike(parts: &[&str]) -> String {
    hex_upper(&Md5::digest(parts.join("\n")))
}

fn receipt(head: &ObjectHead) -> Reply {
    let mut document = Document::new("CopyObjectResult");
    document.element("ETag", format!("\"{}\"", head.etag)).element("LastModified", time::xml_utc(head.modified_at()));
    let reply = Reply::xml(document.finish()).header("etag", &format!("\"{}\"", head.etag));
    match head.crc64 {
        Some(crc) => reply.header("x-oss-hash-crc64ecma", &crc.to_string()),
        None => reply,
    }
}

pub(super) async fn upload_part_copy(call: &Call) -> Result<Reply, Failure> {
    let number = part_number(call)?;
    check_upload(call)?;
    let source = Source::find(call)?;
    if matches!(source.object.head.kind, Kind::Appendable | Kind::Symlink) {
        let message = "The operation is not supported for this type of source object.";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "OperationNotSupported", message).ec("0016-00000702"));
    }
    let size = source.object.head.size;
    let range = copy_source(call.header("x-oss-copy-source-range").as_deref(), size);
    let range = range.unwrap_or(ByteRange::new(0, size));
    if range.len() > PART_BYTES_MAX {
        return Err(Failure::too_large(PART_BYTES_MAX));
    }
    let object = source.object.clone();
    let segments = tokio::task::spawn_blocking(move || slice(&object.segments, range));
    let segments = segments.await.map_err(std::io::Error::other)??;
    let head = PartHead {
        number,
        size: range.len(),
        etag: unlike(&[&source.object.head.etag, &range.start.to_string(), &range.end.to_string()]),
        crc64: sum(&segments),
        modified: seconds(call.shared.now()),
    };
    let mut document = Document::new("CopyPartResult");
    let etag = format!("\"{}\"", head.etag);
    document.element("LastModified", time::xml_utc(call.shared.now())).element("ETag", &etag);
    let part = Part { head, segments };
    call.shared
        .store
        .put_part(call.bucket(), call.key(), call.upload_id(), part)
        .map_err(|error| call.failure(error))?;
    // No CRC64 (OSS reference §7.11), but the ETag also as a header: `oss2` reads it there.
    Ok(Reply::xml(document.finish()).header("etag", &etag))
}
