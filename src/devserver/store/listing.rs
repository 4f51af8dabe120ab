//! The order and the pages of listings: prefix, delimiter, marker and limit over a sorted map.
//!
//! Knows nothing of V1, V2 or XML. An item is a key or a common prefix, and both compare with the marker as
//! plain text: a page that ends with a common prefix goes on behind everything under it.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A key that can be sought by any bytes: `str` compares as its bytes do, as the service's order wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) Box<str>);

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Key {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) prefix: String,
    /// Empty: no grouping.
    pub(crate) delimiter: String,
    /// Only items greater than this.
    pub(crate) after: String,
    pub(crate) limit: usize,
}

/// One page.
#[derive(Debug)]
pub(crate) struct Page<T> {
    pub(crate) entries: Vec<(String, T)>,
    pub(crate) common_prefixes: Vec<String>,
    /// The last item of the page, when there are more: the `after` of the next.
    pub(crate) next: Option<String>,
}

/// Lists a page of `map`.
pub(crate) fn list<T: Clone>(map: &BTreeMap<Key, T>, query: &Query) -> Page<T> {
    let mut page = Page { entries: Vec::new(), common_prefixes: Vec::new(), next: None };
    let mut last = String::new();
    let mut from = if query.after > query.prefix {
        Bound::Excluded(query.after.clone().into_bytes())
    } else {
        Bound::Included(query.prefix.clone().into_bytes())
    };
    loop {
        let range = (from.as_ref().map(Vec::as_slice), Bound::Unbounded);
        let mut skip_to = None;
        for (key, value) in map.range::<[u8], _>(range) {
            let Some(rest) = key.0.strip_prefix(query.prefix.as_str()) else { return page };
            let group = group_of(&key.0, rest, &query.delimiter);
            let item = group.unwrap_or(&key.0);
            if item > query.after.as_str() {
                if page.entries.len() + page.common_prefixes.len() == query.limit {
                    page.next = Some(last);
                    return page;
                }
                item.clone_into(&mut last);
                match group {
                    Some(group) => page.common_prefixes.push(group.to_owned()),
                    None => page.entries.push((item.to_owned(), value.clone())),
                }
            }
            if let Some(group) = group {
                skip_to = behind(group.as_bytes());
                if skip_to.is_none() {
                    return page;
                }
                break;
            }
        }
        match skip_to {
            Some(next) => from = Bound::Included(next),
            None => return page,
        }
    }
}

/// The common prefix that `key` belongs to; `rest` is what follows the listed prefix.
fn group_of<'a>(key: &'a str, rest: &str, delimiter: &str) -> Option<&'a str> {
    if delimiter.is_empty() {
        return None;
    }
    let end = rest.find(delimiter)? + delimiter.len();
    Some(&key[..key.len() - rest.len() + end])
}

/// The least bytes greater than everything that begins with `prefix`.
fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut out = prefix.to_vec();
    while let Some(last) = out.pop() {
        if last < 0xff {
            out.push(last + 1);
            return Some(out);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(keys: &[&str]) -> BTreeMap<Key, ()> {
        keys.iter().map(|key| (Key((*key).into()), ())).collect()
    }

    fn query(prefix: &str, delimiter: &str, after: &str, limit: usize) -> Query {
        Query { prefix: prefix.into(), delimiter: delimiter.into(), after: after.into(), limit }
    }

    /// Keys and common prefixes of a page, and where it goes on.
    fn items(map: &BTreeMap<Key, ()>, query: &Query) -> (Vec<String>, Vec<String>, Option<String>) {
        let page = list(map, query);
        (page.entries.into_iter().map(|(key, ())| key).collect(), page.common_prefixes, page.next)
    }

    #[test]
    fn keys_are_grouped_by_the_delimiter_behind_the_prefix() {
        let map = map(&["a", "d/", "d/x", "d/y/z", "e//f", "z"]);
        assert_eq!(
            items(&map, &query("", "/", "", 100)),
            (vec!["a".into(), "z".into()], vec!["d/".into(), "e/".into()], None)
        );
        assert_eq!(
            items(&map, &query("d/", "/", "", 100)),
            (vec!["d/".into(), "d/x".into()], vec!["d/y/".into()], None)
        );
        assert_eq!(items(&map, &query("e/", "/", "", 100)), (vec![], vec!["e//".into()], None));
        assert_eq!(items(&map, &query("d", "", "", 100)).0, ["d/", "d/x", "d/y/z"]);
        assert_eq!(items(&map, &query("", "y/", "", 100)).1, ["d/y/"]);
    }

    #[test]
    fn order_is_that_of_the_bytes() {
        let map = map(&["a-b", "a/x", "a0", "ü", "z", "\u{1f600}", "\u{ffff}"]);
        let (keys, prefixes, _) = items(&map, &query("", "/", "", 100));
        assert_eq!(keys, ["a-b", "a0", "z", "ü", "\u{ffff}", "\u{1f600}"]);
        assert_eq!(prefixes, ["a/"]);
    }

    #[test]
    fn the_marker_applies_to_common_prefixes_too() {
        let map = map(&["a/1", "a/2", "b", "c/1"]);
        assert_eq!(items(&map, &query("", "/", "a/", 100)), (vec!["b".into()], vec!["c/".into()], None));
        assert_eq!(items(&map, &query("", "/", "a/1", 100)).1, ["c/"]);
        assert_eq!(items(&map, &query("", "", "a/1", 100)).0, ["a/2", "b", "c/1"]);
        assert_eq!(items(&map, &query("b", "", "a", 100)).0, ["b"]);
        assert_eq!(items(&map, &query("a", "", "b", 100)).0, [""; 0]);
    }

    #[test]
    fn a_page_goes_on_behind_its_last_item() {
        let map = map(&["a/1", "a/2", "b"]);
        assert_eq!(items(&map, &query("", "/", "", 1)), (vec![], vec!["a/".into()], Some("a/".into())));
        assert_eq!(items(&map, &query("", "/", "a/", 1)), (vec!["b".into()], vec![], None));
    }

    proptest! {
        #[test]
        fn pages_make_up_the_whole(
            keys in proptest::collection::btree_set("[ab/]{1,6}", 0..40),
            prefix in "[ab/]{0,2}",
            delimiter in "/?",
            limit in 1usize..5,
        ) {
            let map: BTreeMap<Key, ()> = keys.iter().map(|key| (Key(key.as_str().into()), ())).collect();
            let whole = items(&map, &query(&prefix, &delimiter, "", 1000));
            let (mut seen_keys, mut seen_prefixes, mut after) = (Vec::new(), Vec::new(), String::new());
            loop {
                let (keys, prefixes, next) = items(&map, &query(&prefix, &delimiter, &after, limit));
                seen_keys.extend(keys);
                seen_prefixes.extend(prefixes);
                match next {
                    Some(next) => after = next,
                    None => break,
                }
            }
            prop_assert_eq!(&seen_keys, &whole.0);
            prop_assert_eq!(&seen_prefixes, &whole.1);
            for key in keys.iter().filter(|key| key.starts_with(&prefix)) {
                let grouped = whole.1.iter().any(|group| key.starts_with(group.as_str()));
                prop_assert_eq!(grouped, !whole.0.contains(key));
            }
        }
    }
}
