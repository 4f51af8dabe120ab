//! What is served while the service does not answer: what was known before, however old.
//!
//! Whoever has nothing to fall back on waits, as long as the caller's patience allows.

use std::time::Duration;

use super::error::FsError;
use super::tree::{Node, ROOT};
use super::{Entry, Vfs};
use crate::base::caller::{Patience, within};

/// How long the service may take to answer where something older would do.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same while it is known to fail.
const PATIENCE_FAILING: Duration = Duration::from_secs(1);
/// How long the kernel may believe what is old.
const TTL: Duration = Duration::from_secs(1);

impl Vfs {
    /// Asks the service, unless it does not answer and `remembered` has something.
    pub(super) async fn ask_or<T>(
        &self,
        ask: impl Future<Output = Result<T, FsError>>,
        remembered: impl Fn() -> Option<Result<T, FsError>>,
    ) -> Result<T, FsError> {
        let Some(old) = remembered() else { return ask.await };
        if self.client.is_out() || self.client.failed_lately() {
            return old;
        }
        let patience = if self.client.is_failing() { PATIENCE_FAILING } else { PATIENCE };
        match within(Patience::Strict(patience), Box::pin(ask)).await {
            Err(error) if error.is_outage() => {
                log::debug!("{error}; what is known is served");
                remembered().unwrap_or(Err(error))
            }
            other => other,
        }
    }

    /// What was last known of a name, not counted as a look-up.
    pub(super) fn remembered_name(&self, parent: u64, name: &str) -> Option<Result<Entry, FsError>> {
        let tree = self.tree.lock();
        if let Some(child) = tree.child(parent, name) {
            drop(tree);
            return self.remembered_inode(child);
        }
        let listing = tree.dir(parent)?.listing.as_ref()?;
        if listing.entries.contains_key(name) {
            return None;
        }
        let path = tree.child_path(parent, name)?;
        drop(tree);
        let unsent = self.file_key(&path).ok().and_then(|key| self.write.session_for(&key));
        if unsent.is_some() { None } else { Some(Err(FsError::NotFound)) }
    }

    /// What was last known of an inode.
    pub(super) fn remembered_inode(&self, ino: u64) -> Option<Result<Entry, FsError>> {
        let tree = self.tree.lock();
        // What was taken up from an earlier process, and not looked at since, tells nothing.
        let is_known = |node: &&Node| node.fresh_until.is_some() || node.version.is_some() || node.open.is_some();
        let node = tree.node(ino).filter(|_| ino != ROOT).filter(is_known)?;
        Some(Ok(self.as_native(&tree, Entry { attr: node.attr, ttl: TTL })))
    }
}
