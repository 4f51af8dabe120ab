//! Attributes of files and directories: from objects, from the mount's defaults, and back into metadata.

use std::time::SystemTime;

use crate::base::posix::{Attributes, DIRECTORY_TYPE, S_IFDIR, S_IFMT, S_IFREG};
use crate::base::{ETag, mime};
use crate::oss::{ObjectMeta, PutHeaders};
use crate::spill::{HeaderRecord, Times};
use crate::upload::record_of;

/// What kind of thing an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
}

/// Attributes as `stat` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    pub ino: u64,
    pub kind: Kind,
    /// Permission bits only.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: SystemTime,
    pub atime: SystemTime,
    pub ctime: SystemTime,
}

/// What the mount says where objects say nothing, and which metadata it keeps.
#[derive(Debug, Clone)]
pub struct AttrOptions {
    pub uid: u32,
    pub gid: u32,
    pub file_mode: u32,
    pub dir_mode: u32,
    /// Mode, owner and times are kept as metadata (`--metadata posix`).
    pub posix: bool,
    /// `None`: by the name's extension.
    pub content_type: Option<String>,
    pub storage_class: Option<String>,
    pub server_side_encryption: Option<String>,
}

/// A version of an object, as the inode that shows it remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub etag: ETag,
    pub size: u64,
    pub crc64: Option<u64>,
    pub last_modified: SystemTime,
    /// Metadata and standard headers; `None` while only a listing has been seen.
    pub headers: Option<Box<PutHeaders>>,
}

impl Version {
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            etag: meta.etag.clone(),
            size: meta.size,
            crc64: meta.crc64,
            last_modified: meta.last_modified,
            headers: Some(Box::new(meta.headers.clone())),
        }
    }

    /// Whether both are the same state of the object, metadata included: changing metadata moves last-modified.
    pub fn same_state(&self, other: &Self) -> bool {
        self.etag == other.etag && self.last_modified == other.last_modified && self.size == other.size
    }
}

impl AttrOptions {
    /// Attributes of a file or directory of which nothing is known but its kind.
    pub fn default_attr(&self, ino: u64, kind: Kind, at: SystemTime) -> Attr {
        let mode = match kind {
            Kind::File => self.file_mode,
            Kind::Dir => self.dir_mode,
        };
        Attr { ino, kind, mode, uid: self.uid, gid: self.gid, size: 0, mtime: at, atime: at, ctime: at }
    }

    /// Attributes of a file or directory whose object (or marker) is `version`.
    pub fn attr_of(&self, ino: u64, kind: Kind, version: &Version) -> Attr {
        let mut attr = self.default_attr(ino, kind, version.last_modified);
        if kind == Kind::File {
            attr.size = version.size;
        }
        if let Some(headers) = version.headers.as_ref().filter(|_| self.posix) {
            let told = Attributes::read(&headers.user_meta);
            attr.mode = told.mode.map_or(attr.mode, |mode| mode & 0o7777);
            attr.uid = told.uid.unwrap_or(attr.uid);
            attr.gid = told.gid.unwrap_or(attr.gid);
            attr.mtime = told.mtime.unwrap_or(attr.mtime);
            attr.atime = told.atime.unwrap_or(attr.mtime);
            attr.ctime = told.ctime.unwrap_or(attr.ctime);
        }
        attr
    }

    /// Whether an object that is no marker stands for a directory all the same (posix-metadata reference §2).
    pub fn is_directory(headers: &PutHeaders, size: u64) -> bool {
        let content_type = headers.content_type.as_deref().unwrap_or_default();
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        let told = Attributes::read(&headers.user_meta).mode.map(|mode| mode & S_IFMT);
        size == 0 && (told == Some(S_IFDIR) || (told.is_none_or(|bits| bits == 0) && kind == DIRECTORY_TYPE))
    }

    /// Headers of a new file.
    pub fn new_file_headers(&self, name: &str, attr: &Attr) -> HeaderRecord {
        let content_type = self.content_type.clone().unwrap_or_else(|| mime::content_type(name).to_owned());
        self.new_headers(content_type, S_IFREG, attr)
    }

    /// Headers of a new directory's marker, times included.
    pub fn new_dir_headers(&self, attr: &Attr) -> HeaderRecord {
        let mut headers = self.new_headers(DIRECTORY_TYPE.to_owned(), S_IFDIR, attr);
        headers.storage_class = None;
        if self.posix {
            all_times(attr).write(&mut headers.user_meta);
        }
        headers
    }

    fn new_headers(&self, content_type: String, type_bits: u32, attr: &Attr) -> HeaderRecord {
        let mut headers = HeaderRecord {
            content_type: Some(content_type),
            storage_class: self.storage_class.clone(),
            server_side_encryption: self.server_side_encryption.clone(),
            ..HeaderRecord::default()
        };
        if self.posix {
            owner(attr, type_bits).write(&mut headers.user_meta);
        }
        headers
    }

    /// Headers for a session that edits or rewrites an object: all that it had, foreign ones too, with the
    /// attributes as they are now. Times go in when the object is sent.
    pub fn edit_headers(&self, held: Option<&PutHeaders>, name: &str, attr: &Attr) -> HeaderRecord {
        let Some(held) = held else { return self.new_file_headers(name, attr) };
        let mut headers = record_of(held);
        if self.posix {
            for time in ["mtime", "atime", "ctime"] {
                headers.user_meta.remove(time);
            }
            owner(attr, S_IFREG).write(&mut headers.user_meta);
        }
        headers
    }

    /// The complete headers of a finished object whose attributes are changed.
    pub fn changed_headers(&self, held: &PutHeaders, attr: &Attr) -> PutHeaders {
        let mut headers = held.clone();
        if self.posix {
            let type_bits = if attr.kind == Kind::Dir { S_IFDIR } else { S_IFREG };
            owner(attr, type_bits).write(&mut headers.user_meta);
            all_times(attr).write(&mut headers.user_meta);
        }
        headers
    }

    /// Which times a session starts with.
    pub fn times(&self) -> Times {
        Times { stored: self.posix, mtime: None, atime: None }
    }
}

fn owner(attr: &Attr, type_bits: u32) -> Attributes {
    Attributes { mode: Some(attr.mode | type_bits), uid: Some(attr.uid), gid: Some(attr.gid), ..Attributes::default() }
}

fn all_times(attr: &Attr) -> Attributes {
    Attributes { mtime: Some(attr.mtime), atime: Some(attr.atime), ctime: Some(attr.ctime), ..Attributes::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn options(posix: bool) -> AttrOptions {
        AttrOptions {
            uid: 1,
            gid: 2,
            file_mode: 0o644,
            dir_mode: 0o755,
            posix,
            content_type: None,
            storage_class: None,
            server_side_encryption: None,
        }
    }

    fn version(meta: &[(&str, &str)]) -> Version {
        let user_meta = meta.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Version {
            etag: ETag::new("e"),
            size: 5,
            crc64: None,
            last_modified: UNIX_EPOCH + Duration::from_secs(100),
            headers: Some(Box::new(PutHeaders { user_meta, ..PutHeaders::default() })),
        }
    }

    #[test]
    fn what_an_object_does_not_say_comes_from_the_mount() {
        let attr = options(true).attr_of(9, Kind::File, &version(&[("mode", "33152"), ("mtime", "7")]));
        assert_eq!((attr.mode, attr.uid, attr.gid, attr.size), (0o600, 1, 2, 5));
        assert_eq!(attr.mtime, UNIX_EPOCH + Duration::from_secs(7));
        assert_eq!(attr.ctime, UNIX_EPOCH + Duration::from_secs(100));
        let plain = options(false).attr_of(9, Kind::File, &version(&[("mode", "33152")]));
        assert_eq!(plain.mode, 0o644);
    }

    #[test]
    fn an_edit_keeps_foreign_metadata() {
        let options = options(true);
        let held = version(&[("author", "x"), ("mtime", "7"), ("mode", "33152")]);
        let mut attr = options.attr_of(9, Kind::File, &held);
        attr.mode = 0o640;
        let headers = options.edit_headers(held.headers.as_deref(), "a.txt", &attr);
        assert_eq!(headers.user_meta.get("author").map(String::as_str), Some("x"));
        assert_eq!(headers.user_meta.get("mode").map(String::as_str), Some("33184"));
        assert!(!headers.user_meta.contains_key("mtime"));
        let changed = options.changed_headers(held.headers.as_deref().unwrap(), &attr);
        assert_eq!(changed.user_meta.get("mtime").map(String::as_str), Some("7"));
    }
}
