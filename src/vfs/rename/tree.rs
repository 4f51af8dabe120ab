//! Renaming directories: an intent, copies of all that is below, then the deletes; and finishing what a crash or a
//! failure has interrupted.
//!
//! While a move works, nothing else of this mount changes the bucket in either tree. The switch from the old tree
//! to the new one is one record in the intent file: before it the old one is true, after it the new one.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::super::Vfs;
use super::super::attr::Kind;
use super::super::call::Call;
use super::super::error::FsError;
use super::super::later::LeftChange;
use super::{Place, RenameMode};
use crate::base::caller::wait;
use crate::base::time::{micros, now};
use crate::base::{ObjectKey, SessionId, crash};
use crate::intent::{IntentRecord, Moved, Phase, TreeMove, Work};
use crate::oss::{self, ErrorKind};
use crate::write::{Area, Fence, Rekeyed, WriteError};

/// The pause before a move that failed is tried again, doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How often is looked whether a move has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Moves that go on in the background, by the areas they touch.
pub(in super::super) type Unfinished = HashMap<SessionId, Vec<Area>>;

/// A move of a directory that was begun.
#[derive(Debug)]
struct Begun {
    id: SessionId,
    from: String,
    to: String,
    phase: Phase,
    /// Whether the intent must survive power loss: not for a directory that is empty.
    durable: bool,
    /// The inode table shows the new tree already.
    shown: bool,
}

impl Begun {
    fn areas(&self) -> Vec<Area> {
        vec![Area::Tree(self.from.clone()), Area::Tree(self.to.clone())]
    }

    fn record(&self) -> IntentRecord {
        let work = Work::MoveTree { from: self.from.clone(), to: self.to.clone(), phase: self.phase };
        IntentRecord { id: self.id, work }
    }
}

impl Vfs {
    /// Waits for the rename that was begun by an earlier process, for the same request.
    pub(super) async fn wait_for_move(&self, from: Place<'_>, to: Place<'_>) -> Result<(), FsError> {
        let paths = [self.child_path(from.parent, from.name)?, self.child_path(to.parent, to.name)?];
        for path in &paths {
            self.settled_at(&self.file_key(path)?).await?;
        }
        let areas = paths.map(|path| Area::Tree(self.options.prefix.dir_key(&path)));
        while self.check_finished(&areas).is_err() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    pub(super) async fn rename_dir(
        &self,
        call: Call,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let (old, new, fence) = loop {
            let (old, new) = (self.child_path(from.parent, from.name)?, self.child_path(to.parent, to.name)?);
            if old == new {
                return Ok(());
            }
            if new.starts_with(&format!("{old}/")) {
                return Err(FsError::Invalid);
            }
            let areas = [&old, &new].map(|path| Area::Tree(self.options.prefix.dir_key(path)));
            self.check_finished(&areas)?;
            // Before the fence, which would hold them up.
            self.settled_below(&self.options.prefix.dir_key(&old)).await?;
            self.settled_at(&self.file_key(&new)?).await?;
            let fence = wait(self.write.fences().fence(&areas)).await?;
            if self.child_path(from.parent, from.name)? == old && self.child_path(to.parent, to.name)? == new {
                self.check_finished(&areas)?;
                break (old, new, fence);
            }
        };
        let keys = (self.options.prefix.dir_key(&old), self.options.prefix.dir_key(&new));
        let mut tree = TreeMove::new(&self.client, self.write.upload().journal(), &keys.0, &keys.1);
        if self.was_begun(call) && tree.survey().await? == 0 {
            // All of it was moved before the process died; only the table does not show it.
            let none = Moved::remembered(self.write.upload().journal(), SessionId::generate(micros(now())));
            self.relocate(&old, &new, &none);
            return Ok(());
        }
        self.check_dir_target(to, &new, mode).await?;
        self.begin(call);
        self.send_attributes_within(&old).await?;
        let (from, to) = keys;
        let durable = tree.survey().await? > 1;
        let work = Work::MoveTree { from: from.clone(), to: to.clone(), phase: Phase::Copying };
        let id = self.intents.begin(work, durable)?.id;
        let mut begun = Begun { id, from, to, phase: Phase::Copying, durable, shown: false };
        match self.advance(&mut begun, tree, false).await {
            Ok(()) => Ok(()),
            Err(error) => {
                log::error!("{} is not moved to {} yet: {error}; it goes on in the background", begun.from, begun.to);
                drop(fence);
                self.go_on(begun, None, PAUSE.0);
                Err(error)
            }
        }
    }

    /// Refuses what touches a move that goes on in the background.
    fn check_finished(&self, areas: &[Area]) -> Result<(), FsError> {
        let unfinished = self.unfinished.lock();
        let touched = unfinished.values().flatten().any(|held| areas.iter().any(|area| area.overlaps(held)));
        if touched { Err(FsError::Busy) } else { Ok(()) }
    }

    /// The new name must be free, or that of an empty directory.
    async fn check_dir_target(&self, to: Place<'_>, path: &str, mode: RenameMode) -> Result<(), FsError> {
        match self.resolve(to.parent, to.name).await {
            Ok(_) if mode == RenameMode::NoReplace => Err(FsError::Exists),
            Ok((ino, Kind::Dir)) => self.check_empty(ino, path).await,
            Ok(_) => Err(FsError::NotDirectory),
            Err(FsError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Brings a move to its end, from where it is.
    async fn advance(&self, begun: &mut Begun, mut tree: TreeMove, again: bool) -> Result<(), FsError> {
        let journal = self.write.upload().journal();
        let moved = match begun.phase {
            Phase::Copying => {
                let moved = tree.copy(begun.id, again).await?;
                begun.phase = Phase::Deleting { copied_until: moved.latest() };
                self.intents.write(&begun.record(), begun.durable)?;
                crash::point("move-switched");
                Some(moved)
            }
            Phase::Deleting { .. } => None,
        };
        let remembered = Moved::remembered(journal, begun.id);
        let copies = moved.as_ref().unwrap_or(&remembered);
        if !std::mem::replace(&mut begun.shown, true) {
            self.relocate(self.path_in(&begun.from), self.path_in(&begun.to), copies);
            self.move_attributes(&begun.from, &begun.to).await?;
            crash::point("move-shown");
        }
        self.move_sessions(begun, copies).await?;
        crash::point("move-sessions-moved");
        // A session that came back after power loss would be published under the old name again.
        self.write.spill().settle_ends().await?;
        match (moved, begun.phase) {
            (Some(moved), _) => tree.delete(begun.id, &moved).await?,
            (None, Phase::Deleting { copied_until }) => tree.delete_rest(begun.id, copied_until).await?,
            (None, Phase::Copying) => {}
        }
        crash::point("move-deleted");
        self.intents.finish(begun.id);
        if let Err(error) = journal.forget_intent(begun.id) {
            log::warn!("{error}");
        }
        Ok(())
    }

    /// The path in the mount of a directory's prefix.
    fn path_in<'p>(&self, prefix: &'p str) -> &'p str {
        let path = prefix.strip_prefix(self.options.prefix.as_str()).unwrap_or(prefix);
        path.trim_end_matches('/')
    }

    /// Write sessions below go along: those at work, and those that wait on disk for `recover`.
    async fn move_sessions(&self, begun: &Begun, moved: &Moved) -> Result<(), FsError> {
        let followed = |key: &ObjectKey| -> Option<Result<(ObjectKey, Option<Rekeyed>), FsError>> {
            let relative = key.as_str().strip_prefix(&begun.from)?;
            let parsed = ObjectKey::parse(&format!("{}{relative}", begun.to));
            Some(parsed.map_err(FsError::from).map(|new| {
                let copy = moved.get(relative);
                let object = copy.map(|copy| Rekeyed { before: copy.before, key: new.clone(), after: copy.after });
                (new, object)
            }))
        };
        let live = self.write.live();
        for dirty in &live {
            let Some((key, object)) = dirty.publishable_key().and_then(|key| followed(&key)).transpose()? else {
                continue;
            };
            match dirty.rename(key, object).await {
                Ok(()) | Err(WriteError::Retired) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for found in self.write.spill().scan()? {
            let Ok(Some(mut record)) = found.record else { continue };
            if live.iter().any(|dirty| dirty.id() == record.id) {
                continue;
            }
            let Some((key, object)) = record.key.as_ref().and_then(followed).transpose()? else { continue };
            if let Some(object) = object {
                record.follow(&object.before, &object.key, &object.after);
            }
            record.key = Some(key);
            found.dir.write_record(&record, true)?;
        }
        Ok(())
    }

    /// Goes on with a move in the background until it is done.
    fn go_on(&self, mut begun: Begun, mut fence: Option<Fence>, mut pause: Duration) {
        self.unfinished.lock().insert(begun.id, begun.areas());
        let me = self.me.clone();
        self.runtime.spawn(async move {
            loop {
                let Some(vfs) = me.upgrade() else { return };
                let held = match fence.take() {
                    Some(fence) => {
                        fence.cleared().await;
                        fence
                    }
                    None => {
                        tokio::time::sleep(pause).await;
                        vfs.write.fences().fence(&begun.areas()).await
                    }
                };
                let tree = TreeMove::new(&vfs.client, vfs.write.upload().journal(), &begun.from, &begun.to);
                match vfs.advance(&mut begun, tree, true).await {
                    Ok(()) => {
                        vfs.unfinished.lock().remove(&begun.id);
                        log::info!("{} has been moved to {}", begun.from, begun.to);
                        return;
                    }
                    Err(error) => log::warn!("{} is not moved to {} yet: {error}", begun.from, begun.to),
                }
                drop(held);
                pause = (pause * 2).clamp(PAUSE.0, PAUSE.1);
            }
        });
    }

    /// Takes up what an earlier process has begun, in the background. The trees of its moves are fenced in when
    /// this returns, so that nothing is published in them before they are where they belong.
    pub fn take_up(&self, mut left: Vec<IntentRecord>) {
        left.sort_by_key(|intent| intent.id);
        let mut attributes: BTreeMap<ObjectKey, Vec<LeftChange>> = BTreeMap::new();
        for IntentRecord { id, work } in left {
            match work {
                Work::MoveTree { from, to, phase } => {
                    log::info!("{from} was being moved to {to}; going on with that");
                    let begun = Begun { id, from, to, phase, durable: true, shown: false };
                    let fence = self.write.fences().try_fence(&begun.areas());
                    self.go_on(begun, fence, Duration::ZERO);
                }
                Work::MoveFile { from, to, etag } => {
                    let areas = [&from, &to].map(|key| Area::Key(key.as_str().to_owned()));
                    let fence = self.write.fences().try_fence(&areas);
                    self.repeat(id, vec![from.clone(), to.clone()], fence, move |vfs| {
                        let (from, to, etag) = (from.clone(), to.clone(), etag.clone());
                        async move { vfs.finish_file_move(&from, &to, &etag).await }
                    });
                }
                Work::Exchange { one, two, hidden, swap } => {
                    self.finish_later(id, [one, two, hidden], swap, Vec::new())
                }
                Work::Attributes { key, etag, crc64, changed } => {
                    attributes.entry(key).or_default().push(LeftChange { id, etag, crc64, changed });
                }
                Work::Hidden { key } => self.repeat(id, Vec::new(), None, move |vfs| {
                    let key = key.clone();
                    async move { vfs.client.delete_object(&key).await }
                }),
            }
        }
        attributes.into_iter().for_each(|(key, left)| self.replay_attributes(key, left));
    }

    /// Does the work of an intent again and again until it is done. Whoever looks at what is at `keys` waits for that.
    pub(in super::super) fn repeat<F>(
        &self,
        id: SessionId,
        keys: Vec<ObjectKey>,
        fence: Option<Fence>,
        work: impl Fn(std::sync::Arc<Self>) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<(), oss::Error>> + Send,
    {
        let me = self.me.clone();
        self.left.add(&keys);
        self.runtime.spawn(async move {
            let _fence = fence;
            let mut pause = PAUSE.0;
            loop {
                let Some(vfs) = me.upgrade() else { return };
                match work(vfs.clone()).await {
                    Ok(()) => {
                        vfs.intents.finish(id);
                        vfs.left.remove(&keys);
                        return;
                    }
                    Err(error) => log::warn!("{error}; trying again"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        });
    }

    /// The rename of a file was cut off: where it was copied, and nothing hangs on the old name, that goes, and who knew
    /// the file by it knows it by the new one.
    async fn finish_file_move(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        etag: &crate::base::ETag,
    ) -> Result<(), oss::Error> {
        if self.write.session_for(from).is_some() {
            return Ok(());
        }
        let (source, target) = tokio::join!(self.client.head_object(from), self.client.head_object(to));
        match (source, target) {
            (Err(source), Ok(target)) if source.kind == ErrorKind::NoSuchKey => {
                self.relocate_file(from, to, &target);
                Ok(())
            }
            (_, Err(error)) if error.kind == ErrorKind::NoSuchKey => Ok(()),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(source), Ok(target)) => {
                let copied = super::exchange::same_bytes(&source, &target);
                if copied && source.etag == *etag && target.last_modified >= source.last_modified {
                    log::info!("{from} had been copied to {to}; the rename is finished");
                    self.relocate_file(from, to, &target);
                    self.client.delete_object(from).await?;
                }
                Ok(())
            }
        }
    }
}
