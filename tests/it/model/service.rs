//! The service of a case: the dev server in this process, and what other clients see and do there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ossfuse::base::{ETag, ObjectKey};
use ossfuse::devserver::{Options, Server};
use ossfuse::oss::{Addressing, Client, ClientOptions, Credentials, Endpoint, Limits, SignatureVersion};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

pub(super) const BUCKET: &str = "model-bucket";
const DEADLINE: Duration = Duration::from_secs(30);

/// A running server; it ends with its runtime.
pub(super) struct Service {
    addr: SocketAddr,
    runtime: Runtime,
    _data: tempfile::TempDir,
}

/// An object as another client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) etag: ETag,
    pub(super) size: u64,
    pub(super) crc64: Option<u64>,
    pub(super) meta: BTreeMap<String, String>,
}

impl Service {
    pub(super) fn start() -> Arc<Self> {
        let data = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut options = Options::new(data.path());
        options.buckets = vec![BUCKET.into()];
        let server = runtime.block_on(Server::bind(options)).unwrap();
        let addr = server.addr();
        runtime.spawn(async move { server.run(std::future::pending()).await.unwrap() });
        Arc::new(Self { addr, runtime, _data: data })
    }

    pub(super) fn client(&self) -> Client {
        let text = |text: &str| text.to_owned();
        Client::new(ClientOptions {
            endpoint: Endpoint { https: false, host: text("127.0.0.1"), port: Some(self.addr.port()) },
            bucket: text(BUCKET),
            region: Some(text("cn-hangzhou")),
            addressing: Addressing::Path,
            signature: SignatureVersion::V4,
            credentials: Credentials {
                access_key_id: text("test-ak"),
                access_key_secret: text("test-sk"),
                security_token: None,
            },
            try_timeout: Duration::from_secs(20),
            outage_timeout: Duration::ZERO,
            limits: Limits::default(),
        })
        .unwrap()
    }

    /// A control request: status and body.
    pub(super) fn dev(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let head = format!(
            "{method} /_dev/{path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.addr,
            body.len()
        );
        let (addr, request) = (self.addr, [head.as_bytes(), body].concat());
        let exchange = async move {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(&request).await.unwrap();
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).await.unwrap();
            reply
        };
        let (done, reply) = std::sync::mpsc::channel();
        self.runtime.spawn(async move { done.send(exchange.await).unwrap() });
        let reply = reply.recv_timeout(DEADLINE).unwrap();
        let end = reply.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&reply[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = reply[end + 4..].to_vec();
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        (status, if chunked { unchunked(&body) } else { body })
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = self.dev("GET", path, b"");
        assert_eq!(status, 200, "{path}");
        serde_json::from_slice(&body).unwrap()
    }

    pub(super) fn objects(&self, prefix: &str) -> BTreeMap<String, Seen> {
        let listed = self.json(&format!("objects/{BUCKET}?prefix={prefix}"));
        let seen = |object: &Value| {
            let meta = object["meta"].as_object().unwrap().iter();
            let seen = Seen {
                etag: ETag::new(object["etag"].as_str().unwrap()),
                size: object["size"].as_u64().unwrap(),
                crc64: object["crc64"].as_str().map(|crc| crc.parse().unwrap()),
                meta: meta.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect(),
            };
            (object["key"].as_str().unwrap().to_owned(), seen)
        };
        listed.as_array().unwrap().iter().map(seen).collect()
    }

    pub(super) fn look(&self, key: &ObjectKey) -> Option<Seen> {
        self.objects(key.as_str()).remove(key.as_str())
    }

    pub(super) fn bytes(&self, key: &str) -> Vec<u8> {
        let (status, body) = self.dev("GET", &format!("object/{BUCKET}/{key}"), b"");
        assert_eq!(status, 200, "{key}");
        body
    }

    /// Another client replaces the object.
    pub(super) fn put(&self, key: &ObjectKey, bytes: &[u8]) -> Seen {
        assert_eq!(self.dev("PUT", &format!("object/{BUCKET}/{key}"), bytes).0, 200);
        self.look(key).unwrap()
    }

    pub(super) fn delete(&self, key: &ObjectKey) {
        assert_eq!(self.dev("DELETE", &format!("object/{BUCKET}/{key}"), b"").0, 200);
    }

    pub(super) fn faults(&self, rules: &Value) {
        let (status, body) = self.dev("POST", "faults", rules.to_string().as_bytes());
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    }

    /// Takes all rules away and opens all gates.
    pub(super) fn calm(&self) {
        assert_eq!(self.dev("DELETE", "faults", b"").0, 200);
    }

    pub(super) fn open_gate(&self, name: &str) {
        assert_eq!(self.dev("POST", &format!("gates/{name}/open"), b"").0, 200);
    }

    /// How many requests stand before a gate.
    pub(super) fn waiting(&self, gate: &str) -> u64 {
        self.json("gates")[gate]["waiting"].as_u64().unwrap_or_default()
    }

    /// Waits until so many requests stand before a gate.
    pub(super) fn wait_at_gate(&self, gate: &str, count: u64) {
        wait_until(gate, || self.waiting(gate) >= count);
    }

    /// The requests of one kind that did something, by part number.
    pub(super) fn requests(&self, operation: &str, key: &str) -> Vec<u64> {
        let (status, log) = self.dev("GET", "log", b"");
        assert_eq!(status, 200);
        let lines = String::from_utf8(log).unwrap();
        let entries = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        entries
            .filter(|entry| entry["operation"] == operation && entry["key"] == key && entry["status"] == 200)
            .map(|entry| entry["part_number"].as_u64().unwrap_or_default())
            .collect()
    }

    /// Uploads that were begun and neither completed nor given up.
    pub(super) fn uploads(&self, key: &str) -> usize {
        let listed = self.json(&format!("uploads/{BUCKET}"));
        listed.as_array().unwrap().iter().filter(|upload| upload["key"] == key).count()
    }
}

/// Waits for something that happens by itself.
pub(super) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|w| w == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if len == 0 {
            break;
        }
        out.extend_from_slice(&body[end + 2..end + 2 + len]);
        body = &body[end + 4 + len..];
    }
    out
}
