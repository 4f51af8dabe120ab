//! How long kept sessions are kept (`--recover-keep`): which go now, and which within a week.
//!
//! A session's age counts from when it was kept, or, of one that a crash left open, from when it was last written.
//! What a call had promised to publish, and what lies in quarantine, never goes by itself.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, SystemTime};

use super::decide::Record;
use crate::base::SessionId;
use crate::base::time::now;
use crate::spill::{Found, Layout, read_only_scan};

/// How long before its end a session is told of.
const NOTICE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A kept session whose time is near.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiring {
    pub id: SessionId,
    /// What it was to become, for people.
    pub name: String,
    /// Bytes on the disk.
    pub bytes: u64,
    pub at: SystemTime,
}

impl Expiring {
    pub fn is_due(&self) -> bool {
        self.at <= now()
    }
}

/// Kept sessions that are due, or will be within a week; the first due first. `busy` are left out.
///
/// # Errors
/// The folder cannot be read.
pub fn expiring(layout: &Layout, busy: &BTreeSet<SessionId>, keep: Duration) -> io::Result<Vec<Expiring>> {
    let found = read_only_scan(layout).map_err(|error| io::Error::other(error.to_string()))?;
    let soon = now().checked_add(NOTICE).unwrap_or_else(now);
    let idle = found.iter().filter(|found| !busy.contains(&found.dir.id()));
    let mut near: Vec<Expiring> =
        idle.filter_map(|found| end_of(found, keep)).filter(|expiring| expiring.at <= soon).collect();
    near.sort_by_key(|expiring| expiring.at);
    Ok(near)
}

fn end_of(found: &Found, keep: Duration) -> Option<Expiring> {
    let record = found.record.as_ref().ok()?.as_ref()?;
    let kind = Record::of(&record.phase, record.key.is_some());
    if !matches!(kind, Record::Kept | Record::Open) {
        return None;
    }
    let noted = found.dir.path().join("session").metadata().and_then(|metadata| metadata.modified()).ok()?;
    let pieces = found.dir.pieces().ok()?;
    // Writing does not touch the session file, keeping does.
    let written = pieces.iter().map(|(.., at)| *at).filter(|_| kind == Record::Open);
    let since = written.fold(noted, SystemTime::max);
    let bytes = pieces.iter().map(|(_, len, _)| len).sum();
    let name = record.key.as_ref().map(ToString::to_string).unwrap_or_default();
    Some(Expiring { id: found.dir.id(), name, bytes, at: since.checked_add(keep)? })
}
