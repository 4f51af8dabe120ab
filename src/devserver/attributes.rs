//! What an upload's headers store beside the bytes, and how a read hands it back.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::failure::Failure;
use super::store::Attributes;
use crate::base::limits::USER_META_BYTES_MAX;

const META: &str = "x-oss-meta-";
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

/// Headers that are stored and handed back as they came.
const STORED: &[&str] = &[
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-oss-server-side-encryption",
    "x-oss-server-side-encryption-key-id",
    "x-oss-server-side-data-encryption",
];
/// Headers whose effect this server lacks: better refused than dropped.
const NOT_SERVED: &[&str] = &["x-oss-tagging", "x-oss-callback", "x-oss-callback-var"];
const STORAGE_CLASSES: &[&str] = &["Standard", "IA", "Archive", "ColdArchive", "DeepColdArchive"];

/// The value of a header as text; bytes that are not UTF-8 are replaced.
pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
}

/// Reads what PutObject, Initiate and a replacing copy store.
pub(crate) fn from_request(headers: &HeaderMap) -> Result<Attributes, Failure> {
    if let Some(name) = NOT_SERVED.iter().find(|name| headers.contains_key(**name)) {
        return Err(Failure::not_implemented(name));
    }
    let mut attributes = Attributes { storage_class: storage_class(headers)?, ..Attributes::default() };
    for name in STORED {
        if let Some(value) = text(headers, name) {
            attributes.headers.insert((*name).into(), value);
        }
    }
    attributes.headers.entry("content-type".into()).or_insert_with(|| DEFAULT_CONTENT_TYPE.into());
    let mut bytes = 0;
    for name in headers.keys() {
        let Some(meta) = name.as_str().strip_prefix(META) else { continue };
        if meta.is_empty() || !meta.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Failure::bad_value(name.as_str(), ""));
        }
        let value = text(headers, name.as_str()).unwrap_or_default();
        bytes += meta.len() + value.len();
        attributes.meta.insert(meta.into(), value);
    }
    if bytes > USER_META_BYTES_MAX {
        return Err(Failure::invalid_argument("The total size of user metadata exceeds 8 KB."));
    }
    Ok(attributes)
}

fn storage_class(headers: &HeaderMap) -> Result<String, Failure> {
    match text(headers, "x-oss-storage-class") {
        None => Ok("Standard".into()),
        Some(class) if STORAGE_CLASSES.contains(&class.as_str()) => Ok(class),
        Some(class) => Err(Failure::bad_value("x-oss-storage-class", class)),
    }
}

/// Adds a header; a value that HTTP cannot carry is left out.
pub(crate) fn add(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
    {
        headers.insert(name, value);
    }
}

/// Adds the stored headers and the user metadata.
pub(crate) fn add_all(headers: &mut HeaderMap, attributes: &Attributes) {
    for (name, value) in &attributes.headers {
        add(headers, name, value);
    }
    add_meta(headers, attributes);
}

/// Adds the user metadata.
pub(crate) fn add_meta(headers: &mut HeaderMap, attributes: &Attributes) {
    for (name, value) in &attributes.meta {
        add(headers, &format!("{META}{name}"), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, &str)]) -> Result<Attributes, Failure> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(
                HeaderName::from_bytes(name.to_lowercase().as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        from_request(&map)
    }

    #[test]
    fn what_is_stored_comes_back() {
        let sent = [("X-Oss-Meta-Mode", "33188"), ("x-oss-meta-e", ""), ("Cache-Control", "no-cache"), ("Host", "h")];
        let attributes = read(&sent).unwrap();
        let mut back = HeaderMap::new();
        add_all(&mut back, &attributes);
        assert_eq!(back["x-oss-meta-mode"], "33188");
        assert_eq!(back["x-oss-meta-e"], "");
        assert_eq!(back["cache-control"], "no-cache");
        assert_eq!(back["content-type"], DEFAULT_CONTENT_TYPE);
        assert_eq!(back.len(), 4);
        assert_eq!(attributes.storage_class, "Standard");
    }

    #[test]
    fn what_the_service_refuses_is_refused() {
        let largest = "v".repeat(USER_META_BYTES_MAX - 1);
        assert!(read(&[("x-oss-meta-a", &largest)]).is_ok());
        assert!(read(&[("x-oss-meta-ab", &largest)]).is_err());
        assert!(read(&[("x-oss-meta-a_b", "")]).is_err());
        assert!(read(&[("x-oss-storage-class", "Warm")]).is_err());
        assert!(read(&[("x-oss-tagging", "a=1")]).is_err());
    }
}
