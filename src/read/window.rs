//! Which bytes to fetch: the access history of one open handle, and what follows from it.
//!
//! Pure: it knows ranges, not blocks, requests or time; the reader carries out what is decided here. The surprising
//! part: a handle is sequential as long as its reads stay near one moving *front*, in whatever order they arrive (the
//! kernel reads ahead with several requests in flight), and a few reads elsewhere (an index at the end, say) do not
//! end that.

use std::collections::VecDeque;

use crate::base::ByteRange;
use crate::base::limits::{KIB, MIB};

/// What is kept behind the front, for reads that come late or go back a little.
pub(super) const BEHIND: u64 = 2 * MIB;
/// How far past the front a read still counts as sequential.
const JITTER: u64 = MIB;
/// Random reads are widened to this alignment.
const FILL: u64 = 128 * KIB;
/// The window of a stream that has yet to show itself.
const WINDOW_START: u64 = MIB;
/// The largest window, in chunks.
const WINDOW_CHUNKS: u64 = 8;
/// A stream ends after this many reads elsewhere in a row.
const STRAYS_MAX: u32 = 3;
/// This many reads elsewhere that miss and that each continue the one before begin a stream.
const STREAK: u32 = 2;
/// Bytes of random fills that a handle keeps.
const FILLS_KEPT: u64 = 2 * MIB;

/// The bounds of one decision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes in the object.
    pub size: u64,
    /// The largest piece, and the grid on which pieces end.
    pub chunk: u64,
    /// The piece that a stream begins with.
    pub first: u64,
    /// Bytes of memory that nobody holds.
    pub memory_free: u64,
}

impl Limits {
    /// The largest window of a stream that has `ahead` bytes in memory: it may take half of what is free, so that
    /// whoever comes next finds something; at least the smallest one.
    fn window_max(&self, ahead: u64) -> u64 {
        let memory = ahead.saturating_add(self.memory_free / 2);
        memory.min(self.chunk.saturating_mul(WINDOW_CHUNKS)).max(WINDOW_START)
    }
}

/// The ranges that are there or on their way: ascending, not empty, not overlapping.
#[derive(Debug, Default, Clone)]
pub(super) struct Coverage(Vec<ByteRange>);

impl Coverage {
    pub(super) fn new(ranges: Vec<ByteRange>) -> Self {
        debug_assert!(ranges.iter().all(|range| !range.is_empty()));
        debug_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        Self(ranges)
    }

    /// The first offset at or after `offset` that is not covered.
    pub(super) fn skip(&self, offset: u64) -> u64 {
        let from = self.0.partition_point(|range| range.end <= offset);
        self.0[from..].iter().take_while(scan_contiguous(offset)).last().map_or(offset, |range| range.end)
    }

    /// The start of the first covered range after `offset`, which is not covered itself.
    fn next_start(&self, offset: u64) -> u64 {
        self.0.get(self.0.partition_point(|range| range.start <= offset)).map_or(u64::MAX, |range| range.start)
    }

    /// The end of the last covered range before `offset`, which is not covered itself.
    fn previous_end(&self, offset: u64) -> u64 {
        let after = self.0.partition_point(|range| range.start <= offset);
        after.checked_sub(1).map_or(0, |before| self.0[before].end)
    }

    /// The parts of `range` that are not covered, ascending.
    pub(super) fn gaps(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut gaps = Vec::new();
        let mut at = self.skip(range.start);
        while at < range.end {
            let gap = ByteRange::new(at, self.next_start(at).min(range.end));
            gaps.push(gap);
            at = self.skip(gap.end);
        }
        gaps
    }
}

/// Accepts ranges as long as each begins where the one before (at first `offset`) ended.
fn scan_contiguous(offset: u64) -> impl FnMut(&&ByteRange) -> bool {
    let mut end = offset;
    move |range| {
        let joined = range.start <= end;
        end = range.end;
        joined
    }
}

/// A handle that reads on and on.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    /// The end of the furthest read.
    front: u64,
    /// How far ahead of the front to fetch, before [`Limits`].
    window: u64,
    /// Bytes asked for since the stream began: what is fetched ahead must be earned.
    earned: u64,
}

impl Stream {
    fn at(front: u64) -> Self {
        Self { front, window: WINDOW_START, earned: 0 }
    }

    fn admits(&self, start: u64, there: &Coverage) -> bool {
        let furthest = self.front.saturating_add(JITTER).max(there.skip(self.front));
        start.saturating_add(BEHIND) >= self.front && start <= furthest
    }

    fn grown(&self, chunk: u64) -> u64 {
        if self.window < chunk { chunk } else { self.window.saturating_mul(2).min(chunk.saturating_mul(WINDOW_CHUNKS)) }
    }
}

/// The end of a piece that begins at `start` under a window of `window` bytes, at least [`WINDOW_START`].
fn cut(start: u64, window: u64, there: &Coverage, limits: &Limits) -> u64 {
    let unit = if window < limits.chunk { 1 << window.ilog2() } else { limits.chunk };
    let boundary = (start / unit + 1).saturating_mul(unit);
    let end = if window <= WINDOW_START { boundary.min(start.saturating_add(limits.first)) } else { boundary };
    end.min(there.next_start(start)).min(limits.size)
}

/// The reads of one open handle.
#[derive(Debug, Clone)]
pub(super) struct History {
    stream: Option<Stream>,
    /// Reads elsewhere since the stream was last read.
    strays: u32,
    /// The end of the last read elsewhere.
    tail: Option<u64>,
    /// How many such reads in a row have missed and continued the one before.
    streak: u32,
    /// What was fetched for random reads, the latest last.
    fills: VecDeque<ByteRange>,
}

impl Default for History {
    /// Whoever opens a file will most likely read it from the start.
    fn default() -> Self {
        Self { stream: Some(Stream::at(0)), strays: 0, tail: None, streak: 0, fills: VecDeque::new() }
    }
}

impl History {
    /// Takes note of a read (inside the object, not empty) and returns what must be fetched for it now.
    ///
    /// The pieces are ascending, lie inside the object, and overlap neither each other nor what is there.
    pub(super) fn demand(&mut self, read: ByteRange, there: &Coverage, limits: &Limits) -> Vec<ByteRange> {
        let gaps = there.gaps(read);
        match self.note(read, !gaps.is_empty(), there) {
            Some(front) if !gaps.is_empty() => self.stream_pieces(front, &gaps, there, limits),
            Some(_) => Vec::new(),
            None => self.fill_pieces(&gaps, there, limits),
        }
    }

    /// What to fetch ahead, nearest first, and the window that holds once any of it is fetched.
    pub(super) fn next_window(&self, there: &Coverage, limits: &Limits) -> Window {
        self.stream.as_ref().map(|stream| next_window(stream, there, limits)).unwrap_or_default()
    }

    /// Something of `window` was fetched.
    pub(super) fn advance(&mut self, window: &Window) {
        if let Some(stream) = &mut self.stream {
            stream.window = stream.window.max(window.bytes);
        }
    }

    /// The ranges this handle may still read, where they are there; `behind` bytes of history with them.
    pub(super) fn keeps(&self, behind: u64) -> impl Iterator<Item = ByteRange> {
        let ahead = |stream: &Stream| {
            ByteRange::new(stream.front.saturating_sub(behind), stream.front.saturating_add(stream.window))
        };
        let fills = self.fills.iter().copied().filter(move |_| behind > 0);
        self.stream.as_ref().map(ahead).into_iter().chain(fills)
    }

    /// `Some(front before the read)` where the read belongs to a stream.
    fn note(&mut self, read: ByteRange, missed: bool, there: &Coverage) -> Option<u64> {
        if let Some(stream) = &mut self.stream
            && stream.admits(read.start, there)
        {
            let front = stream.front;
            stream.front = front.max(read.end);
            stream.earned = stream.earned.saturating_add(read.len());
            (self.strays, self.streak) = (0, 0);
            return Some(front);
        }
        self.note_stray(read, missed)
    }

    fn note_stray(&mut self, read: ByteRange, missed: bool) -> Option<u64> {
        self.strays += 1;
        if self.strays >= STRAYS_MAX {
            self.stream = None;
        }
        let reach = read.len().max(FILL);
        let before = self.tail.filter(|tail| read.start + 2 * reach >= *tail && read.start <= tail + reach);
        self.tail = Some(read.end.max(before.unwrap_or(0)));
        self.streak = if before.is_some() { self.streak + u32::from(missed) } else { 0 };
        if self.streak < STREAK {
            return None;
        }
        *self = Self { stream: Some(Stream { earned: read.len(), ..Stream::at(read.end) }), ..Self::default() };
        Some(read.start)
    }

    /// Pieces from where the stream has nothing yet up to the end of the last gap.
    fn stream_pieces(&self, front: u64, gaps: &[ByteRange], there: &Coverage, limits: &Limits) -> Vec<ByteRange> {
        let (Some(first), Some(last), Some(stream)) = (gaps.first(), gaps.last(), &self.stream) else {
            return Vec::new();
        };
        // A read that overtook its predecessor: begin with what that one will ask for, so that pieces stay whole.
        let behind = there.skip(front);
        let near = behind < first.start && first.start - behind <= JITTER;
        let mut pieces = Vec::new();
        let mut at = if near { behind } else { first.start };
        let window_max = limits.window_max(behind.saturating_sub(stream.front));
        let mut window = stream.window.min(window_max);
        while at < last.end {
            let late = at < front && last.end <= front;
            let end = if late { last.end.min(there.next_start(at)) } else { cut(at, window, there, limits) };
            pieces.push(ByteRange::new(at, end));
            window = stream.grown(limits.chunk).min(window_max);
            at = there.skip(end);
        }
        pieces
    }

    fn fill_pieces(&mut self, gaps: &[ByteRange], there: &Coverage, limits: &Limits) -> Vec<ByteRange> {
        let mut pieces = Vec::new();
        for gap in gaps {
            let start = (gap.start / FILL * FILL).max(there.previous_end(gap.start));
            let end = (gap.end.div_ceil(FILL) * FILL).min(there.next_start(gap.end - 1)).min(limits.size);
            pieces.extend(split(ByteRange::new(start, end), limits.chunk));
        }
        self.fills.extend(&pieces);
        let mut kept: u64 = self.fills.iter().map(ByteRange::len).sum();
        while kept > FILLS_KEPT && self.fills.len() > 1 {
            kept -= self.fills.pop_front().map_or(0, |fill| fill.len());
        }
        pieces
    }
}

/// `range` in pieces of at most `chunk` bytes.
pub(super) fn split(range: ByteRange, chunk: u64) -> impl Iterator<Item = ByteRange> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let piece = ByteRange::at(at, chunk.max(1)).intersect(&range);
        at = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What to fetch ahead of a stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// Ascending, inside the object, overlapping nothing that is there.
    pub pieces: Vec<ByteRange>,
    /// The stream's window once any of them is being fetched.
    pub bytes: u64,
}

/// The next pieces ahead of `stream`: none while enough lies ahead or the stream has not earned more.
pub(super) fn next_window(stream: &Stream, there: &Coverage, limits: &Limits) -> Window {
    let mut pieces = Vec::new();
    let mut ahead = there.skip(stream.front);
    let window_max = limits.window_max(ahead - stream.front);
    let now = stream.window.min(window_max);
    let grown = stream.grown(limits.chunk);
    let cutting = grown.min(window_max);
    // Room for one more piece, or half of the window is used up.
    let refill = now - limits.chunk.min(now / 2);
    while stream.earned >= now / 4 && ahead < limits.size && ahead - stream.front <= refill {
        let piece = ByteRange::new(ahead, cut(ahead, cutting, there, limits));
        pieces.push(piece);
        ahead = there.skip(piece.end);
    }
    Window { pieces, bytes: grown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::GIB;
    use proptest::prelude::*;

    /// A reader whose fetches arrive at once and whose memory is what the history keeps.
    struct Model {
        history: History,
        limits: Limits,
        there: Vec<ByteRange>,
        fetched: Vec<ByteRange>,
    }

    impl Model {
        fn new(size: u64) -> Self {
            let limits = Limits { size, chunk: 8 * MIB, first: MIB, memory_free: 128 * MIB };
            Self { history: History::default(), limits, there: Vec::new(), fetched: Vec::new() }
        }

        fn coverage(&self) -> Coverage {
            Coverage::new(self.there.clone())
        }

        fn fetch(&mut self, pieces: &[ByteRange]) {
            for piece in pieces {
                assert!(!piece.is_empty() && piece.end <= self.limits.size && piece.len() <= self.limits.chunk);
                assert!(self.there.iter().all(|range| range.intersect(piece).is_empty()), "{piece:?}");
                self.there.push(*piece);
                self.fetched.push(*piece);
            }
            self.there.sort();
        }

        /// Returns the bytes fetched ahead of the read.
        fn read(&mut self, read: ByteRange) -> u64 {
            let read = read.intersect(&ByteRange::new(0, self.limits.size));
            let coverage = self.coverage();
            let demanded = self.history.demand(read, &coverage, &self.limits);
            self.fetch(&demanded);
            assert!(self.coverage().gaps(read).is_empty(), "{read:?} is not served");
            let window = self.history.next_window(&self.coverage(), &self.limits);
            self.fetch(&window.pieces);
            if !window.pieces.is_empty() {
                self.history.advance(&window);
            }
            let keeps: Vec<_> = self.history.keeps(BEHIND).collect();
            self.there = self.there.iter().filter_map(|range| kept_part(*range, &keeps)).collect();
            window.pieces.iter().map(ByteRange::len).sum()
        }

        fn read_all(&mut self, reads: impl Iterator<Item = ByteRange>) {
            for read in reads {
                self.read(read);
            }
        }

        fn bytes(&self) -> u64 {
            self.fetched.iter().map(ByteRange::len).sum()
        }
    }

    fn kept_part(range: ByteRange, keeps: &[ByteRange]) -> Option<ByteRange> {
        let start =
            keeps.iter().map(|keep| keep.intersect(&range)).filter(|keep| !keep.is_empty()).map(|keep| keep.start);
        start.min().map(|start| ByteRange::new(start, range.end))
    }

    fn sequential(size: u64, len: u64) -> impl Iterator<Item = ByteRange> {
        split(ByteRange::new(0, size), len)
    }

    #[test]
    fn a_gibibyte_front_to_back_is_129_pieces_of_every_byte_once() {
        for len in [4 * KIB, 128 * KIB, 256 * KIB, MIB, 8 * MIB] {
            let mut model = Model::new(GIB);
            model.read_all(sequential(GIB, len));
            assert!(model.fetched.len() <= 129, "{} pieces with reads of {len}", model.fetched.len());
            assert_eq!(model.bytes(), GIB);
        }
    }

    #[test]
    fn a_small_file_is_one_piece() {
        for size in [1, 4 * KIB, 128 * KIB + 1, MIB] {
            let mut model = Model::new(size);
            model.read_all(sequential(size, 128 * KIB));
            assert_eq!(model.fetched, [ByteRange::new(0, size)]);
        }
    }

    #[test]
    fn a_glance_at_the_beginning_fetches_nothing_ahead() {
        let mut model = Model::new(GIB);
        for read in sequential(256 * KIB, 16 * KIB) {
            assert_eq!(model.read(read), 0);
        }
        assert_eq!(model.fetched, [ByteRange::new(0, MIB)]);
    }

    #[test]
    fn the_window_grows_as_it_is_used() {
        let mut model = Model::new(GIB);
        let mut ahead = Vec::new();
        for read in sequential(128 * MIB, MIB) {
            model.read(read);
            ahead.push(model.coverage().skip(read.end) - read.end);
        }
        assert_eq!(ahead[0], 7 * MIB);
        assert!(ahead[16] >= 24 * MIB, "{}", ahead[16]);
        assert!(ahead[40..].iter().all(|ahead| (56 * MIB..=64 * MIB).contains(ahead)));
    }

    #[test]
    fn little_memory_means_small_pieces_and_no_more_than_it() {
        let mut model = Model::new(64 * MIB);
        model.limits.memory_free = 3 * MIB;
        for read in sequential(64 * MIB, 128 * KIB) {
            model.read(read);
            assert!(model.coverage().skip(read.end) - read.end <= 4 * MIB);
        }
        assert_eq!(model.bytes(), 64 * MIB);
    }

    #[test]
    fn a_look_at_the_index_does_not_end_the_stream() {
        let mut model = Model::new(GIB);
        model.read_all(sequential(32 * MIB, MIB));
        let before = model.bytes();
        model.read(ByteRange::at(GIB - 64 * KIB, 64 * KIB));
        assert_eq!(model.bytes() - before, 128 * KIB);
        let before = model.fetched.len();
        model.read(ByteRange::at(32 * MIB, MIB));
        assert!(model.fetched.len() <= before + 1);
    }

    #[test]
    fn seeks_inside_the_window_and_a_little_back_are_served() {
        let mut model = Model::new(GIB);
        model.read_all(sequential(64 * MIB, MIB));
        let ahead = ByteRange::at(90 * MIB, 128 * KIB);
        assert!(model.coverage().gaps(ahead).is_empty());
        model.read(ahead);
        model.read(ByteRange::at(89 * MIB, 128 * KIB));
        let mut ranges = model.fetched.clone();
        ranges.sort();
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "nothing is fetched twice");
    }

    #[test]
    fn two_misses_that_continue_begin_a_stream() {
        let mut model = Model::new(GIB);
        let at = 500 * MIB;
        let ahead: Vec<_> = (0..5).map(|i| model.read(ByteRange::at(at + i * MIB, MIB))).collect();
        assert_eq!(&ahead[..2], [0, 0]);
        assert!(ahead[2] > 0, "{ahead:?}");
        assert_eq!(model.bytes(), model.coverage().skip(at + 3 * MIB) - at);
    }

    #[test]
    fn a_stream_that_begins_elsewhere_reads_every_byte_once() {
        let mut model = Model::new(GIB);
        let at = 500 * MIB + 77 * KIB;
        model.read_all(split(ByteRange::new(at, GIB), 128 * KIB));
        assert!(model.bytes() <= GIB - at + FILL);
        assert!(model.fetched.len() <= 70, "{}", model.fetched.len());
    }

    #[test]
    fn coverage_answers_at_its_edges() {
        let there = Coverage::new(vec![ByteRange::new(10, 20), ByteRange::new(20, 30), ByteRange::new(40, 50)]);
        let skips = [(0, 0), (9, 9), (10, 30), (29, 30), (30, 30), (45, 50), (50, 50)];
        assert!(skips.iter().all(|(from, to)| there.skip(*from) == *to));
        assert_eq!(there.gaps(ByteRange::new(5, 60)), [(5, 10), (30, 40), (50, 60)].map(|(a, b)| ByteRange::new(a, b)));
        assert!(there.gaps(ByteRange::new(12, 28)).is_empty());
    }

    /// Shuffles reads within groups, as several requests in flight arrive.
    fn jittered(size: u64, len: u64, group: usize, seeds: &[usize]) -> Vec<ByteRange> {
        let mut reads: Vec<_> = sequential(size, len).collect();
        for (group, seed) in reads.chunks_mut(group).zip(seeds.iter().cycle()) {
            let turn = seed % group.len();
            group.rotate_left(turn);
        }
        reads
    }

    proptest! {
        #[test]
        fn out_of_order_by_a_little_is_sequential(
            size in 1u64..GIB,
            exponent in 0u32..4,
            seeds in proptest::collection::vec(0usize..8, 1..50),
        ) {
            let len = (128 * KIB) << exponent;
            let group = (MIB / len + 1).min(4) as usize;
            let mut model = Model::new(size);
            model.read_all(jittered(size, len, group, &seeds).into_iter());
            prop_assert_eq!(model.bytes(), size);
            prop_assert!(model.fetched.len() as u64 <= size / (8 * MIB) + 3);
        }

        #[test]
        fn random_reads_are_never_read_ahead(
            offsets in proptest::collection::vec(0u64..64 * GIB, 1..200),
            len in 1u64..300 * KIB,
        ) {
            let mut model = Model::new(64 * GIB);
            for offset in &offsets {
                prop_assert_eq!(model.read(ByteRange::at(*offset, len)), 0);
            }
            prop_assert!(model.bytes() <= offsets.len() as u64 * (len + 2 * FILL) + MIB);
        }

        /// Whatever the order, the model's own assertions hold: inside the object, nothing twice at a time, all served.
        #[test]
        fn any_order_is_served(
            size in 1u64..64 * MIB,
            memory in 0u64..64 * MIB,
            reads in proptest::collection::vec((any::<u64>(), 1u64..2 * MIB, any::<bool>()), 1..200),
        ) {
            let mut model = Model::new(size);
            let mut next = 0;
            for (at, len, seek) in reads {
                model.limits.memory_free = memory;
                let start = if seek { at % size } else { next % size };
                model.read(ByteRange::at(start, len));
                next = start + len;
            }
        }
    }
}
