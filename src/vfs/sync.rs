//! Sending what was written so far, asked for from outside (`ossfuse sync`) or by the clock (`--publish-after`).
//!
//! A file that stays open is sent as a whole, and goes on being written: its next change begins another session.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use super::Vfs;
use super::error::FsError;
use crate::base::ObjectKey;
use crate::base::time::now;
use crate::write::DirtyFile;

/// Files that are sent at a time; what is sent of them at a time is bounded elsewhere.
const FILES_AT_ONCE: usize = 64;
/// How often is looked for files that are due, of the time after which they are; and the bounds of that.
const LOOKS: u32 = 4;
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What is not in the service yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsent {
    pub files: u64,
    pub bytes: u64,
}

impl Vfs {
    /// Sends everything that was written so far at and under a path, open or closed.
    ///
    /// # Errors
    /// What could not be sent, by name; it is tried again in the background.
    pub async fn sync(&self, path: &str) -> Result<(), Vec<(String, FsError)>> {
        self.write.hurry();
        let mut failed = self.send_all_attributes(path).await;
        let files = stream::iter(self.unsent_under(path));
        let sent = files.map(|dirty| async move { (dirty.name(), self.publish(&dirty).await) });
        let sent: Vec<_> = sent.buffer_unordered(FILES_AT_ONCE).collect().await;
        failed.extend(sent.into_iter().filter_map(|(name, result)| Some((name, result.err()?))));
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    /// Files at and under a path, and their bytes, that are not in the service yet.
    pub fn unsent(&self, path: &str) -> Unsent {
        let files = self.unsent_under(path);
        let changes = Unsent { files: self.attributes_pending(path), bytes: 0 };
        files.iter().map(|dirty| dirty.status()).fold(changes, |sum, status| Unsent {
            files: sum.files + 1,
            bytes: sum.bytes + status.size - status.bytes_done.min(status.size),
        })
    }

    /// Changes of names and attributes that were promised and are not in the bucket yet.
    pub fn changes_pending(&self) -> u64 {
        self.attributes_pending("") + (self.left.len() + self.unfinished.lock().len()) as u64
    }

    /// What killed writers left is not among it: nobody wants that sent.
    fn unsent_under(&self, path: &str) -> Vec<Arc<DirtyFile>> {
        let mut files = self.write.live();
        files
            .retain(|dirty| !dirty.is_killed() && dirty.publishable_key().is_some_and(|key| self.is_under(&key, path)));
        files
    }

    /// Whether a key is that of the path, or of something below it.
    pub(super) fn is_under(&self, key: &ObjectKey, path: &str) -> bool {
        let below = self.options.prefix.dir_key(path);
        key.as_str().starts_with(&below) || below.strip_suffix('/') == Some(key.as_str())
    }

    /// Sends each file that stays open so long after it began to change, again and again, while the mount lives.
    pub fn publish_after(&self, after: Duration) {
        let me = self.me.clone();
        let pause = (after / LOOKS).clamp(LOOK.0, LOOK.1);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let Some(vfs) = me.upgrade() else { return };
                let due = vfs.unsent_under("").into_iter().filter(|dirty| is_due(dirty, after));
                let sent = stream::iter(due).map(|dirty| {
                    let vfs = &vfs;
                    async move {
                        if let Err(error) = vfs.publish(&dirty).await {
                            log::warn!("{}: {error}", dirty.name());
                        }
                    }
                });
                sent.buffer_unordered(FILES_AT_ONCE).collect::<()>().await;
            }
        });
    }
}

fn is_due(dirty: &DirtyFile, after: Duration) -> bool {
    let status = dirty.status();
    // What is closed is on its way already.
    !dirty.is_closing() && now().duration_since(status.created_at).is_ok_and(|age| age >= after)
}
