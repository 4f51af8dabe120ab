//! Half-open byte ranges.

use std::fmt;

/// The bytes from `start` up to, not including, `end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    /// A range from `start` to `end`; an inverted one becomes empty at `start`.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// The range of `len` bytes at `start`.
    pub fn at(start: u64, len: u64) -> Self {
        Self::new(start, start.saturating_add(len))
    }

    /// Bytes in the range.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// What both ranges share; empty where they do not meet.
    pub fn intersect(&self, other: &Self) -> Self {
        let start = self.start.max(other.start);
        Self::new(start, self.end.min(other.end))
    }

    pub fn contains(&self, offset: u64) -> bool {
        self.start <= offset && offset < self.end
    }

    /// The value of a `Range` or `x-oss-copy-source-range` header: `bytes=a-b`, both ends inclusive.
    ///
    /// Must not be called on an empty range: the wire has no form for it.
    pub fn http(&self) -> String {
        debug_assert!(!self.is_empty());
        format!("bytes={}-{}", self.start, self.end - 1)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersection_is_empty_where_ranges_do_not_meet() {
        let a = ByteRange::new(0, 10);
        assert_eq!(a.intersect(&ByteRange::new(5, 20)), ByteRange::new(5, 10));
        assert!(a.intersect(&ByteRange::new(10, 20)).is_empty());
        assert!(a.intersect(&ByteRange::new(30, 40)).is_empty());
    }

    #[test]
    fn the_wire_form_is_inclusive() {
        assert_eq!(ByteRange::at(8, 8).http(), "bytes=8-15");
    }
}
