//! A request as a value: operation, key, parameters, headers and body, each checked for what can be sent at all.
//!
//! Says nothing of hosts and signatures. Whatever cannot stand in a request is refused here, before anything is sent.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_TYPE, EXPIRES, HeaderMap, HeaderName, HeaderValue,
};

use super::encode::{self, Param};
use super::error::Error;
use super::types::{Body, Operation, PutHeaders};
use crate::base::{ObjectKey, UploadId};

const CONTENT_TYPE_DEFAULT: &str = "application/octet-stream";
const FORBID_OVERWRITE: HeaderName = HeaderName::from_static("x-oss-forbid-overwrite");
const STORAGE_CLASS: HeaderName = HeaderName::from_static("x-oss-storage-class");
const ENCRYPTION: HeaderName = HeaderName::from_static("x-oss-server-side-encryption");
const USER_META: &str = "x-oss-meta-";

/// One request, as often as it may have to be sent.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    pub(super) operation: Operation,
    pub(super) key: Option<&'a ObjectKey>,
    pub(super) query: Vec<Param<'a>>,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

impl<'a> Request<'a> {
    fn new(operation: Operation, key: Option<&'a ObjectKey>) -> Self {
        Self { operation, key, query: Vec::new(), headers: HeaderMap::new(), body: Body::Bytes(Bytes::new()) }
    }

    /// A request to the bucket itself.
    pub(super) fn of_bucket(operation: Operation) -> Self {
        Self::new(operation, None)
    }

    /// A request to an object. The `url` crate folds segments `.` and `..`, escaped or not, so that another path than
    /// the signed one would go out: such keys are refused.
    pub(super) fn of_object(operation: Operation, key: &'a ObjectKey) -> Result<Self, Error> {
        if key.has_dot_segment() {
            return Err(Error::unsendable(operation, key.as_str(), "a key with a segment `.` or `..` cannot be sent"));
        }
        Ok(Self::new(operation, Some(key)))
    }

    /// A request to an upload of an object.
    pub(super) fn of_upload(operation: Operation, key: &'a ObjectKey, upload: &'a UploadId) -> Result<Self, Error> {
        Ok(Self::of_object(operation, key)?.param("uploadId", upload.as_str()))
    }

    pub(super) fn param(mut self, name: &'a str, value: impl Into<Cow<'a, str>>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// A parameter that is left out when empty: the bare name would mean something else.
    pub(super) fn param_if_any(self, name: &'a str, value: &'a str) -> Self {
        if value.is_empty() { self } else { self.param(name, value) }
    }

    pub(super) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Result<Self, Error> {
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| self.unsendable(format!("the value of `{name}` holds control characters")))?;
        self.headers.insert(name, value);
        Ok(self)
    }

    pub(super) fn header_if_some(self, name: HeaderName, value: Option<&str>) -> Result<Self, Error> {
        match value {
            Some(value) => self.header(name, value),
            None => Ok(self),
        }
    }

    pub(super) fn header_static(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }

    pub(super) fn forbid_overwrite(mut self, forbid: bool) -> Self {
        if forbid {
            self.headers.insert(FORBID_OVERWRITE, HeaderValue::from_static("true"));
        }
        self
    }

    /// What is stored beside the bytes; the content type is always sent, so that nothing on the way may add its own.
    pub(super) fn put_headers(self, headers: &PutHeaders) -> Result<Self, Error> {
        let content_type = headers.content_type.as_deref().unwrap_or(CONTENT_TYPE_DEFAULT);
        self.header(CONTENT_TYPE, content_type)?.stored_headers(headers)
    }

    /// The same, without a content type that is not asked for.
    pub(super) fn stored_headers(mut self, headers: &PutHeaders) -> Result<Self, Error> {
        for (name, value) in [
            (CONTENT_TYPE, &headers.content_type),
            (CACHE_CONTROL, &headers.cache_control),
            (CONTENT_DISPOSITION, &headers.content_disposition),
            (CONTENT_ENCODING, &headers.content_encoding),
            (EXPIRES, &headers.expires),
            (STORAGE_CLASS, &headers.storage_class),
            (ENCRYPTION, &headers.server_side_encryption),
        ] {
            self = self.header_if_some(name, value.as_deref())?;
        }
        for (name, value) in &headers.user_meta {
            let name = HeaderName::from_bytes(format!("{USER_META}{name}").as_bytes())
                .map_err(|_| self.unsendable(format!("`{name}` cannot be a name of user metadata")))?;
            self = self.header(name, value)?;
        }
        Ok(self.forbid_overwrite(headers.forbid_overwrite))
    }

    /// What the request is about, for errors: the key, or else the bucket.
    pub(super) fn subject<'s>(&'s self, bucket: &'s str) -> &'s str {
        self.key.map_or(bucket, ObjectKey::as_str)
    }

    /// Path and query behind the base URL.
    pub(super) fn target(&self) -> (String, String) {
        let mut path = String::with_capacity(64);
        path.push('/');
        if let Some(key) = self.key {
            encode::push_path(&mut path, key.as_str());
        }
        (path, encode::query(&self.query))
    }

    fn unsendable(&self, message: String) -> Error {
        Error::unsendable(self.operation, self.key.map_or("", ObjectKey::as_str), message)
    }
}

/// The value of a copy source header: bucket and key, encoded as in a path.
pub(super) fn copy_source(bucket: &str, key: &ObjectKey) -> String {
    let mut out = format!("/{bucket}/");
    encode::push_path(&mut out, key.as_str());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oss::error::ErrorKind;

    fn put(key: &ObjectKey) -> Request<'_> {
        Request::of_object(Operation::PutObject, key).unwrap()
    }

    #[test]
    fn keys_with_dot_segments_are_refused() {
        for key in ["a/../b", ".", "a/.", "./a"] {
            let key = ObjectKey::parse(key).unwrap();
            let error = Request::of_object(Operation::PutObject, &key).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsendable);
        }
    }

    #[test]
    fn a_target_is_encoded_path_and_sorted_query() {
        let key = ObjectKey::parse("a//b c/文").unwrap();
        let request = put(&key).param("uploadId", "x+/=").param("partNumber", "3").param_if_any("prefix", "");
        assert_eq!(request.target(), ("/a//b%20c/%E6%96%87".into(), "partNumber=3&uploadId=x%2B%2F%3D".into()));
        assert_eq!(Request::of_bucket(Operation::ListObjectsV2).target(), ("/".into(), String::new()));
    }

    #[test]
    fn stored_headers_become_headers() {
        let key = ObjectKey::parse("k").unwrap();
        let headers = PutHeaders {
            cache_control: Some("no-cache".into()),
            user_meta: [("mode".into(), "33188".into()), ("name".into(), "ü".into())].into(),
            storage_class: Some("IA".into()),
            forbid_overwrite: true,
            ..PutHeaders::default()
        };
        let sent = put(&key).put_headers(&headers).unwrap().headers;
        assert_eq!(sent["content-type"], "application/octet-stream");
        assert_eq!(sent["cache-control"], "no-cache");
        assert_eq!(sent["x-oss-meta-mode"], "33188");
        assert_eq!(sent["x-oss-meta-name"].as_bytes(), "ü".as_bytes());
        assert_eq!(sent["x-oss-storage-class"], "IA");
        assert_eq!(sent["x-oss-forbid-overwrite"], "true");
        assert_eq!(sent.len(), 6);
        assert!(!put(&key).stored_headers(&headers).unwrap().headers.contains_key("content-type"));
    }

    #[test]
    fn headers_cannot_be_smuggled_in() {
        let key = ObjectKey::parse("k").unwrap();
        let headers = PutHeaders { content_type: Some("a\r\nx-oss-acl: b".into()), ..PutHeaders::default() };
        assert_eq!(put(&key).put_headers(&headers).unwrap_err().kind, ErrorKind::Unsendable);
        let headers = PutHeaders { user_meta: [("a b".into(), "c".into())].into(), ..PutHeaders::default() };
        assert_eq!(put(&key).put_headers(&headers).unwrap_err().kind, ErrorKind::Unsendable);
    }
}
