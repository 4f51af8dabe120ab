//! Counters: every try counts, as ok where the service answered the question, else as an error.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::Error;
use super::types::{BreakerState, Operation, RequestCounts, Stats, StatsError};
use crate::base::time;

#[derive(Debug, Default)]
struct Counts {
    ok: AtomicU64,
    error: AtomicU64,
}

/// Counts of one client.
#[derive(Debug, Default)]
pub(super) struct Counters {
    requests: [Counts; Operation::ALL.len()],
    retries: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    last_error: Mutex<Option<(SystemTime, Box<StatsError>)>>,
}

impl Counters {
    /// A try has ended. Answers such as "no such key" are no errors.
    pub(super) fn tried(&self, operation: Operation, failure: Option<&Error>) {
        let counts = &self.requests[operation as usize];
        let count = if failure.is_none_or(Error::is_answer) { &counts.ok } else { &counts.error };
        count.fetch_add(1, Relaxed);
    }

    /// A reply that was counted as ok broke off in its body.
    pub(super) fn broke_off(&self, error: &Error) {
        let counts = &self.requests[error.operation as usize];
        counts.ok.fetch_sub(1, Relaxed);
        counts.error.fetch_add(1, Relaxed);
        self.failed(error);
    }

    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.bytes_up.fetch_add(bytes, Relaxed);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.bytes_down.fetch_add(bytes, Relaxed);
    }

    /// A request has failed for good, or after its fast tries.
    pub(super) fn failed(&self, error: &Error) {
        if error.is_answer() {
            return;
        }
        let shown = StatsError {
            operation: error.operation,
            subject: error.subject.clone(),
            code: error.code.clone(),
            message: error.message.clone(),
            request_id: error.request_id.as_deref().map(str::to_owned),
        };
        *self.last_error.lock() = Some((time::now(), Box::new(shown)));
    }

    /// Operations that were never asked for are left out. What the breaker knows is for the client to add.
    pub(super) fn snapshot(&self) -> Stats {
        let counts = Operation::ALL.into_iter().map(|operation| {
            let counts = &self.requests[operation as usize];
            (operation, RequestCounts { ok: counts.ok.load(Relaxed), error: counts.error.load(Relaxed) })
        });
        Stats {
            requests: counts.filter(|(_, counts)| *counts != RequestCounts::default()).collect(),
            retries: self.retries.load(Relaxed),
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
            breaker: BreakerState::Closed,
            degraded_since: None,
            last_error: self.last_error.lock().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oss::error::{ErrorKind, Outcome};

    #[test]
    fn answers_are_ok_and_failures_are_kept() {
        let counters = Counters::default();
        let error = |kind| Error::local(Operation::HeadObject, "k", kind, Outcome::NotApplied, "m");
        counters.tried(Operation::HeadObject, None);
        counters.tried(Operation::HeadObject, Some(&error(ErrorKind::NoSuchKey)));
        counters.failed(&error(ErrorKind::NoSuchKey));
        assert_eq!(counters.snapshot().last_error, None);
        counters.tried(Operation::HeadObject, Some(&error(ErrorKind::Server)));
        counters.failed(&error(ErrorKind::Server));
        counters.broke_off(&error(ErrorKind::Transport));
        let stats = counters.snapshot();
        assert_eq!(stats.requests.len(), 1);
        assert_eq!(stats.requests[&Operation::HeadObject], RequestCounts { ok: 1, error: 2 });
        assert_eq!(stats.last_error.map(|(_, error)| error.message), Some("m".into()));
    }

    #[test]
    fn every_operation_has_its_place() {
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index);
        }
    }
}
