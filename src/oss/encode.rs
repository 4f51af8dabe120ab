//! Percent encoding as the signatures define it, which is also how everything goes on the wire.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// All but `A-Za-z0-9-._~` (OSS reference §1).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same, with slashes kept.
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// A query parameter, decoded; an empty value goes out as the bare name.
pub(super) type Param<'a> = (&'a str, Cow<'a, str>);

/// Appends `key` as it stands in a path.
pub(super) fn push_path(out: &mut String, key: &str) {
    out.extend(utf8_percent_encode(key, PATH));
}

/// `text` with slashes escaped too: what RFC 3986 leaves as it is stays, all else is `%XX`.
pub fn component(text: &str) -> String {
    utf8_percent_encode(text, QUERY).to_string()
}

/// The query string: sorted by encoded name and value, as V4 signs it.
pub(super) fn query(params: &[Param<'_>]) -> String {
    let mut encoded: Vec<(String, String)> =
        params.iter().map(|(name, value)| (component(name), component(value))).collect();
    encoded.sort_unstable();
    let mut out = String::new();
    for (name, value) in &encoded {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(name);
        if !value.is_empty() {
            out.push('=');
            out.push_str(value);
        }
    }
    out
}

/// Decodes `%XX` and nothing else: a plus sign stays one (OSS reference §8.3). What is no UTF-8 then becomes U+FFFD,
/// so that one odd key cannot spoil a listing.
pub(super) fn decode(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreserved_characters_and_slashes_stay_in_paths() {
        let mut out = String::new();
        push_path(&mut out, "a/b c+%2F~-._!*'()@:文\u{1}\\");
        assert_eq!(out, "a/b%20c%2B%252F~-._%21%2A%27%28%29%40%3A%E6%96%87%01%5C");
        assert_eq!(decode(&out), "a/b c+%2F~-._!*'()@:文\u{1}\\");
    }

    #[test]
    fn queries_are_sorted_and_empty_values_are_bare() {
        let params = [("uploads", "".into()), ("prefix", "a/b".into()), ("delimiter", "/".into())];
        assert_eq!(query(&params), "delimiter=%2F&prefix=a%2Fb&uploads");
        assert_eq!(query(&[]), "");
    }

    #[test]
    fn decoding_leaves_plus_and_broken_escapes_alone() {
        assert_eq!(decode("a+b%2Bc%zz%"), "a+b+c%zz%");
        assert_eq!(decode("%ff"), "\u{fffd}");
    }
}
