//! Which bytes a `Range` header asks for, with and without `x-oss-range-behavior: standard`.
//!
//! The table is in the OSS reference §7.5. The trap it holds: without `standard` a range that reaches past the end
//! is no range at all, and the whole object comes back with status 200.

use crate::base::ByteRange;

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// Everything, status 200.
    Whole,
    /// These bytes, status 206.
    Part(ByteRange),
    /// Nothing, status 416.
    Unsatisfiable,
}

/// Reads the header against an object of `size` bytes.
pub(crate) fn select(header: Option<&str>, standard: bool, size: u64) -> Selection {
    let Some(spec) = header.and_then(parse) else { return Selection::Whole };
    let beyond = if standard { Selection::Unsatisfiable } else { Selection::Whole };
    match spec {
        Spec::Between(first, last) if last < size => Selection::Part(ByteRange::new(first, last + 1)),
        Spec::Between(first, _) if standard && first < size => Selection::Part(ByteRange::new(first, size)),
        Spec::From(first) if first < size => Selection::Part(ByteRange::new(first, size)),
        Spec::Last(count) if count > 0 && count <= size => Selection::Part(ByteRange::new(size - count, size)),
        Spec::Last(count) if standard && count > 0 && size > 0 => Selection::Part(ByteRange::new(0, size)),
        _ => beyond,
    }
}

#[derive(Clone, Copy, Debug)]
enum Spec {
    /// Both ends inclusive.
    Between(u64, u64),
    From(u64),
    Last(u64),
}

/// One range; several, and what makes no sense, count as none.
fn parse(header: &str) -> Option<Spec> {
    let (first, last) = header.trim().strip_prefix("bytes=")?.split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", last) => Some(Spec::Last(last.parse().ok()?)),
        (first, "") => Some(Spec::From(first.parse().ok()?)),
        (first, last) => {
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some(Spec::Between(first, last))
        }
    }
}

/// The bytes of an `x-oss-copy-source-range`, or `None` where it is missing, malformed or leaves the source of
/// `size` bytes: the service then copies everything and says nothing (OSS reference §7.11).
pub(crate) fn copy_source(header: Option<&str>, size: u64) -> Option<ByteRange> {
    match select(header, false, size) {
        Selection::Part(range) => Some(range),
        Selection::Whole | Selection::Unsatisfiable => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_reference_holds() {
        let part = |start, end| Selection::Part(ByteRange::new(start, end));
        let (whole, unsatisfiable) = (Selection::Whole, Selection::Unsatisfiable);
        // header, size, default, standard
        let cases = [
            ("bytes=0-499", 1000, part(0, 500), part(0, 500)),
            ("bytes=0-999", 1000, part(0, 1000), part(0, 1000)),
            ("bytes=500-2000", 1000, whole, part(500, 1000)),
            ("bytes=1000-2000", 1000, whole, unsatisfiable),
            ("bytes=500-", 1000, part(500, 1000), part(500, 1000)),
            ("bytes=1000-", 1000, whole, unsatisfiable),
            ("bytes=-500", 1000, part(500, 1000), part(500, 1000)),
            ("bytes=-1000", 1000, part(0, 1000), part(0, 1000)),
            ("bytes=-1500", 1000, whole, part(0, 1000)),
            ("bytes=-0", 1000, whole, unsatisfiable),
            ("bytes=0-0", 0, whole, unsatisfiable),
            ("bytes=0-", 0, whole, unsatisfiable),
            ("bytes=-1", 0, whole, unsatisfiable),
            ("bytes=5-4", 1000, whole, whole),
            ("bytes=0-1,5-6", 1000, whole, whole),
            ("bytes=a-b", 1000, whole, whole),
            ("items=0-1", 1000, whole, whole),
            ("bytes=-", 1000, whole, whole),
            ("bytes=0-18446744073709551615", 1000, whole, part(0, 1000)),
            ("bytes=0-18446744073709551616", 1000, whole, whole),
        ];
        for (header, size, default, standard) in cases {
            assert_eq!(select(Some(header), false, size), default, "{header} of {size}");
            assert_eq!(select(Some(header), true, size), standard, "{header} of {size}, standard");
        }
        assert_eq!(select(None, true, 1000), whole);
    }

    #[test]
    fn a_copy_range_outside_the_source_takes_it_all() {
        assert_eq!(copy_source(Some("bytes=0-9"), 10), Some(ByteRange::new(0, 10)));
        for header in [None, Some("bytes=0-10"), Some("bytes=20-30"), Some("nonsense")] {
            assert_eq!(copy_source(header, 10), None);
        }
    }
}
