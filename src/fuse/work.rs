//! Work on requests: who is told of it, and where it is done.

use fuser::{ReplyEntry, Request};

use super::Adapter;
use super::reply::reply_entry;
use crate::vfs::{Call, Entry, FsError};

/// Sees the requests that are worked on, so that somebody else knows when this process dies over one.
pub trait Watch: Send + Sync + std::fmt::Debug {
    /// Notes a request until what is returned is dropped; `None`: it is to be refused.
    fn begin(&self, unique: u64) -> Option<Box<dyn Send>>;
}

impl Adapter {
    /// Begins the work on a request; `None` where it is to be refused.
    pub(super) fn enter(&self, req: &Request) -> Option<(Call, Box<dyn Send>)> {
        let call = Call::new(req.unique().0);
        Some((call, self.watch.begin(call.unique())?))
    }

    /// Works on a request in a task.
    pub(super) fn work(&self, slot: Box<dyn Send>, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(async move {
            work.await;
            drop(slot);
        });
    }

    pub(super) fn reply_found(&self, call: Call, found: Result<Entry, FsError>, reply: ReplyEntry) {
        if let Ok(entry) = &found {
            self.vfs.tell(call, entry.attr.ino);
        }
        reply_entry(&self.vfs, found, reply);
    }
}
