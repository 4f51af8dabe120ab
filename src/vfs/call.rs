//! Requests that may come twice: what was told and done for each is in the ledger, before the kernel hears of it.
//!
//! A request whose process died before it was answered is sent again, and may have been done already. "It exists, so
//! it was me" would let two processes both win a lock file; so what a request is about to do is noted when all checks
//! have passed (*begun*), and what it has done before it is answered (*done*). The kernel locks a directory while a
//! name in it is made or removed: between the two nobody else of this mount has done the same.

use super::error::FsError;
use super::{Entry, Vfs};
use crate::base::crash;
use crate::ledger::{Effect, Record, RequestState};

/// The bit that the kernel sets in the number of a request that it sends again (uapi/linux/fuse.h,
/// FUSE_UNIQUE_RESEND).
const SENT_AGAIN: u64 = 1 << 63;

/// A request of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    unique: u64,
    again: bool,
}

impl Call {
    /// Takes the number of a request.
    pub fn new(number: u64) -> Self {
        Self { unique: number & !SENT_AGAIN, again: number & SENT_AGAIN != 0 }
    }

    /// Its number without the bit: the same each time it comes.
    pub fn unique(self) -> u64 {
        self.unique
    }
}

impl Vfs {
    /// Writes down what the answer that follows tells the kernel. Every answer comes after this.
    pub fn commit(&self) {
        crash::point("answer-noting");
        self.ledger.commit();
        crash::point("answer-noted");
    }

    /// What is known of a request that is sent again.
    pub(super) fn remembered(&self, call: Call) -> RequestState {
        if !call.again {
            return RequestState::default();
        }
        self.requests.lock().get(&call.unique).cloned().unwrap_or_default()
    }

    /// The entry that an earlier process has made for this request.
    pub(super) async fn made_before(&self, call: Call) -> Option<Result<Entry, FsError>> {
        match self.remembered(call).effect? {
            Effect::Entry(ino) | Effect::Created(ino, _) => Some(self.getattr(ino).await),
            Effect::Nothing => None,
        }
    }

    /// Whether an earlier process has done all of this request.
    pub(super) fn was_done(&self, call: Call) -> bool {
        self.remembered(call).effect == Some(Effect::Nothing)
    }

    /// Whether an earlier process may have done it: all checks had passed.
    pub(super) fn was_begun(&self, call: Call) -> bool {
        self.remembered(call).begun
    }

    /// What a request is to do may be done from now on.
    pub(super) fn begin(&self, call: Call) {
        self.ledger.note(&Record::Begun { unique: call.unique });
        self.ledger.commit();
        crash::point("begun");
    }

    /// What an earlier process has left tells that it had begun a request.
    pub(super) fn begun_before(&self, unique: u64) {
        self.requests.lock().entry(unique).or_default().begun = true;
        self.ledger.note(&Record::Begun { unique });
        self.ledger.commit();
    }

    /// It has been done.
    pub(super) fn done(&self, call: Call, effect: Effect) {
        crash::point("deed");
        if let Effect::Entry(ino) = effect {
            self.tell(call, ino);
        }
        self.ledger.note(&Record::Done { unique: call.unique, effect });
        self.ledger.commit();
        crash::point("done");
    }

    /// The same of a request that tells the kernel of no inode, for whoever holds the tree: it is written down with what
    /// was noted beside it, by the answer that follows.
    pub(super) fn note_done(&self, call: Call) {
        self.ledger.note(&Record::Done { unique: call.unique, effect: Effect::Nothing });
    }

    /// The answer to a request tells the kernel of an inode, which is counted in the table already. An answer that
    /// was noted by an earlier process counts once.
    pub fn tell(&self, call: Call, ino: u64) {
        if call.again && self.remembered(call).told.contains(&ino) {
            self.tree.lock().forget(ino, 1);
        } else {
            self.ledger.note(&Record::Told { ino, unique: call.unique });
        }
    }

    /// An inode that was looked up is not told after all.
    pub fn untold(&self, ino: u64) {
        self.forget(ino, 1);
    }

    /// The kernel forgets an inode.
    pub fn forgotten(&self, ino: u64, count: u64) {
        self.ledger.note(&Record::Forgotten { ino, count });
        self.tree.lock().forget(ino, count);
    }
}
