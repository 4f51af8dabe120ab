//! `ossfuse sync`: sends what was written so far under a path, and tells how far that has come.

use std::time::{Duration, Instant};

use super::Worker;
use crate::control::server::Progress;
use crate::control::{Failure, Pending, Response};
use crate::vfs::Unsent;

/// How often the command is told, and is looked whether it still waits.
const LOOK: Duration = Duration::from_millis(20);

/// Answers when all is sent, something could not be sent, or the time is up. What was begun goes on all the same.
pub(super) async fn answer(worker: &Worker, path: String, timeout: Option<Duration>, progress: &Progress) -> Response {
    let begun = Instant::now();
    let mut work = {
        let (vfs, path) = (worker.vfs.clone(), path.clone());
        tokio::spawn(async move { vfs.sync(&path).await })
    };
    let failed = loop {
        match tokio::time::timeout(LOOK, &mut work).await {
            Ok(Ok(Ok(()))) => return Response::Done,
            Ok(Ok(Err(failed))) => break failed,
            Ok(Err(error)) => return failure(worker, error.to_string(), "see its log"),
            Err(_) => {}
        }
        let pending = pending(worker.vfs.unsent(&path));
        if progress.is_abandoned() || timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            return Response::TimedOut { pending };
        }
        progress.report(pending);
    };
    let more = if failed.len() > 1 { format!(", and {} more", failed.len() - 1) } else { String::new() };
    let first = failed.first().map(|(name, error)| format!("{name}: {error}")).unwrap_or_default();
    failure(worker, format!("{first}{more}"), "it is tried again in the background; see `ossfuse status`")
}

fn pending(unsent: Unsent) -> Pending {
    Pending { files: unsent.files, bytes: unsent.bytes }
}

fn failure(worker: &Worker, why: String, mend: &str) -> Response {
    let what = worker.config.mountpoint.display().to_string();
    Response::Failed(Failure { what, why, mend: mend.to_owned() })
}
