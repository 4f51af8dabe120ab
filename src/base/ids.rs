//! Identifiers that must not be mistaken for one another.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::limits::PARTS_MAX;

/// The version of an object: opaque, fit only for equality and `If-Match` (OSS reference, "ETag").
///
/// Kept without quotes; compared without regard to case, as the service writes it in either.
#[derive(Clone, Serialize, Deserialize)]
pub struct ETag(Box<str>);

impl ETag {
    /// Takes the value of an `ETag` header or element, with or without quotes.
    pub fn new(value: &str) -> Self {
        Self(value.trim().trim_matches('"').into())
    }

    /// The bare value.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value in quotes, as conditional headers want it.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

impl PartialEq for ETag {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}
impl Eq for ETag {}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of a multipart upload; it belongs to one key.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UploadId(Box<str>);

impl UploadId {
    pub fn new(value: impl Into<Box<str>>) -> Self {
        Self(value.into())
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a part, 1 to 10,000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartNumber(u16);

impl PartNumber {
    /// `None` outside 1 to 10,000.
    pub fn new(number: u32) -> Option<Self> {
        (1..=PARTS_MAX).contains(&number).then_some(Self(number as u16))
    }
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }
}

impl fmt::Debug for PartNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}
impl fmt::Display for PartNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A write session: the name of its folder under `spill/`, and what `recover` calls it.
///
/// The high 64 bits are the time of creation in microseconds, so that ids sort by age; the low 32 tell apart
/// sessions of the same microsecond and of different processes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId {
    micros: u64,
    salt: u32,
}

static SESSION_COUNTER: AtomicU32 = AtomicU32::new(0);

impl SessionId {
    /// A fresh id. `micros` is the present time since the epoch.
    pub fn generate(micros: u64) -> Self {
        let count = SESSION_COUNTER.fetch_add(1, Ordering::Relaxed);
        Self { micros, salt: (std::process::id() << 16) ^ count }
    }

    /// Microseconds since the epoch at creation.
    pub fn created_micros(self) -> u64 {
        self.micros
    }

    /// Big-endian bytes: sort as the ids do.
    pub fn to_bytes(self) -> [u8; 12] {
        let mut out = [0; 12];
        out[..8].copy_from_slice(&self.micros.to_be_bytes());
        out[8..].copy_from_slice(&self.salt.to_be_bytes());
        out
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        let (micros, salt) = bytes.split_at(8);
        Self {
            micros: u64::from_be_bytes(micros.try_into().expect("split at 8")),
            salt: u32::from_be_bytes(salt.try_into().expect("12 less 8")),
        }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:014x}-{:08x}", self.micros, self.salt)
    }
}
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a session id.
#[derive(Debug, thiserror::Error)]
#[error("not a session id (14 hex digits, a dash, 8 hex digits)")]
pub struct BadSessionId;

impl FromStr for SessionId {
    type Err = BadSessionId;
    fn from_str(text: &str) -> Result<Self, BadSessionId> {
        let (micros, salt) = text.split_once('-').ok_or(BadSessionId)?;
        if micros.len() != 14 || salt.len() != 8 {
            return Err(BadSessionId);
        }
        Ok(Self {
            micros: u64::from_str_radix(micros, 16).map_err(|_| BadSessionId)?,
            salt: u32::from_str_radix(salt, 16).map_err(|_| BadSessionId)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_compare_without_quotes_and_case() {
        assert_eq!(ETag::new("\"5D41ab-2\""), ETag::new("5d41AB-2"));
        assert_eq!(ETag::new("a").quoted(), "\"a\"");
    }

    #[test]
    fn part_numbers_are_bounded() {
        assert!(PartNumber::new(0).is_none());
        assert!(PartNumber::new(10_001).is_none());
        assert_eq!(PartNumber::new(10_000).map(PartNumber::get), Some(10_000));
    }

    #[test]
    fn session_ids_survive_text_and_bytes() {
        let id = SessionId::generate(0x0006_1234_5678_9abc);
        assert_eq!(id.to_string().parse::<SessionId>().ok(), Some(id));
        assert_eq!(SessionId::from_bytes(id.to_bytes()), id);
        assert!("../../etc".parse::<SessionId>().is_err());
        assert_ne!(SessionId::generate(1), SessionId::generate(1));
    }
}
