//! Attributes of finished files: a change is answered when it is safe on the local disk, and sent a moment later,
//! together with those that follow it.
//!
//! An object's attributes change by copying it onto itself. What is to be sent of an inode stands in one intent, so that
//! the next process sends it if this one cannot; a rename, a new version or the end of the file takes it along. While
//! such a copy is under way no write session of the file begins: it would edit a version that is just being replaced.
//! Where another client has replaced the object meanwhile, what was changed goes onto its object, but not the times:
//! they told of bytes that are gone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::Vfs;
use super::attr::{Attr, Version};
use super::error::FsError;
use super::tree::{Listed, Tree};
use crate::base::posix::UserMeta;
use crate::base::{ETag, ObjectKey, SessionId, crash};
use crate::intent::{MetaChange, Work};
use crate::oss::{self, ErrorKind, PutHeaders};
use crate::upload::{Standing, replace_headers};
use crate::write::Rekeyed;

/// How long a change waits for others to the same file.
const LINGER: Duration = Duration::from_millis(800);
/// The pause before a change that could not be sent is tried again, doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Files whose attributes are sent at a time.
const AT_ONCE: usize = 32;
/// How often is looked whether a session has ended.
const LOOK: Duration = Duration::from_millis(50);
/// Metadata that tell of one version's bytes.
const TIMES: [&str; 3] = ["mtime", "atime", "ctime"];
/// How often another client may get in between before it is left for later.
const TRIES: u32 = 3;

/// Changes that are not in the bucket yet, by inode.
#[derive(Debug)]
pub(super) struct Later {
    table: Mutex<HashMap<u64, Pending>>,
    /// Something in the table changed that somebody may wait for.
    changed: Notify,
    /// Somebody waits: nothing lingers.
    hurried: Notify,
    permits: Semaphore,
}

impl Default for Later {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            changed: Notify::new(),
            hurried: Notify::new(),
            permits: Semaphore::new(AT_ONCE),
        }
    }
}

/// What is to become of one object.
#[derive(Debug)]
struct Pending {
    /// `None` until the first one is on disk.
    intent: Option<SessionId>,
    key: ObjectKey,
    /// The version that has `before`, and is to have `wanted`.
    etag: ETag,
    size: u64,
    crc64: Option<u64>,
    before: UserMeta,
    wanted: PutHeaders,
    /// How often it was changed.
    generation: u64,
    /// Changes whose intent is not on disk yet.
    writing: u32,
    /// The copy is under way.
    busy: bool,
}

/// A pending change that somebody has taken in hand.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    generation: u64,
    etag: ETag,
    size: u64,
    crc64: Option<u64>,
    before: UserMeta,
    pub(super) wanted: PutHeaders,
}

/// A change that an earlier process has left behind.
#[derive(Debug)]
pub(super) struct LeftChange {
    pub(super) id: SessionId,
    pub(super) etag: ETag,
    pub(super) crc64: Option<u64>,
    pub(super) changed: MetaChange,
}

/// The object once it has been copied onto itself.
struct Stored {
    etag: ETag,
    last_modified: Option<std::time::SystemTime>,
    /// It was another client's.
    foreign: bool,
}

impl Later {
    /// Whether the copy of an inode's object onto itself is under way.
    pub(super) fn is_busy(&self, ino: u64) -> bool {
        self.table.lock().get(&ino).is_some_and(|pending| pending.busy)
    }

    /// Waits until `ready` says so; it is asked again after every change of the table.
    async fn wait_until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = ready() {
                return value;
            }
            changed.await;
        }
    }

    /// Waits until no copy of an inode's object onto itself is under way.
    pub(super) async fn idle(&self, ino: u64) {
        self.wait_until(|| (!self.is_busy(ino)).then_some(())).await;
    }
}

impl Vfs {
    /// Changes the attributes of a finished file: shown at once, safe from power loss when this returns, sent soon.
    /// `false` where a write session has begun meanwhile: then they go with that.
    pub(super) async fn change_later(
        &self,
        ino: u64,
        key: &ObjectKey,
        version: Version,
        new: &Attr,
        edit: &(dyn Fn(&mut UserMeta) + Send + Sync),
    ) -> Result<bool, FsError> {
        let Some((work, is_first)) = self.note_change(ino, key, version, new, edit)? else { return Ok(false) };
        let written = self.write_intent(work).await;
        crash::point("attributes-noted");
        let old = {
            let mut table = self.later.table.lock();
            match table.get_mut(&ino) {
                Some(pending) => {
                    pending.writing -= 1;
                    match &written {
                        Ok(id) => pending.intent.replace(*id),
                        Err(_) => None,
                    }
                }
                // It went with the file, or the file went.
                None => written.as_ref().ok().copied(),
            }
        };
        self.later.changed.notify_waiters();
        if let Some(old) = old {
            self.intents.finish(old);
        }
        if is_first {
            self.send_attributes_later(ino);
        }
        written.map(|_| true)
    }

    /// Shows the change, and tells what is to be written down of it, and whether it is the first of its file.
    fn note_change(
        &self,
        ino: u64,
        key: &ObjectKey,
        version: Version,
        new: &Attr,
        edit: &(dyn Fn(&mut UserMeta) + Send + Sync),
    ) -> Result<Option<(Work, bool)>, FsError> {
        let deadline = self.attr_deadline();
        let mut tree = self.tree.lock();
        let node = tree.node_mut(ino).ok_or(FsError::Stale)?;
        if node.open.as_ref().is_some_and(|open| open.dirty().is_some()) {
            return Ok(None);
        }
        // Another change may have come in between.
        let held = node.version.take().filter(|held| held.headers.is_some()).unwrap_or(version);
        let before = held.headers.as_deref().cloned().unwrap_or_default();
        let mut headers = self.options.attr.changed_headers(&before, new);
        edit(&mut headers.user_meta);
        let mut table = self.later.table.lock();
        let is_first = !table.contains_key(&ino);
        let pending = table.entry(ino).or_insert_with(|| Pending {
            intent: None,
            key: key.clone(),
            etag: held.etag.clone(),
            size: held.size,
            crc64: held.crc64,
            before: before.user_meta,
            wanted: PutHeaders::default(),
            generation: 0,
            writing: 0,
            busy: false,
        });
        pending.generation += 1;
        pending.writing += 1;
        pending.wanted = headers.clone();
        let work = pending.work();
        (node.attr, node.fresh_until, node.pinned) = (*new, Some(deadline), true);
        node.version = Some(Version { headers: Some(Box::new(headers)), ..held });
        tree.note_object(ino);
        Ok(Some((work, is_first)))
    }

    /// Writes an intent down so that power loss does not take it.
    async fn write_intent(&self, work: Work) -> Result<SessionId, FsError> {
        let id = self.intents.begin(work, false)?.id;
        let committed = self.write.spill().commit(self.intents.places(id)).await;
        if let Err(error) = committed {
            self.intents.finish(id);
            return Err(error.into());
        }
        Ok(id)
    }

    /// Sends what is pending of an inode when it has waited a moment, again and again until it is done.
    fn send_attributes_later(&self, ino: u64) {
        let me = self.me.clone();
        self.runtime.spawn(async move {
            let mut pause = LINGER;
            loop {
                let Some(vfs) = me.upgrade() else { return };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = vfs.later.hurried.notified(), if pause == LINGER => {}
                }
                let Ok(_permit) = vfs.later.permits.acquire().await else { return };
                match vfs.send_attributes(ino).await {
                    Ok(()) if !vfs.is_attribute_due(ino) => return,
                    Ok(()) => pause = LINGER,
                    Err(error) => {
                        log::warn!("attributes are not sent: {error}; trying again");
                        pause = (pause * 2).clamp(PAUSE.0, PAUSE.1);
                    }
                }
            }
        });
    }

    /// Whether a change is pending that does not go with a write session.
    fn is_attribute_due(&self, ino: u64) -> bool {
        let tree = self.tree.lock();
        self.later.table.lock().contains_key(&ino) && !is_dirty(&tree, ino)
    }

    /// Sends what is pending of an inode, unless it goes with a write session.
    async fn send_attributes(&self, ino: u64) -> Result<(), FsError> {
        let Ok((parent, name, _)) = self.place(ino) else {
            self.drop_attributes(ino);
            return Ok(());
        };
        let (path, _change) = match self.hold_place(parent, &name).await {
            // It has lost its name meanwhile.
            Err(FsError::Stale) => return Ok(()),
            other => other?,
        };
        if self.place(ino).is_ok_and(|place| place.2 == path) {
            self.send_attributes_at(ino, &self.file_key(&path)?).await?;
        }
        Ok(())
    }

    /// The same for a key that nobody moves meanwhile.
    pub(super) async fn send_attributes_at(&self, ino: u64, key: &ObjectKey) -> Result<(), FsError> {
        let Some(taken) = self.take_attributes(ino).await else { return Ok(()) };
        match self.store_attributes(key, &taken).await {
            Ok(stored) => {
                crash::point("attributes-sent");
                let now = stored.as_ref().map(|stored| stored.etag.clone());
                self.attributes_stored(ino, key, &taken, stored);
                // What has come meanwhile is meant for the version that the object is now.
                self.rekey_attributes(ino, key, now.as_ref()).await
            }
            Err(error) => {
                self.put_attributes_back(ino);
                Err(error.into())
            }
        }
    }

    /// Takes a pending change in hand, once nobody else has; `None` where there is none, or it goes with a session.
    pub(super) async fn take_attributes(&self, ino: u64) -> Option<Taken> {
        let attempt = || {
            let tree = self.tree.lock();
            let mut table = self.later.table.lock();
            let Some(pending) = table.get_mut(&ino).filter(|_| !is_dirty(&tree, ino)) else { return Some(None) };
            if pending.busy || pending.writing > 0 {
                return None;
            }
            pending.busy = true;
            Some(Some(Taken {
                generation: pending.generation,
                etag: pending.etag.clone(),
                size: pending.size,
                crc64: pending.crc64,
                before: pending.before.clone(),
                wanted: pending.wanted.clone(),
            }))
        };
        self.later.wait_until(attempt).await
    }

    /// Lets go of a change that could not be sent.
    pub(super) fn put_attributes_back(&self, ino: u64) {
        if let Some(pending) = self.later.table.lock().get_mut(&ino) {
            pending.busy = false;
        }
        self.later.changed.notify_waiters();
    }

    /// Copies an object onto itself with the attributes that are wanted. `None` where it is gone.
    async fn store_attributes(&self, key: &ObjectKey, taken: &Taken) -> Result<Option<Stored>, oss::Error> {
        let (mut etag, mut size, mut crc64) = (taken.etag.clone(), taken.size, taken.crc64);
        let (mut headers, mut foreign) = (taken.wanted.clone(), false);
        for attempt in 1.. {
            let object = Standing { key, etag: &etag, size, crc64 };
            let found = match replace_headers(&self.client, object, &headers).await {
                Ok(receipt) => {
                    return Ok(Some(Stored { etag: receipt.etag, last_modified: receipt.last_modified, foreign }));
                }
                Err(error) if error.kind == ErrorKind::PreconditionFailed && attempt < TRIES => {
                    self.client.head_object(key).await
                }
                Err(error) => Err(error),
            };
            match found {
                Ok(found) => {
                    log::warn!("{key}: another client replaced it; its mode, owner and attributes are set on that");
                    (etag, size, crc64) = (found.etag, found.size, found.crc64);
                    (headers, foreign) = (found.headers, true);
                    apply(&without_times(change_of(&taken.before, &taken.wanted.user_meta)), &mut headers.user_meta);
                }
                Err(error) if error.kind == ErrorKind::NoSuchKey => {
                    log::warn!("{key}: another client deleted it; there is nothing to set attributes on");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The object has them: the inode shows the version that it is now, and who has it open goes along.
    fn attributes_stored(&self, ino: u64, key: &ObjectKey, taken: &Taken, stored: Option<Stored>) {
        let done = {
            let mut tree = self.tree.lock();
            if let Some(stored) = &stored {
                move_along(&mut tree, ino, key, &taken.etag, stored);
            }
            let mut table = self.later.table.lock();
            let is_latest = table.get(&ino).is_some_and(|pending| pending.generation == taken.generation);
            match table.get_mut(&ino) {
                Some(pending) if !is_latest && stored.is_some() => {
                    (pending.busy, pending.before) = (false, taken.wanted.user_meta.clone());
                    if let Some(stored) = &stored {
                        pending.etag = stored.etag.clone();
                    }
                    None
                }
                _ => {
                    unpin(&mut tree, ino);
                    table.remove(&ino)
                }
            }
        };
        // No answer to the kernel follows that would do it.
        self.commit();
        self.later.changed.notify_waiters();
        if let Some(intent) = done.and_then(|pending| pending.intent) {
            self.intents.finish(intent);
        }
        // Copies of it that were begun, and are no more than that yet.
        if let Some(stored) = stored.filter(|stored| stored.etag != taken.etag) {
            let object = Rekeyed { before: taken.etag.clone(), key: key.clone(), after: stored.etag };
            self.write.live().iter().for_each(|dirty| dirty.follow(&object));
        }
    }

    /// Nothing more is to be sent of an inode: it went with the file, or the file is gone.
    pub(super) fn drop_attributes(&self, ino: u64) {
        let dropped = {
            let mut tree = self.tree.lock();
            let dropped = self.later.table.lock().remove(&ino);
            if dropped.is_some() {
                unpin(&mut tree, ino);
            }
            dropped
        };
        let Some(pending) = dropped else { return };
        self.later.changed.notify_waiters();
        if let Some(intent) = pending.intent {
            self.intents.finish(intent);
        }
    }

    /// A write session that was to take attributes along has ended without that: they go alone.
    pub(super) fn attributes_go_alone(&self, ino: u64) {
        if self.later.table.lock().contains_key(&ino) {
            self.send_attributes_later(ino);
        }
    }

    /// The object whose attributes are pending has another key and version, by our own doing.
    pub(super) async fn rekey_attributes(&self, ino: u64, key: &ObjectKey, etag: Option<&ETag>) -> Result<(), FsError> {
        let work = {
            let mut table = self.later.table.lock();
            let Some(pending) = table.get_mut(&ino) else { return Ok(()) };
            pending.key = key.clone();
            if let Some(etag) = etag {
                pending.etag = etag.clone();
            }
            pending.work()
        };
        let id = self.write_intent(work).await?;
        let old = match self.later.table.lock().get_mut(&ino) {
            Some(pending) => pending.intent.replace(id),
            None => Some(id),
        };
        if let Some(old) = old {
            self.intents.finish(old);
        }
        Ok(())
    }

    /// Inodes at and under a path whose attributes are to be sent, with the keys of their objects.
    fn attributes_under(&self, path: &str) -> Vec<(u64, ObjectKey)> {
        let tree = self.tree.lock();
        let table = self.later.table.lock();
        let under = table.iter().filter(|(ino, pending)| self.is_under(&pending.key, path) && !is_dirty(&tree, **ino));
        under.map(|(ino, pending)| (*ino, pending.key.clone())).collect()
    }

    /// Files at and under a path whose attributes are not in the bucket yet, where they do not go with a session.
    pub(super) fn attributes_pending(&self, path: &str) -> u64 {
        self.attributes_under(path).len() as u64
    }

    /// Sends what is pending at and under a path; what fails is told, and tried again in the background.
    pub(super) async fn send_all_attributes(&self, path: &str) -> Vec<(String, FsError)> {
        let work = stream::iter(self.attributes_under(path))
            .map(|(ino, key)| async move { Some((key.to_string(), self.send_attributes(ino).await.err()?)) });
        let sent: Vec<_> = work.buffer_unordered(AT_ONCE).collect().await;
        sent.into_iter().flatten().collect()
    }

    /// The same for a directory that the caller has fenced in.
    pub(super) async fn send_attributes_within(&self, path: &str) -> Result<(), FsError> {
        let work = stream::iter(self.attributes_under(path))
            .map(|(ino, key)| async move { self.send_attributes_at(ino, &key).await });
        let sent: Vec<_> = work.buffer_unordered(AT_ONCE).collect().await;
        sent.into_iter().collect()
    }

    /// A directory has moved: what goes with sessions in it is written down under the new keys.
    pub(super) async fn move_attributes(&self, from: &str, to: &str) -> Result<(), FsError> {
        let moved: Vec<(u64, ObjectKey)> = {
            let table = self.later.table.lock();
            let below = |(ino, pending): (&u64, &Pending)| {
                let rest = pending.key.as_str().strip_prefix(from)?;
                Some((*ino, ObjectKey::parse(&format!("{to}{rest}")).ok()?))
            };
            table.iter().filter_map(below).collect()
        };
        for (ino, key) in moved {
            self.rekey_attributes(ino, &key, None).await?;
        }
        Ok(())
    }

    /// Sends at once what still lingers.
    pub fn hurry_attributes(&self) {
        self.later.hurried.notify_waiters();
    }

    /// Takes up the changes of one object that an earlier process has left behind, oldest first: more than one where it
    /// has died between the writing of the one and the end of the other.
    pub(super) fn replay_attributes(&self, key: ObjectKey, left: Vec<LeftChange>) {
        let Some(last) = left.last().map(|left| left.id) else { return };
        let older: Vec<SessionId> = left.iter().map(|left| left.id).filter(|id| *id != last).collect();
        let versions: Vec<(ETag, Option<u64>)> = left.iter().map(|left| (left.etag.clone(), left.crc64)).collect();
        let mut changed = MetaChange::new();
        left.into_iter().for_each(|left| changed.extend(left.changed));
        // A session that is to be published has them, and may turn out to be damaged: then they go onto the object.
        let is_waiting = self.is_to_be_published(&key);
        let keys = vec![key.clone()];
        let change = Arc::new((key, versions, changed, older));
        self.repeat(last, keys, None, move |vfs| {
            let change = change.clone();
            async move {
                let (key, versions, changed, older) = &*change;
                while is_waiting && vfs.is_to_be_published(key) {
                    tokio::time::sleep(LOOK).await;
                }
                vfs.send_replayed(key, versions, changed).await?;
                older.iter().for_each(|id| vfs.intents.finish(*id));
                Ok(())
            }
        });
    }

    fn is_to_be_published(&self, key: &ObjectKey) -> bool {
        self.write.session_for(key).is_some_and(|dirty| dirty.status().phase.is_promised())
    }

    /// `versions`: those that the changes were meant for, with the CRC64 of their bytes; all but one are gone, by the
    /// program's own doing.
    async fn send_replayed(
        &self,
        key: &ObjectKey,
        versions: &[(ETag, Option<u64>)],
        changed: &MetaChange,
    ) -> Result<(), oss::Error> {
        let _change = self.write.fences().change(&[key.as_str()]).await;
        if self.write.session_for(key).is_some() {
            // It was begun after the change, and has it.
            return Ok(());
        }
        let found = match self.client.head_object(key).await {
            Err(error) if error.kind == ErrorKind::NoSuchKey => return Ok(()),
            other => other?,
        };
        let is_meant = versions.iter().any(|(etag, _)| *etag == found.etag);
        let has_other_bytes =
            |(_, crc64): &(_, Option<u64>)| crc64.is_some() && found.crc64.is_some() && *crc64 != found.crc64;
        if !is_meant && versions.iter().all(has_other_bytes) {
            // Written anew since: the file took them along, with whatever was set after them. Or it is another client's.
            return Ok(());
        }
        let mut headers = found.headers.clone();
        let changed = if is_meant { changed.clone() } else { without_times(changed.clone()) };
        apply(&changed, &mut headers.user_meta);
        if headers != found.headers {
            let object = Standing { key, etag: &found.etag, size: found.size, crc64: found.crc64 };
            replace_headers(&self.client, object, &headers).await?;
            log::info!("{key}: has the attributes that were set before the mount ended");
        }
        self.forget_key(key);
        Ok(())
    }

    /// What is remembered of the object at a key holds no more.
    pub(super) fn forget_key(&self, key: &ObjectKey) {
        let Some(path) = self.options.prefix.path_of(key.as_str()) else { return };
        let ino = self.tree.lock().walk(path);
        if let Some(ino) = ino {
            let mut tree = self.tree.lock();
            if let Some(node) = tree.node_mut(ino)
                && let Some(version) = &mut node.version
            {
                version.headers = None;
            }
            drop(tree);
            self.forget_freshness(ino);
        }
    }
}

impl Pending {
    fn work(&self) -> Work {
        let changed = change_of(&self.before, &self.wanted.user_meta);
        Work::Attributes { key: self.key.clone(), etag: self.etag.clone(), crc64: self.crc64, changed }
    }
}

fn is_dirty(tree: &Tree, ino: u64) -> bool {
    tree.node(ino).and_then(|node| node.open.as_ref()).is_some_and(|open| open.dirty().is_some())
}

/// The inode need not be kept for what is pending of it.
fn unpin(tree: &mut Tree, ino: u64) {
    if let Some(node) = tree.node_mut(ino) {
        node.pinned = false;
    }
    tree.drop_if_unused(ino);
}

/// Shows the version that an object has become by a copy onto itself.
fn move_along(tree: &mut Tree, ino: u64, key: &ObjectKey, before: &ETag, stored: &Stored) {
    let Some(node) = tree.node_mut(ino) else { return };
    if stored.foreign {
        (node.fresh_until, node.seen) = (None, None);
        return;
    }
    let Some(version) = node.version.as_mut().filter(|version| version.etag == *before) else { return };
    version.etag = stored.etag.clone();
    version.last_modified = stored.last_modified.unwrap_or(version.last_modified);
    let version = version.clone();
    if node.cached.as_ref() == Some(before) {
        node.cached = Some(stored.etag.clone());
    }
    node.seen = Some(Instant::now());
    if let Some(open) = &node.open
        && let Some(reader) = open.state.lock().reader.as_ref().filter(|reader| reader.etag() == *before)
    {
        reader.rekey(key.clone(), stored.etag.clone());
    }
    let kind = node.attr.kind;
    if let Some((parent, name)) = node.place.clone() {
        tree.changed(parent, &name, Some(Listed { kind, ino, version: Some(version) }));
    }
    tree.note_object(ino);
}

/// What differs: the new value of each name, `None` where it is gone.
fn change_of(before: &UserMeta, after: &UserMeta) -> MetaChange {
    let gone = before.keys().filter(|name| !after.contains_key(*name)).map(|name| (name.clone(), None));
    let set = after.iter().filter(|(name, value)| before.get(*name) != Some(value));
    gone.chain(set.map(|(name, value)| (name.clone(), Some(value.clone())))).collect()
}

fn without_times(mut changed: MetaChange) -> MetaChange {
    TIMES.iter().for_each(|time| drop(changed.remove(*time)));
    changed
}

fn apply(changed: &MetaChange, meta: &mut BTreeMap<String, String>) {
    for (name, value) in changed {
        match value {
            Some(value) => drop(meta.insert(name.clone(), value.clone())),
            None => drop(meta.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(items: &[(&str, &str)]) -> UserMeta {
        items.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_change_is_what_differs_and_can_be_made_again() {
        let before = meta(&[("mode", "1"), ("mtime", "5"), ("xattr", "x"), ("author", "a")]);
        let after = meta(&[("mode", "2"), ("mtime", "6"), ("author", "a"), ("uid", "7")]);
        let changed = change_of(&before, &after);
        let mut again = before.clone();
        apply(&changed, &mut again);
        assert_eq!(again, after);
        let mut other = meta(&[("mode", "9"), ("mtime", "100"), ("xattr", "y")]);
        apply(&without_times(changed), &mut other);
        assert_eq!(other, meta(&[("mode", "2"), ("mtime", "100"), ("uid", "7")]));
    }
}
