//! Two files change places, by way of a copy of the first under a hidden key.
//!
//! Nothing is lost by a kill at any point: an intent tells how far it has come, and the hidden copy stands until both
//! are where they belong. Other clients see one of the two twice for a moment.

use std::sync::Arc;

use super::super::Vfs;
use super::super::attr::{Kind, Version};
use super::super::call::Call;
use super::super::error::FsError;
use super::super::tree::Listed;
use super::{Place, relocate, stale};
use crate::base::caller::wait;
use crate::base::limits::PRIVATE_DIR;
use crate::base::time::{micros, now};
use crate::base::{ETag, ObjectKey, SessionId, crash};
use crate::intent::{IntentRecord, Swap, Work, copy_any};
use crate::journal::CopyRecord;
use crate::ledger::Effect;
use crate::oss::{self, CopyOptions, CopyReceipt, ErrorKind, ObjectMeta};
use crate::write::{Area, Fence, Rekeyed, WriteError};

/// How often writers may begin to change one of the two again while both are being sent.
const TRIES: u32 = 8;

/// One of the two.
#[derive(Debug)]
struct Side {
    ino: u64,
    key: ObjectKey,
    etag: ETag,
}

/// One of the two, where it is now.
#[derive(Debug)]
struct Exchanged {
    ino: u64,
    key: ObjectKey,
    /// Its copy there; `None` where it is not known to be one.
    record: Option<CopyRecord>,
}

impl Side {
    fn moved_to(&self, other: &Self, copy: CopyReceipt) -> Exchanged {
        let record = CopyRecord { before: self.etag.clone(), after: copy.etag, at: copy.last_modified };
        Exchanged { ino: self.ino, key: other.key.clone(), record: Some(record) }
    }
}

/// Somebody who reads a version of one of the two, and the key at which it is in the end.
#[derive(Debug)]
pub(super) struct Reading {
    ino: u64,
    etag: ETag,
    then: ObjectKey,
}

impl Vfs {
    /// Has two names change places.
    ///
    /// # Errors
    /// `Invalid` for directories.
    pub(super) async fn exchange(&self, call: Call, one: Place<'_>, two: Place<'_>) -> Result<(), FsError> {
        let (first, second) = (self.resolve(one.parent, one.name).await?, self.resolve(two.parent, two.name).await?);
        if first.0 == second.0 {
            self.done(call, Effect::Nothing);
            return Ok(());
        }
        if first.1 == Kind::Dir || second.1 == Kind::Dir {
            return Err(FsError::Invalid);
        }
        for place in [one, two] {
            self.settled_at(&self.file_key(&self.child_path(place.parent, place.name)?)?).await?;
        }
        for _ in 0..TRIES {
            for ino in [first.0, second.0] {
                if let Some(dirty) = self.dirty_at(ino) {
                    self.publish(&dirty).await?;
                }
            }
            let (paths, _fence) = self.fence_both(one, two).await?;
            if self.dirty_at(first.0).is_some() || self.dirty_at(second.0).is_some() {
                continue;
            }
            let one = self.side(first.0, &paths.0).await?;
            let two = self.side(second.0, &paths.1).await?;
            return self.exchange_objects(call, &one, &two).await;
        }
        Err(FsError::Busy)
    }

    /// What an earlier process had begun is finished by whoever takes up its intent; names and versions follow here,
    /// as they are found.
    pub(super) async fn exchange_again(&self, call: Call, one: Place<'_>, two: Place<'_>) -> Result<(), FsError> {
        let (paths, _fence) = self.fence_both(one, two).await?;
        let keys = [self.file_key(&paths.0)?, self.file_key(&paths.1)?];
        let (at_one, at_two) = tokio::join!(self.found(&keys[0]), self.found(&keys[1]));
        let found = [at_one?, at_two?];
        let held = {
            let tree = self.tree.lock();
            [one, two].map(|place| {
                let ino = tree.child(place.parent, place.name)?;
                Some((ino, tree.node(ino)?.version.clone()))
            })
        };
        let [Some((first, version)), Some((second, other))] = held else {
            // Nothing is known of one of them here: the next look-up tells.
            self.note_done(call);
            held.into_iter().flatten().for_each(|(ino, _)| self.forget_freshness(ino));
            return Ok(());
        };
        let [one, two] = keys;
        let moves = [
            Exchanged { ino: first, record: copied(version.as_ref(), found[1].as_ref()), key: two },
            Exchanged { ino: second, record: copied(other.as_ref(), found[0].as_ref()), key: one },
        ];
        self.exchanged(call, moves).await?;
        [first, second].into_iter().for_each(|ino| self.forget_freshness(ino));
        Ok(())
    }

    async fn fence_both(&self, one: Place<'_>, two: Place<'_>) -> Result<((String, String), Fence), FsError> {
        loop {
            let paths = (self.child_path(one.parent, one.name)?, self.child_path(two.parent, two.name)?);
            let areas = [self.key_area(&paths.0), self.key_area(&paths.1)];
            let fence = wait(self.write.fences().fence(&areas)).await?;
            if self.child_path(one.parent, one.name)? == paths.0 && self.child_path(two.parent, two.name)? == paths.1 {
                return Ok((paths, fence));
            }
        }
    }

    async fn side(&self, ino: u64, path: &str) -> Result<Side, FsError> {
        let key = self.file_key(path)?;
        self.send_attributes_at(ino, &key).await?;
        let known = self.tree.lock().node(ino).and_then(|node| node.version.as_ref().map(|v| v.etag.clone()));
        let etag = match known {
            Some(etag) => etag,
            None => self.client.get_object_meta(&key).await?.etag,
        };
        Ok(Side { ino, key, etag })
    }

    async fn exchange_objects(&self, call: Call, one: &Side, two: &Side) -> Result<(), FsError> {
        let name = SessionId::generate(micros(now()));
        let hidden = ObjectKey::parse(&format!("{}{PRIVATE_DIR}{name}", self.options.prefix.as_str()))?;
        let work = |swap| Work::Exchange { one: one.key.clone(), two: two.key.clone(), hidden: hidden.clone(), swap };
        let intent = self.intents.begin(work(Swap::Saving), true)?.id;
        let saved = match self.copy_version(&one.key, &hidden, &one.etag).await {
            Ok(saved) => saved,
            Err(error) => {
                self.client.delete_object(&hidden).await?;
                self.intents.finish(intent);
                return Err(stale(error));
            }
        };
        // From this record on a later process goes through with it, and takes the call for begun, which is noted last:
        // one that is begun and of which no intent stands any more has been done.
        let swap = Swap::Swapping { one: one.etag.clone(), two: two.etag.clone(), call: call.unique() };
        self.intents.write(&IntentRecord { id: intent, work: work(swap.clone()) }, true)?;
        crash::point("exchange-saved");
        self.begin(call);
        self.rekey_reader(one.ino, &one.etag, &hidden, &saved.etag);
        match self.swap(call, (one, two), &hidden, &saved.etag).await {
            Ok(()) => {
                self.intents.finish(intent);
                Ok(())
            }
            Err(error) => {
                // Who has them open reads on, wherever it was cut off.
                let first = |etag: &ETag| Reading { ino: one.ino, etag: etag.clone(), then: two.key.clone() };
                let second = Reading { ino: two.ino, etag: two.etag.clone(), then: one.key.clone() };
                let readers = vec![first(&one.etag), first(&saved.etag), second];
                self.finish_later(intent, [one.key.clone(), two.key.clone(), hidden], swap, readers);
                Err(error)
            }
        }
    }

    async fn swap(
        &self,
        call: Call,
        (one, two): (&Side, &Side),
        hidden: &ObjectKey,
        saved: &ETag,
    ) -> Result<(), FsError> {
        let second = self.copy_version(&two.key, &one.key, &two.etag).await.map_err(stale)?;
        crash::point("exchange-one-copied");
        self.rekey_reader(two.ino, &two.etag, &one.key, &second.etag);
        let first = self.copy_version(hidden, &two.key, saved).await.map_err(stale)?;
        crash::point("exchange-both-copied");
        self.rekey_reader(one.ino, saved, &two.key, &first.etag);
        self.exchanged(call, [one.moved_to(two, first), two.moved_to(one, second)]).await?;
        crash::point("exchange-shown");
        Ok(self.client.delete_object(hidden).await?)
    }

    /// Finishes an exchange in the background, again and again until it is done.
    pub(super) fn finish_later(&self, intent: SessionId, keys: [ObjectKey; 3], swap: Swap, readers: Vec<Reading>) {
        let areas = [&keys[0], &keys[1]].map(|key| Area::Key(key.as_str().to_owned()));
        let work = Arc::new((keys, swap, readers));
        self.repeat(intent, Vec::new(), self.write.fences().try_fence(&areas), move |vfs| {
            let work = work.clone();
            async move {
                let ([one, two, hidden], swap, readers) = &*work;
                vfs.finish_exchange(one, two, hidden, swap).await?;
                for Reading { ino, etag, then } in readers {
                    if let Some(found) = vfs.found(then).await? {
                        vfs.rekey_reader(*ino, etag, then, &found.etag);
                    }
                }
                [one, two].iter().for_each(|key| vfs.forget_key(key));
                Ok(())
            }
        });
    }

    async fn copy_version(&self, from: &ObjectKey, to: &ObjectKey, etag: &ETag) -> Result<CopyReceipt, oss::Error> {
        let options = CopyOptions { if_match: Some(etag.clone()), ..CopyOptions::default() };
        copy_any(&self.client, from, to, &options).await
    }

    fn rekey_reader(&self, ino: u64, before: &ETag, key: &ObjectKey, after: &ETag) {
        let tree = self.tree.lock();
        let reader = tree.node(ino).and_then(|node| node.open.as_ref()?.state.lock().reader.clone());
        if let Some(reader) = reader.filter(|reader| reader.etag() == *before) {
            reader.rekey(key.clone(), after.clone());
        }
    }

    /// Shows both under their new names; sessions that were begun meanwhile go along.
    async fn exchanged(&self, call: Call, moves: [Exchanged; 2]) -> Result<(), FsError> {
        {
            let mut tree = self.tree.lock();
            tree.exchange(moves[0].ino, moves[1].ino);
            // Together: a repetition must not change them back.
            self.note_done(call);
            for Exchanged { ino, key, record } in &moves {
                let Some(node) = tree.node_mut(*ino) else { continue };
                relocate::carry(node, key, record.as_ref());
                let (kind, version, place) = (node.attr.kind, node.version.clone(), node.place.clone());
                if let Some((parent, name)) = place {
                    tree.changed(parent, &name, Some(Listed { kind, ino: *ino, version }));
                }
                tree.note_object(*ino);
            }
        }
        for Exchanged { ino, key, record } in moves {
            let Some(dirty) = self.dirty_at(ino) else { continue };
            let object = record.map(|copy| Rekeyed { before: copy.before, key: key.clone(), after: copy.after });
            match dirty.rename(key, object).await {
                Err(WriteError::Retired) => self.pass_retired(&dirty),
                other => other?,
            }
        }
        Ok(())
    }

    /// Brings an exchange to its end that an earlier process has begun.
    async fn finish_exchange(
        &self,
        one: &ObjectKey,
        two: &ObjectKey,
        hidden: &ObjectKey,
        swap: &Swap,
    ) -> Result<(), oss::Error> {
        let Swap::Swapping { one: first, two: second, .. } = swap else {
            return self.client.delete_object(hidden).await;
        };
        let (at_one, at_two) = tokio::join!(self.found(one), self.found(two));
        let (at_one, at_two, saved) = (at_one?, at_two?, self.found(hidden).await?);
        let is = |found: &Option<ObjectMeta>, etag: &ETag| found.as_ref().is_some_and(|found| found.etag == *etag);
        let Some(saved) = saved else { return Ok(()) };
        let mut second_is_safe = at_one.as_ref().zip(at_two.as_ref()).is_some_and(|(one, two)| same_bytes(one, two));
        if is(&at_one, first) && is(&at_two, second) {
            self.copy_version(two, one, second).await?;
            second_is_safe = true;
        }
        if second_is_safe && is(&at_two, second) {
            log::info!("{one} and {two} were about to change places; that is finished");
            self.copy_version(hidden, two, &saved.etag).await?;
        }
        self.client.delete_object(hidden).await
    }

    async fn found(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, oss::Error> {
        match self.client.head_object(key).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is found at a key as the copy of a version, if it has its bytes.
pub(super) fn copied(version: Option<&Version>, found: Option<&ObjectMeta>) -> Option<CopyRecord> {
    let (version, found) = version.zip(found)?;
    let is_same = version.size == found.size && version.crc64.is_some() && version.crc64 == found.crc64;
    is_same.then(|| CopyRecord {
        before: version.etag.clone(),
        after: found.etag.clone(),
        at: Some(found.last_modified),
    })
}

pub(super) fn same_bytes(one: &ObjectMeta, two: &ObjectMeta) -> bool {
    one.size == two.size && one.crc64.is_some() && one.crc64 == two.crc64
}
