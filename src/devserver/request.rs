//! What a request asks for: bucket, key, parameters and the operation they make up.
//!
//! Decides nothing about rights and existence. Both addressing styles end in the same [`Target`]: names the
//! service knows look like `BUCKET.HOST`, an IP literal or `localhost` carries the bucket in its path.

use std::net::IpAddr;

use http::Method;
use percent_encoding::percent_decode_str;

use super::failure::Failure;
use crate::base::limits::KEY_BYTES_MAX;

/// Makes the operations' enum with their names.
macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// The operations under their API names; also the index of the counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Operation { $($name),* }

        impl Operation {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

operations! {
    ListBuckets, PutBucket, DeleteBucket, GetBucketInfo, GetBucketStat, GetBucketLocation,
    ListObjects, ListObjectsV2, ListMultipartUploads, DeleteMultipleObjects,
    PutObject, GetObject, HeadObject, GetObjectMeta, CopyObject, DeleteObject, AppendObject,
    PutSymlink, GetSymlink,
    InitiateMultipartUpload, UploadPart, UploadPartCopy, CompleteMultipartUpload, AbortMultipartUpload, ListParts,
    Unknown,
}

/// Bucket and key that a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) bucket: Option<String>,
    pub(crate) key: Option<String>,
}

impl Target {
    /// Reads host and raw path.
    pub(crate) fn parse(host: &str, path: &str) -> Result<Self, Failure> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let (bucket, key) = match bucket_of_host(host) {
            Some(bucket) => (bucket, path),
            None => path.split_once('/').unwrap_or((path, "")),
        };
        let some = |text: &str| -> Result<Option<String>, Failure> {
            let decoded = percent_decode_str(text).decode_utf8().map_err(|_| bad_key())?;
            Ok(Some(decoded.into_owned()).filter(|text| !text.is_empty()))
        };
        Ok(Self { bucket: some(bucket)?, key: some(key)? })
    }
}

/// The bucket that stands before the service's name; none where the host is the service itself.
fn bucket_of_host(host: &str) -> Option<&str> {
    if is_service_host(host) {
        return None;
    }
    host_name(host).split_once('.').map(|(bucket, _)| bucket)
}

/// Whether the host is the service itself: an IP literal, a name without dots, or `oss-REGION.…`.
pub(crate) fn is_service_host(host: &str) -> bool {
    let name = host_name(host);
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    literal.parse::<IpAddr>().is_ok()
        || !name.contains('.')
        || (name.starts_with("oss-") && name.contains(".aliyuncs."))
}

/// The host without its port.
fn host_name(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if host[colon + 1..].bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(']') => &host[..colon],
        _ => host,
    }
}

/// The service's rules for keys (OSS reference §11).
pub(crate) fn check_key(key: &str) -> Result<(), Failure> {
    let valid = !key.is_empty() && key.len() <= KEY_BYTES_MAX && !key.starts_with(['/', '\\']);
    if valid { Ok(()) } else { Err(bad_key().detail("ObjectName", key)) }
}

fn bad_key() -> Failure {
    Failure::new(http::StatusCode::BAD_REQUEST, "InvalidObjectName", "The specified object is not valid.")
}

/// The service's rules for bucket names (OSS reference §11).
pub(crate) fn check_bucket(bucket: &str) -> Result<(), Failure> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let valid = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(allowed)
        && !bucket.starts_with('-')
        && !bucket.ends_with('-');
    if valid {
        return Ok(());
    }
    let message = "The specified bucket is not valid.";
    Err(Failure::new(http::StatusCode::BAD_REQUEST, "InvalidBucketName", message).detail("BucketName", bucket))
}

/// The parameters, decoded, in the order they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads the raw query. `+` stands for itself, as every SDK writes spaces `%20`.
    pub(crate) fn parse(query: &str) -> Result<Self, Failure> {
        let decode = |text: &str| match percent_decode_str(text).decode_utf8() {
            Ok(text) => Ok(text.into_owned()),
            Err(_) => Err(Failure::invalid_argument("The query is not UTF-8.")),
        };
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        Ok(Self(pairs.collect::<Result<_, Failure>>()?))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A number within `range`, or `default` where the parameter is missing or empty.
    pub(crate) fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, Failure> {
        match self.get(name).filter(|value| !value.is_empty()) {
            None => Ok(default),
            Some(value) => match value.parse() {
                Ok(number) if range.contains(&number) => Ok(number),
                _ => Err(Failure::bad_value(name, value)),
            },
        }
    }
}

/// The sub-resources of buckets and objects that this server does not serve; without this list a request for one
/// would be taken for the plain operation.
const NOT_SERVED: &[&str] = &[
    "acl",
    "tagging",
    "restore",
    "versions",
    "versioning",
    "versionId",
    "cors",
    "lifecycle",
    "logging",
    "website",
    "referer",
    "policy",
    "encryption",
    "inventory",
    "requestPayment",
    "worm",
    "replication",
    "cname",
    "metaQuery",
    "seal",
    "callback",
    "asyncFetch",
    "live",
    "comp",
    "vod",
    "x-oss-process",
    "x-oss-async-process",
    "x-oss-rename",
    "x-oss-dir",
    "x-oss-delete",
    "x-oss-batchGet",
    "objectInfo",
    "resourceGroup",
    "transferAcceleration",
    "accessPoint",
    "publicAccessBlock",
    "httpsConfig",
];

impl Operation {
    /// The operation that method, target and parameters make up.
    pub(crate) fn of(method: &Method, target: &Target, parameters: &Parameters, copies: bool) -> Result<Self, Failure> {
        if let Some(name) = NOT_SERVED.iter().find(|name| parameters.has(name)) {
            return Err(Failure::not_implemented(name));
        }
        let found = match (&target.bucket, &target.key) {
            (None, _) => (method == Method::GET).then_some(Self::ListBuckets),
            (Some(_), None) => Self::of_bucket(method, parameters),
            (Some(_), Some(_)) => Self::of_object(method, parameters, copies),
        };
        found.ok_or_else(|| {
            let message = "The specified method is not allowed against this resource.";
            Failure::new(http::StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
        })
    }

    fn of_bucket(method: &Method, parameters: &Parameters) -> Option<Self> {
        let has = |name| parameters.has(name);
        match method.as_str() {
            "PUT" => Some(Self::PutBucket),
            "DELETE" => Some(Self::DeleteBucket),
            "POST" if has("delete") => Some(Self::DeleteMultipleObjects),
            "GET" if has("bucketInfo") => Some(Self::GetBucketInfo),
            "GET" if has("stat") => Some(Self::GetBucketStat),
            "GET" if has("location") => Some(Self::GetBucketLocation),
            "GET" if has("uploads") => Some(Self::ListMultipartUploads),
            "GET" if parameters.get("list-type") == Some("2") => Some(Self::ListObjectsV2),
            "GET" => Some(Self::ListObjects),
            _ => None,
        }
    }

    fn of_object(method: &Method, parameters: &Parameters, copies: bool) -> Option<Self> {
        let has = |name| parameters.has(name);
        match method.as_str() {
            "PUT" if has("symlink") => Some(Self::PutSymlink),
            "PUT" if has("uploadId") || has("partNumber") => {
                Some(if copies { Self::UploadPartCopy } else { Self::UploadPart })
            }
            "PUT" => Some(if copies { Self::CopyObject } else { Self::PutObject }),
            "GET" if has("symlink") => Some(Self::GetSymlink),
            "GET" if has("uploadId") => Some(Self::ListParts),
            "GET" => Some(Self::GetObject),
            "HEAD" if has("objectMeta") => Some(Self::GetObjectMeta),
            "HEAD" => Some(Self::HeadObject),
            "POST" if has("append") => Some(Self::AppendObject),
            "POST" if has("uploads") => Some(Self::InitiateMultipartUpload),
            "POST" if has("uploadId") => Some(Self::CompleteMultipartUpload),
            "DELETE" if has("uploadId") => Some(Self::AbortMultipartUpload),
            "DELETE" => Some(Self::DeleteObject),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, path: &str) -> (Option<String>, Option<String>) {
        let target = Target::parse(host, path).unwrap();
        (target.bucket, target.key)
    }

    #[test]
    fn both_styles_name_bucket_and_key() {
        let found = |bucket: &str, key: &str| (Some(bucket.to_owned()), Some(key.to_owned()));
        assert_eq!(target("bucket.oss-cn-hangzhou.aliyuncs.com", "/a%20b"), found("bucket", "a b"));
        assert_eq!(target("bucket.localhost:8080", "/_dev/x"), found("bucket", "_dev/x"));
        assert_eq!(target("127.0.0.1:8080", "/bucket/a//b/../c"), found("bucket", "a//b/../c"));
        assert_eq!(target("[::1]:8080", "/bucket//a"), found("bucket", "/a"));
        assert_eq!(target("localhost", "/bucket/k%2Fl"), found("bucket", "k/l"));
        assert_eq!(target("127.0.0.1", "/bucket/"), (Some("bucket".into()), None));
        assert_eq!(target("127.0.0.1", "/bucket"), (Some("bucket".into()), None));
        assert_eq!(target("bucket.localhost", "/"), (Some("bucket".into()), None));
        assert_eq!(target("oss-cn-hangzhou.aliyuncs.com", "/"), (None, None));
        assert!(Target::parse("127.0.0.1", "/bucket/%ff").is_err());
    }

    #[test]
    fn parameters_are_decoded_and_plus_is_a_plus() {
        let parameters = Parameters::parse("acl&prefix=a%2Fb+c&empty=&x=1=2").unwrap();
        let all: Vec<_> = parameters.iter().collect();
        assert_eq!(all, [("acl", ""), ("prefix", "a/b+c"), ("empty", ""), ("x", "1=2")]);
        assert_eq!(parameters.number("x", 0..=9, 3).unwrap_err().code, "InvalidArgument");
        assert_eq!(parameters.number("empty", 0..=9, 3).unwrap(), 3);
    }

    #[test]
    fn operations_are_told_apart() {
        let cases = [
            ("GET", "/", "", false, "ListBuckets"),
            ("GET", "/b/", "", false, "ListObjects"),
            ("GET", "/b/", "list-type=2&prefix=x", false, "ListObjectsV2"),
            ("GET", "/b/", "uploads", false, "ListMultipartUploads"),
            ("POST", "/b/", "delete", false, "DeleteMultipleObjects"),
            ("PUT", "/b/k", "", false, "PutObject"),
            ("PUT", "/b/k", "", true, "CopyObject"),
            ("PUT", "/b/k", "partNumber=1&uploadId=x", false, "UploadPart"),
            ("PUT", "/b/k", "partNumber=1&uploadId=x", true, "UploadPartCopy"),
            ("POST", "/b/k", "uploads", false, "InitiateMultipartUpload"),
            ("POST", "/b/k", "uploadId=x", false, "CompleteMultipartUpload"),
            ("DELETE", "/b/k", "uploadId=x", false, "AbortMultipartUpload"),
            ("GET", "/b/k", "uploadId=x", false, "ListParts"),
            ("HEAD", "/b/k", "objectMeta", false, "GetObjectMeta"),
        ];
        for (method, path, query, copies, name) in cases {
            let target = Target::parse("127.0.0.1", path).unwrap();
            let parameters = Parameters::parse(query).unwrap();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(Operation::of(&method, &target, &parameters, copies).unwrap().name(), name);
        }
    }

    #[test]
    fn what_is_not_served_is_not_taken_for_something_else() {
        let target = Target::parse("127.0.0.1", "/b/k").unwrap();
        for (method, query) in [(Method::PUT, "acl"), (Method::GET, "versionId=1"), (Method::PATCH, "")] {
            assert!(Operation::of(&method, &target, &Parameters::parse(query).unwrap(), false).is_err());
        }
    }
}
