//! The client: signs and sends one operation, and repeats it where it may be repeated.
//!
//! The operations themselves stand in `ops`, a file a family. An outcome that was in doubt once stays in doubt: the
//! refusal of a repetition may be the fruit of the try before.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::RwLock;

use super::endpoint::{Addressing, Endpoint};
use super::error::{Error, ErrorKind, Failure, Outcome, REQUEST_ID};
use super::request::Request;
use super::retry::{self, Next, Tries};
use super::sign::{BadSigner, Signable, Signer};
use super::transport::{Expect, Reply, Transport, header};
use super::types::{Credentials, Operation, SignatureVersion, Stats};
use crate::base::{ObjectKey, time};

/// Everything a client needs to know; resolved and validated by the caller.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    pub endpoint: Endpoint,
    pub bucket: String,
    /// General form (`cn-hangzhou`); `None` only with V1.
    pub region: Option<String>,
    pub addressing: Addressing,
    pub signature: SignatureVersion,
    /// An empty access key id asks anonymously.
    pub credentials: Credentials,
    /// How long a try may pass without a byte moved in either direction; three times as long while the service copies
    /// or completes.
    pub try_timeout: Duration,
}

#[derive(Debug)]
struct Inner {
    bucket: String,
    region: Option<String>,
    signature: SignatureVersion,
    signer: RwLock<Arc<Signer>>,
    /// What the service's clock is ahead of ours, in milliseconds.
    skew_ms: AtomicI64,
    transport: Transport,
}

/// A client of one bucket; clones share connections and counters.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

impl Client {
    /// Opens no connection yet. Fails where the options contradict each other, or TLS cannot be set up.
    pub fn new(options: ClientOptions) -> Result<Self, Error> {
        Self::trusting(options, &[])
    }

    /// The same, with certificate authorities (PEM) that are trusted beside the system's.
    pub fn trusting(options: ClientOptions, ca_pem: &[u8]) -> Result<Self, Error> {
        let ClientOptions { endpoint, bucket, region, addressing, signature, credentials, try_timeout } = options;
        let unusable = |message: String| Error::unsendable(Operation::GetBucketInfo, &bucket, message);
        if !is_bucket_name(&bucket) {
            return Err(unusable("this cannot be the name of a bucket".into()));
        }
        let signer = Signer::new(credentials, signature, region.as_deref())
            .map_err(|error: BadSigner| unusable(error.to_string()))?;
        let transport = Transport::new(&endpoint, addressing, &bucket, try_timeout, ca_pem).map_err(unusable)?;
        let signer = RwLock::new(Arc::new(signer));
        Ok(Self(Arc::new(Inner { bucket, region, signature, signer, skew_ms: AtomicI64::new(0), transport })))
    }

    /// The name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.0.bucket
    }

    /// Where an object is found: its URL without a signature. `None` for keys that cannot be sent.
    pub fn object_url(&self, key: &ObjectKey) -> Option<String> {
        let request = Request::of_object(Operation::GetObject, key).ok()?;
        self.0.transport.url(&request).ok().map(|url| url.to_string())
    }

    /// The counters as they are now, those of all clones together.
    pub fn stats(&self) -> Stats {
        self.0.transport.counters.snapshot()
    }

    /// Signs with other credentials from the next try on.
    pub fn set_credentials(&self, credentials: Credentials) -> Result<(), Error> {
        let signer = Signer::new(credentials, self.0.signature, self.0.region.as_deref())
            .map_err(|error| Error::unsendable(Operation::GetBucketInfo, self.bucket(), error))?;
        *self.0.signer.write() = Arc::new(signer);
        Ok(())
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.0.transport
    }

    /// An error in a reply that looked like a success.
    pub(super) fn protocol_error(&self, request: (Operation, &str), reply: &Reply, message: impl ToString) -> Error {
        let (operation, subject) = request;
        let error = Error::local(operation, subject, ErrorKind::Protocol, Outcome::Unknown, message)
            .with_reply(reply.status, &reply.headers);
        self.0.transport.counters.broke_off(&error);
        error
    }

    /// Sends a request until it succeeds, or must not or need not be repeated.
    pub(super) async fn execute(&self, request: &Request<'_>, expect: Expect) -> Result<Reply, Error> {
        let inner = &*self.0;
        let operation = request.operation;
        let subject = request.subject(&inner.bucket);
        let url = inner.transport.url(request).map_err(|why| Error::unsendable(operation, subject, why))?;
        let mut tries = Tries::default();
        let mut in_doubt = false;
        loop {
            let headers = inner.signed_headers(request);
            let started = Instant::now();
            let result = inner.transport.send(request, subject, url.clone(), headers, expect).await;
            let result = result.and_then(|reply| check_crc64(operation, subject, reply));
            inner.transport.counters.tried(operation, result.as_ref().err().map(|failure| &*failure.error));
            let failure = match result {
                Ok(reply) => {
                    let id = header(&reply.headers, REQUEST_ID).unwrap_or("unknown");
                    log::debug!("{operation} {subject}: {} in {:?} (request {id})", reply.status, started.elapsed());
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            in_doubt |= failure.error.outcome == Outcome::Unknown;
            match retry::decide(operation, &failure, tries, random()) {
                Next::GiveUp => return Err(inner.give_up(failure, in_doubt)),
                Next::MendClock => {
                    tries.clock_mended = true;
                    inner.mend_clock(failure.server_date);
                }
                Next::After(pause) => {
                    log::debug!("{}; again in {pause:?}", failure.error);
                    tries.retries += 1;
                    inner.transport.counters.retried();
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

impl Inner {
    fn signed_headers(&self, request: &Request<'_>) -> http::HeaderMap {
        let mut headers = request.headers.clone();
        let signable = Signable {
            method: request.operation.method_name(),
            bucket: Some(&self.bucket),
            key: request.key.map(crate::base::ObjectKey::as_str),
            query: &request.query,
        };
        self.signer.read().clone().sign(&signable, &mut headers, self.service_time());
        headers
    }

    fn service_time(&self) -> SystemTime {
        let skew_ms = self.skew_ms.load(Relaxed);
        let skew = Duration::from_millis(skew_ms.unsigned_abs());
        let now = time::now();
        if skew_ms < 0 { now.checked_sub(skew) } else { now.checked_add(skew) }.unwrap_or(now)
    }

    fn mend_clock(&self, server_date: Option<SystemTime>) {
        let Some(server) = server_date else { return };
        let millis = |at| i64::try_from(time::since_epoch(at).as_millis()).unwrap_or(i64::MAX);
        let skew_ms = millis(server).saturating_sub(millis(time::now()));
        self.skew_ms.store(skew_ms, Relaxed);
        log::warn!(
            "the clock differs from the service's by {} s; requests are signed with the service's time",
            skew_ms / 1000
        );
    }

    fn give_up(&self, failure: Failure, in_doubt: bool) -> Error {
        let mut error = *failure.error;
        if in_doubt {
            error.outcome = Outcome::Unknown;
        }
        self.transport.counters.failed(&error);
        error
    }
}

/// Compares the service's sum with that of the bytes sent, where the reply is about these bytes alone.
fn check_crc64(operation: Operation, subject: &str, reply: Reply) -> Result<Reply, Failure> {
    if !matches!(operation, Operation::PutObject | Operation::UploadPart) {
        return Ok(reply);
    }
    let stored = header(&reply.headers, "x-oss-hash-crc64ecma").and_then(|text| text.parse::<u64>().ok());
    match stored {
        Some(stored) if stored != reply.sent_crc64 => {
            let message = format!("sent bytes of CRC64 {}, but {stored} was stored", reply.sent_crc64);
            let error = Error::local(operation, subject, ErrorKind::Corrupt, Outcome::Unknown, message);
            Err(error.with_reply(reply.status, &reply.headers).into())
        }
        _ => Ok(reply),
    }
}

/// Loose on purpose: the service has its own say. What matters is that the name cannot change the URL around it.
fn is_bucket_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=63).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.') && !name.ends_with('.')
}

/// A number nobody needs to guess: the hasher's keys differ each time.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn futures_and_replies_can_change_threads() {
        fn is_send<T: Send>(_: &T) {}
        fn is_shared<T: Send + Sync + 'static>() {}
        is_shared::<Client>();
        is_shared::<Error>();
        let _never_called = |client: &Client, request: &Request<'_>, key: &crate::base::ObjectKey| {
            is_send(&client.execute(request, Expect::Xml));
            is_send(&client.get_object(key, &crate::oss::GetOptions::default()));
            is_send(&client.delete_objects(&[]));
        };
        fn is_sent<T: Send>() {}
        is_sent::<crate::oss::GetReply>();
    }

    #[test]
    fn bucket_names_cannot_change_the_url() {
        for name in ["bucket", "a-b-1", "a.b"] {
            assert!(is_bucket_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a@b", "a:1", "a b", "a?b", "a%2f"] {
            assert!(!is_bucket_name(name), "{name}");
        }
    }
}
