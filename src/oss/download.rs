//! The body on its way in: whole bodies within a bound, and streams that are never shorter or longer than announced.
//!
//! Waiting is bounded while somebody waits: a reader that does not ask for more bytes is not the service's fault.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, Sleep, sleep};

use super::error::{Error, ErrorKind, Outcome};
use super::limiter::Bucket;
use super::stats::Counters;
use super::transport::describe;
use super::types::Operation;

/// Why a body could not be had.
#[derive(Debug)]
pub(super) enum Broken {
    Transport(String),
    TooLong,
}

fn silence(patience: Duration) -> String {
    format!("no byte came for {patience:?}")
}

/// The whole body, at most `bytes_max` long.
pub(super) async fn collect(
    mut body: reqwest::Body,
    bytes_max: usize,
    patience: Duration,
    counters: &Counters,
) -> Result<Bytes, Broken> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut whole = BytesMut::with_capacity(announced.min(bytes_max));
    loop {
        let frame = match tokio::time::timeout(patience, body.frame()).await {
            Err(_) => return Err(Broken::Transport(silence(patience))),
            Ok(Some(Err(error))) => return Err(Broken::Transport(describe(error))),
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return Ok(whole.freeze()),
        };
        let Ok(data) = frame.into_data() else { continue };
        counters.received(data.len() as u64);
        if whole.len() + data.len() > bytes_max {
            return Err(Broken::TooLong);
        }
        whole.extend_from_slice(&data);
    }
}

/// The reply that a download belongs to.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) operation: Operation,
    pub(super) subject: Box<str>,
    pub(super) request_id: Option<String>,
    pub(super) status: u16,
}

/// A stream of exactly the bytes that the head of the reply announced, or an error.
pub(super) struct Download {
    body: reqwest::Body,
    remaining: u64,
    patience: Duration,
    /// Runs only while the reader waits.
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    ended: bool,
    origin: Origin,
    counters: Arc<Counters>,
    shaper: Option<Shaper>,
}

/// Hands bytes out no faster than a bucket fills, so that the service is asked for no more.
struct Shaper {
    bucket: Arc<Bucket>,
    /// Bytes that were paid for before they were asked for.
    prepaid: u64,
    /// What has come too soon, and when it may be handed out.
    held: Option<Bytes>,
    timer: Pin<Box<Sleep>>,
}

impl Shaper {
    fn pay(&mut self, data: Bytes) {
        let due = (data.len() as u64).saturating_sub(self.prepaid);
        self.prepaid = self.prepaid.saturating_sub(data.len() as u64);
        let now = Instant::now();
        self.timer.as_mut().reset(if due == 0 { now } else { self.bucket.take(due, now) });
        self.held = Some(data);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.held.is_some() {
            std::task::ready!(self.timer.as_mut().poll(context));
        }
        Poll::Ready(self.held.take())
    }
}

impl Download {
    pub(super) fn new(
        body: reqwest::Body,
        len: u64,
        patience: Duration,
        origin: Origin,
        counters: Arc<Counters>,
    ) -> Self {
        let timer = Box::pin(sleep(patience));
        let (waiting, ended, shaper) = (false, false, None);
        Self { body, remaining: len, patience, timer, waiting, ended, origin, counters, shaper }
    }

    /// Has the body flow as `bucket` says; `prepaid` bytes were taken from it already.
    pub(super) fn shaped(mut self, bucket: Option<&Arc<Bucket>>, prepaid: u64) -> Self {
        let timer = Box::pin(sleep(Duration::ZERO));
        self.shaper = bucket.map(|bucket| Shaper { bucket: bucket.clone(), prepaid, held: None, timer });
        self
    }

    fn end_with(&mut self, kind: ErrorKind, message: String) -> Poll<Option<Result<Bytes, Error>>> {
        self.ended = true;
        let Origin { operation, subject, request_id, status } = &mut self.origin;
        let error = Error {
            status: *status,
            request_id: request_id.take().map(Into::into),
            ..Error::local(*operation, subject, kind, Outcome::NotApplied, message)
        };
        self.counters.broke_off(&error);
        Poll::Ready(Some(Err(error)))
    }

    fn take(&mut self, data: Bytes) -> Poll<Option<Result<Bytes, Error>>> {
        self.counters.received(data.len() as u64);
        match self.remaining.checked_sub(data.len() as u64) {
            Some(rest) => {
                self.remaining = rest;
                Poll::Ready(Some(Ok(data)))
            }
            None => self.end_with(ErrorKind::Protocol, "the body is longer than announced".into()),
        }
    }

    /// Nothing is there: how long that may last.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if !self.waiting {
            self.waiting = true;
            let deadline = Instant::now() + self.patience;
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.end_with(ErrorKind::Transport, silence(self.patience))
    }
}

impl Stream for Download {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(shaper) = &mut this.shaper
            && let Some(data) = std::task::ready!(shaper.poll(context))
        {
            return this.take(data);
        }
        if this.ended || this.remaining == 0 {
            return Poll::Ready(None);
        }
        loop {
            let polled = Pin::new(&mut this.body).poll_frame(context);
            if polled.is_ready() {
                this.waiting = false;
            }
            match polled {
                Poll::Pending => return this.wait(context),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => match &mut this.shaper {
                        None => return this.take(data),
                        Some(shaper) => {
                            shaper.pay(data);
                            if let Some(data) = std::task::ready!(shaper.poll(context)) {
                                return this.take(data);
                            }
                        }
                    },
                    Err(_) => {}
                },
                Poll::Ready(Some(Err(error))) => return this.end_with(ErrorKind::Transport, describe(error)),
                Poll::Ready(None) => {
                    let message = format!("the body ended {} bytes early", this.remaining);
                    return this.end_with(ErrorKind::Transport, message);
                }
            }
        }
    }
}
