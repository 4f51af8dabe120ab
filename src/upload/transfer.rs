//! One object's way to the service: by a single PUT, or by a multipart upload with its parts in the journal.
//!
//! Who calls decides what is sent and when; this module sends it, bounds how much is under way, notes what is
//! done, and settles ends whose outcome was lost. A transfer belongs to one key and one set of headers.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use futures_util::Stream;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use crate::base::budget::{Budget, Grant};
use crate::base::caller::wait;
use crate::base::limits::MIB;
use crate::base::time::{micros, now};
use crate::base::{ByteRange, ETag, ObjectKey, PartNumber, SessionId, UploadId, crash, crc64};
use crate::journal::{Journal, PartRecord, UploadRecord};
use crate::oss::{self, Body, Client, ErrorKind, Operation, Outcome, PartInfo, PutHeaders};
use crate::spill::{HeaderRecord, SpillBody};

/// How wide the engine works.
#[derive(Debug, Clone, Copy)]
pub struct UploadOptions {
    /// Bodies under way at once, over all files.
    pub workers: usize,
}

/// What all transfers of a mount share.
#[derive(Debug, Clone)]
pub struct UploadEngine {
    client: Client,
    journal: Journal,
    permits: Arc<Semaphore>,
    budget: Option<Arc<Budget>>,
}

/// What one body takes of the memory while it is sent, at most: the chunk that was read, and what waits before the
/// socket.
const BODY_MEMORY: u64 = MIB;

/// An object that stands in the bucket, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub etag: ETag,
    pub size: u64,
    pub crc64: Option<u64>,
    /// Its last-modified, as near as the reply tells.
    pub modified: Option<SystemTime>,
}

/// A part that the service has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartOutcome {
    pub etag: ETag,
    pub size: u64,
    /// Of the bytes as sent; `None` for a part copied on the server.
    pub crc64: Option<u64>,
}

impl UploadEngine {
    pub fn new(client: Client, journal: Journal, options: UploadOptions) -> Self {
        Self { client, journal, permits: Arc::new(Semaphore::new(options.workers.max(1))), budget: None }
    }

    /// The same, taking what bodies need of the memory from a budget.
    pub fn within(self, budget: Arc<Budget>) -> Self {
        Self { budget: Some(budget), ..self }
    }

    async fn memory(&self, body: &SpillBody) -> Option<Grant> {
        match &self.budget {
            Some(budget) => Some(budget.acquire(body.len().min(BODY_MEMORY)).await),
            None => None,
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Uploads of sessions that began another one before they were aborted, by what an earlier process has noted.
    pub fn outdated(&self) -> Vec<Transfer> {
        let known = self.journal.outdated().unwrap_or_else(|error| {
            log::warn!("{error}");
            Vec::new()
        });
        let resumed = known.iter().map(|(session, upload)| Transfer::resume(self.clone(), *session, upload, false));
        resumed.flatten().collect()
    }

    async fn permit(&self, operation: Operation, key: &ObjectKey) -> Result<SemaphorePermit<'_>, oss::Error> {
        let waited = wait(self.permits.acquire()).await;
        let permit = waited.map_err(|cut| oss::Error {
            outcome: Outcome::NotApplied,
            ..oss::Error::cut(operation, key.as_str(), cut)
        })?;
        Ok(permit.expect("the semaphore is never closed"))
    }

    /// Stores a whole object by one request.
    ///
    /// # Errors
    /// Those of the service. A lost reply is settled by HEAD, so that an error here means: not stored.
    pub async fn put(&self, key: &ObjectKey, body: SpillBody, headers: &PutHeaders) -> Result<Finished, oss::Error> {
        let _permit = self.permit(Operation::PutObject, key).await?;
        let _memory = self.memory(&body).await;
        let size = body.len();
        let source = as_body(&body);
        match self.client.put_object(key, &source, headers).await {
            Ok(receipt) => Ok(Finished { etag: receipt.etag, size, crc64: receipt.crc64, modified: receipt.date }),
            Err(error) if error.outcome == Outcome::Unknown => {
                let crc = body.crc64().map_err(|io| local_io(Operation::PutObject, key, &io))?;
                self.settle(key, size, crc, headers).await?.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the object at `key` is the one that was to be stored: same size, CRC64 and user metadata.
    pub async fn settle(
        &self,
        key: &ObjectKey,
        size: u64,
        crc: u64,
        headers: &PutHeaders,
    ) -> Result<Option<Finished>, oss::Error> {
        match self.client.head_object(key).await {
            Ok(meta) => {
                let same = meta.size == size && meta.crc64 == Some(crc) && meta.headers.user_meta == headers.user_meta;
                Ok(same.then_some(Finished {
                    etag: meta.etag,
                    size,
                    crc64: meta.crc64,
                    modified: Some(meta.last_modified),
                }))
            }
            Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A multipart upload, begun when its first part is sent.
pub struct Transfer {
    engine: UploadEngine,
    session: SessionId,
    key: ObjectKey,
    headers: PutHeaders,
    piece_size: u64,
    id: OnceCell<UploadId>,
    /// Nothing more may come of it, also where it is being begun right now.
    given_up: AtomicBool,
    completed: AtomicBool,
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer")
            .field("session", &self.session)
            .field("key", &self.key)
            .field("id", &self.id.get())
            .finish()
    }
}

impl Transfer {
    /// A transfer that has not begun. `headers` are fixed when it begins.
    pub fn new(engine: UploadEngine, session: SessionId, key: ObjectKey, headers: PutHeaders, piece_size: u64) -> Self {
        Self {
            engine,
            session,
            key,
            headers,
            piece_size,
            id: OnceCell::new(),
            given_up: AtomicBool::default(),
            completed: AtomicBool::default(),
        }
    }

    /// A transfer that an earlier process began; `None` where its headers cannot be read. With `forbid_overwrite` it
    /// completes only where nothing stands at its key.
    pub fn resume(
        engine: UploadEngine,
        session: SessionId,
        upload: &UploadRecord,
        forbid_overwrite: bool,
    ) -> Option<Self> {
        let headers = PutHeaders { forbid_overwrite, ..decode_headers(&upload.headers)? };
        let transfer = Self::new(engine, session, upload.key.clone(), headers, upload.part_size);
        Some(transfer.begun(upload.upload_id.clone()))
    }

    /// The same, of an upload that stands already.
    pub fn begun(self, id: UploadId) -> Self {
        Self { id: OnceCell::new_with(Some(id)), ..self }
    }

    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The headers that the object will have.
    pub fn headers(&self) -> &PutHeaders {
        &self.headers
    }

    /// The upload id, once it has begun.
    pub fn id(&self) -> Option<&UploadId> {
        self.id.get()
    }

    /// Begins the upload if need be; its id is in the journal before any part is sent.
    async fn begin(&self) -> Result<&UploadId, oss::Error> {
        self.check_wanted()?;
        let id = self
            .id
            .get_or_try_init(|| async {
                let id = self.engine.client.initiate_upload(&self.key, &self.headers).await?;
                crash::point("upload-begun");
                let record = UploadRecord {
                    upload_id: id.clone(),
                    key: self.key.clone(),
                    part_size: self.piece_size,
                    created_micros: micros(now()),
                    headers: encode_headers(&self.headers),
                };
                if let Err(error) = self.engine.journal.begin_upload(self.session, record).await {
                    log::error!("{}: {error}; after a crash its parts would be sent again", self.key);
                }
                crash::point("upload-noted");
                Ok(id)
            })
            .await?;
        // Given up while it was being begun: whoever did so knew no id to give up. It is noted nevertheless, as it may not
        // be possible now.
        if let Err(error) = self.check_wanted() {
            self.give_up().await;
            return Err(error);
        }
        Ok(id)
    }

    /// Sends a part from the spill files.
    pub async fn send_part(
        &self,
        number: PartNumber,
        generation: u64,
        body: SpillBody,
    ) -> Result<PartOutcome, oss::Error> {
        let _permit = self.engine.permit(Operation::UploadPart, &self.key).await?;
        let id = self.begin().await?;
        let _memory = self.engine.memory(&body).await;
        let receipt = self.engine.client.upload_part(&self.key, id, number, &as_body(&body)).await?;
        let outcome = PartOutcome { etag: receipt.etag, size: receipt.size, crc64: Some(receipt.crc64) };
        self.note(number, generation, &outcome, None);
        Ok(outcome)
    }

    /// Has the service copy a run of the base as a part. `range` lies inside the source.
    pub async fn copy_part(
        &self,
        number: PartNumber,
        source: &ObjectKey,
        range: ByteRange,
        if_match: &ETag,
    ) -> Result<PartOutcome, oss::Error> {
        let _permit = self.engine.permit(Operation::UploadPartCopy, &self.key).await?;
        let id = self.begin().await?;
        let etag = self.engine.client.upload_part_copy(&self.key, id, number, source, range, if_match).await?;
        let outcome = PartOutcome { etag, size: range.len(), crc64: None };
        self.note(number, 0, &outcome, None);
        Ok(outcome)
    }

    /// Records a part that the service has; `stable_since` as in [`PartRecord`].
    pub fn note(&self, number: PartNumber, generation: u64, outcome: &PartOutcome, stable_since: Option<u64>) {
        let PartOutcome { etag, size: len, crc64 } = outcome.clone();
        let record = PartRecord { generation, len, crc64, etag, stable_since };
        if let Err(error) = self.engine.journal.part_done(self.session, number, record) {
            log::error!("{}: {error}; after a crash part {number} would be sent again", self.key);
        }
        crash::point("part-noted");
    }

    /// All parts that the service has of this upload; none where it has not begun.
    pub async fn parts_on_service(&self) -> Result<Vec<PartInfo>, oss::Error> {
        let Some(id) = self.id.get() else { return Ok(Vec::new()) };
        let mut parts = Vec::new();
        let mut marker = 0;
        loop {
            let page = self.engine.client.list_parts(&self.key, id, marker).await?;
            parts.extend(page.parts);
            match page.next_marker {
                Some(next) if next > marker => marker = next,
                _ => return Ok(parts),
            }
        }
    }

    /// Makes the parts the object, and compares its CRC64 with `crc`, that of the parts. `parts` ascend and are
    /// all of the object.
    ///
    /// # Errors
    /// `NoSuchUpload` where the upload is gone and the object is not there: it must be sent again.
    pub async fn complete(
        &self,
        parts: &[(PartNumber, PartOutcome)],
        crc: Option<u64>,
    ) -> Result<Finished, oss::Error> {
        let done = self.complete_once(parts, crc).await?;
        self.completed.store(true, Ordering::SeqCst);
        Ok(done)
    }

    async fn complete_once(
        &self,
        parts: &[(PartNumber, PartOutcome)],
        crc: Option<u64>,
    ) -> Result<Finished, oss::Error> {
        let id = self.begin().await?;
        let size = parts.iter().map(|(_, part)| part.size).sum();
        let list: Vec<_> = parts.iter().map(|(number, part)| (*number, part.etag.clone())).collect();
        match self.engine.client.complete_upload(&self.key, id, &list, self.headers.forbid_overwrite).await {
            Ok(receipt) if crc.is_some() && receipt.crc64.is_some() && crc != receipt.crc64 => Err(self.mismatch()),
            Ok(receipt) => {
                Ok(Finished { etag: receipt.etag, size, crc64: receipt.crc64.or(crc), modified: receipt.date })
            }
            Err(error) if error.outcome == Outcome::Unknown || error.kind == ErrorKind::NoSuchUpload => match crc {
                Some(crc) => self.engine.settle(&self.key, size, crc, &self.headers).await?.ok_or(error),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Fills in the CRC64 of copied parts, which the service tells in ListParts.
    pub async fn learn_sums(&self, parts: &mut [(PartNumber, PartOutcome)]) -> Result<(), oss::Error> {
        if parts.iter().all(|(_, part)| part.crc64.is_some()) {
            return Ok(());
        }
        let told = self.parts_on_service().await?;
        for (number, part) in parts.iter_mut().filter(|(_, part)| part.crc64.is_none()) {
            let found = told.iter().find(|info| info.number == *number && info.size == part.size);
            part.crc64 = found.and_then(|info| info.crc64);
        }
        Ok(())
    }

    fn mismatch(&self) -> oss::Error {
        let (operation, kind) = (Operation::CompleteMultipartUpload, ErrorKind::Corrupt);
        let why = "the object's CRC64 is not that of the parts sent";
        oss::Error { status: 200, ..oss::Error::local(operation, self.key.as_str(), kind, Outcome::Unknown, why) }
    }

    fn check_wanted(&self) -> Result<(), oss::Error> {
        if !self.given_up.load(Ordering::SeqCst) {
            return Ok(());
        }
        let (operation, outcome) = (Operation::InitiateMultipartUpload, Outcome::NotApplied);
        let why = "the upload was given up";
        Err(oss::Error::local(operation, self.key.as_str(), ErrorKind::NoSuchUpload, outcome, why))
    }

    /// Gives the upload up, now or as soon as it has begun; whether nothing is left of it. A failure is logged: the
    /// parts stay in the bucket.
    pub async fn abort(&self) -> bool {
        self.given_up.store(true, Ordering::SeqCst);
        match self.id.get().filter(|_| !self.completed.load(Ordering::SeqCst)) {
            Some(id) => self.abort_upload(id).await,
            None => true,
        }
    }

    /// The same, for an upload that the journal knows: until it is gone, so that the next mount gives it up, after a
    /// crash or where the service refused.
    pub async fn give_up(&self) {
        if self.abort().await
            && let Some(id) = self.id()
            && let Err(error) = self.engine.journal.forget_upload(self.session, id.clone())
        {
            log::warn!("{error}");
        }
    }

    async fn abort_upload(&self, id: &UploadId) -> bool {
        let aborted = self.engine.client.abort_upload(&self.key, id).await;
        if let Err(error) = &aborted {
            log::warn!("{error}; the parts of upload {id:?} stay in the bucket until it is aborted");
        }
        aborted.is_ok()
    }
}

/// The CRC64 of the object that is put together from parts; `None` where that of one of them is unknown.
pub fn whole_crc(parts: &[(PartNumber, PartOutcome)]) -> Option<u64> {
    parts.iter().try_fold(0, |whole, (_, part)| Some(crc64::combine(whole, part.crc64?, part.size)))
}

/// A spill body as the client wants it.
#[derive(Debug)]
struct Sendable(SpillBody);

impl oss::BodySource for Sendable {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn open(&self) -> Pin<Box<dyn Stream<Item = std::io::Result<bytes::Bytes>> + Send + Sync>> {
        Box::pin(futures_util::stream::iter(self.0.reader()))
    }
}

fn as_body(body: &SpillBody) -> Body {
    Body::Source(Arc::new(Sendable(body.clone())))
}

fn local_io(operation: Operation, key: &ObjectKey, error: &std::io::Error) -> oss::Error {
    // The outcome of what came before it is not known here, whatever the operation.
    let outcome = Outcome::Unknown;
    oss::Error { outcome, ..oss::Error::local(operation, key.as_str(), ErrorKind::LocalIo, outcome, error) }
}

/// The headers as the session file keeps them.
pub fn record_of(headers: &PutHeaders) -> HeaderRecord {
    HeaderRecord {
        content_type: headers.content_type.clone(),
        cache_control: headers.cache_control.clone(),
        content_disposition: headers.content_disposition.clone(),
        content_encoding: headers.content_encoding.clone(),
        expires: headers.expires.clone(),
        user_meta: headers.user_meta.clone(),
        storage_class: headers.storage_class.clone(),
        server_side_encryption: headers.server_side_encryption.clone(),
    }
}

/// The inverse of [`record_of`].
pub fn headers_of(record: &HeaderRecord) -> PutHeaders {
    PutHeaders {
        content_type: record.content_type.clone(),
        cache_control: record.cache_control.clone(),
        content_disposition: record.content_disposition.clone(),
        content_encoding: record.content_encoding.clone(),
        expires: record.expires.clone(),
        user_meta: record.user_meta.clone(),
        storage_class: record.storage_class.clone(),
        server_side_encryption: record.server_side_encryption.clone(),
        forbid_overwrite: false,
    }
}

fn encode_headers(headers: &PutHeaders) -> Vec<u8> {
    bincode::serde::encode_to_vec(record_of(headers), bincode::config::standard()).unwrap_or_default()
}

fn decode_headers(bytes: &[u8]) -> Option<PutHeaders> {
    let config = bincode::config::standard().with_limit::<{ 1 << 20 }>();
    let (record, _): (HeaderRecord, usize) = bincode::serde::decode_from_slice(bytes, config).ok()?;
    Some(headers_of(&record))
}
