//! InitiateMultipartUpload, UploadPart, AbortMultipartUpload.

use http::StatusCode;

use super::list::Encoding;
use super::put::{check_length, expectation, receipt};
use crate::base::PartNumber;
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::receive::check_sums;
use crate::devserver::reply::Reply;
use crate::devserver::store::{Part, PartHead, UploadHead, base64_of, hex_upper, seconds};
use crate::devserver::xml::Document;
use crate::devserver::{attributes, conditions};

pub(super) fn initiate(call: &Call) -> Result<Reply, Failure> {
    let encoding = Encoding::of(call)?;
    expectation(call)?;
    let attributes = attributes::from_request(&call.headers)?;
    let id = call.shared.upload_id();
    let head = UploadHead { initiated: seconds(call.now), attributes };
    call.shared.store.initiate(call.bucket(), call.key(), &id, head).map_err(|error| call.failure(error))?;
    let mut document = Document::new("InitiateMultipartUploadResult");
    encoding.announce(&mut document);
    document.element("Bucket", call.bucket()).element("Key", encoding.apply(call.key())).element("UploadId", id);
    Ok(Reply::xml(document.finish()))
}

/// `partNumber`, 1 to 10,000.
pub(super) fn part_number(call: &Call) -> Result<u32, Failure> {
    let value = call.parameters.get("partNumber").unwrap_or_default();
    let number = value.parse().ok().and_then(PartNumber::new);
    number.map(PartNumber::get).ok_or_else(|| {
        Failure::invalid_argument("Part number must be an integer between 1 and 10000, inclusive.")
            .ec("0017-00000220")
            .detail("ArgumentName", "partNumber")
            .detail("ArgumentValue", value)
    })
}

pub(super) fn check_upload(call: &Call) -> Result<(), Failure> {
    let checked = call.shared.store.check_upload(call.bucket(), call.key(), call.upload_id());
    checked.map_err(|error| call.failure(error))
}

pub(super) async fn upload_part(call: &mut Call) -> Result<Reply, Failure> {
    conditions::refuse(&call.headers)?;
    check_length(call)?;
    let number = part_number(call)?;
    check_upload(call)?;
    let body = call.store_body().await?;
    check_sums(&call.headers, &body)?;
    let etag = hex_upper(&body.md5);
    let reply = receipt(&etag, Some(body.crc), Some(&base64_of(&body.md5)));
    let modified = seconds(call.shared.now());
    let head = PartHead { number, size: body.size, etag, crc64: body.crc, modified };
    // The upload may have been aborted while the body came.
    let part = Part { head, segments: body.segments };
    call.shared
        .store
        .put_part(call.bucket(), call.key(), call.upload_id(), part)
        .map_err(|error| call.failure(error))?;
    Ok(reply)
}

pub(super) fn abort(call: &Call) -> Result<Reply, Failure> {
    let aborted = call.shared.store.abort(call.bucket(), call.key(), call.upload_id());
    aborted.map_err(|error| call.failure(error))?;
    Ok(Reply::new(StatusCode::NO_CONTENT))
}
