//! A budget in bytes that all buffers of the program share: what is fetched ahead, what is about to be sent.
//!
//! It counts, it does not allocate; who takes bytes from it and when to give them back is the business of the layers
//! above. The surprising part: data that can be had again (clean blocks) may occupy the whole budget, so whoever must
//! wait asks the registered [`Reclaim`]ers first, and they look at [`Budget::wanted`] when something of theirs
//! becomes idle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Holds bytes of the budget that it can give back at any time.
pub trait Reclaim: Send + Sync {
    /// Gives back `bytes` bytes or as many as it can; must not block and must not call the budget's `acquire`.
    fn reclaim(&self, bytes: u64);
}

/// A fair semaphore in bytes.
pub struct Budget {
    total: u64,
    free: Semaphore,
    wanted: AtomicU64,
    reclaimers: Mutex<Vec<Weak<dyn Reclaim>>>,
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Arc<Self> {
        let total = total.min(Semaphore::MAX_PERMITS as u64);
        Arc::new(Self {
            total,
            free: Semaphore::new(total as usize),
            wanted: AtomicU64::new(0),
            reclaimers: Mutex::new(Vec::new()),
        })
    }

    /// All bytes, taken and free.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that are free now.
    pub fn available(&self) -> u64 {
        self.free.available_permits() as u64
    }

    /// Bytes that are taken now, those set aside for who waits included.
    pub fn used(&self) -> u64 {
        self.total - self.available()
    }

    /// Bytes that callers of [`Self::acquire`] are waiting for.
    pub fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Lets `reclaimer` be asked before anybody waits.
    pub fn register(&self, reclaimer: Weak<dyn Reclaim>) {
        let mut reclaimers = self.reclaimers.lock();
        reclaimers.retain(|reclaimer| reclaimer.strong_count() > 0);
        reclaimers.push(reclaimer);
    }

    /// The most that one grant can hold: all of it, but less than 4 GiB.
    pub fn grant_max(&self) -> u64 {
        self.total.min(u64::from(u32::MAX))
    }

    /// Takes `bytes` if they are free and nobody waits; never more than [`Self::grant_max`].
    pub fn try_acquire(self: &Arc<Self>, bytes: u64) -> Option<Grant> {
        let permits = u32::try_from(bytes).ok()?;
        self.free.try_acquire_many(permits).ok()?.forget();
        Some(Grant { budget: Arc::clone(self), bytes })
    }

    /// Waits for `bytes`, in the order of arrival; a request above [`Self::grant_max`] is granted that.
    pub async fn acquire(self: &Arc<Self>, bytes: u64) -> Grant {
        let bytes = bytes.min(self.grant_max());
        if let Some(grant) = self.try_acquire(bytes) {
            return grant;
        }
        // Announced before anybody is asked: data that becomes idle after that is given back by its holder.
        let _want = Want::new(&self.wanted, bytes);
        self.ask(bytes);
        self.free.acquire_many(bytes as u32).await.expect("the semaphore is never closed").forget();
        Grant { budget: Arc::clone(self), bytes }
    }

    fn ask(&self, bytes: u64) {
        let reclaimers: Vec<_> = self.reclaimers.lock().iter().filter_map(Weak::upgrade).collect();
        for reclaimer in reclaimers {
            let short = bytes.saturating_sub(self.available());
            if short == 0 {
                break;
            }
            reclaimer.reclaim(short);
        }
    }
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Budget({} of {} used, {} wanted)", self.used(), self.total, self.wanted())
    }
}

/// Counts a waiting request, also when its future is dropped.
struct Want<'a> {
    wanted: &'a AtomicU64,
    bytes: u64,
}

impl<'a> Want<'a> {
    fn new(wanted: &'a AtomicU64, bytes: u64) -> Self {
        wanted.fetch_add(bytes, Ordering::SeqCst);
        Self { wanted, bytes }
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        self.wanted.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// Bytes taken from a budget; given back on drop.
#[derive(Debug)]
#[must_use = "dropped at once, it is given back at once"]
pub struct Grant {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Grant {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back all but `bytes`; never grows.
    pub fn shrink(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        self.budget.free.add_permits(surplus as usize);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn what_is_taken_comes_back() {
        let budget = Budget::new(100);
        let mut grant = budget.try_acquire(70).unwrap();
        assert!(budget.try_acquire(31).is_none());
        grant.shrink(20);
        grant.shrink(50);
        assert_eq!((grant.bytes(), budget.used(), budget.available()), (20, 20, 80));
        drop(grant);
        assert_eq!(budget.used(), 0);
        assert!(budget.try_acquire(101).is_none());
    }

    #[test]
    fn a_request_above_the_largest_grant_gets_that() {
        let budget = Budget::new(100);
        let grant = budget.acquire(1000).now_or_never().expect("free");
        assert_eq!(grant.bytes(), 100);
    }

    #[test]
    fn who_waits_is_served_before_who_tries() {
        let budget = Budget::new(100);
        let mut first = budget.try_acquire(90).unwrap();
        let mut waiting = Box::pin(budget.acquire(50));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(budget.wanted(), 50);
        assert!(budget.try_acquire(10).is_none(), "the free bytes are set aside for who waits");
        first.shrink(40);
        assert_eq!(waiting.now_or_never().expect("enough is free").bytes(), 50);
        assert_eq!(budget.wanted(), 0);
    }

    #[test]
    fn a_request_given_up_leaves_nothing_behind() {
        let budget = Budget::new(100);
        let first = budget.try_acquire(60).unwrap();
        let mut waiting = Box::pin(budget.acquire(50));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(waiting);
        assert_eq!((budget.wanted(), budget.available()), (0, 40));
        drop(first);
        assert_eq!(budget.available(), 100);
    }

    #[test]
    fn idle_data_makes_room_before_anybody_waits() {
        struct Idle(Mutex<Option<Grant>>);
        impl Reclaim for Idle {
            fn reclaim(&self, bytes: u64) {
                assert_eq!(bytes, 50);
                *self.0.lock() = None;
            }
        }
        let budget = Budget::new(100);
        let idle = Arc::new(Idle(Mutex::new(budget.try_acquire(100))));
        let weak = Arc::downgrade(&idle);
        budget.register(weak);
        assert_eq!(budget.acquire(50).now_or_never().expect("room was made").bytes(), 50);
    }
}
