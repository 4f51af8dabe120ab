//! The engine: opens objects, and shares workers and memory among their readers.
//!
//! It knows all readers only to take memory back from them. The surprising part: beside the shared budget there is a
//! reserve of one block, so that a read that waits gets on even when others hold all memory and wait themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fetch::Incoming;
use super::reader::Reader;
use super::shared::Shared;
use super::{Opened, ReadOptions};
use crate::base::caller::wait;
use crate::base::{Budget, ByteRange, ETag, Grant, ObjectKey, Reclaim};
use crate::oss::{self, Client, ErrorKind, GetOptions, GetReply, ObjectMeta, Operation};

/// Reads objects of one bucket; clones share everything.
#[derive(Debug, Clone)]
pub struct ReadEngine(Arc<Engine>);

/// What all readers share.
#[derive(Debug)]
pub(super) struct Engine {
    pub client: Client,
    pub options: ReadOptions,
    pub runtime: Handle,
    workers: Arc<Semaphore>,
    reserve: Arc<Budget>,
    readers: Mutex<Vec<Weak<Shared>>>,
    uses: AtomicU64,
}

impl ReadEngine {
    /// Fetches run on `runtime`, whatever runtime the reads themselves run on.
    pub fn new(client: Client, options: ReadOptions, runtime: Handle) -> Self {
        let memory = Arc::clone(&options.memory);
        let engine = Arc::new(Engine {
            client,
            workers: Arc::new(Semaphore::new(options.workers.max(1))),
            reserve: Budget::new(options.chunk),
            options,
            runtime,
            readers: Mutex::default(),
            uses: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&engine);
        memory.register(weak);
        Self(engine)
    }

    /// Looks at the object and begins to read it, in one GET: of its first bytes, if it is not the version held.
    ///
    /// Returns when the head of the reply is there. An object that is empty takes a second request, a HEAD.
    pub async fn open(&self, key: &ObjectKey, held: Option<&ETag>) -> Result<Opened, oss::Error> {
        let waited = wait(self.0.worker()).await;
        let worker = waited.map_err(|cut| oss::Error::cut(Operation::GetObject, key.as_str(), cut))?;
        let options = GetOptions {
            range: Some(ByteRange::at(0, self.0.options.first)),
            if_match: None,
            if_none_match: held.cloned(),
        };
        match self.0.client.get_object(key, &options).await {
            Ok(reply) => Ok(self.opened(key.clone(), reply, worker)),
            Err(error) if error.kind == ErrorKind::NotModified => Ok(Opened::Unchanged),
            Err(error) if error.kind == ErrorKind::InvalidRange => self.open_empty(key, held).await,
            Err(error) => Err(error),
        }
    }

    /// A reader of an object whose state is known to be fresh; makes no request.
    pub fn reader(&self, key: ObjectKey, meta: &ObjectMeta) -> Arc<Reader> {
        Arc::new(Reader::new(self.0.share(key, meta)))
    }

    /// Bytes in memory, as they are rather than as the budget counts them.
    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        let readers: Vec<_> = self.0.readers.lock().iter().filter_map(Weak::upgrade).collect();
        readers.iter().map(|reader| reader.held()).sum()
    }

    fn opened(&self, key: ObjectKey, reply: GetReply, worker: OwnedSemaphorePermit) -> Opened {
        let shared = self.0.share(key, &reply.meta);
        if !reply.range.is_empty() && reply.range.end <= reply.meta.size {
            shared.adopt(reply.range, Incoming { body: reply.body, request_id: reply.request_id }, worker);
        }
        Opened::Current { meta: reply.meta, reader: Arc::new(Reader::new(shared)) }
    }

    /// A range of an empty object is refused (416), whatever its version.
    async fn open_empty(&self, key: &ObjectKey, held: Option<&ETag>) -> Result<Opened, oss::Error> {
        let meta = self.0.client.head_object(key).await?;
        if held == Some(&meta.etag) {
            return Ok(Opened::Unchanged);
        }
        let reader = self.reader(key.clone(), &meta);
        Ok(Opened::Current { meta, reader })
    }
}

impl Engine {
    fn share(self: &Arc<Self>, key: ObjectKey, meta: &ObjectMeta) -> Arc<Shared> {
        let shared = Arc::new(Shared::new(Arc::clone(self), key, meta));
        let mut readers = self.readers.lock();
        if readers.len() == readers.capacity() {
            readers.retain(|reader| reader.strong_count() > 0);
        }
        readers.push(Arc::downgrade(&shared));
        shared
    }

    /// A number that grows with every use of any reader.
    pub(super) fn tick(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits for its turn to fetch.
    pub(super) async fn worker(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.workers).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// A worker for what nobody waits for yet; a quarter of them is left to those who wait.
    pub(super) fn spare_worker(&self) -> Option<OwnedSemaphorePermit> {
        if self.workers.available_permits() <= self.options.workers / 4 {
            return None;
        }
        Arc::clone(&self.workers).try_acquire_owned().ok()
    }

    /// The largest piece that memory can ever hold.
    pub(super) fn piece_max(&self) -> u64 {
        self.options.chunk.min(self.options.memory.grant_max()).max(1)
    }

    /// Waits for memory for a piece that a read waits for: out of the budget, or else the reserve.
    pub(super) async fn acquire(&self, bytes: u64) -> Grant {
        tokio::select! {
            biased;
            grant = self.options.memory.acquire(bytes) => grant,
            grant = self.reserve.acquire(bytes) => grant,
        }
    }

    /// Gives back what others wait for, where it has become idle.
    pub(super) fn relieve(&self) {
        let wanted = self.options.memory.wanted();
        if wanted > 0 {
            self.reclaim(wanted);
        }
    }
}

impl Reclaim for Engine {
    /// First what lies behind the readers, then what was fetched ahead, of the reader longest unused first.
    fn reclaim(&self, bytes: u64) {
        let mut readers: Vec<_> = self.readers.lock().iter().filter_map(Weak::upgrade).collect();
        readers.sort_by_key(|reader| reader.used());
        let mut short = bytes;
        for reader in &readers {
            short = short.saturating_sub(reader.free_history());
        }
        for reader in &readers {
            short = short.saturating_sub(reader.evict(short));
        }
    }
}
