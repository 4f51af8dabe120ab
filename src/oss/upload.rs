//! The body on its way out: exact length, CRC64 of the bytes as they go, and a watch on their progress.
//!
//! A body goes out in small frames, however large its chunks are, so that a slow connection still shows progress, and
//! one whose rate is limited flows.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::limiter::Bucket;
use super::stats::Counters;
use super::types::Body;
use crate::base::crc64::Crc64;

/// Largest frame handed to the connection, which holds several of them back before it writes: small enough to see
/// progress on a slow line, large enough to cost nothing.
const FRAME_BYTES: usize = 64 << 10;

/// What one try has sent, shared by the body and whoever waits for the reply.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    /// Milliseconds from `started` to the first and the last frame.
    first_ms: AtomicU64,
    last_ms: AtomicU64,
    /// The whole body was handed over, and `crc64` is its sum.
    complete: AtomicBool,
    crc64: AtomicU64,
    /// Why the source could not be read.
    failed: Mutex<Option<io::Error>>,
}

impl Progress {
    fn new(complete: bool) -> Self {
        Self {
            started: Instant::now(),
            first_ms: AtomicU64::new(u64::MAX),
            last_ms: AtomicU64::new(0),
            complete: AtomicBool::new(complete),
            crc64: AtomicU64::new(0),
            failed: Mutex::new(None),
        }
    }

    fn moved(&self) {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.first_ms.fetch_min(elapsed_ms, Relaxed);
        self.last_ms.store(elapsed_ms, Relaxed);
    }

    /// It is this side that waits, until then.
    fn holds_until(&self, at: Instant) {
        let elapsed_ms = u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(elapsed_ms, Relaxed);
    }

    /// When the try counts as dead, unless something moves until then.
    ///
    /// What was handed over last still lies in buffers here, of unknown size but filled no faster than they drained:
    /// once all is handed over they get as long as the sending took.
    pub(super) fn deadline(&self, patience: Duration) -> Instant {
        let last_ms = self.last_ms.load(Relaxed);
        let draining_ms =
            if self.complete.load(Acquire) { last_ms.saturating_sub(self.first_ms.load(Relaxed)) } else { 0 };
        self.started + Duration::from_millis(last_ms.saturating_add(draining_ms)) + patience
    }

    /// The sum of the whole body, once all of it was handed over.
    pub(super) fn crc64(&self) -> Option<u64> {
        self.complete.load(Acquire).then(|| self.crc64.load(Relaxed))
    }

    /// Why the source could not be read, if that is what went wrong.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failed.lock().take()
    }
}

enum Source {
    Bytes,
    Stream(Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + Sync>>),
}

/// One sending of a [`Body`].
pub(super) struct Upload {
    source: Source,
    /// The rest of the chunk that is being cut into frames.
    chunk: Bytes,
    /// Bytes still to be handed over.
    remaining: u64,
    crc: Crc64,
    progress: Arc<Progress>,
    counters: Arc<Counters>,
    shaper: Option<Shaper>,
}

/// Lets a body flow no faster than a bucket fills.
struct Shaper {
    bucket: Arc<Bucket>,
    /// Bytes that are paid for, and may go when the timer says so.
    paid: usize,
    timer: Pin<Box<Sleep>>,
}

impl Shaper {
    /// How many of the next `wanted` bytes may go now.
    fn poll(&mut self, wanted: usize, progress: &Progress, context: &mut Context<'_>) -> Poll<usize> {
        if self.paid == 0 {
            self.paid = wanted.min(self.bucket.piece());
            let at = self.bucket.take(self.paid as u64, Instant::now());
            self.timer.as_mut().reset(at);
            progress.holds_until(at);
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(std::mem::take(&mut self.paid))
    }
}

impl Upload {
    pub(super) fn new(body: &Body, counters: Arc<Counters>, limit: Option<&Arc<Bucket>>) -> (Self, Arc<Progress>) {
        let progress = Arc::new(Progress::new(body.is_empty()));
        let (source, chunk) = match body {
            Body::Bytes(bytes) => (Source::Bytes, bytes.clone()),
            Body::Source(source) => (Source::Stream(source.open()), Bytes::new()),
        };
        let (remaining, crc) = (body.len(), Crc64::new());
        let shaper = limit.map(|bucket| Shaper {
            bucket: bucket.clone(),
            paid: 0,
            timer: Box::pin(sleep_until(progress.started)),
        });
        (Self { source, chunk, remaining, crc, progress: progress.clone(), counters, shaper }, progress)
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() {
            let Source::Stream(stream) = &mut self.source else { return Poll::Ready(Err(short())) };
            match ready!(stream.as_mut().poll_next(context)) {
                Some(chunk) => self.chunk = chunk?,
                None => return Poll::Ready(Err(short())),
            }
        }
        // More than announced would be cut off by the service, and the rest stored as if it were all.
        if self.chunk.len() as u64 > self.remaining {
            return Poll::Ready(Err(io::Error::other("the source has more bytes than it announced")));
        }
        Poll::Ready(Ok(()))
    }

    /// How much of the chunk goes next.
    fn poll_len(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        let len = self.chunk.len().min(FRAME_BYTES);
        match &mut self.shaper {
            Some(shaper) => shaper.poll(len, &self.progress, context),
            None => Poll::Ready(len),
        }
    }

    fn next_frame(&mut self, len: usize) -> Bytes {
        let frame = self.chunk.split_to(len);
        self.crc.update(&frame);
        self.remaining -= frame.len() as u64;
        self.counters.sent(frame.len() as u64);
        self.progress.moved();
        if self.remaining == 0 {
            self.progress.crc64.store(self.crc.value(), Relaxed);
            self.progress.complete.store(true, Release);
        }
        frame
    }
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the source has fewer bytes than it announced")
}

/// The error that ends a body; what went wrong is told through [`Progress::take_failure`].
#[derive(Debug, thiserror::Error)]
#[error("the body could not be read")]
pub(super) struct BodyFailed;

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        match ready!(self.poll_chunk(context)) {
            Ok(()) => {
                let len = ready!(self.poll_len(context));
                Poll::Ready(Some(Ok(Frame::data(self.next_frame(len)))))
            }
            Err(error) => {
                *self.progress.failed.lock() = Some(error);
                Poll::Ready(Some(Err(BodyFailed)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::base::crc64::checksum;
    use crate::oss::types::BodySource;

    #[derive(Debug)]
    struct Chunks {
        announced: u64,
        chunks: Vec<Result<Bytes, io::ErrorKind>>,
    }

    impl BodySource for Chunks {
        fn len(&self) -> u64 {
            self.announced
        }
        fn open(&self) -> Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + Sync>> {
            Box::pin(futures_util::stream::iter(self.chunks.clone()).map(|chunk| chunk.map_err(Into::into)))
        }
    }

    use futures_util::StreamExt as _;

    fn source(announced: u64, sizes: &[usize]) -> Body {
        let chunks = sizes.iter().map(|size| Ok(Bytes::from(vec![7; *size]))).collect();
        Body::Source(Arc::new(Chunks { announced, chunks }))
    }

    async fn drain(body: &Body) -> (Result<Vec<usize>, io::Error>, Arc<Progress>) {
        let (mut upload, progress) = Upload::new(body, Arc::default(), None);
        let mut sizes = Vec::new();
        while let Some(frame) = upload.frame().await {
            match frame {
                Ok(frame) => sizes.push(frame.into_data().unwrap().len()),
                Err(BodyFailed) => return (Err(progress.take_failure().unwrap()), progress),
            }
        }
        (Ok(sizes), progress)
    }

    #[tokio::test]
    async fn bytes_and_sources_go_out_in_frames_with_their_sum() {
        let bytes = Bytes::from((0..200_000u32).map(|i| i as u8).collect::<Vec<_>>());
        let (sizes, progress) = drain(&Body::Bytes(bytes.clone())).await;
        assert_eq!(sizes.unwrap(), [FRAME_BYTES, FRAME_BYTES, FRAME_BYTES, 200_000 - 3 * FRAME_BYTES]);
        assert_eq!(progress.crc64(), Some(checksum(&bytes)));
        let (sizes, progress) = drain(&source(FRAME_BYTES as u64 + 11, &[0, 10, FRAME_BYTES + 1])).await;
        assert_eq!(sizes.unwrap(), [10, FRAME_BYTES, 1]);
        assert_eq!(progress.crc64(), Some(checksum(&vec![7; FRAME_BYTES + 11])));
    }

    #[tokio::test]
    async fn a_limited_body_flows_in_pieces() {
        const RATE: u64 = 8 << 20;
        let bucket = Arc::new(Bucket::of_bytes(RATE));
        let (mut upload, progress) = Upload::new(&source(3 << 20, &[3 << 20]), Arc::default(), Some(&bucket));
        let begun = Instant::now();
        let mut sent = 0;
        while let Some(frame) = upload.frame().await {
            let len = frame.unwrap().into_data().unwrap().len();
            assert!(len <= bucket.piece());
            sent += len as u64;
            assert!(sent <= RATE * (begun.elapsed().as_millis() as u64 + 60) / 1000, "{sent} of it too soon");
        }
        assert_eq!((sent, progress.crc64().is_some()), (3 << 20, true));
    }

    #[tokio::test]
    async fn an_empty_body_is_complete_from_the_start() {
        let (sizes, progress) = drain(&source(0, &[])).await;
        assert!(sizes.unwrap().is_empty());
        assert_eq!(progress.crc64(), Some(0));
    }

    #[tokio::test]
    async fn a_source_that_breaks_its_word_fails_before_the_end() {
        let failing = Chunks { announced: 5, chunks: vec![Ok(Bytes::from_static(b"ab")), Err(io::ErrorKind::Other)] };
        for body in [source(5, &[4]), source(5, &[4, 2]), source(5, &[6]), Body::Source(Arc::new(failing))] {
            let (result, progress) = drain(&body).await;
            assert!(result.is_err());
            assert_eq!(progress.crc64(), None);
        }
    }

    #[test]
    fn the_deadline_follows_the_last_frame() {
        let patience = Duration::from_secs(20);
        let progress = Progress::new(false);
        let after = || progress.deadline(patience) - progress.started - patience;
        assert_eq!(after(), Duration::ZERO);
        progress.first_ms.store(1_000, Relaxed);
        progress.last_ms.store(31_000, Relaxed);
        assert_eq!(after(), Duration::from_secs(31));
        progress.complete.store(true, Release);
        assert_eq!(after(), Duration::from_secs(31 + 30));
    }
}
