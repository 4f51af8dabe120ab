//! What is still to be sent, and waiting until nothing is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::base::SessionId;
use crate::control::Pending;
use crate::spill::Phase;
use crate::vfs::Vfs;
use crate::write::{FileStatus, WriteEngine};

/// How often is looked whether it is done.
const LOOK: Duration = Duration::from_millis(20);

/// Watches the write sessions of a mount.
#[derive(Debug)]
pub(super) struct Drain {
    vfs: Arc<Vfs>,
    engine: WriteEngine,
    /// Sessions of an earlier process that are to be published, also where no call had promised that.
    replayed: BTreeSet<SessionId>,
    draining: AtomicUsize,
}

/// How draining ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drained {
    All,
    TimedOut(Pending),
}

impl Drain {
    pub(super) fn new(vfs: Arc<Vfs>, replayed: BTreeSet<SessionId>) -> Self {
        let engine = vfs.write_engine().clone();
        Self { vfs, engine, replayed, draining: AtomicUsize::new(0) }
    }

    pub(super) fn engine(&self) -> &WriteEngine {
        &self.engine
    }

    /// Whether somebody waits for the end.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed) > 0
    }

    /// Files that were closed or fsynced, or are replayed, and are not in the bucket yet; and changes of names and
    /// attributes that are not.
    pub(super) fn pending(&self) -> Pending {
        let is_due = |status: &FileStatus| {
            let replayed = status.phase == Phase::Open && self.replayed.contains(&status.session);
            replayed || status.phase.is_promised()
        };
        let due = self.engine.live().into_iter().map(|file| file.status()).filter(is_due);
        let changes = Pending { files: self.vfs.changes_pending(), bytes: 0 };
        due.fold(changes, |sum, status| Pending {
            files: sum.files + 1,
            bytes: sum.bytes + status.size - status.bytes_done.min(status.size),
        })
    }

    /// Sessions that are being written or sent.
    pub(super) fn busy(&self) -> BTreeSet<SessionId> {
        let live = self.engine.live().into_iter().map(|file| file.status());
        live.filter(|status| !matches!(status.phase, Phase::Kept(_))).map(|status| status.session).collect()
    }

    /// Waits until nothing is pending; gives up after `timeout`, or when nobody waits any more.
    pub(super) async fn drain(
        &self,
        timeout: Duration,
        report: impl Fn(Pending),
        is_abandoned: impl Fn() -> bool,
    ) -> Drained {
        self.draining.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let drained = loop {
            let pending = self.pending();
            if pending.files == 0 {
                break Drained::All;
            }
            if started.elapsed() >= timeout || is_abandoned() {
                break Drained::TimedOut(pending);
            }
            self.engine.hurry();
            self.vfs.hurry_attributes();
            self.send_synced();
            report(pending);
            tokio::time::sleep(LOOK).await;
        };
        self.draining.fetch_sub(1, Ordering::Relaxed);
        drained
    }

    /// What was fsynced and is still open is published too.
    fn send_synced(&self) {
        for file in self.engine.live() {
            if file.status().phase == Phase::Synced {
                file.publish_in_background();
            }
        }
    }

    /// Waits until nothing is pending, however long that takes.
    pub(super) async fn finish(&self) {
        self.drain(Duration::MAX, |_| {}, || false).await;
    }
}
