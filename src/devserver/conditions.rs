//! `If-Match` and its kin on reads, and `x-oss-copy-source-if-…` on copies.

use std::time::SystemTime;

use http::{HeaderMap, StatusCode};

use super::failure::Failure;
use crate::base::ETag;
use crate::base::time;

/// Headers that belong to a read.
pub(crate) const READ: &str = "";
/// Headers that belong to the source of a copy.
pub(crate) const COPY_SOURCE: &str = "x-oss-copy-source-";

/// Checks the conditions whose names begin with `prefix` against an object.
///
/// Fails with 412, or 304 where the client has what it asks for.
pub(crate) fn check(headers: &HeaderMap, prefix: &str, etag: &str, modified: SystemTime) -> Result<(), Failure> {
    let header = |name: &str| headers.get(format!("{prefix}{name}")).and_then(|value| value.to_str().ok());
    let date = |name: &str| header(name).and_then(time::parse_http_date);
    if header("if-match").is_some_and(|list| !names(list, etag)) {
        return Err(Failure::precondition("If-Match"));
    }
    if date("if-unmodified-since").is_some_and(|since| modified > since) {
        return Err(Failure::precondition("If-Unmodified-Since"));
    }
    let unmodified = date("if-modified-since").is_some_and(|since| modified <= since);
    if header("if-none-match").map_or(unmodified, |list| names(list, etag)) {
        return Err(not_modified(etag, modified));
    }
    Ok(())
}

fn names(list: &str, etag: &str) -> bool {
    list.split(',').any(|one| one.trim() == "*" || ETag::new(one) == ETag::new(etag))
}

fn not_modified(etag: &str, modified: SystemTime) -> Failure {
    Failure::new(StatusCode::NOT_MODIFIED, "NotModified", "")
        .header("etag", format!("\"{etag}\""))
        .header("last-modified", time::http_date(modified))
}

/// Conditions on writes are not offered: the service answers `NotImplemented` (OSS reference §7.6).
pub(crate) fn refuse(headers: &HeaderMap) -> Result<(), Failure> {
    let conditions = ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"];
    match conditions.iter().find(|name| headers.contains_key(**name)) {
        Some(name) => Err(Failure::not_implemented(name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use std::time::{Duration, UNIX_EPOCH};

    fn status(prefix: &str, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(format!("{prefix}{name}").as_bytes()).unwrap();
            map.insert(name, HeaderValue::from_str(value).unwrap());
        }
        let modified = UNIX_EPOCH + Duration::from_secs(1_709_798_950);
        check(&map, prefix, "ABC", modified).map_or_else(|failure| failure.status.as_u16(), |()| 200)
    }

    #[test]
    fn conditions_are_checked() {
        let (before, same) = ("Thu, 07 Mar 2024 08:09:09 GMT", "Thu, 07 Mar 2024 08:09:10 GMT");
        for prefix in [READ, COPY_SOURCE] {
            assert_eq!(status(prefix, &[]), 200);
            assert_eq!(status(prefix, &[("if-match", "\"abc\"")]), 200);
            assert_eq!(status(prefix, &[("if-match", "x, ABC")]), 200);
            assert_eq!(status(prefix, &[("if-match", "x")]), 412);
            assert_eq!(status(prefix, &[("if-none-match", "\"ABC\"")]), 304);
            assert_eq!(status(prefix, &[("if-none-match", "x")]), 200);
            assert_eq!(status(prefix, &[("if-modified-since", before)]), 200);
            assert_eq!(status(prefix, &[("if-modified-since", same)]), 304);
            assert_eq!(status(prefix, &[("if-unmodified-since", before)]), 412);
            assert_eq!(status(prefix, &[("if-unmodified-since", same)]), 200);
            assert_eq!(status(prefix, &[("if-none-match", "x"), ("if-modified-since", same)]), 200);
        }
    }
}
