//! Objects that an earlier process has left in the middle of a change: attributes that are to be sent, a rename that is
//! to be finished. Whoever looks at one, or gives it another name, waits for that: what was answered must be seen. A file
//! that is unsent is no such object: its session shows what it has.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::Vfs;
use super::error::FsError;
use crate::base::ObjectKey;
use crate::base::caller::wait;

/// The keys, and how many changes wait for each.
#[derive(Debug)]
pub(super) struct Left(watch::Sender<BTreeMap<ObjectKey, usize>>);

impl Default for Left {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Left {
    pub(super) fn add(&self, keys: &[ObjectKey]) {
        self.0.send_modify(|left| keys.iter().for_each(|key| *left.entry(key.clone()).or_default() += 1));
    }

    pub(super) fn remove(&self, keys: &[ObjectKey]) {
        self.0.send_modify(|left| {
            for key in keys {
                if let Some(count) = left.get_mut(key) {
                    *count -= 1;
                }
            }
            left.retain(|_, count| *count > 0);
        });
    }

    pub(super) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    async fn wait_until(&self, settled: impl Fn(&BTreeMap<ObjectKey, usize>) -> bool) -> Result<(), FsError> {
        if settled(&self.0.borrow()) {
            return Ok(());
        }
        let mut left = self.0.subscribe();
        // It fails only where the sender is gone, which lives as long as this.
        wait(async { drop(left.wait_for(settled).await) }).await?;
        Ok(())
    }
}

impl Vfs {
    /// Waits until what an earlier process has left undone at a key is done.
    pub(super) async fn settled_at(&self, key: &ObjectKey) -> Result<(), FsError> {
        self.left.wait_until(|left| !left.contains_key(key) || self.is_unsent(key)).await
    }

    /// The same for all that is below a prefix.
    pub(super) async fn settled_below(&self, prefix: &str) -> Result<(), FsError> {
        let is_left = |key: &ObjectKey| key.as_str().starts_with(prefix) && !self.is_unsent(key);
        self.left.wait_until(|left| !left.keys().any(is_left)).await
    }

    fn is_unsent(&self, key: &ObjectKey) -> bool {
        self.write.session_for(key).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_settled_when_all_that_was_left_there_is_done() {
        let (left, keys) = (Left::default(), ["d/a", "d/b"].map(|key| ObjectKey::parse(key).unwrap()));
        let is_settled = |left: &BTreeMap<ObjectKey, usize>| !left.contains_key(&ObjectKey::parse("d/a").unwrap());
        left.add(&keys);
        left.add(&keys[..1]);
        assert_eq!(left.len(), 2);
        left.remove(&keys);
        assert_eq!(left.len(), 1);
        let waiting = left.wait_until(is_settled);
        tokio::pin!(waiting);
        assert!(futures_util::FutureExt::now_or_never(waiting.as_mut()).is_none());
        left.remove(&keys[..1]);
        waiting.await.unwrap();
        left.wait_until(|left| left.is_empty()).await.unwrap();
    }
}
