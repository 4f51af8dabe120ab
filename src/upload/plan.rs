//! Offset → spill file → part, as pure functions of the part size and the size of the base.
//!
//! A file is cut into *pieces* (spill files) of one size. The pieces that overlap the base are parts of their
//! own, so that untouched runs between them can be copied on the server; past the base, parts cover ever more
//! pieces, so that 10,000 part numbers carry a file of 10 TiB with pieces of 8 MiB.

use std::ops::Range;

use crate::base::limits::{BASE_PARTS_MAX, PART_BYTES_MAX, PART_BYTES_MIN, PARTS_MAX};
use crate::base::{ByteRange, PartNumber};

/// Of the part numbers past the base, tenths: how many, and how many pieces each part of them covers.
const GROWTH: [(u64, u64); 6] = [(1, 1), (1, 2), (2, 8), (2, 32), (2, 128), (2, 512)];
/// A base of so many parts of the mount, and of at most so many halves, is cut into halves: an edit of a large object
/// is mostly small, and moves a whole piece both ways.
const HALVED: (u64, u64) = (128, 4_096);

/// How a file is cut. Two plans of the same part size and base size are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    piece: u64,
    /// Pieces that overlap the base: one part each.
    base_pieces: u64,
}

impl Plan {
    /// The plan for a file whose base has `base_size` bytes (0 without one). `part_size` is that of the mount;
    /// pieces are half of it where the base is large, and a multiple of it where it is so large that its parts would
    /// be too many.
    pub fn new(part_size: u64, base_size: u64) -> Self {
        let unit = part_size.clamp(PART_BYTES_MIN, PART_BYTES_MAX);
        let half = unit / 2;
        if half >= PART_BYTES_MIN && base_size >= HALVED.0 * unit && base_size <= HALVED.1 * half {
            return Self::with_piece_size(half, base_size);
        }
        let most = PART_BYTES_MAX / unit;
        let multiple = base_size.div_ceil(BASE_PARTS_MAX * unit).clamp(1, most);
        Self::with_piece_size(unit * multiple, base_size)
    }

    /// The plan of a session on disk, of which the piece size is known.
    pub fn with_piece_size(piece: u64, base_size: u64) -> Self {
        let piece = piece.max(1);
        Self { piece, base_pieces: base_size.div_ceil(piece) }
    }

    /// Bytes of a piece.
    pub fn piece_size(&self) -> u64 {
        self.piece
    }

    /// The piece that holds the byte at `offset`.
    pub fn piece_at(&self, offset: u64) -> u64 {
        offset / self.piece
    }

    /// The bytes of a piece.
    pub fn piece_range(&self, index: u64) -> ByteRange {
        ByteRange::at(index * self.piece, self.piece)
    }

    /// The pieces that a range touches.
    pub fn pieces_in(&self, range: ByteRange) -> Range<u64> {
        if range.is_empty() { 0..0 } else { self.piece_at(range.start)..self.piece_at(range.end - 1) + 1 }
    }

    /// The part that holds the byte at `offset`; `None` past what the part numbers carry.
    pub fn part_at(&self, offset: u64) -> Option<PartNumber> {
        let piece = self.piece_at(offset);
        if piece < self.base_pieces {
            return u32::try_from(piece + 1).ok().and_then(PartNumber::new);
        }
        let mut rest = piece - self.base_pieces;
        for class in self.classes() {
            if rest < class.parts * class.width {
                let number = class.first + rest / class.width;
                return u32::try_from(number).ok().and_then(PartNumber::new);
            }
            rest -= class.parts * class.width;
        }
        None
    }

    /// The bytes that a part covers in a file that is long enough; `None` for numbers past the last part.
    pub fn part_range(&self, part: PartNumber) -> Option<ByteRange> {
        let number = u64::from(part.get());
        if number <= self.base_pieces {
            return Some(self.piece_range(number - 1));
        }
        let mut piece = self.base_pieces;
        for class in self.classes() {
            if number < class.first + class.parts {
                let start = piece + (number - class.first) * class.width;
                return Some(ByteRange::new(start * self.piece, (start + class.width) * self.piece));
            }
            piece += class.parts * class.width;
        }
        None
    }

    /// The parts of a file of `size` bytes, in order, each with its bytes. An empty file has none.
    pub fn parts(self, size: u64) -> impl Iterator<Item = (PartNumber, ByteRange)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= size {
                return None;
            }
            let number = self.part_at(at)?;
            let range = self.part_range(number)?.intersect(&ByteRange::new(0, size));
            at = range.end;
            Some((number, range))
        })
    }

    /// The largest file that the part numbers carry.
    pub fn size_max(&self) -> u64 {
        let past_base: u64 = self.classes().map(|class| class.parts * class.width).sum();
        (self.base_pieces + past_base) * self.piece
    }

    fn classes(self) -> impl Iterator<Item = Class> {
        let numbers = u64::from(PARTS_MAX).saturating_sub(self.base_pieces);
        let widest = PART_BYTES_MAX / self.piece;
        // Past halves, parts are as large as ever; past as many whole ones, which cannot be told from them, twice that.
        let pieces = if self.base_pieces >= 2 * HALVED.0 { 2 } else { 1 };
        let mut first = self.base_pieces + 1;
        GROWTH.into_iter().map(move |(tenths, width)| {
            let class = Class { first, parts: numbers * tenths / 10, width: (width * pieces).min(widest).max(1) };
            first += class.parts;
            class
        })
    }
}

/// Parts of one width past the base.
#[derive(Debug)]
struct Class {
    first: u64,
    parts: u64,
    /// Pieces a part.
    width: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::{GIB, KIB, MIB, TIB};
    use proptest::prelude::*;

    #[test]
    fn a_gibibyte_is_128_parts() {
        let plan = Plan::new(8 * MIB, 0);
        let parts: Vec<_> = plan.parts(GIB).collect();
        assert_eq!(parts.len(), 128);
        assert!(parts.iter().all(|(_, range)| range.len() == 8 * MIB));
    }

    #[test]
    fn eight_mebibytes_carry_ten_tebibytes() {
        let plan = Plan::new(8 * MIB, 0);
        assert!(plan.size_max() >= 10 * TIB, "{}", plan.size_max());
        assert_eq!(plan.parts(10 * TIB).map(|(_, range)| range.len()).sum::<u64>(), 10 * TIB);
    }

    #[test]
    fn a_large_base_is_edited_by_halves() {
        assert_eq!(Plan::new(8 * MIB, GIB - 1).piece_size(), 8 * MIB);
        let plan = Plan::new(8 * MIB, GIB);
        assert_eq!(plan.piece_size(), 4 * MIB);
        assert_eq!(plan.parts(GIB).count(), 256);
        assert!(plan.size_max() >= 10 * TIB, "{}", plan.size_max());
        let appended = plan.parts(GIB + 20 * MIB).skip(256).map(|(_, range)| range.len());
        assert_eq!(appended.collect::<Vec<_>>(), [8 * MIB, 8 * MIB, 4 * MIB]);
        assert_eq!(Plan::new(100 * KIB, GIB).piece_size(), 200 * KIB, "halves would be less than a part may be");
    }

    #[test]
    fn pieces_grow_with_the_base() {
        assert_eq!(Plan::new(8 * MIB, 70 * GIB).piece_size(), 8 * MIB);
        let plan = Plan::new(8 * MIB, TIB);
        assert_eq!(plan.piece_size(), 15 * 8 * MIB);
        assert!(plan.parts(TIB).count() <= 9000);
        assert!(Plan::new(8 * MIB, 48 * TIB).piece_size() <= PART_BYTES_MAX);
    }

    fn part_sizes() -> impl Strategy<Value = u64> {
        prop_oneof![Just(8 * MIB), Just(100 * KIB), Just(GIB), 100 * KIB..GIB]
    }

    fn base_sizes() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0..GIB, 0..48 * TIB]
    }

    proptest! {
        #[test]
        fn parts_are_contiguous_bounded_and_few(part_size in part_sizes(), base in base_sizes(), size in 1u64..20 * TIB) {
            let plan = Plan::new(part_size, base);
            let size = size.min(plan.size_max());
            let (mut at, mut last) = (0, 0);
            let parts: Vec<_> = plan.parts(size).collect();
            for (i, (number, range)) in parts.iter().enumerate() {
                prop_assert_eq!(range.start, at);
                prop_assert!(number.get() > last && number.get() <= PARTS_MAX);
                prop_assert!(range.len() <= PART_BYTES_MAX);
                prop_assert!(range.len() >= PART_BYTES_MIN || i + 1 == parts.len());
                prop_assert_eq!(range.start % plan.piece_size(), 0);
                (at, last) = (range.end, number.get());
            }
            prop_assert_eq!(at, size);
        }

        #[test]
        fn every_offset_has_exactly_one_part(part_size in part_sizes(), base in base_sizes(), offset in 0u64..20 * TIB) {
            let plan = Plan::new(part_size, base);
            match plan.part_at(offset) {
                Some(part) => prop_assert!(plan.part_range(part).unwrap().contains(offset)),
                None => prop_assert!(offset >= plan.size_max()),
            }
        }

        #[test]
        fn a_piece_never_crosses_a_part(part_size in part_sizes(), base in base_sizes(), piece in 0u64..2_000_000) {
            let plan = Plan::new(part_size, base);
            let range = plan.piece_range(piece);
            prop_assert_eq!(plan.part_at(range.start), plan.part_at(range.end - 1));
        }
    }
}
