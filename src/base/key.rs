//! Object keys, the mounted prefix, and how paths become keys and keys become names.
//!
//! A key is any UTF-8 of 1 to 1023 bytes that does not begin with `/` or `\`. Not every key can be a path:
//! [`Prefix::names_of`] tells which can, and the others are hidden, never an error.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::limits::{KEY_BYTES_MAX, NAME_BYTES_MAX, PRIVATE_DIR};

/// Why a text cannot be an object key or a name in a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("an object key cannot be empty")]
    Empty,
    #[error("an object key has at most 1023 bytes, and a name in it 255")]
    TooLong,
    #[error("an object key cannot begin with a slash or a backslash")]
    BadStart,
    #[error("the name is not UTF-8")]
    NotUtf8,
    #[error("`.`, `..`, `/` and NUL cannot be in a name")]
    BadName,
}

/// A valid object key, cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey(Arc<str>);

impl ObjectKey {
    /// Checks the service's rules for keys.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        if text.starts_with('/') || text.starts_with('\\') {
            return Err(KeyError::BadStart);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a segment is `.` or `..`: the `url` crate folds these, escaped or not, so such a key cannot be
    /// sent by this program.
    pub fn has_dot_segment(&self) -> bool {
        self.0.split('/').any(|segment| segment == "." || segment == "..")
    }

    /// Whether the key ends with a slash, and so stands for a directory.
    pub fn is_directory_marker(&self) -> bool {
        self.0.ends_with('/')
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The mounted prefix: empty, or ending with a slash.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Prefix(String);

impl Prefix {
    /// Takes `PREFIX` of `BUCKET:PREFIX`; slashes at either end are of no account.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let trimmed = text.trim_matches('/');
        if trimmed.is_empty() {
            return Ok(Self::default());
        }
        for name in trimmed.split('/') {
            check_name(name)?;
        }
        let with_slash = format!("{trimmed}/");
        ObjectKey::parse(&with_slash)?;
        Ok(Self(with_slash))
    }

    /// The prefix as it stands before every key: empty, or ending with a slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of the file at `path`, relative to the mount, without slashes at its ends.
    pub fn file_key(&self, path: &str) -> Result<ObjectKey, KeyError> {
        ObjectKey::parse(&format!("{}{path}", self.0))
    }

    /// What the keys inside the directory at `path` begin with; its own marker object has this key.
    pub fn dir_key(&self, path: &str) -> String {
        if path.is_empty() { self.0.clone() } else { format!("{}{path}/", self.0) }
    }

    /// The path of `key` below the mount, or `None` where no POSIX path can carry it, it lies outside the
    /// prefix, or it is one of the program's own. A directory marker gives the path of the directory.
    pub fn path_of<'k>(&self, key: &'k str) -> Option<&'k str> {
        let path = key.strip_prefix(&self.0)?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let shown = !path.starts_with(PRIVATE_DIR) && path != PRIVATE_DIR.trim_end_matches('/');
        (shown && path.split('/').all(|name| check_name(name).is_ok())).then_some(path)
    }
}

/// Checks one component of a path: UTF-8 of 1 to 255 bytes, not `.` or `..`, without slash and NUL.
pub fn check_name(name: &str) -> Result<(), KeyError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(KeyError::BadName);
    }
    Ok(())
}

/// Joins a directory's path (empty for the root) and a name.
pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_follow_the_rules_of_the_service() {
        assert_eq!(ObjectKey::parse(""), Err(KeyError::Empty));
        assert_eq!(ObjectKey::parse("/a"), Err(KeyError::BadStart));
        assert_eq!(ObjectKey::parse("\\a"), Err(KeyError::BadStart));
        assert_eq!(ObjectKey::parse(&"x".repeat(1024)), Err(KeyError::TooLong));
        assert!(ObjectKey::parse(&"x".repeat(1023)).is_ok());
        assert!(ObjectKey::parse("a//b").is_ok());
    }

    #[test]
    fn dot_segments_are_seen() {
        for key in ["a/./b", "..", "a/..", "./a"] {
            assert!(ObjectKey::parse(key).unwrap().has_dot_segment(), "{key}");
        }
        for key in ["a/.b", "...", "a..", ".hidden/x"] {
            assert!(!ObjectKey::parse(key).unwrap().has_dot_segment(), "{key}");
        }
    }

    #[test]
    fn prefixes_end_with_one_slash() {
        assert_eq!(Prefix::parse("").unwrap().as_str(), "");
        assert_eq!(Prefix::parse("/").unwrap().as_str(), "");
        assert_eq!(Prefix::parse("/a/b/").unwrap().as_str(), "a/b/");
        assert!(Prefix::parse("a//b").is_err());
        assert!(Prefix::parse("a/../b").is_err());
    }

    #[test]
    fn keys_that_no_path_can_carry_are_hidden() {
        let prefix = Prefix::parse("p").unwrap();
        assert_eq!(prefix.path_of("p/a/b"), Some("a/b"));
        assert_eq!(prefix.path_of("p/a/"), Some("a"));
        for key in ["p/a//b", "p/..", "p/a/./b", "q/a", "p/", "p/a\0b", "p/.ossfuse-tmp/x", "p/.ossfuse-tmp/"] {
            assert_eq!(prefix.path_of(key), None, "{key}");
        }
        assert_eq!(prefix.path_of(&format!("p/{}", "x".repeat(256))), None);
    }

    proptest! {
        #[test]
        fn a_path_survives_the_way_to_a_key_and_back(
            prefix in "([a-z]{1,8}(/[a-z ]{1,8}){0,2})?",
            names in proptest::collection::vec("[^/\0]{1,40}", 1..5),
        ) {
            let path = names.join("/");
            prop_assume!(names.iter().all(|name| check_name(name).is_ok()));
            let prefix = Prefix::parse(&prefix).unwrap();
            match prefix.file_key(&path) {
                Ok(key) => {
                    prop_assert_eq!(prefix.path_of(key.as_str()), Some(path.as_str()));
                    let marker = prefix.dir_key(&path);
                    prop_assert_eq!(prefix.path_of(&marker), Some(path.as_str()));
                }
                Err(KeyError::BadStart) => prop_assert!(path.starts_with('\\')),
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}
