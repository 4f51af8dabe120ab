//! What is being moved or taken away, and changes of the bucket under way: the two keep out of each other's way.
//!
//! A change holds its keys while it works; a move waits for the changes inside its areas, and those that come
//! later wait for the move. A change must not begin another one: the move between them would wait for both.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Who holds what.
#[derive(Debug, Default)]
pub struct Fences {
    held: Mutex<Held>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    moving: Vec<(u64, Vec<Area>)>,
    changing: Vec<(u64, Vec<String>)>,
}

/// What a move fences in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Area {
    /// All keys that begin with this, which ends with a slash, and the key without that slash.
    Tree(String),
    Key(String),
}

impl Area {
    fn has(&self, key: &str) -> bool {
        match self {
            Self::Tree(prefix) => key.starts_with(prefix) || prefix.strip_suffix('/') == Some(key),
            Self::Key(own) => own == key,
        }
    }

    /// Whether any key can be in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tree(one), Self::Tree(two)) => one.starts_with(two) || two.starts_with(one),
            (area, Self::Key(key)) | (Self::Key(key), area) => area.has(key),
        }
    }
}

/// Keys that are being changed; dropping it lets moves go on.
#[derive(Debug)]
pub struct Change {
    fences: Arc<Fences>,
    id: u64,
}

/// Areas in which nobody else changes anything; dropping it lets changes go on.
#[derive(Debug)]
pub struct Fence {
    fences: Arc<Fences>,
    id: u64,
}

impl Held {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn is_fenced(&self, keys: &[&str]) -> bool {
        self.moving.iter().flat_map(|(_, areas)| areas).any(|area| keys.iter().any(|key| area.has(key)))
    }

    fn overlaps(&self, areas: &[Area]) -> bool {
        self.moving.iter().flat_map(|(_, held)| held).any(|held| areas.iter().any(|area| area.overlaps(held)))
    }

    fn is_changing_in(&self, areas: &[Area]) -> bool {
        self.changing.iter().flat_map(|(_, keys)| keys).any(|key| areas.iter().any(|area| area.has(key)))
    }
}

impl Fences {
    /// Begins a change of these keys, unless one of them is being moved.
    pub fn try_change(self: &Arc<Self>, keys: &[&str]) -> Option<Change> {
        let mut held = self.held.lock();
        if held.is_fenced(keys) {
            return None;
        }
        let id = held.number();
        held.changing.push((id, keys.iter().map(|key| (*key).to_owned()).collect()));
        Some(Change { fences: self.clone(), id })
    }

    /// Begins a change of these keys, once none of them is being moved.
    pub async fn change(self: &Arc<Self>, keys: &[&str]) -> Change {
        self.wait_for(|| self.try_change(keys)).await
    }

    /// A number that grows with each change and each move, when it begins and when it ends.
    pub fn moment(&self) -> u64 {
        self.held.lock().next
    }

    /// Fences areas in, unless one of them overlaps with what is fenced in already. Changes may be under way still.
    pub fn try_fence(self: &Arc<Self>, areas: &[Area]) -> Option<Fence> {
        let mut held = self.held.lock();
        if held.overlaps(areas) {
            return None;
        }
        let id = held.number();
        held.moving.push((id, areas.to_vec()));
        Some(Fence { fences: self.clone(), id })
    }

    /// Fences areas in; when this returns nothing changes in them.
    pub async fn fence(self: &Arc<Self>, areas: &[Area]) -> Fence {
        let fence = self.wait_for(|| self.try_fence(areas)).await;
        fence.cleared().await;
        fence
    }

    async fn wait_for<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = attempt() {
                return value;
            }
            changed.await;
        }
    }
}

impl Fence {
    /// Waits until no change is under way inside.
    pub async fn cleared(&self) {
        let is_clear = || {
            let held = self.fences.held.lock();
            let own = held.moving.iter().find(|(id, _)| *id == self.id);
            own.is_none_or(|(_, areas)| !held.is_changing_in(areas)).then_some(())
        };
        self.fences.wait_for(is_clear).await;
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut held = self.fences.held.lock();
        held.number();
        held.changing.retain(|(id, _)| *id != self.id);
        drop(held);
        self.fences.changed.notify_waiters();
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let mut held = self.fences.held.lock();
        held.number();
        held.moving.retain(|(id, _)| *id != self.id);
        drop(held);
        self.fences.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn trees(texts: &[&str]) -> Vec<Area> {
        texts.iter().map(|text| Area::Tree((*text).to_owned())).collect()
    }

    #[tokio::test]
    async fn its_moment_tells_whether_anything_has_changed() {
        let fences = Arc::new(Fences::default());
        let mut last = fences.moment();
        let mut has_moved_on = || {
            let now = fences.moment();
            std::mem::replace(&mut last, now) != now
        };
        assert!(!has_moved_on());
        let change = fences.change(&["a"]).await;
        assert!(has_moved_on());
        drop(change);
        assert!(has_moved_on() && !has_moved_on());
        let fence = fences.fence(&trees(&["a/"])).await;
        assert!(has_moved_on());
        drop(fence);
        assert!(has_moved_on());
    }

    #[tokio::test]
    async fn a_move_waits_for_changes_and_later_changes_for_the_move() {
        let fences = Arc::new(Fences::default());
        let before = fences.change(&["a/x"]).await;
        let fence = fences.try_fence(&trees(&["a/", "b/"])).unwrap();
        assert!(fence.cleared().now_or_never().is_none());
        drop(before);
        fence.cleared().await;
        for key in ["a/y", "a/", "a", "b/c/d"] {
            assert!(fences.try_change(&["elsewhere", key]).is_none(), "{key}");
        }
        assert!(fences.try_change(&["ab"]).is_some());
        assert!(fences.try_fence(&trees(&["a/c/", "z/"])).is_none());
        assert!(fences.try_fence(&[Area::Key("a/c".into())]).is_none());
        assert!(fences.try_fence(&[Area::Key("ab".into())]).is_some());
        let mut waiting = std::pin::pin!(fences.change(&["a/y"]));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(fence);
        waiting.await;
    }
}
