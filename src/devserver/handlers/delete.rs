//! DeleteObject and DeleteMultipleObjects.

use http::StatusCode;
use md5::{Digest, Md5};

use super::list::Encoding;
use crate::base::limits::{MIB, PAGE_MAX};
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::receive::check_md5;
use crate::devserver::reply::Reply;
use crate::devserver::xml::{Document, Element};

const BODY_BYTES_MAX: u64 = 2 * MIB;

/// What is not there counts as deleted.
pub(super) fn delete_one(call: &Call) -> Result<Reply, Failure> {
    let keys = [call.key().to_owned()];
    call.shared.store.delete(call.bucket(), &keys).map_err(|error| call.failure(error))?;
    Ok(Reply::new(StatusCode::NO_CONTENT))
}

pub(super) async fn delete_many(call: &mut Call) -> Result<Reply, Failure> {
    let encoding = Encoding::of(call)?;
    if call.header("content-md5").is_none() {
        let message = "Missing Some Required Arguments.";
        let failure = Failure::new(StatusCode::BAD_REQUEST, "MissingArgument", message);
        return Err(failure.detail("ArgumentName", "Content-MD5"));
    }
    let body = call.collect_body(BODY_BYTES_MAX).await.map_err(|failure| match failure.code.as_str() {
        "EntityTooLarge" => Failure::malformed_xml(),
        _ => failure,
    })?;
    check_md5(&call.headers, &Md5::digest(&body).into())?;
    let (keys, quiet) = parse(&body).ok_or_else(Failure::malformed_xml)?;
    call.shared.store.delete(call.bucket(), &keys).map_err(|error| call.failure(error))?;
    if quiet {
        return Ok(Reply::ok());
    }
    let mut document = Document::new("DeleteResult");
    encoding.announce(&mut document);
    for key in &keys {
        document.open("Deleted").element("Key", encoding.apply(key)).close();
    }
    Ok(Reply::xml(document.finish()))
}

/// Keys, and whether only failures are to be reported.
fn parse(body: &[u8]) -> Option<(Vec<String>, bool)> {
    let root = Element::parse(str::from_utf8(body).ok()?).ok()?;
    if root.name != "Delete" {
        return None;
    }
    let keys: Option<Vec<String>> =
        root.children("Object").map(|object| Some(object.child("Key")?.text.clone())).collect();
    let keys = keys.filter(|keys| !keys.is_empty() && keys.len() <= PAGE_MAX as usize)?;
    Some((keys, root.child("Quiet").is_some_and(|quiet| quiet.text.trim() == "true")))
}
