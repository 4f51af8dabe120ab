//! Trouble that repeats itself: the first lines of a kind are written, the others counted, and told of in one line.
//!
//! Knows neither files nor forms. Nothing wakes it: what was counted is told with the next line of any kind.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// So long after its first line, a kind of trouble is told of anew.
const WINDOW: Duration = Duration::from_secs(60);
/// Lines of a kind within that.
const LINES_MAX: u32 = 10;

/// What makes two lines the same trouble: where they come from, and what failed how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) level: log::Level,
    pub(super) place: (String, u32),
    pub(super) operation: Option<String>,
    pub(super) code: Option<String>,
}

/// Lines of a kind that were not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folded {
    pub(super) level: log::Level,
    pub(super) count: u64,
    pub(super) last: String,
}

impl std::fmt::Display for Folded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} more like this within {} s, the last: {}", self.count, WINDOW.as_secs(), self.last)
    }
}

#[derive(Debug)]
struct Window {
    begun: Instant,
    written: u32,
    folded: u64,
    last: String,
}

#[derive(Debug, Default)]
pub(super) struct Fold(HashMap<Kind, Window>);

impl Fold {
    /// Whether a line is to be written, and what is to be told before that.
    pub(super) fn admit(&mut self, kind: Kind, line: &str, now: Instant) -> (Vec<Folded>, bool) {
        let told = self.over(now);
        let window =
            self.0.entry(kind).or_insert_with(|| Window { begun: now, written: 0, folded: 0, last: String::new() });
        if window.written < LINES_MAX {
            window.written += 1;
            return (told, true);
        }
        window.folded += 1;
        line.clone_into(&mut window.last);
        (told, false)
    }

    /// What was counted in windows that are over; such a kind begins anew with its next line.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Folded> {
        self.take(|window| now.duration_since(window.begun) >= WINDOW)
    }

    /// All that was counted.
    pub(super) fn rest(&mut self) -> Vec<Folded> {
        self.take(|_| true)
    }

    fn take(&mut self, wanted: impl Fn(&Window) -> bool) -> Vec<Folded> {
        let mut told: Vec<(Instant, Folded)> = Vec::new();
        self.0.retain(|kind, window| {
            let goes = wanted(window);
            if goes && window.folded > 0 {
                let folded = Folded { level: kind.level, count: window.folded, last: std::mem::take(&mut window.last) };
                told.push((window.begun, folded));
            }
            !goes
        });
        told.sort_by_key(|(begun, _)| *begun);
        told.into_iter().map(|(_, folded)| folded).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(line: u32) -> Kind {
        Kind { level: log::Level::Warn, place: ("m".into(), line), operation: None, code: None }
    }

    #[test]
    fn the_first_lines_of_a_kind_are_written_and_the_others_counted() {
        let (mut fold, begun) = (Fold::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        for n in 0..LINES_MAX {
            assert_eq!(fold.admit(kind(1), &format!("line {n}"), at(0)), (vec![], true));
        }
        for n in 0..3 {
            assert_eq!(fold.admit(kind(1), &format!("more {n}"), at(1)), (vec![], false));
        }
        assert_eq!(fold.admit(kind(2), "other", at(2)), (vec![], true), "of another kind");
        let other_failure = Kind { code: Some("AccessDenied".into()), ..kind(1) };
        assert_eq!(fold.admit(other_failure, "other", at(3)), (vec![], true), "of another failure");
        let (told, written) = fold.admit(kind(1), "later", at(61));
        assert_eq!(
            told.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["3 more like this within 60 s, the last: more 2"]
        );
        assert!(written, "and it begins anew");
        assert!(fold.over(at(300)).is_empty() && fold.0.is_empty(), "what is over is forgotten");
    }

    #[test]
    fn what_was_counted_is_told_at_the_end() {
        let mut fold = Fold::default();
        for _ in 0..LINES_MAX + 2 {
            fold.admit(kind(1), "x", Instant::now());
        }
        assert_eq!(fold.rest(), [Folded { level: log::Level::Warn, count: 2, last: "x".into() }]);
        assert!(fold.rest().is_empty());
    }
}
