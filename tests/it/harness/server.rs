//! The service of a test: `ossfuse dev-server` as a child, driven by its control endpoints.
//!
//! What a test reads here is what another client of the bucket sees, and is never counted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{end_with_parent, wait_until};

/// The bucket that every server has.
pub(crate) const BUCKET: &str = "test-bucket";

/// A running server; ends when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    addr: String,
}

/// Requests that arrived, by operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counts(BTreeMap<String, Count>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Count {
    pub(crate) ok: u64,
    pub(crate) error: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

impl Counts {
    pub(crate) fn of(&self, operation: &str) -> Count {
        self.0.get(operation).copied().unwrap_or_default()
    }

    /// Requests of one operation, answered well or not.
    pub(crate) fn number(&self, operation: &str) -> u64 {
        let count = self.of(operation);
        count.ok + count.error
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().map(|count| count.ok + count.error).sum()
    }

    /// Bytes of bodies, both ways.
    pub(crate) fn moved(&self) -> u64 {
        self.0.values().map(|count| count.bytes_in + count.bytes_out).sum()
    }

    /// Operation and number, for comparing with all that was expected.
    pub(crate) fn all(&self) -> Vec<(&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), count.ok + count.error)).collect()
    }
}

impl Server {
    pub(crate) fn start(data: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ossfuse"));
        command.args(["dev-server", "--listen", "127.0.0.1:0", "--bucket", BUCKET, "--data"]).arg(data);
        end_with_parent(&mut command);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("listening http://").expect("the first line says where").to_owned();
        Self { child, addr }
    }

    /// Accepts other credentials, and only these, from now on.
    pub(crate) fn accept_credentials(&self, keys: &Value) {
        self.tell("POST", "credentials", keys.to_string().as_bytes());
    }

    /// The endpoint.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// One control request; the body and whether it was answered well.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> (bool, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.addr).unwrap();
        // HTTP/1.0: the reply ends with the connection.
        let head =
            format!("{method} /_dev/{path} HTTP/1.0\r\nhost: {}\r\ncontent-length: {}\r\n\r\n", self.addr, body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        let end = reply.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole reply") + 4;
        let ok = reply.get(9..12) == Some(b"200");
        (ok, reply.split_off(end))
    }

    fn tell(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let (ok, reply) = self.ask(method, path, body);
        assert!(ok, "{method} {path}: {}", String::from_utf8_lossy(&reply));
        reply
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.tell("GET", path, b"")).unwrap()
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts(serde_json::from_value(self.json("stats")["requests"].take()).unwrap())
    }

    pub(crate) fn reset_counts(&self) {
        self.tell("POST", "stats/reset", b"");
    }

    /// The requests since the server began, oldest first.
    pub(crate) fn log(&self) -> Vec<Value> {
        let text = self.tell("GET", "log", b"");
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    /// Puts these fault rules in the place of those before.
    pub(crate) fn faults(&self, rules: &Value) {
        self.tell("POST", "faults", rules.to_string().as_bytes());
    }

    /// Holds the requests of an operation, once `skip` have passed, at the gate `gate`.
    pub(crate) fn hold(&self, operation: &str, skip: u64) {
        self.faults(&json!([{"operation": operation, "skip": skip, "action": {"hold": "gate"}}]));
    }

    /// Waits until a request waits at the gate of [`Self::hold`].
    pub(crate) fn wait_for_held(&self) {
        wait_until("a request waits at the gate", || self.held() > 0);
    }

    /// How many requests wait at the gate of [`Self::hold`].
    pub(crate) fn held(&self) -> u64 {
        self.json("gates")["gate"]["waiting"].as_u64().unwrap_or_default()
    }

    /// Requests that the fault rules have struck.
    pub(crate) fn applied(&self) -> u64 {
        self.json("faults").as_array().unwrap().iter().map(|rule| rule["applied"].as_u64().unwrap()).sum()
    }

    /// Another client deletes an object.
    pub(crate) fn delete(&self, key: &str) {
        self.tell("DELETE", &object(key), b"");
    }

    /// Sets the server's clock ahead, in seconds.
    pub(crate) fn clock(&self, offset: i64) {
        self.tell("POST", "clock", json!({"offset_seconds": offset}).to_string().as_bytes());
    }

    /// From now on every connection is reset, or none any more.
    pub(crate) fn outage(&self, on: bool) {
        self.tell("POST", "outage", json!({"on": on}).to_string().as_bytes());
    }

    /// Ends all faults and opens all gates.
    pub(crate) fn clear_faults(&self) {
        self.tell("DELETE", "faults", b"");
    }

    /// Ends all faults, and waits until nothing of a client that was killed is to come: it may have requests at
    /// gates or unread in sockets, which are counted, and may take effect, after its death.
    pub(crate) fn let_the_dead_go(&self) {
        self.clear_faults();
        wait_until("the connections of the killed are gone", || self.json("stats")["connections"] == 0);
    }

    /// Another client writes objects, a name and a content for each number below `count`.
    pub(crate) fn fill<C: AsRef<[u8]>>(&self, count: usize, object: impl Fn(usize) -> (String, C)) {
        for (key, content) in (0..count).map(object) {
            self.put(&key, content.as_ref());
        }
    }

    /// Another client writes an object.
    pub(crate) fn put(&self, key: &str, content: &[u8]) {
        self.tell("PUT", &object(key), content);
    }

    /// Another client makes an object out of copies of another, without sending anything.
    pub(crate) fn repeat(&self, source: &str, key: &str, times: u32) {
        crate::conformance::repeat(&self.addr, BUCKET, source, key, times);
    }

    /// Another client reads an object.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let (ok, body) = self.ask("GET", &object(key), b"");
        ok.then_some(body)
    }

    /// All objects, as the control endpoint shows them.
    pub(crate) fn objects(&self) -> Vec<Value> {
        match self.json(&format!("objects/{BUCKET}")) {
            Value::Array(objects) => objects,
            other => panic!("{other}"),
        }
    }

    /// Those whose keys begin with this.
    pub(crate) fn objects_under(&self, prefix: &str) -> Vec<Value> {
        let prefix = percent_encoding::utf8_percent_encode(prefix, percent_encoding::NON_ALPHANUMERIC);
        match self.json(&format!("objects/{BUCKET}?prefix={prefix}")) {
            Value::Array(objects) => objects,
            other => panic!("{other}"),
        }
    }

    /// The keys of all objects.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.objects().iter().map(|object| object["key"].as_str().unwrap().to_owned()).collect()
    }

    /// The multipart uploads that stand in the bucket.
    pub(crate) fn uploads(&self) -> Vec<Value> {
        match self.json(&format!("uploads/{BUCKET}")) {
            Value::Array(uploads) => uploads,
            other => panic!("{other}"),
        }
    }
}

fn object(key: &str) -> String {
    format!("object/{BUCKET}/{}", percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC))
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
