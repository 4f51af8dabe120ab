//! The blocks of one object that are in memory or on their way: what they cover, and which of them may go.
//!
//! It decides nothing about what to fetch, and holds no lock of its own. The surprising part: an entry may cover less
//! than its block was meant to: what was read past is trimmed in front, what could not be fetched is missing behind.

use std::sync::Arc;

use super::block::Block;
use super::window::Coverage;
use crate::base::ByteRange;

#[derive(Debug)]
struct Entry {
    block: Arc<Block>,
    /// What can still be read from it; never empty.
    range: ByteRange,
}

/// Blocks in the order of what can be read from them, which does not overlap.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    entries: Vec<Entry>,
}

impl Blocks {
    /// Takes in a new block; its range must not be covered yet.
    pub(super) fn insert(&mut self, block: Arc<Block>) {
        let range = block.range();
        let at = self.entries.partition_point(|entry| entry.range.start < range.start);
        self.entries.insert(at, Entry { block, range });
    }

    /// The block that covers `offset`, and what can be read from it.
    pub(super) fn find(&self, offset: u64) -> Option<(Arc<Block>, ByteRange)> {
        let after = self.entries.partition_point(|entry| entry.range.start <= offset);
        let entry = &self.entries[after.checked_sub(1)?];
        entry.range.contains(offset).then(|| (Arc::clone(&entry.block), entry.range))
    }

    pub(super) fn coverage(&self) -> Coverage {
        Coverage::new(self.entries.iter().map(|entry| entry.range).collect())
    }

    /// Takes back what failed fetches did not bring, so that it can be fetched anew.
    pub(super) fn drop_failed(&mut self) {
        self.entries.retain_mut(|entry| {
            if let Some(end) = entry.block.failed_at() {
                entry.range = ByteRange::new(entry.range.start, end.min(entry.range.end));
            }
            !entry.range.is_empty()
        });
    }

    /// Frees what no range of `keeps` touches: whole blocks, and the beginnings of others. Returns the bytes freed.
    pub(super) fn trim(&mut self, keeps: &[ByteRange]) -> u64 {
        let mut freed = 0;
        self.entries.retain_mut(|entry| {
            let kept = keeps.iter().map(|keep| keep.intersect(&entry.range)).filter(|kept| !kept.is_empty());
            let head = kept.map(|kept| kept.start).min().unwrap_or(entry.range.end);
            freed += head - entry.range.start;
            entry.range = ByteRange::new(head, entry.range.end);
            entry.block.trim(head);
            !entry.range.is_empty()
        });
        freed
    }

    /// Frees whole blocks that no range of `pins` touches, the last one first, until `bytes` bytes are free.
    /// Returns the bytes freed.
    pub(super) fn evict(&mut self, bytes: u64, pins: &[ByteRange]) -> u64 {
        let free = |entry: &Entry| pins.iter().all(|pin| pin.intersect(&entry.range).is_empty());
        let mut freed = 0;
        while freed < bytes
            && let Some(last) = self.entries.iter().rposition(free)
        {
            freed += self.entries.remove(last).range.len();
        }
        freed
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.entries.iter().map(|entry| entry.block.held()).sum()
    }

    /// Frees everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}
