//! The client: signs and sends one operation, and repeats it as long as whoever asked has patience.
//!
//! The operations themselves stand in `ops`, a file a family; what is repeated after what pause is decided in `retry`,
//! whether the service is out in `breaker`. An outcome that was in doubt once stays in doubt.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use tokio::time::Instant;

use super::breaker::{Breaker, Strained};
use super::endpoint::{Addressing, Endpoint};
use super::error::{Error, ErrorKind, Failure, Outcome};
use super::limiter::{Bucket, Window};
use super::request::Request;
use super::retry::{self, Next, Tries};
use super::sign::{BadSigner, Signable, Signer};
use super::transport::{Expect, Reply, Transport, header};
use super::types::{CredentialSource, Credentials, Limits, Operation, SignatureVersion, Stats};
use crate::base::caller::{self, Cut, Patience, interruptible};
use crate::base::{ObjectKey, time};

/// What a last try gets, however little time is left.
const LAST_TRY_MIN: Duration = Duration::from_millis(500);
/// Repetitions a second, over all requests, and for how many seconds they can be saved up: a sick service is not to
/// be hammered.
const RETRIES_A_SECOND: f64 = 20.0;
const RETRIES_SAVED: Duration = Duration::from_secs(5);
/// The pause before the service is asked whether it is back, doubled up to the second.
const PROBE_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));

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
    /// How long a request is tried from its first failure on, for whoever is in no hurry. The fast tries come in any
    /// case.
    pub outage_timeout: Duration,
    pub limits: Limits,
}

#[derive(Debug)]
struct Inner {
    bucket: String,
    region: Option<String>,
    signature: SignatureVersion,
    signer: RwLock<Arc<Signer>>,
    source: RwLock<Option<Arc<dyn CredentialSource>>>,
    /// Credentials are read again one at a time.
    renewing: tokio::sync::Mutex<()>,
    outage_timeout: Duration,
    requests: Option<Window>,
    retries: Bucket,
    breaker: Breaker,
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
        let ClientOptions { endpoint, bucket, region, addressing, signature, credentials, .. } = options;
        let (try_timeout, outage_timeout, limits) = (options.try_timeout, options.outage_timeout, options.limits);
        let unusable = |message: String| Error::unsendable(Operation::GetBucketInfo, &bucket, message);
        if !is_bucket_name(&bucket) {
            return Err(unusable("this cannot be the name of a bucket".into()));
        }
        let signer = Signer::new(credentials, signature, region.as_deref())
            .map_err(|error: BadSigner| unusable(error.to_string()))?;
        let transport =
            Transport::new(&endpoint, addressing, &bucket, try_timeout, limits, ca_pem).map_err(unusable)?;
        Ok(Self(Arc::new(Inner {
            bucket,
            region,
            signature,
            signer: RwLock::new(Arc::new(signer)),
            source: RwLock::new(None),
            renewing: tokio::sync::Mutex::new(()),
            outage_timeout,
            requests: limits.requests.map(Window::new),
            retries: Bucket::new(RETRIES_A_SECOND, RETRIES_SAVED),
            breaker: Breaker::default(),
            skew_ms: AtomicI64::new(0),
            transport,
        })))
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
        let (breaker, degraded_since) = (self.0.breaker.state(), self.0.breaker.degraded_since());
        Stats { breaker, degraded_since, ..self.0.transport.counters.snapshot() }
    }

    /// Signs with other credentials from the next try on.
    pub fn set_credentials(&self, credentials: Credentials) -> Result<(), Error> {
        let signer = Signer::new(credentials, self.0.signature, self.0.region.as_deref())
            .map_err(|error| Error::unsendable(Operation::GetBucketInfo, self.bucket(), error))?;
        *self.0.signer.write() = Arc::new(signer);
        Ok(())
    }

    /// Where to look again when the service refuses the credentials; without one they are refused for good.
    pub fn set_credential_source(&self, source: Arc<dyn CredentialSource>) {
        *self.0.source.write() = Some(source);
    }

    /// Whether the service has not answered for a while: whoever cannot wait need not ask.
    pub fn is_out(&self) -> bool {
        self.0.breaker.is_open()
    }

    /// Whether the last request got no answer.
    pub fn is_failing(&self) -> bool {
        self.0.breaker.is_failing()
    }

    /// Whether that was just now: what is known had better be used, if it is good enough.
    pub fn failed_lately(&self) -> bool {
        self.0.breaker.failed_lately()
    }

    /// Waits while the service is out.
    pub async fn reachable(&self) {
        self.0.breaker.closed().await;
    }

    /// Waits for the end of the outage that there is, or of the next one.
    pub async fn recovered(&self) {
        self.0.breaker.recovered().await;
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.0.transport
    }

    /// Takes what a body of `bytes` will cost from the limit of downloads, as far as that is a fair share; how much
    /// that was.
    pub(super) async fn prepay(&self, request: (Operation, &str), bytes: u64) -> Result<u64, Error> {
        let Some(bucket) = &self.transport().download else { return Ok(0) };
        let share = bytes.min(4 * bucket.piece() as u64);
        let at = bucket.take(share, Instant::now());
        interruptible(tokio::time::sleep_until(at)).await.map_err(|cut| Error::cut(request.0, request.1, cut))?;
        Ok(share)
    }

    /// Sends a request until it succeeds, or must not or need not be repeated. `read` makes the answer of a reply.
    pub(super) async fn ask<T, E: ToString>(
        &self,
        request: &Request<'_>,
        expect: Expect,
        read: impl Fn(&mut Reply) -> Result<T, E> + Send,
    ) -> Result<T, Error> {
        // On the heap: whatever asks would be as large as this otherwise, and so would what asks that.
        Box::pin(self.try_until_done(request, expect, read)).await
    }

    async fn try_until_done<T, E: ToString>(
        &self,
        request: &Request<'_>,
        expect: Expect,
        read: impl Fn(&mut Reply) -> Result<T, E> + Send,
    ) -> Result<T, Error> {
        let inner = &*self.0;
        let about = (request.operation, request.subject(&inner.bucket));
        let url = inner.transport.url(request).map_err(|why| Error::unsendable(about.0, about.1, why))?;
        let mut run = Run::new(about, &inner.breaker, inner.outage_timeout);
        loop {
            self.admit(&mut run).await?;
            let signer = inner.signer.read().clone();
            let headers = inner.signed_headers(request, &signer);
            let usual = inner.transport.patience_for(about.0);
            let patience = run.patience_of_try(usual);
            let sent = inner.transport.send(request, about.1, url.clone(), headers, (expect, patience));
            let result = match interruptible(sent).await {
                Ok(result) => result.and_then(|reply| check_crc64(about, reply)),
                Err(cut) => Err(Error::cut(about.0, about.1, cut).into()),
            };
            let result = result.and_then(|mut reply| match read(&mut reply) {
                Ok(answer) => Ok(answer),
                Err(why) => {
                    let error = Error::local(about.0, about.1, ErrorKind::Protocol, Outcome::Unknown, why);
                    Err(error.with_reply(reply.status, &reply.headers).into())
                }
            });
            inner.transport.counters.tried(about.0, result.as_ref().err().map(|failure| &*failure.error));
            let failure = match result {
                Ok(answer) => {
                    log::trace!("{} {}: done", about.0, about.1);
                    inner.breaker.answered();
                    caller::answered();
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            self.note(&failure.error, patience < usual);
            run.failed(&failure.error);
            self.prepare_next(failure, &mut run, &signer).await?;
        }
    }

    /// Waits until the next try may go: not into an outage, and not over the limit of requests.
    async fn admit(&self, run: &mut Run<'_>) -> Result<(), Error> {
        let inner = &*self.0;
        if inner.breaker.is_open() {
            if caller::patience() != Patience::Outage {
                return Err(inner.give_up(run.last_error()));
            }
            let until = run.wait_for_service();
            match interruptible(tokio::time::timeout_at(until, inner.breaker.closed())).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(inner.give_up(run.last_error())),
                Err(cut) => return Err(run.cut(cut)),
            }
        }
        if let Some(requests) = &inner.requests {
            let at = requests.take(Instant::now());
            let waited = interruptible(tokio::time::sleep_until(at)).await;
            waited.map_err(|cut| run.cut(cut))?;
        }
        Ok(())
    }

    /// What a failure says of the service. Silence says little to somebody in a hurry.
    fn note(&self, error: &Error, hurried: bool) {
        let inner = &*self.0;
        let silent = error.status == 0 && error.kind == ErrorKind::Transport;
        if silent || error.kind == ErrorKind::Server {
            if inner.breaker.failed(Instant::now(), silent && hurried) {
                log::warn!("the service does not answer ({error}); it is asked again from time to time");
                tokio::spawn(probe(Arc::downgrade(&self.0)));
            }
        } else if error.status != 0 && error.kind != ErrorKind::Throttled {
            inner.breaker.answered();
            caller::answered();
        }
    }

    /// Waits until a failed request may be tried again, or says that it may not.
    async fn prepare_next(&self, failure: Failure, run: &mut Run<'_>, used: &Arc<Signer>) -> Result<(), Error> {
        let inner = &*self.0;
        match retry::decide(&failure, run.tries, random()) {
            Next::GiveUp => Err(inner.give_up(run.settle(*failure.error))),
            Next::MendClock => {
                run.tries.clock_mended = true;
                inner.mend_clock(failure.server_date);
                Ok(())
            }
            Next::RenewCredentials => {
                run.tries.credentials_renewed = true;
                // Another's source may hang: that is no reason for whoever waits here to hang with it.
                match caller::wait(inner.renew(used)).await {
                    Ok(true) => Ok(()),
                    Err(cut @ Cut::Interrupted) => Err(run.cut(cut)),
                    Ok(false) | Err(Cut::TimedOut) => Err(inner.give_up(run.settle(*failure.error))),
                }
            }
            Next::After(pause) => {
                let now = Instant::now();
                let pause = pause.max(inner.retries.take(1, now) - now);
                let Some(pause) = run.pause(pause, now) else {
                    return Err(inner.give_up(run.settle(*failure.error)));
                };
                if run.tries.are_slow() {
                    inner.transport.counters.failed(&failure.error);
                }
                log::debug!("{}; again in {pause:?}", failure.error);
                run.tries.retries += 1;
                inner.transport.counters.retried();
                let pause = async {
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = inner.breaker.recovered() => {}
                    }
                };
                interruptible(pause).await.map_err(|cut| run.cut(cut))
            }
        }
    }
}

/// One request on its way through its tries.
struct Run<'c> {
    about: (Operation, &'c str),
    breaker: &'c Breaker,
    outage_timeout: Duration,
    tries: Tries,
    /// It may have been done already: the refusal of a repetition may be the fruit of the try before.
    in_doubt: bool,
    /// When it first failed, or found that the service is out.
    failing_since: Option<Instant>,
    last: Option<Error>,
    strained: Option<Strained<'c>>,
}

impl<'c> Run<'c> {
    fn new(about: (Operation, &'c str), breaker: &'c Breaker, outage_timeout: Duration) -> Self {
        let (tries, in_doubt, failing_since, last, strained) = Default::default();
        Self { about, breaker, outage_timeout, tries, in_doubt, failing_since, last, strained }
    }

    fn failed(&mut self, error: &Error) {
        self.in_doubt |= error.outcome == Outcome::Unknown;
        self.failing_since.get_or_insert_with(Instant::now);
        self.last = Some(error.clone());
    }

    /// Notes that it waits for a service that is out; until when.
    fn wait_for_service(&mut self) -> Instant {
        self.strained.get_or_insert_with(|| self.breaker.strained());
        *self.failing_since.get_or_insert_with(Instant::now) + self.outage_timeout
    }

    /// When nobody waits for it any more; `None` before it has failed, and where nobody is in a hurry.
    fn until(&self) -> Option<Instant> {
        match caller::patience() {
            Patience::Strict(_) => caller::deadline(),
            Patience::Brief(time) => self.failing_since.map(|since| since + time),
            Patience::Outage => self.failing_since.map(|since| since + self.outage_timeout),
        }
    }

    /// How long the next try may pass without a byte moved.
    fn patience_of_try(&self, usual: Duration) -> Duration {
        let left = self.until().map(|until| until.saturating_duration_since(Instant::now()));
        left.map_or(usual, |left| usual.min(left.max(LAST_TRY_MIN)))
    }

    /// The pause before the next try; `None` where there is no time left for one.
    fn pause(&mut self, wanted: Duration, now: Instant) -> Option<Duration> {
        let left = self.until().map_or(Duration::MAX, |until| until.saturating_duration_since(now));
        let fast = !self.tries.are_slow();
        if !fast {
            self.strained.get_or_insert_with(|| self.breaker.strained());
        }
        match caller::patience() {
            Patience::Outage if fast => Some(wanted),
            Patience::Outage if left.is_zero() => None,
            Patience::Outage => Some(wanted.min(left)),
            _ => (wanted < left).then_some(wanted),
        }
    }

    fn settle(&self, mut error: Error) -> Error {
        if self.in_doubt {
            error.outcome = Outcome::Unknown;
        }
        error
    }

    fn cut(&self, cut: Cut) -> Error {
        self.settle(Error::local(self.about.0, self.about.1, ErrorKind::Interrupted, Outcome::NotApplied, cut))
    }

    /// What it failed with, or what it would fail with.
    fn last_error(&mut self) -> Error {
        let (operation, subject) = self.about;
        let untried = || {
            let why = "the service has not answered for a while";
            Error::local(operation, subject, ErrorKind::Transport, Outcome::NotApplied, why)
        };
        let last = self.last.take().unwrap_or_else(untried);
        self.settle(last)
    }
}

/// Asks from time to time whether the service is back, until it is.
async fn probe(client: Weak<Inner>) {
    let mut pause = PROBE_PAUSE.0;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PROBE_PAUSE.1);
        let Some(client) = client.upgrade().map(Client) else { return };
        if !client.0.breaker.probing(true) {
            return;
        }
        client.probe_once().await;
        if !client.0.breaker.probing(false) {
            return;
        }
    }
}

impl Client {
    /// Any answer will do.
    async fn probe_once(&self) {
        let inner = &*self.0;
        let request = Request::of_bucket(Operation::GetBucketInfo).param("bucketInfo", "");
        let Ok(url) = inner.transport.url(&request) else { return };
        if let Some(requests) = &inner.requests {
            tokio::time::sleep_until(requests.take(Instant::now())).await;
        }
        let signer = inner.signer.read().clone();
        let headers = inner.signed_headers(&request, &signer);
        let asked = (Expect::Nothing, inner.transport.patience);
        let sent = inner.transport.send(&request, &inner.bucket, url, headers, asked).await;
        let error = sent.err().map(|failure| *failure.error);
        inner.transport.counters.tried(request.operation, error.as_ref());
        match error {
            None => inner.breaker.answered(),
            Some(error) => self.note(&error, false),
        }
    }
}

impl Inner {
    fn signed_headers(&self, request: &Request<'_>, signer: &Signer) -> http::HeaderMap {
        let mut headers = request.headers.clone();
        let signable = Signable {
            method: request.operation.method_name(),
            bucket: Some(&self.bucket),
            key: request.key.map(crate::base::ObjectKey::as_str),
            query: &request.query,
        };
        signer.sign(&signable, &mut headers, self.service_time());
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

    /// Reads the credentials again, unless somebody else did since `used` was taken; whether there are others now.
    async fn renew(&self, used: &Arc<Signer>) -> bool {
        let _one = self.renewing.lock().await;
        if !Arc::ptr_eq(&self.signer.read(), used) {
            return true;
        }
        let Some(source) = self.source.read().clone() else { return false };
        let Some(credentials) = source.reread().await.filter(|found| found != used.credentials()) else { return false };
        match Signer::new(credentials, self.signature, self.region.as_deref()) {
            Ok(signer) => {
                log::info!("the service refused the access key; it was read again");
                *self.signer.write() = Arc::new(signer);
                true
            }
            Err(error) => {
                log::warn!("the access key was read again, but cannot be used: {error}");
                false
            }
        }
    }

    fn give_up(&self, error: Error) -> Error {
        self.transport.counters.failed(&error);
        error
    }
}

/// Compares the service's sum with that of the bytes sent, where the reply is about these bytes alone.
fn check_crc64((operation, subject): (Operation, &str), reply: Reply) -> Result<Reply, Failure> {
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
            is_send(&client.ask(request, Expect::Xml, |_| Ok::<_, String>(())));
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
