//! A dev server for one test, and requests to it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ossfuse::devserver::{Options, Server};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::sign::{Signer, Version};
use super::wire::{self, Reply, Request};

pub(super) const BUCKET: &str = "test-bucket";
/// Small, so that tests need not move megabytes.
pub(super) const MIN_PART: usize = 1024;

/// A running server; it ends and its data goes when this is dropped.
pub(super) struct TestServer {
    pub(super) addr: SocketAddr,
    pub(super) signer: Signer,
    running: Option<(Runtime, oneshot::Sender<()>)>,
    data: TempDir,
    s3: bool,
}

impl TestServer {
    pub(super) fn start() -> Self {
        Self::start_with(false)
    }

    /// `s3`: serves clients of S3 too.
    pub(super) fn start_with(s3: bool) -> Self {
        let data = tempfile::tempdir().unwrap();
        let (addr, running) = run(data.path(), s3);
        Self { addr, signer: Signer::default(), running: Some(running), data, s3 }
    }

    /// Ends the server and starts another on the same data.
    pub(super) fn restart(&mut self) {
        self.stop();
        let (addr, running) = run(self.data.path(), self.s3);
        (self.addr, self.running) = (addr, Some(running));
    }

    fn stop(&mut self) {
        if let Some((runtime, stop)) = self.running.take() {
            stop.send(()).unwrap();
            drop(runtime);
        }
    }

    /// Signs and sends a request for `target`: a key and its query, unescaped characters escaped by the caller.
    pub(super) fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.try_send(method, target, headers, body).unwrap()
    }

    /// As [`Self::send`], where the connection may break.
    pub(super) fn try_send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Reply> {
        let mut request = Request::new(method, &format!("/{BUCKET}/{target}"), headers, body);
        self.signer.sign(&mut request, Version::V4);
        wire::send(self.addr, &request)
    }

    pub(super) fn put(&self, key: &str, body: &[u8]) -> Reply {
        let reply = self.send("PUT", key, &[], body);
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply
    }

    pub(super) fn get(&self, key: &str) -> Reply {
        self.send("GET", key, &[], b"")
    }

    pub(super) fn head(&self, key: &str) -> Reply {
        self.send("HEAD", key, &[], b"")
    }

    /// Starts a multipart upload; its id.
    pub(super) fn initiate(&self, key: &str) -> String {
        let reply = self.send("POST", &format!("{key}?uploads"), &[], b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.element("UploadId").unwrap()
    }

    /// Sends a part; its ETag in quotes.
    pub(super) fn upload_part(&self, key: &str, id: &str, number: u32, body: &[u8]) -> String {
        let reply = self.send("PUT", &format!("{key}?partNumber={number}&uploadId={id}"), &[], body);
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.header("etag").unwrap().to_owned()
    }

    /// Completes an upload of these parts.
    pub(super) fn complete(&self, key: &str, id: &str, parts: &[(u32, &str)]) -> Reply {
        let part =
            |(number, etag): &(u32, &str)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        let parts: String = parts.iter().map(part).collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        self.send("POST", &format!("{key}?uploadId={id}"), &[], body.as_bytes())
    }

    /// Files that hold bodies, and their bytes.
    pub(super) fn files(&self) -> (usize, u64) {
        let folders = std::fs::read_dir(self.data.path().join("segments")).unwrap();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        // A file may go between being listed and being looked at.
        let sizes: Vec<u64> = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).collect();
        (sizes.len(), sizes.iter().sum())
    }

    /// Sends a control request; its reply as text.
    pub(super) fn control(&self, method: &str, path: &str, body: &str) -> String {
        let reply =
            wire::send(self.addr, &Request::new(method, &format!("/_dev/{path}"), &[], body.as_bytes())).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.text()
    }

    /// As [`Self::control`], read as JSON.
    pub(super) fn ask(&self, path: &str) -> Value {
        serde_json::from_str(&self.control("GET", path, "")).unwrap()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(data: &Path, s3: bool) -> (SocketAddr, (Runtime, oneshot::Sender<()>)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = Options { buckets: vec![BUCKET.into()], min_part: MIN_PART as u64, s3, ..Options::new(data) };
    let server = runtime.block_on(Server::bind(options)).unwrap();
    let addr = server.addr();
    let (stop, stopped) = oneshot::channel();
    runtime.spawn(server.run(async { stopped.await.unwrap_or_default() }));
    (addr, (runtime, stop))
}

/// Waits for what comes soon; a test in which it does not come has failed.
pub(super) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Bytes that differ from place to place.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 131 % 251) as u8).collect()
}
