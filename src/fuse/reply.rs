//! Answers of the file system as replies of fuser's.

use fuser::{Errno, FileAttr, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::errno::errno;
use super::{BLOCK, GENERATION, kind_of};
use crate::vfs::{Attr, Entry, FsError};

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.ctime,
        kind: kind_of(attr.kind),
        perm: attr.mode as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK,
        flags: 0,
    }
}

pub(super) fn reply_entry(result: Result<Entry, FsError>, reply: ReplyEntry) {
    match result {
        Ok(entry) => reply.entry(&entry.ttl, &file_attr(&entry.attr), GENERATION),
        Err(error) => reply.error(told(&error)),
    }
}

pub(super) fn reply_attr(result: Result<Entry, FsError>, reply: ReplyAttr) {
    match result {
        Ok(entry) => reply.attr(&entry.ttl, &file_attr(&entry.attr)),
        Err(error) => reply.error(told(&error)),
    }
}

pub(super) fn reply_empty(result: Result<(), FsError>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(told(&error)),
    }
}

/// The value of an attribute, or only its size where nothing else was asked for.
pub(super) fn reply_xattr(result: Result<Vec<u8>, FsError>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(told(&error)),
    }
}

/// The errno of a failure; what is no ordinary answer is logged in words, since the application sees the number.
pub(super) fn told(error: &FsError) -> fuser::Errno {
    match error {
        FsError::Oss(_) | FsError::Write(_) | FsError::Read(_) => log::warn!("{error}"),
        _ => log::trace!("{error}"),
    }
    errno(error)
}
