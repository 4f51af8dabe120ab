//! The requests in work, where they can be read after the death of who worked on them.
//!
//! A file in memory that supervisor and worker share: one slot for each request, set before it is worked on, cleared
//! once it is answered, and the number of the request that a thread was at when it brought the process down. That one
//! is suspected when a worker dies of its own doing; where no request can be told, all that stand in the slots are.
//! Suspected three times in a row, a request is answered EIO.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::estate::memory_file;
use crate::base::checked;

/// Requests that are kept in sight; further ones are not suspected of anything. With the culprit, two pages.
const SLOTS: usize = 1023;
/// Behind the slots: the request that a dying thread was at.
const CULPRIT: usize = SLOTS;
const BYTES: usize = (SLOTS + 1) * size_of::<u64>();
/// Deaths over the same request before it is refused.
const DEATHS_MAX: u32 = 3;
/// The signals by which a process ends that has itself to blame; abort and panic are the first.
const FATAL: [libc::c_int; 5] = [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

thread_local! {
    /// The request that this thread is at; 0 is none.
    static AT: Cell<u64> = const { Cell::new(0) };
}

/// Where a dying thread says what it was at.
static CULPRIT_WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

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
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping of a file that is as long as is said.
        let at = unsafe { libc::mmap(ptr::null_mut(), BYTES, protection, flags, descriptor.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(at.cast())) }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has that many, aligned to a page, and is never taken away.
        unsafe { std::slice::from_raw_parts(self.0, SLOTS + 1) }
    }

    fn slots(&self) -> &[AtomicU64] {
        &self.words()[..SLOTS]
    }

    fn culprit(&self) -> &AtomicU64 {
        &self.words()[CULPRIT]
    }
}

impl Slots {
    pub(super) fn create() -> io::Result<Self> {
        Self::adopt(memory_file(c"requests", &[0; BYTES])?)
    }

    pub(super) fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self { map: Map::new(&descriptor)?, descriptor, deaths: HashMap::new() })
    }

    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }

    /// A worker has died of its own doing: suspects what it has died over, and no more what is not in work.
    pub(super) fn blame(&mut self) {
        let in_work: Vec<u64> = self.map.slots().iter().map(|slot| slot.load(Ordering::Acquire)).collect();
        let culprit = self.map.culprit().swap(0, Ordering::AcqRel);
        let is_told = culprit != 0 && in_work.contains(&culprit);
        let counted = |unique: u64| {
            let before = self.deaths.get(&unique).copied().unwrap_or_default();
            (unique, if is_told && unique != culprit { before } else { before + 1 })
        };
        self.deaths = in_work.into_iter().filter(|unique| *unique != 0).map(counted).collect();
    }

    /// Requests that have killed too many workers, for the next one to refuse. Empties the slots.
    pub(super) fn suspects(&self) -> Vec<u64> {
        self.map.words().iter().for_each(|word| word.store(0, Ordering::Release));
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

    /// From here on a thread that brings the process down says in the file what it was at.
    ///
    /// # Errors
    /// The signals by which that happens cannot be watched.
    pub fn watch_deaths(&self) -> io::Result<()> {
        let Some(map) = &self.0 else { return Ok(()) };
        CULPRIT_WORD.store(ptr::from_ref(map.culprit()).cast_mut(), Ordering::Release);
        FATAL.into_iter().try_for_each(watch_signal)
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

    /// Notes what the calling thread is at from now on; 0 is no request.
    pub fn turn_to(&self, unique: u64) {
        if self.0.is_some() {
            AT.set(unique);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((map, at)) = &self.map {
            map.slots()[*at].store(0, Ordering::Release);
        }
    }
}

/// Has a signal tell what its thread was at, and then do what it does by default.
fn watch_signal(signal: libc::c_int) -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = tell_culprit;
    // SAFETY: an all-zero sigaction is a valid empty one; the handler may be run at any point, and runs on the stack
    // for signals, which every thread of the standard library has, so that an overflow of the other is told as well.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND;
        libc::sigemptyset(&raw mut action.sa_mask);
        checked(libc::sigaction(signal, &raw const action, ptr::null_mut())).map(drop)
    }
}

extern "C" fn tell_culprit(signal: libc::c_int) {
    let word = CULPRIT_WORD.load(Ordering::Acquire);
    // SAFETY: null, or in a mapping that is never taken away. The signal is sent again, wherever it came from: now it
    // ends the process, when this returns.
    unsafe {
        if let Some(word) = word.as_ref() {
            word.store(AT.get(), Ordering::Release);
        }
        libc::raise(signal);
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

    /// Its number stays in the slots, as it is not answered; it is not what the workers died over.
    #[test]
    fn one_that_only_waits_meanwhile_is_not_refused() {
        let mut slots = Slots::create().unwrap();
        let work = InWork::open(&slots.descriptor().unwrap()).unwrap();
        for death in 1..=6 {
            let _both = (work.begin(100), work.begin(200));
            slots.map.culprit().store(100, Ordering::Release);
            slots.blame();
            assert_eq!(slots.suspects(), if death < 3 { vec![] } else { vec![100] });
        }
    }

    #[test]
    fn a_culprit_that_was_answered_leaves_it_to_the_others() {
        let mut slots = Slots::create().unwrap();
        let work = InWork::open(&slots.descriptor().unwrap()).unwrap();
        for death in 1..=3 {
            let _slot = work.begin(300);
            slots.map.culprit().store(4, Ordering::Release);
            slots.blame();
            assert_eq!(slots.suspects(), if death < 3 { vec![] } else { vec![300] });
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
