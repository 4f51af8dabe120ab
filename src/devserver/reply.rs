//! Replies: what a handler hands back, and the body that streams it out.
//!
//! The body is the last place where faults strike (truncation, corruption) and where bytes are throttled and
//! counted. A body is read one chunk ahead on the blocking pool, and no thread waits for a slow client.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::request::Operation;
use super::service::Shared;
use super::store::{Segment, SegmentReader};
use crate::base::ByteRange;
use crate::base::limits::KIB;

/// A body up to this is read at once.
const SMALL_BYTES: u64 = 256 * KIB;
/// Larger bodies are read in chunks of this.
const CHUNK_BYTES: u64 = 512 * KIB;

/// What a handler answers.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
}

/// The body of a reply.
#[derive(Debug)]
pub(crate) enum Payload {
    Bytes(Bytes),
    /// The answer to HEAD: a length without bytes.
    Length(u64),
    Segments(SegmentReader, u64),
}

impl Reply {
    pub(crate) fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), payload: Payload::Bytes(Bytes::new()) }
    }

    pub(crate) fn ok() -> Self {
        Self::new(StatusCode::OK)
    }

    pub(crate) fn xml(document: String) -> Self {
        Self::ok().header("content-type", "application/xml").body(document)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        super::attributes::add(&mut self.headers, name, value);
        self
    }

    pub(crate) fn body(mut self, bytes: impl Into<Bytes>) -> Self {
        self.payload = Payload::Bytes(bytes.into());
        self
    }

    /// The bytes `range` of the whole that `segments` make up.
    pub(crate) fn segments(mut self, segments: &[Segment], range: ByteRange) -> io::Result<Self> {
        let mut reader = SegmentReader::new(segments, range);
        self.payload = if range.len() <= SMALL_BYTES {
            Payload::Bytes(reader.read_all()?.into())
        } else {
            Payload::Segments(reader, range.len())
        };
        Ok(self)
    }
}

impl Payload {
    /// Bytes that will go out.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Length(_) => 0,
            Self::Segments(_, len) => *len,
        }
    }
}

type Reading = JoinHandle<(SegmentReader, io::Result<Vec<u8>>)>;

#[derive(Debug)]
enum Source {
    Bytes(Bytes),
    Idle(SegmentReader),
    Reading(Reading),
    Done,
}

/// How a body is to go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BodyFaults {
    pub(crate) truncate_at: Option<u64>,
    pub(crate) corrupt: bool,
}

/// A reply's body on its way out.
#[derive(Debug)]
pub(crate) struct ReplyBody {
    shared: Arc<Shared>,
    /// Whose counter the bytes go to; none for control requests.
    operation: Option<Operation>,
    source: Source,
    left: u64,
    sent: u64,
    faults: BodyFaults,
    /// A chunk that waits for its turn on a throttled line.
    held: Option<(Pin<Box<Sleep>>, Bytes)>,
    flushed: bool,
}

impl ReplyBody {
    pub(crate) fn new(shared: Arc<Shared>, operation: Option<Operation>, payload: Payload, faults: BodyFaults) -> Self {
        let left = payload.len();
        let source = match payload {
            Payload::Bytes(bytes) => Source::Bytes(bytes),
            Payload::Length(_) => Source::Done,
            Payload::Segments(reader, _) => Source::Idle(reader),
        };
        Self { shared, operation, source, left, sent: 0, faults, held: None, flushed: false }
    }

    fn read_ahead(&self, mut reader: SegmentReader) -> Source {
        let max = self.shared.traffic.chunk_max(CHUNK_BYTES);
        Source::Reading(tokio::task::spawn_blocking(move || {
            let chunk = reader.next_chunk(max);
            (reader, chunk)
        }))
    }

    /// The next chunk as it is stored.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        loop {
            match std::mem::replace(&mut self.source, Source::Done) {
                Source::Done => return Poll::Ready(Ok(Bytes::new())),
                Source::Bytes(mut bytes) => {
                    let max = self.shared.traffic.chunk_max(CHUNK_BYTES).min(bytes.len() as u64);
                    let chunk = bytes.split_to(max as usize);
                    self.source = Source::Bytes(bytes);
                    return Poll::Ready(Ok(chunk));
                }
                Source::Idle(reader) => self.source = self.read_ahead(reader),
                Source::Reading(mut reading) => {
                    let Poll::Ready(read) = Pin::new(&mut reading).poll(cx) else {
                        self.source = Source::Reading(reading);
                        return Poll::Pending;
                    };
                    let (reader, chunk) = read.map_err(io::Error::other)?;
                    let chunk = chunk?;
                    if (chunk.len() as u64) < self.left {
                        self.source = self.read_ahead(reader);
                    }
                    return Poll::Ready(Ok(chunk.into()));
                }
            }
        }
    }

    /// Applies the faults to a chunk.
    fn spoil(&mut self, chunk: Bytes) -> Bytes {
        let mut chunk = chunk;
        if self.faults.corrupt && !chunk.is_empty() {
            self.faults.corrupt = false;
            chunk = corrupted(&chunk);
        }
        if let Some(end) = self.faults.truncate_at {
            chunk.truncate(end.saturating_sub(self.sent).min(chunk.len() as u64) as usize);
        }
        chunk
    }

    fn is_cut(&self) -> bool {
        self.left > 0 && self.faults.truncate_at.is_some_and(|end| self.sent >= end)
    }

    fn pass(&mut self, chunk: Bytes) -> Bytes {
        let len = chunk.len() as u64;
        self.left -= len.min(self.left);
        self.sent += len;
        if let Some(operation) = self.operation {
            self.shared.stats.sent(operation, len);
        }
        chunk
    }
}

/// The bytes with one of them changed.
pub(crate) fn corrupted(bytes: &[u8]) -> Bytes {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x20;
    }
    bytes.into()
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if this.operation.is_some() && this.shared.traffic.is_out() {
            return Poll::Ready(Some(Err(io::Error::other("an outage began"))));
        }
        if this.is_cut() {
            if std::mem::replace(&mut this.flushed, true) {
                return Poll::Ready(Some(Err(io::Error::other("a fault rule cuts the body here"))));
            }
            // What was handed over must reach the socket before the error closes it: one pause lets it be flushed.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.held.is_none() {
            if this.left == 0 {
                return Poll::Ready(None);
            }
            let chunk = ready!(this.poll_source(cx))?;
            let chunk = this.spoil(chunk);
            match this.shared.traffic.reserve(chunk.len() as u64).filter(|_| this.operation.is_some()) {
                Some(wait) => this.held = Some((Box::pin(tokio::time::sleep(wait)), chunk)),
                None => return Poll::Ready(Some(Ok(Frame::data(this.pass(chunk))))),
            }
        }
        match this.held.take() {
            Some((mut sleep, chunk)) => match sleep.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Ok(Frame::data(this.pass(chunk))))),
                Poll::Pending => {
                    this.held = Some((sleep, chunk));
                    Poll::Pending
                }
            },
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
