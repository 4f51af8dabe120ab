//! What is wrong with a configuration, in the words the user reads, and the nearest name to a mistyped one.

use std::fmt;

/// One mistake: `WHAT: WHY; MEND`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}{}{mend}", if .mend.is_empty() { "" } else { "; " })]
pub struct Problem {
    /// The thing, with the place it was found in.
    pub what: String,
    pub why: String,
    /// What to do about it; may be empty.
    pub mend: String,
    /// Whether the command line itself is wrong (exit status 2, not 1).
    pub usage: bool,
}

impl Problem {
    pub fn new(what: impl fmt::Display, why: impl fmt::Display, mend: impl fmt::Display) -> Self {
        Self { what: what.to_string(), why: why.to_string(), mend: mend.to_string(), usage: false }
    }

    /// The same, as a mistake in the use of the command.
    pub fn usage(self) -> Self {
        Self { usage: true, ..self }
    }
}

/// `did you mean WORD?`, or where nothing is near, `fallback`.
pub fn did_you_mean<'a>(text: &str, words: impl IntoIterator<Item = &'a str>, fallback: &str) -> String {
    nearest(text, words).map_or_else(|| fallback.to_owned(), |word| format!("did you mean {word}?"))
}

/// The word with the fewest typing errors between it and `text`, or that begins with it; `None` where even the best
/// is another word.
pub fn nearest<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// A beginning so short begins too much.
    const BEGINNING_MIN: usize = 3;
    let text = text.to_lowercase();
    let length = text.chars().count();
    let bound = length.div_ceil(3);
    let errors = |word: &str| {
        if length >= BEGINNING_MIN && word.starts_with(&text) { 1 } else { distance(&text, word) }
    };
    words
        .into_iter()
        .map(|word| (errors(&word.to_lowercase()), word))
        .filter(|(errors, _)| *errors <= bound)
        .min_by_key(|(errors, _)| *errors)
        .map(|(_, word)| word)
}

/// Levenshtein distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let words = ["part-size", "path-style", "read-only", "uid"];
        assert_eq!(nearest("part-sise", words), Some("part-size"));
        assert_eq!(nearest("partsize", words), Some("part-size"));
        assert_eq!(nearest("readonly", words), Some("read-only"));
        assert_eq!(nearest("gid", words), Some("uid"));
        assert_eq!(nearest("part", words), Some("part-size"));
        assert_eq!(nearest("pa", words), None);
        assert_eq!(nearest("frobnicate", words), None);
        assert_eq!(nearest("", words), None);
    }

    #[test]
    fn distance_counts_typing_errors() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }

    #[test]
    fn a_problem_reads_as_what_why_mend() {
        assert_eq!(Problem::new("a", "b", "c").to_string(), "a: b; c");
        assert_eq!(Problem::new("a", "b", "").to_string(), "a: b");
    }
}
