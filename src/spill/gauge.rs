//! How much of the disk all sessions take, and how much they may.
//!
//! It counts, it does not write; what makes room when there is none is decided above. A limit is kept by those
//! who ask before they write ([`Gauge::take`]); what must be written in any case is counted all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::sync::Notify;

/// Bytes in the spill files of a mount, against their limit.
#[derive(Debug)]
pub struct Gauge {
    /// Bytes; the largest number means none.
    limit: u64,
    used: AtomicU64,
    changed: Notify,
}

impl Gauge {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), changed: Notify::new() })
    }

    /// The limit in bytes; `None` where there is none.
    pub fn limit(&self) -> Option<u64> {
        (self.limit != u64::MAX).then_some(self.limit)
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.used.load(SeqCst)
    }

    /// Takes `bytes` if they fit.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Lease> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        match bytes {
            0 => Some(Lease { gauge: self.clone(), bytes: 0 }),
            _ => self.used.fetch_update(SeqCst, SeqCst, fits).is_ok().then(|| Lease { gauge: self.clone(), bytes }),
        }
    }

    /// Takes `bytes` whether they fit or not.
    pub fn take_anyway(self: &Arc<Self>, bytes: u64) -> Lease {
        let mut lease = Lease::new(self, 0);
        lease.grow(bytes);
        lease
    }

    /// Whether `bytes` more fit.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.used().checked_add(bytes).is_some_and(|sum| sum <= self.limit)
    }

    /// Takes back what was left behind ([`Lease::leave_behind`]): it has gone, or is counted anew. Where another process
    /// left it behind, it was never counted here.
    pub fn give_back(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        if self.used.fetch_update(SeqCst, SeqCst, less).is_ok() {
            self.nudge();
        }
    }

    /// Wakes those who wait for room: something has moved on.
    pub fn nudge(&self) {
        self.changed.notify_waiters();
    }

    /// What [`Self::nudge`] wakes.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }
}

/// Bytes of a gauge; given back on drop.
#[derive(Debug)]
pub struct Lease {
    gauge: Arc<Gauge>,
    bytes: u64,
}

impl Lease {
    /// Counts `bytes` that are on the disk already.
    pub fn new(gauge: &Arc<Gauge>, bytes: u64) -> Self {
        gauge.used.fetch_add(bytes, SeqCst);
        Self { gauge: gauge.clone(), bytes }
    }

    /// A lease that counts for nobody, until it is moved to a gauge.
    pub fn apart() -> Self {
        Self::new(&Gauge::new(u64::MAX), 0)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn grow(&mut self, bytes: u64) {
        self.gauge.used.fetch_add(bytes, SeqCst);
        self.bytes += bytes;
    }

    pub fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if bytes > 0 {
            self.gauge.used.fetch_sub(bytes, SeqCst);
            self.gauge.nudge();
        }
    }

    /// Takes over what `room` was taken for: `bytes` of it were needed, or more.
    pub fn settle(&mut self, mut room: Self, bytes: u64) {
        let taken = std::mem::take(&mut room.bytes);
        self.bytes += taken;
        match bytes.checked_sub(taken) {
            Some(0) => {}
            Some(more) => self.grow(more),
            None => self.shrink(taken - bytes),
        }
    }

    /// The bytes stay on the disk although nobody looks after them here any more.
    pub fn leave_behind(&mut self) {
        self.bytes = 0;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_keeps_to_the_limit() {
        let gauge = Gauge::new(100);
        let first = gauge.take(70).unwrap();
        assert!(gauge.take(31).is_none() && gauge.has_room(30));
        let forced = gauge.take_anyway(50);
        assert_eq!(gauge.used(), 120);
        assert!(gauge.take(1).is_none() && gauge.take(0).is_some());
        drop((first, forced));
        assert_eq!((gauge.used(), gauge.limit()), (0, Some(100)));
    }

    #[test]
    fn room_that_was_taken_is_settled_by_what_was_needed() {
        let gauge = Gauge::new(100);
        let mut lease = gauge.take(10).unwrap();
        for (room, needed, used) in [(20, 20, 30), (20, 5, 35), (5, 20, 55), (0, 0, 55)] {
            let room = gauge.take(room).unwrap();
            lease.settle(room, needed);
            assert_eq!((gauge.used(), lease.bytes()), (used, used));
        }
        drop(lease);
        assert_eq!(gauge.used(), 0);
    }

    #[test]
    fn what_is_left_behind_stays_counted() {
        let gauge = Gauge::new(100);
        let mut lease = Lease::new(&gauge, 60);
        lease.shrink(20);
        lease.leave_behind();
        drop(lease);
        assert_eq!(gauge.used(), 40);
    }
}
