//! What `recover` does with kept sessions: in a mount that serves their folder, or on a folder that nobody serves.
//!
//! Without a mount the folder's lock is held while anything is done, so that no mount comes up in the middle.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Worker, connect, journal, refusal};
use crate::base::limits::MIB;
use crate::base::time::rfc3339;
use crate::base::{ObjectKey, SessionId};
use crate::config::ConnectionConfig;
use crate::control::protocol::Expiring;
use crate::control::{Failure, Response};
use crate::oss::Client;
use crate::replay::{self, Exported, RecoverError};
use crate::spill::{Found, Layout, LockedFolder, SpillStore, read_only_scan};
use crate::upload::{UploadEngine, UploadOptions};
use crate::write::WriteEngine;

/// How often is looked for sessions whose time is over.
const EXPIRY_LOOK: Duration = Duration::from_secs(60 * 60);
/// Spill files of a session bear their own size; this one is for new ones, of which there are none here.
const PART_SIZE: u64 = 8 * MIB;
const UPLOAD_WORKERS: usize = 16;

/// What is to be done with a kept session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoverAction {
    /// At its name, or at this key.
    Publish(Option<String>),
    /// To this file, which must not be there yet.
    Export(PathBuf),
    Discard,
}

/// What failed, in the words of an error message: why, and how to mend it.
pub type RecoverFailure = (String, String);

fn words(error: &RecoverError) -> RecoverFailure {
    let text = error.to_string();
    match text.split_once("; ") {
        Some((why, mend)) => (why.to_owned(), mend.to_owned()),
        None => (text, String::new()),
    }
}

/// Deals with a session of this mount.
pub(super) async fn of_mount(worker: &Worker, id: &str, action: RecoverAction) -> Response {
    let engine = worker.drain.engine();
    let busy = worker.drain.busy();
    let done = match action {
        RecoverAction::Publish(key) => publish(engine, &busy, id, key).await,
        RecoverAction::Export(file) => export(&worker.config.state_folder, id, &file, Some(&worker.client)).await,
        RecoverAction::Discard => {
            replay::discard(engine.spill(), Some(engine.upload()), &busy, id).await.map(|()| None)
        }
    };
    match done {
        Ok(key) => Response::Recovered { key },
        Err(error) => {
            let (why, mend) = words(&error);
            Response::Failed(Failure { what: id.to_owned(), why, mend })
        }
    }
}

async fn publish(
    engine: &WriteEngine,
    busy: &BTreeSet<SessionId>,
    id: &str,
    key: Option<String>,
) -> Result<Option<String>, RecoverError> {
    let bad = |error| RecoverError::Io(std::io::Error::other(format!("--as is no key: {error}")));
    let key = key.map(|key| ObjectKey::parse(&key).map_err(bad)).transpose()?;
    replay::publish(engine, busy, id, key).await.map(|key| Some(key.to_string()))
}

async fn export(
    state_folder: &Path,
    id: &str,
    file: &Path,
    client: Option<&Client>,
) -> Result<Option<String>, RecoverError> {
    Exported::find(state_folder, id)?.write_to(file, client).await.map(|_| None)
}

/// Whether the bytes of a session are all on this disk, so that no service is needed to export it.
///
/// # Errors
/// There is no such session.
pub fn is_local(state_folder: &Path, id: &str) -> Result<bool, RecoverFailure> {
    Exported::find(state_folder, id).map(|found| !found.needs_service()).map_err(|error| words(&error))
}

/// Deals with a session in a folder that no mount serves. `connection` may be missing where no service is needed.
///
/// # Errors
/// Why it was not done; the session stays.
pub fn recover_offline(
    connection: Option<&ConnectionConfig>,
    state_folder: &Path,
    id: &str,
    action: RecoverAction,
) -> Result<Option<String>, RecoverFailure> {
    let plain = |why: String| (why, String::new());
    let owner = format!("process {} for `ossfuse recover`", std::process::id());
    let folder = LockedFolder::lock(Layout::new(state_folder), &owner)
        .map_err(|error| plain(refusal::lock(&error).to_string()))?;
    let must_connect = match &action {
        RecoverAction::Publish(_) => true,
        RecoverAction::Export(_) => !is_local(state_folder, id)?,
        RecoverAction::Discard => false,
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|error| plain(error.to_string()))?;
    let client = match connection {
        None => None,
        Some(connection) => match runtime.block_on(connect(connection)) {
            Ok((client, _)) => Some(client),
            // Where nothing of it is needed, what is asked for can be done all the same.
            Err(_) if !must_connect => None,
            Err(error) => return Err(plain(error.to_string())),
        },
    };
    let _inside = runtime.enter();
    let spill = SpillStore::open(&folder);
    let upload = match &client {
        None => None,
        Some(client) => {
            let (journal, _writer) =
                journal::open(&folder.layout().journal(), true).map_err(|error| plain(error.to_string()))?;
            Some(UploadEngine::new(client.clone(), journal, UploadOptions { workers: UPLOAD_WORKERS }))
        }
    };
    let nobody = BTreeSet::new();
    let done = runtime.block_on(async {
        let done = match (action, &upload) {
            (RecoverAction::Publish(key), Some(upload)) => {
                let engine = WriteEngine::new(upload.clone(), spill.clone(), PART_SIZE, runtime.handle().clone());
                if let Some(connection) = connection {
                    engine.hide_under(&connection.prefix);
                }
                publish(&engine, &nobody, id, key).await
            }
            (RecoverAction::Publish(_), None) => Err(RecoverError::BaseGone),
            (RecoverAction::Export(file), _) => export(state_folder, id, &file, client.as_ref()).await,
            (RecoverAction::Discard, upload) => {
                replay::discard(&spill, upload.as_ref(), &nobody, id).await.map(|()| None)
            }
        };
        if let Some(upload) = &upload
            && let Err(error) = upload.journal().settled().await
        {
            log::warn!("{error}");
        }
        done
    });
    done.map_err(|error| words(&error))
}

/// The uploads that the journal of a folder owns which no mount serves.
///
/// # Errors
/// The folder is in use, or its journal cannot be read.
pub fn owned_uploads_offline(state_folder: &Path) -> Result<Vec<String>, String> {
    let owner = format!("process {} for `ossfuse uploads`", std::process::id());
    let folder = LockedFolder::lock(Layout::new(state_folder), &owner).map_err(|error| error.to_string())?;
    let held = held_uploads(&read_only_scan(folder.layout()).map_err(|error| error.to_string())?);
    if !folder.layout().journal().exists() {
        return Ok(held);
    }
    let (journal, writer) = journal::open(&folder.layout().journal(), true).map_err(|error| error.to_string())?;
    let ids = journal.upload_ids().map_err(|error| error.to_string());
    drop(journal);
    writer.join();
    Ok(ids?.into_iter().map(|id| id.as_str().to_owned()).chain(held).collect())
}

/// The uploads that hold bytes which are nowhere else: the session files name them, whatever the journal says.
fn held_uploads(sessions: &[Found]) -> Vec<String> {
    let records = sessions.iter().filter_map(|found| found.record.as_ref().ok()?.as_ref());
    records.filter_map(|record| Some(record.upload.as_ref()?.id.as_str().to_owned())).collect()
}

/// The uploads that are this mount's.
pub(super) fn owned_uploads(worker: &Worker) -> Response {
    let engine = worker.drain.engine();
    let live = engine.live().into_iter().filter_map(|file| file.status().upload_id);
    let held = engine.spill().scan().map(|sessions| held_uploads(&sessions));
    let known = engine.upload().journal().upload_ids().map_err(|error| error.to_string());
    match known.and_then(|ids| Ok((ids, held.map_err(|error| error.to_string())?))) {
        Ok((ids, held)) => {
            let ids = ids.into_iter().chain(live).map(|id| id.as_str().to_owned());
            let ids: BTreeSet<String> = ids.chain(held).collect();
            let state_folder = worker.config.state_folder.clone();
            Response::OwnedUploads { state_folder, upload_ids: ids.into_iter().collect() }
        }
        Err(error) => super::failed(worker, &error),
    }
}

fn near(worker: &Worker) -> Vec<replay::Expiring> {
    let layout = worker.drain.engine().spill().layout();
    replay::expiring(layout, &worker.drain.busy(), worker.config.writing.recover_keep).unwrap_or_else(|error| {
        log::warn!("{error}");
        Vec::new()
    })
}

/// What `status` tells of kept sessions whose time is near.
pub(super) fn expiring(worker: &Worker) -> Option<Expiring> {
    let near = near(worker);
    let first_at = rfc3339(near.first()?.at);
    Some(Expiring { files: near.len() as u64, bytes: near.iter().map(|session| session.bytes).sum(), first_at })
}

/// Takes kept sessions away whose time is over, now and then; says a week ahead which will go.
pub(super) async fn expire(worker: std::sync::Arc<Worker>) {
    let mut told = BTreeSet::new();
    loop {
        for session in near(&worker) {
            let (id, name) = (session.id, &session.name);
            if session.is_due() {
                let engine = worker.drain.engine();
                let busy = worker.drain.busy();
                match replay::discard(engine.spill(), Some(engine.upload()), &busy, &id.to_string()).await {
                    Ok(()) => log::warn!("session {id} of {name:?} was kept for --recover-keep; it is discarded"),
                    Err(error) => log::warn!("session {id}: {error}"),
                }
            } else if told.insert(id) {
                let at = rfc3339(session.at);
                log::warn!("session {id} of {name:?} is discarded at {at}; see `ossfuse recover list`");
            }
        }
        tokio::time::sleep(EXPIRY_LOOK).await;
    }
}
