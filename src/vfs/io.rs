//! Reading, writing, flush, fsync and release of open files.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::Vfs;
use super::call::Call;
use super::error::FsError;
use super::handles::{Handle, OpenFile};
use super::opener::{FlushKind, classify};
use crate::base::{ByteRange, ETag};
use crate::ledger::Record;
use crate::oss::{ObjectKind, ObjectMeta, PutHeaders};
use crate::read::Reader;
use crate::spill::Base;
use crate::write::{CONFLICT, DirtyFile, Published, Seek, Segment, Step, WriteError};
use std::time::Duration;

/// The pause before a close that failed is tried again in the background.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a writer that is being killed waits for its bytes to be sent, where they are.
const KILLED_WAIT: Duration = Duration::from_secs(1);

/// What `fallocate` is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocate {
    /// The size stays, whatever the range.
    pub keep_size: bool,
    /// The range reads as zeros afterwards.
    pub zero: bool,
}

impl Vfs {
    /// Writes, if nothing must be waited for; `None` means that [`Self::write`] must be called.
    pub fn write_now(&self, fh: u64, offset: u64, data: &[u8]) -> Result<Option<()>, FsError> {
        let handle = self.writable(fh)?;
        loop {
            let dirty = match self.dirty_of(&handle) {
                Err(FsError::Copying) => return Ok(None),
                other => other?,
            };
            match dirty.write(offset, data) {
                Ok(Step::Done) => return Ok(Some(())),
                Ok(_) => return Ok(None),
                Err(WriteError::Retired) => self.pass_retired(&dirty),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes, waiting for what must be waited for.
    pub async fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<(), FsError> {
        let handle = self.writable(fh)?;
        loop {
            let dirty = self.dirty_waiting(&handle).await?;
            match dirty.write_waiting(offset, data).await {
                Err(WriteError::Retired) => self.pass_retired(&dirty),
                other => return Ok(other?),
            }
        }
    }

    fn writable(&self, fh: u64) -> Result<Arc<Handle>, FsError> {
        let handle = self.handles.file(fh)?;
        if handle.writable { Ok(handle) } else { Err(FsError::BadHandle) }
    }

    /// The session of an open file; begun if there is none.
    fn dirty_of(&self, handle: &Handle) -> Result<Arc<DirtyFile>, FsError> {
        let dirty = match handle.file.dirty() {
            Some(dirty) => dirty,
            None => {
                let begun = self.session_of(&handle.file)?;
                self.stand(&begun)?;
                begun
            }
        };
        if handle.append {
            dirty.mark_append();
        }
        Ok(dirty)
    }

    /// The same, waiting until the attributes of the file are stored.
    async fn dirty_waiting(&self, handle: &Handle) -> Result<Arc<DirtyFile>, FsError> {
        loop {
            match self.dirty_of(handle) {
                Err(FsError::Copying) => self.ready_for_session(handle.ino).await?,
                other => return other,
            }
        }
    }

    /// The session of a file that is about to be changed; an edit of the object that was opened, if none is there.
    pub(super) fn session_of(&self, file: &Arc<OpenFile>) -> Result<Arc<DirtyFile>, FsError> {
        loop {
            let kept = {
                let state = file.state.lock();
                if let Some(dirty) = &state.dirty {
                    return Ok(dirty.clone());
                }
                state.unlinked.then(|| state.kept.clone())
            };
            if let Some(kept) = kept {
                return self.anonymous_session(file, kept.ok_or(FsError::Stale)?);
            }
            if let Some(dirty) = self.named_session(file)? {
                return Ok(dirty);
            }
        }
    }

    /// The same for a file that has its name; `None` where it has just lost it.
    fn named_session(&self, file: &Arc<OpenFile>) -> Result<Option<Arc<DirtyFile>>, FsError> {
        let tree = self.tree.lock();
        let node = tree.node(file.ino).ok_or(FsError::Stale)?;
        let mut state = file.state.lock();
        if let Some(dirty) = &state.dirty {
            return Ok(Some(dirty.clone()));
        }
        if state.unlinked {
            return Ok(None);
        }
        if self.later.is_busy(file.ino) || self.is_unseen(file.ino) {
            return Err(FsError::Copying);
        }
        let held = node.version.as_ref().and_then(|version| version.headers.as_deref());
        let name = node.place.as_ref().map_or("", |(_, name)| name);
        let headers = self.options.attr.edit_headers(held, name, &node.attr);
        let key = self.file_key(&tree.path(file.ino).ok_or(FsError::Stale)?)?;
        let times = self.options.attr.times();
        let dirty = match &node.version {
            Some(version) => {
                let base =
                    Base { key: key.clone(), etag: version.etag.clone(), size: version.size, crc64: version.crc64 };
                DirtyFile::edit(&self.write, key, base, headers, times)
            }
            None => DirtyFile::create(&self.write, key, None, headers, times),
        };
        self.own_session(file, &dirty);
        state.dirty = Some(dirty.clone());
        Ok(Some(dirty))
    }

    /// A session that has ended makes way for the next one.
    pub(super) fn pass_retired(&self, dirty: &DirtyFile) {
        match dirty.published() {
            Some(published) => self.settle(dirty.id(), &published),
            None => self.unsettle(dirty.id()),
        }
    }

    /// Reads; short only at the end of the file.
    pub async fn read(&self, fh: u64, offset: u64, size: u32) -> Result<Bytes, FsError> {
        let handle = self.handles.file(fh)?;
        if !handle.readable {
            return Err(FsError::BadHandle);
        }
        let range = ByteRange::at(offset, u64::from(size));
        while let Some(dirty) = handle.file.dirty() {
            let base = dirty.content_base();
            match self.read_dirty(&handle.file, &dirty, range).await {
                // What its bytes come from is another object meanwhile.
                Err(_) if dirty.content_base() != base => {}
                // Published and gone from the disk since: the object has the same bytes.
                Err(_) if dirty.published().is_some() => self.pass_retired(&dirty),
                other => return other,
            }
        }
        if let Some(kept) = self.read_kept(&handle, range) {
            return kept;
        }
        self.see_again(handle.ino).await?;
        let reader = self.reader(&handle.file)?;
        Ok(reader.read(&handle.cursor, range).await?)
    }

    /// The reader of a clean file; made if it is the first one.
    pub(super) fn reader(&self, file: &OpenFile) -> Result<Arc<Reader>, FsError> {
        if let Some(reader) = file.state.lock().reader.clone() {
            return Ok(reader);
        }
        let tree = self.tree.lock();
        let node = tree.node(file.ino).ok_or(FsError::Stale)?;
        let version = node.version.as_ref().ok_or(FsError::Stale)?;
        let key = self.file_key(&tree.path(file.ino).ok_or(FsError::Stale)?)?;
        let meta = meta_of(version.etag.clone(), version.size, version.crc64, version.last_modified);
        let mut state = file.state.lock();
        Ok(state.reader.get_or_insert_with(|| self.read.reader(key, &meta)).clone())
    }

    async fn read_dirty(&self, file: &OpenFile, dirty: &Arc<DirtyFile>, range: ByteRange) -> Result<Bytes, FsError> {
        let mut out = Vec::with_capacity(range.len() as usize);
        for segment in dirty.segments(range).await? {
            match segment {
                Segment::Zeros(len) => out.resize(out.len() + len as usize, 0),
                Segment::Away(_) => return Err(FsError::Stale),
                Segment::Local { file, offset, len } => {
                    let start = out.len();
                    out.resize(start + len as usize, 0);
                    read_or_zeros(&file, offset, &mut out[start..]).map_err(spill_error)?;
                }
                Segment::Base(range) => {
                    let reader = self.base_reader(file, dirty)?;
                    out.extend_from_slice(&reader.fetch_exact(range).await?);
                }
            }
        }
        Ok(out.into())
    }

    /// The reader of the object that a dirty file edits.
    fn base_reader(&self, file: &OpenFile, dirty: &DirtyFile) -> Result<Arc<Reader>, FsError> {
        let base = dirty.content_base().ok_or(FsError::Stale)?;
        let mut state = file.state.lock();
        if let Some(reader) = state.reader.as_ref().filter(|reader| reader.etag() == base.etag) {
            return Ok(reader.clone());
        }
        let reader = self.reader_of(&base);
        state.reader = Some(reader.clone());
        Ok(reader)
    }

    /// `fallocate`: makes the file larger, or makes a range read as zeros.
    pub async fn fallocate(&self, fh: u64, range: ByteRange, how: Allocate) -> Result<(), FsError> {
        let handle = self.writable(fh)?;
        loop {
            let dirty = self.dirty_waiting(&handle).await?;
            let done = async {
                if how.zero {
                    dirty.zero_waiting(range).await?;
                }
                if !how.keep_size && range.end > dirty.size() {
                    dirty.truncate_waiting(range.end).await?;
                }
                Ok(())
            };
            match done.await {
                Err(WriteError::Retired) => self.pass_retired(&dirty),
                other => return Ok(other?),
            }
        }
    }

    /// The next data or hole; `None` past the end. An object has no holes.
    pub fn seek(&self, fh: u64, offset: u64, what: Seek) -> Result<Option<u64>, FsError> {
        let handle = self.handles.file(fh)?;
        if let Some(dirty) = handle.file.dirty() {
            return Ok(dirty.seek(offset, what)?);
        }
        let size = self.tree.lock().node(handle.ino).ok_or(FsError::Stale)?.attr.size;
        Ok((offset < size).then_some(if what == Seek::Data { offset } else { size }))
    }

    /// Copies between two files without moving the bytes, where the service can do that: from the start of a
    /// finished file, in order, into one that is new. Returns how many bytes, or `Unsupported`: then the kernel
    /// copies.
    pub fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u64, FsError> {
        let (source, target) = (self.handles.file(from.0)?, self.writable(to.0)?);
        if from.1 != to.1 || source.ino == target.ino || source.file.dirty().is_some() {
            return Err(FsError::Unsupported);
        }
        let base = {
            let tree = self.tree.lock();
            let version = tree.node(source.ino).and_then(|node| node.version.as_ref()).ok_or(FsError::Unsupported)?;
            let path = tree.path(source.ino).ok_or(FsError::Unsupported)?;
            let key = self.file_key(&path)?;
            Base { key, etag: version.etag.clone(), size: version.size, crc64: version.crc64 }
        };
        let range = ByteRange::at(from.1, len).intersect(&ByteRange::new(0, base.size));
        if range.is_empty() {
            return if from.1 >= base.size { Ok(0) } else { Err(FsError::Unsupported) };
        }
        let dirty = match self.dirty_of(&target) {
            Err(FsError::Copying) => return Err(FsError::Unsupported),
            other => other?,
        };
        if dirty.adopt(&base, range)? { Ok(range.len()) } else { Err(FsError::Unsupported) }
    }

    /// A descriptor is closed somewhere. Publishes the file if that was the opener's last one.
    pub async fn flush(&self, call: Call, fh: u64, tid: u32) -> Result<(), FsError> {
        let handle = self.handles.file(fh)?;
        let Some(dirty) = handle.file.dirty().filter(|_| handle.writable) else { return self.check_kept(call) };
        if handle.file.state.lock().unlinked {
            return Ok(());
        }
        let mount_id = self.mount_id.get().copied();
        match classify(&self.runtime, tid, handle.opener, handle.ino, mount_id).await {
            FlushKind::Passing => Ok(()),
            FlushKind::Killed if !self.options.publish_killed && dirty.mark_killed() => {
                log::warn!("{}: its writer was killed; what it wrote is kept, not published", dirty.name());
                self.ledger.note(&Record::Killed { session: dirty.id() });
                Ok(())
            }
            // Nobody sees the answer, and a process that is being killed must be able to end.
            FlushKind::Killed => match tokio::time::timeout(KILLED_WAIT, self.close(call, &dirty)).await {
                Ok(closed) => closed,
                Err(_) => {
                    dirty.publish_in_background();
                    Ok(())
                }
            },
            FlushKind::Close if self.options.publish_killed || self.options.close_local => {
                self.close(call, &dirty).await
            }
            FlushKind::Close => {
                let published = dirty.publish_for_writer().await;
                if published.as_ref().is_err_and(WriteError::is_interruption) && dirty.is_killed() {
                    log::warn!("{}: its close was interrupted; its bytes are kept, not published", dirty.name());
                    self.ledger.note(&Record::Killed { session: dirty.id() });
                }
                self.published(Some(call), &dirty, published).await
            }
        }
    }

    /// Does what closing a file promises: the object equals it, or, with `--close local`, its bytes are safe here.
    async fn close(&self, call: Call, dirty: &Arc<DirtyFile>) -> Result<(), FsError> {
        if !self.options.close_local {
            return self.publish_for(Some(call), dirty).await;
        }
        match dirty.close_locally().await {
            Err(WriteError::Retired) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Publishes a file now. What fails goes on in the background, and is the caller's error all the same.
    pub(super) async fn publish(&self, dirty: &Arc<DirtyFile>) -> Result<(), FsError> {
        self.publish_for(None, dirty).await
    }

    async fn publish_for(&self, call: Option<Call>, dirty: &Arc<DirtyFile>) -> Result<(), FsError> {
        let published = dirty.publish().await;
        self.published(call, dirty, published).await
    }

    /// What a publication comes to for whoever asked for it: the request `call`, if that must know when it comes again.
    async fn published(
        &self,
        call: Option<Call>,
        dirty: &Arc<DirtyFile>,
        published: Result<Published, WriteError>,
    ) -> Result<(), FsError> {
        match published {
            Ok(_) | Err(WriteError::Retired) => Ok(()),
            // It goes on by itself, or ends with the release.
            Err(error) if error.is_interruption() => Err(error.into()),
            Err(error) if error.is_conflict() => {
                if let Some(call) = call {
                    self.begin(call);
                }
                dirty.keep(CONFLICT).await?;
                self.unsettle(dirty.id());
                if let Some(key) = dirty.key() {
                    self.published_unseen(&key);
                }
                Err(error.into())
            }
            Err(error) => {
                dirty.retry_in_background(RETRY_AFTER);
                Err(error.into())
            }
        }
    }

    /// Nothing is left to be sent for a request. Where a process before this one was about to refuse it, and to keep the
    /// bytes, that is why.
    fn check_kept(&self, call: Call) -> Result<(), FsError> {
        if self.was_begun(call) { Err(WriteError::Stale.into()) } else { Ok(()) }
    }

    /// Makes what was written survive power loss; with `--fsync remote`, makes the object equal the file.
    pub async fn fsync(&self, call: Call, fh: u64) -> Result<(), FsError> {
        let handle = self.handles.file(fh)?;
        let Some(dirty) = handle.file.dirty() else { return self.check_kept(call) };
        if self.options.fsync_remote && !handle.file.state.lock().unlinked {
            return self.publish_for(Some(call), &dirty).await;
        }
        let synced = self.runtime.spawn_blocking(move || dirty.fsync()).await;
        match synced {
            Ok(Err(WriteError::Retired)) | Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(FsError::Stale),
        }
    }

    /// The last descriptor of an open is gone. What is not published yet is published in the background.
    pub async fn release(&self, fh: u64) -> Result<(), FsError> {
        let handle = self.handles.remove_file(fh)?;
        let (dirty, unlinked, kept) = {
            let mut state = handle.file.state.lock();
            let (unlinked, last) = (state.unlinked, state.handles == 0);
            // Without a name it lives as long as anybody has it open, be it for reading.
            let ends = if unlinked { last } else { state.writers == 0 && handle.writable };
            let kept = if last { state.kept.take() } else { None };
            (state.dirty.clone().filter(|_| ends), unlinked, kept)
        };
        if let Some(dirty) = dirty {
            if unlinked {
                dirty.discard().await?;
                self.unsettle(dirty.id());
            } else if dirty.is_killed() {
                dirty.keep("its writer was killed").await?;
                self.unsettle(dirty.id());
            } else if dirty.published().is_none() {
                match self.options.close_local {
                    true if dirty.close_locally().await.is_ok() => {}
                    _ => dirty.publish_in_background(),
                }
            }
        }
        {
            let mut tree = self.tree.lock();
            {
                let mut state = handle.file.state.lock();
                if state.handles == 0 && state.dirty.is_none() {
                    state.reader = None;
                }
            }
            self.close_if_idle(&mut tree, handle.ino);
        }
        self.ledger.note(&Record::Closed { fh });
        self.drop_kept(kept).await;
        Ok(())
    }
}

pub(super) fn meta_of(etag: ETag, size: u64, crc64: Option<u64>, last_modified: std::time::SystemTime) -> ObjectMeta {
    ObjectMeta {
        size,
        etag,
        last_modified,
        crc64,
        kind: ObjectKind::Normal,
        headers: PutHeaders::default(),
        restore: None,
    }
}

pub(super) fn read_or_zeros(file: &std::fs::File, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn spill_error(error: std::io::Error) -> FsError {
    WriteError::Spill { message: error.to_string(), errno: error.raw_os_error() }.into()
}
