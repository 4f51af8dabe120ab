//! The disk's side of FUSE: each request changes the state and is logged, under one lock.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::log::Op;
use super::{Act, Node, State};

/// Nobody else changes the disk.
const TTL: Duration = Duration::from_secs(3600);
const BLOCK: u32 = 4096;

/// What fuser calls.
pub(super) struct Server {
    pub(super) shared: Arc<Mutex<State>>,
}

type Outcome<T> = Result<T, i32>;

fn name_of(name: &OsStr) -> Outcome<&str> {
    name.to_str().ok_or(libc::EILSEQ)
}

impl State {
    fn node(&self, ino: u64) -> Outcome<&Node> {
        self.nodes.get(&ino).ok_or(libc::ENOENT)
    }

    fn node_mut(&mut self, ino: u64) -> Outcome<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(libc::ENOENT)
    }

    fn child(&self, dir: u64, name: &str) -> Outcome<u64> {
        let entries = self.node(dir)?.entries.as_ref().ok_or(libc::ENOTDIR)?;
        entries.get(name).copied().ok_or(libc::ENOENT)
    }

    fn attr(&self, ino: u64) -> Outcome<FileAttr> {
        let node = self.node(ino)?;
        let size = node.data.len() as u64;
        let kind = if node.entries.is_some() { FileType::Directory } else { FileType::RegularFile };
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: node.mtime,
            mtime: node.mtime,
            ctime: node.mtime,
            crtime: node.mtime,
            kind,
            perm: (node.mode & 0o7777) as u16,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        })
    }

    fn make(&mut self, dir: u64, name: &OsStr, mode: u32, is_dir: bool) -> Outcome<FileAttr> {
        let name = name_of(name)?.to_owned();
        self.fault(Act::Make, dir, &name)?;
        if self.child(dir, &name).is_ok() {
            return Err(libc::EEXIST);
        }
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(
            ino,
            Node {
                place: Some((dir, name.clone())),
                mode,
                mtime: SystemTime::now(),
                data: Vec::new(),
                entries: is_dir.then(Default::default),
            },
        );
        self.entries(dir)?.insert(name.clone(), ino);
        self.log(Op::Make { dir, name, ino, is_dir, mode });
        self.attr(ino)
    }

    fn entries(&mut self, dir: u64) -> Outcome<&mut std::collections::BTreeMap<String, u64>> {
        self.node_mut(dir)?.entries.as_mut().ok_or(libc::ENOTDIR)
    }

    fn remove(&mut self, dir: u64, name: &OsStr, is_dir: bool) -> Outcome<()> {
        let name = name_of(name)?.to_owned();
        self.fault(Act::Change, dir, &name)?;
        let ino = self.child(dir, &name)?;
        let held = self.node(ino)?.entries.as_ref();
        match (held, is_dir) {
            (Some(_), false) => return Err(libc::EISDIR),
            (None, true) => return Err(libc::ENOTDIR),
            (Some(entries), true) if !entries.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        self.entries(dir)?.remove(&name);
        self.log(Op::Remove { dir, name, ino });
        Ok(())
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Outcome<()> {
        let (from, to) = ((from.0, name_of(from.1)?.to_owned()), (to.0, name_of(to.1)?.to_owned()));
        self.fault(Act::Change, from.0, &from.1)?;
        let ino = self.child(from.0, &from.1)?;
        self.entries(from.0)?.remove(&from.1);
        self.entries(to.0)?.insert(to.1.clone(), ino);
        self.node_mut(ino)?.place = Some(to.clone());
        self.log(Op::Rename { from, to, ino });
        Ok(())
    }

    fn exchange(&mut self, dir: u64, one: &OsStr, two: &OsStr) -> Outcome<()> {
        let names = [name_of(one)?.to_owned(), name_of(two)?.to_owned()];
        self.fault(Act::Change, dir, &names[0])?;
        let inos = [self.child(dir, &names[1])?, self.child(dir, &names[0])?];
        for (name, ino) in names.iter().zip(inos) {
            self.entries(dir)?.insert(name.clone(), ino);
            self.node_mut(ino)?.place = Some((dir, name.clone()));
        }
        self.log(Op::Exchange { dir, names, inos });
        Ok(())
    }

    fn write(&mut self, ino: u64, at: u64, data: &[u8]) -> Outcome<u32> {
        self.fault(Act::Write, ino, "")?;
        let end = at + data.len() as u64;
        self.room(ino, end)?;
        let time = SystemTime::now();
        let node = self.node_mut(ino)?;
        node.data.resize(node.data.len().max(end as usize), 0);
        node.data[at as usize..end as usize].copy_from_slice(data);
        node.mtime = time;
        self.log(Op::Write { ino, at, data: data.into(), time });
        Ok(data.len() as u32)
    }

    fn resize(&mut self, ino: u64, size: u64) -> Outcome<()> {
        self.fault(Act::Write, ino, "")?;
        self.room(ino, size)?;
        let time = SystemTime::now();
        let node = self.node_mut(ino)?;
        node.data.resize(size as usize, 0);
        node.mtime = time;
        self.log(Op::Resize { ino, size, time });
        Ok(())
    }

    fn sync(&mut self, op: Op, ino: u64) -> Outcome<()> {
        self.fault(Act::Sync, ino, "")?;
        self.log(op);
        Ok(())
    }
}

/// Answers with what came out.
macro_rules! answer {
    ($reply:ident, $outcome:expr, $value:pat => $done:expr) => {
        match $outcome {
            Ok($value) => $done,
            Err(errno) => $reply.error(Errno::from_i32(errno)),
        }
    };
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.shared.lock();
        let found = name_of(name).and_then(|name| state.child(parent.0, name)).and_then(|ino| state.attr(ino));
        answer!(reply, found, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.shared.lock().attr(ino.0), attr => reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.shared.lock();
        let mut change = || -> Outcome<FileAttr> {
            if let Some(size) = size {
                state.resize(ino.0, size)?;
            }
            let node = state.node_mut(ino.0)?;
            node.mode = mode.unwrap_or(node.mode);
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => node.mtime = time,
                Some(TimeOrNow::Now) => node.mtime = SystemTime::now(),
                None => {}
            }
            state.attr(ino.0)
        };
        answer!(reply, change(), attr => reply.attr(&TTL, &attr));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let made = self.shared.lock().make(parent.0, name, mode, true);
        answer!(reply, made, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.shared.lock().make(parent.0, name, mode, false);
        answer!(reply, made, attr => {
            reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.shared.lock().remove(parent.0, name, false), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.shared.lock().remove(parent.0, name, true), () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (mut state, from, to) = (self.shared.lock(), (parent.0, name), (newparent.0, newname));
        let done = if flags.is_empty() {
            state.rename(from, to)
        } else if flags == RenameFlags::RENAME_EXCHANGE && parent == newparent {
            state.exchange(parent.0, name, newname)
        } else {
            Err(libc::EINVAL)
        };
        answer!(reply, done, () => reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Every read is asked for: it may have to fail.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.shared.lock();
        let fault = state.fault(Act::Read, ino.0, "");
        let found = fault.and_then(|()| state.node(ino.0));
        answer!(reply, found, node => {
            let start = node.data.len().min(offset as usize);
            let end = node.data.len().min(start + size as usize);
            reply.data(&node.data[start..end]);
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(reply, self.shared.lock().write(ino.0, offset, data), len => reply.written(len));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let op = Op::SyncFile { ino: ino.0, data_only: datasync };
        answer!(reply, self.shared.lock().sync(op, ino.0), () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.shared.lock().sync(Op::SyncDir { ino: ino.0 }, ino.0), () => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.shared.lock();
        let Some(entries) = state.nodes.get(&ino.0).and_then(|node| node.entries.as_ref()) else {
            return reply.error(Errno::ENOENT);
        };
        for (at, (name, child)) in entries.iter().enumerate().skip(offset as usize) {
            let is_dir = state.nodes.get(child).is_some_and(|node| node.entries.is_some());
            let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(*child), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let state = self.shared.lock();
        let block = u64::from(BLOCK);
        let (all, used) = (state.capacity / block, state.used().div_ceil(block));
        let free = all.saturating_sub(used);
        reply.statfs(all, free, free, 1 << 20, 1 << 20, BLOCK, 255, BLOCK);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut state = self.shared.lock();
        let size = state.nodes.get(&ino.0).map_or(0, |node| node.data.len() as u64);
        let done = if offset + length > size { state.resize(ino.0, offset + length) } else { Ok(()) };
        answer!(reply, done, () => reply.ok());
    }
}
