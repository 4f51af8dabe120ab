//! A block: a range of the object that is being fetched or was, and those who wait for its bytes.
//!
//! It knows nothing of requests: a task pushes what arrives into the [`Fill`], readers wait at the [`Block`]. The
//! surprising part: the task holds the fill alone, so that dropping the last block ends the task.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::ReadError;
use crate::base::{ByteRange, Grant};

/// The bytes of one range, as they were received.
#[derive(Debug)]
pub(super) struct Fill {
    range: ByteRange,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Ascending and contiguous: the offset of each chunk and its bytes.
    chunks: VecDeque<(u64, Bytes)>,
    /// The end of what was received.
    filled: u64,
    /// Nobody will read below this.
    head: u64,
    failure: Option<ReadError>,
    /// For the bytes held and still to come; `None` once the block is gone.
    grant: Option<Grant>,
    /// Who waits, and up to which offset.
    waiters: Vec<(u64, oneshot::Sender<()>)>,
}

impl Fill {
    /// An empty fill of `range`, paid for by `grant`.
    pub(super) fn new(range: ByteRange, grant: Grant) -> Arc<Self> {
        let inner = Inner {
            chunks: VecDeque::new(),
            filled: range.start,
            head: range.start,
            failure: None,
            grant: Some(grant),
            waiters: Vec::new(),
        };
        Arc::new(Self { range, inner: Mutex::new(inner) })
    }

    pub(super) fn range(&self) -> ByteRange {
        self.range
    }

    /// Appends the next bytes, which must not reach past the end of the range.
    pub(super) fn push(&self, bytes: Bytes) {
        let mut inner = self.inner.lock();
        let at = inner.filled;
        inner.filled += bytes.len() as u64;
        debug_assert!(inner.filled <= self.range.end);
        if inner.grant.is_some() && inner.filled > inner.head {
            inner.chunks.push_back((at, bytes));
        }
        inner.wake();
    }

    /// No more bytes will come.
    pub(super) fn fail(&self, error: ReadError) {
        let mut inner = self.inner.lock();
        inner.failure = Some(error);
        inner.settle(self.range.end);
        inner.wake();
    }

    fn close(&self) {
        let mut inner = self.inner.lock();
        inner.chunks.clear();
        inner.grant = None;
    }
}

impl Inner {
    /// Wakes those whose bytes are there, or all if nothing more will come.
    fn wake(&mut self) {
        let (filled, failed) = (self.filled, self.failure.is_some());
        for (_, waiter) in self.waiters.extract_if(.., |(end, _)| failed || *end <= filled) {
            // A reader that has gone needs no news.
            waiter.send(()).ok();
        }
    }

    /// Drops what lies wholly below the head, and the part of the grant that is no longer needed.
    fn settle(&mut self, end: u64) {
        while let Some((at, chunk)) = self.chunks.front()
            && at + chunk.len() as u64 <= self.head
        {
            self.chunks.pop_front();
        }
        let start = self.chunks.front().map_or(self.head, |(at, _)| *at);
        let end = if self.failure.is_some() { self.filled } else { end };
        if let Some(grant) = &mut self.grant {
            grant.shrink(end.saturating_sub(start));
        }
    }
}

/// A range of the object in memory, or on its way there.
#[derive(Debug)]
pub(super) struct Block {
    fill: Arc<Fill>,
    task: AbortHandle,
}

impl Block {
    pub(super) fn new(fill: Arc<Fill>, task: AbortHandle) -> Self {
        Self { fill, task }
    }

    pub(super) fn range(&self) -> ByteRange {
        self.fill.range
    }

    /// Where the bytes end that will never be more, if the fetch has failed.
    pub(super) fn failed_at(&self) -> Option<u64> {
        let inner = self.fill.inner.lock();
        inner.failure.as_ref().map(|_| inner.filled)
    }

    /// Waits until the bytes before `end` are there, or never will be.
    pub(super) async fn ready(&self, end: u64) -> Result<(), ReadError> {
        let waiter = {
            let mut inner = self.fill.inner.lock();
            if inner.filled >= end {
                return Ok(());
            }
            if let Some(failure) = &inner.failure {
                return Err(failure.clone());
            }
            let (sender, waiter) = oneshot::channel();
            inner.waiters.push((end, sender));
            waiter
        };
        // The sender lies in the fill, which this block holds: it is used, not dropped.
        waiter.await.expect("a waiter is woken");
        let inner = self.fill.inner.lock();
        match &inner.failure {
            Some(failure) if inner.filled < end => Err(failure.clone()),
            _ => Ok(()),
        }
    }

    /// The bytes of `range`, which must be ready and not trimmed.
    pub(super) fn slices(&self, range: ByteRange) -> Vec<Bytes> {
        let inner = self.fill.inner.lock();
        let from = inner.chunks.partition_point(|(at, chunk)| at + chunk.len() as u64 <= range.start);
        let chunks = inner.chunks.range(from..).take_while(|(at, _)| *at < range.end);
        chunks.map(|(at, chunk)| part(*at, chunk, range)).collect()
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.fill.inner.lock().chunks.iter().map(|(_, chunk)| chunk.len() as u64).sum()
    }

    /// Frees what lies below `head`: nobody will read it here.
    pub(super) fn trim(&self, head: u64) {
        let mut inner = self.fill.inner.lock();
        if head > inner.head {
            inner.head = head;
            inner.settle(self.fill.range.end);
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.task.abort();
        self.fill.close();
    }
}

/// The part of `chunk`, which begins at `at`, that lies in `range`.
fn part(at: u64, chunk: &Bytes, range: ByteRange) -> Bytes {
    let mut part = chunk.clone();
    part.truncate((range.end - at).min(chunk.len() as u64) as usize);
    part.advance(range.start.saturating_sub(at) as usize);
    part
}
