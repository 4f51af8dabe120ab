//! The circuit breaker of an endpoint: whether it is worth asking at all, and since when things go badly.
//!
//! Judges by outcomes and times that it is told; who probes, and who waits for what, is the client's business. The
//! surprising part: an answer of any kind closes it, also a refusal, and only a row of failures without one opens it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::types::BreakerState;
use crate::base::time;

/// Failures in a row that open it, if they are spread over this time at least.
const FAILURES_MIN: u32 = 5;
const SPAN_MIN: Duration = Duration::from_secs(5);

/// How long a failure is news.
const LATELY: Duration = Duration::from_secs(2);

/// Failures without an answer between them.
#[derive(Debug, Default)]
struct Row {
    failures: u32,
    first: Option<(Instant, SystemTime)>,
    last: Option<Instant>,
}

/// The breaker of one endpoint.
#[derive(Debug)]
pub(super) struct Breaker {
    row: Mutex<Row>,
    state: watch::Sender<BreakerState>,
    /// Requests that are past their fast tries.
    strained: AtomicUsize,
    strained_since: Mutex<Option<SystemTime>>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            row: Mutex::default(),
            state: watch::Sender::new(BreakerState::Closed),
            strained: AtomicUsize::new(0),
            strained_since: Mutex::default(),
        }
    }
}

impl Breaker {
    /// The service has answered.
    pub(super) fn answered(&self) {
        *self.row.lock() = Row::default();
        // Only where it changes something: whoever pauses between tries waits for the end of an outage, and must not
        // be woken by each request of somebody else that succeeds.
        let closes = |state: &mut BreakerState| std::mem::replace(state, BreakerState::Closed) != BreakerState::Closed;
        if self.state.send_if_modified(closes) {
            log::info!("the service answers again");
        }
    }

    /// It has not; whether that has opened the breaker. Where nobody waited for long, that only casts doubt.
    pub(super) fn failed(&self, now: Instant, only_doubt: bool) -> bool {
        let mut row = self.row.lock();
        row.last = Some(now);
        if only_doubt {
            return false;
        }
        row.failures = row.failures.saturating_add(1);
        let (first, _) = *row.first.get_or_insert_with(|| (now, time::now()));
        let opens = row.failures >= FAILURES_MIN && now.saturating_duration_since(first) >= SPAN_MIN;
        opens
            && self.state.send_if_modified(|state| std::mem::replace(state, BreakerState::Open) == BreakerState::Closed)
    }

    /// Somebody asks whether the service is back; whether that is still of interest.
    pub(super) fn probing(&self, is_probing: bool) -> bool {
        let next = if is_probing { BreakerState::HalfOpen } else { BreakerState::Open };
        self.state.send_if_modified(|state| {
            let changes = *state != BreakerState::Closed;
            if changes {
                *state = next;
            }
            changes
        })
    }

    pub(super) fn state(&self) -> BreakerState {
        *self.state.borrow()
    }

    /// Whether asking is of no use now.
    pub(super) fn is_open(&self) -> bool {
        self.state() != BreakerState::Closed
    }

    /// Whether the last request got no answer, whatever that means.
    pub(super) fn is_failing(&self) -> bool {
        self.row.lock().last.is_some()
    }

    /// Whether that was just now.
    pub(super) fn failed_lately(&self) -> bool {
        self.row.lock().last.is_some_and(|at| at.elapsed() < LATELY)
    }

    /// Waits until asking is of use.
    pub(super) async fn closed(&self) {
        // The sender lives as long as this value, so that waiting cannot fail.
        let mut state = self.state.subscribe();
        state.wait_for(|state| *state == BreakerState::Closed).await.map(drop).unwrap_or_default();
    }

    /// Waits until it closes the next time, or, where it is open, until it closes.
    pub(super) async fn recovered(&self) {
        let mut state = self.state.subscribe();
        if *state.borrow_and_update() == BreakerState::Closed && state.changed().await.is_err() {
            return;
        }
        state.wait_for(|state| *state == BreakerState::Closed).await.map(drop).unwrap_or_default();
    }

    /// A request is past its fast tries, until what is returned is dropped.
    pub(super) fn strained(&self) -> Strained<'_> {
        if self.strained.fetch_add(1, Relaxed) == 0 {
            let since = self.row.lock().first.map_or_else(time::now, |(_, at)| at);
            *self.strained_since.lock() = Some(since);
        }
        Strained(self)
    }

    /// Since when requests fail, or wait for a service that does not answer; `None` while all is well.
    pub(super) fn degraded_since(&self) -> Option<SystemTime> {
        let open_since = if self.is_open() { self.row.lock().first.map(|(_, at)| at) } else { None };
        let strained = self.strained.load(Relaxed) > 0;
        open_since.or_else(|| self.strained_since.lock().filter(|_| strained))
    }
}

/// One request that is past its fast tries.
#[derive(Debug)]
pub(super) struct Strained<'b>(&'b Breaker);

impl Drop for Strained<'_> {
    fn drop(&mut self) {
        self.0.strained.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(breaker: &Breaker, seconds: &[u64]) -> Vec<bool> {
        let begun = Instant::now();
        seconds.iter().map(|second| breaker.failed(begun + Duration::from_secs(*second), false)).collect()
    }

    #[test]
    fn a_row_of_failures_over_some_time_opens_it_once() {
        let breaker = Breaker::default();
        assert_eq!(failing(&breaker, &[0, 1, 2, 3, 4]), [false; 5], "too soon");
        assert!(breaker.degraded_since().is_none() && breaker.is_failing() && breaker.failed_lately());
        let breaker = Breaker::default();
        assert_eq!(failing(&breaker, &[0, 9, 9, 9]), [false; 4], "too few");
        assert_eq!(failing(&breaker, &[9, 10]), [true, false]);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(breaker.degraded_since().is_some());
    }

    #[test]
    fn impatience_is_no_failure_of_the_service() {
        let breaker = Breaker::default();
        let begun = Instant::now();
        assert!((0..20).all(|second| !breaker.failed(begun + Duration::from_secs(second), true)));
        assert!(breaker.is_failing() && !breaker.is_open());
    }

    async fn is_waiting(work: impl Future<Output = ()>) -> bool {
        tokio::time::timeout(Duration::ZERO, work).await.is_err()
    }

    #[tokio::test]
    async fn the_end_of_an_outage_ends_pauses_and_another_answer_does_not() {
        let breaker = Breaker::default();
        let mut recovered = Box::pin(breaker.recovered());
        assert!(is_waiting(&mut recovered).await);
        breaker.answered();
        assert!(is_waiting(&mut recovered).await, "nothing was wrong");
        failing(&breaker, &[0, 2, 4, 6, 8]);
        assert!(breaker.is_open());
        assert!(is_waiting(&mut recovered).await);
        breaker.answered();
        assert!(!is_waiting(&mut recovered).await);
    }

    #[test]
    fn an_answer_closes_it_and_begins_a_new_row() {
        let breaker = Breaker::default();
        failing(&breaker, &[0, 2, 4, 6]);
        breaker.answered();
        assert_eq!(failing(&breaker, &[7, 8, 9, 10]), [false; 4]);
        failing(&breaker, &[20]);
        assert!(breaker.is_open());
        breaker.answered();
        assert_eq!((breaker.state(), breaker.degraded_since()), (BreakerState::Closed, None));
    }

    #[test]
    fn probing_shows_and_ends_with_an_answer() {
        let breaker = Breaker::default();
        assert!(!breaker.probing(true), "nothing to find out");
        failing(&breaker, &[0, 2, 4, 6, 8]);
        assert!(breaker.probing(true));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(breaker.probing(false) && breaker.is_open());
        breaker.answered();
        assert!(!breaker.probing(true) && !breaker.is_open());
    }

    #[tokio::test]
    async fn waiters_are_let_go_when_it_closes() {
        let breaker = Breaker::default();
        failing(&breaker, &[0, 2, 4, 6, 8]);
        tokio::join!(breaker.closed(), breaker.recovered(), async { breaker.answered() });
    }

    #[test]
    fn a_strained_request_degrades() {
        let breaker = Breaker::default();
        let strained = [breaker.strained(), breaker.strained()];
        assert!(breaker.degraded_since().is_some());
        drop(strained);
        assert_eq!(breaker.degraded_since(), None);
    }
}
