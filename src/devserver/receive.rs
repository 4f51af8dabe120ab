//! Taking in request bodies: to disk in one pass with their sums, or whole where they are small by nature.
//!
//! MD5 is the slowest step. A large body is summed and written on the blocking pool while the next bytes arrive;
//! a small one is done at once, cheaper than waking a thread.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::failure::Failure;
use super::reply::corrupted;
use super::request::Operation;
use super::service::Shared;
use super::store::{SegmentWriter, Written, base64_of};
use crate::base::limits::{KIB, MIB};

/// A body up to this is written by the async thread.
const SMALL_BYTES: usize = 256 * KIB as usize;
/// Chunks between the connection and the writing thread.
const CHUNKS_AHEAD: usize = 4;
/// The service gives up on a body that stalls for so long.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Of a body that nobody wants, so much is read before the reply, so that the client gets to read it.
const DRAIN_BYTES_MAX: u64 = 64 * MIB;

/// A body on its way in.
#[derive(Debug)]
pub(crate) struct Intake<'a> {
    pub(crate) shared: Arc<Shared>,
    /// Whose counter the bytes go to; none for control requests.
    pub(crate) operation: Option<Operation>,
    pub(crate) body: &'a mut Incoming,
    pub(crate) corrupt: bool,
    pub(crate) received: u64,
    /// The most bytes it may have.
    pub(crate) limit: u64,
}

impl Intake<'_> {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = match tokio::time::timeout(STALL_MAX, self.body.frame()).await {
                Err(_) => return Err(stalled()),
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(incomplete()),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(bytes) = frame.into_data() else { continue };
            self.received += bytes.len() as u64;
            if self.received > self.limit {
                return Err(Failure::too_large(self.limit));
            }
            if let Some(operation) = self.operation {
                self.shared.stats.received(operation, bytes.len() as u64);
                if let Some(wait) = self.shared.traffic.reserve(bytes.len() as u64) {
                    tokio::time::sleep(wait).await;
                }
            }
            if std::mem::take(&mut self.corrupt) {
                return Ok(Some(corrupted(&bytes)));
            }
            return Ok(Some(bytes));
        }
    }

    /// Takes the whole body into memory.
    pub(crate) async fn collect(&mut self) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// Takes the whole body to disk.
    pub(crate) async fn store(&mut self) -> Result<Written, Failure> {
        let mut writer = self.shared.store.writer();
        let (mut small, mut len) = (Vec::<Bytes>::new(), 0);
        while len <= SMALL_BYTES {
            let Some(bytes) = self.next().await? else {
                for bytes in &small {
                    writer.write(bytes)?;
                }
                return Ok(writer.finish());
            };
            len += bytes.len();
            small.push(bytes);
        }
        self.store_large(writer, small).await
    }

    async fn store_large(&mut self, mut writer: SegmentWriter, begun: Vec<Bytes>) -> Result<Written, Failure> {
        let (chunks, mut arriving) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
        let writing = tokio::task::spawn_blocking(move || {
            for bytes in &begun {
                writer.write(bytes)?;
            }
            drop(begun);
            while let Some(bytes) = arriving.blocking_recv() {
                writer.write(&bytes)?;
            }
            Ok::<_, std::io::Error>(writer)
        });
        while let Some(bytes) = self.next().await? {
            // The other side ends early only on a write error, which joining it brings to light.
            if chunks.send(bytes).await.is_err() {
                break;
            }
        }
        drop(chunks);
        Ok(writing.await.map_err(std::io::Error::other)??.finish())
    }
}

/// Reads what is left of a body that the reply does not depend on. False where there is too much of it, and the
/// connection cannot go on.
pub(crate) async fn drain(body: &mut Incoming) -> bool {
    let mut left = DRAIN_BYTES_MAX;
    loop {
        match tokio::time::timeout(STALL_MAX, body.frame()).await {
            Ok(None) => return true,
            Ok(Some(Ok(frame))) => match left.checked_sub(frame.data_ref().map_or(0, Bytes::len) as u64) {
                Some(rest) => left = rest,
                None => return false,
            },
            Ok(Some(Err(_))) | Err(_) => return false,
        }
    }
}

/// Checks a body against the sums that the client sent along.
pub(crate) fn check_sums(headers: &HeaderMap, written: &Written) -> Result<(), Failure> {
    check_md5(headers, &written.md5)?;
    let claimed = headers.get("x-oss-hash-crc64ecma").and_then(|value| value.to_str().ok());
    if claimed.is_some_and(|claimed| claimed.trim() != written.crc.to_string()) {
        let message = "The CRC64 you specified did not match what we received.";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "InvalidCRC64", message));
    }
    Ok(())
}

/// Checks `Content-MD5`, where there is one.
pub(crate) fn check_md5(headers: &HeaderMap, md5: &[u8; 16]) -> Result<(), Failure> {
    let claimed = headers.get("content-md5").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match claimed {
        Some(claimed) if claimed.trim() != base64_of(md5) => {
            let message = "The Content-MD5 you specified was invalid.";
            Err(Failure::new(StatusCode::BAD_REQUEST, "InvalidDigest", message)
                .detail("ClientContentMD5", claimed)
                .detail("ServerContentMD5", base64_of(md5)))
        }
        _ => Ok(()),
    }
}

fn stalled() -> Failure {
    let message = "Your socket connection to the server was not read from or written to within the timeout period.";
    Failure::new(StatusCode::BAD_REQUEST, "RequestTimeout", message)
}

fn incomplete() -> Failure {
    let message = "You did not provide the number of bytes specified by the Content-Length HTTP header.";
    Failure::new(StatusCode::BAD_REQUEST, "IncompleteBody", message)
}
