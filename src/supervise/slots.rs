//! The requests in work, where they can be read after the death of who worked on them.
//!
//! A file in memory that supervisor and worker share: one slot for each request, set before it is worked on, cleared
//! once it is answered. What stands in it when a worker dies of its own doing is suspected; three times in a row, and
//! it is answered EIO.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::estate::memory_file;

/// Requests that are kept in sight; further ones are not suspected of anything.
const SLOTS: usize = 1024;
/// Deaths over the same request before it is refused.
const DEATHS_MAX: u32 = 3;

/// The slots, and what they have told so far.
#[derive(Debug)]
pub(super) struct Slots {
    map: Map,
    descriptor: OwnedFd,
    deaths: HashMap<u64, u32>,
}

/// A mapping of the file.
#[derive(Debug)]
struct Map(*mut AtomicU64);

// SAFETY: the mapping stays for the life of the process, and is used by atomic operations alone.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn new(descriptor: &OwnedFd) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of a file that is as long as is said.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SLOTS * size_of::<u64>(),
                protection,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                descriptor.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(at.cast())) }
    }

    fn slots(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has that many, aligned to a page, and is never taken away.
        unsafe { std::slice::from_raw_parts(self.0, SLOTS) }
    }
}

impl Slots {
    pub(super) fn create() -> io::Result<Self> {
        Self::adopt(memory_file(c"requests", &[0; SLOTS * size_of::<u64>()])?)
    }

    pub(super) fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self { map: Map::new(&descriptor)?, descriptor, deaths: HashMap::new() })
    }

    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }

    /// A worker has died of its own doing: suspects what it was working on, and no more what it was not.
    pub(super) fn blame(&mut self) {
        let found: Vec<u64> = self.map.slots().iter().map(|slot| slot.load(Ordering::Acquire)).collect();
        self.deaths = found
            .into_iter()
            .filter(|unique| *unique != 0)
            .map(|unique| (unique, self.deaths.get(&unique).copied().unwrap_or_default() + 1))
            .collect();
    }

    /// Requests that have killed too many workers, for the next one to refuse. Empties the slots.
    pub(super) fn suspects(&self) -> Vec<u64> {
        self.map.slots().iter().for_each(|slot| slot.store(0, Ordering::Release));
        self.deaths.iter().filter(|(_, deaths)| **deaths >= DEATHS_MAX).map(|(unique, _)| *unique).collect()
    }
}

/// The worker's side.
#[derive(Debug, Clone)]
pub struct InWork(Option<Arc<Map>>);

/// A request in work, until it is answered.
#[derive(Debug)]
pub struct Slot {
    map: Option<(Arc<Map>, usize)>,
}

impl InWork {
    /// Nobody looks.
    pub fn unseen() -> Self {
        Self(None)
    }

    /// Takes the file that the supervisor has made.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn open(descriptor: &OwnedFd) -> io::Result<Self> {
        Ok(Self(Some(Arc::new(Map::new(descriptor)?))))
    }

    /// Notes that a request is worked on until the slot is dropped.
    pub fn begin(&self, unique: u64) -> Slot {
        let Some(map) = &self.0 else { return Slot { map: None } };
        // Numbers are even and rise, so that neighbours seldom meet.
        let start = (unique / 2) as usize;
        let free = (0..SLOTS)
            .map(|step| (start + step) % SLOTS)
            .find(|at| map.slots()[*at].compare_exchange(0, unique, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        Slot { map: free.map(|at| (map.clone(), at)) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((map, at)) = &self.map {
            map.slots()[*at].store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_kills_three_workers_in_a_row_is_refused() {
        let mut slots = Slots::create().unwrap();
        let work = InWork::open(&slots.descriptor().unwrap()).unwrap();
        for death in 1..=3 {
            let (guilty, other) = (work.begin(100), work.begin(200 + death));
            drop(work.begin(300));
            slots.blame();
            assert_eq!(slots.suspects(), if death == 3 { vec![100] } else { vec![] });
            drop((guilty, other));
        }
    }

    #[test]
    fn a_death_over_something_else_clears_the_suspicion() {
        let mut slots = Slots::create().unwrap();
        let work = InWork::open(&slots.descriptor().unwrap()).unwrap();
        for unique in [100, 100, 200, 100, 100] {
            let _slot = work.begin(unique);
            slots.blame();
            assert!(slots.suspects().is_empty());
        }
    }

    #[test]
    fn more_requests_than_slots_are_no_harm() {
        let slots = Slots::create().unwrap();
        let work = InWork::open(&slots.descriptor().unwrap()).unwrap();
        let held: Vec<Slot> = (1..=SLOTS as u64 + 5).map(|unique| work.begin(unique * 2)).collect();
        assert_eq!(held.iter().filter(|slot| slot.map.is_some()).count(), SLOTS);
        drop(held);
        assert!(work.begin(2).map.is_some());
        assert!(InWork::unseen().begin(2).map.is_none());
    }
}
