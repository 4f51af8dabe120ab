//! Bodies in both directions: exact lengths, broken ends, slow lines, and connections used again.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use super::server::{Act, Server, error, reply};
use super::{OBJECT, key};
use crate::base::PartNumber;
use crate::base::UploadId;
use crate::base::crc64::checksum;
use crate::oss::{
    Addressing, Body, BodySource, Error, ErrorKind, GetOptions, GetReply, Operation, Outcome, PutHeaders,
};

/// Chunks of one byte value, read anew for each try.
#[derive(Debug)]
struct Chunks {
    chunk: Bytes,
    count: usize,
    /// Fails after this many chunks.
    fails_after: usize,
    opened: AtomicUsize,
}

impl Chunks {
    fn new(chunk_len: usize, count: usize) -> Arc<Self> {
        let chunk = Bytes::from(vec![b'x'; chunk_len]);
        Arc::new(Self { chunk, count, fails_after: usize::MAX, opened: AtomicUsize::new(0) })
    }
}

impl BodySource for Chunks {
    fn len(&self) -> u64 {
        (self.chunk.len() * self.count) as u64
    }
    fn open(&self) -> Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + Sync>> {
        self.opened.fetch_add(1, SeqCst);
        let (chunk, fails_after) = (self.chunk.clone(), self.fails_after);
        Box::pin(futures_util::stream::iter(0..self.count).map(move |index| {
            if index < fails_after { Ok(chunk.clone()) } else { Err(io::Error::other("disk on fire")) }
        }))
    }
}

async fn read_all(reply: GetReply) -> (Vec<u8>, Option<Error>) {
    let (mut body, mut out) = (reply.body, Vec::new());
    while let Some(chunk) = body.next().await {
        match chunk {
            Ok(chunk) => out.extend_from_slice(&chunk),
            Err(error) => {
                assert!(body.next().await.is_none());
                return (out, Some(error));
            }
        }
    }
    (out, None)
}

#[tokio::test]
async fn a_source_is_streamed_with_its_length_and_read_anew_for_each_try() {
    let source = Chunks::new(100_000, 30);
    let sum = checksum(&vec![b'x'; 3_000_000]);
    let stored = reply(200, &format!("ETag: \"P\"\nx-oss-hash-crc64ecma: {sum}"), "");
    let server = Server::with_acts(vec![error(500, "InternalError"), stored]).await;
    let (part, upload) = (PartNumber::new(7).unwrap(), UploadId::new("U"));
    let receipt = server.client().upload_part(&key("k"), &upload, part, &Body::Source(source.clone())).await.unwrap();
    assert_eq!((receipt.crc64, receipt.size), (sum, 3_000_000));
    assert_eq!(source.opened.load(SeqCst), 2);
    for seen in server.seen() {
        assert_eq!(seen.header("content-length"), Some("3000000"));
        assert_eq!(seen.header("transfer-encoding"), None);
        assert_eq!(checksum(&seen.body), sum);
    }
}

#[tokio::test]
async fn a_source_that_cannot_be_read_stores_nothing() {
    let server = Server::with_acts(vec![reply(200, "ETag: \"E\"", "")]).await;
    let chunk = Bytes::from_static(b"abc");
    let source = Chunks { chunk, count: 3, fails_after: 2, opened: AtomicUsize::new(0) };
    let client = server.client();
    let error =
        client.put_object(&key("k"), &Body::Source(Arc::new(source)), &PutHeaders::default()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::LocalIo, Outcome::NotApplied));
    assert!(error.message.contains("disk on fire"), "{error}");
    assert!(server.seen().is_empty());
    assert_eq!(client.stats().retries, 0);
}

#[tokio::test]
async fn a_body_that_ends_early_is_an_error_at_its_end() {
    let short = format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n{}\r\n\r\n12345", OBJECT.replace('\n', "\r\n"));
    let server = Server::with_acts(vec![Act::ReplyAndClose(short.into_bytes())]).await;
    let client = server.client();
    let (bytes, error) = read_all(client.get_object(&key("k"), &GetOptions::default()).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!((bytes.as_slice(), error.kind, error.status), (&b"12345"[..], ErrorKind::Transport, 200));
    let stats = client.stats();
    assert_eq!((stats.requests[&Operation::GetObject].ok, stats.requests[&Operation::GetObject].error), (0, 1));
    assert_eq!(stats.bytes_down, 5);
}

#[tokio::test]
async fn a_body_that_stops_is_left() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n{}\r\n\r\n12345", OBJECT.replace('\n', "\r\n"));
    let server = Server::with_acts(vec![Act::Reply(head.into_bytes())]).await;
    let client = server.client_with(Addressing::Path, Duration::from_millis(200));
    let (bytes, error) = read_all(client.get_object(&key("k"), &GetOptions::default()).await.unwrap()).await;
    assert_eq!((bytes.as_slice(), error.unwrap().kind), (&b"12345"[..], ErrorKind::Transport));
}

#[tokio::test]
async fn a_slow_download_lives_as_long_as_something_comes() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n{}\r\n\r\n", OBJECT.replace('\n', "\r\n"));
    let pieces = std::iter::once(head.into_bytes()).chain((0..8).map(|_| b"x".to_vec())).collect();
    let server = Server::with_acts(vec![Act::Drip(pieces, Duration::from_millis(150))]).await;
    let client = server.client_with(Addressing::Path, Duration::from_millis(1_000));
    let (bytes, error) = read_all(client.get_object(&key("k"), &GetOptions::default()).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(bytes, b"xxxxxxxx");
}

#[tokio::test]
async fn a_slow_upload_lives_as_long_as_something_goes() {
    let server = Server::start_reading_slowly(Duration::from_millis(10), |_, _| reply(200, "ETag: \"E\"", "")).await;
    let client = server.client_with(Addressing::Path, Duration::from_millis(1_000));
    let body = Body::Source(Chunks::new(1 << 20, 40));
    client.put_object(&key("k"), &body, &PutHeaders::default()).await.unwrap();
    assert_eq!(server.seen().len(), 1);
    assert_eq!(client.stats().bytes_up, 40 << 20);
}

#[tokio::test]
async fn connections_are_used_again() {
    let body = vec![7; 1 << 20];
    let server = Server::start(move |_, _| reply(200, OBJECT, &body)).await;
    let client = server.client();
    for _ in 0..5 {
        let (bytes, error) = read_all(client.get_object(&key("k"), &GetOptions::default()).await.unwrap()).await;
        assert_eq!((bytes.len(), error.is_none()), (1 << 20, true));
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn an_empty_object_is_an_empty_stream() {
    let server = Server::with_acts(vec![reply(200, OBJECT, "")]).await;
    let reply = server.client().get_object(&key("k"), &GetOptions::default()).await.unwrap();
    assert_eq!((reply.meta.size, reply.range.is_empty()), (0, true));
    assert_eq!(read_all(reply).await.0, b"");
}
