//! What the handles, reads and fetches of one object share: its pin, its blocks, and who wants which of them.
//!
//! One lock, never held across an await; it is taken before that of a block, never after. The surprising part: blocks
//! are kept only for a reason (a read in progress, a handle near by), and are looked over whenever a reason ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::ReadError;
use super::block::{Block, Fill};
use super::blocks::Blocks;
use super::engine::Engine;
use super::fetch::{Fetch, Incoming};
use super::tally::{Tally, Verdict};
use super::window::{BEHIND, History, Limits};
use crate::base::{ByteRange, ETag, Grant, ObjectKey};
use crate::oss::ObjectMeta;

/// Where the object is now and which version of it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pin {
    pub key: ObjectKey,
    pub etag: ETag,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub engine: Arc<Engine>,
    pub size: u64,
    pub crc64: Option<u64>,
    /// The engine's tick at the last read.
    used: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pin: Pin,
    blocks: Blocks,
    tally: Tally,
    tracks: HashMap<u64, Track>,
    /// The reads in progress: what each still needs.
    visits: HashMap<u64, ByteRange>,
    visits_begun: u64,
    /// What the opening request brings, until the first handle reads.
    unclaimed: ByteRange,
    /// Grows whenever all blocks are thrown away because they are corrupt.
    generation: u64,
}

/// One handle.
#[derive(Debug, Default)]
struct Track {
    history: History,
    /// Some bytes were handed out.
    handed: bool,
    /// The object was fetched again before any were.
    refetched: bool,
    /// Bytes that were handed out belong to an object that does not have its CRC64.
    poisoned: bool,
}

impl State {
    /// The ranges that reads in progress need.
    fn pins(&self) -> Vec<ByteRange> {
        self.visits.values().copied().collect()
    }

    fn trim(&mut self, behind: u64) -> u64 {
        let mut keeps = self.pins();
        keeps.extend(self.tracks.values().flat_map(|track| track.history.keeps(behind)));
        keeps.push(self.unclaimed);
        self.blocks.trim(&keeps)
    }

    /// All that was received is in doubt.
    fn discard(&mut self) {
        self.generation += 1;
        self.blocks.clear();
        self.tally.clear();
        for track in self.tracks.values_mut() {
            track.poisoned |= track.handed || track.refetched;
            track.refetched = true;
        }
    }
}

impl Shared {
    pub(super) fn new(engine: Arc<Engine>, key: ObjectKey, meta: &ObjectMeta) -> Self {
        let state = State {
            pin: Pin { key, etag: meta.etag.clone() },
            blocks: Blocks::default(),
            tally: Tally::default(),
            tracks: HashMap::new(),
            visits: HashMap::new(),
            visits_begun: 0,
            unclaimed: ByteRange::new(0, 0),
            generation: 0,
        };
        let used = AtomicU64::new(engine.tick());
        Self { engine, size: meta.size, crc64: meta.crc64, used, state: Mutex::new(state) }
    }

    pub(super) fn pin(&self) -> Pin {
        self.state.lock().pin.clone()
    }

    pub(super) fn key(&self) -> ObjectKey {
        self.state.lock().pin.key.clone()
    }

    pub(super) fn rekey(&self, key: ObjectKey, etag: ETag) {
        self.state.lock().pin = Pin { key, etag };
    }

    /// When it was last read, in ticks of the engine.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes in the body of the request that opened the object, unless memory for it would have to be waited for.
    pub(super) fn adopt(self: &Arc<Self>, range: ByteRange, body: Incoming, worker: OwnedSemaphorePermit) {
        let Some(grant) = self.engine.options.memory.acquire(range.len()).now_or_never() else { return };
        let mut state = self.state.lock();
        state.unclaimed = range;
        self.launch(&mut state, range, grant, Some(worker), Some(body));
    }

    /// Takes note of a read by the handle `track`: fetches what it needs and what comes after, as far as there is
    /// memory without waiting.
    pub(super) fn arrive(self: &Arc<Self>, track: u64, read: ByteRange) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.blocks.drop_failed();
        let there = state.blocks.coverage();
        let limits = self.limits();
        let pieces = state.tracks.entry(track).or_default().history.demand(read, &there, &limits);
        state.unclaimed = ByteRange::new(0, 0);
        state.trim(self.behind());
        for piece in pieces {
            let Some(grant) = self.engine.options.memory.try_acquire(piece.len()) else { break };
            self.launch(state, piece, grant, None, None);
        }
        self.fetch_ahead(state, track);
    }

    fn fetch_ahead(self: &Arc<Self>, state: &mut State, track: u64) {
        let there = state.blocks.coverage();
        let Some(history) = state.tracks.get(&track).map(|track| &track.history) else { return };
        let window = history.next_window(&there, &self.limits());
        let mut launched = false;
        for piece in &window.pieces {
            let Some(worker) = self.engine.spare_worker() else { break };
            let Some(grant) = self.engine.options.memory.try_acquire(piece.len()) else { break };
            self.launch(state, *piece, grant, Some(worker), None);
            launched = true;
        }
        if launched && let Some(track) = state.tracks.get_mut(&track) {
            track.history.advance(&window);
        }
    }

    /// The block with the first byte of `rest`, and what can be read from it; fetches it (up to the end of `rest`) if
    /// it is not there.
    ///
    /// For that it takes `grant`, or memory that is free; fails with the bytes needed if there is neither.
    pub(super) fn find_or_launch(
        self: &Arc<Self>,
        rest: ByteRange,
        grant: &mut Option<Grant>,
    ) -> Result<(Arc<Block>, ByteRange), u64> {
        let mut state = self.state.lock();
        state.blocks.drop_failed();
        if let Some(found) = state.blocks.find(rest.start) {
            return Ok(found);
        }
        let gap = state.blocks.coverage().gaps(rest).first().copied().unwrap_or(rest);
        let piece = ByteRange::at(gap.start, self.engine.piece_max()).intersect(&gap);
        let grant = grant.take().filter(|grant| grant.bytes() >= piece.len());
        let mut grant = grant.or_else(|| self.engine.options.memory.try_acquire(piece.len())).ok_or(piece.len())?;
        grant.shrink(piece.len());
        Ok((self.launch(&mut state, piece, grant, None, None), piece))
    }

    fn launch(
        self: &Arc<Self>,
        state: &mut State,
        range: ByteRange,
        grant: Grant,
        worker: Option<OwnedSemaphorePermit>,
        body: Option<Incoming>,
    ) -> Arc<Block> {
        let fill = Fill::new(range, grant);
        let fetch = Fetch::new(Arc::clone(self), Arc::clone(&fill));
        let task = self.engine.runtime.spawn(fetch.run(worker, body));
        let block = Arc::new(Block::new(fill, task.abort_handle()));
        state.blocks.insert(Arc::clone(&block));
        block
    }

    fn limits(&self) -> Limits {
        let options = &self.engine.options;
        let memory_free = options.memory.available();
        Limits { size: self.size, chunk: options.chunk, first: options.first, memory_free }
    }

    /// History goes first when memory is short.
    fn behind(&self) -> u64 {
        let options = &self.engine.options;
        if options.memory.available() < options.chunk { 0 } else { BEHIND }
    }

    /// Adds the sum of a block that was received; false if the object turns out to be corrupt.
    /// `request_id` is that of its last request.
    pub(super) fn record(&self, range: ByteRange, crc: u64, request_id: Option<&str>) -> bool {
        let Some(expected) = self.crc64 else { return true };
        let mut state = self.state.lock();
        let verdict = state.tally.add(range, crc, ByteRange::new(0, self.size), expected);
        if verdict == Verdict::Mismatch {
            let request = request_id.unwrap_or("unknown");
            let key = &state.pin.key;
            log::error!("{key}: the {} bytes received do not have the CRC64 {expected} (request {request})", self.size);
            state.discard();
        }
        verdict != Verdict::Mismatch
    }

    /// Begins a read; `track` is `None` where no handle is involved.
    pub(super) fn visit(self: &Arc<Self>, track: Option<u64>, range: ByteRange) -> Visit<'_> {
        self.used.store(self.engine.tick(), Ordering::Relaxed);
        let mut state = self.state.lock();
        state.visits_begun += 1;
        let id = state.visits_begun;
        state.visits.insert(id, range);
        let visit = Visit { shared: self, id, track, range, generation: state.generation, refetched: false };
        drop(state);
        if let Some(track) = track {
            self.arrive(track, range);
        }
        visit
    }

    /// The handle `track` is closed or reads another object.
    pub(super) fn forget(&self, track: u64) {
        let mut state = self.state.lock();
        state.tracks.remove(&track);
        state.trim(self.behind());
    }

    /// Frees what lies behind the handles. Returns the bytes freed.
    pub(super) fn free_history(&self) -> u64 {
        self.state.lock().trim(0)
    }

    /// Frees what no read waits for, until `bytes` bytes are free. Returns the bytes freed.
    pub(super) fn evict(&self, bytes: u64) -> u64 {
        let mut state = self.state.lock();
        let pins = state.pins();
        state.blocks.evict(bytes, &pins)
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.state.lock().blocks.held()
    }

    /// Frees everything: no more reads will come.
    pub(super) fn close(&self) {
        self.state.lock().blocks.clear();
    }
}

/// A read in progress: what it needs is kept until it ends.
pub(super) struct Visit<'a> {
    shared: &'a Arc<Shared>,
    id: u64,
    track: Option<u64>,
    pub range: ByteRange,
    generation: u64,
    refetched: bool,
}

impl Visit<'_> {
    /// What lies before `offset` is not needed any more.
    pub(super) fn advance(&self, offset: u64) {
        if let Some(rest) = self.shared.state.lock().visits.get_mut(&self.id) {
            *rest = ByteRange::new(offset.min(rest.end), rest.end);
        }
    }

    /// Judges what the read has brought; `None` if it must be done again, the object having been thrown away.
    pub(super) fn settle(&mut self, outcome: Result<Bytes, ReadError>) -> Option<Result<Bytes, ReadError>> {
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        let again = std::mem::replace(&mut self.generation, state.generation) != state.generation;
        let track = self.track.and_then(|track| state.tracks.get_mut(&track));
        let poisoned = track.as_ref().map_or(again && self.refetched, |track| track.poisoned);
        if poisoned {
            return Some(Err(ReadError::Corrupt));
        }
        if again {
            self.refetched = true;
            state.visits.insert(self.id, self.range);
            return None;
        }
        if let Some(track) = track {
            track.handed |= outcome.is_ok();
        }
        Some(outcome)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.visits.remove(&self.id);
        state.trim(self.shared.behind());
        drop(state);
        self.shared.engine.relieve();
    }
}
