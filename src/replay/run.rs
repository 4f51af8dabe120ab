//! Gathers the evidence of each session, and does what the table says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use super::decide::{Decision, Evidence, Mode, Record, Remote, decide};
use super::recover::give_up_upload;
use crate::base::time::{file_stamp, now};
use crate::base::{ObjectKey, SessionId, crash};
use crate::oss::{self, ErrorKind, ObjectMeta};
use crate::spill::{Found, Lease, Phase, RecordError, SessionDir, SpillError};
use crate::upload::Transfer;
use crate::write::{CONFLICT, DirtyFile, IfTaken, Restored, WriteEngine, WriteError};

/// The pause before a service that did not answer is asked again, doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Keys whose sessions are replayed at a time.
const KEYS_AT_ONCE: usize = 16;
/// Names tried for a conflict copy before the clock has moved on.
const CONFLICT_NAMES_MAX: u32 = 100;

/// The state of a mount cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("session {0} was written by a newer version of the program; nothing was touched")]
    Newer(String),
    #[error(transparent)]
    Spill(#[from] SpillError),
}

/// What is known of a session whose mount has outlived the process that served it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Somebody has the file open: it is written on, and published when it is closed.
    Open,
    /// It was closed: it is published, whatever is asked for of what a crash leaves behind.
    Released,
}

/// The sessions that were found, sorted out as far as can be without the service.
#[derive(Debug)]
pub struct Replay {
    engine: WriteEngine,
    mode: Mode,
    /// To be published: taken up as live sessions already, so that look-ups find them.
    pending: Vec<(Arc<DirtyFile>, Restored)>,
    /// To be published by those who have them open.
    open: Vec<(Arc<DirtyFile>, Restored)>,
    /// Those among `pending` that were acknowledged by a process before this one, of the same mount.
    released: BTreeSet<SessionId>,
    /// Those that are over, and of which the journal knows an upload still.
    gone: Vec<SessionId>,
    /// Uploads of sessions that had begun another one before they were aborted.
    outdated: Vec<Transfer>,
}

impl Replay {
    /// Looks at every session on disk. Those that are to be published are live sessions when this returns.
    ///
    /// # Errors
    /// `Newer`: then nothing was changed. Or the disk cannot be read.
    pub fn prepare(engine: &WriteEngine, mode: Mode) -> Result<Self, ReplayError> {
        Self::prepare_carried(engine, mode, &BTreeMap::new())
    }

    /// The same for a mount that stands: those sessions that are `carried` are its own.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn prepare_carried(
        engine: &WriteEngine,
        mode: Mode,
        carried: &BTreeMap<SessionId, Carried>,
    ) -> Result<Self, ReplayError> {
        let found = engine.spill().scan()?;
        if let Some(newer) = found.iter().find(|found| matches!(found.record, Err(RecordError::Newer(_)))) {
            return Err(ReplayError::Newer(newer.dir.id().to_string()));
        }
        let (pending, open, released) = Default::default();
        let superseded = superseded(&found);
        let gone = gone_sessions(engine, &found, &superseded);
        let outdated = engine.upload().outdated();
        let mut replay = Self { engine: engine.clone(), mode, pending, open, released, gone, outdated };
        for session in found {
            if superseded.contains(&session.dir.id()) {
                // Its end had not reached the disk.
                if let Err(error) = session.dir.discard() {
                    log::error!("session {}: {error}", session.dir.id());
                }
                continue;
            }
            let carried = carried.get(&session.dir.id()).copied();
            replay.sort_out(session, carried);
        }
        crash::point("replay-prepared");
        Ok(replay)
    }

    /// Sessions that are to be published.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The ids of these.
    pub fn sessions(&self) -> BTreeSet<SessionId> {
        self.pending.iter().map(|(file, _)| file.id()).collect()
    }

    /// The live sessions of a mount that stands.
    pub fn carried(&self) -> BTreeMap<SessionId, Arc<DirtyFile>> {
        self.pending.iter().chain(&self.open).map(|(file, _)| (file.id(), file.clone())).collect()
    }

    fn sort_out(&mut self, found: Found, carried: Option<Carried>) {
        if !matches!(found.record, Ok(Some(_))) && found.dir.is_unbegun().unwrap_or(false) {
            if let Err(error) = found.dir.discard() {
                log::error!("session {}: {error}", found.dir.id());
            }
            return;
        }
        let record = match found.record {
            Ok(Some(record)) => record,
            Ok(None) => return quarantine(&found.dir, "it has no session file"),
            Err(error) => return quarantine(&found.dir, &error.to_string()),
        };
        let kind = Record::of(&record.phase, record.key.is_some());
        let id = found.dir.id();
        match carried.filter(|_| kind != Record::Kept && record.phase != Phase::Over) {
            Some(Carried::Released) if kind == Record::Promised => {
                self.released.insert(id);
                return self.take_up(found.dir, record, false);
            }
            // Not closed, and open nowhere: the request that was to open it comes again.
            Some(Carried::Released) if kind == Record::Open => return self.take_up(found.dir, record, true),
            Some(Carried::Open) => return self.take_up(found.dir, record, true),
            _ => {}
        }
        let known = Evidence { record: kind, intact: true, whole: true, remote: Remote::NotAsked, mode: self.mode };
        match decide(&known) {
            Decision::Discard => {
                // Whoever was to abort its upload may have died before that.
                self.gone.push(id);
                if let Err(error) = self.engine.discard_found(found.dir, record) {
                    log::error!("session {id}: {error}");
                }
            }
            Decision::Look => self.take_up(found.dir, record, false),
            decision => {
                log::info!("session {id} of {:?}: {decision:?}", record.key);
                let bytes = found.dir.pieces().map_or(0, |pieces| pieces.iter().map(|(_, len, _)| len).sum());
                Lease::new(self.engine.spill().gauge(), bytes).leave_behind();
            }
        }
    }

    fn take_up(&mut self, dir: SessionDir, record: crate::spill::SessionRecord, is_open: bool) {
        let id = dir.id();
        match Restored::load(dir, record) {
            Ok(restored) => {
                let file = DirtyFile::restore(&self.engine, &restored);
                if is_open {
                    file.hold_publication();
                    self.open.push((file, restored));
                } else {
                    // Who comes first between the look and the publication is not replaced: the next look finds it.
                    if !self.released.contains(&id) && file.base().is_none() && file.replaces().is_none() {
                        file.expect_new(IfTaken::Fail);
                    }
                    self.pending.push((file, restored));
                }
            }
            Err(error) => log::error!("session {id} cannot be read and is left where it is: {error}"),
        }
    }

    /// Publishes what is pending, several sessions at a time, those of one key in their order; what fails is tried
    /// again after the others.
    pub async fn run(self) {
        for (file, restored) in self.open {
            let engine = self.engine.clone();
            self.engine.runtime().spawn(async move { resume_open(&engine, &file, restored).await });
        }
        let (engine, mode, released) = (&self.engine, self.mode, &self.released);
        for session in &self.gone {
            give_up_upload(engine.upload(), *session).await;
        }
        for transfer in &self.outdated {
            transfer.give_up().await;
        }
        let mut pending = self.pending;
        let mut pause = PAUSE.0;
        loop {
            let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for session in pending {
                by_key.entry(session.0.key()).or_default().push(session);
            }
            let groups = stream::iter(by_key.into_values()).map(|group| replay_in_order(engine, mode, released, group));
            let left: Vec<_> = groups.buffer_unordered(KEYS_AT_ONCE).concat().await;
            if left.is_empty() {
                return;
            }
            pending = left;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.engine.upload().client().recovered() => {}
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

/// The sessions whose name another one was given before they were sent.
fn superseded(found: &[Found]) -> BTreeSet<SessionId> {
    let records = || found.iter().filter_map(|found| found.record.as_ref().ok()?.as_ref());
    let keys: BTreeMap<SessionId, &ObjectKey> =
        records().filter_map(|record| Some((record.id, record.key.as_ref()?))).collect();
    let over = records().filter_map(|record| Some((record.over?, record.key.as_ref()?)));
    over.filter(|(id, key)| keys.get(id) == Some(key)).map(|(id, _)| id).collect()
}

/// The sessions whose folders are gone, and whose uploads may not be.
fn gone_sessions(engine: &WriteEngine, found: &[Found], superseded: &BTreeSet<SessionId>) -> Vec<SessionId> {
    let known = engine.upload().journal().sessions().unwrap_or_else(|error| {
        log::warn!("{error}");
        Vec::new()
    });
    let stands = |session: &SessionId| found.iter().any(|found| found.dir.id() == *session);
    known.into_iter().filter(|session| superseded.contains(session) || !stands(session)).collect()
}

/// Takes up what was sent of a file that is still open, and has its close wait until then. A close that was cut off may
/// have been done: then there is nothing left of the session.
async fn resume_open(engine: &WriteEngine, file: &Arc<DirtyFile>, restored: Restored) {
    let restored_failed = restored.record.error.is_some() && restored.record.phase.is_promised();
    let resumed = async {
        let Some(key) = file.publishable_key() else { return Ok(()) };
        if matches!(restored.record.phase, Phase::Closing | Phase::Completing) {
            let (remote, found) = look(engine, &key, file, &restored).await?;
            if let Some(found) = found.filter(|_| remote == Remote::Published && !file.is_changed()) {
                return file.conclude_found(&found).await;
            }
        }
        take_up_parts(engine, file, &restored).await.map(drop)
    };
    if let Err(error) = resumed.await {
        log::warn!("{}: {error}; what was sent of it is sent again", file.name());
    }
    file.allow_publication();
    if restored_failed {
        // Its close has failed before, and was told that it goes on in the background.
        file.retry_in_background(PAUSE.0);
    }
}

/// Replays the sessions of one key; what is left is to be tried again.
async fn replay_in_order(
    engine: &WriteEngine,
    mode: Mode,
    released: &BTreeSet<SessionId>,
    sessions: Vec<(Arc<DirtyFile>, Restored)>,
) -> Vec<(Arc<DirtyFile>, Restored)> {
    let mut left = Vec::new();
    for (file, restored) in sessions {
        let mode = if released.contains(&file.id()) { Mode::Publish } else { mode };
        if !left.is_empty() {
            left.push((file, restored));
        } else if let Err(error) = replay_one(engine, mode, &file, &restored).await {
            log::warn!("{}: replay: {error}; it is tried again", file.name());
            left.push((file, restored));
        }
    }
    left
}

/// Sets a session aside, with a note that says why.
fn quarantine(dir: &SessionDir, reason: &str) {
    log::error!("session {} is set aside in quarantine/: {reason}", dir.id());
    if let Err(error) = fs::write(dir.path().join("reason"), reason) {
        log::warn!("session {}: its note cannot be written: {error}", dir.id());
    }
    if let Err(error) = dir.quarantine() {
        log::error!("session {}: {error}", dir.id());
    }
}

async fn replay_one(
    engine: &WriteEngine,
    mode: Mode,
    file: &Arc<DirtyFile>,
    restored: &Restored,
) -> Result<(), WriteError> {
    let Some(key) = file.publishable_key() else { return Ok(()) };
    let before = engine.upload().journal().upload_of(file.id()).ok().flatten();
    let before = before.and_then(|(known, _)| Transfer::resume(engine.upload().clone(), file.id(), &known, false));
    if file.is_changed() {
        return leave_to_its_writer(file, before).await;
    }
    let record = &restored.record;
    let damage = restored.damage()?;
    let whole = restored.is_whole();
    let (remote, found) =
        if damage.is_some() { (Remote::NotAsked, None) } else { look(engine, &key, file, restored).await? };
    crash::point("replay-looked");
    if file.is_changed() {
        return leave_to_its_writer(file, before).await;
    }
    let kind = Record::of(&record.phase, record.key.is_some());
    match decide(&Evidence { record: kind, intact: damage.is_none(), whole, remote, mode }) {
        Decision::Finish => finish(engine, file, restored).await,
        Decision::Beside => {
            let name = conflict_name(engine, &key).await?;
            log::warn!("{key}: another client changed it; what was written here is published as {name}");
            file.stand_alone(name).await?;
            crash::point("replay-beside");
            file.resume_held(restored).await?;
            file.publish().await.map(drop)
        }
        Decision::AlreadyDone => {
            log::info!("{key}: is in the bucket already");
            crash::point("replay-done");
            match &found {
                Some(found) => file.conclude_found(found).await,
                None => Ok(()),
            }
        }
        Decision::KeepConflict => file.keep(CONFLICT).await,
        Decision::Quarantine => {
            let reason = damage.unwrap_or_default();
            if file.set_aside(&reason).await {
                quarantine(&restored.dir, &reason);
            }
            Ok(())
        }
        decision => {
            log::error!("{key}: {decision:?} is no decision for a session that was to be published");
            Ok(())
        }
    }
}

/// The same where nothing has been taken up yet of the upload that was begun before: the writer begins another.
async fn leave_to_its_writer(file: &DirtyFile, before: Option<Transfer>) -> Result<(), WriteError> {
    if let Some(before) = before.filter(|before| !file.sends_to(before)) {
        before.give_up().await;
    }
    left_to_its_writer(file)
}

/// Somebody writes to it already: what is known of it here holds no more, and its close publishes it.
fn left_to_its_writer(file: &DirtyFile) -> Result<(), WriteError> {
    log::info!("{}: is being written again; it is published when it is closed", file.name());
    Ok(())
}

async fn finish(engine: &WriteEngine, file: &Arc<DirtyFile>, restored: &Restored) -> Result<(), WriteError> {
    let taken_up = match take_up_parts(engine, file, restored).await {
        Err(error @ WriteError::Lost) => return file.keep(&error.to_string()).await,
        other => other?,
    };
    if file.is_changed() {
        return left_to_its_writer(file);
    }
    log::info!("{}: replay: {taken_up} parts are on the service already", file.name());
    crash::point("replay-taken-up");
    match file.publish().await {
        Err(WriteError::Stale) => file.keep(CONFLICT).await,
        other => other.map(drop),
    }
}

/// Takes up the upload that the session file or the journal knows, if they do; how many parts of it need not be sent
/// again.
///
/// # Errors
/// `Lost` where parts that were dropped from the spill are no more on the service.
pub(super) async fn take_up_parts(
    engine: &WriteEngine,
    file: &Arc<DirtyFile>,
    restored: &Restored,
) -> Result<usize, WriteError> {
    if restored.record.upload.is_some() {
        return file.resume_held(restored).await;
    }
    match engine.upload().journal().upload_of(file.id()) {
        Ok(Some(known)) => file.resume_upload(restored, &known).await,
        Ok(None) => Ok(0),
        Err(error) => {
            log::warn!("{}: {error}; all of it is sent again", file.name());
            Ok(0)
        }
    }
}

/// What stands at the key, against what the session knows.
pub(super) async fn look(
    engine: &WriteEngine,
    key: &ObjectKey,
    file: &DirtyFile,
    restored: &Restored,
) -> Result<(Remote, Option<ObjectMeta>), WriteError> {
    // The file knows better than its session file as it was read: a directory above may have been moved since.
    let began_from = file.base().map(|base| base.etag).or_else(|| file.replaces());
    let meta = match engine.upload().client().head_object(key).await {
        Ok(meta) => Some(meta),
        Err(error) if error.kind == ErrorKind::NoSuchKey => None,
        Err(error) => return Err(error.into()),
    };
    let remote = match &meta {
        // An object that equals the file is the file: nothing can be gained by sending it again.
        Some(meta) if meta.size == restored.size() && meta.crc64.is_some() && meta.crc64 == restored.final_sum()? => {
            Remote::Published
        }
        Some(meta) if began_from.as_ref() == Some(&meta.etag) => Remote::AsBefore,
        Some(_) => Remote::Changed,
        None if file.base().is_some() => Remote::Changed,
        // What was to be replaced is gone: the name is free.
        None => Remote::AsBefore,
    };
    Ok((remote, meta))
}

/// A free name beside the object.
pub(super) async fn conflict_name(engine: &WriteEngine, key: &ObjectKey) -> Result<ObjectKey, WriteError> {
    let stamp = file_stamp(now());
    for attempt in 0..CONFLICT_NAMES_MAX {
        let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
        let Ok(name) = ObjectKey::parse(&format!("{key}.conflict-{stamp}{suffix}")) else { break };
        match engine.upload().client().head_object(&name).await {
            Ok(_) => {}
            Err(error) if error.kind == ErrorKind::NoSuchKey => return Ok(name),
            Err(error) => return Err(error.into()),
        }
    }
    Err(oss::Error::local(
        oss::Operation::HeadObject,
        key.as_str(),
        ErrorKind::InvalidArgument,
        oss::Outcome::NotApplied,
        "no name for a conflict copy beside it",
    )
    .into())
}
