//! What goes back to the kernel: entries, attributes and errors in its own types.
//!
//! Every answer that tells the kernel something comes after `commit`: what it was told outlives this process.

use std::ffi::OsStr;
use std::fmt;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, OpenAccMode, OpenFlags, ReplyAttr, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyXattr, TimeOrNow,
};

use super::call::Call as Caller;
use super::errno::errno;
use super::work::doing;
use crate::base::KeyError;
use crate::base::fields;
use crate::vfs::{Attr, Call, Entry, FsError, Kind, OpenHow, OpenedFile, SetTime, Vfs};

/// Block size that `stat` and `statfs` tell.
pub(super) const BLOCK: u32 = 4096;
/// An inode number is not given out twice, so generations need not differ.
pub(super) const GENERATION: Generation = Generation(0);

pub(super) fn utf8(name: &OsStr) -> Result<&str, FsError> {
    name.to_str().ok_or(FsError::Name(KeyError::NotUtf8))
}

pub(super) fn kind_of(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

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

pub(super) fn how_of(flags: i32, tid: u32) -> OpenHow {
    let mode = OpenFlags(flags).acc_mode();
    OpenHow {
        read: mode != OpenAccMode::O_WRONLY,
        write: mode != OpenAccMode::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
        exclusive: flags & libc::O_EXCL != 0,
        tid,
    }
}

/// A read-only handle has nothing to publish, so its closes need not be told.
pub(super) fn fopen_flags(opened: &OpenedFile, how: OpenHow) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_NOFLUSH, !how.write);
    flags
}

pub(super) fn set_time(time: Option<TimeOrNow>) -> Option<SetTime> {
    time.map(|time| match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(at),
    })
}

pub(super) fn reply_entry(vfs: &Vfs, result: Result<Entry, FsError>, reply: ReplyEntry) {
    vfs.commit();
    match result {
        Ok(entry) => reply.entry(&entry.ttl, &file_attr(&entry.attr), GENERATION),
        Err(error) => reply.error(told(vfs, &error)),
    }
}

pub(super) fn reply_attr(vfs: &Vfs, result: Result<Entry, FsError>, reply: ReplyAttr) {
    vfs.commit();
    match result {
        Ok(entry) => reply.attr(&entry.ttl, &file_attr(&entry.attr)),
        Err(error) => reply.error(told(vfs, &error)),
    }
}

pub(super) fn reply_empty(vfs: &Vfs, result: Result<(), FsError>, reply: ReplyEmpty) {
    vfs.commit();
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(told(vfs, &error)),
    }
}

/// The value of an attribute, or only its size where nothing else was asked for.
pub(super) fn reply_xattr(vfs: &Vfs, result: Result<Vec<u8>, FsError>, size: u32, reply: ReplyXattr) {
    vfs.commit();
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(told(vfs, &error)),
    }
}

/// The errno of a failure; what is no ordinary answer is logged in words, since the application sees the number.
pub(super) fn told(vfs: &Vfs, error: &FsError) -> fuser::Errno {
    match error {
        FsError::Oss(_) | FsError::Write(_) | FsError::Read(_) => log::warn!("{}", Failure { vfs, error }),
        _ => log::trace!("{error}"),
    }
    errno(error)
}

/// A call that failed: `CALL: ERROR`, with the key in front of an error that does not name it.
struct Failure<'f> {
    vfs: &'f Vfs,
    error: &'f FsError,
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((call, key)) = doing(self.vfs) else { return write!(f, "{}", self.error) };
        // Before this call's own fields are noted: what the error tells goes first.
        let error = self.error.to_string();
        fields::note(fields::OPERATION, call);
        match key {
            Some(key) if !self.error.names_its_object() => {
                fields::note(fields::PATH, &key);
                write!(f, "{call} {key}: {error}")
            }
            _ => write!(f, "{call}: {error}"),
        }
    }
}

/// Notes the first `told` entries from `offset` on: the answer that follows tells them.
pub(super) fn note_listed(vfs: &Vfs, fh: u64, entries: &[(String, u64, Option<Kind>)], offset: u64, told: usize) {
    let start = (offset as usize).min(entries.len());
    vfs.listed(fh, offset, &entries[start..start + told]);
    vfs.commit();
}

/// What became of an entry that was to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    Yes,
    /// It went away since the directory was read.
    Gone,
    /// There is no room for it.
    Full,
}

impl Added {
    fn unless(full: bool) -> Self {
        if full { Self::Full } else { Self::Yes }
    }
}

/// Adds an entry with its attributes, counted as a look-up.
///
/// # Errors
/// It cannot be looked at just now: it must not be passed over in silence.
pub(super) async fn add_plus(
    (vfs, call, caller): (&Vfs, Call, Caller),
    reply: &mut ReplyDirectoryPlus,
    parent: u64,
    next: u64,
    (name, ino, kind): (&str, u64, Kind),
) -> Result<Added, FsError> {
    if name == "." || name == ".." {
        // The kernel takes neither number nor attributes from these.
        let at = SystemTime::UNIX_EPOCH;
        let attr =
            Attr { ino, kind, mode: 0, uid: 0, gid: 0, size: 0, mtime: at, atime: at, ctime: at, rdev: 0, nlink: 1 };
        let full = reply.add(INodeNo(ino), next, name, &Duration::ZERO, &file_attr(&attr), GENERATION);
        return Ok(Added::unless(full));
    }
    match caller.locking(vfs.lookup(parent, name)).await {
        Ok(entry) => {
            let full = reply.add(INodeNo(entry.attr.ino), next, name, &entry.ttl, &file_attr(&entry.attr), GENERATION);
            if full {
                vfs.untold(entry.attr.ino);
            } else {
                vfs.tell(call, entry.attr.ino);
            }
            Ok(Added::unless(full))
        }
        Err(FsError::NotFound | FsError::Stale) => Ok(Added::Gone),
        Err(error) => Err(error),
    }
}
