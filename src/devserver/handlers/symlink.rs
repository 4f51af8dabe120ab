//! PutSymlink and GetSymlink.

use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::put::{expectation, receipt};
use super::read::object;
use crate::base::time;
use crate::devserver::attributes::add_meta;
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::reply::Reply;
use crate::devserver::request::check_key;
use crate::devserver::store::Object;
use crate::devserver::{attributes, conditions};

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Whether the target exists is not asked.
pub(super) fn put_symlink(call: &Call) -> Result<Reply, Failure> {
    conditions::refuse(&call.headers)?;
    let header = call.header("x-oss-symlink-target").unwrap_or_default();
    let bad = || Failure::bad_value("x-oss-symlink-target", &header);
    let target = percent_decode_str(&header).decode_utf8().map_err(|_| bad())?.into_owned();
    check_key(&target).map_err(|_| bad())?;
    let attributes = attributes::from_request(&call.headers)?;
    let expect = expectation(call)?;
    let link = Object::symlink(target, attributes, call.shared.now());
    call.shared.store.put(call.bucket(), call.key(), &link, expect).map_err(|error| call.failure(error))?;
    Ok(receipt(&link.head.etag, None, None))
}

pub(super) fn get_symlink(call: &Call) -> Result<Reply, Failure> {
    let link = object(call)?;
    let target = link.head.symlink_target.as_ref().ok_or_else(|| {
        Failure::new(StatusCode::BAD_REQUEST, "NotSymlink", "The object is not a symlink.").detail("Key", call.key())
    })?;
    let mut reply = receipt(&link.head.etag, None, None)
        .header("last-modified", &time::http_date(link.head.modified_at()))
        .header("x-oss-symlink-target", &utf8_percent_encode(target, ENCODED).to_string());
    add_meta(&mut reply.headers, &link.head.attributes);
    Ok(reply)
}
