//! The identity of one open handle among the readers; the history itself lies with the reader, under its lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::shared::Shared;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// One open handle: its access history drives what is fetched ahead. Dropping it frees what only it wanted.
#[derive(Debug)]
pub struct Cursor {
    id: u64,
    /// The object it was last used with.
    home: Mutex<Weak<Shared>>,
}

impl Default for Cursor {
    /// A handle that has read nothing yet.
    fn default() -> Self {
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), home: Mutex::default() }
    }
}

impl Cursor {
    /// Makes `shared` the object this handle reads, and returns the handle's id there.
    pub(super) fn attach(&self, shared: &Arc<Shared>) -> u64 {
        let before = {
            let mut home = self.home.lock();
            if home.as_ptr() == Arc::as_ptr(shared) {
                return self.id;
            }
            std::mem::replace(&mut *home, Arc::downgrade(shared))
        };
        if let Some(before) = before.upgrade() {
            before.forget(self.id);
        }
        self.id
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        if let Some(home) = self.home.get_mut().upgrade() {
            home.forget(self.id);
        }
    }
}
