//! Signature V4 (OSS4-HMAC-SHA256), OSS reference §4.
//!
//! Signs every parameter and the headers named as signed; `Host`, `Range` and `If-…` only if the client says so.

use std::time::{Duration, SystemTime};

use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::{Credentials, Signable, check_key_id, check_skew, check_token, expired, mismatch, no_date};
use crate::base::time;
use crate::devserver::failure::Failure;

pub(super) const ALGORITHM: &str = "OSS4-HMAC-SHA256";
const PRODUCT: &str = "oss";
const SUFFIX: &str = "aliyun_v4_request";
/// Longest life of a presigned URL, in seconds.
const EXPIRES_MAX: u64 = 7 * 24 * 3600;

/// All but the unreserved characters of URLs.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// What a V4 signature says of itself.
#[derive(Debug)]
struct Claim<'a> {
    key_id: &'a str,
    date: &'a str,
    region: &'a str,
    product: &'a str,
    additional: Vec<String>,
    signature: &'a str,
}

impl<'a> Claim<'a> {
    /// `credential` is `ID/DATE/REGION/PRODUCT/aliyun_v4_request`.
    fn new(credential: &'a str, additional: Option<&str>, signature: &'a str) -> Result<Self, Failure> {
        // The id comes first and may hold anything, so the parts are taken from the end.
        let mut parts = credential.rsplitn(5, '/');
        let (suffix, product, region, date, key_id) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(SUFFIX), Some(product), Some(region), Some(date), Some(key_id)) =
            (suffix, product, region, date, key_id)
        else {
            return Err(Failure::invalid_argument("The credential is malformed.").ec("0002-00000213"));
        };
        if additional == Some("") {
            return Err(Failure::invalid_argument("AdditionalHeaders must not be empty.").ec("0002-00000209"));
        }
        let names = additional.unwrap_or_default().split(';').filter(|name| !name.is_empty());
        let mut additional: Vec<String> = names.map(str::to_lowercase).collect();
        additional.sort_unstable();
        Ok(Self { key_id, date, region, product, additional, signature })
    }

    fn check_scope(&self, region: &str, signed_date: &str, ec: &'static str) -> Result<(), Failure> {
        if self.region != region || self.product != PRODUCT {
            let message = "Invalid signing region or product in the credential.";
            return Err(Failure::invalid_argument(message).ec(ec).detail("Region", region));
        }
        if !signed_date.starts_with(self.date) || self.date.len() != 8 {
            return Err(Failure::invalid_argument("Invalid date in the credential.").ec("0002-00000212"));
        }
        Ok(())
    }

    fn scope(&self) -> String {
        format!("{}/{}/{}/{SUFFIX}", self.date, self.region, self.product)
    }
}

pub(super) fn verify_header(
    request: Signable<'_>,
    authorization: &str,
    credentials: &Credentials,
    region: &str,
    now: SystemTime,
) -> Result<(), Failure> {
    let malformed = || Failure::invalid_argument("Authorization header is invalid.").ec("0002-00000203");
    let fields = authorization.strip_prefix(ALGORITHM).and_then(|rest| rest.strip_prefix(' ')).ok_or_else(malformed)?;
    let (mut credential, mut additional, mut signature) = (None, None, None);
    for field in fields.split(',') {
        match field.trim().split_once('=') {
            Some(("Credential", value)) => credential = Some(value),
            Some(("AdditionalHeaders", value)) => additional = Some(value),
            Some(("Signature", value)) => signature = Some(value),
            _ => return Err(malformed()),
        }
    }
    let (Some(credential), Some(signature)) = (credential, signature) else { return Err(malformed()) };
    let claim = Claim::new(credential, additional, signature)?;
    check_key_id(claim.key_id, credentials)?;
    let (date, signed_at) = header_date(request)?;
    claim.check_scope(region, &date, "0002-00000228")?;
    check_skew(signed_at, now)?;
    check_token(request.header("x-oss-security-token").as_deref(), credentials)?;
    let payload = request
        .header("x-oss-content-sha256")
        .ok_or_else(|| Failure::invalid_argument("The header x-oss-content-sha256 is required."))?;
    check(request, &claim, &date, &payload, credentials)
}

/// `x-oss-date`, or `Date` in its stead, in the form that is signed.
fn header_date(request: Signable<'_>) -> Result<(String, SystemTime), Failure> {
    if let Some(date) = request.header("x-oss-date") {
        let at = parse_basic(&date).ok_or_else(no_date)?;
        return Ok((date, at));
    }
    let at = request.header("date").and_then(|date| time::parse_http_date(&date)).ok_or_else(no_date)?;
    Ok((time::basic_utc(at), at))
}

/// Reads `20231216T162057Z`.
fn parse_basic(text: &str) -> Option<SystemTime> {
    let digits = |from: usize, to: usize| text.get(from..to).filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let (year, month, day) = (digits(0, 4)?, digits(4, 6)?, digits(6, 8)?);
    let (hour, minute, second) = (digits(9, 11)?, digits(11, 13)?, digits(13, 15)?);
    if text.get(8..9)? != "T" || text.get(15..)? != "Z" {
        return None;
    }
    time::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z"))
}

pub(super) fn verify_presigned(
    request: Signable<'_>,
    credentials: &Credentials,
    region: &str,
    now: SystemTime,
) -> Result<(), Failure> {
    let parameter = |name: &str| {
        let missing = || Failure::invalid_argument(format!("The parameter {name} is required."));
        request.parameters.get(name).ok_or_else(missing)
    };
    if parameter("x-oss-signature-version")? != ALGORITHM {
        return Err(Failure::invalid_argument("The signature version is unknown."));
    }
    let additional = request.parameters.get("x-oss-additional-headers");
    let claim = Claim::new(parameter("x-oss-credential")?, additional, parameter("x-oss-signature")?)?;
    check_key_id(claim.key_id, credentials)?;
    let date = parameter("x-oss-date")?;
    claim.check_scope(region, date, "0002-00000226")?;
    let signed_at = parse_basic(date).ok_or_else(no_date)?;
    let expires = parameter("x-oss-expires")?;
    let life = match expires.parse() {
        Ok(life) if (1..=EXPIRES_MAX).contains(&life) => Duration::from_secs(life),
        _ => return Err(Failure::bad_value("x-oss-expires", expires).ec("0002-00000232")),
    };
    if now > signed_at + life {
        return Err(expired(signed_at + life, now));
    }
    // A URL may be old, but not from the future.
    if signed_at > now {
        check_skew(signed_at, now)?;
    }
    check_token(request.parameters.get("x-oss-security-token"), credentials)?;
    check(request, &claim, date, "UNSIGNED-PAYLOAD", credentials)
}

fn check(
    request: Signable<'_>,
    claim: &Claim<'_>,
    date: &str,
    payload: &str,
    credentials: &Credentials,
) -> Result<(), Failure> {
    let canonical = canonical_request(request, &claim.additional, payload);
    let digest = hex(&Sha256::digest(&canonical));
    let text = format!("{ALGORITHM}\n{date}\n{}\n{digest}", claim.scope());
    let mut key = mac(format!("aliyun_v4{}", credentials.access_key_secret).as_bytes(), claim.date);
    for part in [claim.region, claim.product, SUFFIX] {
        key = mac(&key, part);
    }
    if hex(&mac(&key, &text)) == claim.signature {
        return Ok(());
    }
    Err(mismatch(credentials, claim.signature, &text).detail("CanonicalRequest", canonical))
}

fn canonical_request(request: Signable<'_>, additional: &[String], payload: &str) -> String {
    let uri = utf8_percent_encode(&request.resource(), PATH).to_string();
    let encode = |text: &str| utf8_percent_encode(text, QUERY).to_string();
    let mut pairs: Vec<(String, String)> = request
        .parameters
        .iter()
        .filter(|(name, _)| *name != "x-oss-signature")
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    pairs.sort_unstable();
    let query: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| if value.is_empty() { name } else { format!("{name}={value}") })
        .collect();
    let mut signed = request.oss_headers();
    let named = ["content-type", "content-md5"].into_iter().chain(additional.iter().map(String::as_str));
    signed.extend(named.filter(|name| request.headers.contains_key(*name)));
    signed.sort_unstable();
    signed.dedup();
    let headers: String =
        signed.iter().map(|name| format!("{name}:{}\n", request.header(name).unwrap_or_default())).collect();
    format!("{}\n{uri}\n{}\n{headers}\n{}\n{payload}", request.method, query.join("&"), additional.join(";"))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    crate::devserver::store::hex_upper(bytes).to_lowercase()
}
