//! The sums of what was received, joined where ranges meet, until they tell of the whole object.
//!
//! Pure; it knows neither blocks nor requests. The surprising part: several chains may cover the same bytes, because
//! two handles may fetch the object at different times, and each pass over it is judged by itself.

use crate::base::{ByteRange, crc64};

/// Chains kept at a time; the one longest without news goes first. A stream in order needs as many as it has
/// fetches in flight.
const CHAINS_MAX: usize = 64;

/// What is known of the object once a range was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not all of it was received in ranges that join.
    Open,
    /// All of it, as the service has it.
    Whole,
    /// All of it, and not what the service has; or a part of it twice, and not the same.
    Mismatch,
}

#[derive(Debug, Clone, Copy)]
struct Chain {
    range: ByteRange,
    crc: u64,
}

/// The sums received of one object.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The one with the latest news last.
    chains: Vec<Chain>,
}

impl Tally {
    /// Adds the sum of the bytes in `range`; `whole` and `expected` are the object's size and sum.
    pub(super) fn add(&mut self, range: ByteRange, crc: u64, whole: ByteRange, expected: u64) -> Verdict {
        let mut added = Chain { range, crc };
        if let Some(after) = self.position(|chain| chain.range.start == range.end) {
            added = join(added, self.chains.remove(after));
        }
        if let Some(before) = self.position(|chain| chain.range.end == range.start) {
            added = join(self.chains.remove(before), added);
        }
        if added.range == whole {
            return if added.crc == expected { Verdict::Whole } else { Verdict::Mismatch };
        }
        if let Some(same) = self.position(|chain| chain.range == added.range)
            && self.chains.remove(same).crc != added.crc
        {
            return Verdict::Mismatch;
        }
        if self.chains.len() >= CHAINS_MAX {
            self.chains.remove(0);
        }
        self.chains.push(added);
        Verdict::Open
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.chains.clear();
    }

    /// The longest chain that fits.
    fn position(&self, fits: impl Fn(&Chain) -> bool) -> Option<usize> {
        let fitting = self.chains.iter().enumerate().filter(|(_, chain)| fits(chain));
        fitting.max_by_key(|(_, chain)| chain.range.len()).map(|(at, _)| at)
    }
}

fn join(a: Chain, b: Chain) -> Chain {
    Chain { range: ByteRange::new(a.range.start, b.range.end), crc: crc64::combine(a.crc, b.crc, b.range.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    fn add(tally: &mut Tally, content: &[u8], start: usize, end: usize) -> Verdict {
        let range = ByteRange::new(start as u64, end as u64);
        let whole = ByteRange::new(0, content.len() as u64);
        tally.add(range, crc64::checksum(&content[start..end]), whole, crc64::checksum(content))
    }

    #[test]
    fn a_wrong_byte_is_found_when_the_last_range_is_there() {
        let mut received = content(1000);
        received[500] ^= 1;
        let mut tally = Tally::default();
        let whole = ByteRange::new(0, 1000);
        let expected = crc64::checksum(&content(1000));
        let verdicts: Vec<_> = [(0, 400), (600, 1000), (400, 600)]
            .map(|(a, b)| {
                tally.add(ByteRange::new(a as u64, b as u64), crc64::checksum(&received[a..b]), whole, expected)
            })
            .into();
        assert_eq!(verdicts, [Verdict::Open, Verdict::Open, Verdict::Mismatch]);
    }

    #[test]
    fn a_second_pass_from_the_start_does_not_disturb_the_first() {
        let content = content(1000);
        let mut tally = Tally::default();
        assert_eq!(add(&mut tally, &content, 0, 600), Verdict::Open);
        assert_eq!(add(&mut tally, &content, 0, 100), Verdict::Open);
        assert_eq!(add(&mut tally, &content, 600, 1000), Verdict::Whole);
        assert_eq!(add(&mut tally, &content, 100, 1000), Verdict::Whole);
    }

    #[test]
    fn two_passes_that_differ_are_both_in_doubt() {
        let mut tally = Tally::default();
        let (part, whole) = (ByteRange::new(0, 600), ByteRange::new(0, 1000));
        assert_eq!(tally.add(part, 1, whole, 9), Verdict::Open);
        assert_eq!(tally.add(part, 1, whole, 9), Verdict::Open);
        assert_eq!(tally.add(part, 2, whole, 9), Verdict::Mismatch);
    }

    #[test]
    fn scattered_ranges_do_not_displace_a_stream_nor_grow() {
        let content = content(100_000);
        let mut tally = Tally::default();
        for i in 0..499 {
            assert_eq!(add(&mut tally, &content, i * 200, (i + 1) * 200), Verdict::Open);
            add(&mut tally, &content, 50_001 + i, 50_002 + i * 2);
            assert!(tally.chains.len() <= CHAINS_MAX);
        }
        assert_eq!(add(&mut tally, &content, 499 * 200, 100_000), Verdict::Whole);
    }

    proptest! {
        #[test]
        fn any_order_of_arrival_joins(
            cuts in proptest::collection::btree_set(1usize..5000, 0..30),
            seed in any::<u64>(),
        ) {
            let content = content(5000);
            let mut edges: Vec<_> = std::iter::once(0).chain(cuts).chain([5000]).collect();
            edges.dedup();
            let mut pieces: Vec<_> = edges.windows(2).map(|pair| (pair[0], pair[1])).collect();
            pieces.sort_by_key(|(start, _)| (*start as u64 + 1).wrapping_mul(seed | 1) % 1009);
            let mut tally = Tally::default();
            let last = pieces.pop().unwrap();
            for (start, end) in pieces {
                prop_assert_eq!(add(&mut tally, &content, start, end), Verdict::Open);
            }
            prop_assert_eq!(add(&mut tally, &content, last.0, last.1), Verdict::Whole);
        }
    }
}
