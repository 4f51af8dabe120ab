//! What `recover publish` and `recover discard` do with a session that was kept.
//!
//! Works on the disk's own word: a kept session is taken up again from its folder, whether this process kept it or an
//! earlier one. Sessions that somebody writes to or that are being sent are the caller's to leave out.

use std::collections::BTreeSet;
use std::fs;

use super::run::{conflict_name, look, take_up_parts};
use super::{Decision, Evidence, Mode, Record, decide};
use crate::base::{ObjectKey, SessionId};
use crate::oss::{self, ErrorKind};
use crate::spill::{Found, Layout, SessionRecord, SpillError, SpillStore};
use crate::upload::{Transfer, UploadEngine};
use crate::write::{DirtyFile, Restored, WriteEngine, WriteError};

/// Why a session was not brought further. The words follow the session's id in a message; a mend stands behind `;`.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("there is no such session; see `ossfuse recover list`")]
    Unknown,
    #[error("it is being written or sent; wait until it is done")]
    Busy,
    #[error("it is set aside as damaged: {0}; take what is good of it with `ossfuse recover export`")]
    Damaged(String),
    #[error("its file was deleted while it was open; take it with `ossfuse recover export`, or give --as KEY")]
    Nameless,
    #[error("an object {0} is there already; give another --as KEY")]
    Exists(ObjectKey),
    #[error("another client changed the object that it edits; take your bytes with `ossfuse recover export`")]
    Conflict,
    #[error("part of it is still in the bucket, and the object was changed; its own bytes alone cannot be told apart")]
    BaseGone,
    #[error("parts of it have left the disk for its unfinished upload; publish it --as KEY, and copy that")]
    InUpload,
    #[error("{0}")]
    Write(#[from] WriteError),
    #[error("{0}")]
    Spill(#[from] SpillError),
    #[error("{0}")]
    Oss(#[from] oss::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Publishes a kept session, at its name or at `to`, and gives the key it is found at.
///
/// What another client has put at its name is not replaced: the bytes go beside it as a conflict copy, unless `to` is
/// that very name.
///
/// # Errors
/// The session stays as it was: kept, or promised to be published at its name.
pub async fn publish(
    engine: &WriteEngine,
    busy: &BTreeSet<SessionId>,
    id: &str,
    to: Option<ObjectKey>,
) -> Result<ObjectKey, RecoverError> {
    let (found, record) = kept(engine.spill(), busy, id)?;
    let own = record.key.clone();
    if let Some(to) = to.as_ref().filter(|to| own.as_ref() != Some(to)) {
        check_free(engine, to).await?;
    } else if own.is_none() {
        return Err(RecoverError::Nameless);
    }
    let restored = Restored::load(found.dir, record)?;
    if let Some(damage) = restored.damage()? {
        return Err(RecoverError::Damaged(damage));
    }
    let file = DirtyFile::restore(engine, &restored);
    // The file counts them now; when it was left behind they were counted for nobody.
    engine.spill().gauge().give_back(restored.pieces.iter().map(|(_, len, _)| len).sum());
    let published = match to {
        Some(to) => publish_as(engine, &file, &restored, to).await,
        None => publish_at_its_name(engine, &file, &restored).await,
    };
    if published.is_err() {
        file.put_back(&restored.record).await?;
    }
    published
}

type File = std::sync::Arc<DirtyFile>;

async fn publish_at_its_name(
    engine: &WriteEngine,
    file: &File,
    restored: &Restored,
) -> Result<ObjectKey, RecoverError> {
    let key = file.publishable_key().ok_or(RecoverError::Nameless)?;
    let (remote, found) = look(engine, &key, file, restored).await?;
    let (record, mode) = (Record::Promised, Mode::Safe);
    match decide(&Evidence { record, intact: true, whole: restored.is_whole(), remote, mode }) {
        Decision::Finish => {
            take_up_parts(engine, file, restored).await?;
            let published = file.publish().await.map_err(stale)?;
            Ok(published.key)
        }
        Decision::AlreadyDone => {
            if let Some(found) = &found {
                file.conclude_found(found).await?;
            }
            Ok(key)
        }
        Decision::Beside => {
            let name = conflict_name(engine, &key).await?;
            give_up_useless(engine.upload(), restored).await;
            file.stand_alone(name).await?;
            file.resume_held(restored).await?;
            Ok(file.publish().await.map_err(stale)?.key)
        }
        _ => Err(RecoverError::Conflict),
    }
}

async fn publish_as(
    engine: &WriteEngine,
    file: &File,
    restored: &Restored,
    to: ObjectKey,
) -> Result<ObjectKey, RecoverError> {
    give_up_useless(engine.upload(), restored).await;
    if restored.is_whole() {
        file.stand_alone(to).await?;
    } else {
        file.rename(to, None).await?;
    }
    file.resume_held(restored).await?;
    Ok(file.publish().await.map_err(stale)?.key)
}

fn stale(error: WriteError) -> RecoverError {
    match error {
        WriteError::Stale => RecoverError::Conflict,
        other => other.into(),
    }
}

async fn check_free(engine: &WriteEngine, key: &ObjectKey) -> Result<(), RecoverError> {
    match engine.upload().client().head_object(key).await {
        Ok(_) => Err(RecoverError::Exists(key.clone())),
        Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes a kept session away for good, with its upload; or what was set aside under this name.
///
/// Without `upload` (the service cannot be had) an upload that was begun stays in the bucket.
///
/// # Errors
/// It is still there.
pub async fn discard(
    spill: &SpillStore,
    upload: Option<&UploadEngine>,
    busy: &BTreeSet<SessionId>,
    id: &str,
) -> Result<(), RecoverError> {
    let (found, record) = match kept(spill, busy, id) {
        Ok((found, record)) => (found, Some(record)),
        Err(RecoverError::Damaged(_)) => match find(spill, id)? {
            Some(found) => (found, None),
            None => {
                let path = quarantined(spill.layout(), id).ok_or(RecoverError::Unknown)?;
                return Ok(if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }?);
            }
        },
        Err(error) => return Err(error),
    };
    if let Some(upload) = upload {
        give_up_upload(upload, found.dir.id()).await;
        if let Some(record) = &record {
            take_hidden_away(upload, record).await?;
        }
    }
    let bytes = found.dir.pieces().unwrap_or_default().iter().map(|(_, len, _)| len).sum();
    found.dir.discard()?;
    spill.gauge().give_back(bytes);
    Ok(())
}

/// Deletes what a session has in the bucket at keys of the program's own.
async fn take_hidden_away(upload: &UploadEngine, record: &SessionRecord) -> Result<(), oss::Error> {
    let zeros = record.zero_keys();
    let mut hidden: Vec<&ObjectKey> = zeros.iter().collect();
    if let Some(held) = &record.upload {
        match upload.client().abort_upload(&held.key, &held.id).await {
            Err(error) if error.kind != ErrorKind::NoSuchUpload => return Err(error),
            _ => hidden.push(&held.key),
        }
    }
    hidden.extend(record.base.as_ref().filter(|_| record.is_base_hidden()).map(|base| &base.key));
    for key in hidden {
        match upload.client().delete_object(key).await {
            Err(error) if error.kind != ErrorKind::NoSuchKey => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// What lies in quarantine under this name: one of the names in the folder, never a path.
pub(super) fn quarantined(layout: &Layout, id: &str) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(layout.quarantine()).ok()?;
    entries.flatten().find(|entry| entry.file_name().to_str() == Some(id)).map(|entry| entry.path())
}

fn find(spill: &SpillStore, id: &str) -> Result<Option<Found>, RecoverError> {
    Ok(spill.scan()?.into_iter().find(|found| found.dir.id().to_string() == id))
}

/// A session that nobody works on.
fn kept(spill: &SpillStore, busy: &BTreeSet<SessionId>, id: &str) -> Result<(Found, SessionRecord), RecoverError> {
    let Some(found) = find(spill, id)? else {
        let aside = quarantined(spill.layout(), id).ok_or(RecoverError::Unknown)?;
        let reason = fs::read_to_string(aside.join("reason")).unwrap_or_else(|_| "it cannot be read".into());
        return Err(RecoverError::Damaged(reason));
    };
    if busy.contains(&found.dir.id()) {
        return Err(RecoverError::Busy);
    }
    match &found.record {
        Ok(Some(record)) => {
            let record = record.clone();
            Ok((found, record))
        }
        Ok(None) => Err(RecoverError::Damaged("it has no session file".into())),
        Err(error) => Err(RecoverError::Damaged(error.to_string())),
    }
}

/// Gives up an upload that was begun for the name that a session no longer goes to, unless bytes are in it alone:
/// that one was begun at a key of the program's own.
async fn give_up_useless(engine: &UploadEngine, restored: &Restored) {
    if restored.record.upload.is_none() {
        give_up_upload(engine, restored.dir.id()).await;
    }
}

/// Gives up the upload that the journal knows of a session. One that cannot be given up stays in the bucket and known:
/// logged.
pub(super) async fn give_up_upload(engine: &UploadEngine, id: SessionId) {
    match engine.journal().upload_of(id) {
        Ok(None) => {}
        Ok(Some((upload, _))) => match Transfer::resume(engine.clone(), id, &upload, false) {
            Some(transfer) => transfer.give_up().await,
            // What is noted of it cannot be read.
            None => engine.journal().forget(id).unwrap_or_else(|error| log::warn!("{error}")),
        },
        Err(error) => log::warn!("{error}"),
    }
}
