//! The control endpoints under `/_dev/`: counters, the log, faults, and the bucket as another client sees it.
//!
//! They need no signature, are never counted, throttled or struck by faults, and answer only on the server's own
//! address, so that no bucket loses a key to them. The list is in `docs/DEVSERVER.md`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::attributes;
use super::auth::Credentials;
use super::failure::Failure;
use super::handlers::object_headers;
use super::receive::Intake;
use super::reply::{BodyFaults, Reply, ReplyBody};
use super::request::{Parameters, check_key};
use super::service::{Shared, respond};
use super::store::{Expect, ListQuery, Object};
use crate::base::ByteRange;
use crate::base::limits::{MIB, PART_BYTES_MAX};
use crate::base::time;

/// Largest JSON body.
const JSON_BYTES_MAX: u64 = MIB;

/// Serves a control request.
pub(crate) async fn serve(shared: Arc<Shared>, request: Request<Incoming>) -> Response<ReplyBody> {
    let mut control = Control { shared: shared.clone(), request };
    let reply = control.dispatch().await.unwrap_or_else(|failure| {
        Reply::new(failure.status)
            .header("content-type", "application/json")
            .body(json!({"code": failure.code, "message": failure.message}).to_string())
    });
    respond(shared, None, reply, BodyFaults::default())
}

struct Control {
    shared: Arc<Shared>,
    request: Request<Incoming>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outage {
    on: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bandwidth {
    bytes_per_second: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Latency {
    ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    offset_seconds: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCredentials {
    access_key_id: String,
    access_key_secret: String,
    #[serde(default)]
    security_token: Option<String>,
}

impl Control {
    async fn dispatch(&mut self) -> Result<Reply, Failure> {
        let path = self.request.uri().path().trim_start_matches("/_dev/").to_owned();
        let parts: Vec<&str> = path.splitn(3, '/').collect();
        match (self.request.method().as_str(), parts.as_slice()) {
            ("GET", ["stats"]) => reply_json(&self.shared.stats.report()),
            ("GET", ["log"]) => self.log(),
            ("GET", ["faults"]) => reply_json(&self.shared.faults.tallies()),
            ("GET", ["gates"]) => reply_json(&self.shared.faults.gates.states()),
            ("GET", ["objects", bucket]) => self.objects(bucket),
            ("GET", ["uploads", bucket]) => self.uploads(bucket),
            (_, ["object", bucket, key]) => self.object(bucket, &decode(key)?).await,
            ("POST" | "DELETE", parts) => {
                self.change(parts).await?;
                Ok(done())
            }
            _ => Err(no_endpoint()),
        }
    }

    /// What is set rather than asked.
    async fn change(&mut self, parts: &[&str]) -> Result<(), Failure> {
        let shared = self.shared.clone();
        match (self.request.method().as_str(), parts) {
            ("POST", ["stats", "reset"]) => shared.stats.reset(),
            ("POST", ["faults"]) => shared.faults.replace(self.json().await?).map_err(bad_request)?,
            ("DELETE", ["faults"]) => {
                shared.faults.replace(Vec::new()).map_err(bad_request)?;
                shared.faults.gates.open_all();
            }
            ("POST", ["gates", name, verb @ ("open" | "close")]) => {
                shared.faults.gates.set(&decode(name)?, *verb == "open");
            }
            ("POST", ["outage"]) => shared.traffic.set_outage(self.json::<Outage>().await?.on),
            ("POST", ["bandwidth"]) => shared.traffic.set_bandwidth(self.json::<Bandwidth>().await?.bytes_per_second),
            ("POST", ["latency"]) => shared.traffic.set_latency_ms(self.json::<Latency>().await?.ms),
            ("POST", ["clock"]) => {
                let offset = self.json::<Clock>().await?.offset_seconds;
                shared.clock_offset.store(offset, Ordering::Relaxed);
            }
            ("POST", ["credentials"]) => {
                let NewCredentials { access_key_id, access_key_secret, security_token } = self.json().await?;
                *shared.credentials.write() = Credentials { access_key_id, access_key_secret, security_token };
            }
            _ => return Err(no_endpoint()),
        }
        Ok(())
    }

    fn parameters(&self) -> Result<Parameters, Failure> {
        Parameters::parse(self.request.uri().query().unwrap_or_default())
    }

    async fn body(&mut self, limit: u64) -> Result<Vec<u8>, Failure> {
        let shared = self.shared.clone();
        let body = self.request.body_mut();
        Intake { shared, operation: None, body, corrupt: false, received: 0, limit }.collect().await
    }

    async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let body = self.body(JSON_BYTES_MAX).await?;
        serde_json::from_slice(&body).map_err(|error| bad_request(error.to_string()))
    }

    fn log(&self) -> Result<Reply, Failure> {
        let since = self.parameters()?.number("since", 0..=u64::MAX, 0)?;
        let mut lines = String::new();
        for entry in self.shared.stats.log_since(since) {
            lines.push_str(&serde_json::to_string(&entry).map_err(std::io::Error::from)?);
            lines.push('\n');
        }
        Ok(Reply::ok().header("content-type", "application/x-ndjson").body(lines))
    }

    fn objects(&self, bucket: &str) -> Result<Reply, Failure> {
        let prefix = self.parameters()?.get("prefix").unwrap_or_default().to_owned();
        let query = ListQuery { prefix, limit: usize::MAX, ..ListQuery::default() };
        let page = self.shared.store.list(bucket, &query).map_err(|error| Failure::of_store(error, bucket, ""))?;
        let objects: Vec<_> = page
            .entries
            .into_iter()
            .map(|(key, object)| {
                let head = &object.head;
                json!({
                    "key": key,
                    "size": head.size,
                    "etag": head.etag,
                    // A string: JSON readers lose the low bits of such numbers.
                    "crc64": head.crc64.map(|crc| crc.to_string()),
                    "type": head.kind.name(),
                    "storage_class": head.attributes.storage_class,
                    "last_modified": time::rfc3339(head.modified_at()),
                    "headers": head.attributes.headers,
                    "meta": head.attributes.meta,
                    "symlink_target": head.symlink_target,
                })
            })
            .collect();
        reply_json(&objects)
    }

    fn uploads(&self, bucket: &str) -> Result<Reply, Failure> {
        let uploads = self.shared.store.uploads(bucket).map_err(|error| Failure::of_store(error, bucket, ""))?;
        let uploads: Vec<_> = uploads
            .into_iter()
            .map(|((key, id), upload)| {
                let parts: Vec<_> = upload
                    .parts
                    .values()
                    .map(|part| {
                        let crc64 = part.head.crc64.to_string();
                        json!({"part_number": part.head.number, "size": part.head.size, "etag": part.head.etag, "crc64": crc64})
                    })
                    .collect();
                json!({
                    "key": key,
                    "upload_id": id,
                    "initiated": time::rfc3339(super::store::at_seconds(upload.head.initiated)),
                    "meta": upload.head.attributes.meta,
                    "parts": parts,
                })
            })
            .collect();
        reply_json(&uploads)
    }

    /// Another client, without signatures and faults.
    async fn object(&mut self, bucket: &str, key: &str) -> Result<Reply, Failure> {
        let shared = self.shared.clone();
        let failed = |error| Failure::of_store(error, bucket, "");
        check_key(key)?;
        match *self.request.method() {
            Method::GET => {
                let object = shared.store.object(bucket, key).map_err(failed)?;
                let object = object.ok_or_else(|| Failure::no_such_key(key))?;
                let mut reply = Reply::ok();
                object_headers(&mut reply.headers, &object.head, &object.head);
                let whole = ByteRange::new(0, object.segments.iter().map(|segment| segment.len).sum());
                Ok(reply.segments(&object.segments, whole)?)
            }
            Method::PUT => {
                let attributes = attributes::from_request(self.request.headers())?;
                let body = self.request.body_mut();
                let limit = PART_BYTES_MAX;
                let store = shared.clone();
                let mut intake = Intake { shared: store, operation: None, body, corrupt: false, received: 0, limit };
                let object = Object::normal(intake.store().await?, attributes, shared.now());
                shared.store.put(bucket, key, &object, Expect::Anything).map_err(failed)?;
                Ok(done())
            }
            Method::DELETE => {
                shared.store.delete(bucket, &[key.to_owned()]).map_err(failed)?;
                Ok(done())
            }
            _ => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "Use GET, PUT or DELETE.")),
        }
    }
}

fn decode(text: &str) -> Result<String, Failure> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| bad_request("not UTF-8".into()))?;
    Ok(decoded.into_owned())
}

fn bad_request(message: String) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, "BadRequest", message)
}

fn no_endpoint() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "NotFound", "There is no such control endpoint.")
}

fn done() -> Reply {
    Reply::ok().header("content-type", "application/json").body("{}")
}

fn reply_json(value: &impl serde::Serialize) -> Result<Reply, Failure> {
    let text = serde_json::to_string(value).map_err(std::io::Error::from)?;
    Ok(Reply::ok().header("content-type", "application/json").body(text))
}
