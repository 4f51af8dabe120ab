//! A dirty file: how writes reach the spill files, and how they are read back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::state::{Piece, Running, State};
use super::{WriteEngine, WriteError};
use crate::base::caller::wait;
use crate::base::time::{micros, now};
use crate::base::{ByteRange, ETag, ObjectKey, PartNumber, SessionId, crash};
use crate::oss::PutHeaders;
use crate::spill::{Base, Filling, HeaderRecord, Lease, Phase, SessionDir, SessionRecord, Times};
use crate::upload::{Plan, Transfer};

/// How far a call that must not wait has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Done,
    /// This piece of the base must be fetched first.
    Fetch(u64),
    /// The file is being finished: wait until that has ended.
    Gated,
    /// Writes are under way: wait until none is.
    Busy,
    /// Bytes that have left the disk are needed again.
    Checkpoint,
    /// The spill files have no room for so many bytes more; what was sent must leave the disk first.
    NoRoom(u64),
    /// The disk is full.
    DiskFull,
}

/// Where the bytes of a range come from.
#[derive(Debug)]
pub enum Segment {
    /// `len` bytes of a spill file from `offset` on; past its end they are zeros.
    Local {
        file: Arc<File>,
        offset: u64,
        len: u64,
    },
    /// These bytes of the base.
    Base(ByteRange),
    Zeros(u64),
    /// These bytes of the file, which only an upload has: they cannot be had as they are.
    Away(ByteRange),
}

/// One write session.
#[derive(Debug)]
pub struct DirtyFile {
    pub(super) engine: WriteEngine,
    id: SessionId,
    pub(super) structure: Mutex<()>,
    pub(super) state: Mutex<State>,
    /// One fetch, one publication at a time.
    pub(super) fetching: tokio::sync::Mutex<()>,
    pub(super) publishing: tokio::sync::Mutex<()>,
    /// Something in the state changed that somebody may wait for.
    pub(super) changed: Notify,
    /// A publication is being tried again and again in the background.
    pub(super) retrying: AtomicBool,
    /// An upload of it is being given up: it stays in the journal until it is gone.
    pub(super) giving_up: AtomicBool,
}

/// One spill file that a write goes to.
struct Target {
    index: u64,
    /// Where the spill file begins, in the file being written.
    piece_start: u64,
    file: Arc<File>,
    /// The bytes, in the file being written.
    range: ByteRange,
    running: Option<Running>,
}

/// Where a write goes, and the room that was taken for it.
type Begun = (Vec<Target>, Lease);

impl DirtyFile {
    /// Begins a session that writes a file anew. `replaces` is the object that is known to stand at `key`.
    pub fn create(
        engine: &WriteEngine,
        key: ObjectKey,
        replaces: Option<ETag>,
        headers: HeaderRecord,
        times: Times,
    ) -> Arc<Self> {
        let plan = Plan::new(engine.0.part_size, 0);
        let file = Self::begin(engine, Some(key), plan, None, headers, times);
        file.state.lock().record.replaces = replaces;
        file
    }

    /// Begins a session that edits an object; `base` was seen in the bucket just now.
    pub fn edit(engine: &WriteEngine, key: ObjectKey, base: Base, headers: HeaderRecord, times: Times) -> Arc<Self> {
        let plan = Plan::new(engine.0.part_size, base.size);
        let file = Self::begin(engine, Some(key), plan, Some(base), headers, times);
        file.state.lock().base_seen = Some(Instant::now());
        file
    }

    /// Begins a session of a file that has lost its name: it is never published. `base` is kept for it.
    pub fn anonymous(engine: &WriteEngine, base: Option<Base>, headers: HeaderRecord, times: Times) -> Arc<Self> {
        let plan = Plan::new(engine.0.part_size, base.as_ref().map_or(0, |base| base.size));
        Self::begin(engine, None, plan, base, headers, times)
    }

    fn begin(
        engine: &WriteEngine,
        key: Option<ObjectKey>,
        plan: Plan,
        base: Option<Base>,
        headers: HeaderRecord,
        times: Times,
    ) -> Arc<Self> {
        let at = now();
        let mut record = SessionRecord::new(SessionId::generate(micros(at)), key, plan.piece_size(), base);
        (record.headers, record.times) = (headers, times);
        let file = Arc::new(Self::with_state(engine, State::new(record, plan, at)));
        engine.register(&file);
        file
    }

    pub(super) fn with_state(engine: &WriteEngine, mut state: State) -> Self {
        state.lease = Lease::new(engine.spill().gauge(), state.lease.bytes());
        Self {
            engine: engine.clone(),
            id: state.record.id,
            structure: Mutex::new(()),
            state: Mutex::new(state),
            fetching: tokio::sync::Mutex::new(()),
            publishing: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            retrying: AtomicBool::new(false),
            giving_up: AtomicBool::new(false),
        }
    }

    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Bytes in the file as it is now.
    pub fn size(&self) -> u64 {
        self.state.lock().size
    }

    /// When its bytes were last written, or what `utimensat` said since.
    pub fn mtime(&self) -> SystemTime {
        let state = self.state.lock();
        state.record.times.mtime.unwrap_or(state.last_write)
    }

    /// Where it is to be published; `None` once it is unlinked.
    pub fn key(&self) -> Option<ObjectKey> {
        self.state.lock().record.key.clone()
    }

    /// Where it is to be published, while that is still to come.
    pub fn publishable_key(&self) -> Option<ObjectKey> {
        let state = self.state.lock();
        if state.ended || state.retired.is_some() { None } else { state.record.key.clone() }
    }

    pub(super) fn is_for(&self, key: &ObjectKey) -> bool {
        self.publishable_key().as_ref() == Some(key)
    }

    /// The object that the session has become, once it is retired.
    pub fn published(&self) -> Option<super::Published> {
        self.state.lock().retired.clone()
    }

    /// The object that a file begun anew replaces.
    pub fn replaces(&self) -> Option<ETag> {
        self.state.lock().record.replaces.clone()
    }

    /// Whether bytes of the object being edited, as other clients see it, are still needed from there.
    pub fn uses_base(&self) -> bool {
        let state = self.state.lock();
        state.uses_base() && !state.record.is_base_hidden()
    }

    /// The object being edited, as other clients see it.
    pub fn base(&self) -> Option<Base> {
        self.state.lock().record.visible_base().cloned()
    }

    /// The object whose bytes [`Segment::Base`] means: that one, or what the file was completed as meanwhile, at a
    /// key of the program's own.
    pub fn content_base(&self) -> Option<Base> {
        self.state.lock().record.base.clone()
    }

    /// Writes `data` at `offset`, unless something must be waited for: then nothing was written.
    ///
    /// # Errors
    /// `Retired`, `TooLarge`, or what the local disk answered; then some of the bytes may have been written.
    pub fn write(self: &Arc<Self>, offset: u64, data: &[u8]) -> Result<Step, WriteError> {
        self.write_within(offset, data, false)
    }

    /// Writes into a session that nobody else knows yet, whatever `--spill-limit` says.
    ///
    /// # Errors
    /// As for [`Self::write`]; ENOSPC on a full disk.
    pub fn write_at_once(self: &Arc<Self>, offset: u64, data: &[u8]) -> Result<(), WriteError> {
        match self.write_within(offset, data, true)? {
            Step::Done => Ok(()),
            step => Err(WriteError::Spill { message: format!("the disk: {step:?}"), errno: Some(libc::ENOSPC) }),
        }
    }

    /// `over_limit`: whether it may take more of the disk than `--spill-limit` allows.
    fn write_within(self: &Arc<Self>, offset: u64, data: &[u8], over_limit: bool) -> Result<Step, WriteError> {
        let range = ByteRange::at(offset, data.len() as u64);
        if range.is_empty() {
            return Ok(Step::Done);
        }
        let (targets, room) = match self.begin_write(range, data, over_limit) {
            Ok(Ok(begun)) => begun,
            Ok(Err(step)) => return Ok(step),
            Err(error) if error.is_disk_full() => return Ok(Step::DiskFull),
            Err(error) => return Err(error),
        };
        let mut result = Ok(());
        let mut done = Vec::with_capacity(targets.len());
        for mut target in targets {
            if result.is_ok() {
                crash::point("spill-writing");
                result = target.write(data, range);
                crash::point("spill-written");
            }
            done.push(target);
        }
        let full = self.end_write(range, done, room, result.is_ok());
        for number in full {
            self.send_in_background(number);
        }
        if matches!(&result, Err(error) if error.raw_os_error() == Some(libc::ENOSPC)) {
            return Ok(Step::DiskFull);
        }
        result.map(|()| Step::Done).map_err(|error| {
            let dir = self.state.lock().dir.clone();
            let place = dir.map(|dir| dir.path().display().to_string()).unwrap_or_default();
            WriteError::Spill { message: format!("{place}: {error}"), errno: error.raw_os_error() }
        })
    }

    fn begin_write(&self, range: ByteRange, data: &[u8], over_limit: bool) -> Result<Result<Begun, Step>, WriteError> {
        if let Some(begun) = self.begin_at_once(range, over_limit) {
            return Ok(Ok(begun));
        }
        if let Some(step) = self.enter(range.end)? {
            return Ok(Err(step));
        }
        let targets = self.find_targets(range, data, over_limit);
        if !matches!(targets, Ok(Ok(_))) {
            self.leave();
        }
        targets
    }

    /// Begins a write to spill files that are open already, with one look at the state: nearly every write is one.
    fn begin_at_once(&self, range: ByteRange, over_limit: bool) -> Option<Begun> {
        let mut state = self.state.lock();
        // A time that was set must leave the session file first.
        let is_time_set = state.record.times.mtime.is_some();
        let may_change = matches!(state.may_change(), Ok(None)) && !state.is_closed() && !is_time_set;
        if !may_change || over_limit || range.end > state.plan.size_max() || state.is_any_away(range) {
            return None;
        }
        let room = self.engine.spill().gauge().take(state.growth(range))?;
        let targets = state.targets(range).ok()?;
        state.in_flight += 1;
        state.changed = true;
        Some((targets, room))
    }

    /// Counts a write as under way: until it leaves, the file is neither finished nor made shorter.
    fn enter(&self, end: u64) -> Result<Option<Step>, WriteError> {
        loop {
            self.reopen()?;
            self.forget_set_time()?;
            let mut state = self.state.lock();
            if let Some(step) = state.may_change()? {
                return Ok(Some(step));
            }
            if end > state.plan.size_max() {
                return Err(WriteError::TooLarge);
            }
            // Between the two looks a publication may have closed the file again, and failed.
            if !state.is_closed() {
                state.in_flight += 1;
                state.changed = true;
                return Ok(None);
            }
        }
    }

    fn leave(&self) {
        let is_last = {
            let mut state = self.state.lock();
            state.in_flight -= 1;
            state.in_flight == 0
        };
        if is_last {
            self.changed.notify_waiters();
        }
    }

    fn find_targets(&self, range: ByteRange, data: &[u8], over_limit: bool) -> Result<Result<Begun, Step>, WriteError> {
        loop {
            let missing = {
                let mut state = self.state.lock();
                if state.is_any_away(range) {
                    return Ok(Err(Step::Checkpoint));
                }
                let (gauge, growth) = (self.engine.spill().gauge(), state.growth(range));
                let room = if over_limit { Some(gauge.take_anyway(growth)) } else { gauge.take(growth) };
                let Some(room) = room else { return Ok(Err(Step::NoRoom(growth))) };
                match state.targets(range) {
                    Ok(targets) => return Ok(Ok((targets, room))),
                    Err(missing) => {
                        let fetch = missing.iter().find(|index| {
                            let remote = state.remote(**index);
                            !remote.is_empty() && remote.intersect(&range) != remote
                        });
                        if let Some(index) = fetch {
                            return Ok(Err(Step::Fetch(*index)));
                        }
                        missing
                    }
                }
            };
            for index in missing {
                self.make_local(index, range, data)?;
            }
        }
    }

    /// Opens the spill file of a piece; creates it where there is none. A piece of the base that the write
    /// replaces whole becomes local in one step: a file that is half of it would publish zeros after a crash.
    fn make_local(&self, index: u64, range: ByteRange, data: &[u8]) -> Result<(), WriteError> {
        let _structure = self.structure.lock();
        let dir = self.ensure_dir()?;
        let (replaced, piece_start) = {
            let state = self.state.lock();
            (state.remote(index), state.plan.piece_range(index).start)
        };
        if !replaced.is_empty() {
            let file = dir.begin_piece(index, Filling::Written)?;
            let bytes = &data[(replaced.start - range.start) as usize..(replaced.end - range.start) as usize];
            file.write_all_at(bytes, replaced.start - piece_start)
                .map_err(|source| crate::spill::SpillError::Io { path: dir.piece_path(index), source })?;
            crash::point("piece-replacing");
            dir.install_piece(index, Filling::Written)?;
        }
        self.engine.spare_descriptors();
        let file = Arc::new(dir.open_piece(index, true)?);
        let mut state = self.state.lock();
        state.remember_open(index, file);
        if !state.pieces.contains_key(&index) {
            state.add_piece(index, Piece { len: replaced.len(), unsynced: true, ..Piece::default() });
        }
        Ok(())
    }

    /// Makes sure that the session's folder stands: from then on its absence tells that the session has ended.
    pub fn stand(&self) -> Result<(), WriteError> {
        let _structure = self.structure.lock();
        if self.state.lock().retired.is_some() {
            return Ok(());
        }
        self.ensure_dir().map(drop)
    }

    /// The session's folder; made, with its session file, the first time. The caller holds `structure`.
    pub(super) fn ensure_dir(&self) -> Result<Arc<SessionDir>, WriteError> {
        let record = {
            let state = self.state.lock();
            match &state.dir {
                Some(dir) => return Ok(dir.clone()),
                None => state.record.clone(),
            }
        };
        let dir = Arc::new(self.engine.0.spill.create(&record)?);
        self.state.lock().dir = Some(dir.clone());
        Ok(dir)
    }

    /// Takes note of what was written; tells which parts became full.
    fn end_write(&self, range: ByteRange, targets: Vec<Target>, room: Lease, ok: bool) -> Vec<PartNumber> {
        let at = now();
        let mut state = self.state.lock();
        let mut grown = 0;
        for target in targets {
            let Some(piece) = state.pieces.get_mut(&target.index) else { continue };
            piece.end_write(target.running);
            piece.unsynced = true;
            let before = piece.len;
            piece.len = if ok {
                before.max(target.range.end - target.piece_start)
            } else {
                // Part of it may have been written. What lies past the old end goes: a full disk needs the room.
                if piece.writers == 0
                    && let Err(error) = target.file.set_len(before)
                {
                    log::debug!("a spill file cannot be shortened: {error}");
                }
                target.file.metadata().map_or(before, |meta| meta.len().max(before))
            };
            grown += piece.len - before;
        }
        state.lease.settle(room, grown);
        state.touch(range);
        let mut full = Vec::new();
        if ok {
            state.size = state.size.max(range.end);
            full = state.move_cursor(range);
            if !full.is_empty() && state.transfer.is_none() {
                state.hidden = self.engine.is_spill_small(state.record.piece_size);
            }
        }
        (state.last_write, state.last_change) = (at, at);
        state.record.times.mtime = None;
        state.in_flight -= 1;
        let is_last = state.in_flight == 0;
        drop(state);
        if is_last {
            self.changed.notify_waiters();
        }
        full
    }

    /// Sends a full part while the writing goes on. What fails here is sent again when the file is finished.
    pub(super) fn send_in_background(self: &Arc<Self>, number: PartNumber) {
        let file = self.clone();
        crash::point("part-queued");
        self.engine.0.runtime.spawn(async move {
            if let Err(error) = file.send_part(number).await {
                log::warn!("part {number} of {}: {error}; it is sent again at the end", file.name());
            }
        });
    }

    /// What to call it in a log line.
    pub fn name(&self) -> String {
        self.state.lock().record.key.as_ref().map_or_else(|| format!("unlinked file {}", self.id), ToString::to_string)
    }

    /// Where the bytes of `range` come from, in order; cut at the end of the file.
    ///
    /// # Errors
    /// A spill file cannot be opened, or bytes that have left the disk cannot be had back.
    pub async fn segments(self: &Arc<Self>, range: ByteRange) -> Result<Vec<Segment>, WriteError> {
        loop {
            let segments = self.segments_here(range)?;
            if !segments.iter().any(|segment| matches!(segment, Segment::Away(_))) {
                return Ok(segments);
            }
            self.checkpoint().await?;
        }
    }

    /// The same, without waiting: what has left the disk is told as such.
    pub(super) fn segments_here(&self, range: ByteRange) -> Result<Vec<Segment>, WriteError> {
        let state = self.state.lock();
        let range = range.intersect(&ByteRange::new(0, state.size));
        let mut segments = Vec::new();
        for index in state.plan.pieces_in(range) {
            let piece = state.plan.piece_range(index);
            let want = piece.intersect(&range);
            let remote = state.remote(index);
            if state.pieces.contains_key(&index) {
                let file = match (state.open_piece(index), &state.dir) {
                    (Some(file), _) => file,
                    (None, Some(dir)) => Arc::new(dir.open_piece(index, false)?),
                    (None, None) => continue,
                };
                segments.push(Segment::Local { file, offset: want.start - piece.start, len: want.len() });
                continue;
            }
            if state.is_away(index) {
                segments.push(Segment::Away(want));
                continue;
            }
            let from_base = want.intersect(&remote);
            if !from_base.is_empty() {
                segments.push(Segment::Base(from_base));
            }
            if from_base.len() < want.len() {
                let zeros = want.len() - from_base.len();
                match segments.last_mut() {
                    Some(Segment::Zeros(len)) => *len += zeros,
                    _ => segments.push(Segment::Zeros(zeros)),
                }
            }
        }
        Ok(segments)
    }

    /// Waits until `ready` says so; it is asked again after every change of the state.
    pub(super) async fn wait_until<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = ready(&mut self.state.lock()) {
                return value;
            }
            changed.await;
        }
    }

    /// Writes like [`Self::write`], waiting for whatever must be waited for.
    pub async fn write_waiting(self: &Arc<Self>, offset: u64, data: &[u8]) -> Result<(), WriteError> {
        let mut over_limit = false;
        loop {
            let step = self.write_within(offset, data, over_limit)?;
            over_limit = false;
            match step {
                Step::NoRoom(bytes) => over_limit = !wait(self.engine.make_room(bytes)).await?,
                Step::DiskFull => wait(self.engine.wait_for_disk()).await??,
                step if self.pass(step).await? => return Ok(()),
                _ => {}
            }
        }
    }

    /// Does what `step` asks for; whether there is nothing left to do.
    pub(super) async fn pass(self: &Arc<Self>, step: Step) -> Result<bool, WriteError> {
        match step {
            Step::Done => return Ok(true),
            Step::Fetch(index) => self.fetch_piece(index).await?,
            Step::Busy => wait(self.wait_until(|state| (state.in_flight == 0).then_some(()))).await?,
            Step::Gated => wait(self.wait_until(|state| (!state.is_held_back()).then_some(()))).await?,
            Step::Checkpoint => self.checkpoint().await?,
            Step::NoRoom(bytes) => drop(wait(self.engine.make_room(bytes)).await?),
            Step::DiskFull => wait(self.engine.wait_for_disk()).await??,
        }
        Ok(false)
    }
}

impl Target {
    fn write(&mut self, data: &[u8], whole: ByteRange) -> io::Result<()> {
        let bytes = &data[(self.range.start - whole.start) as usize..(self.range.end - whole.start) as usize];
        let written = self.file.write_all_at(bytes, self.range.start - self.piece_start);
        // What failed has changed nothing before its own start: a sum up to there still holds.
        if let (Ok(()), Some(running)) = (&written, &mut self.running) {
            running.crc.update(bytes);
            running.upto += bytes.len() as u64;
        }
        written
    }
}

impl State {
    /// `Some` where a change must wait, an error where the session has ended.
    pub(super) fn may_change(&self) -> Result<Option<Step>, WriteError> {
        if self.retired.is_some() || self.ended {
            return Err(WriteError::Retired);
        }
        Ok(self.is_held_back().then_some(Step::Gated))
    }

    /// Whether no change may begin: it is being finished, or bytes that have left the disk may be somewhere else than the
    /// session file says, and an earlier process has not been asked for yet.
    fn is_held_back(&self) -> bool {
        self.gated || (self.resuming && !self.away.is_empty())
    }

    /// The spill files that a write goes to, or the pieces whose spill files are not open.
    fn targets(&mut self, range: ByteRange) -> Result<Vec<Target>, Vec<u64>> {
        let indices = self.plan.pieces_in(range);
        let is_ready = |index: &u64| self.pieces.contains_key(index) && self.open_piece(*index).is_some();
        let missing: Vec<u64> = indices.clone().filter(|index| !is_ready(index)).collect();
        if !missing.is_empty() {
            return Err(missing);
        }
        let mut targets = Vec::with_capacity(1);
        for index in indices {
            let piece_range = self.plan.piece_range(index);
            let part = piece_range.intersect(&range);
            let within = part.start - piece_range.start;
            let file = self.open_piece(index).expect("seen open above, under the same lock");
            let piece = self.pieces.get_mut(&index).expect("seen above, under the same lock");
            let running = match piece.begin_write() {
                _ if within == 0 => Some(Running::default()),
                Some(running) if running.upto == within => Some(running),
                _ => None,
            };
            targets.push(Target { index, piece_start: piece_range.start, file, range: part, running });
        }
        Ok(targets)
    }

    /// Follows the position of the writer; tells the full parts that it has left.
    fn move_cursor(&mut self, range: ByteRange) -> Vec<PartNumber> {
        let (first, last) = (self.plan.part_at(range.start), self.plan.part_at(range.end - 1));
        let passed = [self.cursor, first].into_iter().flatten().filter(|number| Some(*number) != last);
        let mut full: Vec<PartNumber> = passed.filter(|number| self.is_full(*number)).collect();
        full.dedup();
        self.cursor = last;
        full
    }

    /// The transfer of this session; begun, in memory, the first time.
    pub(super) fn transfer(&mut self, engine: &WriteEngine) -> Option<Arc<Transfer>> {
        if self.transfer.is_none() {
            let key = match self.hidden {
                true => engine.hidden_key(self.record.id, self.record.checkpoints)?,
                false => self.record.key.clone()?,
            };
            let forbid_overwrite = self.must_be_new(&key);
            let headers = PutHeaders { forbid_overwrite, ..self.multipart_headers() };
            let upload = engine.0.upload.clone();
            self.transfer = Some(Arc::new(Transfer::new(upload, self.record.id, key, headers, self.record.piece_size)));
        }
        self.transfer.clone()
    }

    /// Whether what is completed at `key` may only be completed where nothing stands there.
    pub(super) fn must_be_new(&self, key: &ObjectKey) -> bool {
        self.record.if_taken.is_some() && !self.record.owns(key)
    }

    /// Whether the session file still describes the file as it was closed.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.record.phase, Phase::Closing | Phase::Completing)
    }
}
