//! CompleteMultipartUpload: parts become an object without a byte being copied.

use std::sync::Arc;

use http::StatusCode;
use md5::{Digest, Md5};

use super::list::Encoding;
use super::put::expectation;
use crate::base::limits::{MIB, PARTS_MAX};
use crate::base::{ETag, PartNumber};
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::reply::Reply;
use crate::devserver::store::{Kind, Object, ObjectHead, Part, StoreError, Upload, hex_upper, seconds, sum};
use crate::devserver::xml::{Document, Element};

const BODY_BYTES_MAX: u64 = 4 * MIB;
const EXISTS_EC: &str = "0042-00000214";

pub(super) async fn complete(call: &mut Call) -> Result<Reply, Failure> {
    let encoding = Encoding::of(call)?;
    let body = call.collect_body(BODY_BYTES_MAX).await?;
    let upload = call.shared.store.upload(call.bucket(), call.key(), call.upload_id());
    let upload = upload.map_err(|error| call.failure(error))?;
    let parts = match call.header("x-oss-complete-all") {
        None => named_parts(&upload, &body)?,
        Some(all) => all_parts(&upload, &all, &body)?,
    };
    check_sizes(&parts, call.shared.min_part)?;
    let expect = expectation(call).map_err(|failure| failure.ec(EXISTS_EC))?;
    let object = assemble(call, &upload, &parts);
    let completed = call.shared.store.complete(call.bucket(), call.key(), call.upload_id(), &object, expect);
    completed.map_err(|error| match error {
        StoreError::ObjectExists => Failure::already_exists(EXISTS_EC),
        error => call.failure(error),
    })?;
    let mut document = Document::new("CompleteMultipartUploadResult");
    encoding.announce(&mut document);
    document
        .element("Location", format!("http://{}/{}", call.host, encoding.apply(call.key())))
        .element("Bucket", call.bucket())
        .element("Key", encoding.apply(call.key()))
        .element("ETag", format!("\"{}\"", object.head.etag));
    let crc = object.head.crc64.unwrap_or_default();
    Ok(Reply::xml(document.finish()).header("x-oss-hash-crc64ecma", &crc.to_string()))
}

/// The parts that the body lists, in the order it lists them, which must be theirs.
fn named_parts(upload: &Upload, body: &[u8]) -> Result<Vec<Arc<Part>>, Failure> {
    let wanted = parse(body).ok_or_else(Failure::malformed_xml)?;
    if wanted.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
        let message = "The list of parts was not in ascending order.";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "InvalidPartOrder", message));
    }
    wanted.iter().map(|(number, etag)| find(upload, *number, etag)).collect()
}

fn find(upload: &Upload, number: u32, etag: &ETag) -> Result<Arc<Part>, Failure> {
    let part = upload.parts.get(&number).filter(|part| ETag::new(&part.head.etag) == *etag);
    part.cloned().ok_or_else(|| {
        let message = "One or more of the specified parts could not be found or the specified entity tag \
                       might not have matched the part's entity tag.";
        Failure::new(StatusCode::BAD_REQUEST, "InvalidPart", message)
            .detail("PartNumber", number.to_string())
            .detail("ETag", etag.quoted())
    })
}

/// Part numbers and ETags of a request body; at least one.
fn parse(body: &[u8]) -> Option<Vec<(u32, ETag)>> {
    let root = Element::parse(str::from_utf8(body).ok()?).ok()?;
    let part = |part: &Element| {
        let number = PartNumber::new(part.child("PartNumber")?.text.trim().parse().ok()?)?;
        Some((number.get(), ETag::new(&part.child("ETag")?.text)))
    };
    let parts: Vec<_> = root.children("Part").map(part).collect::<Option<_>>()?;
    let valid = root.name == "CompleteMultipartUpload" && !parts.is_empty() && parts.len() <= PARTS_MAX as usize;
    valid.then_some(parts)
}

/// `x-oss-complete-all: yes`: everything that was uploaded.
fn all_parts(upload: &Upload, value: &str, body: &[u8]) -> Result<Vec<Arc<Part>>, Failure> {
    if value != "yes" {
        return Err(Failure::bad_value("x-oss-complete-all", value));
    }
    if !body.is_empty() {
        return Err(Failure::invalid_argument("With x-oss-complete-all the body must be empty."));
    }
    if upload.parts.is_empty() {
        let message = "No part was uploaded.";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "InvalidPart", message));
    }
    Ok(upload.parts.values().cloned().collect())
}

fn check_sizes(parts: &[Arc<Part>], min_part: u64) -> Result<(), Failure> {
    let (_, all_but_last) = parts.split_last().ok_or_else(Failure::malformed_xml)?;
    match all_but_last.iter().find(|part| part.head.size < min_part) {
        None => Ok(()),
        Some(part) => {
            let message = "Your proposed upload smaller than the minimum allowed size.";
            Err(Failure::new(StatusCode::BAD_REQUEST, "EntityTooSmall", message)
                .ec("0042-00000213")
                .detail("PartNumber", part.head.number.to_string())
                .detail("ETag", &part.head.etag)
                .detail("ProposedSize", part.head.size.to_string())
                .detail("MinSizeAllowed", min_part.to_string()))
        }
    }
}

fn assemble(call: &Call, upload: &Upload, parts: &[Arc<Part>]) -> Object {
    let mut etags = Md5::new();
    parts.iter().for_each(|part| etags.update(&part.head.etag));
    let segments: Vec<_> = parts.iter().flat_map(|part| part.segments.iter().cloned()).collect();
    let head = ObjectHead {
        kind: Kind::Multipart,
        size: parts.iter().map(|part| part.head.size).sum(),
        etag: format!("{}-{}", hex_upper(&etags.finalize()), parts.len()),
        crc64: Some(sum(&segments)),
        content_md5: None,
        modified: seconds(call.shared.now()),
        attributes: upload.head.attributes.clone(),
        symlink_target: None,
    };
    Object { head, segments }
}
