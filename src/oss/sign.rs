//! Signatures V4 and V1 in headers (OSS reference §§3 and 4): pure but for the cache of the day's V4 key.
//!
//! The addressing style has no part in them: the signed resource always names bucket and key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::encode::{self, Param};
use super::types::{Credentials, SignatureVersion};
use crate::base::time;

const ALGORITHM: &str = "OSS4-HMAC-SHA256";
const PRODUCT: &str = "oss";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const OSS_DATE: HeaderName = HeaderName::from_static("x-oss-date");
const OSS_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-oss-content-sha256");
const OSS_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-oss-security-token");

/// Query parameters that V1 signs beside those that begin with `x-oss-`: of the whole set (§3) the ones that concern
/// objects and their storage; sorted.
const V1_SUBRESOURCES: [&str; 19] = [
    "acl",
    "append",
    "bucketInfo",
    "continuation-token",
    "delete",
    "location",
    "objectMeta",
    "partNumber",
    "position",
    "response-content-disposition",
    "response-content-type",
    "security-token",
    "stat",
    "symlink",
    "tagging",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
];

/// What is signed of a request, but for its headers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signable<'a> {
    pub(super) method: &'a str,
    pub(super) bucket: Option<&'a str>,
    pub(super) key: Option<&'a str>,
    pub(super) query: &'a [Param<'a>],
}

/// Signs with one credential; V4 keys are kept for the day they are good for.
#[derive(Debug)]
pub(super) struct Signer {
    credentials: Credentials,
    scheme: Scheme,
}

enum Scheme {
    V4 {
        region: String,
        /// The day (`YYYYMMDD`) and its key.
        key: Mutex<Option<(String, [u8; 32])>>,
    },
    V1,
}

impl std::fmt::Debug for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::V4 { region, .. } => write!(f, "V4({region})"),
            Self::V1 => f.write_str("V1"),
        }
    }
}

/// A credential holds characters that no header can carry, or V4 lacks its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadSigner {
    #[error("signature V4 needs a region")]
    NoRegion,
    #[error("the access key id or the security token holds characters that no header can carry")]
    BadCredentials,
}

impl Signer {
    /// What it signs with.
    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// `region` is needed by V4 only, in its general form, and not for anonymous requests.
    pub(super) fn new(
        credentials: Credentials,
        version: SignatureVersion,
        region: Option<&str>,
    ) -> Result<Self, BadSigner> {
        let token = credentials.security_token.as_deref().unwrap_or_default();
        let region = region.unwrap_or_default();
        if [&credentials.access_key_id, token, region].iter().any(|text| HeaderValue::from_str(text).is_err()) {
            return Err(BadSigner::BadCredentials);
        }
        let scheme = match version {
            SignatureVersion::V1 => Scheme::V1,
            SignatureVersion::V4 if region.is_empty() && !credentials.access_key_id.is_empty() => {
                return Err(BadSigner::NoRegion);
            }
            SignatureVersion::V4 => Scheme::V4 { region: region.into(), key: Mutex::new(None) },
        };
        Ok(Self { credentials, scheme })
    }

    /// Adds `Date`, the signature's own headers and `Authorization`. Without an access key id the request stays
    /// anonymous.
    pub(super) fn sign(&self, request: &Signable<'_>, headers: &mut HeaderMap, at: std::time::SystemTime) {
        let date = time::http_date(at);
        let mut authorization = String::new();
        if !self.credentials.access_key_id.is_empty() {
            if let Some(token) = &self.credentials.security_token {
                headers.insert(OSS_SECURITY_TOKEN, secret(token));
            }
            authorization = match &self.scheme {
                Scheme::V1 => self.v1(request, headers, &date),
                Scheme::V4 { region, key } => self.v4(request, headers, &time::basic_utc(at), region, key),
            };
        }
        headers.insert(DATE, text(&date));
        if !authorization.is_empty() {
            headers.insert(AUTHORIZATION, secret(&authorization));
        }
    }

    fn v1(&self, request: &Signable<'_>, headers: &HeaderMap, date: &str) -> String {
        let Credentials { access_key_id, access_key_secret, .. } = &self.credentials;
        let signature = hmac_sha1(access_key_secret, &v1_string_to_sign(request, headers, date));
        format!("OSS {access_key_id}:{signature}")
    }

    fn v4(
        &self,
        request: &Signable<'_>,
        headers: &mut HeaderMap,
        stamp: &str,
        region: &str,
        cache: &Mutex<Option<(String, [u8; 32])>>,
    ) -> String {
        headers.insert(OSS_DATE, text(stamp));
        headers.insert(OSS_CONTENT_SHA256, HeaderValue::from_static(UNSIGNED));
        let Credentials { access_key_id, access_key_secret, .. } = &self.credentials;
        let day = &stamp[..8];
        let key = {
            let mut cache = cache.lock();
            match &*cache {
                Some((cached, key)) if cached == day => *key,
                _ => cache.insert((day.into(), v4_key(access_key_secret, day, region))).1,
            }
        };
        let canonical = v4_canonical_request(request, headers, &[]);
        let signature = v4_signature(&key, &v4_string_to_sign(stamp, region, &canonical));
        let scope = v4_scope(day, region);
        format!("{ALGORITHM} Credential={access_key_id}/{scope},Signature={signature}")
    }
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("dates are ASCII, and Signer::new has checked the rest")
}

fn secret(value: &str) -> HeaderValue {
    let mut value = text(value);
    value.set_sensitive(true);
    value
}

/// `name:value\n` of each header that `wanted` names, sorted.
fn push_headers(out: &mut Vec<u8>, headers: &HeaderMap, wanted: impl Fn(&str) -> bool) {
    let mut chosen: Vec<(&str, &HeaderValue)> =
        headers.iter().map(|(name, value)| (name.as_str(), value)).filter(|(name, _)| wanted(name)).collect();
    chosen.sort_unstable_by_key(|(name, _)| *name);
    for (name, value) in chosen {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        out.extend_from_slice(value.as_bytes().trim_ascii());
        out.push(b'\n');
    }
}

/// `/`, `/bucket/` or `/bucket/key`, with the key as `push_key` writes it.
fn push_resource(out: &mut String, request: &Signable<'_>, push_key: impl Fn(&mut String, &str)) {
    out.push('/');
    if let Some(bucket) = request.bucket {
        out.push_str(bucket);
        out.push('/');
    }
    if let Some(key) = request.key {
        push_key(out, key);
    }
}

/// The canonical request of V4 (§4.1). `additional` are the lower-case names of further headers to be signed, sorted
/// and present; this client signs none beyond the default ones.
fn v4_canonical_request(request: &Signable<'_>, headers: &HeaderMap, additional: &[&str]) -> Vec<u8> {
    let mut head = String::with_capacity(1024);
    head.push_str(request.method);
    head.push('\n');
    push_resource(&mut head, request, encode::push_path);
    head.push('\n');
    head.push_str(&encode::query(request.query));
    head.push('\n');
    let mut out = head.into_bytes();
    push_headers(&mut out, headers, |name| {
        name.starts_with("x-oss-")
            || name == CONTENT_TYPE.as_str()
            || name == "content-md5"
            || additional.contains(&name)
    });
    out.push(b'\n');
    out.extend_from_slice(additional.join(";").as_bytes());
    out.push(b'\n');
    out.extend_from_slice(UNSIGNED.as_bytes());
    out
}

fn v4_scope(day: &str, region: &str) -> String {
    format!("{day}/{region}/{PRODUCT}/aliyun_v4_request")
}

fn v4_string_to_sign(stamp: &str, region: &str, canonical: &[u8]) -> String {
    let scope = v4_scope(&stamp[..8], region);
    format!("{ALGORITHM}\n{stamp}\n{scope}\n{}", hex(&Sha256::digest(canonical)))
}

fn v4_key(secret: &str, day: &str, region: &str) -> [u8; 32] {
    let mut key = hmac_sha256(format!("aliyun_v4{secret}").as_bytes(), day);
    for step in [region, PRODUCT, "aliyun_v4_request"] {
        key = hmac_sha256(&key, step);
    }
    key
}

fn v4_signature(key: &[u8; 32], string_to_sign: &str) -> String {
    hex(&hmac_sha256(key, string_to_sign))
}

fn hmac_sha256(key: &[u8], message: &str) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().into()
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The string that V1 signs (§3). `date` is the `Date` header, or the expiry of a presigned URL.
fn v1_string_to_sign(request: &Signable<'_>, headers: &HeaderMap, date: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(request.method.as_bytes());
    out.push(b'\n');
    for name in ["content-md5", "content-type"] {
        out.extend_from_slice(headers.get(name).map_or(&[], |value| value.as_bytes().trim_ascii()));
        out.push(b'\n');
    }
    out.extend_from_slice(date.as_bytes());
    out.push(b'\n');
    push_headers(&mut out, headers, |name| name.starts_with("x-oss-"));
    out.extend_from_slice(v1_resource(request).as_bytes());
    out
}

fn v1_signs(name: &str) -> bool {
    name.starts_with("x-oss-") || V1_SUBRESOURCES.binary_search(&name).is_ok()
}

/// Raw key and raw values of the signed parameters.
fn v1_resource(request: &Signable<'_>) -> String {
    let mut out = String::with_capacity(256);
    push_resource(&mut out, request, |out, key| out.push_str(key));
    let mut signed: Vec<&Param<'_>> = request.query.iter().filter(|(name, _)| v1_signs(name)).collect();
    signed.sort_unstable();
    for (index, (name, value)) in signed.into_iter().enumerate() {
        out.push(if index == 0 { '?' } else { '&' });
        out.push_str(name);
        if !value.is_empty() {
            out.push('=');
            out.push_str(value);
        }
    }
    out
}

/// HMAC-SHA1 as base64: the signature of V1, and that of other services of Alibaba Cloud.
pub fn hmac_sha1(secret: &str, string_to_sign: &[u8]) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(string_to_sign);
    BASE64.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::Value;

    use super::*;

    struct Vector(Value);

    impl Vector {
        fn text(&self, name: &str) -> &str {
            self.0[name].as_str().unwrap_or_else(|| panic!("{name} of {}", self.0["id"]))
        }
        fn is(&self, version: &str, style: &str) -> bool {
            self.text("version") == version && self.text("style") == style
        }
        fn headers(&self) -> HeaderMap {
            let pairs = self.0["headers"].as_object().unwrap().iter();
            pairs
                .map(|(name, value)| {
                    let value = value.as_str().unwrap().as_bytes();
                    (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap())
                })
                .collect()
        }
        fn query(&self) -> Vec<Param<'_>> {
            let text = |value: &'_ Value| value.as_str().unwrap().to_owned();
            self.0["query"]
                .as_array()
                .unwrap()
                .iter()
                .map(|pair| (pair[0].as_str().unwrap(), Cow::Owned(text(&pair[1]))))
                .collect()
        }
        fn signable<'a>(&'a self, query: &'a [Param<'a>]) -> Signable<'a> {
            let (bucket, key) = (self.0["bucket"].as_str(), self.0["key"].as_str());
            Signable { method: self.text("method"), bucket, key, query }
        }
        /// Those that are present and not signed anyway, lower case and sorted.
        fn additional(&self) -> Vec<String> {
            let headers = self.headers();
            let named = self.0["additional_headers"].as_array().unwrap().iter();
            let mut names: Vec<String> = named
                .map(|name| name.as_str().unwrap().to_ascii_lowercase())
                .filter(|name| headers.contains_key(name.as_str()))
                .filter(|name| !name.starts_with("x-oss-") && name != "content-type" && name != "content-md5")
                .collect();
            names.sort();
            names
        }
        fn date(&self) -> std::time::SystemTime {
            time::parse_rfc3339(self.text("date")).unwrap()
        }
        fn credentials(&self) -> Credentials {
            Credentials {
                access_key_id: self.text("access_key_id").into(),
                access_key_secret: self.text("access_key_secret").into(),
                security_token: self.0["security_token"].as_str().map(Into::into),
            }
        }
        fn signer(&self) -> Signer {
            let version = if self.text("version") == "v1" { SignatureVersion::V1 } else { SignatureVersion::V4 };
            Signer::new(self.credentials(), version, Some(self.text("region"))).unwrap()
        }
    }

    fn vectors() -> Vec<Vector> {
        let all: Vec<Value> = serde_json::from_str(include_str!("../../tests/data/vectors-public.json")).unwrap();
        assert_eq!(all.len(), 43);
        all.into_iter().map(Vector).collect()
    }

    fn utf8(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn all_published_header_signatures_hold() {
        for vector in vectors().iter().filter(|vector| vector.text("style") == "header") {
            if !vector.additional().is_empty() {
                continue;
            }
            let (query, mut headers) = (vector.query(), vector.headers());
            vector.signer().sign(&vector.signable(&query), &mut headers, vector.date());
            assert_eq!(headers[AUTHORIZATION], vector.text("authorization"), "{}", vector.text("id"));
            for (name, value) in vector.0["added_headers"].as_object().unwrap() {
                assert_eq!(headers[name.as_str()], value.as_str().unwrap(), "{}", vector.text("id"));
            }
        }
    }

    #[test]
    fn all_published_v4_steps_hold() {
        for vector in vectors().iter().filter(|vector| vector.text("version") == "v4") {
            let stamp = time::basic_utc(vector.date());
            let (mut query, mut headers) = (vector.query(), vector.headers());
            let additional = vector.additional();
            let token = vector.0["security_token"].as_str();
            if vector.is("v4", "header") {
                headers.insert(OSS_DATE, text(&stamp));
                headers.insert(OSS_CONTENT_SHA256, text(UNSIGNED));
                if let Some(token) = token {
                    headers.insert(OSS_SECURITY_TOKEN, text(token));
                }
            } else {
                let scope = v4_scope(&stamp[..8], vector.text("region"));
                let credential = format!("{}/{scope}", vector.text("access_key_id"));
                query.push(("x-oss-signature-version", ALGORITHM.into()));
                query.push(("x-oss-date", stamp.clone().into()));
                query.push(("x-oss-expires", vector.0["expires"].to_string().into()));
                query.push(("x-oss-credential", credential.into()));
                query.extend(token.map(|token| ("x-oss-security-token", token.into())));
                if !additional.is_empty() {
                    query.push(("x-oss-additional-headers", additional.join(";").into()));
                }
            }
            let additional: Vec<&str> = additional.iter().map(String::as_str).collect();
            let canonical = v4_canonical_request(&vector.signable(&query), &headers, &additional);
            let id = vector.text("id");
            assert_eq!(utf8(canonical.clone()), vector.text("canonical_request"), "{id}");
            let string_to_sign = v4_string_to_sign(&stamp, vector.text("region"), &canonical);
            assert_eq!(string_to_sign, vector.text("string_to_sign"), "{id}");
            let key = v4_key(vector.text("access_key_secret"), &stamp[..8], vector.text("region"));
            assert_eq!(v4_signature(&key, &string_to_sign), vector.text("signature"), "{id}");
        }
    }

    #[test]
    fn all_published_v1_steps_hold() {
        for vector in vectors().iter().filter(|vector| vector.text("version") == "v1") {
            let (mut query, mut headers) = (vector.query(), vector.headers());
            let token = vector.0["security_token"].as_str();
            let date = if vector.is("v1", "header") {
                if let Some(token) = token {
                    headers.insert(OSS_SECURITY_TOKEN, text(token));
                }
                time::http_date(vector.date())
            } else {
                query.extend(token.map(|token| ("security-token", token.into())));
                vector.0["expires_at"].to_string()
            };
            let string_to_sign = v1_string_to_sign(&vector.signable(&query), &headers, &date);
            let id = vector.text("id");
            assert_eq!(utf8(string_to_sign.clone()), vector.text("string_to_sign"), "{id}");
            assert_eq!(hmac_sha1(vector.text("access_key_secret"), &string_to_sign), vector.text("signature"), "{id}");
        }
    }

    #[test]
    fn the_signed_subresources_are_sorted() {
        assert!(V1_SUBRESOURCES.is_sorted());
    }

    #[test]
    fn without_a_key_nothing_is_signed() {
        let credentials =
            Credentials { access_key_id: String::new(), access_key_secret: String::new(), security_token: None };
        let signer = Signer::new(credentials, SignatureVersion::V4, None).unwrap();
        let mut headers = HeaderMap::new();
        let request = Signable { method: "GET", bucket: Some("b"), key: None, query: &[] };
        signer.sign(&request, &mut headers, time::from_micros(0));
        assert!(headers.contains_key(DATE) && !headers.contains_key(AUTHORIZATION));
    }

    #[test]
    fn what_cannot_sign_is_refused() {
        let credentials =
            |id: &str| Credentials { access_key_id: id.into(), access_key_secret: "s".into(), security_token: None };
        let signer = |id, region| Signer::new(credentials(id), SignatureVersion::V4, region).err();
        assert_eq!(signer("id", None), Some(BadSigner::NoRegion));
        assert_eq!(signer("id\r\nx: y", Some("r")), Some(BadSigner::BadCredentials));
        assert_eq!(signer("id", Some("r")), None);
    }
}
