//! Moving every key under one prefix to another: copies side by side, then deletes in batches.
//!
//! The caller keeps everybody of this mount out of both trees meanwhile. What other clients do is met with care:
//! only what was copied is deleted, and a copy that was begun anew never replaces what somebody else put there.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::copy::copy_any;
use super::lister::Lister;
use crate::base::limits::PAGE_MAX;
use crate::base::{ETag, KeyError, ObjectKey, SessionId, crash};
use crate::journal::{CopyRecord, Journal};
use crate::oss::{Client, CopyOptions, Error, ErrorKind};

/// Copies that are under way at once.
const WIDTH: usize = 64;
/// Pages that are listed, and whose keys are checked, before anything is begun.
const PAGES_AHEAD: usize = 20;
/// Copies that are remembered in memory; those of larger trees are looked up in the journal.
const KNOWN_MAX: usize = 50_000;
/// An object that other clients keep changing is tried so often.
const COPY_TRIES: u32 = 3;
/// Keys that the service left out of a multi-delete are asked for again, so often.
const DELETE_TRIES: u32 = 6;
/// The pause between these, grown by itself each time.
const DELETE_PAUSE: Duration = Duration::from_millis(100);

/// Why a tree was not moved, or not all of it yet.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("{key:?}: {error}")]
    Key { key: String, error: KeyError },
    #[error(transparent)]
    Oss(#[from] Error),
}

/// The copies that were made.
#[derive(Debug)]
pub struct Moved {
    journal: Journal,
    intent: SessionId,
    known: HashMap<Box<str>, CopyRecord>,
    /// `known` holds them all.
    all: bool,
    latest: SystemTime,
}

impl Moved {
    /// What the journal knows of an intent whose copies were all made.
    pub fn remembered(journal: &Journal, intent: SessionId) -> Self {
        Self { all: false, ..Self::none(journal, intent) }
    }

    fn none(journal: &Journal, intent: SessionId) -> Self {
        let latest = SystemTime::UNIX_EPOCH;
        Self { journal: journal.clone(), intent, known: HashMap::new(), all: true, latest }
    }

    /// The copy of a key, given without its prefix.
    pub fn get(&self, relative: &str) -> Option<CopyRecord> {
        match self.known.get(relative) {
            None if !self.all => self.journal.copy_of(self.intent, relative),
            known => known.cloned(),
        }
    }

    /// When the last copy was made, on the service's clock.
    pub fn latest(&self) -> SystemTime {
        self.latest
    }

    fn add(&mut self, relative: String, record: CopyRecord) {
        self.latest = self.latest.max(record.at.unwrap_or(SystemTime::UNIX_EPOCH));
        if let Err(error) = self.journal.copied(self.intent, &relative, record.clone()) {
            log::warn!("{error}; after a crash {relative} would be copied again");
        }
        crash::point("copy-noted");
        if self.known.len() < KNOWN_MAX {
            self.known.insert(relative.into(), record);
        } else {
            self.all = false;
        }
    }
}

/// One key to be copied.
struct Job {
    relative: String,
    source: ObjectKey,
    target: ObjectKey,
    etag: ETag,
    /// What an earlier attempt noted of it.
    noted: Option<CopyRecord>,
    /// What stands at the new key, where an earlier attempt may have been.
    there: Option<ETag>,
    again: bool,
}

/// What became of a job.
enum Outcome {
    Copied(CopyRecord),
    /// Another client deleted the object.
    Gone,
    /// Something else stands at the new key: the object stays where it is.
    Left,
}

/// The move of a tree.
#[derive(Debug)]
pub struct TreeMove {
    client: Client,
    journal: Journal,
    from: String,
    to: String,
    sources: Lister,
}

impl TreeMove {
    /// `from` and `to` end with a slash, and neither begins with the other.
    pub fn new(client: &Client, journal: &Journal, from: &str, to: &str) -> Self {
        Self {
            client: client.clone(),
            journal: journal.clone(),
            from: from.to_owned(),
            to: to.to_owned(),
            sources: Lister::new(client, from),
        }
    }

    /// Looks at the tree before anything is begun: how many keys there are, at least, up to some pages.
    ///
    /// # Errors
    /// A key that could not be moved, among those seen.
    pub async fn survey(&mut self) -> Result<usize, MoveError> {
        let (entries, _) = self.sources.look_ahead(PAGES_AHEAD).await?;
        for entry in entries {
            keys(&entry.key, &self.from, &self.to)?;
        }
        Ok(entries.len())
    }

    /// Copies all of it. With `again` an earlier attempt may have copied some: what it did is not repeated.
    ///
    /// # Errors
    /// The first failure, once all copies under way have ended. What was copied is in the journal.
    pub async fn copy(&mut self, intent: SessionId, again: bool) -> Result<Moved, MoveError> {
        let mut moved = Moved::none(&self.journal, intent);
        let mut targets = again.then(|| Lister::new(&self.client, &self.to));
        let mut under_way = FuturesUnordered::new();
        let (mut failure, mut more) = (None, true);
        loop {
            while more && failure.is_none() && under_way.len() < WIDTH {
                match self.next_job(intent, targets.as_mut()).await {
                    Ok(Some(job)) => under_way.push(copy_one(self.client.clone(), job)),
                    Ok(None) => more = false,
                    Err(error) => failure = Some(error),
                }
            }
            match under_way.next().await {
                Some((relative, Ok(Outcome::Copied(record)))) => moved.add(relative, record),
                Some((_, Ok(Outcome::Gone))) => {}
                Some((relative, Ok(Outcome::Left))) => {
                    log::warn!("{}{relative} stays: something else stands at {}{relative}", self.from, self.to);
                }
                Some((_, Err(error))) => drop(failure.get_or_insert(error.into())),
                None => break,
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(moved),
        }
    }

    async fn next_job(&mut self, intent: SessionId, targets: Option<&mut Lister>) -> Result<Option<Job>, MoveError> {
        let Some((relative, entry)) = self.sources.next().await? else { return Ok(None) };
        let (source, target) = keys(&entry.key, &self.from, &self.to)?;
        let again = targets.is_some();
        let there = match targets {
            Some(targets) => targets.seek(&relative).await?.map(|entry| entry.etag),
            None => None,
        };
        let noted = if again { self.journal.copy_of(intent, &relative) } else { None };
        Ok(Some(Job { relative, source, target, etag: entry.etag, noted, there, again }))
    }

    /// Deletes what was copied.
    pub async fn delete(&self, intent: SessionId, moved: &Moved) -> Result<(), MoveError> {
        if !moved.all {
            return self.delete_rest(intent, moved.latest).await;
        }
        let mut relatives: Vec<&str> = moved.known.keys().map(AsRef::as_ref).collect();
        relatives.sort_unstable();
        for batch in relatives.chunks(PAGE_MAX as usize) {
            let batch = batch.iter().map(|relative| self.source(relative)).collect::<Result<Vec<_>, _>>()?;
            self.delete_batch(batch).await?;
        }
        Ok(())
    }

    /// Deletes what stands under the old prefix still, and is what was copied by the time given.
    pub async fn delete_rest(&self, intent: SessionId, copied_until: SystemTime) -> Result<(), MoveError> {
        let mut sources = Lister::new(&self.client, &self.from);
        let mut targets = Lister::new(&self.client, &self.to);
        let mut batch = Vec::new();
        while let Some((relative, entry)) = sources.next().await? {
            let copied = match self.journal.copy_of(intent, &relative) {
                Some(record) => record.before == entry.etag,
                None => entry.last_modified <= copied_until && targets.seek(&relative).await?.is_some(),
            };
            if copied {
                batch.push(self.source(&relative)?);
            } else {
                log::warn!("{} stays: it was put there after the move", entry.key);
            }
            if batch.len() == PAGE_MAX as usize {
                self.delete_batch(std::mem::take(&mut batch)).await?;
            }
        }
        self.delete_batch(batch).await
    }

    fn source(&self, relative: &str) -> Result<ObjectKey, MoveError> {
        parse(&format!("{}{relative}", self.from))
    }

    async fn delete_batch(&self, mut keys: Vec<ObjectKey>) -> Result<(), MoveError> {
        let mut tries = 0;
        while !keys.is_empty() {
            if let [key] = keys.as_slice() {
                return Ok(self.client.delete_object(key).await?);
            }
            let gone: std::collections::HashSet<String> =
                self.client.delete_objects(&keys).await?.into_iter().collect();
            keys.retain(|key| !gone.contains(key.as_str()));
            tries += 1;
            if tries == DELETE_TRIES {
                for key in keys.drain(..) {
                    self.client.delete_object(&key).await?;
                }
            } else if !keys.is_empty() {
                tokio::time::sleep(DELETE_PAUSE * tries).await;
            }
        }
        Ok(())
    }
}

/// The key and its new name.
fn keys(key: &str, from: &str, to: &str) -> Result<(ObjectKey, ObjectKey), MoveError> {
    let relative = key.strip_prefix(from).unwrap_or(key);
    Ok((parse(key)?, parse(&format!("{to}{relative}"))?))
}

fn parse(key: &str) -> Result<ObjectKey, MoveError> {
    let error = match ObjectKey::parse(key) {
        Ok(parsed) if parsed.has_dot_segment() => KeyError::BadName,
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    Err(MoveError::Key { key: key.to_owned(), error })
}

async fn copy_one(client: Client, job: Job) -> (String, Result<Outcome, Error>) {
    let outcome = copy_job(&client, &job).await;
    (job.relative, outcome)
}

async fn copy_job(client: &Client, job: &Job) -> Result<Outcome, Error> {
    let ours = job.noted.as_ref().filter(|noted| Some(&noted.after) == job.there.as_ref());
    if let Some(noted) = ours.filter(|noted| noted.before == job.etag) {
        return Ok(Outcome::Copied(noted.clone()));
    }
    if job.there.is_some() && ours.is_none() {
        return compare(client, job).await;
    }
    let mut etag = job.etag.clone();
    let forbid_overwrite = job.again && ours.is_none();
    for attempt in 1.. {
        let options = CopyOptions { if_match: Some(etag.clone()), forbid_overwrite, ..CopyOptions::default() };
        match copy_any(client, &job.source, &job.target, &options).await {
            Ok(receipt) => {
                let record = CopyRecord { before: etag, after: receipt.etag, at: receipt.last_modified };
                return Ok(Outcome::Copied(record));
            }
            Err(error) if error.kind == ErrorKind::NoSuchKey => return Ok(Outcome::Gone),
            Err(error) if error.kind == ErrorKind::AlreadyExists => return compare(client, job).await,
            Err(error) if error.kind == ErrorKind::PreconditionFailed && attempt < COPY_TRIES => {
                match client.get_object_meta(&job.source).await {
                    Ok(meta) => etag = meta.etag,
                    Err(error) if error.kind == ErrorKind::NoSuchKey => return Ok(Outcome::Gone),
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Outcome::Left)
}

/// Whether what stands at the new key is the object.
async fn compare(client: &Client, job: &Job) -> Result<Outcome, Error> {
    let (source, target) = tokio::join!(client.head_object(&job.source), client.head_object(&job.target));
    match (source, target) {
        (Err(error), _) if error.kind == ErrorKind::NoSuchKey => Ok(Outcome::Gone),
        (Err(error), _) | (_, Err(error)) => Err(error),
        (Ok(source), Ok(target)) if source.size == target.size && source.crc64 == target.crc64 => {
            let at = Some(target.last_modified);
            Ok(Outcome::Copied(CopyRecord { before: source.etag, after: target.etag, at }))
        }
        _ => Ok(Outcome::Left),
    }
}
