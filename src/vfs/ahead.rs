//! Attributes that are asked for before somebody looks, several at a time: whoever looks at the files of a directory one
//! after the other, in the order of its listing (`ls -l`, `find`, `rsync`), waits for the service once and not a
//! thousand times.
//!
//! No more is asked for than was looked at in that order before. What was told is taken once, while it is young and
//! while this mount has changed nothing in the bucket since; else it is as if nothing had been asked. Whether the object
//! is still that is for whoever opens it to find out.

use std::collections::HashMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::Vfs;
use super::attr::Kind;
use super::tree::{Listed, Tree};
use crate::base::ObjectKey;
use crate::base::caller::{Patience, wait, within};
use crate::oss::{self, ObjectMeta};

/// So many look-ups in the order of the listing are no accident.
const ROW_MIN: usize = 8;
/// Most requests that are under way ahead of somebody.
const AHEAD_MAX: usize = 32;
/// Names that are passed in search of those that must be asked for.
const LOOKED_AT: usize = 4 * AHEAD_MAX;
/// What was told longer ago is asked for again.
const YOUNG: Duration = Duration::from_secs(2);
/// Directories that are followed at a time.
const DIRS_MAX: usize = 64;

/// Who looks at what, and what was asked for ahead of it.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    rows: Mutex<HashMap<u64, Row>>,
    asked: Mutex<HashMap<ObjectKey, Asked>>,
}

/// Look-ups in a directory, in the order of its listing.
#[derive(Debug, Default)]
struct Row {
    last: String,
    len: usize,
    /// Up to here it was asked.
    until: String,
}

#[derive(Debug)]
struct Asked {
    at: Instant,
    /// What this mount had changed in the bucket by then.
    moment: u64,
    answer: JoinHandle<Result<ObjectMeta, oss::Error>>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

impl Vfs {
    /// What was asked for ahead of a look at the object of a listed file, if it may still be believed; asks for the
    /// files that come next.
    pub(super) async fn told_ahead(&self, parent: u64, name: &str, key: &ObjectKey) -> Option<ObjectMeta> {
        if self.options.attr_ttl < YOUNG {
            return None;
        }
        self.follow(parent, name);
        let mut asked = self.ahead.asked.lock().remove(key)?;
        let told = wait(&mut asked.answer).await.ok()?.ok()?.ok()?;
        let unchanged = asked.moment == self.write.fences().moment();
        (unchanged && asked.at.elapsed() < YOUNG).then_some(told)
    }

    /// Notes a look-up, and asks for what will be wanted next.
    fn follow(&self, parent: u64, name: &str) {
        let next = {
            let tree = self.tree.lock();
            let mut rows = self.ahead.rows.lock();
            if rows.len() >= DIRS_MAX && !rows.contains_key(&parent) {
                rows.clear();
            }
            let Some(listing) = tree.fresh_listing(parent, self.options.list_ttl) else { return };
            let wanted = |after: &str| {
                let after = listing.entries.range((Excluded(after.to_owned()), Unbounded)).take(LOOKED_AT);
                after.filter(|(name, listed)| self.is_unknown(&tree, parent, name, listed))
            };
            let row = rows.entry(parent).or_default();
            let goes_on = wanted(&row.last).next().is_some_and(|(next, _)| next == name);
            (row.len, row.last) = (if goes_on { row.len + 1 } else { 0 }, name.to_owned());
            if row.len < ROW_MIN {
                row.until = name.to_owned();
                return;
            }
            let upto = wanted(name).take(row.len.min(AHEAD_MAX)).map(|(next, _)| next);
            let next: Vec<String> = upto.filter(|next| **next > row.until).cloned().collect();
            if let Some(last) = next.last() {
                row.until.clone_from(last);
            }
            next
        };
        let moment = self.write.fences().moment();
        let next: Vec<_> = next.iter().filter_map(|name| self.ask_ahead(parent, name, moment)).collect();
        let mut asked = self.ahead.asked.lock();
        asked.retain(|_, asked| asked.at.elapsed() < YOUNG);
        asked.extend(next);
    }

    fn ask_ahead(&self, parent: u64, name: &str, moment: u64) -> Option<(ObjectKey, Asked)> {
        let key = self.file_key(&self.child_path(parent, name).ok()?).ok()?;
        let (client, of) = (self.client.clone(), key.clone());
        // Whoever comes for it asks again where this fails.
        let ask = within(Patience::Strict(YOUNG), async move { client.head_object(&of).await });
        Some((key, Asked { at: Instant::now(), moment, answer: self.runtime.spawn(ask) }))
    }

    /// Whether a look at a listed file would have to ask the service.
    fn is_unknown(&self, tree: &Tree, parent: u64, name: &str, listed: &Listed) -> bool {
        if listed.kind != Kind::File {
            return false;
        }
        let Some(node) = tree.child(parent, name).and_then(|ino| tree.node(ino)) else { return true };
        let is_unsent = node.open.as_ref().is_some_and(|open| open.dirty().is_some());
        let same = node
            .version
            .as_ref()
            .zip(listed.version.as_ref())
            .is_some_and(|(held, listed)| held.headers.is_some() && listed.same_state(held));
        !is_unsent && !same
    }
}
