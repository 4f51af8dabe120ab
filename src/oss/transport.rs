//! The way to the service: connections, URLs, and one try of one request.
//!
//! Follows no redirect (the signature would not hold elsewhere), speaks HTTP/1.1 only, asks for no compression, and
//! sends nothing but what was signed. Repeating is the client's business.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use reqwest::Url;

use super::download;
use super::endpoint::{Addressing, Endpoint};
use super::error::{Error, ErrorKind, Failure, Outcome};
use super::limiter::Bucket;
use super::request::Request;
use super::stats::Counters;
use super::types::{Limits, Operation};
use super::upload::{Progress, Upload};
use crate::base::limits::XML_BYTES_MAX;
use crate::base::time;

const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// The service closes idle connections after about a minute (OSS reference §14): stay well below.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const IDLE_CONNECTIONS_MAX: usize = 256;
/// Headers in a reply; 8 KiB of user metadata can be some hundred of them. Their bytes are bounded by the read buffer.
const HEADERS_MAX: usize = 512;
/// How many times as long the service may stay silent over what takes it long.
const PATIENCE_FACTOR_SLOW: u32 = 3;
/// A request that takes longer than this, and than its body would over a thin line, is slow.
const SLOW: Duration = Duration::from_secs(10);
const SLOW_BYTES_A_SECOND: u64 = 64 << 10;
/// Before the connector's own timer, which knows that nothing was sent, the watch on the whole try must not end it.
const GRACE: Duration = Duration::from_millis(100);

/// What is to be done with the body of a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// It means nothing.
    Nothing,
    Xml,
    Stream,
}

/// A success.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) xml: bytes::Bytes,
    /// For [`Expect::Stream`].
    pub(super) stream: Option<reqwest::Body>,
    /// CRC64 of the body as it was sent.
    pub(super) sent_crc64: u64,
}

/// The connections to one endpoint, and the URL that all requests share.
#[derive(Debug)]
pub(super) struct Transport {
    http: reqwest::Client,
    base: Url,
    /// What stands before the key in the path: nothing, or the bucket.
    path_prefix: String,
    pub(super) patience: Duration,
    pub(super) counters: Arc<Counters>,
    upload: Option<Arc<Bucket>>,
    pub(super) download: Option<Arc<Bucket>>,
}

impl Transport {
    /// `patience` is how long a try may pass without a byte moved; `ca_pem` is trusted beside the system's roots.
    pub(super) fn new(
        endpoint: &Endpoint,
        addressing: Addressing,
        bucket: &str,
        patience: Duration,
        limits: Limits,
        ca_pem: &[u8],
    ) -> Result<Self, String> {
        let authority = endpoint.authority();
        let scheme = if endpoint.https { "https" } else { "http" };
        let (base, path_prefix) = match addressing {
            Addressing::VirtualHost => (format!("{scheme}://{bucket}.{authority}/"), String::new()),
            Addressing::Path => (format!("{scheme}://{authority}/"), format!("/{bucket}")),
            Addressing::Cname => (format!("{scheme}://{authority}/"), String::new()),
        };
        let base = Url::parse(&base).map_err(|error| format!("{base}: {error}"))?;
        let http = connections(endpoint, patience, authorities(ca_pem)?).map_err(describe)?;
        let [upload, download] =
            [limits.upload, limits.download].map(|rate| rate.map(|rate| Arc::new(Bucket::of_bytes(rate))));
        Ok(Self { http, base, path_prefix, patience, counters: Arc::default(), upload, download })
    }

    /// The URL of a request. It must name the path exactly as signed: `url` folds some, which are refused.
    pub(super) fn url(&self, request: &Request<'_>) -> Result<Url, &'static str> {
        let (path, query) = request.target();
        let path = if self.path_prefix.is_empty() { path } else { format!("{}{path}", self.path_prefix) };
        let mut url = self.base.clone();
        url.set_path(&path);
        url.set_query(if query.is_empty() { None } else { Some(&query) });
        if url.path() != path || url.query().unwrap_or_default() != query {
            return Err("the key cannot stand in a URL");
        }
        Ok(url)
    }

    /// How long a try of an operation may pass without a byte moved.
    pub(super) fn patience_for(&self, operation: Operation) -> Duration {
        if operation.is_slow() { self.patience * PATIENCE_FACTOR_SLOW } else { self.patience }
    }

    /// From when on a request that succeeds is slow: longer than it is tried, and than a thin line would need.
    pub(super) fn slow_from(&self, operation: Operation, body: u64) -> Duration {
        let base = if operation.is_slow() { SLOW * PATIENCE_FACTOR_SLOW } else { SLOW };
        base + Duration::from_secs(body / SLOW_BYTES_A_SECOND)
    }

    /// Whether the user has set a limit to how fast bytes move.
    pub(super) fn is_limited(&self) -> bool {
        self.upload.is_some() || self.download.is_some()
    }

    /// Sends a request once, with headers already signed; `patience` is how long it may pass without a byte moved.
    pub(super) async fn send(
        &self,
        request: &Request<'_>,
        subject: &str,
        url: Url,
        headers: HeaderMap,
        (expect, patience): (Expect, Duration),
    ) -> Result<Reply, Failure> {
        let operation = request.operation;
        let (upload, progress) = Upload::new(&request.body, self.counters.clone(), self.upload.as_ref());
        let mut sent = reqwest::Request::new(operation.method(), url);
        *sent.headers_mut() = headers;
        if operation.has_body() {
            sent.headers_mut().insert(http::header::CONTENT_LENGTH, request.body.len().into());
            *sent.body_mut() = Some(reqwest::Body::wrap(upload));
        }
        let response = watch(self.http.execute(sent), patience, &progress).await;
        let response = response.map_err(|lost| lost.into_failure(operation, subject, &progress))?;
        self.read(operation, subject, response, (expect, patience), &progress).await
    }

    async fn read(
        &self,
        operation: Operation,
        subject: &str,
        response: http::Response<reqwest::Body>,
        (expect, patience): (Expect, Duration),
        progress: &Progress,
    ) -> Result<Reply, Failure> {
        let (head, body) = response.into_parts();
        let (status, headers) = (head.status, head.headers);
        let local = |kind, message: String| {
            Error::local(operation, subject, kind, Outcome::Unknown, message).with_reply(status, &headers)
        };
        if !status.is_success() {
            let body = download::collect(body, XML_BYTES_MAX, patience, &self.counters).await;
            let error = Error::from_reply(operation, subject, status, &headers, &body.unwrap_or_default());
            return Err(Failure {
                error: Box::new(error),
                server_date: header(&headers, "date").and_then(time::parse_http_date),
                retry_after: asked_pause(&headers),
            });
        }
        let Some(sent_crc64) = progress.crc64() else {
            return Err(local(ErrorKind::Transport, "the service answered before it had the whole body".into()).into());
        };
        let mut reply = Reply { status, headers: HeaderMap::new(), xml: bytes::Bytes::new(), stream: None, sent_crc64 };
        match expect {
            Expect::Stream => reply.stream = Some(body),
            Expect::Xml | Expect::Nothing => {
                match download::collect(body, XML_BYTES_MAX, patience, &self.counters).await {
                    Ok(xml) => {
                        // Paid for afterwards, by whatever comes next.
                        if let Some(download) = &self.download {
                            download.take(xml.len() as u64, tokio::time::Instant::now());
                        }
                        reply.xml = xml;
                    }
                    // The head has said all there was to say.
                    Err(_) if expect == Expect::Nothing => {}
                    Err(download::Broken::TooLong) => {
                        return Err(local(ErrorKind::Protocol, "the reply is too long".into()).into());
                    }
                    Err(download::Broken::Transport(why)) => return Err(local(ErrorKind::Transport, why).into()),
                }
            }
        }
        reply.headers = headers;
        Ok(reply)
    }
}

/// Waits for the head of the reply as long as something moves.
async fn watch(
    reply: impl Future<Output = reqwest::Result<reqwest::Response>>,
    patience: Duration,
    progress: &Progress,
) -> Result<http::Response<reqwest::Body>, Lost> {
    let mut reply = std::pin::pin!(reply);
    loop {
        let deadline = progress.deadline(patience) + GRACE;
        match tokio::time::timeout_at(deadline, &mut reply).await {
            Ok(Ok(response)) => return Ok(response.into()),
            Ok(Err(error)) => return Err(Lost::Http(error)),
            Err(_) if progress.deadline(patience) + GRACE > deadline => {}
            Err(_) => return Err(Lost::Silence(patience)),
        }
    }
}

/// No reply.
enum Lost {
    Http(reqwest::Error),
    Silence(Duration),
}

impl Lost {
    fn into_failure(self, operation: Operation, subject: &str, progress: &Progress) -> Failure {
        if let Some(error) = progress.take_failure() {
            return Error::local(operation, subject, ErrorKind::LocalIo, Outcome::NotApplied, error).into();
        }
        let (unsent, message) = match self {
            Self::Http(error) => (error.is_connect(), describe(error)),
            Self::Silence(patience) => (false, format!("nothing moved for {patience:?}")),
        };
        let outcome = if unsent { Outcome::NotApplied } else { Outcome::Unknown };
        Error::local(operation, subject, ErrorKind::Transport, outcome, message).into()
    }
}

/// The certificates in a PEM text, which must hold some unless it is empty.
fn authorities(pem: &[u8]) -> Result<Vec<reqwest::Certificate>, String> {
    let found = reqwest::Certificate::from_pem_bundle(pem).map_err(describe)?;
    if found.is_empty() && !pem.is_empty() { Err("no certificate in the PEM text".into()) } else { Ok(found) }
}

fn connections(
    endpoint: &Endpoint,
    patience: Duration,
    authorities: Vec<reqwest::Certificate>,
) -> reqwest::Result<reqwest::Client> {
    // Fails where a provider is installed already, which serves as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("ossfuse/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .http1_max_headers(HEADERS_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .tcp_nodelay(true)
        .connect_timeout(patience.min(CONNECT_TIMEOUT_MAX))
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .pool_idle_timeout(IDLE_TIMEOUT);
    if endpoint.is_loopback() {
        builder = builder.no_proxy();
    }
    builder = if endpoint.is_loopback() && !endpoint.https {
        // Spares reading the system's roots, and works where there are none.
        builder.tls_certs_only([])
    } else {
        builder.tls_certs_merge(authorities)
    };
    builder.build()
}

/// The text of an error with its causes, without the URL: the key stands beside it.
pub(super) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut out = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        out.push_str(": ");
        out.push_str(&cause.to_string());
        source = cause.source();
    }
    out
}

/// A header's value as text; `None` where it is missing or no ASCII.
pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// The pause that a refusal asks for: `Retry-After` in seconds or as a date, `x-oss-qos-delay-time` in milliseconds
/// (OSS reference §2).
fn asked_pause(headers: &HeaderMap) -> Option<Duration> {
    let after = header(headers, "retry-after").and_then(|text| match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // Against the service's own clock, which may not be ours.
        Err(_) => {
            let date = header(headers, "date").and_then(time::parse_http_date).unwrap_or_else(time::now);
            time::parse_http_date(text)?.duration_since(date).ok()
        }
    });
    let delay = header(headers, "x-oss-qos-delay-time").and_then(|text| text.parse().ok()).map(Duration::from_millis);
    after.max(delay)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ObjectKey;

    fn transport(endpoint: &str, addressing: Addressing) -> Result<Transport, String> {
        Transport::new(
            &Endpoint::parse(endpoint).unwrap(),
            addressing,
            "b-1",
            Duration::from_secs(1),
            Limits::default(),
            &[],
        )
    }

    #[test]
    fn the_bucket_stands_where_the_addressing_says() {
        let key = ObjectKey::parse("a b//c").unwrap();
        let request = Request::of_object(Operation::GetSymlink, &key).unwrap().param("symlink", "");
        let endpoint = "http://localhost:90";
        for (addressing, object, bucket) in [
            (Addressing::VirtualHost, "http://b-1.localhost:90/a%20b//c?symlink", "http://b-1.localhost:90/"),
            (Addressing::Path, "http://localhost:90/b-1/a%20b//c?symlink", "http://localhost:90/b-1/"),
            (Addressing::Cname, "http://localhost:90/a%20b//c?symlink", "http://localhost:90/"),
        ] {
            let transport = transport(endpoint, addressing).unwrap();
            assert_eq!(transport.url(&request).unwrap().as_str(), object);
            let of_bucket = Request::of_bucket(Operation::GetBucketInfo);
            assert_eq!(transport.url(&of_bucket).unwrap().as_str(), bucket);
        }
    }

    #[test]
    fn a_bucket_cannot_stand_before_an_address() {
        assert!(transport("http://127.0.0.1:90", Addressing::VirtualHost).is_err());
        assert!(transport("http://[::1]:90", Addressing::Path).is_ok());
    }

    #[test]
    fn a_refusal_may_ask_for_a_pause() {
        let asked = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)));
            asked_pause(&headers.collect()).map(|pause| pause.as_millis())
        };
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&[("retry-after", "3")]), Some(3000));
        assert_eq!(asked(&[("retry-after", "soon")]), None);
        assert_eq!(asked(&[("x-oss-qos-delay-time", "250")]), Some(250));
        assert_eq!(asked(&[("retry-after", "1"), ("x-oss-qos-delay-time", "250")]), Some(1000));
        let dates = [("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")];
        assert_eq!(asked(&dates), Some(3000));
    }

    #[test]
    fn what_holds_no_certificate_is_no_authority() {
        assert!(authorities(b"").unwrap().is_empty());
        assert!(authorities(b"hello").is_err());
        assert!(authorities(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").is_err());
    }
}
