//! Whether a failed try is repeated, and after what pause: pure.
//!
//! How long it is tried altogether is the client's business, which knows who waits. Every operation may be repeated:
//! those that answer otherwise the second time leave the outcome in doubt, which is for the caller to settle.

use std::time::Duration;

use super::error::{ErrorKind, Failure};

/// Pauses before the first repetitions; each is shortened at random to anything down to nothing ("full jitter").
const FAST_MS: [u64; 3] = [100, 200, 400];
/// The pause after these, doubled each time up to the second; at random between half and all of it.
const SLOW_MS: (u64, u64) = (800, 10_000);
/// The longest pause that the service can ask for.
const ASKED_MAX: Duration = Duration::from_secs(60);

/// What follows a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    GiveUp,
    /// Correct the clock from the reply and try at once.
    MendClock,
    /// Read the credentials again, and try at once if they are others.
    RenewCredentials,
    After(Duration),
}

/// The tries of one request so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tries {
    /// Repetitions for any reason but the clock and the credentials.
    pub(super) retries: usize,
    pub(super) clock_mended: bool,
    pub(super) credentials_renewed: bool,
}

impl Tries {
    /// Whether the fast tries are over.
    pub(super) fn are_slow(self) -> bool {
        self.retries >= FAST_MS.len()
    }
}

/// Decides by the failure and the tries so far. `random` is any number.
pub(super) fn decide(failure: &Failure, tries: Tries, random: u64) -> Next {
    let passing = match failure.error.kind {
        ErrorKind::ClockSkew if failure.server_date.is_some() && !tries.clock_mended => return Next::MendClock,
        ErrorKind::Credentials if !tries.credentials_renewed => return Next::RenewCredentials,
        ErrorKind::Transport | ErrorKind::Server | ErrorKind::Throttled => true,
        // Bytes that are changed on their way each time, or a stranger that answers: no matter of patience.
        ErrorKind::Corrupt => !tries.are_slow(),
        ErrorKind::Protocol => !tries.are_slow() && (200..300).contains(&failure.error.status),
        _ => false,
    };
    if !passing {
        return Next::GiveUp;
    }
    let asked = failure.retry_after.unwrap_or_default().min(ASKED_MAX);
    Next::After(pause(tries.retries, random).max(asked))
}

fn pause(retries: usize, random: u64) -> Duration {
    let ms = match FAST_MS.get(retries) {
        Some(ms) => random % (ms + 1),
        None => {
            let doublings = u32::try_from(retries - FAST_MS.len()).unwrap_or(u32::MAX).min(16);
            let ms = (SLOW_MS.0 << doublings).min(SLOW_MS.1);
            ms / 2 + random % (ms / 2 + 1)
        }
    };
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time;
    use crate::oss::error::{Error, Outcome};
    use crate::oss::types::Operation;

    fn failure(kind: ErrorKind, status: u16) -> Failure {
        let mut error = Error::local(Operation::PutObject, "k", kind, Outcome::Unknown, "");
        error.status = status;
        error.into()
    }

    fn after(retries: usize) -> Tries {
        Tries { retries, ..Tries::default() }
    }

    fn is_repeated(kind: ErrorKind, status: u16, retries: usize) -> bool {
        decide(&failure(kind, status), after(retries), 7) != Next::GiveUp
    }

    #[test]
    fn only_what_may_pass_is_repeated() {
        for (kind, status, fast, slow) in [
            (ErrorKind::Transport, 0, true, true),
            (ErrorKind::Transport, 400, true, true),
            (ErrorKind::Server, 500, true, true),
            (ErrorKind::Throttled, 503, true, true),
            (ErrorKind::Throttled, 429, true, true),
            (ErrorKind::Corrupt, 200, true, false),
            (ErrorKind::Corrupt, 400, true, false),
            (ErrorKind::Protocol, 200, true, false),
            (ErrorKind::Protocol, 404, false, false),
            (ErrorKind::NoSuchKey, 404, false, false),
            (ErrorKind::PreconditionFailed, 412, false, false),
            (ErrorKind::AccessDenied, 403, false, false),
            (ErrorKind::ClockSkew, 403, false, false),
            (ErrorKind::Quota, 403, false, false),
            (ErrorKind::Unsendable, 0, false, false),
            (ErrorKind::LocalIo, 0, false, false),
            (ErrorKind::Interrupted, 0, false, false),
        ] {
            assert_eq!(is_repeated(kind, status, 0), fast, "{kind:?} {status}");
            assert_eq!(is_repeated(kind, status, FAST_MS.len()), slow, "{kind:?} {status}, later");
        }
    }

    #[test]
    fn pauses_grow_within_bounds() {
        let failure = failure(ErrorKind::Server, 503);
        let pause = |retries, random| match decide(&failure, after(retries), random) {
            Next::After(pause) => pause.as_millis() as u64,
            other => panic!("{other:?}"),
        };
        for (retries, pause_ms) in FAST_MS.into_iter().enumerate() {
            assert_eq!([pause_ms, 0, pause_ms + 1].map(|random| pause(retries, random)), [pause_ms, 0, 0]);
        }
        assert_eq!([0, 400].map(|random| pause(3, random)), [400, 800]);
        assert_eq!([0, 800].map(|random| pause(4, random)), [800, 1_600]);
        for retries in [7, 60, usize::MAX] {
            assert_eq!([0, 5_000].map(|random| pause(retries, random)), [5_000, 10_000]);
        }
    }

    #[test]
    fn the_service_may_ask_for_a_longer_pause_within_bounds() {
        let mut failure = failure(ErrorKind::Throttled, 503);
        failure.retry_after = Some(Duration::from_secs(2));
        assert_eq!(decide(&failure, after(0), 0), Next::After(Duration::from_secs(2)));
        failure.retry_after = Some(Duration::from_secs(3600));
        assert_eq!(decide(&failure, after(0), 0), Next::After(ASKED_MAX));
    }

    #[test]
    fn clock_and_credentials_are_mended_once() {
        let mut skewed = failure(ErrorKind::ClockSkew, 403);
        skewed.server_date = Some(time::from_micros(1));
        let mended = Tries { clock_mended: true, credentials_renewed: true, ..after(9) };
        assert_eq!(decide(&skewed, after(9), 0), Next::MendClock);
        assert_eq!(decide(&skewed, mended, 0), Next::GiveUp);
        let refused = failure(ErrorKind::Credentials, 403);
        assert_eq!(decide(&refused, after(9), 0), Next::RenewCredentials);
        assert_eq!(decide(&refused, mended, 0), Next::GiveUp);
    }
}
