//! Points at which a test has the process die, by name.
//!
//! There is nothing here but with the feature `crash-points`, which the tests alone ask for (`Cargo.toml`, the
//! dev-dependencies). A point stands before and after each step that writes, to the local disk or to the service; it
//! costs a look at a variable, and nothing at all in a build for users.
//!
//! `_OSSFUSE_CRASH_FILE` names a file, and its content says what is to happen:
//! - `POINT`: who comes there takes the file away and dies by SIGKILL.
//! - `POINT N`: the same, after N others have passed.
//! - `abort POINT`: the file stays, and whoever comes there aborts.
//! - `trace`: nobody dies; each name goes as a line to the file beside it with the extension `met`.

/// Every point there is. A test compares the list with the source, and others enumerate it.
#[cfg(feature = "crash-points")]
pub const ALL: &[&str] = &[
    // A request of the kernel: it may be done, was done, is written down as done.
    "begun",
    "deed",
    "done",
    // What its answer tells goes into the ledger; then it is answered.
    "answer-noting",
    "answer-noted",
    // A session's folder and its session file.
    "session-folder-made",
    "session-begun",
    "record-writing",
    "record-written",
    "names-synced",
    "session-ending",
    "session-ended",
    "ends-settling",
    "ends-settled",
    "commit-begun",
    "commit-done",
    // Bytes on their way to spill files.
    "spill-writing",
    "spill-written",
    "piece-replacing",
    "piece-half-fetched",
    "piece-fetched",
    "piece-installed",
    "cut-noted",
    "cut-applied",
    "synced",
    // Parts.
    "part-queued",
    "part-taken",
    "part-noted",
    "part-stable",
    "upload-begun",
    "upload-noted",
    "journal-committing",
    "journal-committed",
    // Closing and publishing.
    "closing-recorded",
    "closed-locally",
    "completing-recorded",
    "published",
    "retiring",
    "done-noted",
    "retired",
    // Files whose parts leave the disk, and objects of zeros.
    "leaving-noted",
    "part-left",
    "hidden-noted",
    "hidden-completed",
    "hidden-base-noted",
    "hidden-pieces-removed",
    "hidden-done",
    "leftover-noted",
    "leftover-cleared",
    "zeros-noted",
    "zeros-made",
    // What the service is asked to do.
    "put-sending",
    "put-answered",
    "initiate-sending",
    "initiate-answered",
    "part-sending",
    "part-answered",
    "part-copy-sending",
    "part-copy-answered",
    "complete-sending",
    "complete-answered",
    "abort-sending",
    "abort-answered",
    "copy-sending",
    "copy-answered",
    "delete-sending",
    "delete-answered",
    "multi-delete-sending",
    "multi-delete-answered",
    // Intents, and the work they stand for.
    "intent-writing",
    "intent-recorded",
    "intent-finishing",
    "intent-finished",
    "copy-noted",
    "move-switched",
    "move-shown",
    "move-sessions-moved",
    "move-deleted",
    "rename-copied",
    "rename-session-moved",
    "rename-shown",
    "rename-deleted",
    "exchange-saved",
    "exchange-one-copied",
    "exchange-both-copied",
    "exchange-shown",
    "attributes-noted",
    "attributes-sent",
    "kept-copied",
    // Taking up what an earlier process has left.
    "replay-prepared",
    "replay-looked",
    "replay-taken-up",
    "replay-beside",
    "replay-done",
];

#[cfg(feature = "crash-points")]
mod armed {
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    const VARIABLE: &str = "_OSSFUSE_CRASH_FILE";

    /// How often the point that is armed was passed.
    static PASSED: AtomicU64 = AtomicU64::new(0);

    fn file() -> Option<&'static Path> {
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)).as_deref()
    }

    pub(super) fn meet(name: &str) {
        debug_assert!(super::ALL.contains(&name), "{name} is not in the list");
        let Some(file) = file() else { return };
        let Ok(wanted) = std::fs::read_to_string(file) else { return };
        let words: Vec<&str> = wanted.split_ascii_whitespace().collect();
        match words[..] {
            ["trace"] => trace(&file.with_extension("met"), name),
            ["abort", point] if point == name => std::process::abort(),
            [point] if point == name => die(file),
            [point, after] if point == name => {
                let passed = PASSED.fetch_add(1, Ordering::SeqCst);
                if after.parse().is_ok_and(|after: u64| passed >= after) {
                    die(file);
                }
            }
            _ => {}
        }
    }

    fn trace(to: &Path, name: &str) {
        let line = format!("{name}\n");
        let file = std::fs::File::options().append(true).create(true).open(to);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            log::warn!("{}: {error}", to.display());
        }
    }

    /// Ends this process, if nobody else has taken the file.
    fn die(file: &Path) {
        if std::fs::remove_file(file).is_ok() {
            // SAFETY: ends this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }
}

/// Dies here, if that is what a test has asked for.
#[cfg(feature = "crash-points")]
pub fn point(name: &'static str) {
    armed::meet(name);
}

/// Nothing, in a build that is not for tests.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn point(_name: &'static str) {}
