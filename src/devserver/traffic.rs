//! How fast and whether at all bytes pass: latency, bandwidth, outage. All set over the control endpoints.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

/// The state of the line.
#[derive(Debug)]
pub(crate) struct Traffic {
    latency_ms: AtomicU64,
    /// Bytes a second of all bodies together; 0 = no limit.
    bandwidth: AtomicU64,
    /// When the bytes let through so far will have passed.
    free_at: Mutex<Instant>,
    outage: watch::Sender<bool>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            latency_ms: AtomicU64::new(0),
            bandwidth: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
            outage: watch::Sender::new(false),
        }
    }
}

impl Traffic {
    pub(crate) fn set_latency_ms(&self, ms: u64) {
        self.latency_ms.store(ms, Ordering::Relaxed);
    }

    /// None where there is none, so that nothing has to be slept.
    pub(crate) fn latency(&self) -> Option<Duration> {
        let ms = self.latency_ms.load(Ordering::Relaxed);
        (ms > 0).then(|| Duration::from_millis(ms))
    }

    pub(crate) fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.bandwidth.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
        *self.free_at.lock() = Instant::now();
    }

    /// The most bytes to pass at once, so that a slow line flows and does not hop.
    pub(crate) fn chunk_max(&self, unlimited: u64) -> u64 {
        match self.bandwidth.load(Ordering::Relaxed) {
            0 => unlimited,
            bandwidth => (bandwidth / 20).clamp(1024, unlimited),
        }
    }

    /// Takes `bytes` of the line; the time to wait before they may go on.
    pub(crate) fn reserve(&self, bytes: u64) -> Option<Duration> {
        let bandwidth = self.bandwidth.load(Ordering::Relaxed);
        if bandwidth == 0 {
            return None;
        }
        let now = Instant::now();
        let mut free_at = self.free_at.lock();
        *free_at = (*free_at).max(now) + Duration::from_secs_f64(bytes as f64 / bandwidth as f64);
        Some(*free_at - now)
    }

    pub(crate) fn set_outage(&self, on: bool) {
        self.outage.send_replace(on);
    }

    pub(crate) fn is_out(&self) -> bool {
        *self.outage.borrow()
    }

    /// Waits until an outage begins.
    pub(crate) async fn outage(&self) {
        // The sender lives as long as this value, so that waiting cannot fail.
        self.outage.subscribe().wait_for(|out| *out).await.map(drop).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_shared_by_all_bodies() {
        let traffic = Traffic::default();
        assert_eq!(traffic.reserve(1 << 30), None);
        traffic.set_bandwidth(Some(1000));
        let first = traffic.reserve(500).unwrap();
        let second = traffic.reserve(500).unwrap();
        assert!(first > Duration::from_millis(400) && first <= Duration::from_millis(500));
        assert!(second > Duration::from_millis(900) && second <= Duration::from_secs(1));
        assert_eq!(traffic.chunk_max(4096), 1024);
    }
}
