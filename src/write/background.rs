//! Files that are closed on the local disk (`--close local`), on their way to the service.
//!
//! A closed file waits a moment before it is sent: what is renamed or deleted meanwhile (a temporary file that gets its
//! name) costs one upload, or none. So many files are sent at a time; those that wait can still be changed, renamed and
//! deleted without a request. What fails is tried for ever: the bytes are safe, and pending until they are sent.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};

use super::WriteError;
use super::file::DirtyFile;
use super::publish::{BACKGROUND_PATIENCE, CONFLICT, RETRY_PAUSE};
use crate::base::caller::{interruptible, within};
use crate::base::crash;

/// Files that are finished at a time; the bodies under way are bounded by the upload workers.
const FILES_AT_ONCE: usize = 64;

/// What waits to be sent.
#[derive(Debug)]
pub(super) struct Queue {
    permits: Semaphore,
    /// How long a closed file waits for its name to change, or for its end; at once where nothing was said.
    linger: OnceLock<Duration>,
    /// Somebody waits: nothing lingers that was closed until now.
    hurried: Notify,
}

impl Default for Queue {
    fn default() -> Self {
        Self { permits: Semaphore::new(FILES_AT_ONCE), linger: OnceLock::new(), hurried: Notify::new() }
    }
}

impl super::WriteEngine {
    /// Sets how long a closed file waits before it is sent; what is set first stays.
    pub fn send_after(&self, linger: Duration) {
        if self.queue().linger.set(linger).is_err() {
            log::debug!("how long closed files wait is set already");
        }
    }
}

impl Queue {
    /// Sends at once what still lingers.
    pub(super) fn hurry(&self) {
        self.hurried.notify_waiters();
    }
}

impl DirtyFile {
    /// Closes the file: from here on power loss does not take what was written, nor the promise to publish it. It is
    /// sent in the background. A file that was closed and not changed since costs nothing.
    ///
    /// # Errors
    /// What the local disk answered: nothing is promised then.
    /// Whoever asked may go away: it goes on to its end all the same.
    pub async fn close_locally(self: &Arc<Self>) -> Result<(), WriteError> {
        if self.is_closed_locally() {
            return Ok(());
        }
        let file = self.clone();
        let done = interruptible(self.engine.runtime().spawn(async move { file.close_to_the_end().await })).await?;
        done.unwrap_or_else(|error| {
            Err(WriteError::Spill { message: format!("the process is ending: {error}"), errno: None })
        })
    }

    async fn close_to_the_end(self: &Arc<Self>) -> Result<(), WriteError> {
        let _one = self.publishing.lock().await;
        if self.is_over() || self.is_closed_locally() {
            return Ok(());
        }
        {
            let _gate = self.close_gate().await;
            self.sync_promised().await?;
            let (dir, pieces) = {
                let _structure = self.structure.lock();
                let dir = self.ensure_dir()?;
                self.note_closing()?;
                (dir, self.state.lock().take_unsynced())
            };
            if let Err(error) = dir.commit(&pieces).await {
                self.state.lock().put_unsynced(&pieces);
                return Err(error.into());
            }
            let mut state = self.state.lock();
            // Whoever of its writers was killed before, this close is a promise.
            (state.closed_locally, state.killed) = (true, false);
        }
        crash::point("closed-locally");
        self.send_later();
        Ok(())
    }

    /// Whether it was closed by [`Self::close_locally`], and neither sent nor changed since.
    pub fn is_closed_locally(&self) -> bool {
        let state = self.state.lock();
        state.closed_locally && state.is_closed()
    }

    /// Published, discarded or kept: nothing more will come of it.
    fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.retired.is_some() || state.ended || state.record.key.is_none()
    }

    /// Sends a closed file in the background, when it has waited a moment.
    fn send_later(self: &Arc<Self>) {
        if self.retrying.swap(true, Ordering::AcqRel) {
            // It is waiting already, and is sent as it is then.
            return;
        }
        let file = self.clone();
        self.engine.runtime().spawn(async move {
            loop {
                file.send_while_closed().await;
                file.retrying.store(false, Ordering::Release);
                // Closed again before that was said: then nobody else was told to send it.
                if file.is_over() || !file.is_closed_locally() || file.retrying.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }

    /// Tries until it is published, or changed again: then its next close sends it.
    async fn send_while_closed(self: &Arc<Self>) {
        let queue = self.engine.queue();
        let client = self.engine.upload().client();
        let mut pause = queue.linger.get().copied().unwrap_or_default();
        let mut failed = false;
        loop {
            let waiting = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = queue.hurried.notified() => {}
                () = client.recovered(), if failed => {}
            }
            if waiting.elapsed() < pause && failed {
                // Who is in a hurry does not make a sick service well.
                tokio::time::sleep(RETRY_PAUSE.0).await;
            }
            // Here it can still be changed without a request; while it is being published, writers wait.
            client.reachable().await;
            let Ok(_permit) = queue.permits.acquire().await else { return };
            if self.is_over() || !self.is_closed_locally() {
                return;
            }
            match within(BACKGROUND_PATIENCE, self.publish()).await {
                Ok(_) | Err(WriteError::Retired) => return,
                Err(error) if error.is_conflict() => return self.keep_in_background(CONFLICT).await,
                Err(error @ WriteError::Lost) => return self.keep_in_background(&error.to_string()).await,
                Err(_) => (pause, failed) = ((pause * 2).clamp(RETRY_PAUSE.0 * 2, RETRY_PAUSE.1), true),
            }
        }
    }

    /// Publishes in the background, again and again until it is done; that it will be is promised from now on.
    pub fn publish_in_background(self: &Arc<Self>) {
        let noted = {
            let _structure = self.structure.lock();
            // Other descriptors may still write: what the file looks like is noted behind the gate.
            self.ensure_dir().and_then(|_| self.promise())
        };
        if let Err(error) = noted {
            log::error!("{}: {error}", self.name());
        }
        self.retry_in_background(Duration::ZERO);
    }

    /// Tries again after `pause`, and then ever more slowly. A conflict ends it: the bytes are kept for `recover`.
    pub fn retry_in_background(self: &Arc<Self>, pause: Duration) {
        if self.retrying.swap(true, Ordering::AcqRel) {
            return;
        }
        let file = self.clone();
        self.engine.runtime().spawn(async move {
            let mut pause = pause;
            let client = file.engine.upload().client();
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = client.recovered() => {}
                }
                // Not while it is being published: writers would wait, and need not.
                client.reachable().await;
                match within(BACKGROUND_PATIENCE, file.publish()).await {
                    Ok(_) | Err(WriteError::Retired) => break,
                    Err(error) if error.is_conflict() => {
                        file.keep_in_background(CONFLICT).await;
                        break;
                    }
                    Err(error @ WriteError::Lost) => {
                        file.keep_in_background(&error.to_string()).await;
                        break;
                    }
                    Err(_) => pause = (pause * 2).clamp(RETRY_PAUSE.0, RETRY_PAUSE.1),
                }
            }
            file.retrying.store(false, Ordering::Release);
        });
    }
}

impl super::state::State {
    /// The spill files that were written since they were last synced; from here on they count as synced.
    pub(super) fn take_unsynced(&mut self) -> Vec<u64> {
        let unsynced = self.pieces.iter_mut().filter(|(_, piece)| piece.unsynced);
        let taken = unsynced.map(|(index, piece)| {
            piece.unsynced = false;
            *index
        });
        taken.collect()
    }

    /// They were not synced after all.
    pub(super) fn put_unsynced(&mut self, pieces: &[u64]) {
        for index in pieces {
            if let Some(piece) = self.pieces.get_mut(index) {
                piece.unsynced = true;
            }
        }
    }
}
