//! AppendObject.

use http::StatusCode;
use md5::{Digest, Md5};

use super::put::{check_length, receipt};
use crate::base::crc64;
use crate::base::limits::PART_BYTES_MAX;
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::receive::check_sums;
use crate::devserver::reply::Reply;
use crate::devserver::store::{Expect, Kind, Object, ObjectHead, StoreError, Written, hex_upper, seconds};
use crate::devserver::{attributes, conditions};

pub(super) async fn append_object(call: &mut Call) -> Result<Reply, Failure> {
    conditions::refuse(&call.headers)?;
    check_length(call)?;
    let value = call.parameters.get("position").unwrap_or_default();
    let position: u64 = value.parse().map_err(|_| Failure::bad_value("position", value))?;
    let attributes = attributes::from_request(&call.headers)?;
    let present = call.shared.store.object(call.bucket(), call.key()).map_err(|error| call.failure(error))?;
    check_position(present.as_deref(), position)?;
    let body = call.store_body().await?;
    check_sums(&call.headers, &body)?;
    if position + body.size > PART_BYTES_MAX {
        return Err(Failure::too_large(PART_BYTES_MAX));
    }
    let old = present.as_deref().cloned().unwrap_or_else(|| Object {
        head: ObjectHead {
            kind: Kind::Appendable,
            size: 0,
            etag: String::new(),
            crc64: Some(0),
            content_md5: None,
            modified: 0,
            attributes,
            symlink_target: None,
        },
        segments: Vec::new(),
    });
    let object = appended(old, body, seconds(call.shared.now()));
    // Another append may have come first: its position, not this one's, is the end then.
    let expect = Expect::Same(present.as_ref());
    call.shared.store.put(call.bucket(), call.key(), &object, expect).map_err(|error| match error {
        StoreError::ObjectChanged => {
            let now = call.shared.store.object(call.bucket(), call.key());
            now.map_or_else(|error| call.failure(error), |now| mismatch(now.as_deref()))
        }
        error => call.failure(error),
    })?;
    let next = object.head.size.to_string();
    Ok(receipt(&object.head.etag, object.head.crc64, None).header("x-oss-next-append-position", &next))
}

fn check_position(present: Option<&Object>, position: u64) -> Result<(), Failure> {
    if present.is_some_and(|object| object.head.kind != Kind::Appendable) {
        let message = "The object is not appendable.";
        return Err(Failure::new(StatusCode::CONFLICT, "ObjectNotAppendable", message));
    }
    let end = present.map_or(0, |object| object.head.size);
    if position == end { Ok(()) } else { Err(mismatch(present)) }
}

fn mismatch(present: Option<&Object>) -> Failure {
    let (end, crc) = present.map_or((0, 0), |object| (object.head.size, object.head.crc64.unwrap_or_default()));
    Failure::new(StatusCode::CONFLICT, "PositionNotEqualToLength", "Position is not equal to file length")
        .ec("0026-00000016")
        .header("x-oss-object-type", "Appendable")
        .header("x-oss-next-append-position", end.to_string())
        .header("x-oss-hash-crc64ecma", crc.to_string())
}

fn appended(old: Object, body: Written, modified: u64) -> Object {
    let Object { mut head, mut segments } = old;
    segments.extend(body.segments);
    let crc = crc64::combine(head.crc64.unwrap_or_default(), body.crc, body.size);
    head.crc64 = Some(crc);
    head.size += body.size;
    head.etag = hex_upper(&Md5::digest(format!("append {} {crc}", head.size)));
    head.modified = modified;
    Object { head, segments }
}
