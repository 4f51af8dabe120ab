//! A new file meets an object that another client has put at its name since the directory was listed.
//!
//! Such a file is sent with the condition that nothing stands there, so that nothing is replaced unseen; it costs no
//! request. Only where the condition fails is there anything to be settled.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::file::{DirtyFile, Segment};
use super::{Published, WriteError};
use crate::base::limits::FUSE_WRITE_MAX;
use crate::base::{ByteRange, ObjectKey};
use crate::oss::{CopyOptions, ErrorKind, ObjectMeta, PutHeaders};
use crate::spill::{Base, IfTaken, Times};
use crate::upload::{Finished, record_of};

/// How often other clients may get in between.
const TRIES: u32 = 5;

impl DirtyFile {
    /// Says that nothing is known to stand at the file's name, and what is to be done where that is wrong. To be said
    /// before its session file stands, which tells it to a later process.
    pub fn expect_new(&self, if_taken: IfTaken) {
        self.state.lock().record.if_taken = Some(if_taken);
    }

    /// Whether it may turn out, when it is published, to go on with an object that nobody here has seen.
    pub fn may_meet(&self) -> bool {
        self.state.lock().record.if_taken == Some(IfTaken::Join)
    }

    /// Whether a publication failed because something stands at the name of a file that was taken for new.
    pub(super) fn has_met(&self, error: &WriteError) -> bool {
        let exists = matches!(error, WriteError::Oss(error) if error.kind == ErrorKind::AlreadyExists);
        exists && self.state.lock().record.if_taken.is_some()
    }

    /// Settles with the object that stands at the name. The gate is closed.
    pub(super) async fn meet(self: &Arc<Self>) -> Result<Published, WriteError> {
        for _ in 0..TRIES {
            let (key, if_taken, append, size) = {
                let state = self.state.lock();
                let key = state.record.key.clone().ok_or(WriteError::Retired)?;
                (key, state.record.if_taken, state.record.append, state.size)
            };
            if if_taken == Some(IfTaken::Fail) {
                return Err(WriteError::Taken);
            }
            let found = match self.engine.upload().client().head_object(&key).await {
                Ok(found) => found,
                Err(error) if error.kind == ErrorKind::NoSuchKey => return self.replace().await,
                Err(error) => return Err(error.into()),
            };
            let joined = match size {
                // An earlier try, whose reply was lost, may have made it: the same bytes need not be sent again.
                0 => self.become_it(found).await,
                size if found.size == size && found.crc64 == Some(self.sum(size)?) => self.become_it(found).await,
                _ if append => self.append_to(found).await,
                _ => return self.replace().await,
            };
            match joined {
                Err(WriteError::Stale) => {}
                other => return other,
            }
        }
        Err(WriteError::Stale)
    }

    /// The file was written as a whole: the last writer wins.
    async fn replace(self: &Arc<Self>) -> Result<Published, WriteError> {
        let transfer = {
            let mut state = self.state.lock();
            state.record.if_taken = None;
            // One at a key of the program's own replaces nothing, and may hold what is nowhere else.
            state.transfer.clone().filter(|_| !state.hidden)
        };
        if let Some(transfer) = transfer {
            self.forget_upload(&transfer);
            self.give_up(Some(transfer));
        }
        self.finish().await
    }

    fn sum(&self, size: u64) -> Result<u64, WriteError> {
        let body = {
            let state = self.state.lock();
            crate::spill::SpillBody::new(state.dir.clone(), state.record.piece_size, ByteRange::new(0, size))
        };
        let failed = |error: std::io::Error| WriteError::Spill {
            message: format!("{}: {error}", self.name()),
            errno: error.raw_os_error(),
        };
        body.crc64().map_err(failed)
    }

    /// Nothing was written that the object has not: the file is that object. Times that were set are set on it.
    async fn become_it(&self, found: ObjectMeta) -> Result<Published, WriteError> {
        let key = self.key().ok_or(WriteError::Retired)?;
        let (_, times) = self.attributes();
        let mut headers = found.headers;
        let mut done =
            Finished { etag: found.etag, size: found.size, crc64: found.crc64, modified: Some(found.last_modified) };
        if times.stored && (times.mtime.is_some() || times.atime.is_some()) {
            let set = crate::base::posix::Attributes { mtime: times.mtime, atime: times.atime, ..Default::default() };
            set.write(&mut headers.user_meta);
            let (if_match, replace) = (Some(done.etag.clone()), Some(headers.clone()));
            let options = CopyOptions { if_match, replace, ..CopyOptions::default() };
            let copied = self.engine.upload().client().copy_object(&key, &key, &options).await;
            let receipt = copied.map_err(super::fetch::stale_if_changed)?;
            (done.etag, done.modified) = (receipt.etag, receipt.last_modified.or(done.modified));
        }
        self.end_as(&key, &done, &headers).await
    }

    async fn end_as(&self, key: &ObjectKey, done: &Finished, headers: &PutHeaders) -> Result<Published, WriteError> {
        let (published, left) = self.retire(key, done, headers, None).ok_or(WriteError::Retired)?;
        if let Some(left) = left {
            left.clear().await;
        }
        Ok(published)
    }

    /// What was appended goes behind the object, as one more write session that edits it.
    async fn append_to(self: &Arc<Self>, found: ObjectMeta) -> Result<Published, WriteError> {
        let key = self.key().ok_or(WriteError::Retired)?;
        log::warn!("{key}: another client has created it meanwhile; what was appended goes behind that");
        let base = Base { key: key.clone(), etag: found.etag, size: found.size, crc64: found.crc64 };
        let (_, times) = self.attributes();
        let mut headers = record_of(&found.headers);
        for time in ["mtime", "atime", "ctime"].iter().filter(|_| times.stored) {
            headers.user_meta.remove(*time);
        }
        let joined = Self::edit(&self.engine, key, base, headers, Times { mtime: None, atime: None, ..times });
        joined.mark_append();
        let published = match self.copy_into(&joined, found.size).await {
            Ok(()) => {
                // This publication is held by the change that the caller has begun: it must not begin another.
                let _one = joined.publishing.lock().await;
                Box::pin(joined.publish_once()).await
            }
            Err(error) => Err(error),
        };
        let published = match published {
            Ok(published) => published,
            Err(error) => {
                joined.discard().await?;
                return Err(error);
            }
        };
        let Published { key, etag, size, crc64, headers, at } = published;
        let done = Finished { etag, size, crc64, modified: Some(at) };
        self.end_as(&key, &done, &headers).await
    }

    /// Writes all that this file holds to another one, from `at` on.
    async fn copy_into(&self, joined: &Arc<Self>, at: u64) -> Result<(), WriteError> {
        let size = self.size();
        let mut done = 0;
        while done < size {
            let range = ByteRange::new(done, size.min(done + u64::from(FUSE_WRITE_MAX)));
            let mut bytes = Vec::with_capacity(range.len() as usize);
            for segment in self.segments_here(range)? {
                let (Segment::Zeros(len) | Segment::Local { len, .. }) = &segment else {
                    return Err(WriteError::Stale);
                };
                let start = bytes.len();
                bytes.resize(start + *len as usize, 0);
                if let Segment::Local { file, offset, .. } = &segment {
                    read_there(file, *offset, &mut bytes[start..])?;
                }
            }
            joined.write_waiting(at + done, &bytes).await?;
            done = range.end;
        }
        Ok(())
    }
}

/// Reads what a spill file has; past its end all is zeros.
fn read_there(file: &std::fs::File, offset: u64, buffer: &mut [u8]) -> Result<(), WriteError> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(WriteError::Spill { message: error.to_string(), errno: error.raw_os_error() });
            }
        }
    }
    Ok(())
}
