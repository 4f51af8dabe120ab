//! The kernel's requests in, replies out: types and numbers, nothing else.
//!
//! What memory or the local disk answers is answered on fuser's thread; what needs the network moves its reply
//! into a task. A reply that is dropped answers EIO, so nothing here cancels or unwinds a task that owns one.

mod call;
mod entries;
mod errno;
mod mount;
mod reply;
mod serve;
mod touch;
mod work;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

pub use mount::{KernelMount, MountError, MountPlan, unmount};
pub use serve::{Greeting, recovery_is_transparent, serve};
pub use touch::TouchedBuffers;
pub use work::Watch;

use crate::base::ByteRange;
use crate::base::limits::FUSE_WRITE_MAX;
use crate::vfs::{Allocate, AttrChange, FsError, Kind, RenameMode, Seek, SetXattr, Vfs, is_refused};
use call::Call as Caller;
use entries::{Entries, READDIR_BYTES, RawReplies};
use reply::{
    Added, BLOCK, GENERATION, add_plus, file_attr, fopen_flags, how_of, kind_of, note_listed, reply_attr, reply_empty,
    reply_entry, reply_xattr, set_time, told, utf8,
};

/// Requests that the kernel keeps in the background; fuser's default of 16 starves parallel readers.
const BACKGROUND_MAX: u16 = 128;
/// How far the kernel reads ahead by itself.
const READAHEAD_MAX: u32 = 1 << 20;

/// The file system as fuser wants it.
#[derive(Debug)]
pub struct Adapter {
    vfs: Arc<Vfs>,
    runtime: Handle,
    /// `readdirplus` pays only where a listing tells all attributes.
    readdirplus: bool,
    replies: Option<Arc<RawReplies>>,
    /// What the kernel goes by since it was first answered.
    agreed: Option<InitFlags>,
    watch: Arc<dyn Watch>,
}

impl Adapter {
    pub fn new(vfs: Arc<Vfs>, runtime: Handle, readdirplus: bool, watch: Arc<dyn Watch>) -> Self {
        Self { vfs, runtime, readdirplus, replies: None, agreed: None, watch }
    }

    /// Tells the connection that is served, and what was agreed on it before.
    fn connect(&mut self, connection: OwnedFd, agreed: Option<InitFlags>) {
        self.replies = Some(Arc::new(RawReplies::new(connection)));
        self.agreed = agreed;
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_AUTO_INVAL_DATA
            // Without it the kernel asks for `security.capability` before every write.
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_HAS_RESEND;
        if self.readdirplus {
            wanted |= InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO;
        }
        // The kernel has been answered by another process, and goes by that.
        wanted &= self.agreed.unwrap_or(InitFlags::all());
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                log::debug!("this kernel has no {flag:?}");
            }
        }
        if !config.capabilities().contains(InitFlags::FUSE_ATOMIC_O_TRUNC) {
            return Err(io::Error::other("this kernel cannot open and truncate in one step"));
        }
        // Each of these answers with the nearest value where the kernel allows less.
        for result in [config.set_max_write(FUSE_WRITE_MAX), config.set_max_readahead(READAHEAD_MAX)] {
            if let Err(nearest) = result {
                log::debug!("the kernel allows {nearest} bytes");
            }
        }
        if let Err(nearest) = config.set_max_background(BACKGROUND_MAX) {
            log::debug!("the kernel allows {nearest} requests in the background");
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some((call, slot)) = self.enter(req, "lookup", parent) else { return reply.error(Errno::EIO) };
        let name = match utf8(name) {
            Ok(name) => name,
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        if let Some(known) = self.vfs.lookup_now(parent.0, name) {
            return self.reply_found(call, known, reply);
        }
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let caller = Caller::of(req);
        self.work(slot.at(&name), async move {
            let found = caller.locking(vfs.lookup(parent.0, &name)).await;
            if let Ok(entry) = &found {
                vfs.tell(call, entry.attr.ino);
            }
            reply_entry(&vfs, found, reply);
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.vfs.forgotten(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let Some((_, slot)) = self.enter(req, "getattr", ino) else { return reply.error(Errno::EIO) };
        if let Some(known) = self.vfs.getattr_now(ino.0) {
            return reply_attr(&self.vfs, known, reply);
        }
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot, async move { reply_attr(&vfs, caller.waiting(vfs.getattr(ino.0)).await, reply) });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some((_, slot)) = self.enter(req, "setattr", ino) else { return reply.error(Errno::EIO) };
        let (atime, mtime, fh) = (set_time(atime), set_time(mtime), fh.map(|fh| fh.0));
        let change = AttrChange { mode, uid, gid, size, atime, mtime, fh };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot, async move { reply_attr(&vfs, caller.waiting(vfs.setattr(ino.0, change)).await, reply) });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let Some((call, slot)) = self.enter(req, "mkdir", parent) else { return reply.error(Errno::EIO) };
        let name = match utf8(name) {
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        let (vfs, owner) = (self.vfs.clone(), (req.uid(), req.gid()));
        let caller = Caller::of(req);
        self.work(slot.at(&name), async move {
            reply_entry(&vfs, caller.locking(vfs.mkdir(call, parent.0, &name, mode, owner)).await, reply)
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((call, slot)) = self.enter(req, "unlink", parent) else { return reply.error(Errno::EIO) };
        let name = match utf8(name) {
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot.at(&name), async move {
            reply_empty(&vfs, caller.locking(vfs.unlink(call, parent.0, &name)).await, reply)
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((call, slot)) = self.enter(req, "rmdir", parent) else { return reply.error(Errno::EIO) };
        let name = match utf8(name) {
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot.at(&name), async move {
            reply_empty(&vfs, caller.locking(vfs.rmdir(call, parent.0, &name)).await, reply)
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some((call, slot)) = self.enter(req, "rename", parent) else { return reply.error(Errno::EIO) };
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(told(&self.vfs, &FsError::Invalid));
        };
        let (name, newname) = match (utf8(name), utf8(newname)) {
            (Ok(name), Ok(newname)) => (name.to_owned(), newname.to_owned()),
            (Err(error), _) | (_, Err(error)) => return reply.error(told(&self.vfs, &error)),
        };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot.at(&name), async move {
            reply_empty(
                &vfs,
                caller.locking(vfs.rename(call, (parent.0, &name), (newparent.0, &newname), mode)).await,
                reply,
            );
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some((call, slot)) = self.enter(req, "open", ino) else { return reply.error(Errno::EIO) };
        let how = how_of(flags.0, req.pid());
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot, async move {
            match caller.waiting(vfs.open(call, ino.0, how)).await {
                Ok(opened) => {
                    vfs.commit();
                    reply.opened(FileHandle(opened.fh), fopen_flags(&opened, how));
                }
                Err(error) => reply.error(told(&vfs, &error)),
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let Some((call, slot)) = self.enter(req, "create", parent) else { return reply.error(Errno::EIO) };
        let how = how_of(flags, req.pid());
        let owner = (req.uid(), req.gid());
        let name = match utf8(name) {
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        let (vfs, caller) = (self.vfs.clone(), Caller::of(req));
        self.work(slot.at(&name), async move {
            match caller.locking(vfs.create(call, parent.0, &name, mode, owner, how)).await {
                Ok((entry, opened)) => {
                    vfs.commit();
                    let flags = fopen_flags(&opened, how);
                    reply.created(&entry.ttl, &file_attr(&entry.attr), GENERATION, FileHandle(opened.fh), flags);
                }
                Err(error) => reply.error(told(&vfs, &error)),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((_, slot)) = self.enter(req, "read", ino) else { return reply.error(Errno::EIO) };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot, async move {
            match caller.waiting(vfs.read(fh.0, offset, size)).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(told(&vfs, &error)),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some((_, slot)) = self.enter(req, "write", ino) else { return reply.error(Errno::EIO) };
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let caller = if cached { Caller::of_nobody() } else { Caller::of(req) };
        if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) && self.vfs.has_privileges(ino.0) {
            let (vfs, data) = (self.vfs.clone(), data.to_vec());
            self.work(slot, async move {
                let written = match caller.waiting(vfs.drop_privileges(ino.0)).await {
                    Ok(()) => caller.waiting(vfs.write(fh.0, offset, &data)).await,
                    Err(error) => Err(error),
                };
                vfs.commit();
                match written {
                    Ok(()) => reply.written(data.len() as u32),
                    Err(error) => reply.error(told(&vfs, &error)),
                }
            });
            return;
        }
        match self.vfs.write_now(fh.0, offset, data) {
            Ok(Some(())) => {
                self.vfs.commit();
                reply.written(data.len() as u32);
            }
            Err(error) => reply.error(told(&self.vfs, &error)),
            Ok(None) => {
                let (vfs, data) = (self.vfs.clone(), data.to_vec());
                self.work(slot, async move {
                    let written = caller.waiting(vfs.write(fh.0, offset, &data)).await;
                    vfs.commit();
                    match written {
                        Ok(()) => reply.written(data.len() as u32),
                        Err(error) => reply.error(told(&vfs, &error)),
                    }
                });
            }
        }
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let Some((call, slot)) = self.enter(req, "flush", ino) else { return reply.error(Errno::EIO) };
        let (vfs, tid) = (self.vfs.clone(), req.pid());
        let caller = Caller::of(req);
        self.work(slot, async move { reply_empty(&vfs, caller.waiting(vfs.flush(call, fh.0, tid)).await, reply) });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let Some((_, slot)) = self.enter(req, "release", ino) else { return reply.error(Errno::EIO) };
        let vfs = self.vfs.clone();
        self.work(slot, async move { reply_empty(&vfs, vfs.release(fh.0).await, reply) });
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let Some((call, slot)) = self.enter(req, "fsync", ino) else { return reply.error(Errno::EIO) };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot, async move { reply_empty(&vfs, caller.waiting(vfs.fsync(call, fh.0)).await, reply) });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let Some((call, _slot)) = self.enter(req, "opendir", ino) else { return reply.error(Errno::EIO) };
        match self.vfs.opendir(call, ino.0) {
            Ok(fh) => {
                self.vfs.commit();
                reply.opened(FileHandle(fh), FopenFlags::empty());
            }
            Err(error) => reply.error(told(&self.vfs, &error)),
        }
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some((_, slot)) = self.enter(req, "readdir", ino) else { return reply.error(Errno::EIO) };
        let (vfs, raw, unique) = (self.vfs.clone(), self.replies.clone(), req.unique().0);
        let caller = Caller::of(req);
        self.work(slot, async move {
            let snapshot = match caller.locking(vfs.readdir(fh.0, offset)).await {
                Ok(snapshot) => snapshot,
                Err(error) => return reply.error(told(&vfs, &error)),
            };
            let entries = snapshot.iter().enumerate().skip(offset as usize);
            let first_is_unknown = snapshot.get(offset as usize).is_some_and(|(_, _, kind)| kind.is_none());
            if let Some(raw) = raw.filter(|_| first_is_unknown) {
                let mut buffer = Entries::new(READDIR_BYTES);
                let mut told = 0;
                for (at, (name, ino, kind)) in entries {
                    if buffer.add(*ino, at as u64 + 1, kind.map_or(0, Kind::type_bits), name) {
                        break;
                    }
                    told += 1;
                }
                note_listed(&vfs, fh.0, &snapshot, offset, told);
                return raw.send(unique, buffer, reply);
            }
            let mut told = 0;
            for (at, (name, ino, kind)) in entries {
                // One whose kind is not known begins the next reply.
                let Some(kind) = kind else { break };
                if reply.add(INodeNo(*ino), at as u64 + 1, kind_of(*kind), name) {
                    break;
                }
                told += 1;
            }
            note_listed(&vfs, fh.0, &snapshot, offset, told);
            reply.ok();
        });
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let Some((call, slot)) = self.enter(req, "readdirplus", ino) else { return reply.error(Errno::EIO) };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot, async move {
            match caller.locking(vfs.readdir(fh.0, offset)).await {
                Ok(entries) => {
                    let (mut passed, mut empty) = (0, true);
                    for (at, (name, child, kind)) in entries.iter().enumerate().skip(offset as usize) {
                        let entry = (name.as_str(), *child, kind.unwrap_or(Kind::File));
                        match add_plus((&vfs, call, caller), &mut reply, ino.0, at as u64 + 1, entry).await {
                            Ok(Added::Yes) => empty = false,
                            Ok(Added::Gone) => {}
                            // An empty answer would be the end of the directory. What comes before it is told; the next
                            // call begins with it.
                            Err(error) if empty => return reply.error(told(&vfs, &error)),
                            Ok(Added::Full) | Err(_) => break,
                        }
                        passed += 1;
                    }
                    note_listed(&vfs, fh.0, &entries, offset, passed);
                    reply.ok();
                }
                Err(error) => reply.error(told(&vfs, &error)),
            }
        });
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let Some((_, _slot)) = self.enter(req, "releasedir", ino) else { return reply.error(Errno::EIO) };
        self.vfs.releasedir(fh.0);
        self.vfs.commit();
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Changes of names are in the bucket, or journaled, before they are answered.
        reply.ok();
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let Some((_, slot)) = self.enter(req, "readlink", ino) else { return reply.error(Errno::EIO) };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot, async move {
            match caller.waiting(vfs.readlink(ino.0)).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(told(&vfs, &error)),
            }
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let Some((call, slot)) = self.enter(req, "symlink", parent) else { return reply.error(Errno::EIO) };
        let name = match utf8(name) {
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        let (vfs, owner) = (self.vfs.clone(), (req.uid(), req.gid()));
        let target = target.as_os_str().as_bytes().to_vec();
        let caller = Caller::of(req);
        self.work(slot.at(&name), async move {
            reply_entry(&vfs, caller.locking(vfs.symlink(call, parent.0, &name, &target, owner)).await, reply)
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some((call, slot)) = self.enter(req, "mknod", parent) else { return reply.error(Errno::EIO) };
        let name = match utf8(name) {
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        let (vfs, owner) = (self.vfs.clone(), (req.uid(), req.gid()));
        let caller = Caller::of(req);
        self.work(slot.at(&name), async move {
            reply_entry(&vfs, caller.locking(vfs.mknod(call, parent.0, &name, mode, rdev, owner)).await, reply)
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // Asked for by the kernel of its own accord, often: not even a task is spent on it. Never ENOSYS, after which
        // it would not ask for any attribute again.
        let name = match utf8(name) {
            Ok(name) if is_refused(name) => return reply.error(Errno::EOPNOTSUPP),
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        let Some((_, slot)) = self.enter(req, "getxattr", ino) else { return reply.error(Errno::EIO) };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(
            slot,
            async move { reply_xattr(&vfs, caller.waiting(vfs.getxattr(ino.0, &name)).await, size, reply) },
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let Some((_, slot)) = self.enter(req, "listxattr", ino) else { return reply.error(Errno::EIO) };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot, async move {
            let names = caller.waiting(vfs.listxattr(ino.0)).await;
            let joined = names.map(|names| names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect());
            reply_xattr(&vfs, joined, size, reply);
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let Some((call, slot)) = self.enter(req, "setxattr", ino) else { return reply.error(Errno::EIO) };
        let name = match utf8(name) {
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        let how = match flags {
            libc::XATTR_CREATE => SetXattr::New,
            libc::XATTR_REPLACE => SetXattr::Present,
            _ => SetXattr::Any,
        };
        let (vfs, value) = (self.vfs.clone(), value.to_vec());
        let caller = Caller::of(req);
        self.work(slot, async move {
            reply_empty(&vfs, caller.waiting(vfs.setxattr(call, ino.0, &name, &value, how)).await, reply)
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((call, slot)) = self.enter(req, "removexattr", ino) else { return reply.error(Errno::EIO) };
        let name = match utf8(name) {
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(told(&self.vfs, &error)),
        };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(
            slot,
            async move { reply_empty(&vfs, caller.waiting(vfs.removexattr(call, ino.0, &name)).await, reply) },
        );
    }

    // What is not there is said so, once: after ENOSYS the kernel does not ask again, and where there is another
    // way (copying by reading and writing) it takes that.

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some((_, slot)) = self.enter(req, "fallocate", ino) else { return reply.error(Errno::EIO) };
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let zero = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => false,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => true,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let vfs = self.vfs.clone();
        let caller = Caller::of(req);
        self.work(slot, async move {
            let how = Allocate { keep_size, zero };
            reply_empty(&vfs, caller.waiting(vfs.fallocate(fh.0, ByteRange::at(offset, length), how)).await, reply);
        });
    }

    fn lseek(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Some((_, _slot)) = self.enter(req, "lseek", ino) else { return reply.error(Errno::EIO) };
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.vfs.seek(fh.0, offset, what) {
            Ok(Some(found)) => reply.offset(found as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(told(&self.vfs, &error)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let Some((_, _slot)) = self.enter(req, "copy_file_range", ino_out) else { return reply.error(Errno::EIO) };
        // The reply counts in 32 bits.
        let len = len.min(u64::from(u32::MAX));
        match self.vfs.copy_range((fh_in.0, offset_in), (fh_out.0, offset_out), len) {
            Ok(copied) => {
                self.vfs.commit();
                reply.written(copied as u32);
            }
            // The kernel reads and writes instead.
            Err(FsError::Unsupported) => reply.error(Errno::EOPNOTSUPP),
            Err(error) => reply.error(told(&self.vfs, &error)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let usage = self.vfs.statfs();
        let block = u64::from(BLOCK);
        let (total, used) = (usage.capacity / block, usage.used.div_ceil(block));
        let free = total.saturating_sub(used);
        let files_free = u64::from(u32::MAX);
        reply.statfs(total, free, free, usage.objects + files_free, files_free, BLOCK, 255, BLOCK);
    }
}
