//! On whose behalf something is waited for: whether they have been told to stop, and how long they can wait.
//!
//! A call of the kernel runs in the scope of its [`Caller`]; whatever waits below asks here, however deep it lies. Work
//! outside of any scope is nobody's: it is never interrupted. The surprising part: a task that is spawned leaves the
//! scope; [`inherit`] takes the patience along where that is wanted.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

tokio::task_local! {
    static CALLER: Arc<Caller>;
}

/// How long a caller waits for a service that is sick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As long as the client's options say, from the first failure of a request.
    Outage,
    /// So long from the first failure of a request, and not at all while the service is known to be gone.
    Brief(Duration),
    /// So long since the call began or the service last answered it, whatever it waits for; and not at all while the
    /// service is known to be gone. For what others wait behind.
    Strict(Duration),
}

/// Why a wait was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    #[error("interrupted by a signal")]
    Interrupted,
    #[error("it took too long")]
    TimedOut,
}

/// Somebody who waits.
#[derive(Debug)]
pub struct Caller {
    patience: Patience,
    /// When the call began, or the service last answered it.
    answered: Mutex<Instant>,
    interrupted: watch::Sender<bool>,
}

impl Caller {
    pub fn new(patience: Patience) -> Arc<Self> {
        let (answered, interrupted) = (Mutex::new(Instant::now()), watch::Sender::new(false));
        Arc::new(Self { patience, answered, interrupted })
    }

    /// Does `work` on behalf of this caller.
    pub async fn scope<F: Future>(self: Arc<Self>, work: F) -> F::Output {
        CALLER.scope(self, work).await
    }

    /// Ends all waiting on behalf of this caller, now and later.
    pub fn interrupt(&self) {
        self.interrupted.send_replace(true);
    }

    async fn until_interrupted(&self) {
        // The sender lives as long as this value, so that waiting cannot fail.
        self.interrupted.subscribe().wait_for(|interrupted| *interrupted).await.map(drop).unwrap_or_default();
    }

    fn deadline(&self) -> Option<Instant> {
        match self.patience {
            Patience::Strict(time) => Some(*self.answered.lock() + time),
            _ => None,
        }
    }
}

fn current() -> Option<Arc<Caller>> {
    CALLER.try_with(Arc::clone).ok()
}

/// How long the caller waits for a sick service.
pub fn patience() -> Patience {
    current().map_or(Patience::Outage, |caller| caller.patience)
}

/// A caller as patient as the present one, for work that goes on after that one has been interrupted.
pub fn inherit() -> Arc<Caller> {
    Caller::new(patience())
}

/// Whether whoever is waited for has been told to stop.
pub fn is_interrupted() -> bool {
    current().is_some_and(|caller| *caller.interrupted.borrow())
}

/// When the caller's time is up, unless the service answers.
pub fn deadline() -> Option<Instant> {
    current()?.deadline()
}

/// The service has answered the caller.
pub fn answered() {
    if let Some(caller) = current() {
        *caller.answered.lock() = Instant::now();
    }
}

/// Does `work` with no more patience than this; who interrupts the caller interrupts it too.
pub async fn within<F: Future>(patience: Patience, work: F) -> F::Output {
    let inner = Caller::new(patience);
    let Some(outer) = current() else { return inner.scope(work).await };
    let mut work = std::pin::pin!(inner.clone().scope(work));
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = outer.until_interrupted() => inner.interrupt(),
    }
    work.await
}

/// Waits, unless the caller is interrupted. What is cut off is dropped.
pub async fn interruptible<F: Future>(work: F) -> Result<F::Output, Cut> {
    let Some(caller) = current() else { return Ok(work.await) };
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = caller.until_interrupted() => Err(Cut::Interrupted),
    }
}

/// Waits, unless the caller is interrupted or has waited for too long. What is cut off is dropped.
pub async fn wait<F: Future>(work: F) -> Result<F::Output, Cut> {
    match deadline() {
        None => interruptible(work).await,
        Some(until) => match tokio::time::timeout_at(until, interruptible(work)).await {
            Ok(done) => done,
            Err(_) => Err(Cut::TimedOut),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn nobody_is_neither_interrupted_nor_in_a_hurry() {
        assert_eq!(wait(ready(1)).await, Ok(1));
        assert_eq!(patience(), Patience::Outage);
        assert_eq!(deadline(), None);
    }

    #[tokio::test]
    async fn an_interrupted_caller_waits_no_more() {
        let caller = Caller::new(Patience::Outage);
        let waiting = tokio::spawn(caller.clone().scope(async { wait(pending::<()>()).await }));
        caller.interrupt();
        assert_eq!(waiting.await.unwrap(), Err(Cut::Interrupted));
        assert_eq!(caller.scope(async { wait(ready(1)).await }).await, Ok(1), "what is there is taken");
    }

    #[tokio::test]
    async fn an_interrupt_reaches_what_has_less_patience() {
        let caller = Caller::new(Patience::Outage);
        let work = async { within(Patience::Strict(Duration::from_secs(3600)), wait(pending::<()>())).await };
        let waiting = tokio::spawn(caller.clone().scope(work));
        caller.interrupt();
        assert_eq!(waiting.await.unwrap(), Err(Cut::Interrupted));
    }

    #[tokio::test]
    async fn an_answer_gives_a_caller_new_time() {
        let patience = Duration::from_millis(50);
        let caller = Caller::new(Patience::Strict(patience));
        let work = async {
            assert_eq!(wait(pending::<()>()).await, Err(Cut::TimedOut));
            let begun = Instant::now();
            answered();
            assert_eq!(wait(pending::<()>()).await, Err(Cut::TimedOut));
            assert!(begun.elapsed() >= patience);
        };
        caller.scope(work).await;
    }
}
