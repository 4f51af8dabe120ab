//! A signer of the tests' own: V4 and V1, in the header and presigned, after the manual's rules.
//!
//! Works on the escaped target as it goes over the wire, unlike the server, which decodes and escapes again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use ossfuse::base::time;
use percent_encoding::percent_decode_str;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::wire::Request;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V4,
}

/// Who signs, and when.
#[derive(Clone, Debug)]
pub(super) struct Signer {
    pub(super) key_id: String,
    pub(super) secret: String,
    pub(super) region: String,
    pub(super) token: Option<String>,
    /// Seconds by which the clock is off.
    pub(super) skew: i64,
}

impl Default for Signer {
    fn default() -> Self {
        Self { key_id: "test-ak".into(), secret: "test-sk".into(), region: "cn-hangzhou".into(), token: None, skew: 0 }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hmac_sha1_base64(key: &str, text: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// Lines of the headers that `signed` names, in order of the names: `a-b:` comes behind `a:`, which sorting whole
/// lines gets wrong.
fn header_block(request: &Request, signed: impl Fn(&str) -> bool) -> String {
    let lower = request.headers.iter().map(|(name, value)| (name.to_lowercase(), value));
    let mut headers: Vec<_> = lower.filter(|(name, _)| signed(name)).collect();
    headers.sort_unstable();
    headers.into_iter().map(|(name, value)| format!("{name}:{value}\n")).collect()
}

impl Signer {
    fn now(&self) -> SystemTime {
        let micros = time::micros(time::now()) as i64 + self.skew * 1_000_000;
        UNIX_EPOCH + Duration::from_micros(micros as u64)
    }

    /// Adds the headers that sign `request`, whose target is in path style.
    pub(super) fn sign(&self, request: &mut Request, version: Version) {
        let path = request.target.clone();
        self.sign_as(request, version, &path);
    }

    /// As [`Self::sign`], for a target that is not in path style: `path` is what it would be then.
    pub(super) fn sign_as(&self, request: &mut Request, version: Version, path: &str) {
        if let Some(token) = &self.token {
            request.push("x-oss-security-token", token);
        }
        match version {
            Version::V4 => self.sign_v4(request, path),
            Version::V1 => self.sign_v1(request, path),
        }
    }

    fn sign_v4(&self, request: &mut Request, path: &str) {
        let date = time::basic_utc(self.now());
        request.push("x-oss-date", &date);
        request.push("x-oss-content-sha256", "UNSIGNED-PAYLOAD");
        let signature = self.v4_signature(request, path, &date);
        let credential = format!("{}/{}", self.key_id, self.scope(&date));
        request.push("Authorization", format!("OSS4-HMAC-SHA256 Credential={credential},Signature={signature}"));
    }

    fn scope(&self, date: &str) -> String {
        format!("{}/{}/oss/aliyun_v4_request", &date[..8], self.region)
    }

    fn v4_signature(&self, request: &Request, target: &str, date: &str) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut query: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
        query.sort_unstable();
        let headers =
            header_block(request, |name| name.starts_with("x-oss-") || name == "content-type" || name == "content-md5");
        let canonical = format!("{}\n{path}\n{}\n{}\n\nUNSIGNED-PAYLOAD", request.method, query.join("&"), headers);
        let digest = hex(&Sha256::digest(canonical));
        let text = format!("OSS4-HMAC-SHA256\n{date}\n{}\n{digest}", self.scope(date));
        let mut key = hmac_sha256(format!("aliyun_v4{}", self.secret).as_bytes(), &date[..8]);
        for part in [&self.region, "oss", "aliyun_v4_request"] {
            key = hmac_sha256(&key, part);
        }
        hex(&hmac_sha256(&key, &text))
    }

    fn sign_v1(&self, request: &mut Request, path: &str) {
        let date = time::http_date(self.now());
        request.push("Date", &date);
        let signature = self.v1_signature(request, path, &date);
        request.push("Authorization", format!("OSS {}:{signature}", self.key_id));
    }

    fn v1_signature(&self, request: &Request, target: &str, date: &str) -> String {
        // The few sub-resources that these tests sign.
        let signed = ["uploads", "uploadId", "partNumber", "delete", "objectMeta", "continuation-token"];
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut query: Vec<String> = query
            .split('&')
            .filter(|pair| signed.contains(&pair.split('=').next().unwrap()))
            .map(|pair| percent_decode_str(pair).decode_utf8().unwrap().into_owned())
            .collect();
        query.sort_unstable();
        let headers = header_block(request, |name| name.starts_with("x-oss-"));
        let header = |name| request.header(name).unwrap_or_default();
        let path = percent_decode_str(path).decode_utf8().unwrap();
        let mark = if query.is_empty() { "" } else { "?" };
        let text = format!(
            "{}\n{}\n{}\n{date}\n{}{path}{mark}{}",
            request.method,
            header("content-md5"),
            header("content-type"),
            headers,
            query.join("&")
        );
        hmac_sha1_base64(&self.secret, &text)
    }

    /// Adds the parameters that make `request` a presigned URL good for `seconds`.
    pub(super) fn presign(&self, request: &mut Request, version: Version, seconds: u64) {
        let mark = if request.target.contains('?') { '&' } else { '?' };
        let escape = |text: &str| text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        match version {
            Version::V4 => {
                let date = time::basic_utc(self.now());
                let credential = escape(&format!("{}/{}", self.key_id, self.scope(&date)));
                request.target += &format!(
                    "{mark}x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-date={date}&x-oss-expires={seconds}\
                     &x-oss-credential={credential}"
                );
                let signature = self.v4_signature(request, &request.target, &date);
                request.target += &format!("&x-oss-signature={signature}");
            }
            Version::V1 => {
                let expires = (time::since_epoch(self.now()).as_secs() + seconds).to_string();
                let signature = escape(&self.v1_signature(request, &request.target, &expires));
                request.target +=
                    &format!("{mark}OSSAccessKeyId={}&Expires={expires}&Signature={signature}", self.key_id);
            }
        }
    }
}
