//! GetObject, HeadObject, GetObjectMeta.
//!
//! The first two follow a symlink and show a mixture of link and target; the third shows the link itself
//! (OSS reference §7.3, §7.4).

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use crate::base::ByteRange;
use crate::base::time;
use crate::devserver::attributes::{add, add_all};
use crate::devserver::call::Call;
use crate::devserver::conditions;
use crate::devserver::failure::Failure;
use crate::devserver::range::{Selection, select};
use crate::devserver::reply::{Payload, Reply};
use crate::devserver::store::{Kind, Object, ObjectHead};

/// Parameters that replace a header of the reply.
const OVERRIDES: &[(&str, &str)] = &[
    ("response-content-type", "content-type"),
    ("response-content-language", "content-language"),
    ("response-expires", "expires"),
    ("response-cache-control", "cache-control"),
    ("response-content-disposition", "content-disposition"),
    ("response-content-encoding", "content-encoding"),
];

/// The object at the request's key.
pub(super) fn object(call: &Call) -> Result<Arc<Object>, Failure> {
    let found = call.shared.store.object(call.bucket(), call.key()).map_err(|error| call.failure(error))?;
    found.ok_or_else(|| Failure::no_such_key(call.key()))
}

/// What a read shows: the object at the key, and the one whose bytes it has.
struct Shown {
    link: Arc<Object>,
    target: Arc<Object>,
}

impl Shown {
    fn find(call: &Call) -> Result<Self, Failure> {
        let link = object(call)?;
        let Some(key) = &link.head.symlink_target else { return Ok(Self { target: link.clone(), link }) };
        let target = call.shared.store.object(call.bucket(), key).map_err(|error| call.failure(error))?;
        let target = target.ok_or_else(|| {
            let message = "The target of the symlink does not exist.";
            Failure::new(StatusCode::NOT_FOUND, "SymlinkTargetNotExist", message).detail("TargetKey", key)
        })?;
        if target.head.kind == Kind::Symlink {
            let message = "The target of the symlink is a symlink.";
            return Err(Failure::new(StatusCode::BAD_REQUEST, "InvalidTargetType", message).detail("TargetKey", key));
        }
        Ok(Self { link, target })
    }

    fn check_conditions(&self, call: &Call) -> Result<(), Failure> {
        let modified = self.link.head.modified_at().max(self.target.head.modified_at());
        conditions::check(&call.headers, conditions::READ, &self.target.head.etag, modified)
    }
}

/// Adds the headers of a read: what is about the bytes from `target`, the rest from `link`.
pub(crate) fn object_headers(headers: &mut HeaderMap, link: &ObjectHead, target: &ObjectHead) {
    add_all(headers, &link.attributes);
    add(headers, "etag", &format!("\"{}\"", target.etag));
    add(headers, "last-modified", &time::http_date(link.modified_at().max(target.modified_at())));
    add(headers, "accept-ranges", "bytes");
    add(headers, "x-oss-object-type", link.kind.name());
    add(headers, "x-oss-storage-class", &target.attributes.storage_class);
    if let Some(crc) = target.crc64 {
        add(headers, "x-oss-hash-crc64ecma", &crc.to_string());
    }
    if let Some(md5) = &target.content_md5 {
        add(headers, "content-md5", md5);
    }
    if link.kind == Kind::Appendable {
        add(headers, "x-oss-next-append-position", &link.size.to_string());
    }
}

pub(super) fn head_object(call: &Call) -> Result<Reply, Failure> {
    let shown = Shown::find(call)?;
    shown.check_conditions(call)?;
    let mut reply = Reply::ok();
    object_headers(&mut reply.headers, &shown.link.head, &shown.target.head);
    reply.payload = Payload::Length(shown.target.head.size);
    Ok(reply)
}

pub(super) fn get_object(call: &Call) -> Result<Reply, Failure> {
    let shown = Shown::find(call)?;
    shown.check_conditions(call)?;
    let size = shown.target.head.size;
    let standard = call.header("x-oss-range-behavior").is_some_and(|value| value == "standard");
    let (status, range) = match select(call.header("range").as_deref(), standard, size) {
        Selection::Whole => (StatusCode::OK, ByteRange::new(0, size)),
        Selection::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Selection::Unsatisfiable => return Err(unsatisfiable(call, size)),
    };
    let mut reply = Reply::new(status);
    object_headers(&mut reply.headers, &shown.link.head, &shown.target.head);
    if status == StatusCode::PARTIAL_CONTENT {
        reply = reply.header("content-range", &format!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    for (parameter, header) in OVERRIDES {
        if let Some(value) = call.parameters.get(parameter) {
            reply = reply.header(header, value);
        }
    }
    Ok(reply.segments(&shown.target.segments, range)?)
}

fn unsatisfiable(call: &Call, size: u64) -> Failure {
    Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", "The requested range cannot be satisfied.")
        .ec("0016-00000817")
        .detail("ActualObjectSize", size.to_string())
        .detail("RangeRequested", call.header("range").unwrap_or_default())
        .header("content-range", format!("bytes */{size}"))
}

pub(super) fn get_object_meta(call: &Call) -> Result<Reply, Failure> {
    let object = object(call)?;
    let head = &object.head;
    conditions::check(&call.headers, conditions::READ, &head.etag, head.modified_at())?;
    let mut reply = Reply::ok()
        .header("etag", &format!("\"{}\"", head.etag))
        .header("last-modified", &time::http_date(head.modified_at()));
    if let Some(crc) = head.crc64 {
        reply = reply.header("x-oss-hash-crc64ecma", &crc.to_string());
    }
    if head.kind == Kind::Symlink {
        reply = reply.header("x-oss-object-type", head.kind.name());
    }
    reply.payload = Payload::Length(head.size);
    Ok(reply)
}
