//! PutObject.

use http::StatusCode;

use crate::base::limits::PART_BYTES_MAX;
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::receive::check_sums;
use crate::devserver::reply::Reply;
use crate::devserver::store::{Expect, Object};
use crate::devserver::{attributes, conditions};

/// `x-oss-forbid-overwrite` as the store wants it; it is asked before the body comes and again when it has come.
pub(super) fn expectation(call: &Call) -> Result<Expect<'static>, Failure> {
    if !call.flag("x-oss-forbid-overwrite") {
        return Ok(Expect::Anything);
    }
    match call.shared.store.object(call.bucket(), call.key()).map_err(|error| call.failure(error))? {
        Some(_) => Err(Failure::already_exists("0026-00000002")),
        None => Ok(Expect::Nothing),
    }
}

/// A body must say how long it is, or come in chunks.
pub(super) fn check_length(call: &Call) -> Result<(), Failure> {
    let length = call.header("content-length");
    if length.is_none() && call.header("transfer-encoding").is_none() {
        let message = "You must provide the Content-Length HTTP header.";
        return Err(Failure::new(StatusCode::LENGTH_REQUIRED, "MissingContentLength", message));
    }
    if length.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > PART_BYTES_MAX) {
        return Err(Failure::too_large(PART_BYTES_MAX));
    }
    Ok(())
}

pub(super) async fn put_object(call: &mut Call) -> Result<Reply, Failure> {
    conditions::refuse(&call.headers)?;
    check_length(call)?;
    let attributes = attributes::from_request(&call.headers)?;
    let expect = expectation(call)?;
    let body = call.store_body().await?;
    check_sums(&call.headers, &body)?;
    let object = Object::normal(body, attributes, call.shared.now());
    call.shared.store.put(call.bucket(), call.key(), &object, expect).map_err(|error| call.failure(error))?;
    Ok(receipt(&object.head.etag, object.head.crc64, object.head.content_md5.as_deref()))
}

/// The reply to bytes that were taken in.
pub(super) fn receipt(etag: &str, crc: Option<u64>, md5: Option<&str>) -> Reply {
    let mut reply = Reply::ok().header("etag", &format!("\"{etag}\""));
    if let Some(crc) = crc {
        reply = reply.header("x-oss-hash-crc64ecma", &crc.to_string());
    }
    if let Some(md5) = md5 {
        reply = reply.header("content-md5", md5);
    }
    reply
}
