//! An object of zeros on the service, from which long holes of a file are copied instead of being sent.
//!
//! It stands at keys of the program's own as long as the session does, and is made from a small one by copies of
//! copies. The session file says that it may be there before the first request: whoever ends the session deletes it.

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::file::DirtyFile;
use super::{WriteEngine, WriteError};
use crate::base::limits::MIB;
use crate::base::{ByteRange, ETag, ObjectKey, PartNumber, SessionId, crash, crc64};
use crate::oss::{self, ErrorKind, PutHeaders};
use crate::spill::{Base, SpillBody};

/// Zeros that do cross the wire.
const SEED: u64 = 8 * MIB;
/// How often a level of the object is copied into the next, larger one.
const GROWTH: u64 = 32;
const COPIES_AT_ONCE: usize = 16;

impl WriteEngine {
    fn zeros_stem(&self, session: SessionId) -> Option<ObjectKey> {
        ObjectKey::parse(&format!("{}.zeros", self.hidden_key(session, 0)?)).ok()
    }

    /// Deletes the objects of zeros of a session; `false` where some stay behind.
    pub(super) async fn delete_zeros(&self, keys: &[ObjectKey]) -> bool {
        if keys.is_empty() {
            return true;
        }
        match self.upload().client().delete_objects(keys).await {
            Ok(gone) => gone.len() == keys.len(),
            Err(error) => {
                log::warn!("{error}; objects of zeros stay behind");
                false
            }
        }
    }
}

impl DirtyFile {
    /// Makes an object of at least `len` zeros, if there is none yet. `false` where the service refuses it: zeros
    /// are sent then like anything else. One caller at a time.
    pub(super) async fn prepare_zeros(&self, len: u64) -> Result<bool, WriteError> {
        {
            let _structure = self.structure.lock();
            let known = {
                let mut state = self.state.lock();
                if state.zeros.as_ref().is_some_and(|zeros| zeros.size >= len) {
                    return Ok(true);
                }
                let known = state.record.zeros.is_some();
                if !known {
                    state.record.zeros = self.engine.zeros_stem(self.id());
                }
                known
            };
            if !known {
                self.ensure_dir()?;
                self.rewrite_record()?;
                crash::point("zeros-noted");
            }
        }
        match self.grow_zeros(len).await {
            Ok(zeros) => {
                crash::point("zeros-made");
                self.state.lock().zeros = Some(zeros);
                Ok(true)
            }
            Err(error) if is_refusal(error.kind) => {
                log::warn!("{error}; the holes of {} are sent as zeros", self.name());
                self.state.lock().zeros_refused = true;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn grow_zeros(&self, len: u64) -> Result<Base, oss::Error> {
        let mut keys = self.state.lock().record.zero_keys().into_iter();
        let Some(seed) = keys.next() else {
            let why = "no key for an object of zeros";
            let (operation, outcome) = (oss::Operation::PutObject, oss::Outcome::NotApplied);
            return Err(oss::Error::local(operation, &self.name(), ErrorKind::InvalidArgument, outcome, why));
        };
        let body = SpillBody::new(None, SEED, ByteRange::new(0, len.min(SEED)));
        let size = body.len();
        let done = self.engine.upload().put(&seed, body, &PutHeaders::default()).await?;
        let mut zeros = Base { key: seed, etag: done.etag, size, crc64: None };
        for key in keys {
            if zeros.size < len {
                zeros = self.multiply(&zeros, len.min(zeros.size * GROWTH), key).await?;
            }
        }
        Ok(zeros)
    }

    /// An object of `size` zeros, made of copies of a smaller one.
    async fn multiply(&self, from: &Base, size: u64, key: ObjectKey) -> Result<Base, oss::Error> {
        let client = self.engine.upload().client();
        let id = client.initiate_upload(&key, &PutHeaders::default()).await?;
        let made = async {
            let copies = (0..size.div_ceil(from.size)).filter_map(|at| {
                let number = PartNumber::new(u32::try_from(at + 1).ok()?)?;
                let range = ByteRange::new(0, from.size.min(size - at * from.size));
                let (key, id) = (&key, &id);
                Some(async move {
                    let etag = client.upload_part_copy(key, id, number, &from.key, range, &from.etag).await?;
                    Ok::<(PartNumber, ETag), oss::Error>((number, etag))
                })
            });
            let copies: Vec<_> = copies.collect();
            let parts: Vec<_> = stream::iter(copies).buffered(COPIES_AT_ONCE).try_collect().await?;
            client.complete_upload(&key, &id, &parts, false).await
        };
        match made.await {
            Ok(receipt) if receipt.crc64.is_some_and(|told| told != crc64::zeros(size)) => {
                let why = "an object of zeros has another CRC64";
                let (operation, outcome) = (oss::Operation::CompleteMultipartUpload, oss::Outcome::NotApplied);
                Err(oss::Error::local(operation, key.as_str(), ErrorKind::Unsupported, outcome, why))
            }
            Ok(receipt) => Ok(Base { key, etag: receipt.etag, size, crc64: None }),
            Err(error) => {
                if let Err(error) = client.abort_upload(&key, &id).await {
                    log::warn!("{error}; the upload stays behind");
                }
                Err(error)
            }
        }
    }
}

/// Whether the service will not have it, however often it is asked.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::AccessDenied
            | ErrorKind::InvalidArgument
            | ErrorKind::Unsupported
            | ErrorKind::TooLarge
            | ErrorKind::Archived
    )
}
