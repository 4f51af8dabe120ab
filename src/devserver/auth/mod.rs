//! The signature check, as strict as the service: V1 and V4, in the header and presigned.
//!
//! Its own few lines, not the client's signer: both are held to the vectors made by the official SDKs, so that an
//! error in one is caught by the other. Rules: OSS reference §3 and §4.

mod v1;
mod v4;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};

use super::failure::Failure;
use super::request::{Parameters, Target};
use crate::base::time;

/// Farthest a client's clock may be off.
const SKEW_MAX: Duration = Duration::from_secs(15 * 60);

/// The one key the server accepts.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) access_key_secret: String,
    /// When set, requests must carry it, as with STS.
    pub(crate) security_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// What of a request a signature covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signable<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a Target,
    pub(crate) parameters: &'a Parameters,
    pub(crate) headers: &'a HeaderMap,
}

impl Signable<'_> {
    /// A header's value, several joined by commas, trimmed; none where there is no such header.
    fn header(&self, name: &str) -> Option<String> {
        let values: Vec<String> = self.headers.get_all(name).iter().map(|v| trimmed(v.as_bytes())).collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// The names of all headers that begin with `x-oss-`, sorted.
    fn oss_headers(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("x-oss-")).collect();
        names.sort_unstable();
        names
    }

    /// `/`, `/BUCKET/` or `/BUCKET/KEY`, whatever the addressing style.
    fn resource(&self) -> String {
        match (&self.target.bucket, &self.target.key) {
            (None, _) => "/".into(),
            (Some(bucket), None) => format!("/{bucket}/"),
            (Some(bucket), Some(key)) => format!("/{bucket}/{key}"),
        }
    }
}

fn trimmed(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim().to_owned()
}

/// Checks that the owner of `credentials` sent this request, and lately.
pub(crate) fn verify(
    request: Signable<'_>,
    credentials: &Credentials,
    region: &str,
    now: SystemTime,
) -> Result<(), Failure> {
    match request.header("authorization") {
        Some(value) if is_presigned(&request) => {
            Err(Failure::invalid_argument("Only one of the header and the query may carry a signature.")
                .detail("Authorization", value))
        }
        Some(value) if value.starts_with(v4::ALGORITHM) => v4::verify_header(request, &value, credentials, region, now),
        Some(value) => v1::verify_header(request, &value, credentials, now),
        None if request.parameters.has("x-oss-signature-version") => {
            v4::verify_presigned(request, credentials, region, now)
        }
        None if request.parameters.has("Signature") => v1::verify_presigned(request, credentials, now),
        None => {
            let message = "You have no right to access this object because of bucket acl.";
            Err(Failure::access_denied(message).ec("0003-00000002"))
        }
    }
}

fn is_presigned(request: &Signable<'_>) -> bool {
    request.parameters.has("x-oss-signature-version") || request.parameters.has("Signature")
}

fn check_key_id(id: &str, credentials: &Credentials) -> Result<(), Failure> {
    if id == credentials.access_key_id {
        return Ok(());
    }
    let message = "The OSS Access Key Id you provided does not exist in our records.";
    Err(Failure::new(StatusCode::FORBIDDEN, "InvalidAccessKeyId", message)
        .ec("0002-00000040")
        .detail("OSSAccessKeyId", id))
}

fn check_token(token: Option<&str>, credentials: &Credentials) -> Result<(), Failure> {
    if token == credentials.security_token.as_deref() {
        return Ok(());
    }
    let message = "The security token you provided is invalid.";
    Err(Failure::new(StatusCode::FORBIDDEN, "InvalidSecurityToken", message))
}

fn check_skew(signed_at: SystemTime, now: SystemTime) -> Result<(), Failure> {
    let skew = now.duration_since(signed_at).or_else(|_| signed_at.duration_since(now)).unwrap_or(Duration::MAX);
    if skew <= SKEW_MAX {
        return Ok(());
    }
    let message = "The difference between the request time and the current time is too large.";
    Err(Failure::new(StatusCode::FORBIDDEN, "RequestTimeTooSkewed", message)
        .detail("MaxAllowedSkewMilliseconds", SKEW_MAX.as_millis().to_string())
        .detail("RequestTime", time::xml_utc(signed_at))
        .detail("ServerTime", time::xml_utc(now)))
}

fn expired(expires_at: SystemTime, now: SystemTime) -> Failure {
    Failure::access_denied("Request has expired.")
        .detail("Expires", time::xml_utc(expires_at))
        .detail("ServerTime", time::xml_utc(now))
}

fn no_date() -> Failure {
    Failure::access_denied("OSS authentication requires a valid Date.")
}

/// The reply to a wrong signature: what the server signed, so that the client can find the difference.
fn mismatch(credentials: &Credentials, provided: &str, string_to_sign: &str) -> Failure {
    let bytes: Vec<String> = string_to_sign.bytes().map(|byte| format!("{byte:02X}")).collect();
    let message = "The request signature we calculated does not match the signature you provided. \
                   Check your key and signing method.";
    Failure::new(StatusCode::FORBIDDEN, "SignatureDoesNotMatch", message)
        .ec("0002-00000040")
        .detail("OSSAccessKeyId", &credentials.access_key_id)
        .detail("SignatureProvided", provided)
        .detail("StringToSign", string_to_sign)
        .detail("StringToSignBytes", bytes.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use serde_json::Value;

    /// A published vector as the request that its signer would send.
    struct Sent {
        id: String,
        method: String,
        target: Target,
        parameters: Parameters,
        headers: HeaderMap,
        credentials: Credentials,
        now: SystemTime,
    }

    impl Sent {
        fn from(vector: &Value) -> Self {
            let text = |name: &str| vector[name].as_str().unwrap_or_default().to_owned();
            let (_, rest) = vector["url"].as_str().unwrap().split_once("://").unwrap();
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let mut headers = HeaderMap::new();
            headers.insert("host", HeaderValue::from_str(host).unwrap());
            for name in ["headers", "added_headers"] {
                for (name, value) in vector[name].as_object().unwrap() {
                    let name = HeaderName::from_bytes(name.to_lowercase().as_bytes()).unwrap();
                    headers.insert(name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
                }
            }
            if let Some(value) = vector["authorization"].as_str() {
                headers.insert("authorization", HeaderValue::from_str(value).unwrap());
            }
            Self {
                id: text("id"),
                method: text("method"),
                target: Target::parse(host, &format!("/{path}")).unwrap(),
                parameters: Parameters::parse(query).unwrap(),
                headers,
                credentials: Credentials {
                    access_key_id: text("access_key_id"),
                    access_key_secret: text("access_key_secret"),
                    security_token: vector["security_token"].as_str().map(Into::into),
                },
                now: time::parse_rfc3339(vector["date"].as_str().unwrap()).unwrap(),
            }
        }

        fn verify(&self) -> Result<(), Failure> {
            let request = Signable {
                method: &self.method,
                target: &self.target,
                parameters: &self.parameters,
                headers: &self.headers,
            };
            verify(request, &self.credentials, "cn-hangzhou", self.now)
        }

        fn code(&self) -> String {
            self.verify().expect_err(&self.id).code
        }
    }

    fn vectors() -> Vec<Value> {
        let text = include_str!("../../../tests/data/vectors-public.json");
        serde_json::from_str(text).unwrap()
    }

    fn vector(id: &str) -> Sent {
        Sent::from(vectors().iter().find(|vector| vector["id"] == id).unwrap())
    }

    #[test]
    fn all_published_signatures_are_accepted() {
        for vector in vectors() {
            let sent = Sent::from(&vector);
            if let Err(failure) = sent.verify() {
                panic!("{}: {failure:#?}\n{vector:#}", sent.id);
            }
        }
    }

    #[test]
    fn every_change_of_a_signed_request_is_noticed() {
        for vector in vectors() {
            let mut sent = Sent::from(&vector);
            sent.credentials.access_key_secret.push('x');
            let failure = sent.verify().expect_err(&sent.id);
            assert_eq!(failure.code, "SignatureDoesNotMatch", "{}", sent.id);
            let said = |name| failure.details.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
            assert_eq!(said("StringToSign").as_deref(), vector["string_to_sign"].as_str(), "{}", sent.id);
            if vector["version"] == "v4" {
                assert_eq!(said("CanonicalRequest").as_deref(), vector["canonical_request"].as_str(), "{}", sent.id);
            }

            let mut sent = Sent::from(&vector);
            sent.method = "PATCH".into();
            assert_eq!(sent.code(), "SignatureDoesNotMatch");

            let mut sent = Sent::from(&vector);
            sent.headers.insert("x-oss-meta-added", HeaderValue::from_static("later"));
            assert_eq!(sent.code(), "SignatureDoesNotMatch");

            let mut sent = Sent::from(&vector);
            sent.credentials.access_key_id = "another".into();
            assert_eq!(sent.code(), "InvalidAccessKeyId");

            let mut sent = Sent::from(&vector);
            sent.credentials.security_token = Some("another".into());
            assert_eq!(sent.code(), "InvalidSecurityToken");
        }
    }

    #[test]
    fn clocks_may_be_off_by_a_quarter_of_an_hour() {
        for id in ["pub-003-v1-put-simple", "pub-019-v4-put-simple"] {
            let mut sent = vector(id);
            sent.now += SKEW_MAX;
            sent.verify().unwrap();
            sent.now += Duration::from_secs(1);
            assert_eq!(sent.code(), "RequestTimeTooSkewed");
            sent.now -= 2 * SKEW_MAX;
            sent.now -= Duration::from_secs(2);
            assert_eq!(sent.code(), "RequestTimeTooSkewed");
        }
    }

    #[test]
    fn presigned_urls_expire() {
        for id in ["pub-013-v1-presign-get", "pub-029-v4-presign-get"] {
            let mut sent = vector(id);
            sent.now += Duration::from_secs(3600);
            sent.verify().unwrap();
            sent.now += Duration::from_secs(1);
            assert_eq!(sent.code(), "AccessDenied");
        }
    }

    #[test]
    fn another_region_or_product_is_refused() {
        let sent = vector("pub-019-v4-put-simple");
        let request = Signable {
            method: &sent.method,
            target: &sent.target,
            parameters: &sent.parameters,
            headers: &sent.headers,
        };
        let failure = verify(request, &sent.credentials, "cn-beijing", sent.now).unwrap_err();
        assert_eq!(failure.ec, Some("0002-00000228"));
    }

    #[test]
    fn a_request_without_signature_is_refused() {
        let mut sent = vector("pub-019-v4-put-simple");
        sent.headers.remove("authorization");
        assert_eq!(sent.code(), "AccessDenied");
        for value in ["OSS", "OSS a", "OSS4-HMAC-SHA256", "OSS4-HMAC-SHA256 Credential=a/b/c", "Basic x"] {
            sent.headers.insert("authorization", HeaderValue::from_str(value).unwrap());
            assert!(sent.verify().is_err(), "{value}");
        }
    }
}
