//! Work on requests: who is told of it, where it is done, and what a thread is at.

use std::cell::RefCell;
use std::pin::pin;

use fuser::{INodeNo, ReplyEntry, Request};

use super::Adapter;
use super::reply::reply_entry;
use crate::base::fields;
use crate::vfs::{Call, Entry, FsError, Vfs};

/// Sees the requests that are worked on, so that somebody else knows when this process dies over one.
pub trait Watch: Send + Sync + std::fmt::Debug {
    /// Notes a request until what is returned is dropped; `None`: it is to be refused.
    fn begin(&self, unique: u64) -> Option<Box<dyn Send>>;

    /// From now on the calling thread works on this request; 0 is none.
    fn turn_to(&self, unique: u64);
}

/// What a request asks for, for the log: the kernel's word for it, and an inode or a name in one.
#[derive(Debug, Clone)]
pub(super) struct Doing {
    call: &'static str,
    ino: u64,
    name: Option<Box<str>>,
}

thread_local! {
    static DOING: RefCell<Option<Doing>> = const { RefCell::new(None) };
}

/// Has the thread be at this; gives what it was at.
fn turn_to(doing: Option<Doing>) -> Option<Doing> {
    fields::turn_to(doing.as_ref().map(|doing| doing.call));
    DOING.replace(doing)
}

/// The call that the thread is at, and the key that it is about.
pub(super) fn doing(vfs: &Vfs) -> Option<(&'static str, Option<String>)> {
    let doing = DOING.with_borrow(Clone::clone)?;
    Some((doing.call, vfs.key_for_log(doing.ino, doing.name.as_deref())))
}

/// A request in work, until it is dropped.
pub(super) struct Slot {
    _seen: Box<dyn Send>,
    unique: u64,
    doing: Doing,
}

impl Slot {
    /// It is about this name in the directory.
    pub(super) fn at(mut self, name: &str) -> Self {
        self.doing.name = Some(name.into());
        self
    }
}

impl Adapter {
    /// Begins the work on a request; `None` where it is to be refused.
    pub(super) fn enter(&self, req: &Request, word: &'static str, ino: INodeNo) -> Option<(Call, Slot)> {
        let call = Call::new(req.unique().0);
        let seen = self.watch.begin(call.unique())?;
        // What is done at once is done by this thread.
        self.watch.turn_to(call.unique());
        let doing = Doing { call: word, ino: ino.0, name: None };
        turn_to(Some(doing.clone()));
        Some((call, Slot { _seen: seen, unique: call.unique(), doing }))
    }

    /// Works on a request in a task.
    pub(super) fn work(&self, slot: Slot, work: impl Future<Output = ()> + Send + 'static) {
        let watch = self.watch.clone();
        watch.turn_to(0);
        turn_to(None);
        self.runtime.spawn(async move {
            let mut work = pin!(work);
            let Slot { _seen: seen, unique, doing } = slot;
            let mut doing = Some(doing);
            // A request that waits is on no thread.
            std::future::poll_fn(|context| {
                watch.turn_to(unique);
                turn_to(doing.take());
                let done = work.as_mut().poll(context);
                doing = turn_to(None);
                watch.turn_to(0);
                done
            })
            .await;
            drop(seen);
        });
    }

    pub(super) fn reply_found(&self, call: Call, found: Result<Entry, FsError>, reply: ReplyEntry) {
        if let Ok(entry) = &found {
            self.vfs.tell(call, entry.attr.ino);
        }
        reply_entry(&self.vfs, found, reply);
    }
}
