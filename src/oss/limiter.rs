//! Rates that hold over any second: of bytes that flow, and of requests.
//!
//! Pure but for the clock that is handed in: each of them says when something may go, and whoever asked waits. The
//! surprising part: both stay a little below what was asked for, so that what the network bunches up on its way is not
//! over the limit at its other end.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What may be saved up while nothing flows, and what is kept back in return: a twentieth of a second's worth.
const SLACK: Duration = Duration::from_millis(50);
const KEPT_BACK: f64 = 0.95;
/// Largest and smallest piece in which bytes flow, and how many pieces make up a second in between.
const PIECE_MAX: usize = 64 << 10;
const PIECE_MIN: usize = 1 << 10;
const PIECES_A_SECOND: u64 = 50;
/// A second, and what two requests may come closer together on their way.
const WINDOW: Duration = Duration::from_millis(1_100);

/// A token bucket, in tokens a second.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    slack: Duration,
    /// When all that was let through so far has been paid for.
    paid: Mutex<Option<Instant>>,
}

impl Bucket {
    /// A flow of at most `rate` bytes in any second.
    pub(super) fn of_bytes(rate: u64) -> Self {
        Self::new(rate.max(1) as f64 * KEPT_BACK, SLACK)
    }

    /// A bucket that fills at `rate` and holds `slack` of it.
    pub(super) fn new(rate: f64, slack: Duration) -> Self {
        Self { rate, slack, paid: Mutex::new(None) }
    }

    /// Takes tokens; when they may be used.
    pub(super) fn take(&self, tokens: u64, now: Instant) -> Instant {
        let mut paid = self.paid.lock();
        let full = now.checked_sub(self.slack).unwrap_or(now);
        let from = paid.map_or(full, |paid| paid.max(full));
        let until = from + Duration::from_secs_f64(tokens as f64 / self.rate);
        *paid = Some(until);
        until.max(now)
    }

    /// In pieces of how many bytes a flow should go, so that it is smooth and still cheap.
    pub(super) fn piece(&self) -> usize {
        usize::try_from(self.rate as u64 / PIECES_A_SECOND).unwrap_or(PIECE_MAX).clamp(PIECE_MIN, PIECE_MAX)
    }
}

/// At most so many requests in any second; those saved up may go at once.
#[derive(Debug)]
pub(super) struct Window {
    requests: usize,
    /// When the last of them went or will go, the oldest first.
    gone: Mutex<VecDeque<Instant>>,
}

impl Window {
    pub(super) fn new(requests: u32) -> Self {
        let requests = requests.max(1) as usize;
        Self { requests, gone: Mutex::new(VecDeque::with_capacity(requests)) }
    }

    /// Takes a place; when the request may go.
    pub(super) fn take(&self, now: Instant) -> Instant {
        let mut gone = self.gone.lock();
        let at = if gone.len() < self.requests {
            now
        } else {
            gone.pop_front().map_or(now, |oldest| now.max(oldest + WINDOW))
        };
        gone.push_back(at);
        at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The most that passes in any second, given what passed when.
    fn most_in_a_second(passed: &[(Instant, u64)]) -> u64 {
        let window = |start: Instant| {
            let inside = passed.iter().filter(|(at, _)| *at >= start && *at < start + Duration::from_secs(1));
            inside.map(|(_, tokens)| tokens).sum::<u64>()
        };
        passed.iter().map(|(at, _)| window(*at)).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn bytes_stay_below_their_rate(rate in 100_000u64..100_000_000, pauses in prop::collection::vec(0u64..400, 1..200)) {
            let bucket = Bucket::of_bytes(rate);
            let mut now = Instant::now();
            let mut passed = Vec::new();
            for pause in pauses {
                now += Duration::from_millis(pause / 10 * pause / 40);
                let piece = bucket.piece() as u64;
                now = bucket.take(piece, now);
                passed.push((now, piece));
            }
            prop_assert!(most_in_a_second(&passed) <= rate);
        }

        #[test]
        fn requests_stay_below_their_rate(rate in 1u32..50, pauses in prop::collection::vec(0u64..300, 1..200)) {
            let window = Window::new(rate);
            let mut now = Instant::now();
            let mut passed = Vec::new();
            for pause in pauses {
                now += Duration::from_millis(pause * pause / 300);
                passed.push((window.take(now), 1));
            }
            passed.sort();
            prop_assert!(most_in_a_second(&passed) <= u64::from(rate));
        }
    }

    #[test]
    fn a_rate_is_used_up() {
        let bucket = Bucket::of_bytes(1_000_000);
        let begun = Instant::now();
        let mut now = begun;
        let pieces = 10_000_000 / bucket.piece();
        (0..pieces).for_each(|_| now = bucket.take(bucket.piece() as u64, now));
        assert!(now - begun < Duration::from_secs(11), "{:?}", now - begun);
    }

    #[test]
    fn requests_that_were_not_made_are_saved_up_for_a_second() {
        let window = Window::new(3);
        let now = Instant::now();
        let waits: Vec<_> = (0..5).map(|_| window.take(now) - now).collect();
        assert_eq!(waits, [Duration::ZERO, Duration::ZERO, Duration::ZERO, WINDOW, WINDOW]);
    }

    #[test]
    fn pieces_are_small_on_a_slow_line() {
        assert_eq!(Bucket::of_bytes(1).piece(), PIECE_MIN);
        assert_eq!(Bucket::of_bytes(u64::MAX).piece(), PIECE_MAX);
        assert_eq!(Bucket::of_bytes(1 << 20).piece(), 19_922);
    }
}
