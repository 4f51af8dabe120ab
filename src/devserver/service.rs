//! One request from head to reply: outage, faults, signature, operation, the headers every reply bears, the log.
//!
//! Knows the order of things, not the operations. The reply is recorded before it goes out, so that who has seen
//! a reply finds it counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONNECTION, CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use parking_lot::RwLock;

use super::attributes::{self, text};
use super::auth::{self, Credentials, Signable};
use super::call::Call;
use super::failure::Failure;
use super::faults::{Action, Faults, Reset};
use super::reply::{BodyFaults, Payload, Reply, ReplyBody};
use super::request::{Operation, is_service_host};
use super::s3;
use super::stats::{Entry, Stats};
use super::store::{Store, base64_of};
use super::traffic::Traffic;
use super::{control, handlers};
use crate::base::time;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) region: String,
    /// Smallest part but the last, in bytes.
    pub(crate) min_part: u64,
    /// Whether requests in the dress of S3 are served, unsigned.
    pub(crate) s3: bool,
    pub(crate) credentials: RwLock<Credentials>,
    pub(crate) stats: Stats,
    pub(crate) faults: Faults,
    pub(crate) traffic: Traffic,
    /// Seconds by which the server's clock is ahead.
    pub(crate) clock_offset: AtomicI64,
    requests: AtomicU64,
}

/// The connection is to be reset instead of answered.
#[derive(Debug, thiserror::Error)]
#[error("the connection is reset")]
pub(crate) struct ResetConnection;

impl Shared {
    pub(crate) fn new(store: Store, credentials: Credentials, region: String, min_part: u64, s3: bool) -> Self {
        Self {
            store,
            region,
            min_part,
            s3,
            credentials: RwLock::new(credentials),
            stats: Stats::default(),
            faults: Faults::default(),
            traffic: Traffic::default(),
            clock_offset: AtomicI64::new(0),
            requests: AtomicU64::new(time::micros(time::now())),
        }
    }

    /// The server's clock.
    pub(crate) fn now(&self) -> SystemTime {
        let offset = self.clock_offset.load(Ordering::Relaxed);
        let shift = Duration::from_secs(offset.unsigned_abs());
        let now = time::now();
        if offset >= 0 { now + shift } else { now.checked_sub(shift).unwrap_or(now) }
    }

    /// 24 hex digits, unlike any other for years.
    fn request_id(&self) -> String {
        format!("{:024X}", self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// 32 hex digits, unlike any other.
    pub(crate) fn upload_id(&self) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        // Spread, so that ids do not sort by age.
        format!("{:016X}{number:016X}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// Serves a request.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, ResetConnection> {
    let host = host_of(&request);
    if is_service_host(&host) && request.uri().path().starts_with("/_dev/") {
        return Ok(control::serve(shared, request).await);
    }
    if shared.traffic.is_out() {
        return Err(ResetConnection);
    }
    let outage = shared.clone();
    tokio::select! {
        reply = serve_object_request(shared, request, host) => reply,
        () = outage.traffic.outage() => Err(ResetConnection),
    }
}

fn host_of(request: &Request<Incoming>) -> String {
    let header = text(request.headers(), HOST.as_str());
    header.or_else(|| request.uri().authority().map(ToString::to_string)).unwrap_or_default()
}

async fn serve_object_request(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    host: String,
) -> Result<Response<ReplyBody>, ResetConnection> {
    let begun = Instant::now();
    let (mut call, parsed) = Call::new(shared.clone(), request, host);
    let operation = call.operation;
    if let Some(latency) = shared.traffic.latency() {
        tokio::time::sleep(latency).await;
    }
    let action = shared.faults.pick(operation, call.target.key.as_deref(), call.part_number());
    let outcome = match parsed {
        Ok(()) => act(&mut call, action.as_ref()).await,
        Err(failure) => Ok(Err(failure)),
    };
    let request_id = shared.request_id();
    let Ok(outcome) = outcome else {
        shared.stats.record(operation, entry(&call, &request_id, true));
        return Err(ResetConnection);
    };
    let close = !call.finish_body().await;
    let mut entry = entry(&call, &request_id, action.is_some());
    let mut reply = outcome.unwrap_or_else(|failure| {
        entry.code = Some(failure.code.clone());
        refusal(&call, &failure, &request_id)
    });
    let action = action.unwrap_or_default();
    if action.corrupt_crc {
        corrupt_crc(&mut reply.headers);
    }
    sign_off(&mut reply, &call, &request_id, begun);
    if call.is_s3 {
        s3::dress(&mut reply);
    }
    if close {
        reply.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    entry.status = reply.status.as_u16();
    entry.bytes_out = reply.payload.len();
    shared.stats.record(operation, entry);
    let corrupt = action.corrupt_body && call.received == 0;
    let faults = BodyFaults { truncate_at: action.truncate_body, corrupt };
    Ok(respond(shared, Some(operation), reply, faults))
}

/// Does what is asked, and what a fault rule does to it.
async fn act(call: &mut Call, action: Option<&Action>) -> Result<Result<Reply, Failure>, ResetConnection> {
    let Some(action) = action else { return Ok(authorized(call).await) };
    if let Some(ms) = action.delay_ms {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    if let Some(gate) = &action.hold {
        call.shared.faults.gates.pass(gate).await;
    }
    if action.reset == Some(Reset::Before) {
        return Err(ResetConnection);
    }
    if let Some(garbage) = action.garbage {
        let (status, content_type, body) = garbage.reply();
        let mut reply = Reply::new(status).header("content-type", content_type).body(body);
        reply.status = action.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(status);
        return Ok(Ok(reply));
    }
    if let Some(status) = action.status {
        return Ok(Err(injected(status, action)));
    }
    call.corrupt_body = action.corrupt_body;
    let outcome = authorized(call).await;
    if let Some(gate) = &action.hold_after {
        call.shared.faults.gates.pass(gate).await;
    }
    if action.reset == Some(Reset::After) { Err(ResetConnection) } else { Ok(outcome) }
}

fn injected(status: u16, action: &Action) -> Failure {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let code = action.code.as_deref().unwrap_or("InjectedFault");
    let failure = Failure::new(status, code, "A fault rule says so.");
    action.headers.iter().fold(failure, |failure, (name, value)| failure.header(name, value))
}

async fn authorized(call: &mut Call) -> Result<Reply, Failure> {
    let credentials = call.shared.credentials.read().clone();
    let request = Signable {
        method: call.method.as_str(),
        target: &call.target,
        parameters: &call.parameters,
        headers: &call.headers,
    };
    if !call.is_s3 {
        auth::verify(request, &credentials, &call.shared.region, call.now)?;
    }
    handlers::handle(call).await
}

fn refusal(call: &Call, failure: &Failure, request_id: &str) -> Reply {
    let mut reply = Reply::new(failure.status);
    if failure.status != StatusCode::NOT_MODIFIED {
        let xml = failure.xml(request_id, &call.host);
        reply = match call.method {
            Method::HEAD => reply.header("x-oss-err", &base64_of(xml.as_bytes())),
            _ => reply.header("content-type", "application/xml").body(xml),
        };
    }
    if let Some(ec) = failure.ec {
        reply = reply.header("x-oss-ec", ec);
    }
    for (name, value) in &failure.headers {
        reply = reply.header(name, value);
    }
    reply
}

fn corrupt_crc(headers: &mut HeaderMap) {
    let crc = headers.get("x-oss-hash-crc64ecma").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(crc) = crc {
        attributes::add(headers, "x-oss-hash-crc64ecma", &(crc ^ 1).to_string());
    }
}

/// Adds the headers that every reply bears.
fn sign_off(reply: &mut Reply, call: &Call, request_id: &str, begun: Instant) {
    let headers = &mut reply.headers;
    headers.insert("server", HeaderValue::from_static("AliyunOSS"));
    attributes::add(headers, "date", &time::http_date(call.shared.now()));
    attributes::add(headers, "x-oss-request-id", request_id);
    attributes::add(headers, "x-oss-server-time", &begun.elapsed().as_millis().to_string());
}

pub(crate) fn respond(
    shared: Arc<Shared>,
    operation: Option<Operation>,
    reply: Reply,
    faults: BodyFaults,
) -> Response<ReplyBody> {
    let Reply { status, mut headers, payload } = reply;
    if let Payload::Length(len) = payload {
        headers.insert(CONTENT_LENGTH, len.into());
    }
    let mut response = Response::new(ReplyBody::new(shared, operation, payload, faults));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn entry(call: &Call, request_id: &str, fault: bool) -> Entry {
    Entry {
        at: time::rfc3339(call.now),
        operation: call.operation.name(),
        bucket: call.target.bucket.clone(),
        key: call.target.key.clone(),
        part_number: call.part_number(),
        upload_id: call.parameters.get("uploadId").map(Into::into),
        range: call.header("range").or_else(|| call.header("x-oss-copy-source-range")),
        bytes_in: call.received,
        fault,
        request_id: request_id.into(),
        ..Entry::default()
    }
}
