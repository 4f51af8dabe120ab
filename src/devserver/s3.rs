//! Requests and replies in the dress of S3, for clients that speak it (`--s3`): their names are put for the
//! service's at the door, and back on the way out. Their signatures are not looked at.
//!
//! What S3 does otherwise than OSS is decided here too: ranges that reach past the end are cut, ETags are in lower
//! case (clients compare them with an MD5 of their own). Requests in the service's own dress stay what they are,
//! strict signatures included, so that one server serves both kinds of clients side by side.

use bytes::Bytes;
use http::header::{AUTHORIZATION, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, Request};

use super::failure::Failure;
use super::reply::{Payload, Reply};

const THEIRS: &str = "x-amz-";
const OURS: &str = "x-oss-";
/// What only says who asks, or how it was signed.
const PASSED_OVER: &[&str] =
    &["x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "x-amz-user-agent", "x-amz-acl"];
/// Listings of S3 have so many items unless told.
pub(crate) const MAX_KEYS_DEFAULT: u64 = 1000;

/// Whether a request is none of the service's own dress.
pub(crate) fn is_s3<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let signed = request.headers().get(AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"OSS"));
    !signed && !query.contains("x-oss-signature") && !query.contains("OSSAccessKeyId")
}

/// Puts the service's names for those of S3 in the head of a request.
pub(crate) fn adopt(headers: &mut HeaderMap) -> Result<(), Failure> {
    let is_framed = headers.get("x-amz-content-sha256").is_some_and(|value| value.as_bytes().starts_with(b"STREAMING"));
    if is_framed {
        return Err(Failure::not_implemented("x-amz-content-sha256: STREAMING-…"));
    }
    rename(headers, THEIRS, OURS, |name| PASSED_OVER.contains(&name));
    if let Some(class) = headers.get_mut("x-oss-storage-class") {
        match class.as_bytes() {
            b"STANDARD" => *class = HeaderValue::from_static("Standard"),
            b"STANDARD_IA" => *class = HeaderValue::from_static("IA"),
            _ => {}
        }
    }
    headers.insert("x-oss-range-behavior", HeaderValue::from_static("standard"));
    Ok(())
}

/// Puts the names of S3 for the service's in a reply.
pub(crate) fn dress(reply: &mut Reply) {
    rename(&mut reply.headers, OURS, THEIRS, |name| name == "x-oss-storage-class");
    if let Some(etag) = reply.headers.get_mut(ETAG)
        && let Ok(lower) = HeaderValue::from_bytes(&etag.as_bytes().to_ascii_lowercase())
    {
        *etag = lower;
    }
    let is_xml = reply.headers.get("content-type").is_some_and(|value| value == "application/xml");
    if let Payload::Bytes(bytes) = &mut reply.payload
        && is_xml
        && let Ok(text) = str::from_utf8(bytes)
    {
        *bytes = lower_etags(text);
    }
}

fn rename(headers: &mut HeaderMap, from: &str, to: &str, is_dropped: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(from)).cloned().collect();
    for name in names {
        let Some(value) = headers.remove(&name) else { continue };
        if is_dropped(name.as_str()) {
            continue;
        }
        if let Ok(renamed) = HeaderName::try_from(name.as_str().replacen(from, to, 1)) {
            headers.insert(renamed, value);
        }
    }
}

/// The document with what its `ETag` elements say in lower case.
fn lower_etags(text: &str) -> Bytes {
    const OPEN: &str = "<ETag>";
    let mut pieces = text.split(OPEN);
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (etag, rest) = piece.split_at(piece.find('<').unwrap_or(0));
        out.push_str(OPEN);
        out.push_str(&etag.to_ascii_lowercase());
        out.push_str(rest);
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn names_are_changed_both_ways() {
        let mut request = headers(&[
            ("x-amz-meta-mode", "33188"),
            ("x-amz-copy-source", "/b/k"),
            ("x-amz-date", "20260101T000000Z"),
            ("x-amz-storage-class", "STANDARD"),
        ]);
        adopt(&mut request).unwrap();
        let wanted = [
            ("x-oss-meta-mode", "33188"),
            ("x-oss-copy-source", "/b/k"),
            ("x-oss-storage-class", "Standard"),
            ("x-oss-range-behavior", "standard"),
        ];
        assert_eq!(request, headers(&wanted));
        let mut reply = Reply::ok().header("etag", "\"AB-2\"").header("x-oss-meta-mode", "1");
        dress(&mut reply);
        assert_eq!(reply.headers, headers(&[("etag", "\"ab-2\""), ("x-amz-meta-mode", "1")]));
    }

    #[test]
    fn etags_of_documents_are_lowered_and_nothing_else() {
        assert_eq!(
            lower_etags("<A>X</A><ETag>&quot;F0&quot;</ETag><B>Y</B>"),
            "<A>X</A><ETag>&quot;f0&quot;</ETag><B>Y</B>"
        );
        assert_eq!(lower_etags("X"), "X");
    }

    #[test]
    fn bodies_in_frames_of_their_own_are_refused() {
        let mut request = headers(&[("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")]);
        assert_eq!(adopt(&mut request).unwrap_err().code, "NotImplemented");
    }

    #[test]
    fn the_service_s_own_dress_is_known() {
        let request = |uri: &str, authorization: Option<&str>| {
            let mut request = Request::builder().uri(uri);
            if let Some(value) = authorization {
                request = request.header(AUTHORIZATION, value);
            }
            is_s3(&request.body(()).unwrap())
        };
        assert!(request("/b/k", None));
        assert!(request("/b/k", Some("AWS4-HMAC-SHA256 x")));
        assert!(!request("/b/k", Some("OSS4-HMAC-SHA256 x")));
        assert!(!request("/b/k", Some("OSS a:b")));
        assert!(!request("/b/k?x-oss-signature-version=OSS4", None));
        assert!(!request("/b/k?OSSAccessKeyId=a&Signature=b", None));
    }
}
