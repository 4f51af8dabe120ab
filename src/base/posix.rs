//! POSIX attributes as user metadata of an object, the way ossfs 1.x keeps them.
//!
//! Pure: names and formats only (posix-metadata reference §1, §2, §4). What an object does not say is left to the
//! mount's defaults.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::time::since_epoch;

/// User metadata: names without `x-oss-meta-`, lower case.
pub type UserMeta = BTreeMap<String, String>;

pub const S_IFMT: u32 = 0o170_000;
pub const S_IFIFO: u32 = 0o010_000;
pub const S_IFCHR: u32 = 0o020_000;
pub const S_IFBLK: u32 = 0o060_000;
pub const S_IFSOCK: u32 = 0o140_000;
pub const S_IFREG: u32 = 0o100_000;
pub const S_IFDIR: u32 = 0o040_000;
pub const S_IFLNK: u32 = 0o120_000;

/// Content type of a directory marker.
pub const DIRECTORY_TYPE: &str = "application/x-directory";

/// Name of the metadata that holds a device's number, decimal, as `st_rdev` has it.
pub const RDEV: &str = "rdev";
/// Name of the metadata that holds a symlink's target (ossfs 1 with `symlink_in_meta`).
pub const LINK_TARGET: &str = "symlink-target";
/// Longest target that is read from an object's body (PATH_MAX).
pub const LINK_BODY_BYTES_MAX: u64 = 4096;
/// Targets from this length on go into the body, also where links are kept in metadata.
const LINK_HEADER_BYTES_MAX: usize = 2048;

/// What ossfs 1 escapes in the values that it encodes itself.
pub(super) const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// What the metadata say of a symlink's target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkHeader {
    Target(Vec<u8>),
    /// The target is the object's body.
    Body,
}

impl LinkHeader {
    /// Reads `TYPE:SIZE:VALUE`; whatever is no readable target means the body.
    pub fn read(meta: &UserMeta) -> Option<Self> {
        let mut fields = meta.get(LINK_TARGET)?.splitn(3, ':');
        let (kind, _, value) = (fields.next(), fields.next(), fields.next());
        Some(match (kind, value) {
            (Some("header"), Some(value)) if !value.is_empty() => Self::Target(percent_decode_str(value).collect()),
            _ => Self::Body,
        })
    }

    /// The header for a target, and whether the target must stand in the body all the same.
    pub fn write(target: &[u8], meta: &mut UserMeta) -> Self {
        let (text, place) = if target.len() < LINK_HEADER_BYTES_MAX {
            let value = percent_encode(target, ESCAPED);
            (format!("header:{}:{value}", target.len()), Self::Target(target.to_owned()))
        } else {
            ("body:0:".to_owned(), Self::Body)
        };
        meta.insert(LINK_TARGET.to_owned(), text);
        place
    }
}

/// The number of a device.
pub fn device_number(meta: &UserMeta) -> Option<u32> {
    meta.get(RDEV).and_then(|text| parse_c_integer(text.trim()))
}

/// What an object's metadata says; `None` where it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Mode as stored: with or without the type bits.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<SystemTime>,
    pub atime: Option<SystemTime>,
    pub ctime: Option<SystemTime>,
}

impl Attributes {
    /// Reads what ossfs 1, s3sync and gsutil write.
    pub fn read(meta: &UserMeta) -> Self {
        let get = |name: &str| meta.get(name).map(|value| value.trim());
        let any = |names: &[&str]| names.iter().find_map(|name| get(name)).and_then(parse_c_integer);
        let octal = || get("goog-reserved-posix-mode").and_then(|v| u32::from_str_radix(v, 8).ok());
        Self {
            mode: any(&["mode", "permissions"]).or_else(octal),
            uid: any(&["uid", "owner", "goog-reserved-posix-uid"]),
            gid: any(&["gid", "group", "goog-reserved-posix-gid"]),
            mtime: get("mtime").and_then(parse_time).or_else(|| get("goog-reserved-file-mtime").and_then(parse_time)),
            atime: get("atime").and_then(parse_time),
            ctime: get("ctime").and_then(parse_time),
        }
    }

    /// Writes every attribute that is known over what `meta` says; the rest of `meta` stays.
    pub fn write(&self, meta: &mut UserMeta) {
        let mut put = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                meta.insert(name.to_owned(), value);
            }
        };
        put("mode", self.mode.map(|v| v.to_string()));
        put("uid", self.uid.map(|v| v.to_string()));
        put("gid", self.gid.map(|v| v.to_string()));
        put("mtime", self.mtime.map(format_time));
        put("atime", self.atime.map(format_time));
        put("ctime", self.ctime.map(format_time));
    }
}

/// An integer as `strtol` with base 0 reads it: `0x…` hexadecimal, `0…` octal, else decimal.
fn parse_c_integer(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => u32::from_str_radix(text, 8).ok(),
        None => text.parse().ok(),
    }
}

/// Seconds since the epoch with an optional decimal fraction; not after the year 9999, and not 0 or less, which
/// others write for "unknown".
fn parse_time(text: &str) -> Option<SystemTime> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = seconds.parse().ok().filter(|s| (1..253_402_300_800).contains(s))?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = &fraction[..fraction.len().min(9)];
    let nanos: u32 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let scaled = nanos.checked_mul(10u32.pow(9 - digits.len() as u32))?;
    Some(UNIX_EPOCH + Duration::new(seconds, scaled))
}

/// Seconds, and nine digits of a fraction only where it is not zero.
fn format_time(at: SystemTime) -> String {
    let since = since_epoch(at);
    match since.subsec_nanos() {
        0 => since.as_secs().to_string(),
        nanos => format!("{}.{nanos:09}", since.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta(pairs: &[(&str, &str)]) -> UserMeta {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn modes_of_all_writers_are_read() {
        assert_eq!(Attributes::read(&meta(&[("mode", "33188")])).mode, Some(0o100_644));
        assert_eq!(Attributes::read(&meta(&[("mode", "0644")])).mode, Some(0o644));
        assert_eq!(Attributes::read(&meta(&[("mode", "0x1ff")])).mode, Some(0o777));
        assert_eq!(Attributes::read(&meta(&[("goog-reserved-posix-mode", "644")])).mode, Some(0o644));
        assert_eq!(Attributes::read(&meta(&[("owner", "7"), ("group", "8")])).uid, Some(7));
        assert_eq!(Attributes::read(&meta(&[("mode", "rwx")])), Attributes::default());
    }

    #[test]
    fn fractions_are_decimal() {
        let mtime = |text| Attributes::read(&meta(&[("mtime", text)])).mtime;
        assert_eq!(mtime("5.5"), Some(UNIX_EPOCH + Duration::from_millis(5500)));
        assert_eq!(mtime("5.000000001"), Some(UNIX_EPOCH + Duration::new(5, 1)));
        for bad in ["0", "-3", "x", "5.x", "99999999999999", "5.é", "5.12345678é"] {
            assert_eq!(mtime(bad), None, "{bad}");
        }
    }

    #[test]
    fn targets_in_metadata_are_read_and_written_as_ossfs_does() {
        let mut out = UserMeta::new();
        assert!(matches!(LinkHeader::write("a b/ü".as_bytes(), &mut out), LinkHeader::Target(_)));
        assert_eq!(out[LINK_TARGET], "header:6:a%20b/%C3%BC");
        assert_eq!(LinkHeader::read(&out), Some(LinkHeader::Target("a b/ü".into())));
        assert_eq!(LinkHeader::write(&[b'x'; 2048], &mut out), LinkHeader::Body);
        assert_eq!(LinkHeader::read(&out), Some(LinkHeader::Body));
        assert_eq!(LinkHeader::read(&meta(&[(LINK_TARGET, "header:3:a:b")])), Some(LinkHeader::Target("a:b".into())));
        for odd in ["", "header", "header:0:", "other:1:x"] {
            assert_eq!(LinkHeader::read(&meta(&[(LINK_TARGET, odd)])), Some(LinkHeader::Body), "{odd}");
        }
        assert_eq!(LinkHeader::read(&UserMeta::new()), None);
        assert_eq!(device_number(&meta(&[(RDEV, "259")])), Some(259));
    }

    proptest! {
        #[test]
        fn attributes_survive_the_metadata(mode in any::<u32>(), uid in any::<u32>(), secs in 1u64..200_000_000_000, nanos in 0u32..1_000_000_000) {
            let at = UNIX_EPOCH + Duration::new(secs, nanos);
            let attributes = Attributes { mode: Some(mode), uid: Some(uid), gid: Some(uid), mtime: Some(at), atime: Some(at), ctime: None };
            let mut out = UserMeta::new();
            attributes.write(&mut out);
            prop_assert_eq!(Attributes::read(&out), attributes);
        }
    }
}
