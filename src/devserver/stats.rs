//! Counting requests, and remembering the latest, so that a test can say what a client did.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::request::Operation;

/// Requests remembered.
const LOG_ENTRIES_MAX: usize = 100_000;

#[derive(Debug, Default)]
struct Counters {
    ok: AtomicU64,
    error: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// What happened to one operation, as `/_dev/stats` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    ok: u64,
    error: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// One request, as `/_dev/log` shows it.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    /// RFC 3339.
    pub(crate) at: String,
    pub(crate) operation: &'static str,
    pub(crate) bucket: Option<String>,
    pub(crate) key: Option<String>,
    /// 0 where the connection was reset without a reply.
    pub(crate) status: u16,
    pub(crate) code: Option<String>,
    pub(crate) part_number: Option<u32>,
    pub(crate) upload_id: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Whether a fault rule had a hand in it.
    pub(crate) fault: bool,
    pub(crate) request_id: String,
}

/// `GET /_dev/stats`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    requests: BTreeMap<&'static str, Counts>,
    total: u64,
    connections: usize,
}

/// A connection of a client, from its acceptance until nothing can come of it any more.
#[derive(Debug)]
pub(crate) struct Connection(Arc<AtomicUsize>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The counters and the log.
#[derive(Debug)]
pub(crate) struct Stats {
    counters: Vec<Counters>,
    /// The number of the last request and the latest ones.
    log: Mutex<(u64, VecDeque<Entry>)>,
    connections: Arc<AtomicUsize>,
}

impl Default for Stats {
    fn default() -> Self {
        let counters = Operation::ALL.iter().map(|_| Counters::default()).collect();
        Self { counters, log: Mutex::default(), connections: Arc::default() }
    }
}

impl Stats {
    /// Counts a connection for as long as what is returned lives.
    pub(crate) fn connected(&self) -> Connection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connection(self.connections.clone())
    }

    fn of(&self, operation: Operation) -> &Counters {
        &self.counters[operation as usize]
    }

    pub(crate) fn received(&self, operation: Operation, bytes: u64) {
        self.of(operation).bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, operation: Operation, bytes: u64) {
        self.of(operation).bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a request and puts it into the log, before its reply goes out.
    pub(crate) fn record(&self, operation: Operation, mut entry: Entry) {
        let counters = self.of(operation);
        let done = (100..400).contains(&entry.status);
        if done { &counters.ok } else { &counters.error }.fetch_add(1, Ordering::Relaxed);
        let (seq, log) = &mut *self.log.lock();
        *seq += 1;
        entry.seq = *seq;
        if log.len() == LOG_ENTRIES_MAX {
            log.pop_front();
        }
        log.push_back(entry);
    }

    /// What was counted since the last reset; operations that did not occur are left out.
    pub(crate) fn report(&self) -> Report {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = |operation: &Operation| {
            let counters = self.of(*operation);
            Counts {
                ok: load(&counters.ok),
                error: load(&counters.error),
                bytes_in: load(&counters.bytes_in),
                bytes_out: load(&counters.bytes_out),
            }
        };
        let requests: BTreeMap<_, _> = Operation::ALL
            .iter()
            .map(|operation| (operation.name(), counts(operation)))
            .filter(|(_, counts)| counts.ok + counts.error > 0)
            .collect();
        let total = requests.values().map(|counts| counts.ok + counts.error).sum();
        // The one that asks is not meant.
        let connections = self.connections.load(Ordering::Relaxed).saturating_sub(1);
        Report { requests, total, connections }
    }

    /// Counts from nought again. The log stays: its numbers go on.
    pub(crate) fn reset(&self) {
        for counters in &self.counters {
            for counter in [&counters.ok, &counters.error, &counters.bytes_in, &counters.bytes_out] {
                counter.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The remembered requests numbered above `since`, in order.
    pub(crate) fn log_since(&self, since: u64) -> Vec<Entry> {
        self.log.lock().1.iter().filter(|entry| entry.seq > since).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_and_remembered() {
        let stats = Stats::default();
        for status in [200, 304, 404, 0] {
            stats.record(Operation::GetObject, Entry { status, ..Entry::default() });
        }
        stats.sent(Operation::GetObject, 7);
        let report = stats.report();
        assert_eq!(report.total, 4);
        assert_eq!(report.requests["GetObject"], Counts { ok: 2, error: 2, bytes_in: 0, bytes_out: 7 });
        assert_eq!(report.requests.len(), 1);
        let seqs = |since| stats.log_since(since).iter().map(|entry| entry.seq).collect::<Vec<_>>();
        assert_eq!(seqs(2), [3, 4]);
        let asking = stats.connected();
        let other = stats.connected();
        assert_eq!(stats.report().connections, 1);
        drop((asking, other));
        stats.reset();
        assert_eq!((stats.report().total, stats.report().connections), (0, 0));
        assert_eq!(seqs(0), [1, 2, 3, 4]);
    }
}
