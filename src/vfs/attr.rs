//! Attributes of files and directories: from objects, from the mount's defaults, and back into metadata.

use std::time::SystemTime;

use crate::base::posix::{
    Attributes, DIRECTORY_TYPE, LINK_BODY_BYTES_MAX, LinkHeader, RDEV, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK,
    S_IFMT, S_IFREG, S_IFSOCK, device_number,
};
use crate::base::{ETag, mime};
use crate::oss::{ObjectMeta, PutHeaders};
use crate::spill::{HeaderRecord, Times};
use crate::upload::{headers_of, record_of};

/// What kind of thing an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `stat` shows as the size of a directory, as most file systems do; some tools take 0 for a broken one.
pub(super) const DIR_SIZE: u64 = 4096;
/// Permission bits of every symlink.
const LINK_MODE: u32 = 0o777;
const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o0010;

impl Kind {
    /// The type bits of a mode.
    pub fn type_bits(self) -> u32 {
        match self {
            Self::File => S_IFREG,
            Self::Dir => S_IFDIR,
            Self::Symlink => S_IFLNK,
            Self::Fifo => S_IFIFO,
            Self::Socket => S_IFSOCK,
            Self::CharDevice => S_IFCHR,
            Self::BlockDevice => S_IFBLK,
        }
    }

    /// The kind that the type bits of a mode tell.
    pub fn of_mode(mode: u32) -> Option<Self> {
        let all = [Self::File, Self::Dir, Self::Symlink, Self::Fifo, Self::Socket, Self::CharDevice, Self::BlockDevice];
        all.into_iter().find(|kind| kind.type_bits() == mode & S_IFMT)
    }

    /// Whether it is a name without bytes of its own: fifo, socket or device.
    pub fn is_special(self) -> bool {
        matches!(self, Self::Fifo | Self::Socket | Self::CharDevice | Self::BlockDevice)
    }
}

/// A mode without the bits that let a program run as somebody else: they go when a file or its owner changes.
pub(super) fn unprivileged(mode: u32) -> u32 {
    let group = if mode & S_IXGRP == 0 { 0 } else { S_ISGID };
    mode & !(S_ISUID | group)
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
    /// The number of a device, else 0.
    pub rdev: u32,
    /// Names that it has: 0 once it is unlinked, 2 for directories.
    pub nlink: u32,
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
            Kind::Dir => self.dir_mode,
            Kind::Symlink => LINK_MODE,
            _ => self.file_mode,
        };
        let (size, nlink) = if kind == Kind::Dir { (DIR_SIZE, 2) } else { (0, 1) };
        Attr { ino, kind, mode, uid: self.uid, gid: self.gid, size, mtime: at, atime: at, ctime: at, rdev: 0, nlink }
    }

    /// Attributes of a file or directory whose object (or marker) is `version`.
    pub fn attr_of(&self, ino: u64, kind: Kind, version: &Version) -> Attr {
        let mut attr = self.default_attr(ino, kind, version.last_modified);
        if matches!(kind, Kind::File | Kind::Symlink) {
            attr.size = version.size;
        }
        if let Some(headers) = version.headers.as_ref().filter(|_| self.posix) {
            let told = Attributes::read(&headers.user_meta);
            if kind != Kind::Symlink {
                attr.mode = told.mode.map_or(attr.mode, |mode| mode & 0o7777);
            }
            if let Some(LinkHeader::Target(target)) =
                LinkHeader::read(&headers.user_meta).filter(|_| kind == Kind::Symlink)
            {
                attr.size = target.len() as u64;
            }
            if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
                attr.rdev = device_number(&headers.user_meta).unwrap_or(0);
            }
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

    /// What an object is that is no symlink of the service: its metadata tell, where they are kept. Objects with
    /// bytes that the kind could not show count as files.
    pub fn kind_of(&self, headers: &PutHeaders, size: u64) -> Kind {
        if Self::is_directory(headers, size) {
            return Kind::Dir;
        }
        if !self.posix {
            return Kind::File;
        }
        let header = LinkHeader::read(&headers.user_meta);
        let is_link = matches!(header, Some(LinkHeader::Target(_))) || (1..=LINK_BODY_BYTES_MAX).contains(&size);
        let mode = Attributes::read(&headers.user_meta).mode.unwrap_or(0);
        match Kind::of_mode(mode) {
            Some(Kind::Symlink) if is_link => Kind::Symlink,
            None if mode & S_IFMT == 0 && header.is_some() && is_link => Kind::Symlink,
            Some(kind) if kind.is_special() && size == 0 => kind,
            _ => Kind::File,
        }
    }

    /// Headers of a new symlink or special file, all times included. What a link's target needs is not among them.
    pub fn new_special_headers(&self, attr: &Attr) -> PutHeaders {
        let content_type = "application/octet-stream".to_owned();
        let mut headers = headers_of(&self.new_headers(content_type, attr.kind.type_bits(), attr));
        if self.posix {
            all_times(attr).write(&mut headers.user_meta);
            if attr.rdev != 0 {
                headers.user_meta.insert(RDEV.to_owned(), attr.rdev.to_string());
            }
        }
        headers
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
            owner(attr, attr.kind.type_bits()).write(&mut headers.user_meta);
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
    fn the_forms_of_all_writers_are_told_apart() {
        let kind = |meta: &[(&str, &str)], size| {
            let headers = version(meta).headers.unwrap();
            options(true).kind_of(&headers, size)
        };
        assert_eq!(kind(&[("mode", "41471")], 7), Kind::Symlink);
        assert_eq!(kind(&[("mode", "41471")], 5000), Kind::File, "too long for a target");
        assert_eq!(kind(&[("mode", "41471")], 0), Kind::File, "no target at all");
        assert_eq!(kind(&[("mode", "41471"), ("symlink-target", "header:1:x")], 0), Kind::Symlink);
        assert_eq!(kind(&[("mode", "511"), ("symlink-target", "header:1:x")], 0), Kind::Symlink);
        assert_eq!(kind(&[("mode", "4516")], 0), Kind::Fifo);
        assert_eq!(kind(&[("mode", "4516")], 1), Kind::File);
        assert_eq!(kind(&[("mode", "16877")], 0), Kind::Dir);
        assert_eq!(kind(&[("mode", "420")], 3), Kind::File);
        assert_eq!(kind(&[], 3), Kind::File);
        let plain = options(false).kind_of(&version(&[("mode", "41471")]).headers.unwrap(), 7);
        assert_eq!(plain, Kind::File);
    }

    #[test]
    fn privileges_go_with_the_bits_that_grant_them() {
        assert_eq!(unprivileged(0o6755), 0o755);
        assert_eq!(unprivileged(0o6745), 0o2745, "mandatory locking, not a privilege");
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
