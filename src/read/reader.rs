//! Reading one object in one version: from blocks that are there or on their way, in order, into one answer.
//!
//! Which blocks those are is decided elsewhere. The surprising part: an answer is judged only when it is complete,
//! because the object may have turned out corrupt while it was put together.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::block::Block;
use super::shared::{Shared, Visit};
use super::{Cursor, ReadError};
use crate::base::caller::wait;
use crate::base::{ByteRange, ETag, ObjectKey};

/// One object in one version, shared by all its handles. Dropping it ends its fetches and frees its memory.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The version that is read.
    pub fn etag(&self) -> ETag {
        self.shared.pin().etag
    }

    /// Bytes in the object.
    pub fn size(&self) -> u64 {
        self.shared.size
    }

    /// The program itself moved the object or rewrote it with the same bytes: requests from now on use these.
    ///
    /// A request that the move has overtaken is repeated if this was called by the time it fails.
    pub fn rekey(&self, key: ObjectKey, etag: ETag) {
        self.shared.rekey(key, etag);
    }

    /// Reads for the handle of `cursor`; short only at the end of the object.
    pub async fn read(&self, cursor: &Cursor, range: ByteRange) -> Result<Bytes, ReadError> {
        let range = self.inside(range);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let track = cursor.attach(&self.shared);
        self.settle(self.shared.visit(Some(track), range)).await
    }

    /// Reads without fetching more than is asked for; short only at the end of the object.
    pub async fn fetch_exact(&self, range: ByteRange) -> Result<Bytes, ReadError> {
        let range = self.inside(range);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.settle(self.shared.visit(None, range)).await
    }

    fn inside(&self, range: ByteRange) -> ByteRange {
        range.intersect(&ByteRange::new(0, self.shared.size))
    }

    /// Repeats the read while what it brought was thrown away, which happens once or twice at most.
    async fn settle(&self, mut visit: Visit<'_>) -> Result<Bytes, ReadError> {
        loop {
            let outcome = self.collect(&visit).await;
            if let Some(settled) = visit.settle(outcome) {
                return settled;
            }
        }
    }

    async fn collect(&self, visit: &Visit<'_>) -> Result<Bytes, ReadError> {
        let mut answer = Answer::default();
        let mut rest = visit.range;
        while !rest.is_empty() {
            let (block, readable) = wait(self.block_at(rest)).await?;
            let part = rest.intersect(&readable);
            wait(block.ready(part.end)).await??;
            answer.extend(block.slices(part), visit.range.len());
            visit.advance(part.end);
            rest.start = part.end;
        }
        Ok(answer.finish())
    }

    async fn block_at(&self, rest: ByteRange) -> (Arc<Block>, ByteRange) {
        let mut grant = None;
        loop {
            match self.shared.find_or_launch(rest, &mut grant) {
                Ok(found) => return found,
                Err(bytes) => grant = Some(self.shared.engine.acquire(bytes).await),
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Bytes put together from slices: copied once, or not at all where one slice is all.
#[derive(Debug)]
enum Answer {
    One(Bytes),
    Many(BytesMut),
}

impl Default for Answer {
    fn default() -> Self {
        Self::One(Bytes::new())
    }
}

impl Answer {
    /// Appends `slices`; `whole` is the length of the answer in the end.
    fn extend(&mut self, slices: Vec<Bytes>, whole: u64) {
        for slice in slices {
            match self {
                Self::One(first) if first.is_empty() => *self = Self::One(slice),
                Self::One(first) => {
                    let mut many = BytesMut::with_capacity(whole as usize);
                    many.extend_from_slice(first);
                    many.extend_from_slice(&slice);
                    *self = Self::Many(many);
                }
                Self::Many(many) => many.extend_from_slice(&slice),
            }
        }
    }

    fn finish(self) -> Bytes {
        match self {
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}
