//! What `df` shows: always out of memory; the service is asked in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Vfs;

/// The service's own figure is an hour old at times; asking more often than this is of no use.
const USAGE_TTL: Duration = Duration::from_secs(300);

/// How full the bucket is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub capacity: u64,
    pub used: u64,
    pub objects: u64,
}

#[derive(Debug, Default)]
pub(super) struct UsageCache(Mutex<(Option<Instant>, Usage)>);

impl Vfs {
    /// The bucket's use as known now; asks for it in the background when that is old.
    pub fn statfs(self: &Arc<Self>) -> Usage {
        let (asked, usage) = *self.usage.0.lock();
        if asked.is_none_or(|at| at.elapsed() > USAGE_TTL) {
            self.refresh_usage();
        }
        Usage { capacity: self.options.capacity, ..usage }
    }

    /// Asks the service for the bucket's use, without waiting for the answer.
    pub fn refresh_usage(self: &Arc<Self>) {
        self.usage.0.lock().0 = Some(Instant::now());
        let vfs = self.clone();
        self.runtime.spawn(async move {
            match vfs.client.get_bucket_stat().await {
                Ok(stat) => {
                    vfs.usage.0.lock().1 = Usage { capacity: 0, used: stat.storage, objects: stat.object_count };
                }
                Err(error) => log::debug!("the bucket's use is not known: {error}"),
            }
        });
    }
}
