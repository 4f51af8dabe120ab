//! Opening and creating files.

use std::time::{Duration, Instant};

use super::attr::{Attr, Kind, Version, unprivileged};
use super::call::Call;
use super::error::FsError;
use super::handles::{Handle, OpenFile};
use super::opener::Process;
use super::tree::Listed;
use super::{Entry, Vfs};
use crate::base::ObjectKey;
use crate::base::caller::{Patience, wait, within};
use crate::base::key::check_name;
use crate::base::time::now;
use crate::ledger::{Effect, HowRecord, Record};
use crate::oss::ErrorKind;
use crate::read::{Cursor, Opened, Reader};
use crate::write::{DirtyFile, IfTaken};
use std::sync::Arc;

/// A look at the object this fresh spares the one that an open would take.
const LOOK_FRESH: Duration = Duration::from_secs(1);
/// How long an open with O_TRUNC waits for the bytes of before to be sent.
const SEND_FIRST: Patience = Patience::Strict(Duration::from_secs(5));

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenHow {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
    /// It must be new.
    pub exclusive: bool,
    /// The thread that opens it; 0 where it is not known.
    pub tid: u32,
}

/// An open file's handle, and what the kernel may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedFile {
    pub fh: u64,
    /// The bytes in the kernel's cache are still those of the file.
    pub keep_cache: bool,
}

impl Vfs {
    /// Opens a file; asks the service whether the object is still the one that is known.
    ///
    /// # Errors
    /// `Stale` where another client changed it: the kernel looks the name up again, and finds a new inode.
    pub async fn open(&self, call: Call, ino: u64, how: OpenHow) -> Result<OpenedFile, FsError> {
        if how.write {
            self.check_writable()?;
        }
        if let Some(fh) = self.remembered(call).handle {
            return Ok(OpenedFile { fh, keep_cache: false });
        }
        if how.truncate && how.write {
            self.send_closed(ino).await;
        }
        let mut file = self.open_file(ino)?;
        let mut reader = None;
        let mut keep_cache = true;
        let is_dirty = file.dirty().is_some();
        let must_do = self.client.is_out() && self.is_cached(ino);
        if how.truncate && how.write {
            self.open_truncated(ino, &file).await?;
            file = self.open_file(ino)?;
            if let Some(dirty) = file.dirty() {
                self.stand(&dirty)?;
            }
        } else if !is_dirty && !must_do && !self.seen_just_now(ino) {
            reader = match self.look(ino, how).await {
                Ok(reader) => reader,
                Err(error) => {
                    self.close_if_idle(&mut self.tree.lock(), ino);
                    return Err(error);
                }
            };
        }
        if how.write && !is_dirty && file.dirty().is_none() {
            self.complete_headers(ino).await?;
        }
        if !is_dirty {
            let mut tree = self.tree.lock();
            if let Some(node) = tree.node_mut(ino) {
                let etag = node.version.as_ref().map(|version| version.etag.clone());
                keep_cache = how.truncate || (etag.is_some() && node.cached == etag);
                node.cached = etag;
            }
        }
        // While this was waiting, the last handle or the last unsent byte of the other may have gone.
        let file = self.open_file(ino)?;
        Ok(OpenedFile { fh: self.add_handle(call, file, how, reader), keep_cache })
    }

    fn add_handle(&self, call: Call, file: Arc<OpenFile>, how: OpenHow, reader: Option<Arc<Reader>>) -> u64 {
        if reader.is_some() {
            file.state.lock().reader = reader;
        }
        if how.append
            && let Some(dirty) = file.dirty()
        {
            dirty.mark_append();
        }
        let opener = if how.write { Process::of(how.tid) } else { None };
        let (readable, writable, append) = (how.read, how.write, how.append);
        let ino = file.ino;
        let fh =
            self.handles.add_file(Handle { ino, file, readable, writable, append, opener, cursor: Cursor::default() });
        self.tree.lock().note_object(ino);
        let how = HowRecord { readable, writable, append, opener: opener.map(Process::noted) };
        self.ledger.note(&Record::Opened { unique: call.unique(), fh, ino, how });
        fh
    }

    /// The open file of an inode, made if need be.
    pub(super) fn open_file(&self, ino: u64) -> Result<Arc<OpenFile>, FsError> {
        let mut tree = self.tree.lock();
        let node = tree.node_mut(ino).ok_or(FsError::Stale)?;
        if node.attr.kind == Kind::Dir {
            return Err(FsError::IsDirectory);
        }
        Ok(node.open.get_or_insert_with(|| OpenFile::new(ino)).clone())
    }

    /// Whether the kernel has bytes of the version that is known: they are served while nobody can be asked.
    fn is_cached(&self, ino: u64) -> bool {
        let tree = self.tree.lock();
        tree.node(ino).is_some_and(|node| {
            node.cached.is_some() && node.cached.as_ref() == node.version.as_ref().map(|version| &version.etag)
        })
    }

    fn seen_just_now(&self, ino: u64) -> bool {
        let tree = self.tree.lock();
        tree.node(ino).is_some_and(|node| node.seen.is_some_and(|at| at.elapsed() < LOOK_FRESH))
    }

    /// Opens with O_TRUNC: the file is written anew; the object stays as it is until then.
    async fn open_truncated(&self, ino: u64, file: &Arc<OpenFile>) -> Result<(), FsError> {
        if let Some(dirty) = file.dirty() {
            match self.truncate_dirty(&dirty, 0).await {
                Err(FsError::Write(crate::write::WriteError::Retired)) => self.pass_retired(&dirty),
                other => return other,
            }
        }
        let is_known = self.tree.lock().node(ino).is_some_and(|n| n.version.is_some() || n.fresh_until.is_some());
        if !is_known {
            // Its name came from an earlier process, its attributes did not.
            match self.getattr(ino).await {
                // The kernel looks again, and finds nothing.
                Err(FsError::NotFound) => return Err(FsError::Stale),
                other => drop(other?),
            }
        }
        self.complete_headers(ino).await?;
        loop {
            match self.begin_anew(ino, file) {
                Err(FsError::Copying) => wait(self.later.idle(ino)).await?,
                other => return other,
            }
        }
    }

    /// A file that was closed, and is not sent yet, is about to be written anew: it is sent first, so that whoever
    /// dies over the new bytes leaves the old ones. Where the service is out they are taken over as they are.
    async fn send_closed(&self, ino: u64) {
        let open = self.tree.lock().node(ino).and_then(|node| node.open.clone());
        // Whoever has it open still, or has closed it and is not let go of yet, goes on with the object.
        let closed = open.and_then(|open| open.dirty()).filter(|dirty| dirty.is_closed_locally());
        let Some(dirty) = closed.filter(|_| !self.client.is_out()) else { return };
        if let Err(error) = within(SEND_FIRST, dirty.publish()).await {
            log::debug!("{}: {error}; it is written anew before it was sent", dirty.name());
        }
    }

    /// Begins a session that replaces whatever stands at the file's name.
    pub(super) fn begin_anew(&self, ino: u64, file: &Arc<OpenFile>) -> Result<(), FsError> {
        let mut tree = self.tree.lock();
        if self.later.is_busy(ino) {
            return Err(FsError::Copying);
        }
        if let Some(node) = tree.node_mut(ino) {
            node.attr.mode = unprivileged(node.attr.mode);
        }
        // It may have been let go of while its caller waited for the end of the session before.
        let slot = tree.node_mut(ino).map(|node| &mut node.open).ok_or(FsError::Stale)?;
        let file = slot.get_or_insert_with(|| file.clone()).clone();
        let node = tree.node(ino).ok_or(FsError::Stale)?;
        let held = node.version.as_ref().and_then(|version| version.headers.as_deref());
        let name = node.place.as_ref().map_or("", |(_, name)| name);
        let headers = self.options.attr.edit_headers(held, name, &node.attr);
        let times = self.options.attr.times();
        let dirty = if file.state.lock().unlinked {
            DirtyFile::anonymous(&self.write, None, headers, times)
        } else {
            let key = self.file_key(&tree.path(ino).ok_or(FsError::Stale)?)?;
            let replaces = node.version.as_ref().map(|version| version.etag.clone());
            DirtyFile::create(&self.write, key, replaces, headers, times)
        };
        self.own_session(&file, &dirty);
        let mut state = file.state.lock();
        (state.dirty, state.reader) = (Some(dirty), None);
        Ok(())
    }

    /// Makes sure that all headers of the object behind an inode are known: whoever rewrites it sends them again.
    /// Without POSIX metadata a listing may be all that was seen of it.
    pub(super) async fn complete_headers(&self, ino: u64) -> Result<(), FsError> {
        let complete = {
            let tree = self.tree.lock();
            let version = tree.node(ino).and_then(|node| node.version.as_ref());
            version.is_none_or(|version| version.headers.is_some())
        };
        if complete {
            return Ok(());
        }
        let (_, _, path) = self.place(ino)?;
        let key = self.file_key(&path)?;
        self.settled_at(&key).await?;
        match self.client.head_object(&key).await {
            Ok(meta) => self.seen(ino, &key, Version::of(&meta)),
            // Deleted meanwhile: there is nothing to keep.
            Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks at the object behind an inode: for a reader by getting its first bytes, else by HEAD.
    async fn look(&self, ino: u64, how: OpenHow) -> Result<Option<Arc<Reader>>, FsError> {
        wait(self.later.idle(ino)).await?;
        let key = self.file_key(&self.place(ino)?.2)?;
        self.settled_at(&key).await?;
        match self.look_at(ino, &key, how).await {
            // Our own rename has overtaken it.
            Err(FsError::Moved) => Box::pin(self.look(ino, how)).await,
            other => other,
        }
    }

    async fn look_at(&self, ino: u64, key: &ObjectKey, how: OpenHow) -> Result<Option<Arc<Reader>>, FsError> {
        let (held, empty) = {
            let tree = self.tree.lock();
            let node = tree.node(ino).ok_or(FsError::Stale)?;
            (node.cached.clone(), node.version.as_ref().is_some_and(|version| version.size == 0))
        };
        if !how.read || empty {
            let meta = self.client.head_object(key).await.map_err(|error| self.gone(ino, key, error))?;
            self.seen(ino, key, Version::of(&meta))?;
            return Ok(None);
        }
        match self.read.open(key, held.as_ref()).await {
            Ok(Opened::Unchanged) => {
                self.seen_unchanged(ino);
                Ok(None)
            }
            Ok(Opened::Current { meta, reader }) => {
                self.seen(ino, key, Version::of(&meta))?;
                Ok(Some(reader))
            }
            Err(error) if error.kind == ErrorKind::InvalidRange => {
                let meta = self.client.head_object(key).await.map_err(|error| self.gone(ino, key, error))?;
                self.seen(ino, key, Version::of(&meta))?;
                Ok(None)
            }
            Err(error) => Err(self.gone(ino, key, error)),
        }
    }

    /// An object that is gone takes its name along.
    fn gone(&self, ino: u64, key: &ObjectKey, error: crate::oss::Error) -> FsError {
        if error.kind != ErrorKind::NoSuchKey {
            return error.into();
        }
        if !self.is_at(ino, key) {
            return FsError::Moved;
        }
        let mut tree = self.tree.lock();
        if let Some((parent, name)) = tree.node(ino).and_then(|node| node.place.clone()) {
            tree.changed(parent, &name, None);
            tree.detach(parent, &name);
        }
        FsError::NotFound
    }

    /// Whether an inode has this key, or none any more.
    fn is_at(&self, ino: u64, key: &ObjectKey) -> bool {
        self.place(ino).map_or(true, |(_, _, path)| self.file_key(&path).is_ok_and(|own| own == *key))
    }

    fn seen_unchanged(&self, ino: u64) {
        let deadline = self.attr_deadline();
        if let Some(node) = self.tree.lock().node_mut(ino) {
            node.seen = Some(Instant::now());
            node.fresh_until = Some(deadline);
        }
    }

    /// The object behind an inode was looked at. Another version than the one known gets an inode of its own.
    fn seen(&self, ino: u64, key: &ObjectKey, version: Version) -> Result<(), FsError> {
        if !self.is_at(ino, key) {
            return Err(FsError::Moved);
        }
        let deadline = self.attr_deadline();
        let mut tree = self.tree.lock();
        let node = tree.node_mut(ino).ok_or(FsError::Stale)?;
        let headers = version.headers.as_deref().cloned().unwrap_or_default();
        let kind = self.options.attr.kind_of(&headers, version.size);
        if kind == Kind::File && node.version.as_ref().is_none_or(|known| known.etag == version.etag) {
            (node.seen, node.fresh_until) = (Some(Instant::now()), Some(deadline));
            // What is to be sent of its attributes is newer than what the object says.
            if !node.pinned {
                node.attr = self.options.attr.attr_of(ino, Kind::File, &version);
                node.version = Some(version);
            }
            return Ok(());
        }
        if self.later.is_busy(ino) {
            return Err(FsError::Moved);
        }
        let (parent, name) = node.place.clone().ok_or(FsError::Stale)?;
        tree.detach(parent, &name);
        let fresh = tree.new_ino();
        let attr = self.options.attr.attr_of(fresh, kind, &version);
        tree.insert(parent, &name, attr, Some(version.clone()));
        if let Some(node) = tree.node_mut(fresh) {
            (node.seen, node.fresh_until) = (Some(Instant::now()), Some(deadline));
        }
        tree.changed(parent, &name, Some(Listed { kind, ino: fresh, version: Some(version) }));
        Err(FsError::Stale)
    }

    /// Creates a file, locally: it is in the bucket when it is closed.
    pub async fn create(
        &self,
        call: Call,
        parent: u64,
        name: &str,
        mode: u32,
        owner: (u32, u32),
        how: OpenHow,
    ) -> Result<(Entry, OpenedFile), FsError> {
        self.check_writable()?;
        check_name(name)?;
        if let Some(Effect::Created(ino, fh)) = self.remembered(call).effect {
            return Ok((self.getattr(ino).await?, OpenedFile { fh, keep_cache: true }));
        }
        if self.was_begun(call) {
            self.undo_create(parent, name).await?;
        }
        let (entry, file) = self.create_anew(call, parent, name, mode, owner, how)?;
        let stands = file.dirty().map_or(Ok(()), |dirty| self.stand(&dirty));
        if let Err(error) = stands {
            if let Some(dirty) = file.dirty() {
                self.unsettle(dirty.id());
            }
            self.forget(entry.attr.ino, 1);
            return Err(error);
        }
        let fh = self.add_handle(call, file, how, None);
        self.tell(call, entry.attr.ino);
        self.done(call, Effect::Created(entry.attr.ino, fh));
        Ok((entry, OpenedFile { fh, keep_cache: true }))
    }

    /// Takes away what an earlier process had made of a file before it died: nobody has seen it, as the kernel locks
    /// the directory until the request is answered.
    async fn undo_create(&self, parent: u64, name: &str) -> Result<(), FsError> {
        let unsent = {
            let tree = self.tree.lock();
            let node = tree.child(parent, name).and_then(|ino| tree.node(ino));
            node.and_then(|node| node.open.as_ref()?.dirty())
        };
        if let Some(dirty) = unsent {
            dirty.discard().await?;
            self.unsettle(dirty.id());
        }
        Ok(())
    }

    fn create_anew(
        &self,
        call: Call,
        parent: u64,
        name: &str,
        mode: u32,
        owner: (u32, u32),
        how: OpenHow,
    ) -> Result<(Entry, Arc<OpenFile>), FsError> {
        let if_taken = self.if_taken(how);
        let (attr, file) = {
            // One lock over all of it: a directory above that is moved finds the new file, or is found moved.
            let mut tree = self.tree.lock();
            let key = self.file_key(&tree.child_path(parent, name).ok_or(FsError::Stale)?)?;
            if key.has_dot_segment() {
                return Err(FsError::Invalid);
            }
            if tree.child(parent, name).is_some_and(|ino| self.is_there(&tree, ino)) {
                return Err(FsError::Exists);
            }
            self.ledger.note(&Record::Begun { unique: call.unique() });
            tree.detach(parent, name);
            let at = now();
            let attr = Attr {
                ino: tree.new_ino(),
                kind: Kind::File,
                size: 0,
                mtime: at,
                atime: at,
                ctime: at,
                ..self.new_attr(mode, owner)
            };
            tree.insert(parent, name, attr, None);
            tree.changed(parent, name, Some(Listed { kind: Kind::File, ino: attr.ino, version: None }));
            tree.add_lookup(attr.ino);
            let file = OpenFile::new(attr.ino);
            let headers = self.options.attr.new_file_headers(name, &attr);
            let dirty = DirtyFile::create(&self.write, key, None, headers, self.options.attr.times());
            if let Some(if_taken) = if_taken {
                dirty.expect_new(if_taken);
            }
            self.own_session(&file, &dirty);
            file.state.lock().dirty = Some(dirty);
            if let Some(node) = tree.node_mut(attr.ino) {
                node.open = Some(file.clone());
            }
            (attr, file)
        };
        let ttl = if if_taken == Some(IfTaken::Join) { Duration::ZERO } else { self.options.attr_ttl };
        Ok((Entry { attr, ttl }, file))
    }

    /// What becomes of a new file whose name is taken in the bucket after all: the directory was listed some time ago.
    fn if_taken(&self, how: OpenHow) -> Option<IfTaken> {
        match how {
            OpenHow { exclusive: true, .. } => self.options.exclusive_remote.then_some(IfTaken::Fail),
            // The last writer of a whole file wins.
            OpenHow { truncate: true, .. } => None,
            _ => Some(IfTaken::Join),
        }
    }

    /// Attributes of something new. Where no POSIX metadata is kept, the mount's own hold.
    pub(super) fn new_attr(&self, mode: u32, (uid, gid): (u32, u32)) -> Attr {
        let at = now();
        let default = self.options.attr.default_attr(0, Kind::File, at);
        if self.options.attr.posix { Attr { mode: mode & 0o7777, uid, gid, ..default } } else { default }
    }

    fn is_there(&self, tree: &super::tree::Tree, ino: u64) -> bool {
        tree.node(ino).is_some_and(|node| {
            let unsent = node.open.as_ref().is_some_and(|open| open.dirty().is_some());
            unsent || node.fresh_until.is_some_and(|until| until > Instant::now())
        })
    }
}
