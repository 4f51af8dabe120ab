//! Whether a failed try is repeated, and after what pause: pure.

use std::time::Duration;

use super::error::{ErrorKind, Failure};
use super::types::Operation;

/// Pauses before the repetitions; each is shortened at random to anything down to nothing ("full jitter").
const PAUSES_MS: [u64; 3] = [100, 200, 400];
/// The longest `Retry-After` that is heeded here; whoever calls has longer patience.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// What follows a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    GiveUp,
    /// Correct the clock from the reply and try at once.
    MendClock,
    After(Duration),
}

/// The tries of one request so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tries {
    /// Repetitions for any reason but the clock.
    pub(super) retries: usize,
    pub(super) clock_mended: bool,
}

/// Decides by the failure, by what may be done twice, and by the tries so far. `random` is any number.
pub(super) fn decide(operation: Operation, failure: &Failure, tries: Tries, random: u64) -> Next {
    let error = &failure.error;
    if error.kind == ErrorKind::ClockSkew {
        let mendable = failure.server_date.is_some() && !tries.clock_mended;
        return if mendable { Next::MendClock } else { Next::GiveUp };
    }
    let passing =
        matches!(error.kind, ErrorKind::Transport | ErrorKind::Server | ErrorKind::Throttled | ErrorKind::Corrupt);
    // A reply without success is the service's word; without one, only a connection never made is as good.
    let refused = failure.unsent || error.status >= 300;
    match PAUSES_MS.get(tries.retries) {
        Some(&pause_ms) if passing && (refused || operation.is_repeatable()) => {
            let pause = Duration::from_millis(random % (pause_ms + 1));
            Next::After(pause.max(failure.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX)))
        }
        _ => Next::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time;
    use crate::oss::error::{Error, Outcome};

    fn failure(operation: Operation, kind: ErrorKind, status: u16) -> Failure {
        let mut error = Error::local(operation, "k", kind, Outcome::Unknown, "");
        error.status = status;
        error.into()
    }

    fn is_repeated(operation: Operation, kind: ErrorKind, status: u16) -> bool {
        decide(operation, &failure(operation, kind, status), Tries::default(), 7) != Next::GiveUp
    }

    #[test]
    fn only_what_may_pass_is_repeated() {
        for (kind, status, repeated) in [
            (ErrorKind::Transport, 0, true),
            (ErrorKind::Transport, 400, true),
            (ErrorKind::Server, 500, true),
            (ErrorKind::Throttled, 503, true),
            (ErrorKind::Throttled, 429, true),
            (ErrorKind::Corrupt, 200, true),
            (ErrorKind::Corrupt, 400, true),
            (ErrorKind::NoSuchKey, 404, false),
            (ErrorKind::PreconditionFailed, 412, false),
            (ErrorKind::AccessDenied, 403, false),
            (ErrorKind::Credentials, 403, false),
            (ErrorKind::ClockSkew, 403, false),
            (ErrorKind::Quota, 403, false),
            (ErrorKind::Protocol, 200, false),
            (ErrorKind::Unsendable, 0, false),
            (ErrorKind::LocalIo, 0, false),
        ] {
            assert_eq!(is_repeated(Operation::PutObject, kind, status), repeated, "{kind:?} {status}");
        }
    }

    #[test]
    fn what_must_not_be_done_twice_is_repeated_only_if_it_was_refused() {
        for operation in [Operation::CompleteMultipartUpload, Operation::InitiateMultipartUpload] {
            assert!(!is_repeated(operation, ErrorKind::Transport, 0));
            assert!(!is_repeated(operation, ErrorKind::Transport, 200));
            assert!(is_repeated(operation, ErrorKind::Server, 500));
            assert!(is_repeated(operation, ErrorKind::Throttled, 503));
            assert!(is_repeated(operation, ErrorKind::Transport, 400));
            let mut unsent = failure(operation, ErrorKind::Transport, 0);
            unsent.unsent = true;
            assert_ne!(decide(operation, &unsent, Tries::default(), 0), Next::GiveUp);
        }
        for operation in [Operation::GetObject, Operation::UploadPart, Operation::DeleteObject, Operation::CopyObject] {
            assert!(is_repeated(operation, ErrorKind::Transport, 0), "{operation}");
        }
    }

    #[test]
    fn there_are_three_repetitions_with_growing_pauses() {
        let failure = failure(Operation::GetObject, ErrorKind::Server, 503);
        let pause =
            |retries, random| decide(Operation::GetObject, &failure, Tries { retries, clock_mended: false }, random);
        for (retries, pause_ms) in PAUSES_MS.into_iter().enumerate() {
            assert_eq!(pause(retries, pause_ms), Next::After(Duration::from_millis(pause_ms)));
            assert_eq!(pause(retries, 0), Next::After(Duration::ZERO));
            assert_eq!(pause(retries, pause_ms + 1), Next::After(Duration::ZERO));
        }
        assert_eq!(pause(PAUSES_MS.len(), 0), Next::GiveUp);
    }

    #[test]
    fn the_service_may_ask_for_a_longer_pause_within_bounds() {
        let mut failure = failure(Operation::GetObject, ErrorKind::Throttled, 503);
        failure.retry_after = Some(Duration::from_secs(2));
        assert_eq!(decide(Operation::GetObject, &failure, Tries::default(), 0), Next::After(Duration::from_secs(2)));
        failure.retry_after = Some(Duration::from_secs(3600));
        assert_eq!(decide(Operation::GetObject, &failure, Tries::default(), 0), Next::After(RETRY_AFTER_MAX));
    }

    #[test]
    fn the_clock_is_mended_once() {
        let mut failure = failure(Operation::PutObject, ErrorKind::ClockSkew, 403);
        failure.server_date = Some(time::from_micros(1));
        let mut tries = Tries { retries: PAUSES_MS.len(), clock_mended: false };
        assert_eq!(decide(Operation::PutObject, &failure, tries, 0), Next::MendClock);
        tries.clock_mended = true;
        assert_eq!(decide(Operation::PutObject, &failure, tries, 0), Next::GiveUp);
    }
}
