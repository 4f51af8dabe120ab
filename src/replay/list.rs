//! What `recover list` shows: the sessions on disk that no process works on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::base::SessionId;
use crate::base::time::{from_micros, rfc3339};
use crate::control::RecoverEntry;
use crate::control::protocol::RecoverState;
use crate::spill::{Found, Layout, Phase, SessionRecord, SpillError, read_only_scan};
use crate::upload::Plan;
use crate::write::CONFLICT;

/// The sessions in a folder that no mount serves. Changes nothing.
///
/// # Errors
/// The folder cannot be read.
pub fn list_offline(state_folder: &Path) -> io::Result<Vec<RecoverEntry>> {
    list_sessions(state_folder, &BTreeSet::new())
}

/// The sessions in a folder, without those in `busy`: these are being written or sent.
///
/// # Errors
/// The folder cannot be read.
pub fn list_sessions(state_folder: &Path, busy: &BTreeSet<SessionId>) -> io::Result<Vec<RecoverEntry>> {
    let layout = Layout::new(state_folder);
    let found = read_only_scan(&layout).map_err(into_io)?;
    let mut entries: Vec<RecoverEntry> =
        found.iter().filter(|found| !busy.contains(&found.dir.id()) && !is_over(found)).map(entry).collect();
    entries.extend(quarantined(&layout)?);
    Ok(entries)
}

/// Whether nobody can want anything of a session: what is left of it goes by itself.
fn is_over(found: &Found) -> bool {
    matches!(&found.record, Ok(Some(record)) if record.phase == Phase::Over)
}

fn into_io(error: SpillError) -> io::Error {
    io::Error::other(error.to_string())
}

fn entry(found: &Found) -> RecoverEntry {
    let created = Some(rfc3339(from_micros(found.dir.id().created_micros())));
    let id = found.dir.id().to_string();
    match &found.record {
        Ok(Some(record)) => {
            let size = size_of(found, record);
            let base = record.base.as_ref().map_or(0, |base| base.size);
            let parts = Plan::with_piece_size(record.piece_size, base).parts(size).count() as u64;
            let (state, reason) = state_of(record);
            RecoverEntry {
                id,
                key: record.key.as_ref().map(ToString::to_string),
                size: Some(size),
                state,
                reason,
                created_at: created,
                parts_done: None,
                parts_total: Some(parts),
            }
        }
        Ok(None) => unreadable(id, created, "it has no session file; the next mount sets it aside"),
        Err(error) => unreadable(id, created, &error.to_string()),
    }
}

fn unreadable(id: String, created_at: Option<String>, reason: &str) -> RecoverEntry {
    RecoverEntry {
        id,
        key: None,
        size: None,
        state: RecoverState::Quarantined,
        reason: reason.to_owned(),
        created_at,
        parts_done: None,
        parts_total: None,
    }
}

fn size_of(found: &Found, record: &SessionRecord) -> u64 {
    let pieces = found.dir.pieces().unwrap_or_default();
    let ends = pieces.iter().filter(|(_, len, _)| *len > 0).map(|(index, len, _)| index * record.piece_size + len);
    let shown = ends.max().unwrap_or(0).max(record.base_valid).max(record.extent);
    record.size.unwrap_or(shown)
}

fn state_of(record: &SessionRecord) -> (RecoverState, String) {
    match (&record.phase, &record.error) {
        (Phase::Kept(reason), _) if reason == CONFLICT => (RecoverState::Conflict, reason.clone()),
        (Phase::Kept(reason), _) => (RecoverState::Kept, reason.clone()),
        (_, Some(error)) => (RecoverState::Failed, error.clone()),
        (Phase::Open, None) => (RecoverState::Kept, "it was neither closed nor fsynced".into()),
        (_, None) => (RecoverState::Kept, "it is published by the next mount".into()),
    }
}

/// What was set aside. A folder's note says why.
fn quarantined(layout: &Layout) -> io::Result<Vec<RecoverEntry>> {
    let folder = layout.quarantine();
    let listed = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut entries = Vec::new();
    for item in listed {
        let item = item?;
        let id = item.file_name().to_string_lossy().into_owned();
        let session: Option<SessionId> = id.split('.').next().and_then(|id| id.parse().ok());
        let created = session.map(|id| rfc3339(from_micros(id.created_micros())));
        let reason = fs::read_to_string(item.path().join("reason")).unwrap_or_else(|_| "it was set aside".into());
        entries.push(unreadable(id, created, &reason));
    }
    entries.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(entries)
}
