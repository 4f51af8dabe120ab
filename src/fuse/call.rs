//! A call that waits: how long it may, and that its process can be ended meanwhile.
//!
//! The kernel's own word of an interrupted call (FUSE_INTERRUPT) does not reach us: fuser answers it with ENOSYS, after
//! which the kernel sends no more, and lets the process wait. So whoever waits for over a second is looked after here:
//! a signal that is pending, and neither blocked nor ignored, ends the waiting with EINTR. Of other processes nothing
//! but `status` is read, which never waits (`src/vfs/opener.rs` says why).

use std::time::Duration;

use fuser::Request;

use crate::base::caller::{Caller, Patience};
use crate::vfs::FsError;

/// How long a call waits before its process is looked at, and the time between two looks.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const NEXT_LOOK: Duration = Duration::from_millis(500);
/// How long a call may wait for the service while the kernel holds the lock of a directory: a little less than the ten
/// seconds that are promised.
const LOCKED: Patience = Patience::Strict(Duration::from_secs(9));
/// The signals that end waiting.
const ENDING: [libc::c_int; 5] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGKILL, libc::SIGTERM];

/// Who called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    /// The calling thread; 0 for the kernel's own doing.
    tid: u32,
}

impl Call {
    pub(super) fn of(request: &Request) -> Self {
        Self { tid: request.pid() }
    }

    /// One that nobody waits for, and that must not be interrupted: a write of the kernel's own cache.
    pub(super) fn of_nobody() -> Self {
        Self { tid: 0 }
    }

    /// Does what may take as long as an outage may.
    pub(super) async fn waiting<T>(self, work: impl Future<Output = Result<T, FsError>>) -> Result<T, FsError> {
        self.run(Patience::Outage, work).await
    }

    /// Does what keeps others from using a directory meanwhile.
    pub(super) async fn locking<T>(self, work: impl Future<Output = Result<T, FsError>>) -> Result<T, FsError> {
        self.run(LOCKED, work).await
    }

    async fn run<T>(self, patience: Patience, work: impl Future<Output = Result<T, FsError>>) -> Result<T, FsError> {
        let caller = Caller::new(patience);
        // On the heap: as deep as it goes, it would fill the stack.
        let mut work = Box::pin(caller.clone().scope(work));
        let mut look = FIRST_LOOK;
        loop {
            if let Ok(done) = tokio::time::timeout(look, &mut work).await {
                return done;
            }
            look = NEXT_LOOK;
            if self.is_ending() {
                caller.interrupt();
                return work.await;
            }
        }
    }

    /// Whether the caller has a signal that would end it, or that it wants to see to; or is gone, as one that was killed
    /// while the kernel read ahead for it.
    fn is_ending(self) -> bool {
        if self.tid == 0 {
            return false;
        }
        match std::fs::read_to_string(format!("/proc/{}/status", self.tid)) {
            Ok(status) => is_ending(&status),
            Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
        }
    }
}

/// Whether `/proc/TID/status` tells of a signal that ends waiting.
fn is_ending(status: &str) -> bool {
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    };
    let ending: u64 = ENDING.iter().map(|signal| 1 << (signal - 1)).sum();
    let pending = set("SigPnd:") | set("ShdPnd:");
    pending & ending & !(set("SigBlk:") | set("SigIgn:")) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(thread: u64, process: u64, blocked: u64, ignored: u64) -> String {
        format!(
            "Name:\tcp\nSigPnd:\t{thread:016x}\nShdPnd:\t{process:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
        )
    }

    #[test]
    fn pending_signals_end_waiting_unless_blocked_or_ignored() {
        let bit = |signal: libc::c_int| 1u64 << (signal - 1);
        for signal in ENDING {
            let bit = bit(signal);
            assert!(is_ending(&status(bit, 0, 0, 0)) && is_ending(&status(0, bit, 0, 0)), "{signal}");
            assert!(!is_ending(&status(bit, bit, bit, 0)) && !is_ending(&status(bit, bit, 0, bit)), "{signal}");
        }
        for signal in [libc::SIGCHLD, libc::SIGUSR1, libc::SIGALRM, libc::SIGWINCH] {
            assert!(!is_ending(&status(bit(signal), bit(signal), 0, 0)), "{signal}");
        }
        assert!(!is_ending(&status(0, 0, 0, 0)) && !is_ending(""));
    }

    #[test]
    fn this_process_is_not_ending() {
        let tid = std::process::id();
        assert!(!Call { tid }.is_ending() && !Call::of_nobody().is_ending());
        assert!(Call { tid: u32::MAX }.is_ending(), "nobody has this number");
    }
}
