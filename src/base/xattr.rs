//! Extended attributes in an object's user metadata, the way ossfs 1.x keeps them.
//!
//! `x-oss-meta-xattr` is a percent-encoded JSON object of names and base64 values (posix-metadata reference §1.4).
//! Pure: which attributes a mount keeps, and what a full object answers, is the business of the layer above.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{percent_decode_str, utf8_percent_encode};

use super::posix::{ESCAPED, UserMeta};

/// Name of the metadata that holds them.
pub const XATTR: &str = "xattr";

/// Names and values.
pub type Xattrs = BTreeMap<String, Vec<u8>>;

/// The metadata hold something that is no list of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored extended attributes cannot be read")]
pub struct Unreadable;

/// The attributes that the metadata hold.
pub fn read(meta: &UserMeta) -> Result<Xattrs, Unreadable> {
    let Some(text) = meta.get(XATTR) else { return Ok(Xattrs::new()) };
    let json = percent_decode_str(text.trim()).decode_utf8().map_err(|_| Unreadable)?;
    let pairs: BTreeMap<String, String> = match serde_json::from_str(&json) {
        Ok(pairs) => pairs,
        Err(_) => unescaped_pairs(&json).ok_or(Unreadable)?,
    };
    pairs.into_iter().map(|(name, value)| Ok((name, STANDARD.decode(value).map_err(|_| Unreadable)?))).collect()
}

/// ossfs 1 escapes nothing in a name, so what it wrote may be no JSON.
fn unescaped_pairs(json: &str) -> Option<BTreeMap<String, String>> {
    let inner = json.trim().strip_prefix('{')?.strip_suffix('}')?;
    let quoted = |text: &str| Some(text.trim().strip_prefix('"')?.strip_suffix('"')?.to_owned());
    inner
        .split(',')
        .map(|pair| {
            let (name, value) = pair.rsplit_once(':')?;
            Some((quoted(name)?, quoted(value)?))
        })
        .collect()
}

/// Puts the attributes into the metadata, in the place of those before; none take the name away.
pub fn write(xattrs: &Xattrs, meta: &mut UserMeta) {
    if xattrs.is_empty() {
        meta.remove(XATTR);
        return;
    }
    let pairs: Vec<String> = xattrs
        .iter()
        .map(|(name, value)| format!("{}:\"{}\"", serde_json::Value::from(name.as_str()), STANDARD.encode(value)))
        .collect();
    let json = format!("{{{}}}", pairs.join(","));
    meta.insert(XATTR.to_owned(), utf8_percent_encode(&json, ESCAPED).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta(text: &str) -> UserMeta {
        [(XATTR.to_owned(), text.to_owned())].into()
    }

    #[test]
    fn the_form_is_that_of_ossfs() {
        let mut out = UserMeta::new();
        write(&[("user.k".to_owned(), b"v".to_vec())].into(), &mut out);
        assert_eq!(out[XATTR], "%7B%22user.k%22%3A%22dg%3D%3D%22%7D");
        assert_eq!(read(&out).unwrap()["user.k"], b"v");
        write(&Xattrs::new(), &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn names_that_are_no_json_are_read_all_the_same() {
        let read = read(&meta("%7B%22user.a%22b%22%3A%22%22%2C%22user.c%22%3A%22dg%3D%3D%22%7D")).unwrap();
        assert_eq!(read["user.a\"b"], b"");
        assert_eq!(read["user.c"], b"v");
    }

    #[test]
    fn garbage_is_told() {
        for bad in ["", "x", "%7B", "%FF", "%7B%22a%22%3A%22*%22%7D", "%5B%5D"] {
            assert_eq!(read(&meta(bad)), Err(Unreadable), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn attributes_survive(pairs in proptest::collection::btree_map(".{1,20}", proptest::collection::vec(any::<u8>(), 0..40), 0..5)) {
            let mut out = UserMeta::new();
            write(&pairs, &mut out);
            prop_assert_eq!(read(&out).unwrap(), pairs);
        }
    }
}
