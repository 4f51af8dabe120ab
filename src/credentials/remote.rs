//! Keys that a service hands out: the metadata service of ECS (OSS reference, §5.3) and STS (§5.4).

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::answer::keys_in;
use super::ram_role::form;
use super::{CredentialError, EcsRole, Fetched, RamRole};
use crate::base::SessionId;
use crate::base::time::{micros, now, rfc3339};

/// The metadata service; only an ECS instance can reach it.
pub(super) const METADATA: &str = "http://100.100.100.200";
const TOKEN_HEADER: &str = "x-aliyun-ecs-metadata-token";
const TOKEN_TTL_HEADER: &str = "x-aliyun-ecs-metadata-token-ttl-seconds";
const TOKEN_TTL: &str = "21600";
/// It answers at once, or this is no ECS instance.
const METADATA_CONNECT: Duration = Duration::from_secs(1);
const METADATA_PATIENCE: Duration = Duration::from_secs(5);
const STS_PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const LIFE_SECONDS: &str = "3600";

/// A role to be assumed with the token of an OIDC provider (RRSA in Kubernetes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcRole {
    pub role_arn: String,
    pub provider_arn: String,
    /// Read anew each time: kubelet rotates it.
    pub token_file: PathBuf,
    pub session_name: String,
    /// The address of STS.
    pub endpoint: String,
}

impl OidcRole {
    /// The address of STS in a region, for its own network or for all.
    pub fn endpoint_of(region: Option<&str>, vpc: bool) -> String {
        match (region, vpc) {
            (None, _) => "https://sts.aliyuncs.com".to_owned(),
            (Some(region), false) => format!("https://sts.{region}.aliyuncs.com"),
            (Some(region), true) => format!("https://sts-vpc.{region}.aliyuncs.com"),
        }
    }
}

fn http(connect: Duration, patience: Duration, encrypted: bool) -> Result<reqwest::Client, reqwest::Error> {
    // Fails where a provider is installed already, which serves as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect)
        .timeout(patience);
    // The metadata service is no matter of proxies, and needs no roots.
    if encrypted { builder.build() } else { builder.no_proxy().tls_certs_only([]).build() }
}

/// The body of an answer, and whether it is a success.
async fn answer(mut response: reqwest::Response) -> Result<(http::StatusCode, Vec<u8>), reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            break;
        }
        body.extend_from_slice(&chunk);
    }
    Ok((response.status(), body))
}

/// Asks the metadata service at `base` for the keys of a role, in its hardened mode where it has one.
pub(super) async fn ask_metadata(base: &str, role: &EcsRole) -> Result<Fetched, CredentialError> {
    let what = "the role of this ECS instance";
    let unreachable = |error: reqwest::Error| {
        let nothing = "no access key is in the environment, the config file, or the files of other tools, and no ECS \
                       role is there";
        let mend = "set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET, or see --credentials";
        if role.last_resort {
            CredentialError::new("credentials", nothing, mend)
        } else {
            CredentialError::new(what, format!("the metadata service does not answer: {}", error.without_url()), mend)
        }
    };
    let http = http(METADATA_CONNECT, METADATA_PATIENCE, false).map_err(unreachable)?;
    let by_url = role.name.as_deref().filter(|name| name.starts_with("http://") || name.starts_with("https://"));
    let token = match by_url {
        Some(_) => None,
        None => token(&http, base, role.hardened_only).await.map_err(unreachable)?,
    };
    let get = async |url: &str| -> Result<(http::StatusCode, Vec<u8>), reqwest::Error> {
        let request = http.get(url);
        let request = match &token {
            Some(token) => request.header(TOKEN_HEADER, token),
            None => request,
        };
        answer(request.send().await?).await
    };
    let roles = format!("{base}/latest/meta-data/ram/security-credentials/");
    let url = match (by_url, &role.name) {
        (Some(url), _) => url.to_owned(),
        (None, Some(name)) => format!("{roles}{name}"),
        (None, None) => {
            let (status, body) = get(&roles).await.map_err(unreachable)?;
            let text = String::from_utf8_lossy(&body);
            let name = text.lines().next().unwrap_or_default().trim();
            if !status.is_success() || name.is_empty() {
                let why = format!("it has none ({status})");
                return Err(CredentialError::new(what, why, "attach a RAM role to the instance, or see --credentials"));
            }
            format!("{roles}{name}")
        }
    };
    let (status, body) = get(&url).await.map_err(unreachable)?;
    if !status.is_success() {
        let why = format!("the metadata service refuses its keys ({status})");
        return Err(CredentialError::new(what, why, "check --role-name"));
    }
    keys_in(what, &serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// The token of the hardened mode; `None` where that is not known there.
async fn token(http: &reqwest::Client, base: &str, needed: bool) -> Result<Option<String>, reqwest::Error> {
    let put = http.request(Method::PUT, format!("{base}/latest/api/token")).header(TOKEN_TTL_HEADER, TOKEN_TTL);
    let response = put.header("content-length", "0").send().await?;
    let response = if needed { response.error_for_status()? } else { response };
    let (status, body) = answer(response).await?;
    let token = String::from_utf8(body).ok().map(|text| text.trim().to_owned());
    Ok(token.filter(|token| status.is_success() && !token.is_empty()))
}

/// AssumeRoleWithOIDC: an unsigned call.
pub(super) async fn assume_role_by_oidc(role: &OidcRole) -> Result<Fetched, CredentialError> {
    let what = format!("the role {}", role.role_arn);
    let token = std::fs::read_to_string(&role.token_file).map_err(|error| {
        let mend = "see ALIBABA_CLOUD_OIDC_TOKEN_FILE";
        CredentialError::new(role.token_file.display(), format!("the token cannot be read: {error}"), mend)
    })?;
    let body = [
        ("RoleArn", role.role_arn.as_str()),
        ("OIDCProviderArn", &role.provider_arn),
        ("OIDCToken", token.trim()),
        ("RoleSessionName", &role.session_name),
        ("DurationSeconds", LIFE_SECONDS),
    ];
    let query = [
        ("Action", "AssumeRoleWithOIDC"),
        ("Version", "2015-04-01"),
        ("Format", "JSON"),
        ("Timestamp", &rfc3339(now())),
    ];
    let path = format!("/?{}", form(&query));
    ask_sts(&what, &role.endpoint, &path, form(&body), "check ALIBABA_CLOUD_STS_REGION and the network").await
}

/// AssumeRole: signed with the key that may take the role.
pub(super) async fn assume_role(role: &RamRole) -> Result<Fetched, CredentialError> {
    let what = format!("the role {}", role.role_arn);
    let at = now();
    let body = role.signed_form(&rfc3339(at), &SessionId::generate(micros(at)).to_string());
    ask_sts(&what, &role.endpoint, "/", body, "check sts_region and the network").await
}

async fn ask_sts(what: &str, endpoint: &str, path: &str, body: String, mend: &str) -> Result<Fetched, CredentialError> {
    let failed = |error: reqwest::Error| {
        CredentialError::new(what, format!("STS does not answer: {}", error.without_url()), mend)
    };
    let encrypted = !endpoint.starts_with("http://");
    let http = http(METADATA_PATIENCE, STS_PATIENCE, encrypted).map_err(failed)?;
    let post = http.post(format!("{endpoint}{path}"));
    let post = post.header("content-type", "application/x-www-form-urlencoded").body(body);
    let (_, told) = answer(post.send().await.map_err(failed)?).await.map_err(failed)?;
    // A refusal has its code in the same place as a metadata service has its own.
    keys_in(what, &serde_json::from_slice(&told).unwrap_or(Value::Null))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    use super::*;

    const KEYS: &str = r#"{"AccessKeyId": "i", "AccessKeySecret": "s", "SecurityToken": "t",
        "Expiration": "2030-01-01T00:00:00Z", "Code": "Success"}"#;

    /// A service of one connection a request. Gives its address and what it was asked.
    fn service(answer: fn(&str) -> (u16, String)) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                    head.push_str(&line);
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                head.push_str(&String::from_utf8(body).unwrap());
                let (status, text) = answer(&head);
                log.lock().unwrap().push(head);
                let reply =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len());
                stream.write_all(reply.as_bytes()).unwrap();
            }
        });
        (base, asked)
    }

    fn hardened(head: &str) -> (u16, String) {
        let has_token = head.to_ascii_lowercase().contains("x-aliyun-ecs-metadata-token: tok");
        match head.split(' ').nth(1).unwrap() {
            "/latest/api/token" if head.starts_with("PUT") => (200, "tok".into()),
            _ if !has_token => (403, String::new()),
            "/latest/meta-data/ram/security-credentials/" => (200, "role-1\n".into()),
            "/latest/meta-data/ram/security-credentials/role-1" => (200, KEYS.into()),
            _ => (404, String::new()),
        }
    }

    fn normal(head: &str) -> (u16, String) {
        match head.split(' ').nth(1).unwrap() {
            "/latest/meta-data/ram/security-credentials/" => (200, "role-1".into()),
            "/latest/meta-data/ram/security-credentials/role-1" => (200, KEYS.into()),
            "/own" => (200, KEYS.into()),
            _ => (404, String::new()),
        }
    }

    #[tokio::test]
    async fn the_hardened_mode_goes_first() {
        let (base, asked) = service(hardened);
        let fetched = ask_metadata(&base, &EcsRole::default()).await.unwrap();
        assert_eq!(fetched.credentials.security_token.as_deref(), Some("t"));
        assert!(fetched.expires.is_some());
        let asked = asked.lock().unwrap();
        assert!(asked[0].starts_with("PUT /latest/api/token "), "{}", asked[0]);
        assert!(asked[0].to_ascii_lowercase().contains("x-aliyun-ecs-metadata-token-ttl-seconds: 21600"));
        assert_eq!(asked.len(), 3);
    }

    #[tokio::test]
    async fn the_normal_mode_is_the_second_choice_unless_it_is_barred() {
        let (base, _) = service(normal);
        assert_eq!(ask_metadata(&base, &EcsRole::default()).await.unwrap().credentials.access_key_id, "i");
        let named = |name: &str| EcsRole { name: Some(name.to_owned()), ..EcsRole::default() };
        assert!(ask_metadata(&base, &named("role-1")).await.is_ok());
        assert!(ask_metadata(&base, &named("role-2")).await.unwrap_err().why.contains("404"));
        assert!(ask_metadata("http://127.0.0.1:1", &named(&format!("{base}/own"))).await.is_ok());
        let hardened = EcsRole { hardened_only: true, ..EcsRole::default() };
        assert!(ask_metadata(&base, &hardened).await.is_err());
    }

    #[tokio::test]
    async fn the_last_resort_says_that_nothing_was_found() {
        let role = EcsRole { last_resort: true, ..EcsRole::default() };
        let error = ask_metadata("http://127.0.0.1:1", &role).await.unwrap_err().to_string();
        assert!(error.starts_with("credentials: no access key is in the environment"), "{error}");
        assert!(error.contains("OSS_ACCESS_KEY_ID"), "{error}");
    }

    fn sts(head: &str) -> (u16, String) {
        if head.contains("OIDCToken=good.token") {
            let keys = r#"{"RequestId": "r", "Credentials": {"AccessKeyId": "i", "AccessKeySecret": "s",
                "SecurityToken": "t", "Expiration": "2030-01-01T00:00:00Z"}}"#;
            (200, keys.into())
        } else {
            (400, r#"{"Code": "AuthenticationFail.OIDCToken.Expired", "Message": "expired"}"#.into())
        }
    }

    #[tokio::test]
    async fn a_role_is_assumed_with_the_token_as_it_stands_now() {
        let (endpoint, asked) = service(sts);
        let dir = tempfile::tempdir().unwrap();
        let token_file = dir.path().join("token");
        std::fs::write(&token_file, "old").unwrap();
        let role = OidcRole {
            role_arn: "acs:ram::1:role/r".into(),
            provider_arn: "acs:ram::1:oidc-provider/p".into(),
            token_file: token_file.clone(),
            session_name: "ossfuse".into(),
            endpoint,
        };
        let refused = assume_role_by_oidc(&role).await.unwrap_err().to_string();
        assert!(refused.contains("AuthenticationFail.OIDCToken.Expired"), "{refused}");
        std::fs::write(&token_file, "good.token\n").unwrap();
        let fetched = assume_role_by_oidc(&role).await.unwrap();
        assert_eq!((fetched.credentials.access_key_id.as_str(), fetched.expires.is_some()), ("i", true));
        let asked = asked.lock().unwrap();
        assert!(asked[1].starts_with("POST /?Action=AssumeRoleWithOIDC&Version="), "{}", asked[1]);
        assert!(asked[1].contains("RoleArn=acs%3Aram%3A%3A1%3Arole%2Fr&OIDCProviderArn="), "{}", asked[1]);
    }

    fn sts_of_a_key(head: &str) -> (u16, String) {
        if head.contains("AccessKeyId=i&Action=AssumeRole&") && head.contains("&Signature=") {
            let keys = r#"{"RequestId": "r", "Credentials": {"AccessKeyId": "STS.i", "AccessKeySecret": "s",
                "SecurityToken": "t", "Expiration": "2030-01-01T00:00:00Z"}}"#;
            (200, keys.into())
        } else {
            (403, r#"{"Code": "NoPermission", "Message": "You are not authorized to do this action."}"#.into())
        }
    }

    #[tokio::test]
    async fn a_role_is_assumed_with_a_key() {
        let (endpoint, asked) = service(sts_of_a_key);
        let role = |id: &str| RamRole {
            role_arn: "acs:ram::1:role/r".into(),
            session_name: "ossfuse".into(),
            external_id: None,
            policy: None,
            endpoint: endpoint.clone(),
            keys: crate::oss::Credentials {
                access_key_id: id.into(),
                access_key_secret: "hush".into(),
                security_token: None,
            },
        };
        let fetched = assume_role(&role("i")).await.unwrap();
        assert_eq!((fetched.credentials.access_key_id.as_str(), fetched.expires.is_some()), ("STS.i", true));
        let refused = assume_role(&role("j")).await.unwrap_err().to_string();
        assert!(refused.starts_with("the role acs:ram::1:role/r: NoPermission You are not"), "{refused}");
        let asked = asked.lock().unwrap();
        assert!(asked[0].starts_with("POST / ") && !asked[0].contains("hush"), "{}", asked[0]);
        let nonce = |text: &str| text.split("SignatureNonce=").nth(1).unwrap().split('&').next().unwrap().to_owned();
        assert_ne!(nonce(&asked[0]), nonce(&asked[1]));
    }
}
