//! Fetching a range into a block: ranged GETs pinned by ETag, resumed where a body breaks off.
//!
//! The client has repeated what may be repeated before a reply's head; here only bodies are mended. The surprising
//! part: the sum of a block is recorded before its last bytes are handed out, so that whoever has received the whole
//! object cannot have missed a mismatch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::ReadError;
use super::block::Fill;
use super::shared::Shared;
use crate::base::ByteRange;
use crate::base::crc64::Crc64;
use crate::base::limits::KIB;
use crate::oss::{BodyStream, Error, ErrorKind, GetOptions, Operation, Outcome};

/// Bodies that may break off one after the other.
const BREAKS_MAX: u32 = 5;
/// A body that brings this much is not counted as broken.
const PROGRESS: u64 = 256 * KIB;
/// The pause before the second resumption; doubled from there.
const PAUSE: Duration = Duration::from_millis(50);

/// One fetch; ends with the fill full or failed.
pub(super) struct Fetch {
    shared: Arc<Shared>,
    fill: Arc<Fill>,
    at: u64,
    crc: Crc64,
    breaks: u32,
    /// Of the request whose body is received.
    request_id: Option<Box<str>>,
}

/// The body of a reply, and by what the service knows the request.
pub(super) struct Incoming {
    pub(super) body: BodyStream,
    pub(super) request_id: Option<Box<str>>,
}

impl Fetch {
    pub(super) fn new(shared: Arc<Shared>, fill: Arc<Fill>) -> Self {
        let at = fill.range().start;
        Self { shared, fill, at, crc: Crc64::new(), breaks: 0, request_id: None }
    }

    /// Fetches, with `worker` or when there is one; goes on with `body` where a reply began this.
    pub(super) async fn run(mut self, worker: Option<OwnedSemaphorePermit>, body: Option<Incoming>) {
        let _worker = match worker {
            Some(worker) => worker,
            None => self.shared.engine.worker().await,
        };
        if let Err(error) = self.transfer(body).await {
            log::debug!("{}: {:?}: {error}", self.shared.key(), self.fill.range());
            self.fill.fail(error);
        }
    }

    async fn transfer(&mut self, mut body: Option<Incoming>) -> Result<(), ReadError> {
        while self.at < self.fill.range().end {
            let from = self.at;
            let Incoming { body, request_id } = match body.take() {
                Some(body) => body,
                None => self.request().await?,
            };
            self.request_id = request_id;
            if let Err(error) = self.drain(body).await? {
                self.pause(error, from).await?;
            }
        }
        Ok(())
    }

    /// A body that begins at the next byte.
    async fn request(&self) -> Result<Incoming, ReadError> {
        let range = ByteRange::new(self.at, self.fill.range().end);
        loop {
            let pin = self.shared.pin();
            let options = GetOptions { range: Some(range), if_match: Some(pin.etag.clone()), if_none_match: None };
            match self.shared.engine.client.get_object(&pin.key, &options).await {
                Ok(reply) if reply.meta.size == self.shared.size && reply.meta.etag == pin.etag => {
                    return Ok(Incoming { body: reply.body, request_id: reply.request_id });
                }
                Ok(reply) => log::warn!("{}: got version {} in spite of If-Match", pin.key, reply.meta.etag),
                Err(error) if is_stale(error.kind) => log::debug!("{}: {error}", pin.key),
                Err(error) => return Err(ReadError::Oss(error)),
            }
            // Our own rename or rewrite may have overtaken the request.
            if self.shared.pin() == pin {
                return Err(ReadError::Stale);
            }
        }
    }

    /// Takes in a body; the inner error is that of a body that broke off.
    async fn drain(&mut self, mut body: BodyStream) -> Result<Result<(), Error>, ReadError> {
        while self.at < self.fill.range().end {
            match body.next().await {
                Some(Ok(bytes)) => self.accept(bytes)?,
                Some(Err(error)) => return Ok(Err(error)),
                None => return Ok(Err(self.ended_early())),
            }
        }
        Ok(Ok(()))
    }

    fn accept(&mut self, mut bytes: Bytes) -> Result<(), ReadError> {
        let range = self.fill.range();
        bytes.truncate((range.end - self.at).min(bytes.len() as u64) as usize);
        if self.shared.crc64.is_some() {
            self.crc.update(&bytes);
        }
        self.at += bytes.len() as u64;
        if self.at == range.end && !self.shared.record(range, self.crc.value(), self.request_id.as_deref()) {
            return Err(ReadError::Corrupt);
        }
        self.fill.push(bytes);
        Ok(())
    }

    /// Decides whether a body that began at `from` and broke off may be resumed, and when.
    async fn pause(&mut self, error: Error, from: u64) -> Result<(), ReadError> {
        self.breaks = if self.at - from >= PROGRESS { 1 } else { self.breaks + 1 };
        if self.breaks > BREAKS_MAX {
            return Err(ReadError::Oss(error));
        }
        log::debug!("{}: resumed at byte {}: {error}", self.shared.key(), self.at);
        if self.breaks > 1 {
            tokio::time::sleep(PAUSE * (1 << (self.breaks - 2))).await;
        }
        Ok(())
    }

    /// The error of a body that ends well before its time, which the client should have noticed.
    fn ended_early(&self) -> Error {
        let why = format!("the body ended at byte {} of {:?}", self.at, self.fill.range());
        Error::local(Operation::GetObject, self.shared.key().as_str(), ErrorKind::Protocol, Outcome::NotApplied, why)
    }
}

/// The object is not what was asked for: replaced, gone, or shorter.
fn is_stale(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PreconditionFailed | ErrorKind::NoSuchKey | ErrorKind::InvalidRange)
}
