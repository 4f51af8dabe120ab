//! Signature V1 (HMAC-SHA1), OSS reference §3.
//!
//! Signs a list of sub-resources with decoded values and the raw key; all other parameters are open to change.

use std::time::SystemTime;

use hmac::{Hmac, Mac};
use sha1::Sha1;

use super::{Credentials, Signable, check_key_id, check_skew, check_token, expired, mismatch, no_date};
use crate::base::time;
use crate::devserver::failure::Failure;
use crate::devserver::store::{at_seconds, base64_of};

/// The signed parameters; besides them every one that begins with `x-oss-`.
const SIGNED: &[&str] = &[
    "acl",
    "uploads",
    "uploadId",
    "partNumber",
    "append",
    "position",
    "seal",
    "delete",
    "symlink",
    "tagging",
    "restore",
    "objectMeta",
    "objectInfo",
    "location",
    "bucketInfo",
    "stat",
    "versions",
    "versioning",
    "versionId",
    "security-token",
    "continuation-token",
    "sequential",
    "callback",
    "callback-var",
    "response-content-type",
    "response-content-language",
    "response-expires",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "cors",
    "lifecycle",
    "logging",
    "website",
    "referer",
    "policy",
    "encryption",
    "inventory",
    "inventoryId",
    "requestPayment",
    "qos",
    "qosInfo",
    "live",
    "comp",
    "status",
    "vod",
    "startTime",
    "endTime",
    "worm",
    "wormId",
    "wormExtend",
    "replication",
    "replicationLocation",
    "replicationProgress",
    "transferAcceleration",
    "cname",
    "metaQuery",
    "resourceGroup",
    "style",
    "styleName",
    "img",
    "group",
    "link",
    "asyncFetch",
    "regionList",
    "cloudboxes",
    "httpsConfig",
    "redundancyTransition",
    "accessPoint",
    "accessPointPolicy",
    "publicAccessBlock",
    "bucketArchiveDirectRead",
    "requesterQosInfo",
    "qosRequester",
    "resourcePoolInfo",
    "resourcePool",
    "resourcePoolBuckets",
];

pub(super) fn verify_header(
    request: Signable<'_>,
    authorization: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<(), Failure> {
    let (id, provided) = authorization
        .strip_prefix("OSS ")
        .and_then(|rest| rest.split_once(':'))
        .ok_or_else(|| Failure::invalid_argument("Authorization header is invalid.").ec("0002-00000202"))?;
    check_key_id(id, credentials)?;
    // A legacy of the Python SDKs: x-oss-date stands in for Date.
    let date = request.header("x-oss-date").or_else(|| request.header("date")).ok_or_else(no_date)?;
    check_skew(time::parse_http_date(&date).ok_or_else(no_date)?, now)?;
    check_token(request.header("x-oss-security-token").as_deref(), credentials)?;
    check(request, &date, provided, credentials)
}

pub(super) fn verify_presigned(
    request: Signable<'_>,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<(), Failure> {
    let parameter = |name| request.parameters.get(name);
    let (Some(id), Some(provided), Some(expires)) =
        (parameter("OSSAccessKeyId"), parameter("Signature"), parameter("Expires"))
    else {
        let message = "Query-string authentication requires the Signature, Expires and OSSAccessKeyId parameters";
        return Err(Failure::access_denied(message));
    };
    check_key_id(id, credentials)?;
    let expires_at = at_seconds(expires.parse::<u32>().map_err(|_| Failure::bad_value("Expires", expires))?.into());
    if now > expires_at {
        return Err(expired(expires_at, now));
    }
    check_token(parameter("security-token"), credentials)?;
    check(request, expires, provided, credentials)
}

fn check(request: Signable<'_>, date: &str, provided: &str, credentials: &Credentials) -> Result<(), Failure> {
    let text = string_to_sign(request, date);
    let mut mac = Hmac::<Sha1>::new_from_slice(credentials.access_key_secret.as_bytes()).expect("any length is a key");
    mac.update(text.as_bytes());
    let signature = base64_of(&mac.finalize().into_bytes());
    if signature == provided { Ok(()) } else { Err(mismatch(credentials, provided, &text)) }
}

fn string_to_sign(request: Signable<'_>, date: &str) -> String {
    let header = |name| request.header(name).unwrap_or_default();
    let mut text = format!("{}\n{}\n{}\n{date}\n", request.method, header("content-md5"), header("content-type"));
    for name in request.oss_headers() {
        text.push_str(&format!("{name}:{}\n", header(name)));
    }
    text.push_str(&request.resource());
    let mut signed: Vec<(&str, &str)> = request.parameters.iter().filter(|(name, _)| is_signed(name)).collect();
    signed.sort_unstable();
    for (i, (name, value)) in signed.into_iter().enumerate() {
        text.push(if i == 0 { '?' } else { '&' });
        text.push_str(name);
        if !value.is_empty() {
            text.push('=');
            text.push_str(value);
        }
    }
    text
}

fn is_signed(name: &str) -> bool {
    SIGNED.contains(&name) || name.starts_with("x-oss-")
}
