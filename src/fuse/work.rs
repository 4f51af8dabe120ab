//! Work on requests: who is told of it, and where it is done.

use std::pin::pin;

use fuser::{ReplyEntry, Request};

use super::Adapter;
use super::reply::reply_entry;
use crate::vfs::{Call, Entry, FsError};

/// Sees the requests that are worked on, so that somebody else knows when this process dies over one.
pub trait Watch: Send + Sync + std::fmt::Debug {
    /// Notes a request until what is returned is dropped; `None`: it is to be refused.
    fn begin(&self, unique: u64) -> Option<Box<dyn Send>>;

    /// From now on the calling thread works on this request; 0 is none.
    fn turn_to(&self, unique: u64);
}

/// A request in work, until it is dropped.
pub(super) struct Slot {
    _seen: Box<dyn Send>,
    unique: u64,
}

impl Adapter {
    /// Begins the work on a request; `None` where it is to be refused.
    pub(super) fn enter(&self, req: &Request) -> Option<(Call, Slot)> {
        let call = Call::new(req.unique().0);
        let seen = self.watch.begin(call.unique())?;
        // What is done at once is done by this thread.
        self.watch.turn_to(call.unique());
        Some((call, Slot { _seen: seen, unique: call.unique() }))
    }

    /// Works on a request in a task.
    pub(super) fn work(&self, slot: Slot, work: impl Future<Output = ()> + Send + 'static) {
        let watch = self.watch.clone();
        watch.turn_to(0);
        self.runtime.spawn(async move {
            let mut work = pin!(work);
            // A request that waits is on no thread.
            std::future::poll_fn(|context| {
                watch.turn_to(slot.unique);
                let done = work.as_mut().poll(context);
                watch.turn_to(0);
                done
            })
            .await;
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
